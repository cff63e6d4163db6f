"""Wrong input to the public arithmetic: one message, never a number that was broadcast."""

import pytest
import torch

from understudy import functional as F

A, B = torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)
FEWER_CHANNELS = torch.rand(2, 1, 4, 4)
LOGITS, FEWER_LOGITS = torch.rand(2, 4, 4, 2, 3), torch.rand(2, 4, 4, 1, 3)
CELLS, NO_BATCH = torch.ones(2, 4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
ROWS, FEWER_ROWS = torch.rand(5, 8), torch.rand(5, 1)
BOXES = torch.tensor([[[0.0, 0, 4, 4]]])


@pytest.mark.parametrize("teacher", [B, FEWER_CHANNELS], ids=["images", "channels"])
@pytest.mark.parametrize(
    "loss",
    [
        F.mean_squared_loss,
        F.squared_loss_per_image,
        F.channelwise_loss,
        F.correlation_loss,
        F.batch_distance,
        F.joint_distance,
        F.attention_loss,
        F.context_loss,
        F.align_scale,
        lambda own, theirs: F.imitation_loss(own, theirs, CELLS),
        lambda own, theirs: F.focal_loss(own, theirs, CELLS),
        lambda own, theirs: F.weighted_feature_loss(own, theirs, CELLS),
        lambda own, theirs: F.prediction_guided_loss(own, theirs, LOGITS, LOGITS),
    ],
)
def test_features_of_other_shapes_are_refused(loss, teacher):
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\([12], [13], 4, 4\)"):
        loss(A, teacher)


@pytest.mark.parametrize(
    "loss",
    [
        F.soft_label_loss,
        lambda own, theirs: F.soft_label_loss(own, theirs, loss="kl"),
        F.softened_divergence,
        F.gap_weighted_loss,
        F.score_gap,
        F.response_class_loss,
        F.response_box_loss,
        lambda own, theirs: F.weighted_class_loss(own, theirs, CELLS),
        lambda own, theirs: F.weighted_box_loss(own, theirs, CELLS),
        lambda own, theirs: F.weighted_giou_loss(own, theirs, LOGITS, CELLS),
        lambda own, theirs: F.prediction_guided_loss(A, A, own, theirs),
    ],
)
def test_predictions_of_other_shapes_are_refused(loss):
    with pytest.raises(ValueError, match="differ in shape"):
        loss(LOGITS, FEWER_LOGITS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.imitation_loss(A, A, NO_BATCH), "cells of shape"),
        (lambda: F.focal_loss(A, A, NO_BATCH), "cells of shape"),
        (lambda: F.weighted_feature_loss(A, A, NO_BATCH), "weight map"),
        (lambda: F.prediction_guided_loss(A, A, LOGITS[:1], LOGITS[:1]), "images, rows and columns"),
        (lambda: F.distance_relation_loss(A, A), r"\(G, D\)"),
        (lambda: F.distance_relation_loss(ROWS, ROWS[:4]), r"\(G, D\)"),
        (lambda: F.side_divergence(ROWS, FEWER_ROWS.expand(5, 4)), "differ in shape"),
        (lambda: F.rank_loss(ROWS[0], ROWS[0, :1], torch.zeros(8).long(), [1]), "differ in shape"),
        (lambda: F.soft_detection_loss(A[0], BOXES, A[0], BOXES.expand(1, 2, 4)), "boxes to compare"),
        (lambda: F.feature_richness(A), r"\(N, H, W, A, K\)"),
        (lambda: F.shown_cells(A, 2), "0..1"),
        (lambda: F.soft_label_loss(ROWS, ROWS, loss="ce"), '"bce" or "kl"'),
    ],
)
def test_what_does_not_belong_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "loss",
    [
        lambda t: F.rank_loss(ROWS[0], ROWS[1], torch.zeros(8).long(), [1], t),
        lambda t: F.soft_label_loss(ROWS, ROWS, t),
        lambda t: F.softened_divergence(ROWS, ROWS, t),
        lambda t: F.channelwise_loss(A, A, t),
        lambda t: F.attention_loss(A, A, t),
        lambda t: F.focal_loss(A, A, CELLS, t),
    ],
)
def test_a_temperature_is_above_zero(loss, temperature):
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        loss(temperature)
