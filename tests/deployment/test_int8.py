"""Which tensors of a graph have a range from the training."""

from types import SimpleNamespace

from understudy.deployment.int8 import known_ranges


def node(kind: str, read: str, weight: str) -> SimpleNamespace:
    return SimpleNamespace(op_type=kind, input=[read, weight, "bias"])


def test_the_inputs_of_layers_have_the_ranges_of_the_training():
    nodes = [
        node("Conv", "image", "network.stem.weight"),
        node("Relu", "image", "network.stem.weight"),
        node("Conv", "p3", "network.head.conv.weight"),  # one layer on two levels
        node("Conv", "p4", "network.head.conv.weight"),
        node("Conv", "p4", "network.extra.weight"),  # two layers on one level
        node("Gemm", "pooled", "network.fc.weight"),
        node("Conv", "p3", "network.head.cls_logits.weight"),
        node("MatMul", "other", "val_7"),
    ]
    ranges = {"stem": [-2, 2.5], "head.conv": [-1, 4], "extra": [-3, 1], "fc": [0, 9], "unused": [0, 1]}
    model = SimpleNamespace(graph=SimpleNamespace(node=nodes))
    expected = {"image": (-2, 2.5), "p3": (-1, 4), "p4": (-3, 4), "pooled": (0, 9)}
    assert known_ranges(model, ranges) == expected
    assert known_ranges(model, {}) == {}
