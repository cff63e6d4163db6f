"""Measure the cost of a training step with each method, relative to a step with a teacher and no method.

    python benchmarks/step_cost.py --size 256 --batch 2 --rounds 15 --threads 1
    python benchmarks/step_cost.py --device cuda --size 800 --batch 8 --bfloat16

The floor is the cost of every distillation run: the student's plain step (forward, its own loss, backward, SGD) and the
teacher's forward pass. Methods take turns. Each of their steps is paired with one of the floor, which comes first in
every other round, so that other load slows both equally.

* Time: the median over the rounds of the ratio of the two, with the quartiles.
* Memory: the peak that PyTorch holds during a step, minus what it held before.
* Detectors: students <family>_resnet18, teachers <family>_resnet50, of the first family in which all terms of the
  method are available.
* The row `floor + tail` adds the passes that Dist2 needs: for each of its four strategies forward and backward through
  the teacher's head, for two of them also through its neck, and the teacher's loss.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from understudy.detectors import FAMILIES, Detector, build_detector
from understudy.learner import Learner
from understudy.methods import METHODS
from understudy.outputs import Outputs, Target
from understudy.studies.timing import peak_memory
from understudy.training.environment import environment

TAIL = "floor + tail"

Extra = Callable[["Scene", Outputs], Tensor]


@dataclass
class Scene:
    """A student, its teacher and one batch."""

    student: Detector
    teacher: Detector
    images: Tensor
    targets: list[Target]
    bfloat16: bool

    @classmethod
    def of(cls, family: str, options: argparse.Namespace) -> "Scene":
        """Build the detectors with random weights, and images of noise with some objects."""
        torch.manual_seed(0)
        student, teacher = (
            build_detector(f"{family}_{backbone}", 80, width_mult=options.width, neck_channels=options.neck)
            for backbone in (options.student, options.teacher)
        )
        device = torch.device(options.device)
        low = torch.rand(6, 2) * options.size * 0.6
        boxes = torch.cat([low, low + options.size * (0.1 + 0.3 * torch.rand(6, 2))], dim=1).to(device)
        targets = [{"boxes": boxes, "labels": torch.arange(6, device=device)} for _ in range(options.batch)]
        images = torch.rand(options.batch, 3, options.size, options.size).to(device)
        return cls(
            student.to(device),
            teacher.to(device).requires_grad_(False).eval(),
            images,
            targets,
            options.bfloat16,
        )


@dataclass
class Contestant:
    """A kind of training step, with its measurements.

    Attributes:
        name: of the method, or ``floor``.
        family: of the detectors.
        scene: shared by all contestants of one family.
        learner: the student and the method.
        extra: a loss to add, or None.
        seconds: duration in each round.
        beside: duration of the paired step of the floor.
        memory: bytes held at the peak of a step, minus those held before it.
    """

    name: str
    family: str
    scene: Scene
    learner: Learner
    extra: Extra | None = None
    seconds: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    memory: int = 0

    def __post_init__(self) -> None:
        """Make the optimizer; its learning rate is zero, so that the weights stay the same."""
        self.optimizer = torch.optim.SGD(self.learner.parameters(), lr=0.0, momentum=0.9)

    def step(self) -> None:
        """Take one step."""
        scene = self.scene
        with torch.autocast(scene.images.device.type, torch.bfloat16, enabled=scene.bfloat16):
            with torch.no_grad():  # the floor runs the whole teacher
                teacher_outputs = scene.teacher(
                    scene.images, needs=self.learner.needs if self.learner.methods else None
                )
            losses = self.learner(scene.images, scene.targets, teacher_outputs, teacher=scene.teacher)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            if self.extra is not None:
                total = total + self.extra(scene, teacher_outputs)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def time(self) -> float:
        """Take one step and return its seconds: of the CPU, on which other programs run, too, or of a GPU."""
        clock = time.perf_counter if self.scene.images.is_cuda else time.process_time
        started = clock()
        self.step()
        if self.scene.images.is_cuda:
            torch.cuda.synchronize()
        return clock() - started

    @property
    def parameters(self) -> int:
        """Number of the method's own parameters."""
        return sum(parameter.numel() for parameter in self.learner.methods.parameters())


def main() -> None:
    """Measure, and print the table."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    contestants = enter(options)
    floors = measure(contestants, options.rounds)
    print(table(options, contestants, floors))


def measure(contestants: Sequence[Contestant], rounds: int) -> dict[str, Contestant]:
    """Let the contestants take turns, and return the floor of each family."""
    for contestant in contestants:
        contestant.step()  # the first step creates the optimizer's state
        contestant.memory = peak_memory(contestant.step, contestant.scene.images.device)
    floors = {contestant.family: contestant for contestant in contestants if contestant.name == "floor"}
    for number in range(rounds):
        for contestant in contestants:
            pair = [(contestant, contestant.seconds), (floors[contestant.family], contestant.beside)]
            for each, seconds in pair if number % 2 else reversed(pair):
                seconds.append(each.time())
    return floors


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or the arguments given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="in autocast")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--student", default="resnet18", help="backbone")
    parser.add_argument("--teacher", default="resnet50", help="backbone")
    parser.add_argument("--width", type=float, default=1.0, help="of both backbones")
    parser.add_argument("--neck", type=int, default=256, help="channels of both necks")
    return parser.parse_args(given)


def enter(options: argparse.Namespace) -> list[Contestant]:
    """Build the methods, and the floor of each family that they need."""
    scenes: dict[str, Scene] = {}
    contestants: list[Contestant] = []

    def scene_of(family: str) -> Scene:
        if family not in scenes:
            scenes[family] = Scene.of(family, options)
            contestants.append(Contestant("floor", family, scenes[family], Learner(scenes[family].student)))
        return scenes[family]

    for name in options.methods:
        method = METHODS[name]
        for family in FAMILIES:
            scene = scene_of(family)
            student, teacher = scene.student.spec, scene.teacher.spec
            if not set(method.obstacles(student, teacher)) & set(method.terms):
                break
        else:
            raise SystemExit(f"{name} is not available with all of its terms in any of {', '.join(FAMILIES)}.")
        built = method(student, teacher).to(scene.images.device)
        if name == "dist2":
            contestants.append(Contestant(TAIL, family, scene, Learner(scene.student), tail))
        contestants.append(Contestant(name, family, scene, Learner(scene.student, [built])))
    measured = {contestant.family for contestant in contestants if contestant.name != "floor"}
    return [contestant for contestant in contestants if contestant.family in measured]


def tail(scene: Scene, teacher_outputs: Outputs) -> Tensor:
    """Run the teacher's own feature maps through its layers, as Dist2 does with the student's in four strategies."""
    teacher, size = scene.teacher, (scene.images.shape[-2], scene.images.shape[-1])
    gt_index = teacher.assign(teacher_outputs, scene.targets)
    losses: list[Tensor] = []
    for entrance in (identity, teacher.neck) * 2:
        maps = teacher_outputs.features if entrance is identity else teacher_outputs.stages
        found = teacher.head(entrance([level.detach().requires_grad_() for level in maps]), size)
        losses += teacher.loss(found, scene.targets, gt_index).values()
    return torch.stack([loss.float() for loss in losses]).sum()


def identity(maps: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the maps unchanged: those of the neck enter the head directly."""
    return maps


def table(options: argparse.Namespace, contestants: Sequence[Contestant], floors: dict[str, Contestant]) -> str:
    """Return the table as Markdown, with the settings and the hardware."""
    facts = environment()
    hardware = facts["gpus"][0] if options.device.startswith("cuda") else facts["processor"]
    torch_version = facts["packages"]["torch"]
    lines = [
        f"`{facts['command']}`",
        "",
        f"{hardware}, {torch.get_num_threads()} CPU threads, torch {torch_version}, commit {facts['commit']}; "
        f"{options.batch} images of {options.size} x {options.size} pixels, students {options.student}, teachers "
        f"{options.teacher}, {'bfloat16' if options.bfloat16 else 'float32'}, {options.rounds} rounds.",
        "",
        "| method | detectors | time / floor | quartiles | ms | memory / floor | MB | own parameters (M) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *map(partial(row, floors), contestants)])


def row(floors: dict[str, Contestant], contestant: Contestant) -> str:
    """Return one line of the table."""
    floor = floors[contestant.family]
    ratios = [own / base for own, base in zip(contestant.seconds, contestant.beside, strict=True)]
    low, middle, high = quartiles(ratios)
    cells = [
        contestant.name,
        contestant.family,
        f"{middle:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{1000 * statistics.median(contestant.seconds):.1f}",
        f"{contestant.memory / floor.memory:.3f}",
        f"{contestant.memory / 2**20:.0f}",
        f"{contestant.parameters / 1e6:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the quartiles of some values; of a single value, the value three times."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


if __name__ == "__main__":
    main()
