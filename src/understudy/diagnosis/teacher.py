"""Does the teacher know this data: its AP as it is used, and in the ways in which it is most often used wrongly."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from understudy.checkpoints import Checkpoint
from understudy.detectors.larger_images import nearest_scale
from understudy.diagnosis.findings import Finding
from understudy.diagnosis.trial import Change, Trial
from understudy.evaluation.proposals import COUNTS
from understudy.text import listed, percent
from understudy.training.teacher_check import AT_LEAST, CLEARLY, NEAR_ZERO

FOR_VARIANTS = 32
"""Images on which other pixels are tried: enough for differences of tens of AP, which a wrong normalisation makes."""

HARDLY = 0.02
"""Lead over the student, as AP 0..1, below which a teacher has hardly anything to teach. Seeds alone move a student's
AP by 0.01 to 0.02 (docs/results.md)."""

SAME_IMAGES = 0.9
"""An AP is clearly below another on the same images if it is below this share of it: only a part of the error of a
sample is in their difference."""


def clearly_below(one: float, other: float, share: float = CLEARLY) -> bool:
    """Return whether an AP is below another by more than the error of a sample."""
    return other - one > AT_LEAST and one < share * other


def weight_findings(teacher: Checkpoint) -> Iterator[Finding]:
    """Find layers whose weights are all zero. Weights that are not finite are refused when the file is read."""
    layers = {name: value for name, value in teacher.detector.network.named_parameters() if value.dim() > 1}
    zero = [name for name, value in layers.items() if not value.any()]
    if zero:
        yield Finding(
            check="teacher's weights",
            severity="fatal" if 2 * len(zero) > len(layers) else "warning",
            what=f"all weights of {len(zero)} of its {len(layers)} layers are zero: {listed(zero, 3)}",
            why="Such a layer passes on nothing of the image.",
            remedy="another checkpoint, or import the file again: understudy import FILE",
        )


def accuracy_findings(trial: Trial) -> Iterator[Finding]:
    """Judge the teacher's AP on the sample, and look for the cause of a low one: classes, pixels, size."""
    if not trial.names:
        yield from class_findings(trial, math.nan)
        return
    ap = trial.ap()
    images = f"{len(trial.sample)} validation images at {trial.size[0]} pixels"
    if math.isnan(ap):
        yield Finding(
            check="teacher's AP",
            severity="warning",
            what=f"unknown: {images} contain no objects of its classes",
            why="Without it, nobody can know whether the teacher has anything to teach.",
            remedy="more images (--images N), or another validation split (data.val=NAME)",
        )
        return
    others = [*class_findings(trial, ap), *pixel_findings(trial), *size_findings(trial, ap)]
    causes = [finding for finding in others if finding.severity in ("fatal", "warning")]
    recorded = trial.teacher.meta.get("AP")
    its_own = "" if recorded is None else f"; its checkpoint records AP {percent(recorded)}"
    facts = {"AP": ap, "images": len(trial.sample), "recorded_AP": recorded}
    found = f"AP {percent(ap)} on {images}{its_own}"
    looks = f"understudy predict {trial.teacher.path} DATA -o FOLDER"
    if ap <= NEAR_ZERO:
        yield Finding(
            check="teacher's AP",
            severity="fatal",
            what=f"it detects almost nothing right: {found}",
            why="A student learns the errors of its teacher, too.",
            remedy="mend the cause that is named below"
            if causes
            else f"trained weights (these may be random), or look at its detections: {looks}",
            facts=facts,
        )
    elif recorded is not None and clearly_below(ap, recorded):
        yield Finding(
            check="teacher's AP",
            severity="warning",
            what=f"it is clearly worse here than in its own training: {found}",
            why="The images, or the way in which they are read, differ from those that it was trained on.",
            remedy="mend the cause that is named below" if causes else f"look at its detections: {looks}",
            facts=facts,
        )
    else:
        yield Finding(check="teacher's AP", severity="ok", what=found, facts=facts)
    yield from others


def lead_findings(trial: Trial, student: Trial, recorded: str) -> Iterator[Finding]:
    """Compare the teacher with a plain student on the same images and classes.

    Args:
        trial: the teacher.
        student: the plain student.
        recorded: what the student is, in words.
    """
    common = set(trial.names) & set(student.names)
    teacher_ap, student_ap = (_ap_of_names(each, common) for each in (trial, student))
    if math.isnan(teacher_ap) or math.isnan(student_ap):
        what = "unknown: teacher and plain student have no class in common whose objects are on these images"
        yield Finding(check="teacher's lead", severity="note", what=what)
        return
    lead = teacher_ap - student_ap
    what = f"teacher AP {percent(teacher_ap)}, {recorded} {percent(student_ap)}, on the same images"
    facts = {"teacher_AP": teacher_ap, "student_AP": student_ap, "lead": lead}
    if lead >= HARDLY:
        yield Finding(check="teacher's lead", severity="ok", what=what, facts=facts)
        return
    worse = lead <= -HARDLY
    yield Finding(
        check="teacher's lead",
        severity="fatal" if worse else "warning",
        what=f"the teacher is {'worse' if worse else 'hardly better'} than the plain student: {what}",
        why="A student rarely gains more than the gap to its teacher, and seeds alone move it by 1 to 2 AP.",
        remedy="a better teacher: a larger backbone, longer training, more pixels, or an imported one",
        facts=facts,
    )


def proposal_findings(trial: Trial, student: Trial) -> Iterator[Finding]:
    """Compare the proposals of two-stage detectors, which terms on predictions imitate."""
    theirs, own = trial.proposals(), student.proposals()
    if theirs is None or own is None or theirs.best is None or own.best is None:
        return
    behind = own.leads(theirs)
    yield Finding(
        check="proposals",
        severity="note" if behind else "ok",
        what=f"average recall of the best {COUNTS[-1]}: teacher {percent(theirs.best)}, plain student "
        f"{percent(own.best)}, on the same images",
        why="Terms on predictions imitate the teacher's, which find fewer objects, and may do harm." if behind else "",
        remedy="methods on features or the second stage (as by default), or a teacher whose proposals are better "
        "(understudy analyse proposals)"
        if behind
        else "",
        facts={"teacher_AR1000": theirs.best, "student_AR1000": own.best},
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def class_findings(trial: Trial, ap: float) -> Iterator[Finding]:
    """Find classes without a partner, and labels of the teacher that stand for other classes than their names say."""
    named, seen, classes = trial.as_named(), _classes_by_sight(trial), trial.sample.classes
    pairs = [(label, place) for label, place in enumerate(seen) if place is not None and place != named[label]]
    wrong = [(label, place) for label, place in pairs if named[label] is not None]
    unknown = [place for place in range(len(classes)) if place not in named]
    if unknown:
        found = [(label, place) for label, place in pairs if place in unknown and named[label] is None]
        nothing = len(unknown) == len(classes)
        aliases = ", ".join(f"{classes[place]}: {trial.teacher.classes[label]}" for label, place in found)
        yield Finding(
            check="class names",
            severity="fatal" if nothing else "warning" if found else "note",
            what=f"the teacher has {'no class' if nothing else 'not all classes'} of the data set by name: it has "
            f"{listed(trial.teacher.classes, 6)}; it lacks {listed([classes[place] for place in unknown], 6)}"
            + (f". By its detections, {_in_words(trial, found)}" if found else ""),
            why="Objects of a class that the teacher lacks take no part in the distillation.",
            remedy=f"data.aliases='{{{aliases}}}'"
            if found
            else "a teacher of these classes, or other names in the data set"
            if nothing
            else "",
            facts={"unknown": [classes[place] for place in unknown]},
        )
    if not wrong:
        if not unknown:
            yield Finding(check="class names", severity="ok", what=f"all {len(classes)} classes are matched by name")
        return
    moved = dict(pairs)
    mended = trial.ap(places=[moved.get(label, place) for label, place in enumerate(named)])
    if not clearly_below(ap, mended, SAME_IMAGES):
        return
    shifts = {(place - own) % len(classes) for label, place in wrong if (own := named[label]) is not None}
    off_by_one = len(classes) > 2 and shifts in ({1}, {len(classes) - 1})
    yield Finding(
        check="class order",
        severity="fatal" if ap < mended / 2 else "warning",
        what=f"the {'labels are off by one' if off_by_one else 'classes are permuted'}: AP {percent(ap)} with the "
        f"classes as named, {percent(mended)} with those that its detections fall on ({_in_words(trial, wrong)})",
        why="Classes are matched by name, so the student would learn the scores of wrong classes.",
        remedy="correct the order of the names in the data set, or of an imported teacher by `understudy import FILE "
        "--classes NAMES`",
        facts={"AP": ap, "AP_by_sight": mended, "off_by_one": off_by_one},
    )


def _in_words(trial: Trial, pairs: Iterable[tuple[int, int]]) -> str:
    names = [f"its {trial.teacher.classes[label]!r} is {trial.sample.classes[place]!r}" for label, place in pairs]
    return listed(names, 6)


def _classes_by_sight(trial: Trial) -> list[int | None]:
    """Return, for each label of the teacher, the class of the objects that its detections fall on; None: unknown.

    An object counts for the label of its best detection of IoU 0.5. Labels and classes are paired one to one, from the
    largest share of the objects of a class.
    """
    counts = np.zeros((len(trial.teacher.classes), len(trial.sample.classes)))
    for record in trial.sample.records:
        rows = np.flatnonzero(trial.found.image_ids == record.image_id)
        if not len(rows) or not len(record.labels):
            continue
        here = trial.found.at(rows)
        corners = np.concatenate([here.boxes[:, :2], here.boxes[:, :2] + here.boxes[:, 2:]], 1)
        overlaps = box_iou(record.boxes, torch.from_numpy(corners)).numpy()
        scores = np.where(overlaps >= 0.5, here.scores, 0.0)
        for label, row in zip(record.labels.tolist(), scores, strict=True):
            if row.max() > 0:
                counts[here.category_ids[row.argmax()], label] += 1
    shares = counts / np.maximum(counts.sum(0), 1)
    places: list[int | None] = [None] * len(counts)
    while shares.size and shares.max() > 0.5:
        label, place = np.unravel_index(shares.argmax(), shares.shape)
        places[label] = int(place)
        shares[label], shares[:, place] = 0, 0
    taken = {place for place in places if place is not None}
    named = trial.as_named()
    return [
        place if place is not None else (own if own is not None and own not in taken else None)
        for place, own in zip(places, named, strict=True)
    ]


# --- pixels and size --------------------------------------------------------------------------------------------------

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE = _IMAGENET[0], (1 / 255,) * 3
_NORMALISATIONS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "ImageNet's mean and standard deviation": _IMAGENET,
    "mean and standard deviation 0.5": ((0.5,) * 3, (0.5,) * 3),
    "no normalisation (0 to 1)": ((0.0,) * 3, (1.0,) * 3),
    "Caffe's normalisation (mean alone, 0 to 255)": _CAFFE,
}


def pixel_findings(trial: Trial) -> Iterator[Finding]:
    """Find another order of the colours, or another normalisation, with which the teacher is clearly better."""
    few = replace(trial.sample, records=trial.sample.records[:FOR_VARIANTS])
    ap = trial.ap(sample=few)
    tried = {what: trial.ap(trial.detections(few, change=change), sample=few) for what, change, _ in _variants(trial)}
    if not tried:
        return
    best = max(tried, key=lambda what: tried[what])
    if clearly_below(ap, tried[best], SAME_IMAGES):
        yield Finding(
            check="pixels",
            severity="fatal" if ap < tried[best] / 2 else "warning",
            what=f"as it is used AP {percent(ap)}, with {best} AP {percent(tried[best])} (on {len(few)} images)",
            why="The teacher was trained on other pixels than it gets here; teacher and student read the same files.",
            remedy=next(remedy for what, _, remedy in _variants(trial) if what == best),
            facts={"AP": ap, "AP_of_variants": tried},
        )
    else:
        what = f"no other order of colours or normalisation of {len(tried)} is clearly better"
        yield Finding(check="pixels", severity="ok", what=what, facts={"AP": ap, "AP_of_variants": tried})


def _variants(trial: Trial) -> Iterator[tuple[str, Change, str]]:
    """Name other pixels, compute them, and say how to make a teacher of them."""
    swapped = (
        "the colours in the order blue, green, red: write the images in the order that the teacher was trained on, or "
        "train it on these"
    )
    yield "red and blue swapped", lambda images: images.flip(1), swapped
    build: Mapping[str, Any] = trial.teacher.meta["build"]
    own = [
        torch.tensor(build.get(name, usual)) for name, usual in zip(("image_mean", "image_std"), _IMAGENET, strict=True)
    ]
    for what, statistics in _NORMALISATIONS.items():
        wanted = [torch.tensor(values) for values in statistics]
        if all(torch.allclose(one, other, atol=0.02) for one, other in zip(own, wanted, strict=True)):
            continue
        mean, std = (",".join(f"{255 * value:.4g}" for value in values) for values in statistics)
        remedy = f"import the teacher with this: understudy import FILE --mean {mean} --std {std}"
        yield what, _renormalised(own, wanted), remedy
        if statistics[1] == _CAFFE[1]:
            swap = _renormalised(own, wanted, swapped=True)
            yield f"{what}, red and blue swapped", swap, f"{remedy}, and {swapped}"


def _renormalised(own: Sequence[Tensor], wanted: Sequence[Tensor], *, swapped: bool = False) -> Change:
    """Return images that a detector's own mean and deviation turn into those of other statistics."""

    def change(images: Tensor) -> Tensor:
        mean, std, new_mean, new_std = (value.to(images)[:, None, None] for value in (*own, *wanted))
        return ((images.flip(1) if swapped else images) - new_mean) / new_std * std + mean

    return change


def size_findings(trial: Trial, ap: float) -> Iterator[Finding]:
    """Compare the run's image size with the one that the teacher was trained at."""
    data = trial.teacher.config.get("data")
    own = (data["shorter_side"][-1], data["longer_side"]) if data else trial.size
    if own[0] == trial.size[0]:
        yield Finding(check="image size", severity="ok", what=f"{own[0]} pixels, as in the teacher's training")
        return
    there = trial.ap(trial.detections(size=own))
    what = f"AP {percent(ap)} at {trial.size[0]} pixels, {percent(there)} at {own[0]}, the size of its own training"
    facts = {"AP": ap, "size": trial.size[0], "AP_at_own_size": there, "own_size": own[0]}
    if clearly_below(ap, there, SAME_IMAGES):
        yield Finding(
            check="image size",
            severity="fatal" if ap < there / 2 else "warning",
            what=what,
            why="The teacher is good at its own size only.",
            remedy=_at_own_size(own, trial),
            facts=facts,
        )
    else:
        yield Finding(check="image size", severity="ok", what=what, facts=facts)


def _at_own_size(own: tuple[int, int], trial: Trial) -> str:
    """Return what lets a teacher see images of its own size."""
    side = trial.size[0] // trial.scale
    scale = nearest_scale(own[0], side)
    larger = f"teacher_scale={scale} (the teacher sees larger images), " if scale != trial.scale else ""
    return f"{larger}data.shorter_side={own[0]} data.longer_side={own[1]}, or a teacher trained at {side}"


def _ap_of_names(trial: Trial, names: Collection[str]) -> float:
    places = [
        place if place is not None and trial.sample.classes[place] in names else None for place in trial.as_named()
    ]
    return trial.ap(places=places)
