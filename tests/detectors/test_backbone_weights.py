"""Weights of the backbone from a file."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from understudy.detectors import build_detector
from understudy.errors import UserError


def test_backbone_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    source = mobilenet_v2(width_mult=0.35)
    file = tmp_path / "weights.pt"
    torch.save({key: value.half() for key, value in source.state_dict().items()}, file)
    detector = build_detector("retinanet_mobilenet_v2", 2, width_mult=0.35, neck_channels=32, backbone_weights=file)
    loaded = detector.network.backbone.body["4"].state_dict()
    for key, value in source.features[4].state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(loaded[key], value.half().float())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in detector.network.backbone.body.modules())

    with pytest.raises(UserError, match="is the width the same"):
        build_detector("retinanet_mobilenet_v2", 2, width_mult=0.5, neck_channels=32, backbone_weights=file)
    with pytest.raises(UserError, match="neither a file nor a name"):
        build_detector("fcos_resnet18", 2, backbone_weights="IMAGENET")
    (tmp_path / "broken.pt").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        build_detector("fcos_resnet18", 2, backbone_weights=tmp_path / "broken.pt")


@pytest.mark.parametrize("width", ["1.0", "0.35"])
def test_real_imagenet_weights_load(shared, width):
    file = next((shared / "data/weights").glob(f"mobilenetv2_{width}_imagenet*.pt"))
    detector = build_detector(
        "fcos_mobilenet_v2",
        3,
        width_mult=float(width),
        neck_channels=32,
        backbone_weights=file,
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
    )
    assert detector(torch.rand(1, 3, 64, 64)).stages[-1].std() > 0.1
