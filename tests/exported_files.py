"""Exported files and what they state, for tests of what runs them."""

from understudy.evaluation.runtimes import Facts


def facts(detections: int = 100) -> Facts:
    """Facts of a file, of which a comparison reads the limits of its detections."""
    return Facts(
        classes=("a", "b", "c"),
        category_ids=(1, 2, 3),
        detector="small",
        conventions="torchvision",
        input="float32",
        raw=False,
        size=None,
        batch=None,
        resize={"shorter_side": 64, "longer_side": 96},
        mean=(0.5, 0.5, 0.5),
        score_threshold=0.05,
        nms_threshold=0.5,
        detections=detections,
        AP=None,
        opset=18,
        licence=None,
    )
