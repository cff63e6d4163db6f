"""A quantised detector computes what integers compute; its ranges follow its inputs; its network stays plain."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pairs import FAMILIES, OBJECTS, tiny_detector, tiny_images
from torch import nn

from understudy import Quantiser, UserError, build_detector
from understudy.deployment import int8
from understudy.learner import Learner
from understudy.quantisation import IN_FLOAT, SPAN, quantised_input, quantised_layers, quantised_weight


def one_layer(layer: nn.Module) -> SimpleNamespace:
    """As much of a detector as a Quantiser reads: a network with one layer, and one that emits scores."""
    network = nn.ModuleDict({"layer": layer, "cls_logits": nn.Conv2d(1, 1, 1)})
    return SimpleNamespace(network=network, spec=SimpleNamespace(name="little"))


def observed(family: str, **options):
    """A tiny detector and its Quantiser, which has seen one batch."""
    detector = tiny_detector(family, 16, seed=1)
    if options:
        settings = {"fc_channels": 16} if detector.spec.two_stage else {}
        size = {"neck_channels": 16, "width_mult": 0.35, "settings": settings}
        detector = build_detector(f"{family}_mobilenet_v2", 3, **size, **options)
    detector.eval()
    quantiser = Quantiser(detector, start=1)
    for layer in quantiser.layers.values():
        layer.train()  # it observes in training alone; batch normalisation keeps its statistics
    outputs = detector(tiny_images(), targets=OBJECTS)
    if detector.spec.two_stage:
        detector.roi(outputs.features, [each["boxes"] for each in OBJECTS])
    quantiser.step()
    detector.eval()
    return detector, quantiser


def in_integers(layer, inputs: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A layer's output in integer arithmetic (exact in float64), with scales applied at the end."""
    scale = max(high - low, 1e-30) / 255
    zero = round(-low / scale)
    numbers = (inputs.double() / scale).round().add(zero).clamp(0, 255)
    steps = layer.weight.double().abs().flatten(1).amax(1).clamp(min=1e-30) / 127
    view = (-1, *[1] * (layer.weight.dim() - 1))
    integers = (layer.weight.double() / steps.view(view)).round()
    if isinstance(layer, nn.Linear):
        return F.linear(numbers - zero, integers) * steps * scale + (0 if layer.bias is None else layer.bias)
    sums = F.conv2d(numbers - zero, integers, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    bias = torch.zeros(len(sums[0])) if layer.bias is None else layer.bias
    return sums * (steps * scale)[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
@torch.no_grad()
def test_every_quantised_layer_computes_in_integers_and_those_that_emit_scores_and_boxes_in_float(family, conventions):
    detector, quantiser = observed(family, conventions=conventions)
    ranges, compared = quantiser.ranges, dict[str, float]()

    def compare(name, layer, inputs, output):
        if name in ranges:
            expected = in_integers(layer, inputs, *ranges[name])
        else:
            assert name.rpartition(".")[2] in IN_FLOAT
            expected = type(layer).forward(layer, inputs)
        wrong = (output - expected).abs() > 1e-4 * expected.abs().max()
        compared[name] = float(wrong.float().mean())  # an input between two levels may be rounded to either

    for name, layer in detector.network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, args, output, name=name: compare(name, layer, *args, output))
    outputs = detector(tiny_images())
    if detector.spec.two_stage:
        detector.roi(outputs.features, [each["boxes"] for each in OBJECTS])
    assert len(compared) == len(quantiser.layers) + len(compared.keys() - quantiser.layers.keys())
    assert compared.keys() >= quantiser.layers.keys() == ranges.keys()
    assert {name: share for name, share in compared.items() if share > 0.05} == {}


@torch.no_grad()
def test_weights_that_are_rounded_to_int8_give_the_same_outputs():
    detector, quantiser = observed("retinanet")
    before = detector(tiny_images())
    changed = 0
    for layer in quantiser.layers.values():
        steps = layer.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        rounded = (layer.weight / steps).round().to(torch.int8).float() * steps
        changed += not torch.allclose(rounded, layer.weight, rtol=1e-5)
        layer.weight.copy_(rounded)
    after = detector(tiny_images())
    assert changed == len(quantiser.layers)
    for left, right in zip(after.class_logits, before.class_logits, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


def test_folding_a_batch_normalisation_changes_no_integer():
    weight, factor = torch.randn(4, 3, 3, 3), torch.tensor([2.0, -0.3, 1e-3, -5.0])[:, None, None, None]
    torch.testing.assert_close(quantised_weight(weight * factor), quantised_weight(weight) * factor)
    assert not quantised_weight(torch.zeros(2, 3)).any()


def test_the_gradient_passes_the_rounding_and_ends_beyond_the_range():
    inputs = torch.tensor([-0.6, -0.5, 0.004, 2.0, 2.1], requires_grad=True)
    quantised = quantised_input(inputs, torch.tensor(0.01), torch.tensor(50, dtype=torch.int32))
    torch.testing.assert_close(quantised, torch.tensor([-0.5, -0.5, 0.0, 2.0, 2.05]))
    quantised.sum().backward()
    assert inputs.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(3, 5, requires_grad=True)
    quantised_weight(weight).sum().backward()
    assert weight.grad.tolist() == [[1] * 5] * 3


def test_mixed_precision_keeps_its_type_and_rounds_in_float32():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    Quantiser(one_layer(layer), ranges={"layer": [0.0, 3.0]})
    inputs = torch.rand(1, 1, 8, 8).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(inputs)
    levels = (inputs.float() * 255 / 3).round() * 3 / 255
    expected = F.conv2d(levels.to(torch.bfloat16), layer.weight.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)
    assert not torch.equal(levels.to(torch.bfloat16), inputs)


def test_a_range_is_the_mean_of_all_calls_of_a_step_over_the_last_steps():
    detector = one_layer(nn.Linear(1, 1))
    layer, quantiser = detector.network["layer"], Quantiser(detector, start=SPAN + 2)
    for step in range(2):  # too early
        assert quantiser.ranges == {}, step
        layer(torch.tensor([[1e6]]))
        quantiser.step()
    low, high = 0.0, 0.0
    for step in range(1, SPAN + 51):
        inputs = [-1.0 * step, 3.0 * step, 0.5]  # as of three levels
        for value in inputs:
            layer(torch.tensor([[value]]))
        assert quantiser.active == (step > SPAN)
        quantiser.step()
        share = 1 / min(step, SPAN)
        low, high = low + share * (min(inputs) - low), high + share * (max(inputs) - high)
    assert quantiser.ranges["layer"] == pytest.approx([low, high], rel=1e-5)
    layer.eval()
    layer(torch.tensor([[1e6]]))
    quantiser.step()
    assert quantiser.ranges["layer"] == pytest.approx([low, high], rel=1e-5)
    layer.train()(torch.empty(0, 1))  # no proposals


def test_a_layer_that_has_not_run_computes_in_float():
    detector = one_layer(nn.Linear(2, 2))
    quantiser, inputs = Quantiser(detector), torch.tensor([[0.1234, 1.0]])
    plain = F.linear(inputs, detector.network["layer"].weight, detector.network["layer"].bias)
    assert torch.equal(detector.network["layer"](inputs), plain)
    quantiser.step()
    assert not torch.equal(detector.network["layer"](inputs), plain)


def test_the_network_stays_plain_and_can_be_given_back():
    plain, detector = tiny_detector("gfl", 16, seed=1).eval(), tiny_detector("gfl", 16, seed=1).eval()
    ranges = dict.fromkeys(quantised_layers(detector.network), (-1.0, 1.0))
    quantiser = Quantiser(detector, ranges=ranges)
    assert quantiser.ranges == {name: [-1.0, 1.0] for name in ranges}
    assert list(detector.network.state_dict()) == list(plain.network.state_dict())
    assert not torch.equal(detector(tiny_images()).class_logits[0], plain(tiny_images()).class_logits[0])
    quantiser.remove()
    assert torch.equal(detector(tiny_images()).class_logits[0], plain(tiny_images()).class_logits[0])


@pytest.mark.parametrize("family", ["retinanet", "gfl", "fcos"])
@torch.no_grad()
def test_the_maps_inside_the_towers_are_those_of_the_quantised_head(family):
    detector, _ = observed(family)
    with detector.keeping(1):
        kept = detector(tiny_images())
    plain = detector(tiny_images())
    again = detector.head_from(kept.tower_maps[1], 1, plain)
    for found, expected in zip(again.class_logits, plain.class_logits, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_loss_of_a_quantised_student_falls():
    torch.manual_seed(0)
    student = tiny_detector("retinanet", 16, seed=1)
    learner, quantiser = Learner(student), Quantiser(student)
    optimizer, found = torch.optim.AdamW(student.parameters(), 0.003), []
    for _ in range(9):
        loss = sum(learner(tiny_images(), OBJECTS).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantiser.step()
        found.append(float(loss.detach()))
    assert len(quantiser.ranges) == len(quantiser.layers)
    assert sum(found[-3:]) < 0.7 * sum(found[1:4])  # the first step is not quantised


def test_one_rule_says_what_stays_in_float():
    assert int8.IN_FLOAT is IN_FLOAT


def test_what_cannot_be_quantised_is_refused():
    detector = one_layer(nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"not of little, which has no such quantised layers: other"):
        Quantiser(detector, ranges={"other": [0, 1]})
    Quantiser(detector)
    with pytest.raises(UserError, match="little has a Quantiser already"):
        Quantiser(detector)
    with pytest.raises(UserError, match="little cannot be quantised"):
        Quantiser(one_layer(nn.ReLU()))
