"""The analyses on the page, on a sample of validation images: errors, ranks, imitation, entropy, richness and swap."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from understudy.analysis.entropy import Entropy
from understudy.analysis.errors import Errors
from understudy.analysis.imitation import Imitation, halves
from understudy.analysis.models import Device, Model, sample, walk
from understudy.analysis.ranks import Ranks
from understudy.analysis.richness import Richness, richness_by_place, richness_cells, telling_images
from understudy.analysis.swap import Swaps, last_weights
from understudy.checkpoints import load_checkpoint
from understudy.data import DetectionData, Records
from understudy.errors import UserError
from understudy.evaluation import score
from understudy.figures import HEAT_FLOOR
from understudy.report.examples import detections_section
from understudy.report.sections import DataRow, DataTable, Entry, Section
from understudy.report.views import RunView

IMAGES, SECONDS = 48, 30.0
"""Images of the sample at most, and the time after which no further image is taken."""

RICHNESS_IMAGES = 16
SHOWN_RICHNESS = 4  # images with masks; the means are over all images


def view_analyses(
    runs: Sequence[RunView], data: DetectionData, *, shown: int = 6, device: Device = "cpu"
) -> list[Section]:
    """Analyse a teacher and its students on a sample of images; bounded in images and in time.

    Ranks and imitation compare cells, so all detectors get images of the first student's size for them, and for entropy
    in the same walk. Detections and errors are those of every detector at its own size; if the sizes are equal,
    one walk serves all. An analysis that these detectors do not permit is left out, with a remark. The swap test is
    made of the students whose maps the teacher can take: through the transforms of Dist2, or with the same channels.

    Args:
        runs: at most one teacher, and students.
        data: the validation images.
        shown: number of images whose detections are drawn.
        device: on which the detectors run.

    Returns:
        The sections of the page, those of detections and errors first.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    models = {run.name: Model(run.name, load_checkpoint(run.folder)) for run in runs}
    teacher = next((models[run.name] for run in runs if run.role == "teacher"), None)
    students = [models[run.name] for run in runs if run.role != "teacher"]
    taught_by = teacher and teacher.beside(*students)  # sees images as in their training
    few = halves(sample(data, IMAGES))  # in the order that the imitation needs
    remarks: list[str] = []

    def made(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except UserError as error:
            remarks.append(str(error))
            return None

    errors = made(lambda: Errors(list(models.values()), few))
    ranks = made(lambda: Ranks(taught_by, students, few)) if taught_by and students else None
    fitted = max(1, len(few) // 2)
    imitation = made(lambda: Imitation(taught_by, students, few, fitted)) if taught_by and students else None
    entropy = made(lambda: Entropy(taught_by, few)) if taught_by else None
    others = [each for each in (ranks, imitation, entropy) if each]
    _walk_all(list(models.values()), few, errors, others, taught_by, students, device)
    sections = []
    if errors and errors.walked:
        sections = [detections_section(errors, runs, data, shown), _errors_section(errors)]
        sections += [_classes_section(errors, run.name) for run in runs[-1:] if run.role != "teacher"]
    size = () if _one_size(models.values()) or not students else (f"At the image size of {students[0].name}.",)
    if taught_by and taught_by.scale > 1:
        size = (f"At the image size of {students[0].name}, the teacher at {taught_by.scale} times it, as in training.",)
    if ranks:
        charts = list(ranks.result().figures().values())
        sections.append(Section("Ranks of the anchors of each object", charts=charts, notes=size))
    if imitation and (measured := made(imitation.result)):
        charts = list(measured.figures().values())
        sections.append(Section("Feature and prediction differences to the teacher", charts=charts, notes=size))
    if entropy:
        sections.append(Section("Entropy of the teacher's features", charts=[entropy.result().figures()["entropy"]]))
    if teacher and (richness := made(lambda: Richness(teacher, telling_images(data, RICHNESS_IMAGES)))):
        walk([teacher], richness.data, [richness], device=device)
        sections.append(richness_section(richness.views))
    if teacher:
        sections += _swap_sections(teacher, [run for run in runs if run.role != "teacher"], few, made, device)
    if remarks:
        sections.append(Section("Analyses that are missing", notes=tuple(dict.fromkeys(remarks)), listed=True))
    return sections


def _walk_all(
    models: Sequence[Model],
    data: DetectionData,
    errors: Errors | None,
    others: Sequence[Any],
    teacher: Model | None,
    students: Sequence[Model],
    device: Device,
) -> None:
    """Run the models on the images: once if they share an image size."""
    like = (students or models)[0]
    if _one_size(models) and (teacher is None or teacher.scale == 1) and (errors or others):
        walk(models, data, [*([errors] if errors else []), *others], like=like, device=device, seconds=SECONDS)
        return
    if errors:
        for size in dict.fromkeys(model.size for model in models):
            group = [model for model in models if model.size == size]
            walk(group, data, [errors], device=device, seconds=SECONDS)
    if others:
        walk([*([teacher] if teacher else []), *students], data, others, like=like, device=device, seconds=SECONDS)


def _swap_sections(
    teacher: Model, runs: Sequence[RunView], data: DetectionData, made: Callable[..., Any], device: Device
) -> list[Section]:
    """Return the swap tests of the last weights of some students, in one section; none if no map fits the teacher."""
    charts = []
    for run in runs:
        student = Model(run.name, load_checkpoint(last_weights(run.folder)))
        swaps = made(lambda student=student: Swaps(teacher, student, data))
        if swaps and swaps.ways:
            walk([swaps.teacher, student], data, [swaps], like=student, device=device, seconds=SECONDS)
            drawn = swaps.result().figures()["swap"]
            which = f"{run.name}, its last weights, on {len(swaps.walked)} validation images."
            charts.append(replace(drawn, caption=f"{which} {drawn.caption}"))
    return [Section("The teacher on the student's feature maps", charts=charts)] if charts else []


def _one_size(models: Iterable[Model]) -> bool:
    return len({model.size for model in models}) == 1


def _errors_section(errors: Errors) -> Section:
    drawn = errors.result(shown=0).figures()
    return Section("Types of errors", charts=[drawn["errors"], drawn["errors_cost"]])


def _classes_section(errors: Errors, student: str) -> Section:
    """Return the confusion matrix and precision over recall of a student on the images that were walked."""
    walked = errors.walked
    rows = [row for i in walked for row in errors.rows[student][i]]
    data = replace(errors.data, records=Records.of(list(walked.values())))
    drawn = score(data, rows, detailed=True).figures()
    sentence = f"Detections of {student} on {len(walked)} validation images, evenly spread over the split."
    return Section("Classes confused, and precision over recall", sentences=(sentence,), charts=list(drawn.values()))


def richness_section(views: Sequence[Any]) -> Section:
    """Return the section of a teacher's feature richness: masks and levels of some images, and means over all."""
    unlabelled = any(len(view.unlabelled) for view in views)
    places = richness_by_place(views)
    rows = tuple(DataRow(place, (Entry.of(value, ".2f"),)) for place, value in places.items())
    count = len(views)
    means = DataTable(
        f"Mean richness over {count} image{'' if count == 1 else 's'}, at each pixel the highest over the levels",
        ("place", "richness"),
        rows,
    )
    return Section(
        "Feature richness per level",
        sentences=(
            "Feature richness is the teacher's highest class score in each cell of each feature level. FRS imitates "
            "the teacher in proportion to it, inside and outside the labelled boxes. Bright cells are rich. A mask of "
            "the labelled boxes (second from the left) leaves out everything bright outside the white frames"
            + (", including unlabelled look-alikes (dashed)." if unlabelled else "."),
        ),
        tables=(means,) if rows else (),
        pictures=[richness_cells(view) for view in views[:SHOWN_RICHNESS]],
        notes=(
            'Levels from fine to coarse; at "stride 8" a cell is 8 pixels wide. Each map is scaled to its peak, or to '
            f'{HEAT_FLOOR} if the peak is lower. "Outside" is the share of a level\'s richness outside all labelled '
            "boxes; low scores in many cells add up.",
        ),
    )
