"""Non-maximum suppression as one operator, which PyTorch runs and ONNX has as ``NonMaxSuppression``.

torchvision's own ``batched_nms`` chooses between two algorithms by the number of boxes, which no graph can hold.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("understudy::kept", mutates_args=())
def kept(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Find the boxes that no better box of the same class overlaps.

    Args:
        boxes: (B, P, 4), xyxy.
        scores: (B, C, P) of each box in each class; at most 0: the box is not of this class.
        threshold: IoU above which the weaker of two boxes is dropped.
        most: boxes that are kept of a class, the best ones.

    Returns:
        (B, P) bool.
    """
    found = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for own_boxes, own_scores, row in zip(boxes, scores, found, strict=True):
        for of_class in own_scores:
            candidates = torch.where(of_class > 0)[0]
            best = nms(own_boxes[candidates], of_class[candidates], threshold)[:most]
            row[candidates[best]] = True
    return found


@kept.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def in_onnx(boxes: Any, scores: Any, threshold: float, most: int) -> Any:
    """Write :func:`kept` in ONNX's operators."""
    from onnxscript import opset18

    op: Any = opset18  # its types do not know constants
    one, none = op.Constant(value_int=1), op.Constant(value_int=0)
    limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[threshold]), op.Constant(value_floats=[0.0])
    boxes = op.Reshape(boxes, op.Constant(value_ints=[0, -1, 4]))  # some runtimes lose the 4 on the way
    chosen = op.NonMaxSuppression(boxes, scores, *limits)  # (M, 3): image, class, box
    places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    # Of integers, not of bools: more runtimes scatter them.
    marked = op.ScatterND(op.Expand(none, op.Shape(boxes, end=2)), places, op.Expand(one, op.Shape(places, end=1)))
    return op.Cast(marked, to=9)  # bool


TRANSLATIONS: dict[Any, Any] = {torch.ops.understudy.kept.default: in_onnx}
"""What ``torch.onnx.export`` needs to know of the operators here."""
