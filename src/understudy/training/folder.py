"""The run folder: its files, and the rule that no run overwrites another."""

import contextlib
import json
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from understudy.errors import RunError, UserError
from understudy.files import write_atomically
from understudy.training.environment import environment

try:
    import fcntl
except ImportError:  # Windows has no such locks; there a folder is protected only by not being empty
    fcntl = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: str, facts: Mapping[str, Any] = MappingProxyType({})) -> "RunFolder":
        """Create the folder of a new run and write its config and environment.

        Args:
            path: must not exist, or be empty.
            config: the resolved config as YAML.
            facts: plain values to add to ``environment.json``.

        Raises:
            UserError: the folder is not empty, or cannot be created.
            RunError: a file cannot be written.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                resume = f" To continue the run in it: understudy resume {path}" if folder.config.exists() else ""
                raise UserError(f"The run folder {path} is not empty. Choose a new folder: run=FOLDER.{resume}")
        except OSError as error:
            raise UserError(f"The run folder {path} cannot be created: {error.strerror or error}.") from error
        try:
            write_atomically(folder.environment, (json.dumps({**environment(), **facts}, indent=2) + "\n").encode())
            write_atomically(folder.config, config.encode())
        except RunError:
            folder.environment.unlink(missing_ok=True)  # so that the folder can be used once there is room
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an existing run.

        Raises:
            UserError: the folder is not a run folder.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml.")
        return folder

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Lock the folder against other processes within this block.

        Raises:
            UserError: another process holds the lock.
        """
        if fcntl is None or not is_first_process():
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path} is in use: another process is training in it.") from error
            except OSError:
                pass  # a file system without locks
            yield

    @property
    def config(self) -> Path:
        """The resolved config, which reproduces the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware, command, time, and facts about the run."""
        return self.path / "environment.json"

    @property
    def losses(self) -> Path:
        """Every named loss, by step."""
        return self.path / "losses.csv"

    @property
    def metrics(self) -> Path:
        """Average precision on the validation split, by epoch."""
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        """The last checkpoint, with everything needed to resume."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The detector at its best epoch."""
        return self.path / "best.ckpt"

    @property
    def result(self) -> Path:
        """The evaluation of the best checkpoint; it exists if the run is finished."""
        return self.path / "result.json"


def is_first_process() -> bool:
    """Return whether this process writes files and prints: the only process, or rank 0 of a distributed run."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
