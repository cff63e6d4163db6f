"""How good detections are: COCO's 12 numbers, average precision per class, and PASCAL VOC's AP50.

A detection is a row of COCO's results format: ``image_id``, ``category_id`` (the data set's own), ``bbox`` (x, y,
width, height in pixels of the original image) and ``score``. What each number means is told in docs/evaluation.md.
"""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from understudy.data import Batch, DetectionData, evaluation_loader, open_data
from understudy.detectors import Detector
from understudy.detectors.base import evaluating
from understudy.errors import UserError
from understudy.pairing import listed, match_names, no_common_name

Detection = dict[str, Any]
"""One row of COCO's results format: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``."""

Array = NDArray[np.float64]
Curve = tuple[Array, Array]  # recall and precision, each (D,), best detections first

Backend = Literal["auto", "hotcoco", "pycocotools"]

_IOU_50, _IOU_75, _ALL_IOUS = slice(0, 1), slice(5, 6), slice(None)  # of COCO's ten thresholds 0.50, 0.55, ..., 0.95
_COCO_NUMBERS = {  # name: array, thresholds, index of (all, small, medium, large), index of (1, 10, 100) detections
    "AP": ("precision", _ALL_IOUS, 0, 2),
    "AP50": ("precision", _IOU_50, 0, 2),
    "AP75": ("precision", _IOU_75, 0, 2),
    "APs": ("precision", _ALL_IOUS, 1, 2),
    "APm": ("precision", _ALL_IOUS, 2, 2),
    "APl": ("precision", _ALL_IOUS, 3, 2),
    "AR1": ("recall", _ALL_IOUS, 0, 0),
    "AR10": ("recall", _ALL_IOUS, 0, 1),
    "AR100": ("recall", _ALL_IOUS, 0, 2),
    "ARs": ("recall", _ALL_IOUS, 1, 2),
    "ARm": ("recall", _ALL_IOUS, 2, 2),
    "ARl": ("recall", _ALL_IOUS, 3, 2),
}


@dataclass(frozen=True)
class Evaluation:
    """What a detector scores on one split, every number in 0..1, or nan where there is nothing to average over.

    Attributes:
        coco: the 12 numbers of COCO: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
        per_class: COCO's AP of each class, by name.
        voc: ``AP50`` (area under the precision envelope) and ``AP50_11point``, means over the classes, by VOC's rules.
        voc_per_class: VOC's AP50 (area) of each class, by name.
        images: the number of images evaluated.
        unknown_classes: classes of the data that the detector lacks: all their objects count as missed.
        unused_classes: classes of the detector that the data do not have: their detections are left out.
    """

    coco: dict[str, float]
    per_class: dict[str, float]
    voc: dict[str, float]
    voc_per_class: dict[str, float]
    images: int
    unknown_classes: tuple[str, ...] = ()
    unused_classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON; what is undefined (nan) becomes None, which JSON can say."""
        return {
            "coco": _nan_to_none(self.coco),
            "per_class": _nan_to_none(self.per_class),
            "voc": _nan_to_none(self.voc),
            "voc_per_class": _nan_to_none(self.voc_per_class),
            "images": self.images,
            "unknown_classes": list(self.unknown_classes),
            "unused_classes": list(self.unused_classes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; other keys are left alone, and the names of classes may be missing.

        Raises:
            KeyError: one of the other five fields is missing.
        """
        return cls(
            coco=_none_to_nan(values["coco"]),
            per_class=_none_to_nan(values["per_class"]),
            voc=_none_to_nan(values["voc"]),
            voc_per_class=_none_to_nan(values["voc_per_class"]),
            images=values["images"],
            unknown_classes=tuple(values.get("unknown_classes", ())),
            unused_classes=tuple(values.get("unused_classes", ())),
        )

    def __rich__(self) -> Group:
        """Two tables for the terminal: the summary, and the classes."""
        summary = Table(title=f"{self.images} images", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large"):
            summary.add_column(name, justify="right" if name else "left")
        coco = {name: percent(value) for name, value in self.coco.items()}
        summary.add_row("COCO AP", *(coco[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
        summary.add_row("COCO AR", coco["AR100"], "", "", *(coco[name] for name in ("ARs", "ARm", "ARl")))
        summary.add_row("VOC AP50", "", percent(self.voc["AP50"]), "", "", "", "")
        summary.add_row("VOC AP50, 11 points", "", percent(self.voc["AP50_11point"]), "", "", "", "")
        classes = Table(box=None, padding=(0, 2, 0, 0))
        classes.add_column("class")
        for name in ("COCO AP", "VOC AP50"):
            classes.add_column(name, justify="right")
        for name, value in self.per_class.items():
            classes.add_row(name, percent(value), percent(self.voc_per_class[name]))
        recall = f"COCO AR with 1 and 10 detections an image: {coco['AR1']}, {coco['AR10']}"
        notes = []
        if self.unknown_classes:
            notes.append(f"The detector does not know {listed(self.unknown_classes)}: their objects count as missed.")
        if self.unused_classes:
            notes.append(f"The data do not have {listed(self.unused_classes)}: detections of these are left out.")
        return Group(summary, recall, "", classes, *([""] if notes else []), *notes)


def percent(value: float) -> str:
    """A number in 0..1 as it is written in papers, ``0.4213`` as ``42.1``; nan as ``-``."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


# --- from a detector to detections ------------------------------------------------------------------------------------


def match_classes(classes: Sequence[str], data: DetectionData) -> tuple[int | None, ...]:
    """For each label of a detector, the category id that the data set has for the class of that name, or None.

    Classes are matched by name, without regard to order, case and surrounding blanks, so a detector of many classes is
    evaluated on a data set that has a few of them.

    Raises:
        UserError: there is no class in common.
    """
    places = match_names(classes, data.classes)
    if all(place is None for place in places):
        raise UserError.listing(
            "The detector cannot be used on these data:",
            no_common_name("detector", classes, f"data set {data.source}", data.classes),
        )
    return tuple(None if place is None else data.category_ids[place] for place in places)


def detect_all(
    detector: Detector,
    loader: Iterable[Batch],
    device: torch.device | str,
    category_ids: Sequence[int | None] | None = None,
) -> list[Detection]:
    """Run a detector over a data set and return its detections, in pixels of the original images.

    Args:
        detector: on ``device`` already; it is left in the mode it was in.
        loader: an :func:`~understudy.data.evaluation_loader`.
        device: where the batches go.
        category_ids: the data set's category id of each label, see :func:`match_classes`; detections of a label whose
            id is None are left out. By default those of the loader's own data, right for a detector trained on the
            same data set.

    Returns:
        Rows of COCO's results format, in the order of the loader and, within an image, of the detector.
    """
    if category_ids is None:
        category_ids = loader.dataset.data.category_ids  # ty: ignore[missing-attribute]
    rows: list[Detection] = []
    with evaluating(detector), torch.no_grad():
        for batch in loader:
            batch = batch.to(device)
            found = detector.detect(detector(batch.images, batch.image_sizes), batch.image_sizes)
            for image_id, size, original_size, one in zip(
                batch.image_ids, batch.image_sizes, batch.original_sizes, found, strict=True
            ):
                boxes = to_original_pixels(one["boxes"], size, original_size)
                rows += _result_rows(image_id, boxes, one["scores"], one["labels"], category_ids)
    return rows


def to_original_pixels(boxes: Tensor, size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Boxes (D, 4) xyxy of a resized image as boxes of the original; exactly torchvision's own un-resizing.

    Args:
        boxes: xyxy in pixels of the padded batch (padding is on the right and below, so it moves nothing).
        size: height and width of the resized image, without padding.
        original_size: height and width on disk.
    """
    new, old = (torch.tensor(pair, dtype=torch.float32, device=boxes.device) for pair in (original_size, size))
    ratio_y, ratio_x = new / old
    return boxes * torch.stack([ratio_x, ratio_y, ratio_x, ratio_y])


def _result_rows(
    image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, category_ids: Sequence[int | None]
) -> list[Detection]:
    """Detections of one image as rows; widths are taken in float64 so that x + width is the right edge again."""
    corners = boxes.cpu().double()
    xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(xywh.tolist(), scores.tolist(), labels.tolist(), strict=True)
        if category_ids[label] is not None
    ]


def gather_detections(detections: list[Detection]) -> list[Detection]:
    """The detections of all processes, the same list in each of them, ordered by image.

    Without ``torch.distributed`` this only orders. Within an image the detector's order is kept, so scores that tie are
    ranked the same whatever the number of processes.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, detections)
        detections = [row for part in parts for row in part]
    return sorted(detections, key=lambda row: row["image_id"])


# --- from detections to numbers ---------------------------------------------------------------------------------------


def score(data: DetectionData, detections: list[Detection], backend: Backend = "auto") -> Evaluation:
    """Compare detections with the ground truth of a split.

    Args:
        data: the split; objects with ``ignore`` (COCO's crowd, VOC's difficult) neither count as missed nor are
            detections of them counted as wrong.
        detections: rows of COCO's results format, in any order of images; at most the 100 best per image and class
            count for the COCO numbers.
        backend: the library that computes the COCO numbers; both give the same.

    Raises:
        UserError: the library is not installed, or a row names an image or a category that the split does not have.
    """
    _check_detections(data, detections)
    coco, per_class = _coco_numbers(data, detections, backend)
    curves = _voc_curves(data, detections)
    areas, points = _averages(curves, _area_under_envelope), _averages(curves, _eleven_point_average)
    return Evaluation(
        coco=coco,
        per_class=per_class,
        voc={"AP50": _mean(areas.values()), "AP50_11point": _mean(points.values())},
        voc_per_class=areas,
        images=len(data.records),
    )


def _check_detections(data: DetectionData, detections: list[Detection]) -> None:
    image_ids = {record.image_id for record in data.records}
    unknown_images = sorted({row["image_id"] for row in detections} - image_ids)
    unknown_categories = sorted({row["category_id"] for row in detections} - set(data.category_ids))
    faults = [f"image_id {image_id} is not in the split" for image_id in unknown_images[:20]]
    faults += [f"... and {len(unknown_images) - 20} more images"] if len(unknown_images) > 20 else []
    faults += [f"category_id {category} is none of {list(data.category_ids)}" for category in unknown_categories]
    if faults:
        raise UserError.listing(f"the detections are not of the split {data.split!r} of {data.source}", faults)


def _coco_numbers(
    data: DetectionData, detections: list[Detection], backend: Backend
) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's 12 numbers and the AP of each class, from the arrays that either library accumulates."""
    coco_class, eval_class = _coco_library(backend)
    truth = data.to_coco()
    # Ids are given anew from 1: in COCO's own code an object with id 0 counts as never found.
    truth["annotations"] = [row | {"id": number} for number, row in enumerate(truth["annotations"], start=1)]
    found = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [
            row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(detections, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells its progress on stdout
        run = eval_class(_coco_index(coco_class, truth), _coco_index(coco_class, found), "bbox")
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"][:, None]  # (T, 101 or 1, K, 4 areas, 3 maxima)
    arrays = {"precision": precision, "recall": recall}
    numbers = {
        name: _mean_of_valid(arrays[array][ious, :, :, area, most])
        for name, (array, ious, area, most) in _COCO_NUMBERS.items()
    }
    by_category = {category: _mean_of_valid(precision[:, :, k, 0, 2]) for k, category in enumerate(run.params.catIds)}
    per_class = {name: by_category[i] for name, i in zip(data.classes, data.category_ids, strict=True)}
    return numbers, per_class


def _coco_library(backend: Backend) -> tuple[Any, Any]:
    """The classes COCO and COCOeval of the library asked for; both libraries name them alike."""
    if backend in ("auto", "hotcoco"):
        with contextlib.suppress(ImportError):
            from hotcoco import COCO, COCOeval

            return COCO, COCOeval
    if backend in ("auto", "pycocotools"):
        with contextlib.suppress(ImportError):
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO, COCOeval
    if backend not in ("auto", "hotcoco", "pycocotools"):
        raise UserError(f'unknown evaluation backend {backend!r}: choose "auto", "hotcoco" or "pycocotools"')
    wanted = "hotcoco or pycocotools" if backend == "auto" else backend
    raise UserError(f"COCO's numbers need {wanted}, which cannot be imported here: pip install {wanted.split()[0]}")


def _coco_index(coco_class: Any, content: dict[str, Any]) -> Any:
    index = coco_class()
    index.dataset = content
    index.createIndex()
    return index


def _mean_of_valid(values: Array) -> float:
    """Mean over the entries that exist: COCO writes -1 where a class has no objects of a size."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan


# --- PASCAL VOC -------------------------------------------------------------------------------------------------------


def voc_average_precision(
    data: DetectionData, detections: list[Detection], *, eleven_points: bool = False, iou_threshold: float = 0.5
) -> dict[str, float]:
    """VOC's average precision of each class, by the rules of the devkit.

    Detections are taken best first. Each looks for the object of its class and image that it overlaps most; with an
    IoU of at least the threshold it is right if that object was not found before and wrong if it was; an object marked
    difficult is not counted and neither is a detection of it. The devkit measures boxes as inclusive pixel corners,
    hence its "+ 1"; boxes here are edges, and a VOC file's (xmin, ymin, xmax, ymax) was read as the edges (xmin - 1,
    ymin - 1, xmax, ymax), which have that same width and height. So IoU is taken of edges without adding anything, and
    is the devkit's on VOC files and the common one everywhere else.

    Args:
        data: the split.
        detections: rows of COCO's results format.
        eleven_points: the mean of the best precision at recalls of 0, 0.1, ..., 1 at least (VOC 2007), instead of the
            area under the precision envelope (VOC 2010 on).
        iou_threshold: overlap that makes a detection right, 0..1.

    Returns:
        Class name to AP in 0..1; nan for a class of which no object counts.
    """
    curves = _voc_curves(data, detections, iou_threshold)
    return _averages(curves, _eleven_point_average if eleven_points else _area_under_envelope)


def _voc_curves(
    data: DetectionData, detections: list[Detection], iou_threshold: float = 0.5
) -> dict[str, Curve | None]:
    """Recall and precision of each class with ever less sure detections; None for a class of which no object counts."""
    objects = _objects_by_class(data)
    by_category: dict[int, list[Detection]] = defaultdict(list)
    for row in detections:
        by_category[row["category_id"]].append(row)
    curves: dict[str, Curve | None] = {}
    for name, category, mine in zip(data.classes, data.category_ids, objects, strict=True):
        positives = sum(int((~ignore).sum()) for _, ignore in mine.values())
        right, wrong = (verdict.cumsum() for verdict in _voc_verdicts(by_category[category], mine, iou_threshold))
        curves[name] = (right / positives, right / np.maximum(right + wrong, 1)) if positives else None
    return curves


def _averages(curves: Mapping[str, Curve | None], average: Callable[[Array, Array], float]) -> dict[str, float]:
    return {name: math.nan if curve is None else average(*curve) for name, curve in curves.items()}


def _objects_by_class(data: DetectionData) -> list[dict[int, tuple[Array, NDArray[np.bool_]]]]:
    """For each label, by image id: the boxes (M, 4) xyxy of its objects, and which of them are to be ignored."""
    objects: list[dict[int, tuple[Array, NDArray[np.bool_]]]] = [{} for _ in data.classes]
    for record in data.records:
        boxes, labels, ignore = record.boxes.double().numpy(), record.labels.numpy(), record.ignore.numpy()
        for label in np.unique(labels):
            objects[label][record.image_id] = boxes[labels == label], ignore[labels == label]
    return objects


def _voc_verdicts(
    rows: list[Detection], objects: Mapping[int, tuple[Array, NDArray[np.bool_]]], iou_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of one class, best first, are right and which are wrong; those of difficult objects neither."""
    rows = sorted(rows, key=lambda row: (-row["score"], row["image_id"]))  # stable; images break ties between scores
    places: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["image_id"]].append(place)
    right, wrong = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for image_id, mine in places.items():
        if image_id not in objects:
            continue
        boxes, ignore = objects[image_id]
        overlaps = _iou(np.array([rows[place]["bbox"] for place in mine]), boxes)
        found: set[int] = set()
        for place, nearest, overlap in zip(mine, overlaps.argmax(1).tolist(), overlaps.max(1).tolist(), strict=True):
            if overlap >= iou_threshold:
                right[place] = not ignore[nearest] and nearest not in found
                wrong[place] = not ignore[nearest] and nearest in found
                found.add(nearest)
    return right, wrong


def _iou(xywh: Array, boxes: Array) -> Array:
    """IoU (D, M) of detections (D, 4) xywh with objects (M, 4) xyxy."""
    start, end = xywh[:, None, :2], xywh[:, None, :2] + xywh[:, None, 2:]
    sides = np.minimum(boxes[:, 2:], end) - np.maximum(boxes[:, :2], start)
    intersection = sides.clip(0).prod(2)
    union = xywh[:, None, 2:].prod(2) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _area_under_envelope(recall: Array, precision: Array) -> float:
    """Area under the precision that no higher recall exceeds."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _eleven_point_average(recall: Array, precision: Array) -> float:
    return sum(float(precision[recall >= point / 10].max(initial=0.0)) for point in range(11)) / 11


# --- a checkpoint on a data set ---------------------------------------------------------------------------------------


def evaluate(
    checkpoint: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    workers: int = 0,
    backend: Backend = "auto",
) -> Evaluation:
    """Evaluate a trained detector on a data set, at the image size that it was trained for.

    Args:
        checkpoint: a checkpoint or a run folder (its best checkpoint).
        data: the data set; by default the one of the training run, which an imported detector has not.
        split: by default the validation split of the training run.
        device: by default a GPU where there is one.
        batch_size: images at once. Images of one batch are padded to a common size, which can move a score in the last
            digits, so only 1 is exactly what the exported detector gives.
        workers: processes that read images.
        backend: see :func:`score`.

    Raises:
        UserError: no such checkpoint or data, or the data has no class that the detector knows.
    """
    from understudy.checkpoints import load_checkpoint  # here, because checkpoints are saved by what evaluates

    loaded = load_checkpoint(checkpoint)
    config = loaded.config["data"]
    if data is None and config["path"] is None:
        raise UserError(f"{checkpoint} was imported, not trained here, so it names no data set: give one as DATA.")
    opened = open_data(data if data is not None else config["path"], split or config["val"])
    category_ids = match_classes(loaded.classes, opened)
    device = choose_device(device)
    loader = evaluation_loader(
        opened,
        batch_size=batch_size,
        shorter_side=config["shorter_side"][-1],
        longer_side=config["longer_side"],
        workers=workers,
    )
    detector = loaded.detector.to(device)
    found = detect_all(detector, with_progress(loader, "evaluating"), device, category_ids)
    return replace(
        score(opened, found, backend),
        unknown_classes=tuple(
            name for name, i in zip(opened.classes, opened.category_ids, strict=True) if i not in category_ids
        ),
        unused_classes=tuple(name for name, i in zip(loaded.classes, category_ids, strict=True) if i is None),
    )


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, else the GPU where there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def with_progress(loader: DataLoader, description: str) -> Iterable[Batch]:
    """The same batches, with a bar on stderr while it goes on, where somebody watches a terminal."""
    console = Console(stderr=True)
    return track(loader, description, console=console, transient=True, disable=not console.is_terminal)


def _mean(values: Iterable[float]) -> float:
    """Mean over what is defined: a class without objects has no AP and does not count."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _nan_to_none(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _none_to_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
