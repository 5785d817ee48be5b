"""What a checkpoint says of itself, without reading its tensors: for looking at a run before it is resumed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from adadistill.core.checkpoints.checked_files import CheckedFileError, read_bytes
from adadistill.core.checkpoints.files import STATE_NAME, Checkpoint, CheckpointError, read_manifest

_MAX_STATE_BYTES = 1 << 28


def peek_checkpoint(path: Path) -> Checkpoint:
    """The manifest and the state of a checkpoint; tensors and what differs by rank are left empty.

    The manifest and the state are checked against their hashes, of all other files only that they are there and of the
    size that they were: a flipped bit in one of them is found when the checkpoint is loaded.

    Raises:
        CheckpointError: one of that is not so.
    """
    manifest = read_manifest(path)
    for record in manifest.files:
        try:
            found = os.lstat(path / record.name)
        except OSError as error:
            raise CheckpointError(f"{path}: {record.name} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != record.size:
            raise CheckpointError(f"{path}: {record.name} is no file of the {record.size} bytes that were written")
    try:
        state = json.loads(read_bytes(path, manifest[STATE_NAME], max_bytes=_MAX_STATE_BYTES))
    except (CheckedFileError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {STATE_NAME} holds no JSON object")
    return Checkpoint(
        path=path,
        step=manifest.step,
        model={},
        optimiser={},
        optimiser_json={},
        row_sharded={},
        rank_states=[],
        state=state,
    )
