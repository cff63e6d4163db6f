"""Runs the command lines of the fault suite in a folder of their own, and describes what they printed and changed."""

import hashlib
import io
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.cli import main
from understudy.text import printable

SECONDS = 60
"""A command that takes longer hangs; on an idle core each takes well under a second."""

Content = str | bytes | Callable[[Path], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One command line that must end in a message.

    Attributes:
        line: the command line, without the program.
        files: contents by path below the folder of the case; a function makes the file itself. Missing folders are
            made.
        base: names of prepared folders to copy into the folder of the case, see `Bases`.
        name: what is wrong, if the command line does not show it.
        code: the exit code.
    """

    line: str
    files: Mapping[str, Content] = field(default_factory=dict)
    base: tuple[str, ...] = ()
    name: str = ""
    code: int = 2

    @property
    def title(self) -> str:
        """The name of the case in the golden text."""
        return f"# {self.name}: {self.line}" if self.name else f"# {self.line}"


class Hang(BaseException):
    """A command took too long; not an Exception, which the command would turn into a message."""


def run(case: Case, folder: Path, bases: Mapping[str, Path]) -> str:
    """Run a case in a new folder, check its exit code and that it changed nothing, and return its transcript."""
    folder.mkdir(parents=True)
    for name in case.base:
        shutil.copytree(bases[name], folder / name, symlinks=True)
    for name, content in case.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    before = contents(folder)
    code, output = called(case.line, folder)
    assert "Traceback" not in output, output
    assert "Internal error" not in output, output
    assert contents(folder) == before, f"{case.line} changed files"
    assert code == case.code, f"{case.line}: exit code {code}\n{output}"
    if case.line.startswith("compare"):
        output = output[output.rfind("Error:") :]  # without the table, whose numbers depend on the machine
    for place in (*bases.values(), folder):
        output = output.replace(str(place), "HERE" if place == folder else "BASE")
    return f"{case.title}\n{printable(output)}[exit code {code}]\n"


def called(line: str, folder: Path) -> tuple[int, str]:
    """Run a command line in a folder; return its exit code, and what it printed."""
    printed = io.StringIO()
    with inside(folder), alarm(SECONDS), redirect_stdout(printed), redirect_stderr(printed):
        try:
            main([part.replace("\\0", "\0") for part in shlex.split(line)])
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), printed.getvalue()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one; modules that are imported from it are forgotten at the end."""
    import os

    before, modules, path = Path.cwd(), set(sys.modules), list(sys.path)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise `Hang` if the block takes longer."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder, and the target of every link; without locks and compiled code."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in (".lock", "__pycache__") or path.suffix == ".pyc":
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha1(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def sections(golden: str) -> dict[str, str]:
    """Split a golden file into its cases by title."""
    parts = re.split(r"^(?=# )", golden, flags=re.MULTILINE)
    return {part.split("\n", 1)[0]: part for part in parts if part}
