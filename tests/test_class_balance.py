"""Balanced classes in a detector's own losses: the gradients, and the detectors that are refused."""

import pytest
import torch
from small_detectors import IMAGES, small

from understudy.class_balance import with_balanced_classes
from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.functional import class_factors
from understudy.learner import Learner
from understudy.outputs import Outputs

MANY = [
    {"boxes": torch.tensor([[4.0, 4, 40, 50], [30, 20, 90, 60], [2, 2, 60, 60]]), "labels": torch.tensor([0, 2, 0])},
    {"boxes": torch.tensor([[8.0, 8, 50, 50], [40, 8, 90, 60]]), "labels": torch.tensor([0, 0])},
]
DENSE = [(family, style) for family in ("retinanet", "fcos") for style in ("torchvision", "mmdet")] + [("gfl", "mmdet")]


def gradients(detector: Detector, targets: list, *, balanced: bool) -> tuple[dict, dict[str, list[torch.Tensor]]]:
    """The own losses of a batch, and their gradients with respect to the dense predictions, (N, H, W, A, ...) each."""
    outputs = detector(IMAGES)
    predictions = {"class_logits": outputs.class_logits, "box_raw": outputs.box_raw, "extra": [*outputs.extra.values()]}
    gt_index = detector.assign(outputs, targets)
    record = with_balanced_classes(outputs, targets, gt_index, 3) if balanced else outputs
    losses = detector.loss(record, targets, gt_index)
    every = [tensor for levels in predictions.values() for tensor in levels]
    found = iter(torch.autograd.grad(sum(losses.values()), every))
    return losses, {name: [next(found) for _ in levels] for name, levels in predictions.items()}


def expected_weights(outputs: Outputs, gt_index: torch.Tensor, targets: list) -> torch.Tensor:
    """The weight of each anchor, one after another."""
    labels = [[int(targets[n]["labels"][m]) if m >= 0 else None for m in row] for n, row in enumerate(gt_index)]
    found = [label for row in labels for label in row if label is not None]
    factors = class_factors(torch.tensor([float(found.count(k)) for k in range(3)])).sqrt().tolist()
    mean = sum(factors[label] for label in found) / len(found)
    return torch.tensor([[1.0 if label is None else factors[label] / mean for label in row] for row in labels])


@pytest.mark.parametrize(("family", "conventions"), DENSE)
def test_the_gradient_of_each_anchor_is_multiplied_by_the_weight_of_its_class(family, conventions):
    detector = small(family, conventions=conventions).eval()
    outputs = detector(IMAGES)
    weights = expected_weights(outputs, detector.assign(outputs, MANY), MANY)
    assert weights.unique().numel() == 3, "the background and two classes"
    plain_losses, plain = gradients(detector, MANY, balanced=False)
    losses, balanced = gradients(detector, MANY, balanced=True)
    torch.testing.assert_close(losses, plain_losses)
    sizes = [anchors[..., 0].numel() for anchors in outputs.anchors]
    for name in ("class_logits", "box_raw"):
        for own, other, part in zip(balanced[name], plain[name], weights.split(sizes, dim=1), strict=True):
            torch.testing.assert_close(own, other * part.reshape(*own.shape[:-1], 1))
    for own, other in zip(balanced["extra"], plain["extra"], strict=True):
        torch.testing.assert_close(own, other * weights)
    assert not torch.allclose(
        torch.cat([level.flatten() for level in balanced["class_logits"]]),
        torch.cat([level.flatten() for level in plain["class_logits"]]),
    )


@pytest.mark.parametrize(
    "targets",
    [
        [{"boxes": target["boxes"], "labels": torch.zeros_like(target["labels"])} for target in MANY],
        [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2,
    ],
    ids=["one class", "no object"],
)
def test_where_there_is_nothing_to_balance_the_gradients_stay(targets):
    detector = small("gfl").eval()
    _, plain = gradients(detector, targets, balanced=False)
    _, balanced = gradients(detector, targets, balanced=True)
    torch.testing.assert_close(balanced, plain)


def test_a_learner_balances_the_own_losses_alone_and_of_labelled_images_alone():
    detector = small("fcos").eval()

    def trained(*, class_balance: bool, labelled: list[bool] | None) -> torch.Tensor:
        detector.zero_grad()
        losses = Learner(detector, class_balance=class_balance).eval()(IMAGES, MANY, labelled=labelled)
        sum(losses.values()).backward()
        return torch.cat([weight.grad.flatten() for weight in detector.parameters() if weight.grad is not None])

    assert not torch.allclose(trained(class_balance=True, labelled=None), trained(class_balance=False, labelled=None))
    of_one_class = [False, True]  # the second image has one class alone
    torch.testing.assert_close(
        trained(class_balance=True, labelled=of_one_class), trained(class_balance=False, labelled=of_one_class)
    )


def test_a_detector_without_dense_classes_is_refused():
    with pytest.raises(UserError, match=r"class_balance=true balances .* has the classes of proposals, in its"):
        Learner(small("faster_rcnn"), class_balance=True)
    assert Learner(small("faster_rcnn")).class_balance is False
