"""Load and write checkpoints of understudy. Nothing in a file is executed."""

import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.checkpoints.unpickle import foreign_kind
from understudy.config import TrainConfig
from understudy.detectors import Detector, open_detector
from understudy.detectors.backbone_weights import not_finite
from understudy.detectors.build import plain_network
from understudy.detectors.shapes import shapes_only
from understudy.errors import UserError
from understudy.files import write_atomically
from understudy.quantisation import Quantiser
from understudy.reading import require_file
from understudy.text import is_printable, shown

FORMAT = 1
STUDENT = "learner.student.network."
"""Prefix of the student's weights in a checkpoint's ``state_dict``, which also contains the adapters of methods."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained detector, with its classes and config.

    Attributes:
        detector: the detector, on the CPU and in ``eval()``.
        classes: names of the classes. Labels are positions in it.
        config: config of the run, as plain values.
        meta: further facts: ``build`` (options of the plain network), ``category_ids``, ``epoch``, ``step``, ``AP``.
        path: the file.
    """

    detector: Detector
    classes: tuple[str, ...]
    config: dict[str, Any]
    meta: dict[str, Any]
    path: Path


def build_options(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Return the options of :func:`understudy.detectors.build.plain_network` for the detector of a config.

    Those that a config leaves open are left out: then they are the usual ones of a detector.
    """
    of_training = {"backbone_weights", "channel_order", "frozen_stages"}
    detector = config.detector.model_dump(mode="json", exclude=of_training)
    sizes = {"shorter_side": config.data.shorter_side, "longer_side": config.data.longer_side}
    return {
        **{key: value for key, value in detector.items() if value != "auto"},
        "num_classes": num_classes,
        **{key: value[-1] if isinstance(value, list) else value for key, value in sizes.items() if value},
    }


def load_checkpoint(path: str | Path, *, quantised: bool = False) -> Checkpoint:
    """Load a detector from a checkpoint, or from a run folder (its best checkpoint, else its last).

    Only tensors and plain values are read. A file that contains anything else is refused, not executed.

    Args:
        path: the file or folder.
        quantised: whether the detector of a run with ``quantise`` computes in simulated INT8, as the run measured it.
            Its weights are the same. Has no effect on others.

    Raises:
        UserError: the file does not exist, is damaged or not a checkpoint of understudy, or its weights do not fit or
            are not finite.
    """
    file = _checkpoint_file(Path(path))
    content = read_checkpoint(file)
    meta = content["understudy"]
    if faults := list(faults_of_metadata(meta)):
        raise UserError.listing(f"The metadata in {file} are damaged:", faults)
    weights = {
        name.removeprefix(STUDENT): value
        for name, value in content["state_dict"].items()
        if isinstance(name, str) and name.startswith(STUDENT)
    }
    build = meta["build"]
    try:
        with shapes_only():  # first: metadata of a damaged file can ask for any amount of memory
            expected = plain_network(**build).state_dict()
        check_weights(f"The weights in {file} do not fit its detector, {build['name']}:", expected, weights)
        network = plain_network(**build)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise UserError(f"The detector in {file} cannot be built by this version of understudy ({reason}).") from error
    check_finite(file, weights, network.state_dict())
    network.load_state_dict(weights)
    detector = open_detector(network, build["name"]).eval()
    if quantised and (ranges := meta.get("quantisation")):
        Quantiser(detector, ranges=ranges)
    return Checkpoint(detector, tuple(meta["classes"]), meta["config"], meta, file)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a checkpoint or a run folder states about its detector, without building it.

    Raises:
        UserError: as :func:`load_checkpoint`, apart from faults of the weights.
    """
    file = _checkpoint_file(Path(path))
    meta = read_checkpoint(file)["understudy"]
    if faults := list(faults_of_metadata(meta)):
        raise UserError.listing(f"The metadata in {file} are damaged:", faults)
    return meta


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read the content of a checkpoint; raises the errors of :func:`load_checkpoint`."""
    if file.exists():
        require_file(file, "checkpoint")
    try:
        _refuse_foreign(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files of other formats
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist; expected a checkpoint (best.ckpt, last.ckpt) or a run folder."
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} is not a checkpoint of understudy: it is not a pickle, or contains more than tensors and plain "
            "values. Nothing in it was executed. Import checkpoints of mmdet and torchvision: understudy import FILE"
        ) from error
    except Exception as error:  # arbitrary bytes can make an unpickler raise any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{file} is damaged or not a checkpoint ({reason}). Was it copied completely?") from error
    if not (isinstance(content, dict) and "understudy" in content and isinstance(content.get("state_dict"), dict)):
        raise UserError(
            f"{file} was not written by understudy: expected the keys 'understudy' and 'state_dict', got "
            f"{_summary(content)}. Use weights of a backbone by detector.backbone_weights=, and import detectors of "
            "mmdet and torchvision: understudy import FILE"
        )
    found = content["understudy"].get("format") if isinstance(content["understudy"], dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        advice = "update understudy" if newer else "train again, or use the version that wrote it"
        raise UserError(
            f"{file} has the checkpoint format {shown(found)}, but this version of understudy reads {FORMAT}: {advice}."
        )
    return content


def write_checkpoint(file: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; see :func:`understudy.files.write_atomically`."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(file, buffer.getvalue())


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / name).exists():
            return path / name
    raise UserError(f"{path} contains neither best.ckpt nor last.ckpt: expected a run folder with a checkpoint.")


def _refuse_foreign(file: Path) -> None:
    """Refuse what torch.save never writes: other formats, and compressed archives, which may fill the memory."""
    with file.open("rb") as stream:
        kind = foreign_kind(stream.read(64))
    if kind:
        raise UserError(
            f"{file} is not a checkpoint of understudy: it is {kind}. Expected a file that a run wrote (best.ckpt, "
            "last.ckpt), or a run folder."
        )
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError(f"{file} was compressed after it was written: unpack it, and use the file inside.")


def faults_of_metadata(meta: Mapping[str, Any]) -> Iterator[str]:
    """Describe the metadata of a checkpoint that are missing or of the wrong type."""
    classes: Any = meta.get("classes")
    ids: Any = meta.get("category_ids")
    if not _is_list_of(str, classes) or not all(map(is_printable, classes)):
        yield f"classes: expected a list of names, got {shown(classes)}"
    elif not _is_list_of(int, ids) or len(ids) != len(classes):
        yield f"category_ids: expected a list of {len(classes)} integers, got {shown(ids)}"
    if not isinstance(meta.get("build"), dict) or not isinstance(meta["build"].get("name"), str):
        yield f"build: expected the options of a detector, got {shown(meta.get('build'))}"
    ranges = meta.get("quantisation", {})
    if not isinstance(ranges, dict) or not all(map(_is_range, ranges.values())):
        yield f"quantisation: expected the smallest and the largest input of each layer, got {shown(ranges)}"
    config: Any = meta.get("config")
    sizes: Any = config.get("data") if isinstance(config, dict) else None
    if config == {}:
        return  # of a detector that was saved without a run; see data_section
    if not isinstance(sizes, dict) or not (
        _is_list_of(int, sizes.get("shorter_side")) and isinstance(sizes.get("longer_side"), int)
    ):
        yield f"config: expected a section data with shorter_side and longer_side, got {shown(config)}"


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, kind) for each in value)


def _is_range(value: Any) -> bool:
    return _is_list_of(float, value) and len(value) == 2 and -math.inf < value[0] <= 0 <= value[1] < math.inf


def check_weights(summary: str, expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` that begins with ``summary`` if names or shapes differ, or values are not plain tensors."""
    faults = [f"{key}: missing" for key in expected if key not in found]
    faults += [f"{shown(key)}: unknown" for key in found if key not in expected]
    faults += [
        f"{key}: expected {tuple(expected[key].shape)}, got {_shape(found[key])}"
        for key in expected
        if key in found and str(tuple(expected[key].shape)) != _shape(found[key])
    ]
    if faults:
        more = [f"... and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise UserError.listing(summary, faults[:10] + more)


def check_finite(file: Path, weights: Mapping[str, Tensor], built: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that are nan or infinite: they detect nothing, and teach nothing.

    Args:
        file: named in the message.
        weights: tensors by name.
        built: see :func:`.not_finite`.

    Raises:
        UserError: naming the tensors.
    """
    if faults := not_finite(weights, built):
        raise UserError.listing(
            f"The weights in {file} cannot be used: the training that wrote them diverged, or the file is damaged. Use "
            "another checkpoint:",
            faults,
        )


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "no tensor"
    plain = value.layout == torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta)
    return str(tuple(value.shape)) if plain else f"a tensor without plain numbers ({value.dtype}, {value.layout})"


def _summary(content: Any) -> str:
    if isinstance(content, dict):
        keys = [f"'{shown(key)}'" for key in list(content)[:5]]
        return f"the keys {', '.join(keys)}{', ...' if len(content) > 5 else ''}" if keys else "an empty dict"
    return f"a {type(content).__name__}"
