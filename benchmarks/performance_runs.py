"""The cost of runs: students together, a cached teacher, and Lightning's loop over a bare one.

The CPU time of twenty steps is measured within an epoch, without its start, checkpoint and evaluation.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from performance_rows import Row

from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data import open_data
from understudy.data.loading import training_loader
from understudy.data.scenes import make_scenes
from understudy.detectors import build_detector
from understudy.learner import Learner
from understudy.outputs import Needs
from understudy.training import run as runs
from understudy.training.engine import Engine
from understudy.training.together import train_together

IMAGES, BATCH, SIZE, ROUNDS = 48, 2, 128, 3
EPOCH = IMAGES // BATCH
WINDOW = 3, EPOCH - 1
"""Steps of an epoch that are timed: from the start of the first to that of the last."""
STEPS = WINDOW[1] - WINDOW[0]


def rows() -> Iterator[Row]:
    """Measure RetinaNet-R50 to R18 with hint on scenes of 128 pixels."""
    with tempfile.TemporaryDirectory() as place:
        yield from Costs(Path(place)).rows()


FIRST_STEP = """
import os, sys, time
from understudy.training import run
from understudy.config import TrainConfig, load_config
from understudy.training.engine import Engine

step = Engine.training_step

def first(self, batch, number):
    step(self, batch, number)
    print(time.process_time(), flush=True)
    os._exit(0)

Engine.training_step = first
keys = {"data": sys.argv[1], "data.shorter_side": 64, "data.workers": 0, "detector": "fcos_mobilenet_v2"}
keys |= {"detector.backbone_weights": None, "schedule": "1x", "data.colour": 0.0, "data.scale": 1.0}
folder = f"{sys.argv[2]}/{os.getpid()}"
run.train(load_config(TrainConfig, {**keys, "batch_size": 2, "accelerator": "cpu", "run": folder}))
"""
IMPORTS = """
import time, torch, torchvision, lightning.pytorch
print(time.process_time())
"""


def in_a_process(code: str, *arguments: object) -> float:
    """Return the number that a new process prints; the lowest of several."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5))
    return min(float(each.stdout) for each in done)


class Costs:
    """Runs in a temporary folder."""

    def __init__(self, place: Path):
        self.place, self.count = place, 0
        self.scenes = make_scenes(place / "scenes", train=IMAGES, val=1, size=SIZE, seed=0)
        self.teacher = self.place / "teacher"
        with quietly():
            runs.train(load_config(TrainConfig, self.keys(1, "retinanet_resnet50") | {"run": self.teacher}))

    def keys(self, epochs: int, detector: str = "retinanet_resnet18") -> dict[str, Any]:
        """Return the keys of a run in a new folder."""
        self.count += 1
        data = {
            "path": self.scenes,
            "shorter_side": SIZE,
            "longer_side": SIZE,
            "workers": 0,
            "flip": 0.0,
            "colour": 0.0,
            "scale": 1.0,
        }
        return {
            "data": data,
            "detector": {"name": detector, "neck_channels": 128, "backbone_weights": None, "anchor_scale": None},
            "schedule": {"name": "1x", "epochs": epochs, "warmup_steps": 0},
            "evaluate_every": 1000,
            "batch_size": BATCH,
            "optimizer.name": "sgd",
            "optimizer.lr": 1e-5,
            "accelerator": "cpu",
            "run": self.place / str(self.count),
        }

    def student(self, epochs: int, **more: Any) -> DistillConfig:
        """Return the config of a student."""
        keys = {"teacher": self.teacher, "methods": "hint", "teacher_check": 0, "teacher_cache": "off"}
        return load_config(DistillConfig, self.keys(epochs) | keys | more)

    def rows(self) -> Iterator[Row]:
        """Measure everything in turns; the lowest of several rounds counts, since others only add to it."""
        tried: dict[str, Callable[[], float]] = {
            "plain": lambda: steps_of(lambda: runs.train(load_config(TrainConfig, self.keys(1)))),
            "alone": lambda: steps_of(lambda: runs.distill(self.student(1))),
            "cached": lambda: steps_of(lambda: runs.distill(self.student(2, teacher_cache="memory")), EPOCH),
            "3": lambda: steps_of(lambda: train_together([self.student(1) for _ in range(3)])),
            "5": lambda: steps_of(lambda: train_together([self.student(1) for _ in range(5)])),
            "teacher": self.passes,
            "bare": self.bare_loop,
        }
        found = dict.fromkeys(tried, float("inf"))
        for _ in range(ROUNDS):
            for name, measure in tried.items():
                with quietly():
                    found[name] = min(found[name], measure())
        teacher, student = found["teacher"], found["alone"] - found["teacher"]
        for count in (3, 5):
            ideal = (teacher + count * student) / (count * found["alone"])
            ratio = found[str(count)] / (count * found["alone"])
            note = f"{ratio:.2f} of {count} runs; the teacher's pass is {teacher / found['alone']:.0%} of a run alone"
            yield Row(
                f"{count} students together, over one pass of the teacher and {count} steps",
                ratio / ideal,
                1.03,
                note=note,
            )
        yield Row(
            "an epoch with the teacher's outputs in memory, over a plain one", found["cached"] / found["plain"], 1.05
        )
        yield Row("an epoch with the teacher, over a plain one", found["alone"] / found["plain"])
        yield Row("`understudy train`, over a bare loop of PyTorch", found["plain"] / found["bare"], 1.05)
        first = in_a_process(FIRST_STEP, self.scenes, self.place / "first")
        note = f"of these, {in_a_process(IMPORTS):.1f} s are the imports of torch, torchvision and Lightning"
        yield Row("CPU time until the first step of `train` is done", first, 5.0, "s", note=note)

    def passes(self) -> float:
        """Return the CPU time of the teacher's passes in the steps of a run."""
        teacher = build_detector("retinanet_resnet50", 4, neck_channels=128, shorter_side=SIZE, longer_side=SIZE).eval()
        teacher.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        images, needs = torch.rand(BATCH, 3, SIZE, SIZE), Needs(frozenset({"features"}))
        with torch.no_grad():
            teacher(images, needs=needs)
            started = time.process_time()
            for _ in range(STEPS):
                teacher(images, needs=needs)
            return time.process_time() - started

    def bare_loop(self) -> float:
        """Return the CPU time of a loop over the same batches without Lightning, checks and logs."""
        torch.manual_seed(0)
        student = build_detector("retinanet_resnet18", 4, neck_channels=128, shorter_side=SIZE, longer_side=SIZE)
        learner = Learner(student).train()
        learner.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        optimizer = torch.optim.SGD(learner.parameters(), 1e-5, momentum=0.9, weight_decay=1e-4)
        data = open_data(self.scenes, "train")
        loader = training_loader(data, batch_size=BATCH, shorter_side=[SIZE], longer_side=SIZE, flip=0.0, seed=0)

        started = 0.0
        for step, batch in enumerate(loader):
            if step in WINDOW:
                started, before = time.process_time(), started
            losses = learner(batch.images, batch.targets, image_sizes=batch.image_sizes)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        return started - before


def steps_of(train: Callable[[], object], before: int = 0) -> float:
    """Return the CPU time of the timed steps, after some steps before; of all runs together, if there are several."""
    times: dict[int, float] = {}
    engines: list[Engine] = []
    start = Engine.on_train_batch_start

    def noted(engine: Engine, batch: Any, number: int) -> None:
        engines.append(engine)
        if engine is engines[0]:
            times[engine.global_step - before] = time.process_time()
        start(engine, batch, number)

    Engine.on_train_batch_start = noted  # ty: ignore[invalid-assignment]
    try:
        train()
    finally:
        Engine.on_train_batch_start = start  # ty: ignore[invalid-assignment]
    return times[WINDOW[1]] - times[WINDOW[0]]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Print nothing of the runs."""
    from understudy.training import console

    before, console.CONSOLE.file = console.CONSOLE.file, io.StringIO()
    try:
        yield
    finally:
        console.CONSOLE.file = before
