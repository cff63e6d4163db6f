"""What an import is told by its caller, and what it finds in a file of another library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from understudy.errors import UserError

SUPPORTED = (
    "RetinaNet, FCOS, GFL and Faster R-CNN of mmdet 2.x and 3.x on a ResNet or ResNeXt with FPN, and torchvision's "
    "published RetinaNet, FCOS and Faster R-CNN, fine-tuned or not"
)

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the caller of an import says where the file does not; None leaves it to the file.

    Attributes:
        classes: names of the classes.
        style: of the bottlenecks of a ResNet, ``"pytorch"`` or ``"caffe"``.
        mean: of red, green and blue, of pixels in 0..255.
        std: likewise.
        architecture: the detector's family, or one of torchvision's builders.
        settings: of the plain network, by name.
    """

    classes: tuple[str, ...] | None = None
    style: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    architecture: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the file.

        Raises:
            UserError: listing every fault.
        """
        faults = []
        if self.style not in (None, "caffe", "pytorch"):
            faults.append(f"--style is caffe or pytorch, got {self.style!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(0 <= value <= 255 for value in values)):
                faults.append(f"--{name} is three numbers from 0 to 255 (red, green, blue), got {list(values)}")
        if self.std is not None and not all(self.std):
            faults.append("--std cannot be zero")
        if faults:
            raise UserError.listing("This import is told what cannot be:", faults)


@dataclass(frozen=True, slots=True)
class Found:
    """A detector in a file of another library, in understudy's terms.

    Attributes:
        source: which library wrote it, and its version if the file says so.
        build: options of :func:`understudy.detectors.plain.build_network`.
        weights: by the plain network's names.
        classes: their names.
        category_ids: for each class.
        assumptions: what the file does not say, each with what was taken and the flag that changes it.
    """

    source: str
    build: dict[str, Any]
    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    assumptions: tuple[str, ...]


def class_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Read the names of classes: ``"coco"``, ``"voc"``, ``"cat,dog"``, a file with a name on each line, or a list.

    Raises:
        UserError: there are none, or one is there twice.
    """
    if not isinstance(given, str):
        names = [str(name) for name in given]
    elif given.lower() == "coco":
        names = list(coco_categories().values())
    elif given.lower() == "voc":
        names = VOC.split()
    elif "," not in given and Path(given).is_file():
        try:
            names = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The classes cannot be read from {given}: {error}.") from error
    else:
        names = given.split(",")
    names = [name.strip() for name in names if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1 and name != "N/A"})
    if twice or not names:
        what = f"named twice: {', '.join(twice)}" if twice else "none given"
        raise UserError(
            f"The names of the classes are each given once, in the order of the labels: {what}. "
            "Give --classes coco, voc, cat,dog or a file with a name on each line."
        )
    return tuple(names)


def coco_categories() -> dict[int, str]:
    """COCO's 80 classes by their ids, which lie between 1 and 90."""
    names = torchvision_categories()
    return {number: name for number, name in enumerate(names) if name not in ("__background__", "N/A")}


def torchvision_categories() -> list[str]:
    """What each of the 91 outputs of torchvision's published COCO weights means."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    return list(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """Ids of classes: COCO's own where these are all of COCO's, else 1 to K."""
    ids = {name: number for number, name in coco_categories().items()}
    return tuple(ids[name] for name in classes) if set(classes) == set(ids) else tuple(range(1, len(classes) + 1))


def fits(value: Any, usual: Any) -> bool:
    """Whether a value may stand where the usual one does: both flags, names, positive numbers, or lists of these."""
    if isinstance(usual, bool | str):
        return type(value) is type(usual)
    if isinstance(usual, list):
        return isinstance(value, list | tuple) and len(value) > 0 and all(fits(one, usual[0]) for one in value)
    number = isinstance(value, int if isinstance(usual, int) else int | float)
    return number and not isinstance(value, bool) and 0 < value < 1e6


def shown(names: Sequence[str], most: int = 12) -> list[str]:
    """A list that is not too long to read: what is beyond ``most`` is counted."""
    return [*names[:most], *([f"... and {len(names) - most} more"] if len(names) > most else [])]
