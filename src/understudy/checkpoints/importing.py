"""Import a detector of another library as a checkpoint."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yaml import YAMLError

from understudy.checkpoints.class_names import class_names
from understudy.checkpoints.fcos_authors import from_fcos_authors, is_by_fcos_authors
from understudy.checkpoints.import_options import SUMMARY, ImportedDetector, ImportOptions, unsupported
from understudy.checkpoints.mmdet import from_mmdet, is_mmdet
from understudy.checkpoints.mmdet_keys import UNKNOWN
from understudy.checkpoints.native import FORMAT, STUDENT, Checkpoint, load_checkpoint, write_checkpoint
from understudy.checkpoints.torchvision import from_torchvision, is_torchvision
from understudy.checkpoints.unpickle import read_foreign
from understudy.detectors.build import plain_network
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.reading import parse_yaml, read_json
from understudy.text import listed


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
    """Import a detector of torchvision or mmdet: write a checkpoint that can be used like any other.

    Nothing in the file is executed. Tensors and plain values are read, all other objects are skipped.

    Args:
        file: published or fine-tuned weights of torchvision, a checkpoint of mmdet 2.x or 3.x or of the FCOS authors'
            repository, or an exported folder.
        output: the checkpoint to write. It must not exist. None: the file's name with ``.ckpt``, in the current folder.
        classes: names of the classes, in the order of the labels: a list, ``"coco"``, ``"voc"``, ``"cat,dog"`` or a
            file with a name on each line; None: those in the file.
        style: style of a ResNet's bottlenecks, ``"pytorch"`` or ``"caffe"``; None: the file's. If the file does not
            contain the normalisation, a caffe-style network takes images in 0..255 with blue first.
        mean: mean of red, green and blue, for pixels in 0..255; None: the file's.
        std: their standard deviation, likewise.
        architecture: the family (mmdet) or the builder (torchvision), if it cannot be inferred from the weights.
        settings: settings of the plain network by name, instead of the file's.
        partial: continue if weights are missing (random initialisation) or left over (dropped).

    Returns:
        The written checkpoint. ``meta["imported"]`` describes its origin: ``file``, ``source``, ``assumptions``,
        ``skipped`` (names of objects in the file) and ``faults`` (weights that do not fit, see ``partial``). A
        checkpoint of understudy is returned as it is, and nothing is written.

    Raises:
        UserError: the file is not a checkpoint, or one of understudy although an output or options are given; its
            detector is not supported, an option is invalid or missing, the weights do not fit (all faults are listed),
            or the output exists.
    """
    file, wanted = Path(file), output
    output = Path(output) if output is not None else Path(f"{file.resolve().stem}.ckpt")
    options = ImportOptions(
        classes=None if classes is None else class_names(classes),
        style=style,
        mean=mean,
        std=std,
        architecture=architecture,
        settings=settings or {},
    )
    if file.is_dir() and not (file / "detector.json").is_file():
        raise UserError(
            f"{file} is a folder without detector.json: expected a file, or a folder of `understudy export`."
        )
    content = read_foreign(file / "weights.pt" if file.is_dir() else file)
    if isinstance(content.value, Mapping) and "understudy" in content.value:
        if wanted is not None or options != ImportOptions():
            raise UserError(
                f"{file} is already a checkpoint of understudy: use it as it is, without import. An output or options "
                "have no effect."
            )
        return load_checkpoint(file)
    state = _state_dict(file, content.value)
    found = _exported(file, state) if file.is_dir() else _found(file, state, content.value, options)
    network, faults = _network(found, partial)
    if output.exists():
        raise UserError(f"{output} exists and is not overwritten: choose another file by --output.")
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
    """Return the tensors by name, without the prefix of a distributed run."""
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    state = {key: one for key, one in value.items() if isinstance(one, Tensor)} if isinstance(value, Mapping) else {}
    if not state or not all(isinstance(key, str) for key in state):
        found = listed([str(key)[:40] for key in value], 8) if isinstance(value, Mapping) else "one object"
        raise UserError(f"{file} contains no weights by name: expected a state dict, got {found or 'nothing'}.")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _found(
    file: Path, state: Mapping[str, Tensor], content: Mapping[str, Any], options: ImportOptions
) -> ImportedDetector:
    try:
        if is_by_fcos_authors(state):
            return from_fcos_authors(state, options)
        if is_torchvision(state):
            return from_torchvision(state, options, file.name)
        if is_mmdet(state):
            return from_mmdet(state, content.get("meta"), options)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    backbone = all(key.startswith(("conv1.", "bn1.", "layer", "fc.", "features.", "backbone.")) for key in state)
    advice = ["it is a backbone: use it by detector.backbone_weights="] if backbone else []
    raise unsupported(f"{file} contains no detector that can be imported:", state, advice)


def _exported(folder: Path, state: dict[str, Tensor]) -> ImportedDetector:
    """Read the detector in a folder of ``understudy export``."""
    try:
        description = read_json(folder / "detector.json")
        build, names = dict(description["build"]), tuple(description["classes"])
        ids = tuple(description["category_ids"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / 'detector.json'} is damaged ({error!r}): export the detector again.") from error
    return ImportedDetector("understudy", build, state, names, ids, ())


# --- for the command line ---------------------------------------------------------------------------------------------


def numbers_of(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Read the numbers of a flag; raises a ``UserError`` that names it.

    Examples:
        >>> numbers_of("--mean", "103.53,116.28,123.675")
        (103.53, 116.28, 123.675)
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{flag}: expected three numbers from 0 to 255 (red,green,blue), got {text!r}") from error


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings, whose values are YAML; raises a ``UserError`` that lists every fault.

    Examples:
        >>> settings_of(["norm_on_bbox=true", "ratios=[0.5, 1, 2]"])
        {'norm_on_bbox': True, 'ratios': [0.5, 1, 2]}
    """
    settings, faults = {}, []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            settings[name] = parse_yaml(text)
        except YAMLError:
            equals = ""
        if not (name and equals):
            faults.append(f"--set: expected KEY=VALUE, got {pair!r}")
    if faults:
        raise UserError.listing(SUMMARY, faults)
    return settings


def report(checkpoint: Checkpoint, file: Path) -> str:
    """Describe an import: the detector, the assumptions, skipped objects, and the next step."""
    if checkpoint.path == file:
        return f"{file} is already a checkpoint of understudy: use it as it is."
    imported = checkpoint.meta["imported"]
    network, names = checkpoint.detector.network, checkpoint.classes
    millions = sum(value.numel() for value in network.state_dict().values()) / 1e6
    lines = [
        f"{imported['file']} ({imported['source']}): {checkpoint.meta['build']['name']}, {millions:.1f} M parameters",
        f"{len(names)} classes: {listed(names, 8)}",
    ]
    for title, items in (
        (
            "Assumptions, which are not in the file (with the option that changes each):",
            _grouped(imported["assumptions"]),
        ),
        ("Imported although weights do not fit:", imported["faults"]),
    ):
        lines += [title, *(f"  - {item}" for item in items)] if items else []
    if skipped := imported["skipped"]:
        lines.append(f"Objects in the file that were skipped, not executed: {listed(skipped)}")
    return "\n".join([*lines, f"Written: {checkpoint.path}", f"Next: understudy evaluate {checkpoint.path} DATA"])


def _grouped(assumptions: Sequence[str]) -> list[str]:
    """Return a line for each assumption with an option of its own, then one for the settings of mmdet's own config."""
    own = [item for item in assumptions if not item.endswith("=...)")]
    settings = [item.partition(" (--set ")[0] for item in assumptions if item.endswith("=...)")]
    if settings:
        text = f"settings of mmdet's own config: {', '.join(settings)} (--set NAME=VALUE)"
        own.append(textwrap.fill(text, 100, subsequent_indent="    "))
    return own


# --- weights ----------------------------------------------------------------------------------------------------------


def _network(found: ImportedDetector, partial: bool) -> tuple[torch.nn.Module, list[str]]:
    """Build the detector, load its weights, and also return those that do not fit.

    Raises:
        UserError: weights do not fit, and ``partial`` is false or cannot help.
    """
    try:
        with shapes_only():
            expected = plain_network(**found.build).state_dict()
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
        few = len(missing) > MOST_MISSING * len(expected)
        hopeless = bool(shapes or not_finite or few)
        if faults and (hopeless or not partial):
            advice = "" if hopeless else " Add --partial to import it anyway: missing weights are randomly initialised."
            advice += " Most of it would be randomly initialised: it is another detector (--architecture)." * few
            raise UserError.listing(f"The weights do not fit the detector, {found.build['name']}.{advice}", faults)
        network = plain_network(**found.build)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"The detector in the file cannot be built: {error}") from error
    network.load_state_dict({key: value for key, value in weights.items() if key in expected}, strict=False)
    return network, faults


MOST_MISSING = 0.5
"""Largest share of a detector's tensors that may be missing with ``--partial``."""


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _counted(fault: str, keys: Sequence[str]) -> list[str]:
    return [f"{len(keys)} {fault}: {listed(keys, separator='; ')}"] if keys else []


def _content(found: ImportedDetector, network: torch.nn.Module, imported: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint as a run writes it, without a data set."""
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
