"""The swap test: what does a teacher detect when it is given a student's maps in place of its own?

Dist2's poster: the losses between a student's maps and the teacher's may be small, and yet the teacher's head makes
nothing of the student's. Here the average precision of that is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from understudy.checkpoints import Checkpoint, load_checkpoint, read_checkpoint
from understudy.data import evaluation_loader, open_data
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.evaluation import Backend, choose_device, detect_all, match_classes, percent, score, with_progress
from understudy.methods import build_methods, method_class
from understudy.methods.dist2 import Dist2
from understudy.methods.dist2_layers import ALL2ALL, by_stride, channels_at, strides_at, strides_served, through_teacher
from understudy.outputs import Outputs
from understudy.pairing import Pairing, listed, pair

Maps = Callable[[Outputs, Outputs], dict[int, Tensor]]
"""Makes, of a student's record and the teacher's, the maps that enter the teacher, by stride."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One way to put a student's maps into a teacher.

    Attributes:
        strategy: where they are taken and where they enter: ``"N2N"``, ``"B2B"``, ``"B2N"``, ``"N2B"``.
        straight: COCO's AP of the teacher on the student's maps as they are; None where the channels do not fit.
        transformed: the same through the transforms that Dist2 trained; None where it did not train any.
    """

    strategy: str
    straight: float | None
    transformed: float | None


@dataclass(frozen=True, slots=True)
class SwapTest:
    """The swap test of a teacher and a student; every AP is COCO's, in 0..1.

    Attributes:
        teacher: AP of the teacher itself.
        student: AP of the student itself.
        swaps: of the teacher on the student's maps, each way that is possible.
        notes: what has to be known to read the numbers.
    """

    teacher: float
    student: float
    swaps: tuple[Swap, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        """A table for the terminal."""
        title = "AP of the teacher on the student's maps"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("strategy")
        table.add_column("as they are", justify="right")
        table.add_column("through its transforms", justify="right")
        for swap in self.swaps:
            cells = ("-" if value is None else percent(value) for value in (swap.straight, swap.transformed))
            table.add_row(swap.strategy, *cells)
        own = f"on its own: the teacher {percent(self.teacher)}, the student {percent(self.student)}"
        return Group(table, own, *([""] if self.notes else []), *self.notes)


def swap_test(
    teacher: Path | str,
    student: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    workers: int = 0,
    backend: Backend = "auto",
) -> SwapTest:
    """Measure what a teacher detects on a student's maps: as they are, and through the transforms that Dist2 trained.

    Of a run folder the student is the last checkpoint, not the best: the transforms were trained with that one.

    Args:
        teacher: a checkpoint or a run folder (its best checkpoint).
        student: a run folder (its last checkpoint) or a checkpoint; only a ``last.ckpt`` holds transforms.
        data: the data set; by default the one of the student's run.
        split: by default the validation split of the student's run.
        device: by default a GPU where there is one.
        batch_size: images at once.
        workers: processes that read images.
        backend: see :func:`understudy.evaluation.score`.

    Raises:
        UserError: a checkpoint or the data cannot be read, the two have no class or level in common, the transforms
            were trained for another teacher, or there is no way to put the student's maps into this teacher.
    """
    device = choose_device(device)
    theirs, own = load_checkpoint(teacher), load_checkpoint(_last(Path(student)))
    pairing = pair(own.detector.spec, theirs.detector.spec, own.classes, theirs.classes)
    method = _trained_method(own, pairing)
    ways = {name: ways for name in ALL2ALL if any(ways := (_straight(name, pairing), _transformed(name, method)))}
    if not ways:
        raise UserError(_nothing_fits(own, theirs, pairing))
    settings = own.config["data"]
    if data is None and settings["path"] is None:
        raise UserError(f"{own.path} was imported, not trained here, so it names no data set: give one as DATA.")
    opened = open_data(data if data is not None else settings["path"], split or settings["val"])
    loader = evaluation_loader(
        opened,
        batch_size=batch_size,
        shorter_side=settings["shorter_side"][-1],
        longer_side=settings["longer_side"],
        workers=workers,
    )

    def measured(detector: Any, classes: Sequence[str], what: str) -> float:
        found = detect_all(detector.to(device), with_progress(loader, what), device, match_classes(classes, opened))
        return score(opened, found, backend).coco["AP"]

    def swapped(name: str, maps: Maps | None) -> float | None:
        detector = maps and _Swapped(own.detector, theirs.detector, pairing, name, maps, method)
        return measured(detector, theirs.classes, name) if detector else None

    return SwapTest(
        teacher=measured(theirs.detector, theirs.classes, "the teacher"),
        student=measured(own.detector, own.classes, "the student"),
        swaps=tuple(Swap(name, *(swapped(name, maps) for maps in both)) for name, both in ways.items()),
        notes=tuple(_notes(own, theirs, pairing, list(ways), method)),
    )


class _Swapped(nn.Module):
    """A student up to where its maps are taken and a teacher from where they enter, as one detector."""

    def __init__(
        self, student: Detector, teacher: Detector, pairing: Pairing, strategy: str, maps: Maps, method: Dist2 | None
    ):
        super().__init__()
        self.student, self.teacher, self.method = student, teacher, method
        self.pairing, self.strategy, self.maps = pairing, strategy, maps

    def forward(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Outputs:
        own, theirs = self.student(images, image_sizes), self.teacher(images, image_sizes)
        maps = self.maps(self.pairing.student_record(own), self.pairing.teacher_record(theirs))
        return through_teacher(self.strategy[-1], maps, self.teacher, theirs)

    def detect(self, outputs: Outputs, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        return self.teacher.detect(outputs, image_sizes)


def _straight(strategy: str, pairing: Pairing) -> Maps | None:
    """The student's maps as they are, if the teacher could take all of them."""
    channels = channels_at(strategy[0], pairing.student), channels_at(strategy[-1], pairing.teacher)
    served = strides_served(strategy, pairing.student, pairing.teacher)
    if not served or any(channels[0].get(stride) != channels[1][stride] for stride in served):
        return None

    def maps(student: Outputs, teacher: Outputs) -> dict[int, Tensor]:
        found = by_stride(strategy[0], pairing.student, student)
        return {stride: found[stride] for stride in served}

    return maps


def _transformed(strategy: str, method: Dist2 | None) -> Maps | None:
    """The student's maps through the transform that was trained for them."""
    if method is None or strategy not in method.strategies:
        return None

    def maps(student: Outputs, teacher: Outputs) -> dict[int, Tensor]:
        made = method.transforms[strategy](student)
        return method.aligned(made, by_stride(strategy[-1], method.teacher, teacher))

    return maps


def _last(student: Path) -> Path:
    return student / "last.ckpt" if (student / "last.ckpt").is_file() else student


def _trained_method(student: Checkpoint, pairing: Pairing) -> Dist2 | None:
    """The Dist2 that a student was trained with, its transforms loaded; None where its checkpoint holds none."""
    methods: dict[str, Any] = student.config.get("methods") or {}
    saved = read_checkpoint(student.path)["state_dict"]
    for place, entry in enumerate(methods):
        prefix = f"learner.methods.{place}."
        weights = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
        if any(name.startswith("transforms.") for name in weights) and issubclass(method_class(entry), Dist2):
            break
    else:
        return None
    (method,), _ = build_methods({entry: methods[entry]}, pairing.student, pairing.teacher)
    assert isinstance(method, Dist2)
    wanted = {name: value.shape for name, value in method.state_dict().items()}
    if wanted != {name: value.shape for name, value in weights.items()}:
        raise UserError(
            f"The transforms in {student.path} are not for the teacher {pairing.teacher.name}: they were trained for "
            f"{student.config.get('teacher')}. Test the student with the teacher that it had."
        )
    method.load_state_dict(weights)
    return method.eval()


def _nothing_fits(student: Checkpoint, teacher: Checkpoint, pairing: Pairing) -> str:
    own, theirs = pairing.student, pairing.teacher
    return (
        f"No map of the student {own.name} fits into the teacher {theirs.name}: the student has the channels "
        f"{own.channels} at its neck and {own.stage_channels} at its backbone, the teacher {theirs.channels} and "
        f"{theirs.stage_channels}; and {student.path} holds no transforms that would make them fit. These are trained "
        "by the method dist2, and lie in the last.ckpt of its run; `fi_weight=0` or `di_weight=0` trains them by one "
        "of its terms alone."
    )


def _notes(
    student: Checkpoint, teacher: Checkpoint, pairing: Pairing, strategies: Sequence[str], method: Dist2 | None
) -> Iterator[str]:
    named = student.config.get("teacher")
    if named and Path(named).resolve() not in (teacher.path.resolve(), teacher.path.resolve().parent):
        yield f"The student was trained with the teacher {named}; this is {teacher.path}."
    if pairing.unknown:
        yield f"The teacher does not know {listed(pairing.unknown)}: their objects count as missed."
    for name in strategies:
        whole = strides_at(name[-1], teacher.detector.spec)
        alone = sorted(set(whole) - set(strides_served(name, pairing.student, pairing.teacher)))
        if alone:
            strides = ", ".join(map(str, alone))
            yield f"{name}: at strides {strides} the teacher has its own maps, with which it detects, too."
    if method and method.align:
        yield (
            "The run was trained with align=true: the transformed maps get mean and deviation of each channel from the "
            "teacher's own maps of the same batch, so part of what is measured is the teacher's, and depends on the "
            "batch size."
        )
