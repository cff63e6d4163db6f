"""ImageNet weights for the backbone of a new detector."""

import pickle
import socket
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from understudy.errors import UserError

MOST_NAMES = 5
"""Tensors that a message names."""

TIMEOUT = 30.0
"""Seconds without an answer after which a download fails; without it, some networks let a program wait without end."""


def published_weights(backbone_name: str) -> list[str]:
    """Return the names of torchvision's weights of a backbone, all of them for its usual width; empty: there are none.

    >>> published_weights("resnet50"), published_weights("resnext152_32x8d")
    (['IMAGENET1K_V1', 'IMAGENET1K_V2'], [])
    """
    try:
        return [name for name in get_model_weights(backbone_name).__members__ if name != "DEFAULT"]
    except ValueError:
        return []


def describe_download(backbone_name: str, name: str) -> str:
    """Describe weights of torchvision: their size, and whether they have to be downloaded."""
    known = get_model_weights(backbone_name)[name]
    stored = _stored_file(known.url).exists()
    return f"torchvision's, of ImageNet; {'stored' if stored else 'downloaded once'}, {known.meta['_file_size']:.0f} MB"


def not_finite(weights: Mapping[str, Tensor], built: Mapping[str, Tensor] | None = None) -> list[str]:
    """Return the names of the tensors that contain nan or infinity, the first few of many.

    Args:
        weights: tensors by name.
        built: those of the newly built network; a constant of it may be infinite (the mask of an attention).
    """
    found = [
        name
        for name, value in weights.items()
        if not value.isfinite().all() and not (built and torch.equal(value, built[name].to(value)))
    ]
    more = [f"... and {len(found) - MOST_NAMES} more"] if len(found) > MOST_NAMES else []
    return [f"{name}: contains nan or infinity" for name in found[:MOST_NAMES]] + more


def load_backbone(body: nn.Module, backbone_name: str, weights: str | Path, *, bgr: bool = False) -> None:
    """Load ImageNet weights into a backbone; weights of layers that the detector does not have are ignored.

    Args:
        body: the backbone.
        backbone_name: torchvision's name of it.
        weights: a name of torchvision's weights, or a local file.
        bgr: the weights expect images with blue first. The input channels of the first convolution are reordered, as
            in an imported detector, so that it computes the same function of an RGB image.

    Raises:
        UserError: there are no such weights, they do not fit or are not finite, or ``bgr`` is set for weights of
            torchvision.
    """
    state = _torchvision_weights(backbone_name, str(weights))
    if state is not None and bgr:
        raise UserError(
            f"channel_order=bgr does not fit backbone_weights={weights}: torchvision's weights expect RGB images. "
            "Leave channel_order out, or set backbone_weights to a file."
        )
    if state is None:
        state = _weights_file(Path(weights))
    state = {key.removeprefix("features.").removeprefix("trunk_output."): value for key, value in state.items()}
    wanted = body.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [
        f"{key}: {tuple(wanted[key].shape)} expected, {tuple(state[key].shape)} in the file"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or wrong:
        shown = [*(f"{key}: missing" for key in missing), *wrong]
        more = [f"... and {len(shown) - 8} more"] if len(shown) > 8 else []
        raise UserError.listing(
            f"The weights in {weights} do not fit this {backbone_name} (is the width the same?):", shown[:8] + more
        )
    if faults := not_finite({key: state[key] for key in wanted if key in state}):
        raise UserError.listing(f"The weights in {weights} cannot be used. Use another file:", faults)
    if bgr:
        first = next(key for key, value in wanted.items() if value.ndim == 4)
        state[first] = state[first][:, [2, 1, 0]]
    body.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def _torchvision_weights(backbone_name: str, name: str) -> dict[str, Tensor] | None:
    try:
        known = get_model_weights(backbone_name)
    except ValueError:  # a ResNeXt that torchvision does not have
        if Path(name).exists():
            return None
        raise UserError(f"torchvision has no weights for {backbone_name}: set backbone_weights to a file.") from None
    if name not in known.__members__:
        if Path(name).exists():
            return None
        raise UserError(
            f"backbone_weights={name!r} is neither a file nor a name of torchvision's weights for {backbone_name}; "
            f"available: {', '.join(known.__members__)}."
        )
    file, url = _stored_file(known[name].url), known[name].url
    stored = file.exists()
    others = "detector.backbone_weights=FILE, or null for random initialisation"
    try:
        with _patient():
            return dict(known[name].get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # of the network, or whatever arbitrary bytes make an unpickler raise
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        if stored:
            raise UserError(
                f"{file}, where torchvision stores {name} of {backbone_name}, is damaged ({what}). Delete it: then "
                f"it is downloaded again. Without a network: {others}."
            ) from error
        raise UserError(
            f"torchvision could not download {name} for {backbone_name} ({what}). Fetch {url} on a machine with "
            f"internet and copy it to {file.parent}, or set {others}."
        ) from error


def _stored_file(url: str) -> Path:
    """Return where torchvision keeps a downloaded file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name


@contextmanager
def _patient() -> Generator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _weights_file(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files of other formats
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:  # torch's message advises to execute the file
        raise UserError(
            f"{path} cannot be read as weights: it is not a pickle, or contains more than tensors. Nothing in it was "
            "executed. Save the state dict alone: torch.save(backbone.state_dict(), FILE)"
        ) from error
    except Exception as error:  # arbitrary bytes can make an unpickler raise any exception
        raise UserError(
            f"{path} cannot be read as weights: it is empty, damaged, or not a file of torch.save. Was it copied "
            "completely?"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict: expected a mapping of names to tensors.")
    return state
