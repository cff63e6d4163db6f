"""Overhaul against a slow loop, on real detectors, whose batch normalisation it reads."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pairs import LITTLE, tiny_detector, tiny_teacher
from references import wave
from torch import Tensor, nn

from understudy import functional
from understudy.errors import UserError
from understudy.methods.base import Layers
from understudy.methods.overhaul import Overhaul
from understudy.outputs import Outputs
from understudy.pairing import pair


def naive(student: Tensor, teacher: Tensor, margin: list[float]) -> float:
    total = 0.0
    for n, c, y, x in itertools.product(*map(range, student.shape)):
        own, other = student[n, c, y, x].item(), teacher[n, c, y, x].item()
        target = margin[c] if other == 0 else max(other, margin[c])
        if own > target or target > 0:
            total += (own - target) ** 2
    return total / len(student)


def test_against_a_slow_loop_with_the_teachers_last_norms():
    teacher, student = tiny_teacher("retinanet"), tiny_detector("retinanet", 16, seed=5)
    for stage, block in enumerate(teacher.network.backbone.body[f"layer{n}"][-1] for n in (2, 3, 4)):
        assert isinstance(block.bn2, nn.BatchNorm2d), stage
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, theirs = student(images), teacher(images)
    method = Overhaul(student.spec, teacher.spec)
    layers = Layers(student, teacher, None, own, theirs)
    found = method(own, theirs, None, layers)["overhaul_feature"].item()
    expected = 0.0
    for stage in range(3):
        norm = teacher.network.backbone.body[f"layer{stage + 2}"][-1].bn2
        margin = functional.negative_margin(norm.bias, norm.weight.abs()).tolist()
        connected = method.connectors[stage](own.stages[stage])
        expected += naive(connected, theirs.stages[stage], margin) / 2 ** (2 - stage)
    assert found == pytest.approx(expected, rel=1e-4)

    common = pair(replace(student.spec, stage_strides=(4, 16, 32)), teacher.spec)  # the first stage is not in common
    some = Overhaul(common.student, common.teacher)
    reduced = common.student_record(own), common.teacher_record(theirs)
    assert len(some.connectors) == 2
    some.connectors.load_state_dict(nn.ModuleList(list(method.connectors)[1:]).state_dict())
    without = some(*reduced, None, replace(layers, pairing=common))["overhaul_feature"].item()
    assert 0 < without < found


class Stages(nn.ModuleDict):
    """A backbone of which only the last batch normalisation of each stage is left."""

    def __init__(self, norms: list[nn.BatchNorm2d]):
        super().__init__({str(number): norm for number, norm in enumerate(norms)})
        self.return_layers = dict.fromkeys(self)


def test_the_value_of_the_authors_code():
    """Before a ReLU, where nothing is exactly zero, all is as in the authors' code.

    The value is that of clovaai/overhaul-distillation @ 76344a8, ImageNet's Distiller, divided by the two images.
    """
    widths, sizes = (4, 6), ((4, 5), (2, 3))
    student = replace(LITTLE, stage_channels=(3, 4))
    teacher = replace(LITTLE, stage_channels=widths, name="big")
    norms = [nn.BatchNorm2d(width) for width in widths]
    for norm in norms:
        norm.weight.data, norm.bias.data = (
            wave((norm.num_features,), *of) for of in ((1.1, 0.2, 0.9), (1.7, 0.6, 0.8))
        )
    detector = SimpleNamespace(spec=teacher, network=SimpleNamespace(backbone=SimpleNamespace(body=Stages(norms))))
    method = Overhaul(student, teacher)
    for number, (convolution, _) in enumerate(method.double().connectors):
        convolution.weight.data.copy_(wave(tuple(convolution.weight.shape), 0.3, 0.1 * number, 0.8))
    channels = zip(student.stage_channels, widths, sizes, strict=True)
    pairs = [
        (wave((2, own, *size), 0.9, 0.4, 1.0), wave((2, other, *size), 0.7, 0.1, 1.5)) for own, other, size in channels
    ]
    own, theirs = (Outputs(stages=list(stages), features=[]) for stages in zip(*pairs, strict=True))
    loss = method(own, theirs, None, Layers(detector, detector, None, own, theirs))["overhaul_feature"]
    assert loss.item() == pytest.approx(122.674270, rel=1e-6)


def test_connectors_begin_with_the_spread_of_the_authors_code():
    wide = replace(LITTLE, stage_channels=(32, 64))
    for convolution, _ in Overhaul(wide, replace(wide, stage_channels=(128, 128))).connectors:
        assert convolution.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)


def test_it_is_refused_where_a_stage_has_no_norm_or_there_is_no_stage():
    teacher, student = tiny_detector("fcos", 16, seed=1), tiny_detector("fcos", 16, seed=2)
    for layer in teacher.network.backbone.body["layer3"].modules():
        for name, child in layer.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(layer, name, nn.GroupNorm(1, child.num_features))
    method = Overhaul(student.spec, teacher.spec)
    outputs = student(torch.rand(2, 3, 64, 64))
    message = "The teacher fcos_resnet18 has a backbone stage without batch normalisation"
    with pytest.raises(UserError, match=message):
        method(outputs, outputs, None, Layers(student, teacher, None, outputs, outputs))
    del teacher.network.backbone.body  # a backbone of a user, whose stages cannot be told apart
    for common in (None, pair(student.spec, teacher.spec)):
        with pytest.raises(UserError, match=message):
            method(outputs, outputs, None, Layers(student, teacher, common, outputs, outputs))
    bare = replace(LITTLE, stage_channels=(), stage_strides=())
    with pytest.raises(UserError, match="little and the teacher large have no backbone stages in common"):
        Overhaul(bare, replace(bare, name="large"))
    with pytest.raises(UserError, match="overhaul reads the layers of both detectors"):
        method(outputs, outputs, None)
