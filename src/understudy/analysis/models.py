"""The detectors of an analysis, and one walk over the images for all of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from understudy.checkpoints import Checkpoint, load_checkpoint
from understudy.class_matching import match_names
from understudy.data import Batch, DetectionData, Records, as_paths
from understudy.detectors import Detector, with_larger_images
from understudy.detectors.base import evaluating
from understudy.errors import UserError
from understudy.evaluation import (
    aliases_of,
    choose_device,
    loader_at_evaluation_size,
    match_classes,
    open_split,
    with_progress,
)
from understudy.outputs import Outputs, Target
from understudy.text import closest, listed

Device = torch.device | str | None


@dataclass(frozen=True, slots=True)
class Model:
    """A detector under analysis.

    Attributes:
        name: in tables and figures; unique among the models of an analysis.
        checkpoint: its weights, classes and config.
        scale: how many times as large as a student's it sees the images, as a teacher.
    """

    name: str
    checkpoint: Checkpoint
    scale: int = 1

    @property
    def detector(self) -> Detector:
        """The detector; its records are in pixels of the student's images."""
        return with_larger_images(self.checkpoint.detector, self.scale)

    def beside(self, *students: "Model") -> "Model":
        """Return the model as a teacher that sees the images as in the training of these students, if they agree."""
        scales = {each.checkpoint.config.get("teacher_scale") or 1 for each in students if each.taught}
        return replace(self, scale=scales.pop()) if len(scales) == 1 else self

    @property
    def taught(self) -> bool:
        """Whether it was trained with a teacher."""
        return "teacher" in self.checkpoint.config

    @property
    def size(self) -> tuple[int, int]:
        """The image size of its evaluation: shorter side and longest longer side, in pixels."""
        data = self.checkpoint.config["data"]
        return data["shorter_side"][-1], data["longer_side"]

    def labels_of(self, data: DetectionData) -> tuple[int, ...]:
        """Return, for each class of a data set, the model's label of the class of that name, or -1.

        Raises:
            UserError: there is no class in common.
        """
        aliases = aliases_of(self.checkpoint)
        match_classes(self.checkpoint.classes, data, aliases)
        places = match_names(data.classes, self.checkpoint.classes, aliases)
        return tuple(-1 if place is None else place for place in places)

    def unknown(self, data: DetectionData) -> list[str]:
        """Return the classes of a data set that the model lacks."""
        return [name for name, label in zip(data.classes, self.labels_of(data), strict=True) if label < 0]


class Analysis(Protocol):
    """Something that is computed from the records of several models, batch by batch."""

    def add(self, batch: Batch, outputs: Mapping[str, Outputs]) -> None:
        """Take the records of a batch, by the name of the model."""
        ...


def open_models(paths: Sequence[Path | str]) -> list[Model]:
    """Load the checkpoints of some models, which are named after their folder or file.

    Raises:
        UserError: checkpoints cannot be read, or one is given twice; all are listed.
    """
    names = _names([Path(path) for path in paths])
    models, faults = [], []
    for path, name in zip(paths, names, strict=True):
        try:
            models.append(Model(name, load_checkpoint(path)))
        except UserError as error:
            faults.append(str(error))
    files = [model.checkpoint.path.resolve() for model in models]
    faults += [f"{file} is given twice" for file in dict.fromkeys(files) if files.count(file) > 1]
    if len(faults) == 1 and len(paths) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError.listing("These detectors cannot be analysed:", faults)
    return models


def open_images(
    models: Sequence[Model],
    data: Path | str | None,
    split: str | None,
    images: int | None = None,
    names: Sequence[str] = (),
    argument: str = "DATA",
) -> DetectionData:
    """Open the images of an analysis: a split, some of its images evenly spread, or those of some names.

    Args:
        models: the data set and the split of a run are the defaults: of the first model whose data set exists.
        data: the data set.
        split: the split.
        images: at most this many; None: all.
        names: file names, with or without folder and suffix, or ids; empty: not chosen by name.
        argument: with which the user's command takes a data set, for messages.

    Raises:
        UserError: the data set cannot be read, has no images, or has none of some of the names; all are listed.
    """
    with_data = (model for model in models if _has_data(model))
    opened = open_split(next(with_data, models[0]).checkpoint, data, split, argument=argument)
    if not opened.records:
        raise UserError(f"The split {opened.split!r} of {opened.source} has no images to analyse.")
    return named(opened, names) if names else sample(opened, images)


def sample(data: DetectionData, images: int | None) -> DetectionData:
    """Return a split with at most so many of its images, evenly spread over it."""
    if images is None or images >= len(data):
        return data
    return replace(data, records=data.records.take([number * len(data) // images for number in range(images)]))


def named(data: DetectionData, names: Sequence[str]) -> DetectionData:
    """Return a split with the images of some names only, in the order of the names.

    Raises:
        UserError: there is no image, or more than one, of a name; all faults are listed.
    """
    chosen, faults = [], []
    for name in names:
        found = [
            record for record in data.records if name in (record.path.name, record.path.stem, str(record.image_id))
        ]
        found = found or [record for record in data.records if record.path.as_posix().endswith(f"/{name}")]
        if len(found) == 1:
            chosen += found
        elif found:
            faults.append(f"{name}: {len(found)} images have this name; give more of the path")
        else:
            close = closest(name, [record.path.name for record in data.records])
            faults.append(f"{name}: no such image{f'; did you mean {close}?' if close else ''}")
    if faults:
        raise UserError.listing(f"Images that cannot be chosen from the split {data.split!r} of {data.source}:", faults)
    return replace(data, records=Records.of(chosen))


@torch.no_grad()
def walk(
    models: Sequence[Model],
    data: DetectionData,
    analyses: Sequence[Analysis],
    *,
    like: Model | None = None,
    device: Device = None,
    batch_size: int = 1,
    workers: int = 0,
    seconds: float | None = None,
) -> int:
    """Run all models on the images of a split, once, and hand the records to all analyses.

    Args:
        models: the detectors.
        data: the images.
        analyses: each gets every batch.
        like: the model whose image size all of them get; None: each its own, in one pass for each size.
        device: by default a GPU if there is one.
        batch_size: images per batch.
        workers: processes that read images.
        seconds: time after which no further batch begins; None: all images.

    Returns:
        The number of images.
    """
    device = choose_device(device)
    sizes = [like.size] if like else list(dict.fromkeys(model.size for model in models))
    started, count = time.perf_counter(), 0
    for size in sizes:
        group = [model for model in models if like or model.size == size]
        config = (like or group[0]).checkpoint.config
        scale = max(model.scale for model in group)
        loader = loader_at_evaluation_size(data, config, batch_size=batch_size, workers=workers, teacher_scale=scale)
        count = 0
        for batch, outputs in _records(group, loader, device):
            for analysis in analyses:
                analysis.add(batch, outputs)
            count += len(batch.image_ids)
            if seconds is not None and time.perf_counter() - started > seconds:
                break
    return count


def _records(
    models: Sequence[Model], loader: DataLoader, device: torch.device
) -> Iterator[tuple[Batch, dict[str, Outputs]]]:
    for model in models:
        model.detector.to(device)
    for batch in with_progress(loader, "analysing"):
        batch = batch.to(device)
        outputs = {}
        for model in models:
            with evaluating(model.detector):
                if model.scale > 1:
                    seen = batch.images_of_teacher(), batch.sizes_of_teacher()
                else:
                    seen = batch.images, batch.image_sizes
                outputs[model.name] = model.detector(*seen)
        yield batch, outputs


def targets_of(batch: Batch, labels: Sequence[int]) -> tuple[list[Target], list[Tensor]]:
    """Return the ground truth of a batch in the labels of a model, and the boxes (X, 4) per image of other classes.

    Args:
        batch: with the labels of its data set.
        labels: the model's label of each class of the data set, -1 for none (:meth:`Model.labels_of`).
    """
    targets, left_out = [], []
    for target in batch.targets:
        own = torch.tensor(labels, device=target["labels"].device)[target["labels"]]
        targets.append({"boxes": target["boxes"][own >= 0], "labels": own[own >= 0]})
        left_out.append(target["boxes"][own < 0])
    return targets, left_out


def inside(outputs: Outputs, strides: Sequence[int], image_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Mark the cells that begin inside the image, not in its padding: per level (N, H, W) bool."""
    masks = []
    for (height, width), stride in zip(outputs.level_sizes, strides, strict=True):
        device = outputs.features[0].device
        rows, columns = (torch.arange(count, device=device) * stride for count in (height, width))
        sizes = torch.tensor(image_sizes, device=device)
        masks.append((rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None, :])
    return masks


def note_data(data: DetectionData) -> str:
    """Name the images of an analysis."""
    count = len(data)
    return f"{count} image{'' if count == 1 else 's'} of {data.split!r} in {data.source}."


def note_unknown(models: Sequence[Model], data: DetectionData, effect: str) -> list[str]:
    """Return a note for each model that lacks classes of a data set."""
    return [f"{model.name} lacks {listed(unknown)}: {effect}" for model in models if (unknown := model.unknown(data))]


def require_dense(model: Model, what: str) -> None:
    """Refuse a model without dense predictions.

    Raises:
        UserError: it has none.
    """
    if not model.detector.spec.dense:
        spec = model.detector.spec
        raise UserError(
            f"{model.name} ({spec.name}) has {spec.predictions}; {what} needs dense predictions. "
            "Use `understudy analyse errors`, which compares final detections."
        )


def _has_data(model: Model) -> bool:
    """Return whether the data set of a model's run exists."""
    path = model.checkpoint.config["data"]["path"]
    return path is not None and all(each.exists() for each in as_paths(path))


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each path after its folder or file; paths that share a name are named in full."""
    short = [
        path.resolve().parent.name
        if path.name in ("best.ckpt", "last.ckpt")
        else path.resolve().name.removesuffix(".ckpt")
        for path in paths
    ]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
