"""Detectors by name, and detectors that a user already has."""

import difflib
import inspect
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

from understudy.detectors.base import Detector
from understudy.detectors.faster_rcnn import FasterRCNNDetector, MMDetFasterRCNNDetector
from understudy.detectors.fcos import FCOSDetector, MMDetFCOSDetector
from understudy.detectors.gfl import GFLDetector
from understudy.detectors.plain import BACKBONES, BUILDERS, FAMILIES, PUBLISHED, build_network, split_name
from understudy.detectors.plain.backbones import NORMS
from understudy.detectors.plain.gfl import GFL
from understudy.detectors.plain.mmdet import MMDetFCOS, MMDetRetinaNet
from understudy.detectors.plain.mmdet_rcnn import MMDetFasterRCNN
from understudy.detectors.retinanet import MMDetRetinaNetDetector, RetinaNetDetector
from understudy.errors import UserError

DETECTORS = tuple(f"{family}_{backbone}" for family in FAMILIES for backbone in BACKBONES)
"""Every name that :func:`build_detector` knows."""

OPENERS: dict[type[nn.Module], type[Detector]] = {
    MMDetRetinaNet: MMDetRetinaNetDetector,  # before the classes that these two extend
    MMDetFCOS: MMDetFCOSDetector,
    RetinaNet: RetinaNetDetector,
    FCOS: FCOSDetector,
    GFL: GFLDetector,
    MMDetFasterRCNN: MMDetFasterRCNNDetector,
    FasterRCNN: FasterRCNNDetector,
}
"""Which detector opens which class of plain network."""


def open_detector(network: nn.Module, name: str | None = None) -> Detector:
    """Open a torchvision detector that you already have, however it was built; the network itself is not changed.

    Args:
        network: a torchvision ``RetinaNet``, ``FCOS`` or ``FasterRCNN``, or a ``GFL``, with any backbone, anchors and
            number of classes.
        name: what messages call it.

    Raises:
        UserError: the network is of another class.
    """
    for kind, opener in OPENERS.items():
        if isinstance(network, kind):
            return opener(network, name)
    raise UserError(
        "open_detector takes a torchvision RetinaNet, FCOS or FasterRCNN, or a GFL, "
        f"got {type(network).__module__}.{type(network).__qualname__}."
    )


def build_detector(
    name: str,
    num_classes: int,
    *,
    neck_channels: int = 256,
    width_mult: float = 1.0,
    backbone_weights: str | Path | None = None,
    norm: Literal["auto", "batch", "sync", "eval", "frozen"] = "auto",
    head_norm: Literal["group"] | None = None,
    frozen_stages: int = 0,
    anchor_scale: float | None = None,
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
    shorter_side: int = 800,
    longer_side: int = 1333,
    conventions: Literal["torchvision", "mmdet"] = "torchvision",
    settings: Mapping[str, Any] | None = None,
) -> Detector:
    """Build a detector by name, e.g. ``build_detector("retinanet_mobilenet_v2", 20, neck_channels=128)``.

    Args:
        name: one of :data:`DETECTORS`, or one with another ResNeXt (``gfl_resnext152_32x8d``).
        num_classes: classes K, without background.
        neck_channels: channels of the feature pyramid and of the head ("C128" is 128).
        width_mult: width of the backbone.
        backbone_weights: a name torchvision knows (``"IMAGENET1K_V1"``, downloaded) or a local file of the
            backbone's weights; None starts from random weights.
        norm: batch normalisation of the backbone: trained (``"batch"``), trained and synchronised over all processes
            (``"sync"``), its weights trained on fixed statistics (``"eval"``, mmdet's ``norm_eval``), or ``"frozen"``;
            ``"auto"`` freezes it where pretrained weights are given and trains it where not.
        head_norm: ``"group"`` for GroupNorm in RetinaNet's head.
        frozen_stages: how many stages of the backbone, from the input, keep their weights (0 to 4).
        anchor_scale: side of the smallest square anchor, in cells; None is the family's own (4 for RetinaNet, 8 for
            GFL and Faster R-CNN).
        image_mean: per channel, of images in 0..1; the default is ImageNet's.
        image_std: likewise.
        shorter_side: pixels to which the plain network resizes an image before detection,
        longer_side: unless its longer side would exceed this.
        conventions: whose details the detector follows; see :func:`.plain.build_network`.
        settings: of this family in these conventions, by name.

    Raises:
        UserError: the name is unknown, an option does not fit, or the weights do not.
    """
    given = settings or {}
    _check_options(
        name, num_classes, neck_channels, width_mult, norm, head_norm, frozen_stages, anchor_scale, conventions, given
    )
    if norm == "auto":
        norm = "batch" if backbone_weights is None else "frozen"
    try:
        network: Any = build_network(
            name,
            num_classes,
            neck_channels=neck_channels,
            width_mult=width_mult,
            norm=norm,
            head_norm=head_norm,
            anchor_scale=anchor_scale,
            image_mean=image_mean,
            image_std=image_std,
            shorter_side=shorter_side,
            longer_side=longer_side,
            conventions=conventions,
            settings=given,
        )
    except ValueError as error:
        raise UserError(f"The detector {name} cannot be built: {error}") from error
    if backbone_weights is not None:
        _load_backbone(network.backbone.body, split_name(name)[1], backbone_weights)
    for stage in network.backbone.stages[:frozen_stages]:
        for layer in stage:
            network.backbone.body[layer].requires_grad_(False)
    return open_detector(network, name)


def _check_options(
    name: str,
    num_classes: int,
    neck_channels: int,
    width_mult: float,
    norm: str,
    head_norm: str | None,
    frozen_stages: int,
    anchor_scale: float | None,
    conventions: str,
    settings: Mapping[str, Any],
) -> None:
    faults = []
    family = next((family for family in FAMILIES if name.startswith(f"{family}_")), None)
    if name in PUBLISHED:
        faults.append(f"{name} is for torchvision's published weights: `understudy import` makes a checkpoint of them")
    elif name not in DETECTORS and not re.fullmatch(rf"{family}_resnext(50|101|152)_\d+x\d+d", name):
        close = difflib.get_close_matches(name, DETECTORS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`understudy detectors` lists those there are"
        faults.append(f"there is no detector {name!r}; {hint}")
    if num_classes < 1:
        faults.append(f"num_classes counts the classes without background and is at least 1, got {num_classes}")
    if neck_channels < 1:
        faults.append(f"neck_channels is at least 1, got {neck_channels}")
    if width_mult <= 0:
        faults.append(f"width_mult is positive, got {width_mult}")
    if norm not in ("auto", *NORMS):
        faults.append(f"norm is one of {', '.join(('auto', *NORMS))}, got {norm!r}")
    if not 0 <= frozen_stages <= 4:
        faults.append(f"frozen_stages is 0 to 4, got {frozen_stages}")
    if head_norm not in (None, "group"):
        faults.append(f"head_norm is 'group' or None, got {head_norm!r}")
    elif head_norm and family == "faster_rcnn":
        faults.append("head_norm=group is for heads of convolutions; a faster_rcnn has none to normalise")
    if anchor_scale is not None and family == "fcos":
        faults.append(f"anchor_scale={anchor_scale:g} is for detectors with anchors; an fcos has none")
    elif anchor_scale is not None and anchor_scale <= 0:
        faults.append(f"anchor_scale is positive, got {anchor_scale:g}")
    if conventions not in ("torchvision", "mmdet"):
        faults.append(f"conventions is 'torchvision' or 'mmdet', got {conventions!r}")
    elif family:
        faults += _setting_faults(family, conventions, settings)
    if faults:
        raise UserError.listing("This detector cannot be built:", faults)


def builder_settings(family: str, conventions: str) -> dict[str, Any]:
    """The settings that only this family in these conventions has, with their defaults."""
    parameters = inspect.signature(BUILDERS[family, conventions]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def _setting_faults(family: str, conventions: str, settings: Mapping[str, Any]) -> list[str]:
    known = builder_settings(family, conventions)
    has = f"it has {', '.join(known)}" if known else "it has none"
    return [
        f"a {family} in {conventions}'s conventions has no setting {name!r}; {has}"
        for name in settings
        if name not in known
    ] + [
        f"the setting {name!r} of a {family} is a value like {known[name]!r}, got {value!r}"
        for name, value in settings.items()
        if name in known and not _is_like(value, known[name])
    ]


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a setting's default; one that is None by default takes anything."""
    kinds: dict[type, type | tuple[type, ...]] = {float: (int, float), tuple: (list, tuple)}
    kind = kinds.get(type(default), type(default))
    return default is None or (isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool))


def _load_backbone(body: nn.Module, backbone_name: str, weights: str | Path) -> None:
    """Load ImageNet weights into the backbone; the classifier and layers the detector leaves out are passed over."""
    state = _torchvision_weights(backbone_name, str(weights))
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
            f"{weights} does not hold the weights of this {backbone_name} (is the width the same?):", shown[:8] + more
        )
    body.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def _torchvision_weights(backbone_name: str, name: str) -> dict[str, Tensor] | None:
    try:
        known = get_model_weights(backbone_name)
    except ValueError:  # a ResNeXt that torchvision does not have
        if Path(name).exists():
            return None
        raise UserError(f"torchvision has no weights for {backbone_name}: give a file as backbone_weights.") from None
    if name not in known.__members__:
        if Path(name).exists():
            return None
        raise UserError(
            f"backbone_weights={name!r} is neither a file nor a name torchvision has for {backbone_name} "
            f"({', '.join(known.__members__)})."
        )
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise UserError(
            f"torchvision could not download {name} for {backbone_name} ({error}). Fetch {known[name].url} on a "
            "machine with internet, copy the file here and give its path as backbone_weights."
        ) from error


def _weights_file(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{path} cannot be read as weights (only tensors are loaded, nothing is executed): {reason}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict: expected a mapping of names to tensors.")
    return state
