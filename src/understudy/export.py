"""Taking a student home: plain torchvision weights, and one file that builds the network without understudy."""

import json
from importlib.metadata import version
from pathlib import Path

import torch

from understudy.checkpoint import load_checkpoint
from understudy.detectors import plain
from understudy.errors import UserError


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write a trained detector so that torch and torchvision alone load it.

    The folder then holds ``weights.pt`` (the state dict of the torchvision detector), ``detector.json`` (how it is
    built, the names of its classes) and ``detector.py`` (builds and loads it; ``from detector import load``).

    Args:
        checkpoint: a checkpoint or a run folder.
        folder: must not exist, or be empty.

    Raises:
        UserError: the checkpoint cannot be loaded, or the folder is in use.
    """
    found = load_checkpoint(checkpoint)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; export writes into a new folder and overwrites nothing.")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found.detector.network.state_dict(), folder / "weights.pt")
    description = {
        "build": found.meta["build"],
        "classes": list(found.classes),
        "category_ids": found.meta["category_ids"],
        "AP": found.meta.get("AP"),
        "understudy": version("understudy"),
    }
    (folder / "detector.json").write_text(json.dumps(description, indent=2) + "\n")
    (folder / "detector.py").write_text(Path(plain.__file__).read_text())
    return folder
