"""The analyses on the page: errors, ranks and entropy on a sample of validation images, and the teacher's richness."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.analysis.entropy import Entropy
from understudy.analysis.errors import Errors
from understudy.analysis.models import Device, Model, sample, walk
from understudy.analysis.ranks import Ranks
from understudy.analysis.richness import Richness, RichnessView, telling_images
from understudy.checkpoints import load_checkpoint
from understudy.data import DetectionData
from understudy.errors import UserError
from understudy.figures import Captioned
from understudy.report.views import RunView

IMAGES, SECONDS = 48, 30.0
"""Images of the sample at most, and the time after which no further image is taken."""

RICHNESS_IMAGES = 16


@dataclass(frozen=True)
class Analyses:
    """The charts of the page with the titles of their sections, the teacher's richness, and remarks."""

    charts: tuple[tuple[str, Captioned], ...]
    richness: tuple[RichnessView, ...]
    remarks: tuple[str, ...]


def view_analyses(runs: Sequence[RunView], data: DetectionData, *, device: Device = "cpu") -> Analyses:
    """Analyse a teacher and its students on a sample of images, in one walk; bounded in images and in time.

    All detectors get images of the first student's size. An analysis that these detectors do not permit is left out,
    with a remark.

    Args:
        runs: at most one teacher, and students.
        data: the validation images.
        device: on which the detectors run.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    models = {run.name: Model(run.name, load_checkpoint(run.folder)) for run in runs}
    teacher = next((models[run.name] for run in runs if run.role == "teacher"), None)
    students = [models[run.name] for run in runs if run.role != "teacher"]
    few = sample(data, IMAGES)
    remarks: list[str] = []

    def made(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except UserError as error:
            remarks.append(str(error))
            return None

    errors = made(lambda: Errors(list(models.values()), few))
    ranks = made(lambda: Ranks(teacher, students, few)) if teacher and students else None
    entropy = made(lambda: Entropy(teacher, few)) if teacher else None
    found = [each for each in (errors, ranks, entropy) if each]
    if found:
        like = (students or list(models.values()))[0]
        count = walk(list(models.values()), few, found, like=like, device=device, seconds=SECONDS)
        remarks.insert(
            0, f"The analyses are on {count} validation images, evenly spread, at the image size of {like.name}."
        )
    charts: list[tuple[str, Captioned]] = []
    if errors:
        drawn = errors.result(shown=0).figures()
        charts += [("Types of errors", drawn["errors"]), ("Types of errors", drawn["errors_cost"])]
    if ranks:
        charts += [("Ranks of the anchors of each object", ranks.result().figures()["ranks"])]
    if entropy:
        charts += [("Entropy of the teacher's features", entropy.result().figures()["entropy"])]
    views: tuple[RichnessView, ...] = ()
    if teacher and (richness := made(lambda: Richness(teacher, telling_images(data, RICHNESS_IMAGES)))):
        walk([teacher], richness.data, [richness], device=device)
        views = tuple(richness.views)
    return Analyses(tuple(charts), views, tuple(remarks))
