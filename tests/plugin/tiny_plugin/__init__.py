"""A package beside understudy: a family of detectors in the style of YOLO, and a method."""

from understudy.detectors.families import Family

FAMILY = Family(
    name="tinyyolo",
    title="TinyYOLO",
    networks="tiny_plugin.network",
    openers="tiny_plugin.detector",
    backbones=("d33_w25", "d67_w50"),  # depth and width in percent
    refused={"anchor_scale": "it scales anchors, and a TinyYOLO predicts at points"},
    facts={"points": True},
    usual={"strides": (8, 16, 32), "num_anchors": 1, "box_code": "distributions", "box_size": 4 * 9},
    weights={"frs": {"feature": 0.5, "class": 0.25}},
)
