"""LD against a slow loop written from its equations."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from predictions import CLASSES, SIZES, TARGETS, divergence, pair_of, positives, spec, truth, waves
from references import sigmoid
from torchvision.ops import box_iou, distance_box_iou

from understudy.errors import UserError
from understudy.methods import METHODS
from understudy.methods.loading import build_methods
from understudy.outputs import Truth, flatten_levels


@pytest.mark.parametrize(("normaliser", "nearness"), [("sum", "code"), ("sum", "paper"), ("positives", "code")])
def test_against_a_slow_loop(normaliser, nearness):
    student, teacher, own, theirs = pair_of("distributions")
    ground = truth()
    method = METHODS["ld"](student, teacher, normaliser=normaliser, nearness=nearness)
    sides = [flatten_levels(outputs.box_raw).unflatten(-1, (4, -1)).tolist() for outputs in (own, theirs)]
    classes = [flatten_levels(outputs.class_logits).tolist() for outputs in (own, theirs)]
    anchors = torch.cat([level.flatten(0, 2) for level in own.anchors])

    def location(n: int, r: int) -> float:
        four = zip(sides[1][n][r], sides[0][n][r], strict=True)
        return sum(100 * divergence(*both, 10) / 6 for both in four)

    expected = {"location": 0.0, "vlr": 0.0, "class": 0.0}
    assert [r < 96 for _, r, _ in positives(ground)].count(True) == 6  # on the first level; two on the second
    for n, r, _ in positives(ground):
        expected["location"] += sigmoid(max(classes[0][n][r])) * location(n, r) / 4
        expected["class"] += 4 * divergence(classes[1][n][r], classes[0][n][r], 2) / CLASSES / (6 if r < 96 else 2)
    in_region = 0
    for n, target in enumerate(TARGETS):
        overlaps, near_all = box_iou(target["boxes"], anchors), distance_box_iou(target["boxes"], anchors)
        if nearness == "code":
            shares = [[share_of_anchor(box, anchor) for anchor in anchors.tolist()] for box in target["boxes"].tolist()]
            near_all = near_all - overlaps + torch.tensor(shares)
        known = (ground.gt_index[n] != -2).nonzero().flatten().tolist()
        thresholds = [
            slow_threshold(box, overlap, anchors, known) for box, overlap in zip(target["boxes"], overlaps, strict=True)
        ]
        for r in known:
            weights = [
                overlap[r].item()
                for overlap, near, limit in zip(overlaps, near_all, thresholds, strict=True)
                if limit / 4 <= near[r] < limit
            ]
            expected["vlr"] += max(weights, default=0) * location(n, r) / 16
            in_region += bool(weights)
    assert 4 < in_region < 200
    terms = method(own, theirs, ground)
    for term, value in expected.items():
        divisor = 8 if normaliser == "positives" and term != "class" else 1
        assert terms[f"ld_{term}"].item() == pytest.approx(value / divisor, rel=1e-4), term
    sum(terms.values()).backward()
    assert all(level.grad.isfinite().all() for level in (*own.box_raw, *own.class_logits))


def test_sums_are_scaled_to_the_images_of_a_process_of_the_authors():
    student, teacher, own, theirs = pair_of("distributions")
    twice = [own.of_images([0, 1, 0, 1]), theirs.of_images([0, 1, 0, 1])]
    repeated = Truth(TARGETS * 2, truth().gt_index.repeat(2, 1))
    two = METHODS["ld"](student, teacher)(own, theirs, truth())
    for images, factor in ((2, 1), (3, 1.5), (None, 2)):
        terms = METHODS["ld"](student, teacher, images_per_process=images)(*twice, repeated)
        for term in ("ld_location", "ld_vlr"):
            assert terms[term].item() == pytest.approx(factor * two[term].item(), rel=1e-6), (images, term)
    as_in_the_code = METHODS["ld"](student, teacher, images_per_process=None)(own, theirs, truth())
    assert as_in_the_code == two  # of two images


@pytest.mark.parametrize("whole", [True, False])
def test_the_feature_term_is_a_mean_per_level_with_positives(whole):
    """In the cells whose anchor has more than half of the best IoU that any anchor has with an object."""
    student, teacher, own, theirs = pair_of("distributions")
    ground = truth()
    if not whole:  # the second level has no positive
        ground.gt_index[:, 96:].clamp_(max=-1)
    method = METHODS["ld"](student, teacher, terms=("feature",))
    best = [[box_iou(target["boxes"], level.flatten(0, 2)).amax(1) for level in own.anchors] for target in TARGETS]
    expected, cells = 0.0, []
    for level in range(2 if whole else 1):
        squares = []
        for n, target in enumerate(TARGETS):
            for y, x in itertools.product(range(SIZES[level][0]), range(SIZES[level][1])):
                overlaps = box_iou(target["boxes"], own.anchors[level][y, x])[
                    :, 0
                ]  # all anchors of a cell are the same
                if (overlaps > 0.5 * torch.stack(best[n]).amax(0)).any():
                    difference = own.features[level][n, :, y, x] - theirs.features[level][n, :, y, x]
                    squares += [value**2 for value in difference.tolist()]
        cells.append(len(squares) // 5)
        expected += sum(squares) / len(squares)
    assert all(0 < count < 48 for count in cells)
    found = method(own, theirs, ground)
    assert list(found) == ["ld_feature"]
    assert found["ld_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_the_feature_term_is_off_by_default_and_needs_equal_channels():
    student, teacher = spec("little", "distributions"), spec("big", "distributions", channels=(7, 7))
    (method,), weights = build_methods({"ld": {}}, student, teacher)
    assert method.terms == ("location", "vlr", "class")
    assert set(weights) == {"ld_location", "ld_vlr", "ld_class"}
    with pytest.raises(UserError, match=r"ld_feature: the student little has the channels \(5, 5\), the teacher big"):
        build_methods({"ld": {"feature_weight": 2}}, student, teacher)


def test_the_values_of_the_authors_code():
    """The values are those of HikariTJU/LD @ 4287990, LDHead.loss_single, with the regions of its assigner and head.

    Its loss reshapes features to 256 channels. Its region is that of nearness=code: BboxOverlaps2D divides by the area
    of the anchor for a distance IoU.
    """
    student, teacher = (spec(name, "distributions", num_anchors=1, channels=(256, 256)) for name in ("little", "big"))
    method = METHODS["ld"](student, teacher, terms=("location", "vlr", "class", "feature"))
    terms = method(waves(student, 0.1), waves(teacher, 0.9), truth(num_anchors=1))
    expected = {
        "ld_location": 0.1151469919,
        "ld_vlr": 0.0174643215,
        "ld_class": 0.1563041919,
        "ld_feature": 0.6068800856,
    }
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)


def share_of_anchor(box: list[float], anchor: list[float]) -> float:
    width, height = (max(0.0, min(box[i + 2], anchor[i + 2]) - max(box[i], anchor[i])) for i in (0, 1))
    return width * height / ((anchor[2] - anchor[0]) * (anchor[3] - anchor[1]))


def slow_threshold(box, overlaps, anchors, known) -> float:
    """Mean plus deviation of the IoU of the nine anchors of each level nearest to a box's centre."""
    x, y = (box[0] + box[2]).item() / 2, (box[1] + box[3]).item() / 2
    found = []
    for first, last in ((0, 96), (96, 120)):
        centres = {r: ((anchors[r, :2] + anchors[r, 2:]) / 2).tolist() for r in known if first <= r < last}
        # Two anchors lie in the same place with the same IoU, so which of them comes first does not matter.
        nearest = sorted(centres, key=lambda r: math.hypot(centres[r][0] - x, centres[r][1] - y))[:9]
        found += [overlaps[r] for r in nearest]
    return (torch.stack(found).mean() + torch.stack(found).std()).item()


def test_boxes_must_be_distributions_over_the_same_bins():
    student, teacher = spec("little", "distributions"), spec("big", "deltas")
    with pytest.raises(UserError, match="both must predict the sides of a box as distributions: ") as failure:
        build_methods({"ld": {}}, student, teacher)
    first, advice = str(failure.value).splitlines()[1:]
    assert first.endswith("the student little has distributions, the teacher big deltas")  # methods that serve follow
    assert "soft_labels, " in advice
    assert "bckd, " in advice
    with pytest.raises(UserError, match="little has sides of 6 bins, the teacher big has sides of 17 bins"):
        build_methods({"ld": {}}, student, spec("big", "distributions", box_size=68))
    one = student, spec("big", "distributions", num_classes=1)
    with pytest.raises(UserError, match=r"ld_class: .*3 classes.*1 class"):
        build_methods({"ld": {}}, *one)
    assert list(METHODS["ld"].obstacles(replace(student, num_classes=1), one[1])) == ["class"]
