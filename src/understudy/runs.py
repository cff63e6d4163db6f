"""A run folder: what lies in it, and the rule that nothing in it is ever overwritten by another run."""

import contextlib
import csv
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
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
    def create(cls, path: Path, config: str, facts: Mapping[str, Any] = MappingProxyType({})) -> "RunFolder":
        """Make the folder of a new run and write down what it is.

        Args:
            path: must not exist, or be empty.
            config: the resolved config as YAML.
            facts: what else was found out and belongs beside the environment, as plain values.

        Raises:
            UserError: the folder is in use, or cannot be made.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                way_on = f"go on with it by `understudy resume {path}`, or " if folder.config.exists() else ""
                raise UserError(f"{path} is not empty, and nothing in it is overwritten: {way_on}choose another run=.")
        except OSError as error:
            raise UserError(f"The run folder {path} cannot be made: {error.strerror or error}.") from error
        try:
            write_atomically(folder.environment, (json.dumps({**environment(), **facts}, indent=2) + "\n").encode())
            write_atomically(folder.config, config.encode())
        except RunError:
            folder.environment.unlink(missing_ok=True)  # so that the folder can be used once there is room
            raise
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
    def locked(self) -> Generator[None]:
        """Keep a second process out while this one writes to the folder.

        Raises:
            UserError: another process is writing to it.
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


def is_first_process() -> bool:
    """Whether this process writes files and prints: the only one, or that of a distributed run with rank 0."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, whole or not at all, with a header if it is the first.

    It has the columns of the first: what an older version did not write is left out of a run that goes on.

    Raises:
        RunError: it could not be written.
    """
    before = file.stat().st_size if file.exists() else 0
    if before:
        with file.open(newline="") as stream:
            row = {name: row.get(name, "") for name in next(csv.reader(stream))}
    content = _csv([row], header=not before)
    try:
        with file.open("ab") as stream:
            stream.write(content)
    except OSError as error:
        if file.exists():
            os.truncate(file, before)
        raise RunError(f"{file} could not be extended ({error.strerror or error}); its rows are untouched.") from error


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file. A last row that was cut short is left out."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def drop_rows_after(file: Path, step: int) -> None:
    """Leave out the rows that an interrupted run wrote after its last checkpoint; resuming writes them again."""
    if not file.exists():
        return
    kept = [row for row in read_rows(file) if int(row["step"]) <= step]
    if kept:
        write_atomically(file, _csv(kept, header=True))
    else:
        file.unlink()


def _csv(rows: Sequence[Mapping[str, Any]], header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


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
        left = "the previous one is untouched" if file.exists() else "there was none before"
        raise RunError(f"{file} could not be saved ({error.strerror or error}); {left}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()  # when it failed or was interrupted; after a success there is none


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
