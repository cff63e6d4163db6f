"""Detections side by side, on the validation images on which plain and distilled student differ most."""

from collections.abc import Mapping, Sequence

from understudy.analysis.errors import COLOURS, SCORE, WORDS, Errors
from understudy.analysis.tide import BACKGROUND, FOREGROUND, Judged
from understudy.data import DetectionData
from understudy.data.scenes import read_unlabelled
from understudy.report.sections import Section
from understudy.report.views import RunView
from understudy.text import listed


def detections_section(errors: Errors, runs: Sequence[RunView], data: DetectionData, count: int = 6) -> Section:
    """Return the detections of all runs on some of the images that they walked, coloured by type of error.

    Args:
        errors: of the same runs, after the walk.
        runs: at most one of each role.
        data: the validation images.
        count: number of images.
    """
    judged = errors.judged(SCORE)
    scores = {name: {i: tally(verdict) for i, (_, verdict) in by_image.items()} for name, by_image in judged.items()}
    chosen = choose_images(scores, {run.role: run.name for run in runs}, count)
    unlabelled = read_unlabelled(data.source)
    dashed = any(i in unlabelled for i in chosen)
    return Section(
        "Detections side by side",
        sentences=(_how_chosen(runs, scores, len(chosen)),),
        legend={WORDS[kind] + (" (dashed)" if kind == "missed" else ""): colour for kind, colour in COLOURS.items()},
        pictures=[errors.pictures(i, judged, unlabelled.get(i, ())) for i in chosen],
        notes=(
            f"Detections with a score of at least {SCORE:g}; the colour is the type of error (TIDE, ECCV 2020). "
            f"Correct: right class and an IoU (intersection over union) of at least {FOREGROUND:g}. Background: an IoU "
            f"of at most {BACKGROUND:g} with every object."
            + (" Dashed in the ground truth: objects outside the label set, unlabelled." if dashed else ""),
        ),
    )


def tally(verdict: Judged) -> int:
    """Return the number of objects found minus the number of false detections on an image."""
    false = sum(kind not in ("correct", "ignored") for kind in verdict.kinds)
    return verdict.kinds.count("correct") - false


def choose_images(scores: Mapping[str, Mapping[int, int]], by_role: Mapping[str, str], count: int) -> list[int]:
    """Choose the images on which two students differ most: half in favour of each, as far as there are such.

    >>> choose_images({"p": {1: 0, 2: 5, 3: 2}, "d": {1: 4, 2: 0, 3: 2}}, {"plain": "p", "distilled": "d"}, count=2)
    [1, 2]

    Args:
        scores: by name of the run and id of the image, found objects minus false detections.
        by_role: the name of the run of each role. Without a plain or a distilled run, those images come first on which
            all runs together are worst.
        count: number of images.
    """
    images = next(iter(scores.values()))
    if not {"plain", "distilled"} <= by_role.keys():
        return sorted(images, key=lambda i: sum(each[i] for each in scores.values()))[:count]
    lead = {i: scores[by_role["distilled"]][i] - scores[by_role["plain"]][i] for i in images}
    order = sorted(images, key=lambda i: -abs(lead[i]))
    better = [i for i in order if lead[i] > 0]
    worse = [i for i in order if lead[i] < 0]
    equal = [i for i in order if lead[i] == 0]
    worse = worse[: max(count // 2, count - len(better))]
    better = better[: count - len(worse)]
    return [*better, *worse, *equal][:count]


def _how_chosen(runs: Sequence[RunView], scores: Mapping[str, Mapping[int, int]], count: int) -> str:
    by_role = {run.role: run.name for run in runs}
    walked = next(iter(scores.values()))
    shown = f"{count} of {len(walked)} validation images, which are evenly spread over the split."
    if not {"plain", "distilled"} <= by_role.keys():
        names = listed([run.name for run in runs])
        return f"{shown} Shown are those with the fewest objects found minus false detections, over {names}."
    distilled, plain = by_role["distilled"], by_role["plain"]
    leads = [scores[distilled][i] - scores[plain][i] for i in walked]
    better, worse = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    return (
        f"{shown} Shown are those on which {distilled} and {plain} differ most in the number of objects found minus "
        f"false detections: first those in favour of {distilled}, then those in favour of {plain}, half and half as "
        f"far as there are such. Of all {len(walked)}, {better} are in favour of {distilled}, {worse} of {plain}, and "
        f"{len(walked) - better - worse} of neither."
    )
