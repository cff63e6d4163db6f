"""Methods that compare features and relations, each against a slow loop written from its equation."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pairs import BIG, LITTLE, Pair, record, tiny_detector, tiny_teacher, truth
from torch import Tensor, nn

from understudy import functional
from understudy.errors import UserError
from understudy.methods import METHODS, build_methods
from understudy.methods.base import Layers
from understudy.methods.nonlocal_ import NonLocalBlock
from understudy.pairing import pair

NAMES = ("hint", "pairwise", "nonlocal", "fkd", "overhaul", "cwd", "pkd", "mgd", "score_l2")
TWO_STAGE = {"family": "faster_rcnn", "num_classes": 1, "objectness": True}


def wave(shape: tuple[int, ...], step: float, start: float, scale: float) -> Tensor:
    """Deterministic values of no pattern, in float64."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape)).double() + start)).reshape(shape)


FEATURES = (2, 3, 2, 3)
TEACHER, STUDENT = wave(FEATURES, 0.7, 0.1, 1.5), wave(FEATURES, 0.9, 0.4, 1.0)
LOGITS = wave((2, 4, 2, 3), 0.5, 0.2, 3.0).permute(0, 2, 3, 1).unsqueeze(3)  # (N, H, W, 1, K)


def places(tensor: Tensor):
    """The indices of every value."""
    return itertools.product(*map(range, tensor.shape))


def run(name: str, student=LITTLE, teacher=BIG, **options):
    """A method, the records it is given, and its terms."""
    method = Pair(METHODS[name], student, teacher).made(**options)
    own, theirs = record(student, 1), record(teacher, 2)
    torch.manual_seed(1)
    return method, own, theirs, method(own, theirs, truth(student))


# ----------------------------------------------------------------------------------------------------- reference values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (functional.correlation_loss(STUDENT, TEACHER), 0.856760574),
        (functional.channelwise_loss(STUDENT, TEACHER), 0.572279714),
        (functional.pairwise_loss(STUDENT, TEACHER), 0.117311859),
        (functional.score_weighted_loss(STUDENT, TEACHER, LOGITS), 4.454958458 / 3),
    ],
    ids=["pkd", "cwd", "pairwise", "score_l2"],
)
def test_reference_values(value, expected):
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- slow loops


def test_hint_is_the_mean_square_of_every_level_summed():
    method, own, theirs, terms = run("hint")
    expected = 0.0
    for adapter, mine, other in zip(method.adapters, own.features, theirs.features, strict=True):
        weight, bias = adapter.weight[:, :, 0, 0], adapter.bias
        total = 0.0
        for n, y, x in itertools.product(*(range(mine.shape[axis]) for axis in (0, 2, 3))):
            total += sum(((weight @ mine[n, :, y, x] + bias - other[n, :, y, x]) ** 2).tolist())
        expected += total / other.numel()
    assert terms["hint_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_adapters_are_there_only_where_channels_differ():
    one = replace(LITTLE, channels=(6, 8))
    for name in ("hint", "cwd", "mgd"):
        kinds = [type(adapter) for adapter in run(name, student=one)[0].adapters]
        assert kinds == [nn.Conv2d, nn.Identity]
    for name in ("pairwise", "pkd"):
        assert not list(run(name, student=BIG)[0].parameters())


def naive_pairwise(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    cells = list(itertools.product(range(student.shape[2]), range(student.shape[3])))
    for n, (y, x), (v, u) in itertools.product(range(len(student)), cells, cells):
        alike = [
            (maps[n, :, y, x] @ maps[n, :, v, u] / maps[n, :, y, x].norm() / maps[n, :, v, u].norm()).item()
            for maps in (student.detach(), teacher.detach())
        ]
        total += (alike[0] - alike[1]) ** 2
    return total / len(student) / len(cells) ** 2


def test_pairwise_compares_all_pairs_of_cells():
    _, own, theirs, terms = run("pairwise")
    expected = sum(naive_pairwise(*level) for level in zip(own.features, theirs.features, strict=True))
    assert terms["pairwise_relation"].item() == pytest.approx(expected, rel=1e-4)


def test_pairwise_pools_what_is_too_large_and_nothing_else():
    assert functional.pooled(STUDENT, 6) is STUDENT
    assert functional.pooled(STUDENT, 5).shape[-2:] == (1, 2)
    assert torch.equal(functional.pooled(STUDENT, 1), STUDENT.amax((-2, -1), keepdim=True))
    for height, width, most in itertools.product((1, 5, 17, 40), (1, 7, 30), (1, 9, 100)):
        shape = functional.pooled(torch.zeros(1, 1, height, width), most).shape
        assert shape.numel() <= most
    _, own, theirs, terms = run("pairwise", max_cells=20)  # of 6 x 8 cells 3 x 4 are left
    pools = [nn.MaxPool2d(2), nn.Identity()]
    levels = zip(pools, own.features, theirs.features, strict=True)
    expected = sum(naive_pairwise(pool(mine), pool(other)) for pool, mine, other in levels)
    assert terms["pairwise_relation"].item() == pytest.approx(expected, rel=1e-4)


def test_pairwise_lets_no_gradient_through_the_lengths():
    features = STUDENT.clone().requires_grad_()
    functional.pairwise_loss(features, TEACHER).backward()
    lengths = STUDENT.norm(dim=1, keepdim=True)
    direct = STUDENT.clone().requires_grad_()
    unit, other = (
        (maps / length).flatten(2) for maps, length in ((direct, lengths), (TEACHER, TEACHER.norm(dim=1)[:, None]))
    )
    alike = [torch.einsum("ncp,ncq->npq", maps, maps) for maps in (unit, other)]
    ((alike[0] - alike[1]) ** 2).mean().backward()
    torch.testing.assert_close(features.grad, direct.grad, rtol=1e-6, atol=1e-9)


def test_non_local_collects_from_all_cells():
    query, key, value = wave((2, 3, 2, 3), 0.7, 0, 1), wave((2, 3, 1, 2), 0.9, 1, 1), wave((2, 3, 1, 2), 0.3, 2, 1)
    found = functional.non_local(query, key, value)
    for n, c, y, x in places(found):
        terms = [query[n, :, y, x] @ key[n, :, 0, u] * value[n, c, 0, u] for u in range(2)]
        assert found[n, c, y, x].item() == pytest.approx(sum(terms).item() / 2)


def test_a_non_local_block_begins_as_the_identity_and_pools_keys_and_values():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 12, 20)
    for level, (inner, pooling) in enumerate([(2, 8), (2, 4), (4, 2), (4, 2), (4, 2)]):
        block = NonLocalBlock(8, level)
        assert block.query.out_channels == inner
        assert torch.equal(block(features), features)
        nn.init.normal_(block.out.weight)
        pool = nn.MaxPool2d(pooling, ceil_mode=True)
        q, k, v = (
            block.query(features).flatten(2),
            pool(block.key(features)).flatten(2),
            pool(block.value(features)).flatten(2),
        )
        gathered = torch.einsum("ncp,ncq,ndq->ndp", q, k, v) / k.shape[2]
        expected = features + block.out(gathered.view(2, inner, 12, 20))
        torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)
    assert NonLocalBlock(2, 0)(features[:, :2, :1, :1]).shape == (2, 2, 1, 1)  # smaller than the pooling


def test_nonlocal_is_the_norm_over_the_batch_and_trains_both_sides():
    method, own, theirs, terms = run("nonlocal")
    expected = 0.0
    for level, adapter in enumerate(method.relation.adapters):
        difference = adapter(own.features[level]) - theirs.features[level]  # the blocks begin as the identity
        expected += math.sqrt(sum(value * value for value in difference.flatten().tolist()))
    assert terms["nonlocal_relation"].item() == pytest.approx(expected, rel=1e-5)
    terms["nonlocal_relation"].backward()
    assert all(block.out.weight.grad.abs().sum() > 0 for block in method.relation.teacher)
    assert all(features.grad is None for features in theirs.features)


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("spec", "temperature", "by_channel"), [({}, 0.1, True), (TWO_STAGE, 0.5, False)])
def test_fkd_feature_term_under_the_attention_of_both(spec, temperature, by_channel):
    student, teacher = replace(LITTLE, channels=BIG.channels, **spec), replace(BIG, **spec)
    method, own, theirs, terms = run("fkd", student, teacher)
    assert (method.temperature, method.weigh_channels) == (temperature, by_channel)
    expected = 0.0
    for adapter, mine, other in zip(method.adapters["feature"], own.features, theirs.features, strict=True):
        adapted, total = adapter(mine), 0.0
        count, channels, height, width = mine.shape
        for n in range(count):
            maps = [features[n].detach().double() for features in (mine, other)]
            cells = [
                softmax([m[:, y, x].abs().mean().item() for y in range(height) for x in range(width)], temperature)
                for m in maps
            ]
            depth = [softmax([m[c].abs().mean().item() for c in range(channels)], temperature) for m in maps]
            for c, y, x in itertools.product(range(channels), range(height), range(width)):
                weight = height * width * (cells[0][y * width + x] + cells[1][y * width + x]) / 2
                weight *= channels * (depth[0][c] + depth[1][c]) / 2 if by_channel else 1
                total += weight * (other[n, c, y, x] - adapted[n, c, y, x]).item() ** 2
        expected += math.sqrt(total)
    assert terms["fkd_feature"].item() == pytest.approx(expected, rel=1e-4)


def test_fkd_channel_and_spatial_terms():
    method, own, theirs, terms = run("fkd")
    channel = spatial = 0.0
    for level, (mine, other) in enumerate(zip(own.features, theirs.features, strict=True)):
        linear, conv = method.adapters["channel"][level], method.adapters["spatial"][level]
        total = 0.0
        for n in range(2):
            mean = torch.stack([mine[n, c].mean() for c in range(mine.shape[1])])
            other_mean = torch.stack([other[n, c].mean() for c in range(other.shape[1])])
            total += (linear.weight[:, :, 0, 0] @ mean + linear.bias - other_mean).square().sum().item()
        channel += math.sqrt(total)
        total = 0.0
        for n, y, x in itertools.product(range(2), range(mine.shape[2]), range(mine.shape[3])):
            value = conv.bias.item()
            for v, u in itertools.product(range(3), range(3)):
                if 0 <= y + v - 1 < mine.shape[2] and 0 <= x + u - 1 < mine.shape[3]:
                    value += (conv.weight[0, 0, v, u] * mine[n, :, y + v - 1, x + u - 1].mean()).item()
            total += (value - other[n, :, y, x].mean().item()) ** 2
        spatial += math.sqrt(total)
    assert terms["fkd_channel"].item() == pytest.approx(channel, rel=1e-4)
    assert terms["fkd_spatial"].item() == pytest.approx(spatial, rel=1e-4)


def test_fkd_relation_is_nonlocal():
    options = {"fkd": {"feature_weight": 0, "channel_weight": 0, "spatial_weight": 0}, "nonlocal": {}}
    (fkd, alone), weights = build_methods(options, LITTLE, BIG)
    assert weights["fkd_relation"] == weights["nonlocal_relation"]
    assert [key for key, _ in fkd.named_parameters()] == [key for key, _ in alone.named_parameters()]
    alone.load_state_dict(fkd.state_dict())
    records = record(LITTLE, 1), record(BIG, 2), truth(LITTLE)
    assert list(fkd(*records)) == ["fkd_relation"]
    assert torch.equal(fkd(*records)["fkd_relation"], alone(*records)["nonlocal_relation"])


def naive_divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    own, theirs = softmax(student, temperature), softmax(teacher, temperature)
    return sum(t * (math.log(t) - math.log(s)) for t, s in zip(theirs, own, strict=True))


@pytest.mark.parametrize("on", ["features", "logits"])
def test_cwd_is_a_divergence_per_channel(on):
    student = replace(LITTLE, channels=BIG.channels)
    _, own, theirs, terms = run("cwd", student, on=on, temperature=2.0)
    maps = [
        outputs.features
        if on == "features"
        else [logits.permute(0, 3, 4, 1, 2).flatten(1, 2) for logits in outputs.class_logits]
        for outputs in (own, theirs)
    ]
    expected = 0.0
    for mine, other in zip(*maps, strict=True):
        count = mine.shape[0] * mine.shape[1]
        for n, c in itertools.product(*map(range, mine.shape[:2])):
            divergence = naive_divergence(mine[n, c].flatten().tolist(), other[n, c].flatten().tolist(), 2.0)
            expected += 4 * divergence / count
    assert terms["cwd_channel"].item() == pytest.approx(expected, rel=1e-4)


def test_pkd_is_one_minus_the_correlation_of_every_channel():
    _, own, theirs, terms = run("pkd", student=BIG)
    expected = 0.0
    for mine, other in zip(own.features, theirs.features, strict=True):
        n, channels = mine[:, 0].numel(), mine.shape[1]
        correlations = [
            torch.stack([mine[:, c].flatten(), other[:, c].flatten()]).corrcoef()[0, 1] for c in range(channels)
        ]
        expected += (n - 1) / n * (1 - sum(correlations).item() / channels)
    assert terms["pkd_feature"].item() == pytest.approx(expected, rel=1e-4)
    first = run("pkd", student=BIG, levels=1)[3]["pkd_feature"]
    torch.testing.assert_close(first, functional.correlation_loss(own.features[0], theirs.features[0]))


def test_mgd_generates_the_teachers_features_from_what_is_shown():
    method, own, theirs, terms = run("mgd")
    torch.manual_seed(1)
    expected = 0.0
    for level, (mine, other) in enumerate(zip(own.features, theirs.features, strict=True)):
        shown = torch.rand(2, 1, *mine.shape[2:])
        first, second = method.generators[level][0], method.generators[level][2]
        adapted = method.adapters[level](mine)
        masked = torch.stack([torch.where(shown[n] < 0.65, torch.zeros(()), adapted[n]) for n in range(2)])
        generated = second(first(masked).clamp(min=0))
        expected += sum(((generated - other) ** 2).flatten().tolist()) / 2
    assert terms["mgd_feature"].item() == pytest.approx(expected, rel=1e-5)


def test_mgd_hides_the_share_of_cells_that_it_is_told():
    features = torch.zeros(4, 3, 100, 100)
    torch.manual_seed(0)
    shown = functional.shown_cells(features, 0.65)
    assert shown.shape == (4, 1, 100, 100)
    assert shown.double().mean().item() == pytest.approx(0.35, abs=0.01)
    assert not torch.equal(shown[0], shown[1])
    assert functional.shown_cells(features, 0.0).all()
    assert run("mgd")[0].hidden == 0.65
    assert run("mgd", replace(LITTLE, **TWO_STAGE), replace(BIG, **TWO_STAGE))[0].hidden == 0.45
    method, *_, terms = run("mgd", levels=1)
    assert len(method.generators) == 1
    assert 0 < terms["mgd_feature"] < run("mgd")[3]["mgd_feature"]


COMMON = {
    "one-stage": ((8, 16, 32, 64, 128), {"mgd": 5, "pkd": 4}),
    "two-stage": ((4, 8, 16, 32, 64), {"mgd": 4, "pkd": 4}),
    "mixed": ((8, 16, 32, 64), {"mgd": 3, "pkd": 3}),
}


@pytest.mark.parametrize("name", ["mgd", "pkd"])
@pytest.mark.parametrize("kind", COMMON)
def test_a_level_that_only_the_first_stage_of_a_faster_rcnn_reads_is_not_compared(name, kind):
    """Unless one asks for it; whichever of the two is the Faster R-CNN."""
    strides, expected = COMMON[kind]
    one_stage = replace(BIG, channels=(8,) * len(strides), strides=strides)
    two_stage = replace(one_stage, **TWO_STAGE)
    families = {"one-stage": [(one_stage,) * 2], "two-stage": [(two_stage,) * 2]}
    for student, teacher in families.get(kind, [(one_stage, two_stage), (two_stage, one_stage)]):
        own, theirs = (
            replace(record(LITTLE, 1), features=[torch.randn(2, 8, 4, 4).requires_grad_() for _ in strides])
            for _ in range(2)
        )
        for levels in (None, 1, len(strides)):
            method = METHODS[name](student, teacher, levels=levels)
            method(own, theirs, None)[f"{name}_feature"].backward()
            reached = [level.grad is not None for level in own.features]
            assert reached == [place < (levels or expected[name]) for place in range(len(strides))]
            for level in own.features:
                level.grad = None


@pytest.mark.parametrize("name", ["mgd", "pkd"])
def test_a_pair_that_shares_only_the_level_of_a_first_stage_is_refused(name):
    student, teacher = (replace(BIG, strides=(64,), channels=(8,), name=each) for each in ("little", "big"))
    METHODS[name](student, teacher)
    for pair_of_both in ((replace(student, **TWO_STAGE), teacher), (student, replace(teacher, **TWO_STAGE))):
        with pytest.raises(UserError, match=r"the student little and the teacher big .*\(64,\) in common"):
            METHODS[name](*pair_of_both)
        with pytest.raises(UserError, match=r"the student little and the teacher big .*\(64,\) in common"):
            build_methods({name: {"feature_weight": 1.0}}, *pair_of_both)
        METHODS[name](*pair_of_both, levels=1)


def test_score_l2_weights_cells_by_score_and_divides_by_channels():
    method, own, theirs, terms = run("score_l2")
    expected = 0.0
    for level, (mine, other, logits) in enumerate(zip(own.features, theirs.features, theirs.class_logits, strict=True)):
        projected, above, below = method.projectors[level](mine), 0.0, 0.0
        for n, y, x in itertools.product(*map(range, logits.shape[:3])):
            score = max(1 / (1 + math.exp(-value)) for value in logits[n, y, x].flatten().tolist())
            above += score * (projected[n, :, y, x] - other[n, :, y, x]).square().sum().item()
            below += score
        expected += above / below / other.shape[1]
    assert terms["score_l2_feature"].item() == pytest.approx(expected, rel=1e-5)
    projector = method.projectors[0]
    assert [type(layer) for layer in projector] == [nn.Conv2d, nn.ReLU, nn.Conv2d]


# ------------------------------------------------------------------------------------------------------------- overhaul


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 0.4), (-1.0, 2.0), (-3.0, 0.5)])
def test_the_margin_is_the_mean_of_what_lies_below_zero(mean, deviation):
    values = torch.linspace(mean - 12 * deviation, 0, 200_001, dtype=torch.float64)
    density = torch.exp(-((values - mean) ** 2) / (2 * deviation**2))
    expected = (density * values).sum() / density.sum()
    margin = functional.negative_margin(torch.tensor([mean]).double(), torch.tensor([deviation]).double())
    assert margin.item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_margin_of_channels_that_are_hardly_ever_negative_or_constant():
    mean, deviation = torch.tensor([4.0, 2.0, -1.5, 0.0, -3.0e3]), torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(
        functional.negative_margin(mean, deviation), torch.tensor([-3.0, 0.0, -1.5, 0.0, -3.0e3])
    )


def naive_overhaul(student: Tensor, teacher: Tensor, margin: list[float]) -> float:
    total = 0.0
    for n, c, y, x in places(student):
        own, other = student[n, c, y, x].item(), teacher[n, c, y, x].item()
        target = margin[c] if other == 0 else max(other, margin[c])
        if own > target or target > 0:
            total += (own - target) ** 2
    return total / len(student)


def test_overhaul_against_a_slow_loop_with_the_teachers_last_norms():
    teacher, student = tiny_teacher("retinanet"), tiny_detector("retinanet", 16, seed=5)
    for stage, block in enumerate(teacher.network.backbone.body[f"layer{n}"][-1] for n in (2, 3, 4)):
        assert isinstance(block.bn2, nn.BatchNorm2d), stage
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, theirs = student(images), teacher(images)
    method = METHODS["overhaul"](student.spec, teacher.spec)
    layers = Layers(student, teacher, None, own, theirs)
    found = method(own, theirs, None, layers)["overhaul_feature"].item()
    expected = 0.0
    for stage in range(3):
        norm = teacher.network.backbone.body[f"layer{stage + 2}"][-1].bn2
        margin = functional.negative_margin(norm.bias, norm.weight.abs()).tolist()
        connected = method.connectors[stage](own.stages[stage])
        expected += naive_overhaul(connected, theirs.stages[stage], margin) / 2 ** (2 - stage)
    assert found == pytest.approx(expected, rel=1e-4)

    common = pair(replace(student.spec, stage_strides=(4, 16, 32)), teacher.spec)  # the first stage is not in common
    some = METHODS["overhaul"](common.student, common.teacher)
    reduced = common.student_record(own), common.teacher_record(theirs)
    assert len(some.connectors) == 2
    some.connectors.load_state_dict(nn.ModuleList(list(method.connectors)[1:]).state_dict())
    without = some(*reduced, None, replace(layers, pairing=common))["overhaul_feature"].item()
    assert 0 < without < found


def test_overhaul_keeps_negative_responses_of_stages_without_a_relu():
    margin = torch.tensor([-1.0, -2.0])
    responses = torch.tensor([[-0.5, -3.0], [-0.5, -3.0], [0.0, 2.0]]).T.reshape(2, 3).T[None]  # any sign
    found = functional.margin_target(responses.reshape(1, 2, 3, 1), margin).flatten().tolist()
    given = responses.flatten().tolist()
    limits = [-1.0] * 3 + [-2.0] * 3
    assert found == [low if value == 0 else max(value, low) for value, low in zip(given, limits, strict=True)]


def test_overhaul_is_refused_where_a_stage_has_no_norm_or_there_is_no_stage():
    teacher, student = tiny_detector("fcos", 16, seed=1), tiny_detector("fcos", 16, seed=2)
    for layer in teacher.network.backbone.body["layer3"].modules():
        for name, child in layer.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(layer, name, nn.GroupNorm(1, child.num_features))
    method = METHODS["overhaul"](student.spec, teacher.spec)
    outputs = student(torch.rand(2, 3, 64, 64))
    with pytest.raises(
        UserError, match=r"overhaul reads .* last batch normalisation.*, and fcos_resnet18 has a stage without one"
    ):
        method(outputs, outputs, None, Layers(student, teacher, None, outputs, outputs))
    del teacher.network.backbone.body  # a backbone of one's own, whose stages cannot be told apart
    for common in (None, pair(student.spec, teacher.spec)):
        with pytest.raises(UserError, match="overhaul reads"):
            method(outputs, outputs, None, Layers(student, teacher, common, outputs, outputs))
    bare = replace(LITTLE, stage_channels=(), stage_strides=())
    with pytest.raises(UserError, match="little and the teacher large have no backbone stages in common"):
        METHODS["overhaul"](bare, replace(bare, name="large"))


# ----------------------------------------------------------------------------------------------------------- invariants


def test_attentions_sum_to_cells_and_to_channels():
    spatial, channel = functional.spatial_attention(STUDENT, 0.1), functional.channel_attention(STUDENT, 0.1)
    assert spatial.flatten(1).sum(1).tolist() == pytest.approx([6.0, 6.0])
    assert channel.sum(1).tolist() == pytest.approx([3.0, 3.0])
    weight = functional.mean_attention(STUDENT, TEACHER, 0.1, STUDENT)
    assert weight.flatten(1).mean(1).tolist() == pytest.approx([1.0, 1.0])
    own = functional.mean_attention(STUDENT.clone().requires_grad_(), TEACHER, 0.1)
    assert not own.requires_grad


def test_pkd_ignores_scale_and_offset_and_is_at_most_two():
    scale, offset = torch.tensor([0.5, 2, 7]).view(1, 3, 1, 1), torch.tensor([-3.0, 0, 4]).view(1, 3, 1, 1)
    assert functional.correlation_loss(scale * TEACHER + offset, TEACHER).item() == pytest.approx(0, abs=1e-9)
    assert functional.correlation_loss(-TEACHER, TEACHER).item() == pytest.approx(2 * 11 / 12, abs=1e-5)


def test_cwd_ignores_a_constant_of_a_channel():
    offset = torch.tensor([-3.0, 0, 4]).view(1, 3, 1, 1)
    before, after = (functional.channelwise_loss(maps, TEACHER).item() for maps in (STUDENT, STUDENT + offset))
    assert after == pytest.approx(before)
    assert functional.channelwise_loss(TEACHER + offset, TEACHER).item() == pytest.approx(0, abs=1e-12)


def test_pairwise_ignores_the_length_of_features():
    lengths = 1 + wave((2, 1, 2, 3), 0.3, 0, 0.5)
    assert functional.pairwise_loss(lengths * TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-12)


def test_score_l2_is_the_mean_square_where_the_teacher_sees_the_same_everywhere():
    same = functional.score_weighted_loss(STUDENT, TEACHER, torch.full_like(LOGITS, -1.0))
    assert same.item() == pytest.approx(functional.mean_squared_loss(STUDENT, TEACHER).item())


def test_norms_grow_with_the_batch_and_are_safe_at_zero():
    twice = [torch.cat([maps, maps]) for maps in (STUDENT, TEACHER)]
    for distance in (functional.batch_distance, functional.joint_distance):
        assert distance(*twice).item() == pytest.approx(math.sqrt(2) * distance(STUDENT, TEACHER).item())
        same = TEACHER.clone().requires_grad_()
        distance(same, TEACHER).backward()
        assert same.grad.abs().max() == 0
    weighted = functional.batch_distance(STUDENT, TEACHER, torch.full((2, 1, 2, 3), 4.0))
    assert weighted.item() == pytest.approx(2 * functional.batch_distance(STUDENT, TEACHER).item())


@pytest.mark.parametrize(
    "loss",
    [functional.correlation_loss, functional.channelwise_loss, functional.pairwise_loss, functional.batch_distance],
)
@pytest.mark.parametrize("maps", [torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 1, 1)], ids=["dead channels", "one cell"])
def test_maps_without_any_variation_give_finite_values_and_gradients(loss, maps):
    student = maps.clone().requires_grad_()
    for teacher in (maps, torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))):
        value = loss(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("value", [1234.567, -0.1, 1e-3, 3e7])
def test_a_constant_channel_becomes_zero_whatever_its_value(value):
    """The mean of 2 x 37 x 41 equal values is off by round-off, which is not to be blown up to a deviation of 1."""
    maps = torch.randn(2, 3, 37, 41, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = value
    student = maps.clone().requires_grad_()
    found = functional.standardised(student)
    assert not found[:, 1].any()
    spread = (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.std((0, 2, 3), keepdim=True) + 1e-6)
    torch.testing.assert_close(found[:, ::2], spread[:, ::2])
    teacher = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    loss = functional.correlation_loss(student[:, 1:2], teacher[:, 1:2])
    n = 2 * 37 * 41
    assert loss.item() == pytest.approx((n - 1) / n / 2, rel=1e-5)
    loss.backward()
    assert student.grad.isfinite().all()
    aligned = functional.align_scale(maps, teacher)[:, 1]
    torch.testing.assert_close(aligned, teacher[:, 1].mean().expand_as(aligned))


def test_the_gradient_of_standardised_maps_is_that_of_the_formula():
    maps = (wave((2, 3, 2, 3), 0.9, 0.4, 1.0) + 5).requires_grad_()
    assert torch.autograd.gradcheck(functional.standardised, maps)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "overhaul"])
def test_maps_of_one_cell_and_one_image(name):
    spec = replace(BIG, channels=(8,) * 5, strides=(8, 16, 32, 64, 128))
    method = METHODS[name](spec, spec)
    own, theirs = (
        replace(
            outputs,
            features=[torch.randn(1, 8, size, size).requires_grad_() for size in (8, 4, 2, 1, 1)],
            class_logits=[torch.randn(1, size, size, 2, 3) for size in (8, 4, 2, 1, 1)],
        )
        for outputs in (record(LITTLE, 1), record(LITTLE, 2))
    )
    loss = sum(method(own, theirs, None).values())
    loss.backward()
    assert loss.isfinite()
    assert all(features.grad.isfinite().all() for features in own.features if features.grad is not None)


# ------------------------------------------------------------------------------------------------ weights and refusals


def test_published_weights_by_family():
    def weights(name: str, family: str) -> list[float]:
        student = replace(LITTLE, channels=BIG.channels, family=family)
        return [weight.at(0) for weight in build_methods({name: {}}, student, BIG)[1].values()]

    for family in ("retinanet", "fcos", "gfl"):
        assert weights("fkd", family) == [4.2e-4, 2.4e-2, 2.4e-2, 4.2e-4]
        assert weights("nonlocal", family) == [4.2e-4]
        assert weights("mgd", family) == [2e-5]
    assert weights("fkd", "faster_rcnn") == [7e-5, 4e-3, 4e-3, 7e-5]
    assert weights("mgd", "faster_rcnn") == [5e-7]
    assert (weights("pkd", "retinanet"), weights("pkd", "faster_rcnn")) == ([10.0], [6.0])
    assert weights("cwd", "retinanet") == [10.0]


def test_pkd_needs_equal_channels_of_the_levels_it_compares():
    with pytest.raises(UserError, match=r"little has the channels \(6, 6\), the teacher big has the channels \(8, 8\)"):
        METHODS["pkd"](LITTLE, BIG)
    coarse = replace(LITTLE, channels=(8, 6))
    with pytest.raises(UserError, match="hint and mgd adapt the channels"):
        METHODS["pkd"](coarse, BIG)
    METHODS["pkd"](coarse, BIG, levels=1)


def test_cwd_on_logits_needs_equal_anchors_and_classes():
    one = replace(BIG, num_anchors=1)
    METHODS["cwd"](LITTLE, one)
    with pytest.raises(UserError, match=r"little has 2 anchors per cell, the teacher big has 1.*cwd.on=features"):
        METHODS["cwd"](LITTLE, one, on="logits")
    with pytest.raises(UserError, match=r"3 classes.*objectness"):
        METHODS["cwd"](LITTLE, replace(BIG, num_classes=1, objectness=True), on="logits")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pairwise", {"max_cells": 0}, "max_cells.*, got 0"),
        ("fkd", {"temperature": 0.0}, "temperature: expected a number above 0 or null, got 0.0"),
        ("cwd", {"temperature": -1.0}, "temperature: expected a number above 0, got -1.0"),
        ("pkd", {"levels": 0}, "levels: expected a whole number above 0 or null, got 0"),
        *(("mgd", {"hidden": value}, "hidden: expected a number") for value in (1.0, -0.1, math.nan, math.inf)),
        ("mgd", {"levels": 0}, "levels: expected a whole number above 0 or null, got 0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(UserError, match=rf"methods\.{name}\W+{message}"):
        METHODS[name](BIG, BIG, **options)


@pytest.mark.parametrize(
    "loss",
    [
        functional.mean_squared_loss,
        functional.squared_loss_per_image,
        functional.channelwise_loss,
        functional.correlation_loss,
        functional.batch_distance,
        functional.partial_distance,
        functional.joint_distance,
        functional.pairwise_loss,
    ],
)
def test_shapes_that_differ_are_refused(loss):
    with pytest.raises(ValueError, match="differ in"):
        loss(STUDENT, TEACHER[..., :1])
