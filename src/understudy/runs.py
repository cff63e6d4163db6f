"""A run folder: what lies in it, and the rule that nothing in it is ever overwritten by another run."""

import contextlib
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from understudy.errors import RunError, UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there a folder is protected by not being empty
    fcntl = None

PACKAGES = ("understudy", "torch", "torchvision", "lightning", "hotcoco", "pycocotools", "numpy")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: str) -> "RunFolder":
        """Make the folder of a new run and write down what it is.

        Args:
            path: must not exist, or be empty.
            config: the resolved config as YAML.

        Raises:
            UserError: the folder is in use, or cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                way_on = f"go on with it by `understudy resume {path}`, " if (path / "config.yaml").exists() else ""
                raise UserError(f"{path} is not empty, and nothing in it is overwritten: {way_on}or choose another run=.")
            folder = cls(path)
            folder.config.write_text(config)
            folder.environment.write_text(json.dumps(environment(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"The run folder {path} cannot be made: {error.strerror or error}.") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run that was started before.

        Raises:
            UserError: it is none.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"{path} is not a run folder: it holds no config.yaml.")
        return folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out while this one writes to the folder.

        Raises:
            UserError: another process is writing to it.
        """
        if fcntl is None or rank_of_this_process() > 0:
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.path} is in use: another process is training in it.") from error
            yield

    @property
    def config(self) -> Path:
        """The resolved config; it reproduces the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware, command and time."""
        return self.path / "environment.json"

    @property
    def losses(self) -> Path:
        """Every named loss by step."""
        return self.path / "losses.csv"

    @property
    def metrics(self) -> Path:
        """Average precision on the validation split by epoch."""
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        """Everything needed to go on."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The student at its best epoch."""
        return self.path / "best.ckpt"

    @property
    def result(self) -> Path:
        """The evaluation of the best checkpoint; it exists once the run is finished."""
        return self.path / "result.json"


def rank_of_this_process() -> int:
    """Number of this process among those of a distributed run, as launchers tell it; 0 where there is one."""
    return next((int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0)


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, with a header if it is the first; columns are fixed by the first row."""
    first = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def drop_rows_after(file: Path, step: int) -> None:
    """Leave out the rows that an interrupted run wrote after its last checkpoint; resuming writes them again."""
    rows = read_rows(file)
    kept = [row for row in rows if int(row["step"]) <= step]
    if len(kept) < len(rows):
        file.unlink()
        for row in kept:
            append_row(file, row)


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: a full disk or a crash leaves the previous one as it was.

    Raises:
        RunError: it could not be written; the message says what is left.
    """
    draft = file.with_name(f".{file.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        left = "the previous one is untouched" if file.exists() else "there was none before"
        raise RunError(f"{file} could not be saved ({error.strerror or error}); {left}.") from error


def environment(command: Sequence[str] = sys.argv) -> dict[str, Any]:
    """What a number depends on beside the config: command, commit, versions, hardware and time."""
    import torch

    return {
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the package's own checkout, where it runs from one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
