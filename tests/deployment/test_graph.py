"""The graph of a detector detects what the detector detects, at any size."""

import pytest
import torch
from exported_files import facts
from small_detectors import small
from torch.nn import functional as F

from understudy.deployment.agreement import Agreement
from understudy.deployment.graph import graph_of
from understudy.errors import UserError

FAMILIES = [
    (name, conventions)
    for name in ("retinanet_mobilenet_v2", "fcos_mobilenet_v2", "gfl_resnet18", "faster_rcnn_mobilenet_v2")
    for conventions in ("torchvision", "mmdet")
    if not (name.startswith("gfl") and conventions == "torchvision")
]


@pytest.fixture(scope="module", params=FAMILIES, ids="-".join)
def confident(request):
    """A detector with scores all over 0..1 and boxes of all sizes, none like another."""
    name, conventions = request.param
    detector = small(name, conventions=conventions)
    for path, layer in detector.network.named_modules():
        if path.endswith(("cls_logits", "bbox_ctrness")):
            torch.nn.init.normal_(layer.weight, std=0.2)
            torch.nn.init.constant_(layer.bias, -2.0)
        if path.endswith(("bbox_reg", "bbox_pred", "cls_score")):
            torch.nn.init.normal_(layer.weight, std=0.1)
    return detector.eval()


@pytest.mark.parametrize("size", [(64, 96), (75, 101)], ids=["a multiple of 32", "to be padded"])
@torch.no_grad()
def test_the_same_detections(confident, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    padded = F.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
    expected = confident.detect(confident(padded, [size] * 2), [size] * 2)
    found = graph_of(confident)(images)
    agreement = Agreement()
    for number, own in enumerate(expected):
        count = int(found.count[number])
        assert (found.labels[number, count:] == -1).all()
        assert not found.scores[number, count:].any()
        assert not found.boxes[number, count:].any()
        assert count == len(own["scores"]) > 2
        rows = {name: getattr(found, name)[number, :count] for name in ("boxes", "scores", "labels")}
        agreement.add(own, rows, facts(found.scores.shape[1]))
    assert agreement.others == 0, str(agreement)
    assert agreement.same > 0.9 * agreement.detections


@torch.no_grad()
def test_bytes_are_pixels_times_255(confident):
    images = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
    graph = graph_of(confident)
    for of_bytes, of_floats in zip(graph(images), graph(images / 255), strict=True):
        torch.testing.assert_close(of_bytes, of_floats)


@torch.no_grad()
def test_raw_predictions_are_those_of_the_record(confident):
    if confident.spec.two_stage:
        with pytest.raises(UserError, match="Leave out --raw"):
            graph_of(confident, raw=True)
        return
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    outputs = confident(images)
    boxes, scores = graph_of(confident, raw=True)(images)
    own = torch.cat([level.flatten(1, 3) for level in confident.decode(outputs)], dim=1)
    own[..., 0::2], own[..., 1::2] = own[..., 0::2].clamp(0, 96), own[..., 1::2].clamp(0, 64)
    torch.testing.assert_close(boxes, own)
    assert scores.shape == (*own.shape[:2], 3)
    best = confident.detect(outputs, [(64, 96)])[0]["scores"]
    assert float(best[0]) == pytest.approx(float(scores.max()), abs=1e-6)
