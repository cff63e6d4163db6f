"""torchvision's published detectors, and those that were fine-tuned from them; told by their tensors alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from understudy.checkpoints.foreign import (
    SUPPORTED,
    Choices,
    Found,
    category_ids,
    fits,
    shown,
    torchvision_categories,
)
from understudy.detectors.plain import PUBLISHED, build_network
from understudy.errors import UserError

_CLASS_LOGITS = "head.classification_head.cls_logits"
_CLASS_SCORES = "roi_heads.box_predictor.cls_score"
_LARGE, _SMALL = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
_FROZEN = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")
_COCO_OUTPUTS = 91
_NO_CLASS = ("__background__", "N/A")
_SETTINGS = {"norm_eps": 1e-5, "shorter_side": 800, "longer_side": 1333}


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a torchvision detector's parameters."""
    return any(key.startswith(("backbone.body.", "backbone.fpn.")) for key in state) and any(
        key.startswith(("head.", "roi_heads.", "rpn.")) for key in state
    )


def from_torchvision(state: Mapping[str, Tensor], choices: Choices, file_name: str = "") -> Found:
    """Describe a torchvision detector in understudy's terms.

    A head of sigmoids is cut down to the classes there are: its logits do not depend on each other. A softmax needs
    all of its outputs, so the empty ones of COCO's numbering stay, each as a class of its own.

    Args:
        state: its state dict.
        choices: of the caller.
        file_name: tells two detectors apart whose tensors are alike.

    Raises:
        UserError: it is none of torchvision's published detectors, or something must be said by the caller.
    """
    assumptions: list[str] = []
    name = _builder(state, choices.architecture, file_name, assumptions)
    weights = dict(state)
    if name.startswith("fasterrcnn"):
        names, ids = _softmax_classes(weights, choices, assumptions)
    else:
        names, ids = _sigmoid_classes(weights, choices, assumptions)
    build: dict[str, Any] = {"name": f"torchvision/{name}", "num_classes": len(names)}
    build |= _known_settings(choices)
    if name in _FROZEN and "norm_eps" not in build:
        assumptions.append(
            "eps of its frozen batch normalisation is 0, as in the published weights (--set norm_eps=1e-5)"
        )
    for key, values in (("image_mean", choices.mean), ("image_std", choices.std)):
        if values is not None:
            build[key] = [value / 255 for value in values]
    return Found("torchvision", build, weights, names, ids, tuple(assumptions))


def _builder(state: Mapping[str, Tensor], asked: str | None, file_name: str, assumptions: list[str]) -> str:
    """The name of the builder whose network has exactly these parameters, or nearly all of them."""
    names = [name.removeprefix("torchvision/") for name in PUBLISHED]
    if asked is not None:
        asked = asked.removeprefix("torchvision/")
        if asked not in names:
            raise UserError(
                f"--architecture: expected one of {', '.join(names)} for a file of torchvision, got {asked!r}."
            )
        return asked
    if any(
        key.startswith(("roi_heads.mask_", "roi_heads.keypoint_", "head.classification_head.module_list"))
        for key in state
    ):
        raise _unsupported(state)
    distances = {name: _distance(state, name) for name in names if name != _SMALL}
    best = min(distances, key=lambda name: distances[name])
    if distances[best] > len(state) // 4:
        raise _unsupported(state)
    if best == _LARGE:
        best = _SMALL if "_320_" in file_name else _LARGE
        other = _LARGE if best == _SMALL else _SMALL
        assumptions.append(f"it is a {best}; a {other} has tensors of the same shapes (--architecture {other})")
    return best


def _distance(state: Mapping[str, Tensor], name: str) -> int:
    """How many parameters one of the two has and the other has not, or in another shape; classes are not compared."""
    with torch.device("meta"):
        expected = build_network(f"torchvision/{name}", 2).state_dict()
    ours = {key: _shape_without_classes(key, value) for key, value in expected.items()}
    theirs = {key: _shape_without_classes(key, value) for key, value in state.items()}
    keys = {key for key in ours.keys() | theirs.keys() if not key.endswith("num_batches_tracked")}
    return sum(ours.get(key) != theirs.get(key) for key in keys)


def _shape_without_classes(key: str, value: Tensor) -> tuple[int, ...]:
    by_class = key.startswith((_CLASS_LOGITS, "roi_heads.box_predictor."))
    return tuple(value.shape[1:]) if by_class else tuple(value.shape)


def _unsupported(state: Mapping[str, Tensor]) -> UserError:
    prefixes = sorted({".".join(key.split(".")[:2]) for key in state})
    return UserError.listing(
        f"This file has the parameters of a torchvision detector that cannot be imported. Supported are {SUPPORTED}:",
        [
            f"its parameters are below {', '.join(shown(prefixes, 20))}",
            f"of torchvision there are {', '.join(name.removeprefix('torchvision/') for name in PUBLISHED)}",
            "an export of understudy is imported as a folder, with its detector.json",
        ],
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def _sigmoid_classes(
    weights: dict[str, Tensor], choices: Choices, assumptions: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Cut the rows without a class off the last layer; returns the names and ids of the others."""
    bias = _needed(weights, f"{_CLASS_LOGITS}.bias")
    anchors = len(_needed(weights, "head.regression_head.bbox_reg.bias")) // 4
    count = len(bias) // max(1, anchors)
    outputs = _named_outputs(choices, count, count, assumptions)
    real = [number for number, name in enumerate(outputs) if name not in _NO_CLASS]
    if len(real) < count:
        for part in ("weight", "bias"):
            rows = _needed(weights, f"{_CLASS_LOGITS}.{part}")
            kept = rows.unflatten(0, (anchors, count))[:, real].flatten(0, 1)
            weights[f"{_CLASS_LOGITS}.{part}"] = kept
    names = tuple(outputs[number] for number in real)
    return names, category_ids(names)


def _softmax_classes(
    weights: dict[str, Tensor], choices: Choices, assumptions: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of all outputs but the background, and their ids, which are COCO's where there are 90."""
    count = len(_needed(weights, f"{_CLASS_SCORES}.bias"))
    outputs = _named_outputs(choices, count, count - 1, assumptions)
    outputs = outputs[1:] if len(outputs) == count else outputs
    names = tuple(f"n/a {number}" if name == "N/A" else name for number, name in enumerate(outputs, start=1))
    return names, tuple(range(1, count)) if count == _COCO_OUTPUTS else category_ids(names)


def _named_outputs(choices: Choices, outputs: int, classes: int, assumptions: list[str]) -> list[str]:
    """The name of each output of the last layer; the background may be left out where it is not a class."""
    if choices.classes is not None:
        names = list(choices.classes)
        whole = len(names) == outputs and (outputs == classes or names[0] == "__background__")
        if whole or len(names) == classes:
            return names
        if outputs != _COCO_OUTPUTS or names != list(
            dict.fromkeys(n for n in torchvision_categories() if n not in _NO_CLASS)
        ):
            raise UserError(f"--classes gives {len(names)} names, and the file has {classes} classes.")
    elif outputs != _COCO_OUTPUTS:
        raise UserError(
            f"The file does not name its {classes} classes: give --classes cat,dog,... or a file with a name on each "
            "line, in the order of the labels, __background__ included where it is one."
        )
    else:
        assumptions.append(
            "its 91 outputs are COCO's category ids, as in torchvision's published weights (--classes NAMES)"
        )
    return torchvision_categories()


def _needed(weights: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in weights:
        raise UserError(f"The file has no {key}, without which the number of its classes is not known.")
    return weights[key]


def _known_settings(choices: Choices) -> dict[str, Any]:
    faults = []
    for name, value in choices.settings.items():
        if name not in _SETTINGS:
            faults.append(f"--set {name}: what can be set of a detector of torchvision is {', '.join(_SETTINGS)}")
        elif not fits(value, _SETTINGS[name]) and (name, value) != ("norm_eps", 0):
            faults.append(f"--set {name}: expected a number such as {_SETTINGS[name]}, got {value!r}")
    if choices.style is not None:
        faults.append("--style is for files of mmdet; torchvision's detectors have one style")
    if faults:
        raise UserError.listing("This import is told what cannot be:", faults)
    return dict(choices.settings)
