"""Build detectors by name, and open existing ones."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_type_hints

from torch import nn

from understudy.detectors.backbone_weights import load_backbone
from understudy.detectors.base import Detector
from understudy.detectors.families import FAMILIES, Family, family_of
from understudy.errors import UserError
from understudy.networks import PUBLISHED, build_network
from understudy.networks.backbones import BACKBONES, NORMS
from understudy.text import closest, listed, shown


def detector_names() -> list[str]:
    """Return every listed name that :func:`build_detector` takes."""
    return [f"{name}_{backbone}" for name, family in FAMILIES.items() for backbone in family.backbones or BACKBONES]


def open_detector(network: nn.Module, name: str | None = None) -> Detector:
    """Open an existing detector, however it was built. The network itself is not changed.

    Args:
        network: a torchvision ``RetinaNet``, ``FCOS`` or ``FasterRCNN``, a ``GFL``, or a network of an installed
            plugin, with any backbone, anchors and number of classes.
        name: the name in messages.

    Raises:
        UserError: the network is of another class.

    Examples:
        >>> from torchvision.models.detection import fcos_resnet50_fpn
        >>> detector = open_detector(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3))
        >>> detector.spec.strides, detector.spec.num_classes
        ((8, 16, 32, 64, 128), 3)
    """
    kinds = dict(_openers())
    for kind, opener in kinds.items():
        if isinstance(network, kind):
            return opener(network, name)
    raise UserError(
        f"open_detector takes a {listed([kind.__name__ for kind in kinds])}, "
        f"got {type(network).__module__}.{type(network).__qualname__}."
    )


def _openers() -> Iterator[tuple[type[nn.Module], type[Detector]]]:
    for family in FAMILIES.values():
        yield from import_module(family.openers).OPENERS.items()


def plain_network(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a randomly initialised plain network, also of a plugin's family; see :func:`.networks.build_network`."""
    if family := family_of(name):
        options |= {"backbone": name.removeprefix(f"{family.name}_")}
        options |= {"builders": import_module(family.networks).BUILDERS}
    return build_network(name, num_classes, **options)


def build_detector(
    name: str,
    num_classes: int,
    *,
    neck_channels: int = 256,
    width_mult: float = 1.0,
    backbone_weights: str | Path | None = None,
    channel_order: Literal["rgb", "bgr"] = "rgb",
    norm: Literal["batch", "sync", "eval", "frozen"] = "batch",
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
    """Build a detector by name.

    Args:
        name: one of :func:`detector_names`, or one with another ResNeXt (``gfl_resnext152_32x8d``).
        num_classes: classes K, without background.
        neck_channels: channels of the feature pyramid and of the head ("C128" is 128).
        width_mult: width of the backbone.
        backbone_weights: a name of torchvision's weights (``"IMAGENET1K_V1"``, downloaded) or a local file of the
            backbone's weights; None: random initialisation.
        channel_order: order of the colours that these weights expect. Those of ``"bgr"`` are rearranged, so that the
            detector computes the same function of RGB images.
        norm: batch normalisation of the backbone: trained (``"batch"``), trained and synchronised over all processes
            (``"sync"``), its weights trained on fixed statistics (``"eval"``, mmdet's ``norm_eval``), or ``"frozen"``.
        head_norm: ``"group"`` for GroupNorm in the head of a family that has none by default.
        frozen_stages: how many stages of the backbone, from the input, keep their weights (0 to 4).
        anchor_scale: side of the smallest square anchor, in cells; None: the family's default.
        image_mean: per channel, of images in 0..1; the default is ImageNet's.
        image_std: likewise.
        shorter_side: pixels of an image's shorter side after the plain network has resized it,
        longer_side: unless its longer side would exceed this.
        conventions: the library whose implementation to match; see :func:`.networks.build_network`.
        settings: settings of this family in these conventions, by name.

    Raises:
        UserError: the name is unknown, an option does not fit, or the weights do not.

    Examples:
        >>> detector = build_detector("fcos_mobilenet_v2", 20, neck_channels=32, width_mult=0.35)
        >>> detector.spec.name, detector.spec.channels
        ('fcos_mobilenet_v2', (32, 32, 32, 32, 32))
    """
    given = settings or {}
    if channel_order == "bgr" and backbone_weights is None:
        raise UserError(
            "channel_order=bgr has no effect without backbone_weights: it states the order of the colours that these "
            "weights expect. Set backbone_weights to a file, or leave channel_order out."
        )
    _check_options(
        name, num_classes, neck_channels, width_mult, norm, head_norm, frozen_stages, anchor_scale, conventions, given
    )
    try:
        network: Any = plain_network(
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
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        if not (given or isinstance(error, ValueError)):
            raise  # no user's value to blame
        stated = f" with the settings {shown(dict(given))}" if given else ""
        raise UserError(f"The detector {name} cannot be built{stated}: {error}") from error
    if backbone_weights is not None:
        backbone = name.removeprefix(f"{_family(name).name}_")
        load_backbone(network.backbone.body, backbone, backbone_weights, bgr=channel_order == "bgr")
    for stage in network.backbone.stages[:frozen_stages] if frozen_stages else ():
        for layer in stage:
            network.backbone.body[layer].requires_grad_(False)
    return open_detector(network, name)


def builder_of(family: str, conventions: str) -> Callable[..., nn.Module]:
    """Return the function that builds a family's plain networks in some conventions."""
    return import_module(FAMILIES[family].networks).BUILDERS[conventions]


def builder_settings(family: str, conventions: str) -> dict[str, Any]:
    """Return the settings of a family in some conventions, with their defaults."""
    parameters = inspect.signature(builder_of(family, conventions)).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def _family(name: str) -> Family:
    family = family_of(name)
    assert family, name  # names are checked before
    return family


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
    family = family_of(name)
    if name in PUBLISHED:
        faults.append(f"{name} is for torchvision's published weights: import them with `understudy import FILE`")
    elif family is None or not _is_backbone(family, name.removeprefix(f"{family.name}_")):
        close = closest(name, detector_names())
        hint = f"did you mean {close!r}?" if close else "`understudy detectors` lists all detectors"
        faults.append(f"there is no detector {name!r}; {hint}")
    if num_classes < 1:
        faults.append(f"num_classes: expected at least 1 (the background is not counted), got {num_classes}")
    if neck_channels < 1:
        faults.append(f"neck_channels: expected at least 1, got {neck_channels}")
    if width_mult <= 0:
        faults.append(f"width_mult: expected a number above 0, got {width_mult}")
    if norm not in NORMS:
        faults.append(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    if not 0 <= frozen_stages <= 4:
        faults.append(f"frozen_stages: expected 0 to 4, got {frozen_stages}")
    if head_norm not in (None, "group"):
        faults.append(f"head_norm: expected 'group' or None, got {head_norm!r}")
    if anchor_scale is not None and anchor_scale <= 0:
        faults.append(f"anchor_scale: expected a number above 0, got {anchor_scale:g}")
    given = {"head_norm": head_norm, "anchor_scale": anchor_scale}
    if family:
        faults += [
            f"{option}={given[option]} is not available for {family.title}: {reason}"
            for option, reason in family.refused.items()
            if given.get(option) is not None
        ]
    if conventions not in ("torchvision", "mmdet"):
        faults.append(f"conventions: expected 'torchvision' or 'mmdet', got {conventions!r}")
    elif family:
        faults += _setting_faults(family, conventions, settings)
    if faults:
        raise UserError.listing("Invalid options for a detector:", faults)


def _is_backbone(family: Family, name: str) -> bool:
    """Return whether a family can be built with this backbone; ResNeXts beyond the listed ones can, too."""
    if family.backbones is not None:
        return name in family.backbones
    return name in BACKBONES or bool(re.fullmatch(r"resnext(50|101|152)_\d+x\d+d", name))


def _setting_faults(family: Family, conventions: str, settings: Mapping[str, Any]) -> list[str]:
    known = builder_settings(family.name, conventions)
    has = f"available: {', '.join(known)}" if known else "available: none"
    faults = [
        f"{family.title} with conventions={conventions} has no setting {name!r}; {has}"
        for name in settings
        if name not in known
    ]
    types = get_type_hints(builder_of(family.name, conventions))
    return faults + [
        f"settings.{name}: expected {wanted}, got {value!r}"
        for name, value in settings.items()
        if name in known and (wanted := _wanted(value, known[name], types.get(name)))
    ]


def _wanted(value: Any, default: Any, annotation: Any) -> str | None:
    """Describe the values that a setting takes, from its default and its type; None if this is one of them."""
    if default is None and annotation == int | None:
        return None if value is None or _is_count(value) else "an integer of at least 1 or null"
    if isinstance(default, int) and not isinstance(default, bool):
        return None if _is_count(value) else f"an integer of at least 1, like {default}"
    if isinstance(default, float):
        return None if _is_number(value) else f"a number like {default}"
    if isinstance(default, tuple) and all(map(_is_number, default)):
        right = isinstance(value, list | tuple) and value and all(_is_number(each) and each > 0 for each in value)
        return None if right else f"a list of numbers above 0, like {list(default)}"
    return None if default is None or isinstance(value, type(default)) else f"a value like {default!r}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
