"""Checkpoints that verify: `writer` saves in the background, `attempt` is how ranks write one together, `files` is the
format and its reading, `checked_files` single files with their sha256. Import from here."""

from adadistill.core.checkpoints.attempt import CheckpointTimeoutError, CheckpointWriteError
from adadistill.core.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    OwnRows,
    RowArray,
    list_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    peek_checkpoint,
    resolve_checkpoint,
    verify_checkpoint,
)
from adadistill.core.checkpoints.writer import (
    CheckpointConfig,
    CheckpointWriter,
    NonFiniteCheckpointError,
    Snapshot,
)

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointTimeoutError",
    "CheckpointWriteError",
    "CheckpointWriter",
    "NonFiniteCheckpointError",
    "OwnRows",
    "RowArray",
    "Snapshot",
    "list_checkpoints",
    "load_checkpoint",
    "newest_valid_checkpoint",
    "peek_checkpoint",
    "resolve_checkpoint",
    "verify_checkpoint",
]
