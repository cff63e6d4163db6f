"""The choice of detections, on a few boxes."""

from types import SimpleNamespace

import torch

from understudy.networks.postprocessing import choose_detections, postprocess_levels


def test_quality_multiplies_a_score_once_the_candidates_are_chosen():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10], [200, 0, 210, 10]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.06], [0.7, 0.0], [0.95, 0.0]])
    quality = torch.tensor([0.1, 1.0, 1.0, 1.0])
    rules = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections": 100}
    found = choose_detections([(scores, quality, boxes.__getitem__)], (100, 100), candidates=10, **rules)
    # The first is outdone by the third, which lies on it; the last lies outside of the image.
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.7, 0.06]))
    assert found["labels"].tolist() == [0, 0, 1]
    assert found["boxes"][2].tolist() == [50, 50, 60, 60]
    fewer = choose_detections([(scores, quality, boxes.__getitem__)], (100, 100), candidates=2, **rules)
    torch.testing.assert_close(fewer["scores"], torch.tensor([0.09]))  # of the best two only the first is visible


def test_every_image_and_level_is_read_once():
    """Two images and two levels, one of which has two anchors; every anchor has one box, of its own."""
    network = SimpleNamespace(score_thresh=0.5, nms_thresh=0.5, topk_candidates=10, detections_per_img=2)
    logits = [torch.tensor([[[1.0], [2.0]], [[-1.0], [0.5]]]), torch.tensor([[[3.0]], [[4.0]]])]
    anchors = [torch.tensor([[0.0, 0, 8, 8], [20, 0, 28, 8]]), torch.tensor([[40.0, 0, 70, 20]])]
    shifts = [torch.zeros(2, 2, 1), torch.tensor([[[0.0]], [[2.0]]])]
    outputs = {"cls_logits": logits, "bbox_regression": shifts}
    found = postprocess_levels(network, lambda raw, boxes: boxes + raw, outputs, [anchors] * 2, [(60, 60), (60, 80)])
    assert found[0]["boxes"].tolist() == [[40, 0, 60, 20], [20, 0, 28, 8]]  # clipped to its own image
    assert found[1]["boxes"].tolist() == [[42, 2, 72, 22], [20, 0, 28, 8]]
    torch.testing.assert_close(found[0]["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    outputs["bbox_ctrness"] = [torch.zeros(2, 2, 1), torch.full((2, 1, 1), -9.0)]
    found = postprocess_levels(network, lambda raw, boxes: boxes + raw, outputs, [anchors] * 2, [(60, 60), (60, 80)])
    torch.testing.assert_close(found[0]["scores"], torch.tensor([2.0, 1.0]).sigmoid() / 2)
