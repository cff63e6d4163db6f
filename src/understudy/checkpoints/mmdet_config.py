"""Read the config in an mmdet checkpoint: Python text, which is parsed and never executed."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.checkpoints.mmdet_layout import last_name

_UNKNOWN = object()
LONGEST_TEXT = 2_000_000
"""Most characters of a config; a longer text is not parsed."""


def parse_config(text: Any) -> dict[str, Any] | None:
    """Read the assignments of a config: ``dict(...)``, lists, tuples, literals and the names assigned before.

    Args:
        text: as in ``meta["cfg"]`` of mmdet 3.x or ``meta["config"]`` of 2.x.

    Returns:
        Plain values by name, without computed ones. None: the text is not a config.

    Examples:
        >>> parse_config("scale = (1333, 800)\\nmodel = dict(type='GFL', scale=scale, computed=len('ab'))")
        {'scale': (1333, 800), 'model': {'type': 'GFL', 'scale': (1333, 800)}}
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        return None
    names: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        names[target.id] = _value(statement.value, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return {name: value for name, value in names.items() if value is not _UNKNOWN}


def look_up(config: Mapping[str, Any] | None, path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, or the default.

    Examples:
        >>> look_up({"model": {"neck": {"type": "FPN"}}}, "model.neck.type")
        'FPN'
    """
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def modernised(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a 2.x config that are read here as in 3.x; a config of 3.x stays as it is."""
    model = dict(look_up(config, "model", {}))
    test: Any = model.get("test_cfg") or look_up(config, "test_cfg", {})
    test = {
        name: _modern_nms(part) if isinstance(part, Mapping) else part
        for name, part in (_modern_nms(test) if isinstance(test, Mapping) else {}).items()
    }
    neck = look_up(model, "neck", {})
    if isinstance(neck, Mapping) and neck.get("add_extra_convs") is True and neck.get("extra_convs_on_inputs") is False:
        model["neck"] = {**neck, "add_extra_convs": "on_output"}
    return {**config, "model": {**model, "test_cfg": test}}


def _modern_nms(part: Mapping[str, Any]) -> dict[str, Any]:
    part = dict(part)
    nms = part.get("nms")
    if isinstance(nms, Mapping) and "iou_thr" in nms:
        part["nms"] = {**nms, "iou_threshold": nms["iou_thr"]}
    if "nms_thr" in part:
        part["nms"] = {"iou_threshold": part["nms_thr"]}
    if "max_num" in part:
        part["max_per_img"] = part["max_num"]
    return part


def normalisation(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return mean, std and order of the colours (``bgr_to_rgb``: red first); None: not in the config."""
    places = [("bgr_to_rgb", False, look_up(config, "model.data_preprocessor"))]
    places += [("to_rgb", True, look_up(config, "img_norm_cfg"))]
    places += [("to_rgb", True, step) for step in _steps(config) if last_name(step.get("type")) == "Normalize"]
    for order, default, place in places:
        if isinstance(place, Mapping) and _three(place.get("mean")) and _three(place.get("std")):
            return {"mean": place["mean"], "std": place["std"], "bgr_to_rgb": bool(place.get(order, default))}
    return None


def image_scale(config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return the shorter and the longer side of a test image in pixels; None: not in the config."""
    steps = _steps(config)
    resizes = [step for step in steps if last_name(step.get("type")) == "Resize"]
    for scale in [step.get("img_scale") for step in steps] + [step.get("scale") for step in resizes]:
        scale = scale[0] if isinstance(scale, list) and scale and isinstance(scale[0], list | tuple) else scale
        if isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
            return min(scale), max(scale)
    return None


def _steps(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of the test pipeline, including nested ones."""
    for path in ("test_dataloader.dataset.pipeline", "data.test.pipeline", "test_pipeline"):
        steps = look_up(config, path)
        if isinstance(steps, list):
            return _flattened(steps)
    return []


def _flattened(steps: Sequence[Any]) -> list[Mapping[str, Any]]:
    found = []
    for step in steps:
        if isinstance(step, Mapping):
            inner = step.get("transforms")
            found += [step, *(_flattened(inner) if isinstance(inner, list) else [])]
    return found


def recorded_names(meta: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the class names in a checkpoint's ``meta`` or in its config; None: neither has them."""
    dataset = meta.get("dataset_meta")
    places = [dataset.get("classes"), dataset.get("CLASSES")] if isinstance(dataset, Mapping) else []
    places += [meta.get("CLASSES")]
    places += [look_up(config, f"{where}.classes") for where in ("test_dataloader.dataset.metainfo", "data.test")]
    for names in places:
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(one, int | float) for one in value)


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression, or ``_UNKNOWN`` if it is more than a literal."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, _UNKNOWN)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand, names)
            return -number if isinstance(number, int | float) else _UNKNOWN
        case ast.List() | ast.Tuple():
            values = [_value(element, names) for element in node.elts]
            if any(value is _UNKNOWN for value in values):
                return _UNKNOWN
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.Dict():
            keys = [_UNKNOWN if key is None else _value(key, names) for key in node.keys]
            return _known(zip(keys, [_value(value, names) for value in node.values], strict=True))
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return _known((keyword.arg, _value(keyword.value, names)) for keyword in node.keywords)
        case _:
            return _UNKNOWN


def _known(entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries if isinstance(key, str) and value is not _UNKNOWN}
