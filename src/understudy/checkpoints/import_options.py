"""The user's options of an import, and the detector that it finds in a file of another library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from understudy.detectors.families import FAMILIES
from understudy.errors import UserError
from understudy.text import listed

SUPPORTED = (
    f"{listed([family.title for family in FAMILIES.values() if family.mmdet])} of mmdet 2.x and 3.x, on a ResNet, "
    "ResNeXt or RegNetX with FPN",
    "FCOS of its authors' repository, on a ResNet, ResNeXt or MobileNetV2",
    "RetinaNet, FCOS, Faster R-CNN of torchvision, as published or fine-tuned",
    "a folder of `understudy export`",
)
"""The detectors that can be imported."""

SUMMARY = "Invalid import options:"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The user's options of an import. None: as in the file.

    Attributes:
        classes: names of the classes, in the order of the labels.
        style: style of a ResNet's bottlenecks, ``"pytorch"`` or ``"caffe"``.
        mean: mean of red, green and blue, for pixels in 0..255.
        std: their standard deviation, likewise.
        architecture: the family (mmdet) or the builder (torchvision).
        settings: settings of the plain network by name, instead of the file's.

    Raises:
        UserError: listing every option that is invalid for any file.
    """

    classes: tuple[str, ...] | None = None
    style: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    architecture: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        faults = []
        if self.style not in (None, "caffe", "pytorch"):
            faults.append(f"--style: expected caffe or pytorch, got {self.style!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(0 <= value <= 255 for value in values)):
                faults.append(f"--{name}: expected three numbers from 0 to 255 (red,green,blue), got {list(values)}")
        if self.std is not None and not all(self.std):
            faults.append("--std: expected numbers above 0, got 0")
        if faults:
            raise UserError.listing(SUMMARY, faults)


@dataclass(frozen=True, slots=True)
class ImportedDetector:
    """A detector of another library, by the names and options of this package.

    Attributes:
        source: the library that wrote the file, with its version if the file contains it.
        build: options of :func:`understudy.detectors.build.plain_network`.
        weights: tensors by the plain network's names.
        classes: names of the classes, in the order of the labels.
        category_ids: ids of the classes, in the same order.
        assumptions: facts that the file does not contain, each with the assumed value and the flag that changes it.
    """

    source: str
    build: dict[str, Any]
    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    assumptions: tuple[str, ...]


def unsupported(summary: str, state: Mapping[str, Tensor], facts: Sequence[str] = ()) -> UserError:
    """Make the error for a file without a supported detector: facts about it, and the supported detectors."""
    prefixes = sorted({".".join(key.split(".")[:2]) for key in state})
    found = f"its {len(state)} parameters are below {listed(prefixes, 20)}"
    return UserError.listing(summary, [*facts, found, *(f"supported: {each}" for each in SUPPORTED)])


def fits(value: Any, usual: Any) -> bool:
    """Check whether a value is of the usual one's kind: a flag, a name, a number, or a list of these.

    A number must be above 0 and below a million. It may be an integer where the usual one is not.

    Examples:
        >>> fits(1, 0.5), fits(0.5, 1), fits([0.5, 2.0], [1.0])
        (True, False, True)
    """
    if isinstance(usual, bool | str):
        return type(value) is type(usual)
    if isinstance(usual, list):
        return isinstance(value, list | tuple) and len(value) > 0 and all(fits(one, usual[0]) for one in value)
    number = isinstance(value, int if isinstance(usual, int) else int | float)
    return number and not isinstance(value, bool) and 0 < value < 1e6
