"""The run folder: its files, and the rule that no run overwrites another."""

import contextlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from understudy.config import DistillConfig, TrainConfig, flat, has, load_config
from understudy.errors import UserError
from understudy.files import write_atomically
from understudy.reading import read_json, read_yaml
from understudy.training.environment import environment

try:
    import fcntl
except ImportError:  # Windows has no such locks; there a folder is protected only by not being empty
    fcntl = None

_HELD: set[Path] = set()  # folders that this process has locked: its own locks do not exclude it

_FIRST_FILES = {".lock", ".environment.json.part", "environment.json", ".config.yaml.part"}
"""What a start that was killed before it wrote the config leaves behind."""

UNSTATED: dict[str, Any] = {
    "ema": "off",
    "data.colour": 0.0,
    "data.scale": 1.0,
    "data.variants": None,
    "teacher_scale": 1,
    "methods.second_stage.quality": False,
}
"""What runs did whose config.yaml lacks a key, being of an earlier version, if it differs from the default."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

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

    def check_new(self) -> None:
        """Check that a new run can use the folder; it is not touched.

        Raises:
            UserError: the folder is not empty, or is no folder.
        """
        try:
            found = {file.name for file in self.path.iterdir()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"The run folder {self.path} cannot be created: {error.strerror or error}.") from error
        if found and not (".lock" in found and found <= _FIRST_FILES):
            resume = f" To continue the run in it: understudy resume {self.path}" if self.config.exists() else ""
            raise UserError(f"The run folder {self.path} is not empty. Choose a new folder: run=FOLDER.{resume}")

    @contextlib.contextmanager
    def created(self, config: str, facts: Mapping[str, Any] = MappingProxyType({})) -> Generator[None]:
        """Create the folder of a new run, write its environment and config, and lock it within this block.

        Of several processes that start in one folder, the one that locks it first writes; the others change nothing.

        Args:
            config: the resolved config as YAML.
            facts: plain values to add to ``environment.json``.

        Raises:
            UserError: the folder is not empty, in use, or cannot be created.
            RunError: a file cannot be written.
        """
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The run folder {self.path} cannot be created: {error.strerror or error}.") from error
        with self.locked():
            self.check_new()  # another run may have begun and ended since
            self.write_environment({**environment(), **facts})
            write_atomically(self.config, config.encode())  # last: a folder with a config is a run
            yield

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Lock the folder against other runs within this block.

        The lock ends with this process, however it ends. Its workers do not inherit it.

        Raises:
            UserError: another run holds the lock, or the folder cannot be written to.
        """
        with lock(
            self.path,
            f"{self.path} is in use: another process is training in it. Wait until it has ended. For a run of its own, "
            "choose a new folder: run=FOLDER.",
        ):
            yield

    def read_config(self) -> TrainConfig:
        """Return the resolved config; a :class:`~understudy.config.DistillConfig` for a distilled student.

        Raises:
            UserError: the file cannot be read, or is not a config.
        """
        content = read_yaml(self.config, "config file")
        kind = DistillConfig if "teacher" in content else TrainConfig
        stated = flat(content)
        lacked = [key for key in UNSTATED if key not in stated and has(kind, key) and _has_method(stated, key)]
        return load_config(kind, self.config, {key: UNSTATED[key] for key in lacked})

    def read_environment(self) -> dict[str, Any]:
        """Return the content of ``environment.json``; an empty dict if there is no such file, or if it is damaged."""
        try:
            return read_json(self.environment)
        except UserError:
            return {}

    def write_environment(self, content: Mapping[str, Any]) -> None:
        """Write ``environment.json``.

        Raises:
            RunError: it cannot be written.
        """
        write_atomically(self.environment, (json.dumps(content, indent=2) + "\n").encode())

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


@contextlib.contextmanager
def lock(folder: Path, in_use: str) -> Generator[None]:
    """Lock a folder against other processes within this block; workers do not inherit the lock.

    Raises:
        UserError: with the message ``in_use`` if another block holds the lock; or the folder cannot be written to.
    """
    place = folder.resolve()
    if place in _HELD:
        raise UserError(in_use)
    try:
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}.") from error
    with file:
        try:
            # Not flock, whose lock a forked worker shares: it would outlive a killed run by seconds.
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            raise UserError(in_use) from None
        except OSError:
            pass  # a file system without locks
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.remove(place)


def _has_method(stated: Mapping[str, Any], key: str) -> bool:
    """Return whether a run has the method to which a key belongs; keys of no method are every run's."""
    section = key.rpartition(".")[0] + "."
    return not section.startswith("methods.") or any(other.startswith(section) for other in stated)
