"""Slow loops for the matching and the focal loss that several heads share, written from their definitions."""

import math

from torch import Tensor


def slow_forced_match(overlaps: list[list[float]], least: float) -> list[int]:
    """Match anchor by anchor, as mmdet's MaxIoUAssigner is documented, with thresholds 0.5 and 0.4."""
    matched = []
    for anchor in range(len(overlaps[0])):
        own = [row[anchor] for row in overlaps]
        best = max(own)
        index = own.index(best) if best >= 0.5 else -1 if best < 0.4 else -2
        for number, row in enumerate(overlaps):
            if max(row) >= least and row[anchor] == max(row):
                index = number
        matched.append(index)
    return matched


def focal(logit: float, wanted: bool) -> float:
    score = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - score) ** 2 * -math.log(score) if wanted else 0.75 * score**2 * -math.log(1 - score)


def slow_focal(logits: Tensor, truth, gt_index: Tensor) -> float:
    total = 0.0
    for image, index, target in zip(logits.tolist(), gt_index.tolist(), truth, strict=True):
        for scores, number in zip(image, index, strict=True):
            label = target["labels"].tolist()[number] if number >= 0 else -1
            total += sum(focal(logit, k == label) for k, logit in enumerate(scores)) if number > -2 else 0
    return total
