"""Choice of the detections of dense heads, as in mmdet.

Letters of the shapes: N images, R_l anchors of a level, K classes, D box outputs, P chosen anchors, M detections.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image


def postprocess_levels(
    network: Any,
    decode: Callable[[Tensor, Tensor], Tensor],
    head_outputs: Mapping[str, Sequence[Tensor]],
    anchors: Sequence[Sequence[Tensor]],
    image_shapes: Sequence[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """Choose the detections of each image; see :func:`choose_detections`.

    Args:
        network: has torchvision's ``score_thresh``, ``nms_thresh``, ``topk_candidates`` and ``detections_per_img``.
        decode: computes boxes (P, 4) from box outputs (P, D) and anchors (P, 4).
        head_outputs: per level ``cls_logits`` (N, R_l, K), ``bbox_regression`` (N, R_l, D), and for a head with
            centre-ness ``bbox_ctrness`` (N, R_l, 1).
        anchors: per image and level (R_l, 4).
        image_shapes: height and width of each image without padding, to which boxes are clipped.

    Returns:
        Per image ``boxes`` (M, 4), ``scores`` (M,), best first, and ``labels`` (M,).
    """
    found = []
    for image, (own_anchors, size) in enumerate(zip(anchors, image_shapes, strict=True)):
        own = {name: [level[image] for level in levels] for name, levels in head_outputs.items()}
        scores = [logits.float().sigmoid() for logits in own["cls_logits"]]
        quality = [logits.float().sigmoid().squeeze(-1) for logits in own.get("bbox_ctrness", ())]
        boxes = [
            partial(_boxes_at, decode, raw, level)
            for raw, level in zip(own["bbox_regression"], own_anchors, strict=True)
        ]
        found.append(
            choose_detections(
                list(zip(scores, quality or [None] * len(scores), boxes, strict=True)),
                size,
                score_threshold=network.score_thresh,
                nms_threshold=network.nms_thresh,
                candidates=network.topk_candidates,
                detections=network.detections_per_img,
            )
        )
    return found


def _boxes_at(decode: Callable[[Tensor, Tensor], Tensor], raw: Tensor, anchors: Tensor, places: Tensor) -> Tensor:
    return decode(raw[places].float(), anchors[places])


def choose_detections(
    levels: Sequence[tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]],
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    candidates: int,
    detections: int,
) -> dict[str, Tensor]:
    """Choose the detections of an image: score threshold, best of each level, NMS, best overall.

    Args:
        levels: per level the scores (R_l, K); qualities (R_l,) that multiply the scores of the chosen candidates, or
            None; and a function that computes the boxes (P, 4) of the anchors at places (P,).
        image_size: height and width in pixels, to which boxes are clipped. Boxes that are empty then are dropped.
        score_threshold: the score of a candidate is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level.
        detections: most boxes of the image.

    Returns:
        ``boxes`` (M, 4), ``scores`` (M,), best first, and ``labels`` (M,).
    """
    found = []
    for scores, quality, boxes_at in levels:
        place, labels = torch.where(scores > score_threshold)
        # Not a stable sort, as in mmdet: the same candidates are chosen of equal scores, such as saturated ones.
        chosen, order = scores[place, labels].sort(descending=True)
        chosen, order = chosen[:candidates], order[:candidates]
        place, labels = place[order], labels[order]
        found.append((boxes_at(place), chosen if quality is None else chosen * quality[place], labels))
    boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
    boxes = clip_boxes_to_image(boxes, image_size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
    kept = batched_nms(boxes, scores, labels, nms_threshold)[:detections]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
