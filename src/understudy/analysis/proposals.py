"""How many objects the proposals of two-stage detectors find: what their terms on predictions can teach a student."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy import figures
from understudy.analysis.models import Device, Model, note_data, open_images, open_models, walk
from understudy.data import Batch, DetectionData
from understudy.errors import UserError
from understudy.evaluation import BATCH_SIZE
from understudy.evaluation.proposals import COUNTS, ProposalRecall, Recall, has_proposals
from understudy.figures import Captioned
from understudy.outputs import Outputs
from understudy.text import percent

COLOURS = (figures.ROLE_COLOURS["teacher"], *figures.STUDENT_COLOURS)


@dataclass(frozen=True, slots=True)
class ProposalsResult:
    """The recall of the proposals of a teacher and its students.

    Attributes:
        images: number of images.
        models: by name: the teacher, then the students in the order given.
        notes: remarks that are needed to judge the numbers.
    """

    images: int
    models: dict[str, Recall]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        models = [
            {"name": name, **asdict(each), "average": {str(count): each.average[count] for count in COUNTS}}
            for name, each in self.models.items()
        ]
        return {"images": self.images, "models": models, "notes": list(self.notes)}

    def __rich__(self) -> Group:
        """Return two tables for the terminal: means over classes, and each class."""
        objects = next(iter(self.models.values())).objects
        title = f"Recall of the proposals in %, {self.images} images, {sum(objects.values())} objects"
        means = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        means.add_column("model")
        for name in (*(f"AR{count}" for count in COUNTS), "IoU 0.50", "IoU 0.75"):
            means.add_column(name, justify="right")
        for name, each in self.models.items():
            means.add_row(Text(name), *map(_percent, (*each.average.values(), each.at_50, each.at_75)))
        classes = Table(title=f"AR{COUNTS[-1]}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        classes.add_column("class")
        for name in ("objects", *self.models):
            classes.add_column(Text(name), justify="right", overflow="fold")
        for name, count in objects.items():
            found = (_percent(each.per_class[name]) for each in self.models.values())
            classes.add_row(Text(name), str(count), *found)
        return Group(means, "", classes, *([""] if self.notes else []), *map(Text, self.notes))

    def figures(self) -> dict[str, Captioned]:
        """Return the chart: average recall with 1000 proposals, all models side by side for each class."""
        chart = figures.bar_chart(
            list(next(iter(self.models.values())).per_class),
            {name: [100 * value for value in each.per_class.values()] for name, each in self.models.items()},
            figures.distinct_colours(list(self.models), COLOURS),
            x_label="class",
            y_label=f"AR{COUNTS[-1]} of the proposals, in %",
            form=".1f",
        )
        caption = (
            f"Average recall (IoU 0.50 to 0.95) of the best {COUNTS[-1]} proposals of each image, over {self.images} "
            "images. Terms on the predictions of a two-stage detector imitate its teacher's proposals."
        )
        return {"proposals": Captioned(chart, caption)}


class Proposals:
    """Collects the recall of the proposals of a teacher and its students, batch by batch.

    Args:
        models: the teacher, then at least one student.
        data: the data set of the images.

    Raises:
        UserError: a model has no proposals; all are listed.
    """

    def __init__(self, models: Sequence[Model], data: DetectionData):
        self.data = data
        self.found = {model.name: ProposalRecall(model.detector) for model in models if has_proposals(model.detector)}
        faults = [f"{each.name}: {each.detector.spec.name}" for each in models if each.name not in self.found]
        if faults:
            summary = "These detectors have no proposals (`understudy analyse errors` compares detectors of all kinds):"
            raise UserError.listing(summary, faults)

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take a batch."""
        for name, found in self.found.items():
            if name in outputs:
                found.add(batch, outputs[name])

    def result(self) -> ProposalsResult:
        """Return the recall over the batches so far."""
        models = {name: found.result(self.data.classes) for name, found in self.found.items()}
        images = next(iter(self.found.values())).images
        return ProposalsResult(images, models, (note_data(self.data), *_remarks(models)))


def analyse_proposals(
    teacher: Path | str,
    students: Sequence[Path | str],
    data: Path | str | None = None,
    *,
    split: str | None = None,
    images: int | None = None,
    device: Device = None,
    batch_size: int = BATCH_SIZE,
) -> ProposalsResult:
    """Measure how many objects the proposals of a teacher and its students find.

    In two-stage detectors, methods that compare predictions imitate the teacher's proposals. They may do harm if these
    find fewer objects than those that the student learns alone.

    Args:
        teacher: a checkpoint or a run folder of a two-stage detector.
        students: likewise, for example of the plain and a distilled student.
        data: the data set; by default that of the first student whose data set exists.
        split: by default the validation split of that run.
        images: at most this many, evenly spread; None: all.
        device: by default a GPU if there is one.
        batch_size: images per batch.

    Raises:
        UserError: a checkpoint or the data set cannot be read, or a detector has no proposals.
    """
    theirs, *own = open_models([teacher, *students])
    opened = open_images([*own, theirs], data, split, images, argument="--data DATA")
    found = Proposals([theirs, *own], opened)
    walk([theirs, *own], opened, [found], device=device, batch_size=batch_size)
    return found.result()


def _remarks(models: Mapping[str, Recall]) -> list[str]:
    """Say which students find more objects by their proposals than their teacher."""
    (teacher, theirs), *students = models.items()
    return [
        f"The proposals of {name} find more objects than those of {teacher} (AR{COUNTS[-1]} {_percent(each.best)} and "
        f"{_percent(theirs.best)}). Terms on predictions imitate the teacher's proposals, and may do harm: use methods "
        "on features or the second stage, as by default, or a teacher whose proposals are better."
        for name, each in students
        if each.leads(theirs)
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
