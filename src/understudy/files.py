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
        UserError: the file exists, and `force` is false; or it is a folder, or its folder cannot be written to.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: expected the name of a file to write.")
    if file.exists() and not force:
        raise UserError(f"{file} exists and is not overwritten: choose another file, or replace it by --force.")
    check_folder(file.parent, str(file))


def check_outputs(files: Sequence[Path | None], force: bool) -> None:
    """Check the files that a command is to write; None: one that its user did not ask for.

    Raises:
        UserError: as :func:`check_writable`, or two of them are the same.
    """
    given = [file for file in files if file]
    for place, file in enumerate(given):
        check_writable(file, force)
        if file.resolve() in [other.resolve() for other in given[:place]]:
            raise UserError(f"{file} is given for two outputs: one would replace the other. Name another file.")


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
        raise UserError(f"{what}: {present} is a file, not a folder. Give a new or an existing folder.")
    if not os.access(present, os.W_OK | os.X_OK):
        raise UserError(f"{what}: no permission to write to {present}. Give another folder.")


def write_output(file: Path, content: bytes) -> None:
    """Write a file that a user named, and make the folders above it; see :func:`write_atomically`.

    Raises:
        UserError: a folder cannot be made.
        RunError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from None
    write_atomically(file, content)


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
