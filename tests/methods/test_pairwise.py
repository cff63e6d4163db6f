"""Pairwise against a slow loop over all pairs of cells."""

import itertools

import pytest
from pairs import run
from predictions import spec, truth, waves
from torch import Tensor, nn

from understudy.methods import METHODS


def naive(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    cells = list(itertools.product(range(student.shape[2]), range(student.shape[3])))
    for n, (y, x), (v, u) in itertools.product(range(len(student)), cells, cells):
        alike = [
            (maps[n, :, y, x] @ maps[n, :, v, u] / maps[n, :, y, x].norm() / maps[n, :, v, u].norm()).item()
            for maps in (student.detach(), teacher.detach())
        ]
        total += (alike[0] - alike[1]) ** 2
    return total / len(student) / len(cells) ** 2


def test_all_pairs_of_cells_are_compared_and_large_levels_pooled():
    _, own, theirs, terms = run("pairwise", max_cells=20)  # of 6 x 8 cells 3 x 4 are left
    pools = [nn.MaxPool2d(2), nn.Identity()]
    levels = zip(pools, own.features, theirs.features, strict=True)
    expected = sum(naive(pool(mine), pool(other)) for pool, mine, other in levels)
    assert terms["pairwise_relation"].item() == pytest.approx(expected, rel=1e-4)
    whole, unpooled = (run("pairwise", **options)[3]["pairwise_relation"] for options in ({}, {"max_cells": 48}))
    assert whole == unpooled != terms["pairwise_relation"]
    last = run("pairwise", max_cells=12)[3]["pairwise_relation"]  # of the second level's 3 x 4 cells all are left
    assert last.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("options", "value"), [({}, 0.0166045371), ({"max_cells": 12}, 0.1095049484)])
def test_the_values_of_the_authors_code(options, value):
    """The values are those of irfanICMLL/structure_knowledge_distillation @ ce208e1, sim_dis_compute, per level.

    The pooled one is that of CriterionPairWiseforWholeFeatAfterPool with patches of 2 x 2 cells on the first level.
    """
    student, teacher = spec("little"), spec("big", channels=(6, 6))
    terms = METHODS["pairwise"](student, teacher, **options)(waves(student, 0.1), waves(teacher, 0.9), truth())
    assert terms["pairwise_relation"].item() == pytest.approx(value, rel=1e-6)
