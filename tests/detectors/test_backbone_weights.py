"""Weights of the backbone from a file, and from torchvision without a network."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, mobilenet_v2

from understudy.detectors import build_detector
from understudy.detectors.backbone_weights import describe_download
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
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.network.backbone.body.modules())

    with pytest.raises(UserError, match="is the width the same"):
        build_detector("retinanet_mobilenet_v2", 2, width_mult=0.5, neck_channels=32, backbone_weights=file)
    with pytest.raises(UserError, match="neither a file nor a name"):
        build_detector("fcos_resnet18", 2, backbone_weights="IMAGENET")
    (tmp_path / "broken.pt").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        build_detector("fcos_resnet18", 2, backbone_weights=tmp_path / "broken.pt")


def test_files_without_usable_weights(tmp_path):
    """None of the messages repeats torch's advice to execute the file."""
    file, options = tmp_path / "weights.pt", {"width_mult": 0.35, "neck_channels": 16}

    def message() -> str:
        with pytest.raises(UserError) as refused:
            build_detector("fcos_mobilenet_v2", 2, **options, backbone_weights=file)
        assert "weights_only" not in str(refused.value)
        return str(refused.value)

    file.write_bytes(b"")
    assert message().startswith(f"{file} cannot be read as weights: it is empty, damaged, or not a file of torch.save")
    torch.save({"conv": nn.Conv2d(1, 1, 1)}, file)
    assert "contains more than tensors. Nothing in it was executed. Save the state dict alone" in message()
    file.write_text("<html>404</html>")
    assert "cannot be read as weights" in message()
    state = mobilenet_v2(width_mult=0.35).state_dict()
    state["features.0.0.weight"][0] = torch.nan
    torch.save(state, file)
    assert message().endswith("cannot be used. Use another file:\n  - 0.0.weight: contains nan or infinity")


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


@pytest.mark.parametrize(
    ("backbone", "first"),
    [("resnet18", "conv1.weight"), ("mobilenet_v2", "0.0.weight"), ("regnet_x_400mf", "stem.0.weight")],
)
def test_weights_for_bgr_images_compute_the_same_of_rgb_images(tmp_path, backbone, first):
    name, options = f"fcos_{backbone}", {"width_mult": 0.35, "neck_channels": 16, "norm": "frozen"}
    caffe = build_detector(name, 2, **options, image_mean=(0.4, 0.45, 0.48), image_std=(1 / 255,) * 3).network
    torch.save(caffe.backbone.body.state_dict(), tmp_path / "caffe.pt")
    options |= {"image_mean": (0.48, 0.45, 0.4), "image_std": (1 / 255,) * 3}  # always red first
    options |= {"backbone_weights": tmp_path / "caffe.pt"}
    found = build_detector(name, 2, **options, channel_order="bgr").network
    assert torch.equal(found.backbone.body.state_dict()[first], caffe.backbone.body.state_dict()[first].flip(1))
    image = torch.rand(1, 3, 64, 64)
    expected = caffe.backbone.body(caffe.transform.normalize(image.flip(1)))
    for level, of_found in found.backbone.body(found.transform.normalize(image)).items():
        torch.testing.assert_close(
            of_found, expected[level], rtol=1e-3, atol=1e-3 * float(expected[level].detach().abs().max())
        )


def test_an_order_of_colours_without_effect_is_refused():
    with pytest.raises(UserError, match=r"channel_order=bgr has no effect without backbone_weights"):
        build_detector("fcos_resnet18", 2, channel_order="bgr")


def test_torchvisions_weights_are_for_rgb_images(monkeypatch):
    monkeypatch.setattr("understudy.detectors.backbone_weights._torchvision_weights", lambda *_: {})
    with pytest.raises(UserError, match=r"torchvision's weights expect RGB images. Leave channel_order out"):
        build_detector("fcos_resnet18", 2, channel_order="bgr", backbone_weights="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("error", "stored", "message"),
    [
        (OSError("Network is unreachable"), False, r"could not download IMAGENET1K_V1 for resnet18 \(OSError: Network"),
        (
            RuntimeError("invalid hash value"),
            False,
            r"could not download .* \(RuntimeError: invalid hash value\). Fetch",
        ),
        (EOFError("Ran out of input"), True, r"resnet18-.*.pth, where torchvision stores .* is damaged .* Delete it"),
    ],
)
def test_weights_that_torchvision_cannot_load(error, stored, message, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fails)
    url = urlsplit(ResNet18_Weights.IMAGENET1K_V1.url)
    (tmp_path / "checkpoints").mkdir()
    if stored:
        (tmp_path / "checkpoints" / Path(url.path).name).write_bytes(b"")
    assert describe_download("resnet18", "IMAGENET1K_V1").endswith("stored, 45 MB" if stored else "once, 45 MB")
    with pytest.raises(UserError, match=message) as stop:
        build_detector("fcos_resnet18", 2, backbone_weights="IMAGENET1K_V1")
    assert "detector.backbone_weights=FILE, or null for random initialisation" in str(stop.value)
    assert socket.getdefaulttimeout() is None
