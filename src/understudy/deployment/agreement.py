"""Whether an exported file detects the same as the detector in PyTorch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.data import Batch
from understudy.evaluation.runtimes import Facts, Found

Detect = Callable[[Tensor, Sequence[tuple[int, int]]], Found]
"""A :class:`.Runtime`, or a function that is called like one."""

SCORE = 1e-4
"""Largest difference of two equal scores."""

PIXELS = 0.05
"""Largest difference of two equal boxes, per side, in pixels of the resized image."""

OTHERS = 0.005
"""Largest share of detections that may differ for another reason than a near tie."""


@dataclass(slots=True)
class Agreement:
    """How far the detections of a file are those of the detector.

    Attributes:
        images: compared.
        detections: of the detector in PyTorch.
        same: those that the file has, too: label, score within :data:`SCORE`, box within :data:`PIXELS`.
        ties: those that it has not, where scores so close decide that rounding changes their order.
        others: the remaining ones, on both sides.
        score: largest difference of the scores of the same detections.
        pixels: largest difference of their boxes.
    """

    images: int = 0
    detections: int = 0
    same: int = 0
    ties: int = 0
    others: int = 0
    score: float = 0.0
    pixels: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the file may be used in place of the detector."""
        return self.others <= OTHERS * self.detections

    def __str__(self) -> str:
        """Say it in words."""
        if not self.detections and not self.others:
            return f"no detections in {self.images} image{'' if self.images == 1 else 's'}"
        said = (
            f"{self.same} of {self.detections} detections in {self.images} image{'' if self.images == 1 else 's'} are "
            f"the same (scores within {self.score:.0e}, boxes within {self.pixels:.2g} pixels)"
        )
        said += f"; {self.ties} differ by near ties of scores" if self.ties else ""
        return said + (f"; {self.others} differ otherwise" if self.others else "")

    def add(self, expected: dict[str, Tensor], found: dict[str, Tensor], facts: Facts) -> None:
        """Compare the detections of an image."""
        self.images += 1
        self.detections += len(expected["scores"])
        scores = (expected["scores"][:, None] - found["scores"]).abs()
        pixels = (expected["boxes"][:, None] - found["boxes"]).abs().amax(-1)
        own = expected["labels"][:, None] == found["labels"]
        equal = own & (scores <= SCORE) & (pixels <= PIXELS)
        left, taken = [], torch.zeros(len(found["scores"]), dtype=torch.bool)
        for row in range(len(equal)):
            free = torch.where(equal[row] & ~taken)[0]
            if not len(free):
                left.append(row)
                continue
            best = free[pixels[row, free].argmin()]
            taken[best] = True
            self.same += 1
            self.score = max(self.score, float(scores[row, best]))
            self.pixels = max(self.pixels, float(pixels[row, best]))
        rest = torch.where(~taken)[0]
        tied = own[left][:, rest] & (scores[left][:, rest] <= SCORE)
        for side, partners, values in ((left, tied.any(1), expected), (rest.tolist(), tied.any(0), found)):
            for row, partner in zip(side, partners.tolist(), strict=True):
                is_tie = partner or self._at_a_limit(float(values["scores"][row]), values["scores"], facts)
                self.ties, self.others = self.ties + is_tie, self.others + (not is_tie)

    @staticmethod
    def _at_a_limit(score: float, scores: Tensor, facts: Facts) -> bool:
        """Return whether rounding decides if a detection is above the threshold, or among the best."""
        full = len(scores) == facts.detections and score - float(scores.min()) <= SCORE
        return full or score - facts.score_threshold <= SCORE


def compare(expected: Detect, found: Detect, batches: Iterable[Batch], facts: Facts) -> Agreement:
    """Compare the detections of a detector and a file.

    Args:
        expected: the detector, in PyTorch.
        found: the file.
        batches: the images.
        facts: of the file.
    """
    agreement = Agreement()
    for batch in batches:
        pair = (one(batch.images, batch.image_sizes) for one in (expected, found))
        for own, other in zip(*pair, strict=True):
            agreement.add(own, other, facts)
    return agreement


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest differences of boxes (N, R, 4) and scores (N, R, K)."""
    boxes, scores = (float((own - other).abs().max()) for own, other in zip(expected, found, strict=True))
    return boxes, scores
