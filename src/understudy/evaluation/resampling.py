"""AP on resampled images: how much of a difference between two detectors is due to the choice of the images.

I images, K classes, T = 10 IoU thresholds, D detections of a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from understudy.data import DetectionData
from understudy.evaluation.arrays import Detections, Found, Objects
from understudy.evaluation.coco import Backend, match_images

THRESHOLDS = 10
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 200_000
"""Numbers of an array of selections and detections; small enough for the cache of a processor."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassMatches:
    """The matched detections of one class, best score first.

    Attributes:
        images: (D,) int64, number of the image, 0..I-1.
        right: (T, D) bool, matched with an object.
        counted: (T, D) bool, not left out as a detection of an ignored object.
        objects: (I,) int64, objects of the class in each image, without ignored ones.
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def aps(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return COCO's AP of the class on several selections of the images; nan where there are no objects.

        Args:
            weights: (S, I), for each selection how often each image occurs in it.

        Returns:
            (S,) in 0..1.
        """
        found = np.zeros(len(weights))
        at_once = max(1, AT_ONCE // max(1, len(self.images)))
        for first in range(0, len(weights), at_once):
            found[first : first + at_once] = self._aps(weights[first : first + at_once])
        found[weights @ self.objects == 0] = np.nan
        return found

    def _aps(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        needed = _least_counts(np.maximum(weights @ self.objects, 1))
        of_each = weights[:, self.images]  # (S, D)
        found = np.zeros(len(weights))
        counted: NDArray[np.int64] = np.cumsum(of_each, axis=1)
        for right, kept in zip(self.right, self.counted, strict=True):
            places = right.nonzero()[0]  # precision is highest at right detections: no other point matters
            if len(places):
                number = counted if kept.all() else np.cumsum(of_each * kept, axis=1)
                found += _mean_precision(np.cumsum(of_each[:, places], axis=1), number[:, places], needed)
        return found / len(self.right)


def _mean_precision(
    right: NDArray[np.int64], counted: NDArray[np.int64], needed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean over the recalls of the best precision at that recall or a higher one, (S,).

    Args:
        right: (S, P), right detections up to each right one.
        counted: (S, P), all detections up to there.
        needed: (S, R), right detections that reach each recall.
    """
    precision = right / np.maximum(counted, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # The first detection that reaches each recall, of all samples in one search: counts grow from row to row.
    rows, count = np.arange(len(right)), right.shape[1]
    step = int(max(right.max(), needed.max())) + 1
    places = np.searchsorted((right + step * rows[:, None]).ravel(), (needed + step * rows[:, None]).ravel())
    reached = places < np.repeat((rows + 1) * count, needed.shape[1])
    best = np.where(reached, envelope.ravel()[np.minimum(places, envelope.size - 1)], 0.0)
    return best.reshape(len(right), -1).mean(axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The matched detections of one detector on one split, by class."""

    classes: tuple[ClassMatches, ...]
    images: int

    @classmethod
    def of(cls, data: DetectionData, detections: Detections, backend: Backend = "auto") -> Self:
        """Match detections with the objects of a split, as for COCO's numbers.

        Raises:
            UserError: a detection has an image or a category that the split lacks.
        """
        count = len(data)
        rows = match_images(data.classes, count, Objects.of(data), Found.of(data, detections), backend)
        by_class: list[list[Any]] = [[] for _ in data.classes]
        for row in rows:
            by_class[row["category_id"] - 1].append(row)
        return cls(tuple(_class_matches(each, count) for each in by_class), count)

    def ap(self) -> float:
        """Return COCO's AP, 0..1; nan if there are no objects."""
        return float(self.aps(np.ones((1, self.images), np.int64))[0])

    def aps(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return COCO's AP on several selections of the images, (S,); arguments as of :meth:`ClassMatches.aps`."""
        values = np.stack([each.aps(weights) for each in self.classes])
        defined = ~np.isnan(values)
        sums, counts = np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of all classes by name, for a file of NumPy."""
        found: dict[str, NDArray[Any]] = {"images": np.array(self.images)}
        for number, each in enumerate(self.classes):
            found[f"{number}.images"], found[f"{number}.objects"] = each.images, each.objects
            found[f"{number}.right"], found[f"{number}.counted"] = each.right, each.counted
        return found

    @classmethod
    def from_arrays(cls, arrays: Any) -> Self:
        """Invert :meth:`to_arrays`.

        Raises:
            KeyError: an array is missing.
        """
        count = sum(name.endswith(".right") for name in arrays)
        names = ("images", "right", "counted", "objects")
        classes = tuple(ClassMatches(*(arrays[f"{number}.{name}"] for name in names)) for number in range(count))
        return cls(classes, int(arrays["images"]))


def resampled_aps(detectors: Sequence[Matches], samples: int, seed: int = 0) -> NDArray[np.float64]:
    """Return the AP of several detectors on bootstrap samples of the images, the same samples for all.

    Args:
        detectors: on the same split.
        samples: number of samples; each draws as many images as there are, with replacement.
        seed: of the drawing.

    Returns:
        (samples, detectors) in 0..1; nan if a sample has no objects.
    """
    generator, images = np.random.default_rng(seed), detectors[0].images
    drawn = [np.bincount(generator.integers(0, images, images), minlength=images) for _ in range(samples)]
    weights = np.stack(drawn)
    return np.stack([detector.aps(weights) for detector in detectors], axis=1)


def image_interval(value: float, samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a difference of APs over bootstrap samples of the images.

    The samples are moved such that their mean is the value: AP on a sample is biased, since images occur several times.

    Args:
        value: on the images as they are.
        samples: (S,) of the same difference on each sample; nan is left out.
        level: of confidence.
    """
    moved = samples - np.nanmean(samples) + value
    low, high = np.nanquantile(moved, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _least_counts(totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the least number of right detections that reaches each recall, (S, 101), for numbers of objects (S,)."""
    counts = np.ceil(RECALLS * totals[:, None] - 1e-6).astype(np.int64)
    return np.where(counts / totals[:, None] < RECALLS, counts + 1, counts)


def _class_matches(rows: Sequence[Any], images: int) -> ClassMatches:
    """Join the rows of one class, as the libraries return them for each image."""
    rows = sorted(rows, key=lambda row: row["image_id"])
    objects = np.zeros(images, np.int64)
    places, scores, right, ignored = [], [], [], []
    for row in rows:
        number = row["image_id"] - 1
        objects[number] = np.count_nonzero(~np.asarray(row["gtIgnore"], bool))
        count = len(row["dtScores"])
        places.append(np.full(count, number))
        scores.append(np.asarray(row["dtScores"], float))
        right.append(np.asarray(row["dtMatches"], float).reshape(THRESHOLDS, count) > 0)
        ignored.append(np.asarray(row["dtIgnore"], bool).reshape(THRESHOLDS, count))
    if not rows:
        empty = np.zeros((THRESHOLDS, 0), bool)
        return ClassMatches(np.zeros(0, np.int64), empty, empty, objects)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    left_out = np.concatenate(ignored, axis=1)[:, order]
    matched = np.concatenate(right, axis=1)[:, order] & ~left_out
    return ClassMatches(np.concatenate(places)[order], matched, ~left_out, objects)
