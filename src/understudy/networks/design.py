"""The options that every builder of a detector takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .backbones import Body, build_body


@dataclass(frozen=True)
class Design:
    """The options of a detector that do not depend on its family.

    Attributes:
        backbone: the detector's name without its family, one of ``BACKBONES`` or what the family makes of it.
        num_classes: classes K, without background.
        neck_channels: channels of the feature pyramid and of the head.
        width_mult: factor of the backbone's channels.
        norm: batch normalisation of the backbone: trained (``"batch"``), trained and synchronised over all processes
            (``"sync"``), its weights trained on fixed statistics (``"eval"``), or ``"frozen"``.
        head_norm: ``"group"`` for GroupNorm in the head of a family that has none by default.
        anchor_scale: side of the smallest square anchor, in cells; None: the family's default.
        image_mean: per channel, of images in 0..1; the default is ImageNet's.
        image_std: likewise.
        shorter_side: an image is resized to this many pixels of its shorter side,
        longer_side: unless its longer side would exceed this.
    """

    backbone: str
    num_classes: int
    neck_channels: int = 256
    width_mult: float = 1.0
    norm: str = "batch"
    head_norm: str | None = None
    anchor_scale: float | None = None
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    shorter_side: int = 800
    longer_side: int = 1333

    @property
    def transform(self) -> dict[str, Any]:
        """Return normalisation and size as arguments of torchvision's detectors and their transform."""
        return {
            "min_size": self.shorter_side,
            "max_size": self.longer_side,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    def body(self, style: str = "pytorch") -> Body:
        """Build the backbone with random weights; see :func:`.build_body`."""
        return build_body(self.backbone, width_mult=self.width_mult, norm=self.norm, style=style)
