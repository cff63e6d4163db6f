"""Detections from foreign features against the teacher's own."""

import itertools

import pytest
import torch
from predictions import entropy
from references import sigmoid

from understudy.functional import soft_detection_loss


def test_soft_detections_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    logits, target = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    corners = torch.rand(2, 2, 5, 4, generator=generator, dtype=torch.float64) * 10
    corners[..., 2:] += corners[..., :2]
    boxes, others = corners
    above = below = 0.0
    for n, r in itertools.product(range(2), range(5)):
        scores = [sigmoid(z) for z in target[n, r].tolist()]
        entropies = sum(entropy(z, score) for z, score in zip(logits[n, r].tolist(), scores, strict=True))
        (a, b, c, d), (e, f, g, h) = boxes[n, r].tolist(), others[n, r].tolist()
        common = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
        union = (c - a) * (d - b) + (g - e) * (h - f) - common
        hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
        above += max(scores) * (entropies + 1 - (common / union - (hull - union) / hull))
        below += max(scores)
    assert soft_detection_loss(logits, boxes, target, others).item() == pytest.approx(above / below, rel=1e-6)
    with pytest.raises(ValueError, match=r"differ in shape"):
        soft_detection_loss(logits, boxes, target[:1], others)
