"""Finished runs made up for tests: their folders, as training leaves them, and the rows of a comparison."""

import json
import math
from pathlib import Path

from understudy.compare.rows import Row
from understudy.compare.runs import Run
from understudy.config import DistillConfig, TrainConfig, dump_config
from understudy.evaluation import Evaluation

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TEACHER = {"name": "retinanet_resnet18", "neck_channels": 16, "norm": "batch"}
STUDENT = {"name": "retinanet_mobilenet_v2", "neck_channels": 8, "width_mult": 0.35, "norm": "batch"}
NOTHING_OPEN = {"backbone_weights": None, "anchor_scale": None}


def evaluation_of(ap: float) -> Evaluation:
    """An evaluation with this AP, a higher AP50, and no small objects."""
    coco = dict.fromkeys(COCO_NUMBERS, ap) | {"AP50": ap + 0.2, "APs": math.nan}
    return Evaluation(coco, {"cat": ap}, {"AP50": ap, "AP50_11point": ap}, {"cat": ap}, images=7)


def config_of(folder: Path, *, detector=None, teacher=None, data="unused", **options) -> TrainConfig:
    sizes = {"shorter_side": [64], "longer_side": 96, "workers": 2}
    values = {"data": {"path": str(data), **sizes}, "detector": {**NOTHING_OPEN, **(detector or STUDENT)}}
    values |= {"schedule": "1x", "batch_size": 16, "evaluate_every": 1, "run": str(folder)} | options
    return (
        DistillConfig(**{"methods": {"frs": {}}} | values, teacher=str(teacher)) if teacher else TrainConfig(**values)
    )


def make_run(folder: Path, ap: float, **options) -> Path:
    """Write the folder of a finished run without weights; options of :func:`config_of`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config_of(folder, **options)))
    result = evaluation_of(ap).to_dict() | {"epoch": 3, "parameters": 1_234_567, "train_seconds": 12.5}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def make_row(name: str, role: str, *aps: float, folders=(), plain=None, teacher=None, **options) -> Row:
    """A row of the table, with one run for each AP; without folders on disk unless these are given."""
    if role == "distilled":
        options |= {"teacher": "star"}
    runs = []
    for seed, ap in enumerate(aps):
        folder = folders[seed] if folders else Path(f"{name}-{seed}")
        config = config_of(folder, seed=seed, **options)
        runs.append(Run(folder, config, evaluation_of(ap), 2_500_000, 3, 75.4, ("unused", "val")))
    return Row(name, role, tuple(runs), plain, teacher)
