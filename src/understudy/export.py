"""Taking a student home: plain torchvision weights, and the code that builds the network without understudy."""

import json
from importlib.metadata import version
from pathlib import Path

from understudy.checkpoints import load_checkpoint, write_checkpoint
from understudy.detectors import plain
from understudy.errors import UserError
from understudy.runs import write_atomically


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write a trained detector so that torch and torchvision alone load it.

    The folder then holds ``weights.pt`` (the state dict of the plain detector), ``detector.json`` (how it is built, the
    names of its classes) and ``detector/`` (builds and loads it; ``from detector import load``).

    Args:
        checkpoint: a checkpoint or a run folder.
        folder: must not exist, or be empty.

    Raises:
        UserError: the checkpoint cannot be loaded, or the folder is in use or cannot be made.
        RunError: a file could not be written.
    """
    found = load_checkpoint(checkpoint)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; export writes into a new folder and overwrites nothing.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
    write_checkpoint(folder / "weights.pt", found.detector.network.state_dict())
    description = {
        "build": found.meta["build"],
        "classes": list(found.classes),
        "labels": found.detector.label_names(found.classes),
        "category_ids": found.meta["category_ids"],
        "AP": found.meta.get("AP"),
        "understudy": version("understudy"),
    }
    write_atomically(folder / "detector.json", (json.dumps(description, indent=2) + "\n").encode())
    (folder / "detector").mkdir()
    for source in sorted(Path(plain.__file__).parent.glob("*.py")):
        write_atomically(folder / "detector" / source.name, source.read_bytes())
    return folder
