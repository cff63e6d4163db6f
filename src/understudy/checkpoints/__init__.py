"""Load and write checkpoints, and import those of other libraries. Nothing in a file is executed."""

from understudy.checkpoints.importing import import_checkpoint
from understudy.checkpoints.native import (
    FORMAT,
    STUDENT,
    Checkpoint,
    build_options,
    check_weights,
    faults_of_metadata,
    load_checkpoint,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)

__all__ = [
    "FORMAT",
    "STUDENT",
    "Checkpoint",
    "build_options",
    "check_weights",
    "faults_of_metadata",
    "import_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "read_metadata",
    "write_checkpoint",
]
