"""The swap test: AP of a teacher on a student's feature maps instead of its own.

Dist2's poster motivates it: the losses between the student's maps and the teacher's can be small although the teacher's
head detects nothing on the student's maps.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from understudy import figures
from understudy.checkpoints import Checkpoint, load_checkpoint, read_checkpoint
from understudy.checkpoints.native import check_finite
from understudy.data import Limits
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.evaluation import (
    Backend,
    aliases_of,
    choose_device,
    detect_all,
    loader_at_evaluation_size,
    match_classes,
    on_device,
    open_split,
    score,
    with_progress,
)
from understudy.figures import Captioned
from understudy.methods import METHODS, Method
from understudy.methods.dist2 import Dist2
from understudy.methods.dist2_layers import ALL2ALL, by_stride, channels_at, strides_at, strides_served, through_teacher
from understudy.methods.loading import build_methods, method_class
from understudy.outputs import Outputs
from understudy.pairing import Pairing, pair
from understudy.text import listed, percent

STRAIGHT, TRANSFORMED = "as they are", "through its transforms"
"""How the student's maps enter the teacher."""

COLOURS = {
    "own maps": figures.ROLE_COLOURS["teacher"],
    STRAIGHT: figures.ROLE_COLOURS["plain"],
    TRANSFORMED: figures.ROLE_COLOURS["distilled"],
}

Maps = Callable[[Outputs, Outputs], dict[int, Tensor]]
"""From the outputs of student and teacher to the maps that enter the teacher, (N, C, H, W) by stride."""


@dataclass(frozen=True, slots=True)
class Swap:
    """AP of the teacher on the student's maps, by one strategy.

    Attributes:
        strategy: where the maps are taken and where they enter, neck or backbone: ``"N2N"``, ``"B2B"``, ``"B2N"``,
            ``"N2B"``.
        straight: COCO's AP, 0..1, on the maps as they are; None if the channels do not fit.
        transformed: COCO's AP, 0..1, on the maps after the transforms that Dist2 trained; None if there are none.
    """

    strategy: str
    straight: float | None
    transformed: float | None


@dataclass(frozen=True, slots=True)
class SwapTest:
    """The result of the swap test; every AP is COCO's, 0..1.

    Attributes:
        teacher: AP of the teacher itself.
        student: AP of the student itself.
        swaps: AP of the teacher on the student's maps, by every possible strategy.
        notes: remarks that are needed to judge the numbers.
    """

    teacher: float
    student: float
    swaps: tuple[Swap, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        """Return a table for the terminal."""
        title = "AP of the teacher on the student's feature maps"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("strategy")
        table.add_column(STRAIGHT, justify="right")
        table.add_column(TRANSFORMED, justify="right")
        for swap in self.swaps:
            cells = ("-" if value is None else percent(value) for value in (swap.straight, swap.transformed))
            table.add_row(swap.strategy, *cells)
        own = f"AP on their own maps: teacher {percent(self.teacher)}, student {percent(self.student)}"
        return Group(table, own, *([""] if self.notes else []), *self.notes)

    def figures(self) -> dict[str, Captioned]:
        """Return the chart: a bar for the student, for the teacher, and for each swap that is possible."""
        own = {"own maps": [self.student, self.teacher, *[None] * len(self.swaps)]}
        swapped = {
            STRAIGHT: [None, None, *(swap.straight for swap in self.swaps)],
            TRANSFORMED: [None, None, *(swap.transformed for swap in self.swaps)],
        }
        series = own | {name: values for name, values in swapped.items() if any(value is not None for value in values)}
        chart = figures.bar_chart(
            ["student", "teacher", *(swap.strategy for swap in self.swaps)],
            {name: [math.nan if value is None else 100 * value for value in values] for name, values in series.items()},
            COLOURS,
            x_label="detector, or strategy of the swap",
            y_label="AP in %",
            form=".1f",
        )
        caption = (
            "AP of the student, of the teacher, and of the teacher on the student's feature maps. N2B, for example: "
            "maps of the student's neck take the place of those of the teacher's backbone. They enter as they are, if "
            "all channels agree, and through the transforms that Dist2 trained."
        )
        return {"swap": Captioned(chart, caption)}


def swap_test(
    teacher: Path | str,
    student: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    limits: Limits | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    workers: int = 0,
    backend: Backend = "auto",
) -> SwapTest:
    """Measure the AP of a teacher on a student's feature maps: as they are, and after the transforms Dist2 trained.

    From a run folder of the student the last checkpoint is taken, not the best: only it holds the transforms.

    Args:
        teacher: a checkpoint or a run folder (its best checkpoint).
        student: a run folder (its last checkpoint) or a checkpoint.
        data: the data set; by default the one of the student's run.
        split: by default the validation split of the student's run.
        limits: of the data set; by default those of the student's run.
        device: by default a GPU if there is one.
        batch_size: images per batch.
        workers: processes that read images.
        backend: see :func:`understudy.evaluation.score`.

    Raises:
        UserError: a checkpoint or the data set cannot be read, the two detectors have no class or level in common, the
            transforms were trained for another teacher, or no strategy is possible.
    """
    device = choose_device(device)
    theirs, own = load_checkpoint(teacher), load_checkpoint(_last(Path(student)))
    pairing = pair(own.detector.spec, theirs.detector.spec, own.classes, theirs.classes, aliases_of(own))
    method = _trained_method(own, pairing)
    ways = {name: ways for name in ALL2ALL if any(ways := (_straight(name, pairing), _transformed(name, method)))}
    if not ways:
        raise UserError(_nothing_fits(own, theirs, pairing))
    opened = open_split(own, data, split, limits)
    loader = loader_at_evaluation_size(opened, own.config, batch_size=batch_size, workers=workers)

    def measured(detector: Any, classes: Sequence[str], what: str) -> float:
        found = detect_all(
            on_device(detector, device),
            with_progress(loader, what),
            device,
            match_classes(classes, opened, aliases_of(own)),
        )
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
    """A combined detector: the student up to its maps, then the teacher from the layer where the maps enter."""

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
    """Return the student's maps as they are; None if the channels of a level do not fit."""
    channels = channels_at(strategy[0], pairing.student), channels_at(strategy[-1], pairing.teacher)
    served = strides_served(strategy, pairing.student, pairing.teacher)
    if not served or any(channels[0].get(stride) != channels[1][stride] for stride in served):
        return None

    def maps(student: Outputs, teacher: Outputs) -> dict[int, Tensor]:
        found = by_stride(strategy[0], pairing.student, student)
        return {stride: found[stride] for stride in served}

    return maps


def _transformed(strategy: str, method: Dist2 | None) -> Maps | None:
    """Return the student's maps after the trained transform of a strategy; None if there is none."""
    if method is None or strategy not in method.strategies:
        return None

    def maps(student: Outputs, teacher: Outputs) -> dict[int, Tensor]:
        made = method.transforms[strategy](student)
        return method.aligned(made, by_stride(strategy[-1], method.teacher, teacher))

    return maps


def _last(student: Path) -> Path:
    return student / "last.ckpt" if (student / "last.ckpt").is_file() else student


def _loaded_class(name: str) -> type[Method]:
    """Return the class of a method without importing a module for it; ``Method`` if that would be needed."""
    return method_class(name) if name in METHODS or name.partition(":")[0] in sys.modules else Method


def _trained_method(student: Checkpoint, pairing: Pairing) -> Dist2 | None:
    """Load the Dist2 method, with transforms, that a student was trained with; None if its checkpoint has none.

    A class of the user's is taken only if its module was imported before: the checkpoint that names it may be foreign.
    """
    methods: dict[str, Any] = student.config.get("methods") or {}
    saved = read_checkpoint(student.path)["state_dict"]
    for place, entry in enumerate(methods):
        prefix = f"learner.methods.{place}."
        weights = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
        if any(name.startswith("transforms.") for name in weights) and issubclass(_loaded_class(entry), Dist2):
            break
    else:
        return None
    (method,), _ = build_methods({entry: methods[entry]}, pairing.student, pairing.teacher)
    assert isinstance(method, Dist2)
    wanted = {name: value.shape for name, value in method.state_dict().items()}
    if wanted != {name: value.shape for name, value in weights.items()}:
        raise UserError(
            f"The transforms in {student.path} do not fit the teacher {pairing.teacher.name}. They were trained for "
            f"{student.config.get('teacher')}: run the swap test with that teacher."
        )
    check_finite(student.path, weights)
    method.load_state_dict(weights)
    return method.eval()


def _nothing_fits(student: Checkpoint, teacher: Checkpoint, pairing: Pairing) -> str:
    own, theirs = pairing.student, pairing.teacher
    return (
        f"No feature map of the student {own.name} fits the teacher {theirs.name}. Channels of the student: "
        f"{own.channels} at the neck, {own.stage_channels} at the backbone; of the teacher: {theirs.channels} and "
        f"{theirs.stage_channels}. {student.path} holds no transforms either. The method dist2 trains them: distil "
        "with `--method dist2` and give its run folder (or its last.ckpt) as STUDENT."
    )


def _notes(
    student: Checkpoint, teacher: Checkpoint, pairing: Pairing, strategies: Sequence[str], method: Dist2 | None
) -> Iterator[str]:
    named = student.config.get("teacher")
    if named and Path(named).resolve() not in (teacher.path.resolve(), teacher.path.resolve().parent):
        yield f"The student was trained with another teacher: {named}, not {teacher.path}."
    if pairing.unknown:
        yield f"The teacher lacks {listed(pairing.unknown)}: their objects count as missed."
    for name in strategies:
        whole = strides_at(name[-1], teacher.detector.spec)
        alone = sorted(set(whole) - set(strides_served(name, pairing.student, pairing.teacher)))
        if alone:
            strides = ", ".join(map(str, alone))
            yield f"{name}: at strides {strides} the teacher's own maps are used, which contribute detections, too."
    if method and method.options.align:
        yield (
            "The run was trained with align=true: each channel of a transformed map gets mean and deviation of the "
            "teacher's own map of the same batch. So the AP is partly the teacher's and depends on the batch size."
        )
