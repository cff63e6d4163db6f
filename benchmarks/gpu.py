"""Measurements on a GPU: losses against the CPU's, synchronisations of a step, seconds per step of the papers' pairs.

    python benchmarks/gpu.py check
    python benchmarks/gpu.py loop
    python benchmarks/gpu.py pairs --batch 16

`check` computes the losses of every method and family on the CPU and on the GPU in float32, and counts the points of a
step (both forward passes, losses, backward) at which the CPU waits for the GPU. `loop` trains on scenes and counts the
waits of the training loop itself. `pairs` times whole steps (both forward passes, losses, backward, SGD) on images of
noise of the size of COCO's; loading of images is not part of it.
"""

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_cost import Scene
from torch import Tensor

import understudy
from understudy.data import Batch
from understudy.data.scenes import make_scenes
from understudy.detectors import FAMILIES, build_detector
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.outputs import Target
from understudy.training.engine import Engine
from understudy.training.environment import environment

RANDOM = {"mgd"}
"""Methods that draw random numbers, whose losses on two devices differ."""
SMALL = argparse.Namespace(
    size=256, batch=2, width=0.25, neck=64, student="resnet18", teacher="resnet50", bfloat16=False
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A student and its teacher as in a paper's table.

    Attributes:
        student: name of the detector.
        teacher: likewise; None: plain training.
        methods: each with its options.
        neck: channels of the student's neck and head.
    """

    student: str
    teacher: str | None = None
    methods: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    neck: int = 256

    def __str__(self) -> str:
        """Return the cells of its row."""
        methods = ", ".join(" ".join([name, *(str(value) for _, value in options)]) for name, options in self.methods)
        return f"{self.student} | {self.teacher or '-'} | {methods or '-'}"


def _with(student: str, teacher: str, *methods: str, neck: int = 256, **options: Any) -> Pair:
    return Pair(student, teacher, tuple((name, tuple(options.items())) for name in methods), neck)


PAIRS = (
    Pair("retinanet_resnet50"),
    _with("retinanet_resnet50", "retinanet_resnet101", "frs"),
    _with("retinanet_resnet50", "retinanet_resnext101_64x4d", "frs"),
    _with("retinanet_resnet50", "retinanet_resnet101", "rank_mimicking", "pfi"),
    Pair("gfl_resnet50"),
    _with("gfl_resnet50", "gfl_resnet101", "frs"),
    Pair("fcos_resnet50"),
    _with("fcos_resnet50", "fcos_resnet101", "frs"),
    Pair("faster_rcnn_resnet50"),
    _with("faster_rcnn_resnet50", "faster_rcnn_resnet101", "frs"),
    Pair("fcos_mobilenet_v2", neck=128),
    _with("fcos_mobilenet_v2", "fcos_resnext101_32x8d", "dist2", neck=128, strategies="N2N"),
    _with("fcos_mobilenet_v2", "fcos_resnext101_32x8d", "dist2", neck=128, strategies="All2All"),
)


def main() -> None:
    """Run the chosen measurement and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "loop", "pairs"))
    parser.add_argument("--batch", type=int, default=16, help="images per step of `pairs`")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of a pair")
    options = parser.parse_args()
    facts = environment()
    print(f"`{facts['command']}`\n\n{facts['gpus'][0]}, torch {facts['packages']['torch']}, commit {facts['commit']}\n")
    {"check": check, "loop": loop, "pairs": lambda: pairs(options)}[options.what]()


def check() -> None:
    """Print the largest relative difference of a loss and the synchronisations of a step, by family and method."""
    torch.backends.cudnn.allow_tf32 = False
    print("| family | method | largest difference | synchronisations | where |\n|---|---|---:|---:|---|")
    for family in FAMILIES:
        scenes = {
            device: Scene.of(family, argparse.Namespace(**vars(SMALL), device=device)) for device in ("cpu", "cuda")
        }
        student, teacher = scenes["cpu"].student.spec, scenes["cpu"].teacher.spec
        served = [
            name for name, method in METHODS.items() if set(method.terms) - set(method.obstacles(student, teacher))
        ]
        for name in ("plain", *served):
            print(f"| {family} | {name} | {_compared(scenes, name)} |", flush=True)


def _compared(scenes: dict[str, Scene], name: str) -> str:
    """Compute a method's losses on both devices; return the last cells of its row."""
    losses: dict[str, dict[str, float]] = {}
    for device, scene in scenes.items():
        torch.manual_seed(1)
        if name == "plain":
            methods = []
        else:
            method, specs = METHODS[name], (scene.student.spec, scene.teacher.spec)
            terms = [term for term in method.terms if term not in method.obstacles(*specs)]
            methods = [method(*specs, terms=terms)]
        learner = Learner(scene.student, methods).to(device)
        losses[device] = {key: value.item() for key, value in _losses(scene, learner).items()}
    waits = _waits(scenes["cuda"], learner)
    gaps = [abs(own - losses["cuda"][key]) / max(abs(own), 1e-6) for key, own in losses["cpu"].items()]
    gap = "random" if name in RANDOM else f"{max(gaps):.1e}"
    return f"{gap} | {sum(waits.values())} | {', '.join(f'{place} {count}' for place, count in waits.items())}"


def _losses(scene: Scene, learner: Learner) -> dict[str, Tensor]:
    with torch.no_grad():
        teacher_outputs = scene.teacher(scene.images, needs=learner.needs)
    return learner(scene.images, scene.targets, teacher_outputs, teacher=scene.teacher)


def _waits(scene: Scene, learner: Learner) -> Counter[str]:
    """Count the places of a step at which the CPU waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            torch.stack([loss.float() for loss in _losses(scene, learner).values()]).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    learner.zero_grad()
    found = [each for each in caught if "synchroniz" in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in found)


def loop() -> None:
    """Print how often a step of whole training runs waits for the GPU, in our modules, and how fast the runs are."""
    print("| run | images / s | waits of the training loop in a step | where |\n|---|---:|---:|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scenes = make_scenes(folder / "scenes", train=512, val=8, size=320, seed=0)
        keys: dict[str, Any] = {
            "data": {
                "path": scenes,
                "shorter_side": 320,
                "longer_side": 320,
                "colour": 0.0,
                "scale": 1.0,
                "workers": 4,
            },
            "detector": {"name": "retinanet_resnet18", "neck_channels": 128, "backbone_weights": None},
            "detector.anchor_scale": None,
            "schedule": {"name": "1x", "epochs": 2},
            "evaluate_every": 1000,
            "batch_size": 16,
            "log_every": 16,
            "optimizer.name": "sgd",
            "optimizer.lr": 1e-4,
            "teacher_check": 0,
        }
        plain = {key: value for key, value in keys.items() if key != "teacher_check"}
        teacher = understudy.train(plain, run=folder / "teacher", **{"detector.name": "retinanet_resnet50"})
        tried: dict[str, dict[str, Any]] = {
            "plain": {},
            "hint": {"methods": "hint", "teacher_cache": "off"},
            "hint, bf16": {"methods": "hint", "teacher_cache": "off", "precision": "bf16"},
            "hint, compile=true": {"methods": "hint", "teacher_cache": "off", "compile": True},
            "hint, teacher_cache=memory": {"methods": "hint", "teacher_cache": "memory", "data.flip": 0.0},
        }
        for number, (name, more) in enumerate(tried.items()):
            run = folder / str(number)
            if more:
                train = partial(understudy.distill, keys, run=run, teacher=teacher, **more)
            else:
                train = partial(understudy.train, plain, run=run)
            print(f"| {name} | {_run(train)} |", flush=True)


def _run(train: Callable[[], object]) -> str:
    """Train for two epochs of 32 steps; return the rate and the waits of the second one."""
    times: list[float] = []
    step = Engine.training_step

    def watched(engine: Engine, batch: Batch, number: int) -> Tensor:
        if engine.global_step in (32, 62):
            torch.cuda.synchronize()
            times.append(time.perf_counter())
            torch.cuda.set_sync_debug_mode("warn" if engine.global_step == 32 else "default")
        return step(engine, batch, number)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Engine.training_step = watched  # ty: ignore[invalid-assignment]
        try:
            train()
        finally:
            Engine.training_step = step  # ty: ignore[invalid-assignment]
            torch.cuda.set_sync_debug_mode("default")
        found = [each for each in caught if "synchroniz" in str(each.message)]
    places = Counter(
        f"{Path(each.filename).name}:{each.lineno}" for each in found if "understudy/training" in each.filename
    )
    waits = ", ".join(f"{place} {count / 30:.2f}" for place, count in places.items()) or "nowhere"
    return f"{30 * 16 / (times[1] - times[0]):.0f} | {sum(places.values()) / 30:.2f} | {waits}"


def pairs(options: argparse.Namespace) -> None:
    """Print seconds per step and peak memory of each pair, in float32 (TF32 convolutions) and in bfloat16."""
    height, width = options.size
    print(f"{options.batch} images of {height} x {width} pixels per step, median of {options.rounds} steps.\n")
    print(
        "| student | teacher | methods | s / step | GB | s / step, bf16 | GB, bf16 |\n|---|---|---|---:|---:|---:|---:|"
    )
    for pair in PAIRS:
        cells = [_timed(pair, options, bfloat16) for bfloat16 in (False, True)]
        print(f"| {pair} | {' | '.join(cells)} |", flush=True)


def _timed(pair: Pair, options: argparse.Namespace, bfloat16: bool) -> str:
    """Return the cells of one pair and precision."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds = _seconds(pair, options, bfloat16)
    except torch.OutOfMemoryError:
        return "out of memory | -"
    return f"{statistics.median(seconds[2:]):.3f} | {torch.cuda.max_memory_allocated() / 2**30:.1f}"


def _seconds(pair: Pair, options: argparse.Namespace, bfloat16: bool) -> list[float]:
    """Return the durations of some steps; the first two also allocate memory and choose algorithms."""
    scene = _scene(pair, options)
    specs = scene.student.spec, scene.teacher.spec
    methods = [METHODS[name](*specs, **dict(chosen)) for name, chosen in pair.methods]
    learner = Learner(scene.student, methods).to(scene.images.device)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.0, momentum=0.9)
    seconds = []
    for _ in range(options.rounds + 2):
        started = time.perf_counter()
        with torch.autocast(scene.images.device.type, torch.bfloat16, enabled=bfloat16):
            losses = _losses(scene, learner) if methods else learner(scene.images, scene.targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def _scene(pair: Pair, options: argparse.Namespace) -> Scene:
    """Build the detectors of a pair with random weights, and images of noise with seven objects each."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"conventions": "mmdet", "norm": "eval", "frozen_stages": 1}
    student = build_detector(pair.student, 80, neck_channels=pair.neck, **common).cuda()
    teacher = build_detector(pair.teacher or "retinanet_resnet18", 80, **common).cuda().requires_grad_(False).eval()
    height, width = options.size
    low = torch.rand(7, 2) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat([low, low + 20 + 300 * torch.rand(7, 2)], dim=1).cuda()
    targets: list[Target] = [{"boxes": boxes, "labels": torch.arange(7).cuda()} for _ in range(options.batch)]
    images = torch.rand(options.batch, 3, height, width, device="cuda")
    return Scene(student, teacher, images, targets, bfloat16=False)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s in all")
