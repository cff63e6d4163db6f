"""RetinaNet and FCOS opened over torchvision: the record, and parity with the library's own forward."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS, RetinaNet, ssd300_vgg16
from torchvision.models.detection.anchor_utils import AnchorGenerator

from understudy.detectors import BACKBONES, DETECTORS, build_detector, open_detector, plain
from understudy.errors import UserError
from understudy.outputs import flatten_levels, unflatten_levels

SIZES = [(96, 128), (96, 112)]  # the second image is padded
OBJECTS = {
    "objects": [[8.0, 12, 60, 80], [30, 30, 96, 90], [2, 2, 20, 14]],
    "one pixel": [[40.0, 40, 41, 41]],
    "none": [],
}


def small(name: str, **options):
    torch.manual_seed(0)
    options = {"neck_channels": 32, "shorter_side": 96, "longer_side": 128, **options}
    detector = build_detector(name, 5, **options)
    # Scores worth comparing: the focal-loss prior would leave nothing above the threshold.
    nn.init.constant_(detector.network.head.classification_head.cls_logits.bias, -1.5)
    return detector


def photos() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two images as a list, as torchvision takes them, and as our padded batch."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    batch = torch.full((2, 3, 96, 128), 0.7)  # whatever lies in the padding must not matter
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, batch


def targets(boxes: list[list[float]]) -> list[dict[str, torch.Tensor]]:
    first = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes))}
    second = {"boxes": torch.tensor([[5.0, 40, 70, 88]]), "labels": torch.tensor([4])}
    return [first, second]


def batch_norm_in_eval(detector) -> None:
    """Losses are compared on the same statistics; the network itself stays in training mode."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


FAMILIES = ["retinanet_resnet18", "fcos_mobilenet_v2"]


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_the_librarys_own(name, objects):
    detector = small(name, width_mult=0.35 if "mobilenet" in name else 1.0)
    batch_norm_in_eval(detector)
    images, batch = photos()
    truth = targets(OBJECTS[objects])
    wanted = detector.network(copy.deepcopy(images), copy.deepcopy(truth))

    outputs = detector(batch, SIZES)
    found = detector.loss(outputs, truth, detector.assign(outputs, truth))

    assert found.keys() == wanted.keys()
    for loss, value in wanted.items():
        torch.testing.assert_close(found[loss], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_images_without_objects(name):
    detector = small(name)
    batch_norm_in_eval(detector)
    images, batch = photos()
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    wanted = detector.network(copy.deepcopy(images), copy.deepcopy(nothing))
    outputs = detector(batch, SIZES)
    gt_index = detector.assign(outputs, nothing)
    assert (gt_index == -1).all()
    for loss, value in detector.loss(outputs, nothing, gt_index).items():
        torch.testing.assert_close(value, wanted[loss])


@pytest.mark.parametrize("name", FAMILIES)
def test_detections_are_the_librarys_own(name):
    detector = small(name).eval()
    images, batch = photos()
    with torch.no_grad():
        wanted = detector.network(images)
        found = detector.detect(detector(batch, SIZES), SIZES)
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(theirs["boxes"]) > 20
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_is_the_same_in_train_and_eval(name):
    detector = small(name, norm="frozen")
    _, batch = photos()
    in_train = detector.train()(batch, SIZES)
    in_eval = detector.eval()(batch, SIZES)
    for field in ("stages", "features", "class_logits", "box_raw", "anchors"):
        for one, other in zip(getattr(in_train, field), getattr(in_eval, field), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_those_of_the_spec(name):
    detector = small(name)
    spec = detector.spec
    _, batch = photos()
    outputs = detector(batch, SIZES)
    heights = [96 // stride for stride in spec.strides[:3]]
    assert [feature.shape[-2] for feature in outputs.features[:3]] == heights
    assert tuple(feature.shape[1] for feature in outputs.features) == spec.channels == (32,) * 5
    assert tuple(stage.shape[1] for stage in outputs.stages) == spec.stage_channels
    assert spec.strides == (8, 16, 32, 64, 128)
    assert spec.stage_strides == (8, 16, 32)
    for feature, logits, box, anchors in zip(
        outputs.features, outputs.class_logits, outputs.box_raw, outputs.anchors, strict=True
    ):
        cells = feature.shape[-2:]
        assert logits.shape == (2, *cells, spec.num_anchors, 5)
        assert box.shape == (2, *cells, spec.num_anchors, 4)
        assert anchors.shape == (*cells, spec.num_anchors, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_zero_after_normalisation(name):
    detector = small(name).eval()
    images, batch = photos()
    torch.testing.assert_close(detector._normalise(batch, SIZES), detector.network.transform(images)[0].tensors)
    with torch.no_grad():
        alone = detector(batch, SIZES).features[0][1, :, :, :10]
        batch[1, :, :, 112:] = 0.1  # what lies in the padding does not matter
        torch.testing.assert_close(detector(batch, SIZES).features[0][1, :, :, :10], alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_are_the_same_images(name):
    detector = small(name).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(detector(pixels).class_logits[0], detector(pixels / 255).class_logits[0])


def test_unflatten_undoes_flatten_and_is_a_view():
    levels = [(4, 6), (2, 3), (1, 2)]
    flat = torch.arange(2 * (24 + 6 + 2) * 3 * 5.0).reshape(2, -1, 5)
    parts = unflatten_levels(flat, levels, 3)
    assert all(part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for part in parts)
    assert torch.equal(flatten_levels(parts), flat)
    with pytest.raises(ValueError, match="expected 64 anchors"):
        unflatten_levels(flat, levels, 2)


def test_the_order_of_cells_is_row_then_column_then_anchor():
    detector = small("retinanet_resnet18")
    _, batch = photos()
    anchors = detector(batch, SIZES).anchors[1]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centres[2, 3], torch.tensor([48.0, 32.0]).expand(9, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_encoded_boxes_gives_the_boxes(name):
    detector = small(name)
    _, batch = photos()
    outputs = detector(batch, SIZES)
    anchors = torch.cat([level.flatten(0, 2) for level in outputs.anchors])
    boxes = anchors + torch.tensor([-3.0, -2.0, 5.0, 4.0])
    if name.startswith("retinanet"):
        codes = detector.network.head.regression_head.box_coder.encode_single(boxes, anchors)
    else:
        codes = detector.network.box_coder.encode(anchors, boxes)
    sizes = outputs.level_sizes
    raw = unflatten_levels(codes.expand(2, -1, -1), sizes, detector.spec.num_anchors)
    decoded = detector.decode(type(outputs)(**{**{f: getattr(outputs, f) for f in outputs.__slots__}, "box_raw": raw}))
    torch.testing.assert_close(flatten_levels(decoded), boxes.expand(2, -1, -1), rtol=1e-4, atol=1e-3)


def test_fcos_assigns_the_smallest_object_and_only_near_its_centre():
    detector = small("fcos_mobilenet_v2")
    _, batch = photos()
    outputs = detector(batch, SIZES)
    truth = targets([[0.0, 0, 60, 60], [16, 16, 44, 44]])
    gt_index = detector.assign(outputs, truth)[0]
    finest = gt_index[: 12 * 16].view(12, 16)
    assert finest[4, 4] == 1  # point (32, 32): inside both, the smaller one wins
    assert finest[1, 1] == -1  # point (8, 8): inside the first, far from its centre
    assert (gt_index >= 0).sum() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_takes_any_features(name):
    detector = small(name).eval()
    _, batch = photos()
    with torch.no_grad():
        outputs = detector(batch, SIZES)
        again = detector.head(detector.neck(outputs.stages), (96, 128))
    for one, other in zip(outputs.class_logits, again.class_logits, strict=True):
        torch.testing.assert_close(one, other)
    features = [feature.requires_grad_() for feature in again.features]
    flatten_levels(detector.head(features, (96, 128)).class_logits).sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features[:3])


@pytest.mark.parametrize("family", [RetinaNet, FCOS])
def test_any_torchvision_detector_opens(family):
    """A backbone without a pyramid, own anchors, own number of classes; the user's object stays the same."""
    body = mobilenet_v2(width_mult=0.35).features
    body.out_channels = 1280
    ratios = ((0.5, 1.0),) if family is RetinaNet else ((1.0,),)
    network = family(body, num_classes=3, anchor_generator=AnchorGenerator(((32,),), ratios), min_size=64, max_size=64)
    before = copy.deepcopy(network.state_dict())
    detector = open_detector(network, "mine")
    assert detector.network is network
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert detector.spec.strides == (32,)
    assert detector.spec.num_anchors == len(ratios[0])
    assert detector.spec.num_classes == 3
    assert detector.spec.name == "mine"
    network.eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (wanted,) = network([image])
        (found,) = detector.detect(detector(image[None]), [(64, 64)])
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key])


def test_other_networks_are_refused_by_name():
    network = ssd300_vgg16(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match=r"RetinaNet, FCOS or FasterRCNN, or a GFL, got .*SSD"):
        open_detector(network)


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "resnext50_32x4d", "mobilenet_v2"])
def test_backbones_by_name(backbone):
    detector = build_detector(f"fcos_{backbone}", 2, neck_channels=24)
    assert detector.spec.channels == (24,) * 5
    assert detector.spec.stage_strides == (8, 16, 32)
    assert detector.spec.name == f"fcos_{backbone}"


def test_every_name_is_listed():
    assert len(BACKBONES) == 26
    assert set(DETECTORS) == {f"{family}_{name}" for family in plain.FAMILIES for name in BACKBONES}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcos_resnet18", {"anchor_scale": 4.0}, "anchor_scale=4 is for detectors with anchors"),
        ("faster_rcnn_resnet18", {"head_norm": "group"}, "a faster_rcnn has none to normalise"),
        ("retinanet_resnet18", {"head_norm": "batch"}, "head_norm is 'group' or None, got 'batch'"),
        ("gfl_resnet18", {"anchor_scale": -1.0}, "anchor_scale is positive"),
    ],
)
def test_options_that_would_change_nothing_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        build_detector(name, 2, **options)


def test_all_faults_of_a_detector_at_once():
    with pytest.raises(UserError) as failure:
        build_detector("retinanet_resnet5O", 0, neck_channels=0, norm="bacth", frozen_stages=9)
    message = str(failure.value)
    for part in ("did you mean 'retinanet_resnet50'", "num_classes", "neck_channels", "norm", "frozen_stages"):
        assert part in message


@pytest.mark.parametrize(("width_mult", "channels"), [(0.5, (64, 128, 256)), (1.5, (192, 384, 768))])
def test_any_width(width_mult, channels):
    assert build_detector("fcos_resnet18", 2, neck_channels=16, width_mult=width_mult).spec.stage_channels == channels


def test_frozen_stages_keep_weights_and_statistics():
    detector = build_detector("fcos_mobilenet_v2", 2, neck_channels=32, width_mult=0.35, frozen_stages=1).train()
    body = detector.network.backbone.body
    assert not any(parameter.requires_grad for parameter in body["3"].parameters())
    assert all(parameter.requires_grad for parameter in body["4"].parameters())
    before = body["0"][1].running_mean.clone()
    detector(torch.rand(2, 3, 64, 64))
    assert torch.equal(body["0"][1].running_mean, before)
    assert body["4"].training


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


@pytest.mark.parametrize("name", FAMILIES)
def test_under_autocast_anchors_stay_exact_and_losses_are_float32(name):
    detector = small(name)
    _, batch = photos()
    truth = targets(OBJECTS["objects"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector(batch, SIZES)
        assert outputs.class_logits[0].dtype == torch.bfloat16
        assert outputs.anchors[0].dtype == torch.float32
        losses = detector.loss(outputs, truth, detector.assign(outputs, truth))
        detector.detect(outputs, SIZES)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
