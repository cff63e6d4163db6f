"""A cache of parsed annotation files, so that a data set of COCO's size opens in a second from the second time on.

An entry is named after the content of the annotation file, so it fits every copy of it and no other version. It is an
archive of NumPy arrays with a checksum for each; nothing in it is executed. A damaged entry is not used.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from understudy.data.drafts import SplitDraft
from understudy.data.records import OBJECT_ARRAYS, Fault, Records
from understudy.errors import RunError
from understudy.files import write_atomically

FORMAT = 1
"""Number of the format and of the rules by which files are parsed; entries of another one are not found."""

SMALLEST = 8 * 2**20
"""Bytes of the smallest annotation file that is kept: smaller ones are parsed in less than half a second."""

MOST_FILES = 20
"""Entries that are kept; those that were not used for the longest time are removed."""

_ARRAYS = ("names", "name_ends", "images", "ends", *OBJECT_ARRAYS)


def folder() -> Path:
    """Return the folder of the cache, below the user's folder for caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "understudy" / "annotations"


def entry(stream: io.BytesIO | io.BufferedReader) -> Path | None:
    """Return the file in the cache for the content of an annotation file; None if it is too small to be kept."""
    if stream.seek(0, os.SEEK_END) < SMALLEST:
        return None
    stream.seek(0)
    with contextlib.suppress(RuntimeError):  # a user without a home
        return folder() / f"{hashlib.file_digest(stream, 'sha256').hexdigest()[:40]}-{FORMAT}.npz"
    return None


def load(file: Path, draft: SplitDraft) -> bool:
    """Fill a draft with its image root from an entry; return whether there is one that can be read."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            arrays = {name: torch.from_numpy(stored[name]) for name in _ARRAYS}
        draft.records = Records(draft.image_root, **arrays)
        draft.classes, draft.category_ids = tuple(facts["classes"]), tuple(facts["category_ids"])
        draft.left_out = [Fault(*each) for each in facts["left_out"]]
        os.utime(file)  # it was used
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return False
    return True


def store(file: Path, draft: SplitDraft) -> None:
    """Store a draft without faults; without effect if the folder cannot be written."""
    facts = {"classes": draft.classes, "category_ids": draft.category_ids, "left_out": draft.left_out}
    arrays = {name: getattr(draft.records, name).numpy() for name in _ARRAYS}
    stream = io.BytesIO()
    np.savez(stream, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    with contextlib.suppress(OSError, RunError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, stream.getvalue())
        for old in sorted(file.parent.glob("*.npz"), key=lambda each: -each.stat().st_mtime)[MOST_FILES:]:
            old.unlink()
