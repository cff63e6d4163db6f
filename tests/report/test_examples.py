"""Detections side by side: which images are chosen, and what is said about the choice."""

from pathlib import Path

import numpy as np
import pytest

from understudy.analysis.errors import SCORE, Errors
from understudy.analysis.models import Model, walk
from understudy.analysis.tide import Judged
from understudy.report import analyses
from understudy.report.examples import choose_images, detections_section, tally
from understudy.report.views import RunView

ROLES = {"plain": "p", "distilled": "d"}


def test_an_image_counts_its_objects_found_minus_its_false_detections():
    kinds = ("correct", "ignored", "localisation", "correct", "duplicate", "background")
    nothing = np.zeros(0, int)
    assert tally(Judged(kinds, nothing, nothing.astype(bool), nothing.astype(bool))) == 2 - 3


def test_half_of_the_images_favour_each_side_as_far_as_there_are_such():
    leads = {1: 3, 2: -1, 3: 0, 4: 7, 5: -4, 6: 2, 7: -2, 8: 1}
    scores = {"t": dict.fromkeys(leads, 0), "p": dict.fromkeys(leads, 0), "d": leads}
    assert choose_images(scores, ROLES, 4) == [4, 1, 5, 7]
    assert choose_images(scores, ROLES, 1) == [4]
    one_sided = {number: abs(lead) for number, lead in leads.items()}
    assert choose_images(scores | {"d": one_sided}, ROLES, 4) == [4, 5, 1, 6]
    assert choose_images(scores | {"d": {number: -lead for number, lead in one_sided.items()}}, ROLES, 2) == [4, 5]
    assert len(choose_images(scores, ROLES, 99)) == len(leads)
    assert choose_images({"p": leads}, {"plain": "p"}, 2) == [5, 7]


def test_the_same_objects_are_judged_in_detectors_of_any_size(drawn):
    runs = [RunView(name, name, role, Path(name), {}) for name, role in (("small", "plain"), ("large", "distilled"))]
    models = [Model(run.name, analyses.load_checkpoint(run.folder)) for run in runs]
    errors = Errors(models, drawn)
    walk(models, drawn, [errors], device="cpu")
    judged = errors.judged(SCORE)
    for image_id, (found, _) in judged["large"].items():
        np.testing.assert_allclose(found.boxes, [[0, 0, 36, 36]] * 2)
        assert found.scores == pytest.approx((0.9, 0.5))
        assert judged["small"][image_id][1].kinds == judged["large"][image_id][1].kinds
    section = detections_section(errors, runs, drawn, 2)
    assert "Of all 8, 0 are in favour of large, 0 of small, and 8 of neither." in section.sentences[0]
    assert [cell.head for cell in section.pictures[0]] == ["ground truth", "small", "large"]
    assert len(section.pictures) == 2
    alone = detections_section(errors, runs[:1], drawn, 2)
    assert "fewest objects found minus false detections, over small." in alone.sentences[0]
