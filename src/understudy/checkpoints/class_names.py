"""Class names of imported detectors, and COCO's category ids."""

from collections.abc import Sequence
from pathlib import Path

from understudy.errors import UserError
from understudy.reading import read_text

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)

NO_CLASS = ("__background__", "N/A")
"""Names of the outputs of torchvision's published weights that have no class."""


def class_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Read class names: ``"coco"``, ``"voc"``, ``"cat,dog"``, a file with a name on each line, or a list.

    Raises:
        UserError: there is none, or one occurs twice.

    Examples:
        >>> class_names("cat, dog")
        ('cat', 'dog')
    """
    if not isinstance(given, str):
        names = [str(name) for name in given]
    elif given.lower() == "coco":
        names = list(coco_categories().values())
    elif given.lower() == "voc":
        names = VOC.split()
    elif "," not in given and Path(given).is_file():
        names = read_text(Path(given), "list of classes").splitlines()
    else:
        names = given.split(",")
    names = [name.strip() for name in names if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1 and name != "N/A"})
    if twice or not names:
        fault = f"{', '.join(twice)} occurs twice" if twice else "there is none"
        raise UserError(
            f"Invalid class names: {fault}. Expected each name once, in the order of the labels: --classes coco, voc, "
            "cat,dog or a file with a name on each line."
        )
    return tuple(names)


def coco_categories() -> dict[int, str]:
    """Return COCO's 80 classes by their ids, which are 1 to 90 with gaps.

    Examples:
        >>> coco_categories()[90]
        'toothbrush'
    """
    return {number: name for number, name in enumerate(torchvision_categories()) if name not in NO_CLASS}


def torchvision_categories() -> list[str]:
    """Return the names of the 91 outputs of torchvision's published COCO weights."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    return list(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of classes: COCO's own for COCO's 80 classes, else 1 to K."""
    ids = {name: number for number, name in coco_categories().items()}
    return tuple(ids[name] for name in classes) if set(classes) == set(ids) else tuple(range(1, len(classes) + 1))
