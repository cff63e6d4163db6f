"""Matching by overlap and ATSS, against slow loops."""

import math
import statistics

import pytest
import torch
from references import iou
from slow_loops import slow_forced_match

from understudy.networks.geometry import StrideAnchors
from understudy.networks.matching import ForcedMatcher, atss, match_in_own_padding


def slow_atss(levels: list[list[list[float]]], boxes: list[list[float]], candidates: int) -> list[int]:
    anchors = [anchor for level in levels for anchor in level]
    claims: list[list[tuple[float, int]]] = [[] for _ in anchors]
    for number, box in enumerate(boxes):
        chosen, start = [], 0
        for level in levels:

            def distance(cell: int, start=start, box=box) -> float:
                x, y = (sum(anchors[start + cell][side::2]) / 2 - sum(box[side::2]) / 2 for side in (0, 1))
                return math.hypot(x, y)

            chosen += [start + cell for cell in sorted(range(len(level)), key=distance)[:candidates]]
            start += len(level)
        overlaps = [iou(anchors[cell], box) for cell in chosen]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for cell, overlap in zip(chosen, overlaps, strict=True):
            x, y = (sum(anchors[cell][side::2]) / 2 for side in (0, 1))
            if overlap >= threshold and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                claims[cell].append((overlap, number))
    return [max(claim)[1] if claim else -1 for claim in claims]


@pytest.mark.parametrize("seed", range(5))
def test_atss_is_the_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    grid = StrideAnchors((8, 16, 32, 64, 128), (8.0,), (1.0,))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    levels = [grid.level(stride, *size, torch.device("cpu")) for stride, size in zip(grid.strides, sizes, strict=True)]
    corners = torch.rand(12, 2, generator=generator) * torch.tensor([150.0, 100])
    boxes = torch.cat([corners, corners + torch.rand(12, 2, generator=generator) ** 2 * 90 + 1], dim=1)
    found = atss(levels, boxes)
    assert found.tolist() == slow_atss([level.tolist() for level in levels], boxes.tolist(), 9)
    assert len(found.unique()) > 5
    fewer = atss(levels, boxes, candidates=3)
    assert fewer.tolist() == slow_atss([level.tolist() for level in levels], boxes.tolist(), 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_forced_matcher_is_the_slow_loop(seed, least):
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that overlaps tie within and between objects; one object overlaps nothing well.
    overlaps = torch.randint(0, 8, (5, 40), generator=generator) / 10
    overlaps[3] = torch.randint(0, 3, (40,), generator=generator) / 10
    found = ForcedMatcher(0.5, 0.4, least)(overlaps)
    assert found.tolist() == slow_forced_match(overlaps.tolist(), least)
    assert (found == 3).any() == (least == 0)


def test_only_anchors_inside_an_images_own_padding_are_matched():
    grid = StrideAnchors((16, 32), (2.0,), (1.0,))
    levels = [grid.level(16, 4, 6, torch.device("cpu")), grid.level(32, 2, 3, torch.device("cpu"))]
    seen = []

    def match(own, boxes):
        seen.append([len(level) for level in own])
        return torch.arange(sum(seen[-1])) + 100 * len(boxes)

    targets = [{"boxes": torch.zeros(count, 4)} for count in (1, 2)]
    first, second = match_in_own_padding(match, levels, targets, [(64, 96), (33, 20)])
    assert seen == [[24, 6], [8, 2]]  # the second image alone would be padded to 64 x 32
    assert first.tolist() == list(range(100, 130))
    finest = torch.full((4, 6), -2)
    finest[:, :2] = torch.arange(200, 208).view(4, 2)
    assert torch.equal(second[:24].view(4, 6), finest)
    assert second[24:].tolist() == [208, -2, -2, 209, -2, -2]
    whole = match_in_own_padding(match, levels, targets, None)
    assert all((index >= 0).all() for index in whole)
