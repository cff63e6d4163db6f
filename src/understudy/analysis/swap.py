"""The swap test: AP of a teacher on a student's feature maps instead of its own.

Dist2's poster motivates it: the losses between the student's maps and the teacher's can be small although the teacher's
head detects nothing on the student's maps.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from understudy import figures
from understudy.analysis.models import Model, walk
from understudy.checkpoints import Checkpoint, load_checkpoint, read_checkpoint
from understudy.checkpoints.native import check_finite
from understudy.data import Batch, DetectionData, Limits, Records
from understudy.detectors.base import evaluating
from understudy.errors import UserError
from understudy.evaluation import Backend, aliases_of, match_classes, open_split, score
from understudy.evaluation.arrays import Detections
from understudy.evaluation.detections import detections_of_batch
from understudy.evaluation.runtimes import Found
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
    models = Model("teacher", load_checkpoint(teacher)), Model("student", load_checkpoint(last_weights(student)))
    opened = open_split(models[1].checkpoint, data, split, limits)
    swaps = Swaps(*models, opened)
    if not swaps.ways:
        raise UserError(swaps.nothing_fits())
    both, like = [swaps.teacher, swaps.student], swaps.student
    walk(both, opened, [swaps], like=like, device=device, batch_size=batch_size, workers=workers)
    return swaps.result(backend)


class Swaps:
    """Collects the detections of a student, of its teacher, and of the teacher on the student's maps, batch by batch.

    Both get images of the student's size; a teacher of larger images gets those, as in the student's training.

    Args:
        teacher: the teacher.
        student: the student; from a run folder the last checkpoint (:func:`last_weights`).
        data: the images, with their ground truth.

    Attributes:
        ways: of each possible strategy, the maps as they are and after its transform; either can be None.

    Raises:
        UserError: the two detectors have no class or level in common, or the transforms were trained for another
            teacher.
    """

    def __init__(self, teacher: Model, student: Model, data: DetectionData):
        self.teacher, self.student, self.data = teacher.beside(student), student, data
        own, theirs = student.checkpoint, teacher.checkpoint
        self.pairing = pair(own.detector.spec, self.teacher.detector.spec, own.classes, theirs.classes, aliases_of(own))
        self.method = _trained_method(own, self.pairing)
        both = {name: (_straight(name, self.pairing), _transformed(name, self.method)) for name in ALL2ALL}
        self.ways = {name: maps for name, maps in both.items() if any(maps)}
        self.own_ids, self.teacher_ids = (
            match_classes(classes, data, aliases_of(own)) for classes in (own.classes, theirs.classes)
        )
        self.walked: set[int] = set()
        self.found: dict[tuple[str, str], list[Detections]] = defaultdict(list)

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        own, theirs = outputs[self.student.name], outputs[self.teacher.name]
        student, teacher = self.student.detector, self.teacher.detector
        self.walked |= set(batch.image_ids)
        self._keep(("student", ""), student.detect(own, batch.image_sizes), batch, self.own_ids)
        self._keep(("teacher", ""), teacher.detect(theirs, batch.image_sizes), batch, self.teacher_ids)
        if self.method:
            self.method.to(batch.images.device)
        records = self.pairing.student_record(own), self.pairing.teacher_record(theirs)
        with evaluating(teacher):
            for name, both in self.ways.items():
                for way, maps in zip((STRAIGHT, TRANSFORMED), both, strict=True):
                    if maps:
                        mixed = through_teacher(name[-1], maps(*records), teacher, theirs)
                        self._keep((name, way), teacher.detect(mixed, batch.image_sizes), batch, self.teacher_ids)

    def result(self, backend: Backend = "auto") -> SwapTest:
        """Score the detections of the batches so far.

        Args:
            backend: see :func:`understudy.evaluation.score`.
        """
        seen = [record for record in self.data.records if record.image_id in self.walked]
        data = replace(self.data, records=Records.of(seen))

        def ap(name: str, way: str = "") -> float | None:
            found = self.found.get((name, way))
            return None if found is None else score(data, Detections.joined(found), backend).coco["AP"]

        teacher, student = ap("teacher"), ap("student")
        assert teacher is not None, "no batch was added"
        assert student is not None, "no batch was added"
        swaps = tuple(Swap(name, ap(name, STRAIGHT), ap(name, TRANSFORMED)) for name in self.ways)
        return SwapTest(teacher, student, swaps, tuple(self._notes()))

    def nothing_fits(self) -> str:
        """Return why there is no way to swap, and what to do."""
        own, theirs = self.pairing.student, self.pairing.teacher
        return (
            f"No feature map of the student {own.name} fits the teacher {theirs.name}. Channels of the student: "
            f"{own.channels} at the neck, {own.stage_channels} at the backbone; of the teacher: {theirs.channels} and "
            f"{theirs.stage_channels}. {self.student.checkpoint.path} holds no transforms either. The method dist2 "
            "trains them: distil with `--method dist2` and give its run folder (or its last.ckpt) as STUDENT."
        )

    def _keep(self, place: tuple[str, str], detected: Found, batch: Batch, category_ids: Sequence[int | None]) -> None:
        self.found[place].append(detections_of_batch(detected, batch, category_ids))

    def _notes(self) -> Iterator[str]:
        student, teacher = self.student.checkpoint, self.teacher.checkpoint
        named = student.config.get("teacher")
        if named and Path(named).resolve() not in (teacher.path.resolve(), teacher.path.resolve().parent):
            yield f"The student was trained with another teacher: {named}, not {teacher.path}."
        if self.pairing.unknown:
            yield f"The teacher lacks {listed(self.pairing.unknown)}: their objects count as missed."
        for name in self.ways:
            whole = strides_at(name[-1], teacher.detector.spec)
            alone = sorted(set(whole) - set(strides_served(name, self.pairing.student, self.pairing.teacher)))
            if alone:
                strides = ", ".join(map(str, alone))
                yield f"{name}: at strides {strides} the teacher's own maps are used, which contribute detections, too."
        if self.method and self.method.options.align:
            yield (
                "The run was trained with align=true: each channel of a transformed map gets mean and deviation of the "
                "teacher's own map of the same batch. So the AP is partly the teacher's and depends on the batch size."
            )


def last_weights(student: Path | str) -> Path:
    """Return the last checkpoint of a run folder, which alone holds transforms; any other path as it is."""
    last = Path(student) / "last.ckpt"
    return last if last.is_file() else Path(student)


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
