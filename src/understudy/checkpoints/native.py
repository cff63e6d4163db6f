"""Load and write checkpoints of understudy. Nothing in a file is executed."""

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.config import TrainConfig
from understudy.detectors import Detector, open_detector
from understudy.detectors.backbone_weights import not_finite
from understudy.detectors.build import plain_network
from understudy.errors import UserError
from understudy.files import write_atomically

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
    """Return the options of :func:`understudy.detectors.build.plain_network` for the detector of a config."""
    of_training = {"backbone_weights", "channel_order", "frozen_stages"}
    detector = config.detector.model_dump(mode="json", exclude=of_training)
    return {
        **detector,
        "num_classes": num_classes,
        "shorter_side": config.data.shorter_side[-1],
        "longer_side": config.data.longer_side,
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a detector from a checkpoint, or from a run folder (its best checkpoint, else its last).

    Only tensors and plain values are read. A file that contains anything else is refused, not executed.

    Raises:
        UserError: the file does not exist, is damaged or not a checkpoint of understudy, or its weights do not fit or
            are not finite.
    """
    file = _checkpoint_file(Path(path))
    content = read_checkpoint(file)
    meta = content["understudy"]
    try:
        network = plain_network(**meta["build"])
        classes, config = tuple(meta["classes"]), meta["config"]
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"The detector in {file} cannot be built by this version of understudy ({error!r}).") from error
    weights = {
        name.removeprefix(STUDENT): value for name, value in content["state_dict"].items() if name.startswith(STUDENT)
    }
    _check_weights(file, meta["build"]["name"], network.state_dict(), weights)
    check_finite(file, weights, network.state_dict())
    network.load_state_dict(weights)
    detector = open_detector(network, meta["build"]["name"]).eval()
    return Checkpoint(detector, classes, config, meta, file)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read the content of a checkpoint; raises the errors of :func:`load_checkpoint`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files of other formats
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist; expected a checkpoint (best.ckpt, last.ckpt) or a run folder."
        ) from error
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
            f"{file} has the checkpoint format {found!r}, but this version of understudy reads {FORMAT}: {advice}."
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
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} contains neither best.ckpt nor last.ckpt: expected a run folder with a checkpoint.")


def _check_weights(file: Path, name: str, expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    faults = [f"{key}: missing" for key in expected if key not in found]
    faults += [f"{key}: not part of {name}" for key in found if key not in expected]
    faults += [
        f"{key}: expected {_shape(expected[key])}, got {_shape(found[key])}"
        for key in expected
        if key in found and _shape(expected[key]) != _shape(found[key])
    ]
    if faults:
        more = [f"... and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise UserError.listing(f"The weights in {file} do not fit its detector, {name}:", faults[:10] + more)


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
    return str(tuple(value.shape)) if isinstance(value, Tensor) else "no tensor"


def _summary(content: Any) -> str:
    if isinstance(content, dict):
        keys = [repr(key) for key in list(content)[:5]]
        return f"the keys {', '.join(keys)}{', ...' if len(content) > 5 else ''}" if keys else "an empty dict"
    return f"a {type(content).__name__}"
