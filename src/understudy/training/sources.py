"""The images of a run: its splits, the part of the training split that is used, and unlabelled images."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from understudy.config import DataConfig, DistillConfig, TrainConfig
from understudy.data import DetectionData, Limits, open_data, open_unlabelled, splits
from understudy.errors import UserError


@dataclass(frozen=True, slots=True)
class Sources:
    """The images of a run.

    Attributes:
        train: the training images that the run uses.
        val: the validation split.
        unlabelled: images that take part without labels; None: there are none.
        notes: remarks on the splits, and on images that are left out.
    """

    train: DetectionData
    val: DetectionData
    unlabelled: DetectionData | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Open the images that a config names.

        Raises:
            UserError: they do not exist, or the annotations have faults.
        """
        whole, val = _open_splits(config.data)
        used, left_out = _used(config.data, whole)
        # The images that data.limit leaves out may take part without their labels.
        unlabelled = _open_unlabelled(config, used if config.data.limit else whole, val)
        return cls(used, val, unlabelled, _notes_on_splits(config.data, used, val) + left_out)


def _open_splits(config: DataConfig) -> tuple[DetectionData, DetectionData]:
    opened, faults = [], []
    for split in (config.train, config.val):
        try:
            opened.append(open_data(config.path, split, Limits.of(config)))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))  # of both splits, so that they can be mended at once
    train_data, val_data = opened
    if train_data.classes != val_data.classes:
        raise UserError(
            f"The splits {train_data.split!r} and {val_data.split!r} of {train_data.source} have different classes: "
            f"{list(train_data.classes)} and {list(val_data.classes)}. They need the same classes in the same order."
        )
    same = (train_data.source, train_data.split) == (val_data.source, val_data.split)
    if same and config.train != config.val:
        raise UserError(
            f"{train_data.source} is one split; it would be used for training and for evaluation. Name two files of a "
            f"folder: data.path={train_data.source.parent} data.train={train_data.source.name} data.val=OTHER_FILE. "
            f"To evaluate on the training images on purpose: data.val={config.train}."
        )
    return train_data, val_data


def _notes_on_splits(config: DataConfig, train_data: DetectionData, val_data: DetectionData) -> tuple[str, ...]:
    """Remark on an evaluation on training images."""
    trained_on = set(train_data.records.paths())
    count = sum(path in trained_on for path in val_data.records.paths())
    if not count:
        return ()
    if count == len(val_data) == len(train_data):
        what = f"data.val={config.val}: the validation split is the training split"
    else:
        what = f"data.val={config.val}: {count} of the {len(val_data)} validation images are training images"
    others = [name for name in splits(config.path) if name not in (config.train, config.val)]
    remedy = f" Other splits: {', '.join(others)} (data.val=NAME)." if others else ""
    return (f"{what}, so AP measures memorisation.{remedy}",)


def _used(config: DataConfig, data: DetectionData) -> tuple[DetectionData, tuple[str, ...]]:
    """Return the part of the training split that a run uses, and notes on the images that are left out."""
    notes = []
    places = torch.arange(len(data))
    if config.skip_empty:
        places = data.records.objects_to_learn().nonzero().flatten()  # open_data ensures that there is one
        count = len(data) - len(places)
        notes.append(f"data.skip_empty: {count} of the {len(data)} training images have no objects and are left out")
    if config.limit is not None:
        chosen = places[_fixed_order(len(places))[: config.limit]].sort().values
        if not data.records.objects_to_learn()[chosen].any():
            raise UserError(
                f"data.limit={config.limit}: none of these training images has an object to train on. Raise it, or set "
                "data.skip_empty=true."
            )
        notes.append(f"data.limit: {len(chosen)} of {len(places)} training images are used")
        places = chosen
    if len(places) == len(data):
        return data, tuple(notes)
    return replace(data, records=data.records.take(places)), tuple(notes)


def _fixed_order(count: int) -> Tensor:
    """Return a random order of so many images that is the same for every run, whatever its seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _open_unlabelled(config: TrainConfig, *labelled: DetectionData) -> DetectionData | None:
    """Open the unlabelled images of a run, without those of the labelled splits."""
    data = config.data
    if data.unlabelled is None:
        if data.unlabelled_batch:
            raise UserError(
                f"data.unlabelled_batch={data.unlabelled_batch} has no effect without unlabelled images. Add "
                "data.unlabelled=FOLDER, or leave data.unlabelled_batch out."
            )
        if isinstance(config, DistillConfig) and config.pseudo_labels != "off":
            raise UserError(
                f"pseudo_labels={config.pseudo_labels} has no effect without unlabelled images. Add "
                "data.unlabelled=FOLDER, or leave pseudo_labels out."
            )
        return None
    if not isinstance(config, DistillConfig):
        raise UserError(
            f"data.unlabelled={data.unlabelled}: unlabelled images need a teacher. Use `understudy distill`, or leave "
            "data.unlabelled out."
        )
    return open_unlabelled(data.unlabelled, labelled, Limits.of(data))
