"""Checkpoints: understudy's own, and those of other libraries, loaded without executing anything."""

from understudy.checkpoints.importing import import_checkpoint
from understudy.checkpoints.own import (
    FORMAT,
    STUDENT,
    Checkpoint,
    build_options,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

__all__ = [
    "FORMAT",
    "STUDENT",
    "Checkpoint",
    "build_options",
    "import_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]
