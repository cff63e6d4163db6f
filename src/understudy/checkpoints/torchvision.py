"""Import torchvision's published detectors, fine-tuned or not. Their tensors identify them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from understudy.checkpoints.class_names import NO_CLASS, category_ids, coco_categories, torchvision_categories
from understudy.checkpoints.import_options import SUMMARY, ImportedDetector, ImportOptions, fits, unsupported
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.networks import PUBLISHED, build_network
from understudy.networks.published import ZERO_EPS

_CLASS_LOGITS = "head.classification_head.cls_logits"
_CLASS_SCORES = "roi_heads.box_predictor.cls_score"
_LARGE, _SMALL = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
_COCO_OUTPUTS = 91
_SETTINGS = {"norm_eps": 1e-5, "shorter_side": 800, "longer_side": 1333}


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Check whether these are the names of a torchvision detector's parameters."""
    return any(key.startswith(("backbone.body.", "backbone.fpn.")) for key in state) and any(
        key.startswith(("head.", "roi_heads.", "rpn.")) for key in state
    )


def from_torchvision(state: Mapping[str, Tensor], options: ImportOptions, file_name: str = "") -> ImportedDetector:
    """Describe a torchvision detector by the names and options of this package.

    A head of sigmoids keeps only the outputs with a class, because its logits are independent. A softmax needs all
    outputs: those without a class in COCO's numbering stay as classes.

    Args:
        state: its state dict.
        options: the user's options.
        file_name: distinguishes two detectors whose tensors have the same shapes.

    Raises:
        UserError: it is not one of torchvision's published detectors, an option is not available, or one is missing.
    """
    assumptions: list[str] = []
    name = _builder(state, options.architecture, file_name, assumptions)
    weights = dict(state)
    if f"{_CLASS_SCORES}.weight" in weights:  # a second stage, which scores by a softmax
        names, ids = _softmax_classes(weights, options, assumptions)
    else:
        names, ids = _sigmoid_classes(weights, options, assumptions)
    build: dict[str, Any] = {"name": f"torchvision/{name}", "num_classes": len(names)}
    build |= _known_settings(options)
    if name in ZERO_EPS and "norm_eps" not in build:
        assumptions.append(
            "eps of its frozen batch normalisation is 0, as in the published weights (--set norm_eps=1e-5)"
        )
    for key, values in (("image_mean", options.mean), ("image_std", options.std)):
        if values is not None:
            build[key] = [value / 255 for value in values]
    return ImportedDetector("torchvision", build, weights, names, ids, tuple(assumptions))


def _builder(state: Mapping[str, Tensor], asked: str | None, file_name: str, assumptions: list[str]) -> str:
    """Return the builder whose network has these parameters, or nearly all of them."""
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
        raise _not_published(state)
    distances = {name: _distance(state, name) for name in names if name != _SMALL}
    best = min(distances, key=lambda name: distances[name])
    if distances[best] > len(state) // 4:
        raise _not_published(state)
    if best == _LARGE:
        best = _SMALL if "_320_" in file_name else _LARGE
        other = _LARGE if best == _SMALL else _SMALL
        assumptions.append(f"its builder is {best}; {other} has tensors of the same shapes (--architecture {other})")
    return best


def _distance(state: Mapping[str, Tensor], name: str) -> int:
    """Count the parameters that only one of the two has, or in another shape. The number of classes may differ."""
    ours, theirs = _published_shapes(name), _shapes_without_classes(state)
    return sum(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys())


@cache
def _published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with shapes_only():
        return _shapes_without_classes(build_network(f"torchvision/{name}", 2).state_dict())


def _shapes_without_classes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    by_class = (_CLASS_LOGITS, "roi_heads.box_predictor.")
    return {
        key: tuple(value.shape[1:]) if key.startswith(by_class) else tuple(value.shape)
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }


def _not_published(state: Mapping[str, Tensor]) -> UserError:
    facts = [
        f"it fits none of torchvision's {', '.join(name.removeprefix('torchvision/') for name in PUBLISHED)}",
        "if it is weights.pt of `understudy export`: import the folder, which also contains detector.json",
    ]
    return unsupported("This detector of torchvision cannot be imported:", state, facts)


# --- classes ----------------------------------------------------------------------------------------------------------


def _sigmoid_classes(
    weights: dict[str, Tensor], options: ImportOptions, assumptions: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Remove the outputs without a class from the last layer, and return names and ids of the others."""
    bias = _needed(weights, f"{_CLASS_LOGITS}.bias")
    anchors = len(_needed(weights, "head.regression_head.bbox_reg.bias")) // 4
    count = len(bias) // max(1, anchors)
    outputs = _named_outputs(options, count, count, assumptions)
    real = [number for number, name in enumerate(outputs) if name not in NO_CLASS]
    if len(real) < count:
        for part in ("weight", "bias"):
            rows = _needed(weights, f"{_CLASS_LOGITS}.{part}")
            kept = rows.unflatten(0, (anchors, count))[:, real].flatten(0, 1)
            weights[f"{_CLASS_LOGITS}.{part}"] = kept
    names = tuple(outputs[number] for number in real)
    return names, category_ids(names)


def _softmax_classes(
    weights: dict[str, Tensor], options: ImportOptions, assumptions: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids of all outputs but the background; the ids are COCO's if there are 90."""
    count = len(_needed(weights, f"{_CLASS_SCORES}.bias"))
    outputs = _named_outputs(options, count, count - 1, assumptions)
    outputs = outputs[1:] if len(outputs) == count else outputs
    names = tuple(f"n/a {number}" if name == "N/A" else name for number, name in enumerate(outputs, start=1))
    return names, tuple(range(1, count)) if count == _COCO_OUTPUTS else category_ids(names)


def _named_outputs(options: ImportOptions, outputs: int, classes: int, assumptions: list[str]) -> list[str]:
    """Return the name of each output of the last layer; without the background if the user omits it."""
    if options.classes is not None:
        names = list(options.classes)
        whole = len(names) == outputs and (outputs == classes or names[0] == "__background__")
        if whole or len(names) == classes:
            return names
        if outputs != _COCO_OUTPUTS or names != list(coco_categories().values()):
            raise UserError(f"--classes has {len(names)} names, the file has {classes} classes.")
    elif outputs != _COCO_OUTPUTS:
        raise UserError(
            f"The file does not contain the names of its {classes} classes: add --classes cat,dog,... or a file with "
            "a name on each line, in the order of the labels, including __background__ if it is one of them."
        )
    else:
        assumptions.append(
            "its 91 outputs are COCO's category ids, as in torchvision's published weights (--classes NAMES)"
        )
    return torchvision_categories()


def _needed(weights: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in weights:
        raise UserError(f"The file does not contain {key}, from which the number of classes is read.")
    return weights[key]


def _known_settings(options: ImportOptions) -> dict[str, Any]:
    faults = []
    for name, value in options.settings.items():
        if name not in _SETTINGS:
            faults.append(
                f"--set {name}: detectors of torchvision have no such setting; available: {', '.join(_SETTINGS)}"
            )
        elif not fits(value, _SETTINGS[name]) and (name, value) != ("norm_eps", 0):
            faults.append(f"--set {name}: expected a number like {_SETTINGS[name]}, got {value!r}")
    if options.style is not None:
        faults.append("--style: not available for detectors of torchvision, which have one style")
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return dict(options.settings)
