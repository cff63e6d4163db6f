"""Files that are written completely or not at all, and the CSV files of a run."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import RunError, UserError
from understudy.reading import number_in, read_rows


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, completely or not at all; the first row is preceded by a header.

    Later rows have the columns of the header. Values in other columns are dropped: a newer version may continue a run.

    Raises:
        RunError: the row could not be written.
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
        raise RunError(f"Could not append to {file} ({error.strerror or error}). Its rows are unchanged.") from error


def drop_rows_after(file: Path, step: int) -> None:
    """Remove the rows of later steps, which an interrupted run wrote after its last checkpoint."""
    if not file.exists():
        return
    kept = [row for row in read_rows(file) if number_in(row, "step", file) <= step]
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


def check_writable(file: Path, force: bool) -> None:
    """Check that a command may write a file that its user named, before it does anything else.

    Raises:
        UserError: the file exists, and `force` is false.
    """
    if file.exists() and not force:
        raise UserError(f"{file} exists and is not overwritten: choose another file, or replace it by --force.")


def check_folder(folder: Path, what: str) -> None:
    """Check that files can be written to a folder, which may not exist yet.

    Args:
        folder: nothing is made.
        what: the key or option that named it, for the message.

    Raises:
        UserError: the folder, or the closest one above it that exists, is a file or cannot be written to.
    """
    present = next((place for place in (folder, *folder.absolute().parents) if os.access(place, os.F_OK)), folder)
    if not present.is_dir():
        raise UserError(f"{what}: expected a folder, {present} is a file. Give a new or an existing folder.")
    if not os.access(present, os.W_OK | os.X_OK):
        raise UserError(f"{what}: no permission to write to {present}. Give another folder.")


def write_atomically(file: Path, content: bytes, *, durable: bool = True, shared: bool = False) -> None:
    """Write a file completely or not at all: a full disk or a crash leaves the previous version unchanged.

    Args:
        file: to write.
        content: of the file.
        durable: whether it must be there even if the machine crashes right afterwards.
        shared: whether other processes may write the same file at the same time.

    Raises:
        RunError: the file could not be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.part" if shared else f".{file.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        draft.replace(file)
    except OSError as error:
        previous = " The previous version is unchanged." if file.exists() else ""
        raise RunError(f"Could not write {file} ({error.strerror or error}).{previous}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()  # after a failure or an interruption; after a success there is none
