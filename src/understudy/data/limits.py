"""What a data set may use: which files, and how large an image may be."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from understudy.config import DataConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a data set that a user raises on purpose.

    Attributes:
        max_pixels: most pixels of an image; a small file can contain an image that fills the memory.
        allow_outside: whether files outside the data set's folder may be used, by links or by paths.
    """

    max_pixels: int = DataConfig.model_fields["max_pixels"].default
    allow_outside: bool = DataConfig.model_fields["allow_outside"].default

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """Return the limits in the ``data`` section of a config."""
        return cls(config.max_pixels, config.allow_outside)


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")
"""Names of files that are possible everywhere and lead to no other folder."""

LIMITS = Limits()
"""The limits unless a user sets others."""


class DataFolder:
    """The folder of a data set. Files inside it may be read, others only if the limits allow it.

    Args:
        root: the folder; it may itself be a link.
        limits: of the data set.
    """

    def __init__(self, root: Path, limits: Limits = LIMITS):
        self.root, self.limits = root, limits
        self._real_root = Path(os.path.realpath(root))
        self._inside: dict[Path, bool] = {}  # of parent folders: most images share one, and resolving is slow

    def allows(self, path: Path) -> bool:
        """Return whether a file or folder may be read: links and ``..`` in its path must not lead outside."""
        if self.limits.allow_outside:
            return True
        if path == self.root or path.is_symlink() or path.name == "..":
            return self._contains(path)
        if path.parent not in self._inside:
            self._inside[path.parent] = self._contains(path.parent)
        return self._inside[path.parent]

    def holds(self, folder: Path, name: str) -> bool:
        """Return whether `folder / name` may be read; see `named`, which takes longer for most names."""
        plain = _PLAIN_NAME.fullmatch(name) and self._inside.get(folder)
        # A call for every image, of which there may be a million.
        return bool(plain and not os.path.islink(f"{folder}/{name}")) or self.named(folder, name) is not None  # noqa: PTH114

    def named(self, folder: Path, name: str) -> Path | None:
        """Return `folder / name` for a name from an annotation file; None if it may not be read.

        Unless the limits allow it, refused are absolute names, names with ``..``, and links that lead outside. Names
        that no file can have are always refused.
        """
        parts = re.split(r"[/\\]", name)
        absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
        if not is_possible(name) or ((absolute or ".." in parts) and not self.limits.allow_outside):
            return None
        path = folder / name
        return path if self.allows(path) else None

    def refusal(self, name: object) -> str:
        """Return the message on a file that may not be read."""
        if not is_possible(str(name)):
            return f"{str(name)[:200]!r} is not a valid file name"
        return (
            f'"{str(name)[:200]}" is not inside the data set ({self.root}), or a link leads outside. If this is meant: '
            "data.allow_outside=true (understudy check: --allow-outside)"
        )

    def _contains(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._real_root)


def is_possible(name: str) -> bool:
    """Return whether file systems accept a path; the calls that follow would raise otherwise."""
    try:
        parts = [part.encode() for part in re.split(r"[/\\]", name)]
    except UnicodeEncodeError:
        return False
    return all(len(part) <= 255 and b"\0" not in part for part in parts) and sum(map(len, parts)) < 2048
