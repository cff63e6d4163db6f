"""Made-up records with predictions of every box code, for methods that compare scores and boxes anchor by anchor."""

import itertools
import math
from dataclasses import replace

import torch
from references import sigmoid, softmax, wave
from torch import Tensor

from understudy.outputs import Outputs, Spec, Truth

SIZES, STRIDES, CLASSES = [(6, 8), (3, 4)], (8, 16), 3
CODES = {"deltas": 4, "distances in strides": 4, "distances in pixels": 4, "distributions": 4 * 6}
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 8, 60, 44]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.tensor([[10.0, 2, 50, 30]]), "labels": torch.tensor([1])},
]
SEEDS = 1, 2


def spec(name: str, code: str = "deltas", **changes) -> Spec:
    made = Spec((5, 5), STRIDES, 2, CLASSES, CODES[code], code, family="gfl", name=name)
    return replace(made, **changes)


def squares(stride: int, side: float, height: int, width: int, num_anchors: int = 1) -> Tensor:
    """Anchors of a side in strides around the middle of every cell, (H, W, A, 4), all of a cell the same."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1) + side / 2 * torch.tensor([-1.0, -1, 1, 1])
    return (stride * centres)[:, :, None].expand(height, width, num_anchors, 4)


def record(of: Spec, seed: int, images: int = 2) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    raw = [random(images, *size, of.num_anchors, of.box_size) for size in SIZES]
    if of.box_code.startswith("distances"):
        raw = [level.abs() * (20 if "pixels" in of.box_code else 2) for level in raw]
    side = 1 if "strides" in of.box_code else 2
    return Outputs(
        stages=[],
        features=[
            random(images, channels, *size).requires_grad_() for channels, size in zip(of.channels, SIZES, strict=True)
        ],
        class_logits=[random(images, *size, of.num_anchors, of.num_classes).requires_grad_() for size in SIZES],
        box_raw=[level.requires_grad_() for level in raw],
        anchors=[squares(stride, side, *size, of.num_anchors) for stride, size in zip(STRIDES, SIZES, strict=True)],
    )


def waves(of: Spec, start: float) -> Outputs:
    """Like `record`, but sines in float64: inputs for values that were computed with other code."""

    def levels(rate: float, size: float, *last: int) -> list[Tensor]:
        return [wave((2, *cells, *last), rate, start, size).requires_grad_() for cells in SIZES]

    features = [wave((2, of.channels[0], *cells), 0.7, start, 1.0).requires_grad_() for cells in SIZES]
    return replace(
        record(of, 0),
        features=features,
        class_logits=levels(0.5, 3.0, of.num_anchors, of.num_classes),
        box_raw=levels(0.3, 2.0 if of.box_code == "distributions" else 0.3, of.num_anchors, of.box_size),
    )


def truth(num_anchors: int = 2) -> Truth:
    """Seven anchors of the first image, on both levels, have an object; one of the second; some are ignored."""
    gt_index = torch.full((2, 60 * num_anchors), -1)
    gt_index[0, [3, 9, 20]], gt_index[0, [4, 30, 48 * num_anchors + 2, 48 * num_anchors + 5]] = 0, 1
    gt_index[1, 17] = 0
    gt_index[:, 40:44] = -2
    return Truth(TARGETS, gt_index)


def pair_of(code: str = "deltas", **changes) -> tuple[Spec, Spec, Outputs, Outputs]:
    """The Specs of a student and a teacher with the same box code, and a record of each."""
    student, teacher = spec("little", code, **changes), spec("big", code, **changes)
    return student, teacher, record(student, SEEDS[0]), record(teacher, SEEDS[1])


def positives(ground: Truth) -> list[tuple[int, int, int]]:
    """Image, anchor and object of each positive."""
    found = itertools.product(range(len(ground.gt_index)), range(ground.gt_index.shape[1]))
    return [(n, r, int(ground.gt_index[n, r])) for n, r in found if ground.gt_index[n, r] >= 0]


def divergence(teacher: list[float], student: list[float], temperature: float = 1.0) -> float:
    """The Kullback-Leibler divergence of two softmaxes, of plain numbers."""
    theirs, own = softmax(teacher, temperature), softmax(student, temperature)
    return sum(p * math.log(p / q) for p, q in zip(theirs, own, strict=True))


def entropy(student: float, soft: float) -> float:
    """The binary cross-entropy of a logit with a soft target."""
    score = sigmoid(student)
    return -soft * math.log(score) - (1 - soft) * math.log(1 - score)
