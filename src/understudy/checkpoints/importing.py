"""Importing a detector of another library, as a checkpoint of understudy."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from understudy.checkpoints.foreign import SUPPORTED, Choices, Found, class_names, shown
from understudy.checkpoints.mmdet import from_mmdet, is_mmdet
from understudy.checkpoints.mmdet_keys import UNKNOWN
from understudy.checkpoints.own import FORMAT, STUDENT, Checkpoint, load_checkpoint, write_checkpoint
from understudy.checkpoints.published import from_torchvision, is_torchvision
from understudy.checkpoints.unpickle import read_foreign
from understudy.detectors.plain import build_network
from understudy.errors import UserError


def import_checkpoint(
    file: str | Path,
    output: str | Path | None = None,
    *,
    classes: str | Sequence[str] | None = None,
    style: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    architecture: str | None = None,
    settings: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> Checkpoint:
    """Import a detector of torchvision or mmdet: write a checkpoint that evaluates, exports and teaches as ours do.

    The file is read without executing anything in it: tensors and plain values are taken, all else is passed over.

    Args:
        file: weights torchvision published or fine-tuned ones, a checkpoint of mmdet 2.x or 3.x, or an exported folder.
        output: the checkpoint to write, which must not exist; None is the file's name with ``.ckpt``, in the current
            folder.
        classes: names of the classes, in the order of the labels: a list, ``"coco"``, ``"voc"``, ``"cat,dog"`` or a
            file with a name on each line; None takes those in the file.
        style: of a ResNet's bottlenecks, ``"pytorch"`` or ``"caffe"``; None takes what the file says. The images of a
            caffe-style network whose file does not say otherwise are not scaled and have blue first.
        mean: of red, green and blue, of pixels in 0..255; None takes what the file says.
        std: likewise.
        architecture: the family of a file of mmdet, the builder of one of torchvision, where it cannot be told.
        settings: of the plain network by name, in place of what the file says.
        partial: import although weights are missing (they stay random) or left over (they are dropped).

    Returns:
        The checkpoint that was written. ``meta["imported"]`` tells where it came from: ``file``, ``source``,
        ``assumptions``, ``skipped`` (objects in the file that were not executed) and ``faults`` (see ``partial``). A
        file that is a checkpoint of understudy already is returned as it is, and nothing is written.

    Raises:
        UserError: the file is no checkpoint, its detector is not supported, something must be said that the file does
            not say, its weights do not fit (all are listed), or the output exists.
    """
    file = Path(file)
    output = Path(output) if output is not None else Path(f"{file.resolve().stem}.ckpt")
    choices = Choices(
        classes=None if classes is None else class_names(classes),
        style=style,
        mean=mean,
        std=std,
        architecture=architecture,
        settings=settings or {},
    )
    if file.is_dir() and not (file / "detector.json").is_file():
        raise UserError(f"{file} is a folder without detector.json: expected a checkpoint, or a folder of an export.")
    content = read_foreign(file / "weights.pt" if file.is_dir() else file)
    if isinstance(content.value, Mapping) and "understudy" in content.value:
        return load_checkpoint(file)
    state = _state_dict(file, content.value)
    found = _exported(file, state) if file.is_dir() else _found(file, state, content.value, choices)
    network, faults = _network(found, partial)
    if output.exists():
        raise UserError(f"{output} exists, and nothing is overwritten: give another file by --output.")
    imported = {
        "file": file.name,
        "source": found.source,
        "assumptions": list(found.assumptions),
        "skipped": list(content.skipped),
        "faults": faults,
    }
    write_checkpoint(output, _content(found, network, imported))
    return load_checkpoint(output)


def _state_dict(file: Path, value: Any) -> dict[str, Tensor]:
    """The tensors by name, wherever training scripts put them, without the prefix of a distributed run."""
    for drawer in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(drawer), Mapping):
            value = value[drawer]
            break
    state = {key: one for key, one in value.items() if isinstance(one, Tensor)} if isinstance(value, Mapping) else {}
    if not state or not all(isinstance(key, str) for key in state):
        held = ", ".join(shown([str(key)[:40] for key in value], 8)) if isinstance(value, Mapping) else "one object"
        raise UserError(f"{file} holds no weights by name (it holds {held or 'nothing'}).")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _found(file: Path, state: Mapping[str, Tensor], content: Mapping[str, Any], choices: Choices) -> Found:
    try:
        if is_torchvision(state):
            return from_torchvision(state, choices, file.name)
        if is_mmdet(state):
            return from_mmdet(state, content.get("meta"), choices)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    prefixes = sorted({".".join(key.split(".")[:2]) for key in state})
    backbone = all(key.startswith(("conv1.", "bn1.", "layer", "fc.", "features.", "backbone.")) for key in state)
    raise UserError.listing(
        f"{file} is no detector that can be imported. Supported are {SUPPORTED}:",
        [
            f"its {len(state)} parameters are below {', '.join(shown(prefixes, 20))}",
            *(["they are a backbone's alone, which is given by detector.backbone_weights="] if backbone else []),
        ],
    )


def _exported(folder: Path, state: dict[str, Tensor]) -> Found:
    """A detector in a folder of ``understudy export``."""
    try:
        description = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        build, names = dict(description["build"]), tuple(description["classes"])
        ids = tuple(description["category_ids"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'detector.json'} does not describe an export of understudy ({error!r}).") from error
    return Found("understudy", build, state, names, ids, ())


# --- for the command line ---------------------------------------------------------------------------------------------


def numbers_of(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Read ``103.53,116.28,123.675``; raises a ``UserError`` that names the flag."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{flag} is three numbers, red,green,blue, from 0 to 255; got {text!r}.") from error


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings, ``norm_on_bbox=true``, whose values are YAML's; raises a ``UserError`` that lists every fault."""
    settings, faults = {}, []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            settings[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals):
            faults.append(f"{pair!r} is not KEY=VALUE")
    if faults:
        raise UserError.listing("--set takes one setting, e.g. --set norm_on_bbox=true:", faults)
    return settings


def report(checkpoint: Checkpoint, file: Path) -> str:
    """What was imported from a file, what was assumed, what was passed over, and what to do next."""
    if checkpoint.path == file:
        return f"{file} is a checkpoint of understudy already: use it as it is."
    imported = checkpoint.meta["imported"]
    network, names = checkpoint.detector.network, checkpoint.classes
    millions = sum(value.numel() for value in network.state_dict().values()) / 1e6
    lines = [
        f"{imported['file']} ({imported['source']}): {checkpoint.meta['build']['name']}, {millions:.1f} M parameters",
        f"{len(names)} classes: {', '.join(shown(names, 8))}",
    ]
    for title, items in (
        ("Assumed, because the file does not say it (and what changes it):", _grouped(imported["assumptions"])),
        ("Imported although the weights do not fit:", imported["faults"]),
    ):
        lines += [title, *(f"  - {item}" for item in items)] if items else []
    if skipped := imported["skipped"]:
        lines.append(f"Skipped, not executed: {', '.join(shown(skipped))}")
    return "\n".join([*lines, f"Written: {checkpoint.path}", f"Next: understudy evaluate {checkpoint.path} DATA"])


def _grouped(assumptions: Sequence[str]) -> list[str]:
    """Assumptions as lines: those with options of their own, then all that ``--set`` changes in one."""
    own = [item for item in assumptions if "(--set " not in item]
    settings = [item.partition(" (--set ")[0] for item in assumptions if "(--set " in item]
    if settings:
        text = f"as in the family's own config: {', '.join(settings)} (--set NAME=VALUE)"
        own.append(textwrap.fill(text, 100, subsequent_indent="    "))
    return own


# --- weights ----------------------------------------------------------------------------------------------------------


def _network(found: Found, partial: bool) -> tuple[torch.nn.Module, list[str]]:
    """Build the detector and load its weights; returns also what did not fit, which is refused unless ``partial``."""
    try:
        with torch.device("meta"):  # sizes alone: a damaged file may ask for any
            expected = build_network(**found.build).state_dict()
        weights = {key: value for key, value in found.weights.items() if key in expected or not _is_counter(key)}
        missing = [key for key in expected if key not in weights and not _is_counter(key)]
        left_over = [key.removeprefix(UNKNOWN) for key in weights if key not in expected]
        shapes = [
            f"{key} is {tuple(value.shape)} in the file, {tuple(expected[key].shape)} in the detector"
            for key, value in weights.items()
            if key in expected and value.shape != expected[key].shape
        ]
        not_finite = [key for key, value in weights.items() if key in expected and not value.isfinite().all()]
        faults = [
            *_counted("missing", missing),
            *_counted("left over", left_over),
            *_counted("of another shape", shapes),
            *_counted("not finite", not_finite),
        ]
        hopeless = bool(shapes or not_finite)
        if faults and (hopeless or not partial):
            advice = "" if hopeless else " --partial imports it nevertheless: what is missing stays random."
            raise UserError.listing(
                f"The weights do not fit the {found.build['name']} that the file describes.{advice}", faults
            )
        network = build_network(**found.build)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"The detector that the file describes cannot be built: {error}") from error
    network.load_state_dict({key: value for key, value in weights.items() if key in expected}, strict=False)
    return network, faults


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _counted(what: str, keys: Sequence[str]) -> list[str]:
    return [f"{len(keys)} {what}: {'; '.join(shown(keys))}"] if keys else []


def _content(found: Found, network: torch.nn.Module, imported: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as training writes it, of a run without data."""
    transform: Any = network.transform
    data = {
        "path": None,
        "val": "val",
        "shorter_side": [transform.min_size[-1]],
        "longer_side": transform.max_size,
    }
    meta = {
        "format": FORMAT,
        "build": found.build,
        "classes": list(found.classes),
        "category_ids": list(found.category_ids),
        "config": {"data": data},
        "imported": imported,
        "AP": None,
    }
    weights = {STUDENT + key: value for key, value in network.state_dict().items()}
    return {"understudy": meta, "state_dict": weights}
