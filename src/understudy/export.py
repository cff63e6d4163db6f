"""Export of a trained detector: its weights, and the code that builds its network without understudy."""

import inspect
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from understudy import networks
from understudy.checkpoints import load_checkpoint, write_checkpoint
from understudy.detectors.families import family_of
from understudy.errors import UserError
from understudy.files import write_atomically


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write a trained detector such that torch and torchvision suffice to load it.

    ===================  ======================================================================
    ``weights.pt``       the state dict of the plain network
    ``detector.json``    how the network is built, and the names of its classes
    ``detector/``        the code that builds and loads it: ``from detector import load``
    ===================  ======================================================================

    Args:
        checkpoint: a checkpoint or a run folder.
        folder: must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoint cannot be loaded, or the folder is not empty or cannot be created.
        RunError: a file could not be written.
    """
    trained = load_checkpoint(checkpoint)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder. Choose a new one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be created: {error.strerror or error}.") from error
    write_checkpoint(folder / "weights.pt", trained.detector.network.state_dict())
    description = {
        "build": trained.meta["build"],
        "classes": list(trained.classes),
        "labels": trained.detector.label_names(trained.classes),
        "category_ids": trained.meta["category_ids"],
        "AP": trained.meta.get("AP"),
        "understudy": version("understudy"),
    }
    write_atomically(folder / "detector.json", (json.dumps(description, indent=2) + "\n").encode())
    (folder / "detector").mkdir()
    for name, source in _sources(trained.meta["build"]["name"]).items():
        write_atomically(folder / "detector" / name, source.encode())
    return folder


def _sources(detector: str) -> dict[str, str]:
    """Return the files of ``detector/``: the package's networks, and the module of a family from a plugin.

    A plugin's module of networks may import from ``understudy.networks``; beside the copy of that package these are
    relative imports.
    """
    files = sorted(Path(networks.__file__).parent.glob("*.py"))
    sources = {file.name: file.read_text(encoding="utf-8") for file in files}
    family = family_of(detector)
    if family and not family.networks.startswith(f"{networks.__name__}."):
        code = inspect.getsource(import_module(family.networks))
        code = code.replace(f"from {networks.__name__}.", "from .").replace(f"from {networks.__name__} ", "from . ")
        sources[f"{family.name}.py"] = code
    return sources
