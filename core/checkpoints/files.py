"""What a checkpoint is on disk, and how one is found, checked and read.

A checkpoint is a directory, `checkpoints/step-00001234/`:

    model.safetensors              parameters and buffers, by their names
    optimiser.safetensors / .json  its tensors under flat names; everything else
    centres-00-of-02.safetensors   rows [C*r//R, C*(r+1)//R) of one large (C, ...) array, from rank r of R, whether the
                                   ranks held the whole of it or only these; it is read back either way, on any R
    rank-00-of-02.json             what differs by rank, such as random state
    state.json                     what all ranks agree on: epoch, position, recipe hash ...
    MANIFEST.json                  format, version, step, name + size + sha256 of every file, and its own sha256

The manifest is written last and the directory then renamed from a temporary name, so a directory of this name is whole
unless the disk lost something later; that is what the hashes are for. Valid means: the manifest verifies.

Checkpoints also come from strangers (a teacher, a colleague). Nothing here is pickled; names must be plain file names,
links and devices are refused, sizes are compared with the files before memory is taken. The hashes find damage, not
forgery: who can write the files can write the manifest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from adadistill.core.checkpoints.checked_files import (
    CheckedFileError,
    FileRecord,
    TensorHeader,
    check_file,
    check_size,
    empty_tensor,
    open_regular,
    read_bytes,
    read_header,
    read_rows,
    read_tensors,
)
from adadistill.loaders.errors import Refused

_log = logging.getLogger(__name__)

MANIFEST_NAME = "MANIFEST.json"
MODEL_NAME = "model.safetensors"
OPTIMISER_NAME = "optimiser.safetensors"
OPTIMISER_JSON_NAME = "optimiser.json"
STATE_NAME = "state.json"
ROWS_KEY = "rows"  # the one tensor in a shard of a row-sharded array

_FORMAT = "adadistill-checkpoint"
_VERSION = 1
_MAX_JSON_BYTES = 16 << 20  # a manifest of 30,000 ranks; parsing takes up to thirty times the memory
_MAX_FILE_BYTES = 1 << 50
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"([a-z][a-z0-9_]*)-(\d{2,9})-of-(\d{2,9})\.safetensors")
# A step that is written again (the run went back to an older checkpoint) sets the earlier one aside under the second
# form until the new one stands, so that at every moment one of them has a name that is found.
_STEP_FOLDER = re.compile(r"step-(\d{8,18})(\.replaced-[0-9A-Za-z]+-\d+)?")


class CheckpointError(Refused, RuntimeError):
    """A checkpoint cannot be read or written; the text names the file and says what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of MANIFEST.json. `attempt` tells two writings of one step apart."""

    step: int
    world_size: int
    attempt: str
    files: tuple[FileRecord, ...]

    def __getitem__(self, name: str) -> FileRecord:
        for record in self.files:
            if record.name == name:
                return record
        raise CheckpointError(f"{MANIFEST_NAME} does not list {name}")


@dataclass(frozen=True, slots=True)
class OwnRows:
    """The rows [C*r//R, C*(r+1)//R) of a large (C, ...) array, on rank r of R, where no rank holds the whole of it."""

    rows: Tensor
    total: int
    """C."""


RowArray: TypeAlias = Tensor | OwnRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint in memory: CPU tensors with the bits that were saved, contiguous, each with its own storage."""

    path: Path
    step: int
    state: dict[str, Any]
    model: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    optimiser_json: dict[str, Any] = field(default_factory=dict)
    row_sharded: dict[str, RowArray] = field(default_factory=dict)
    """Large (C, ...) arrays, whatever the number of ranks that wrote them: whole, or this rank's rows where these were
    asked for."""
    rank_states: list[dict[str, Any]] = field(default_factory=list)
    """By rank of the run that wrote it; that may have had more or fewer ranks than this one."""


def step_folder_name(step: int) -> str:
    """`step-00001234`."""
    return f"step-{step:08d}"


def shard_name(array: str, rank: int, world_size: int) -> str:
    """`centres-00-of-02.safetensors`."""
    return f"{array}-{rank:02d}-of-{world_size:02d}.safetensors"


def rank_state_name(rank: int, world_size: int) -> str:
    """`rank-00-of-02.json`."""
    return f"rank-{rank:02d}-of-{world_size:02d}.json"


def row_range(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Rows [first, end) of a (rows, ...) array that belong to this rank."""
    return rows * rank // world_size, rows * (rank + 1) // world_size


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoint directories, by rising step, unchecked.

    Args:
        folder: a run folder or its `checkpoints` folder; one that does not exist has none.
    """
    return [path for path in _named_checkpoints(folder) if path.is_dir() and not path.is_symlink()]


def step_of(path: Path) -> int | None:
    """The step in a checkpoint directory's name, None for other names (a copy may be called anything)."""
    match = _STEP_FOLDER.fullmatch(path.name)
    return int(match[1]) if match else None


def verify_checkpoint(path: str | Path) -> None:
    """Read every file of a checkpoint and compare it with the manifest.

    Raises:
        CheckpointError: names the file and says what is wrong: missing, size, sha256, version, unsafe name, link.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with _errors_of(path):
        _check_file_names(manifest)
        for record in manifest.files:
            check_file(path, record)


def load_checkpoint(
    path: str | Path, *, model_only: bool = False, own_rows_of: tuple[int, int] | None = None
) -> Checkpoint:
    """Read a checkpoint directory into memory, checking every byte on its way.

    Args:
        path: the checkpoint directory; see `resolve_checkpoint` for run folders.
        model_only: read (and check) only the model and `state`, for a teacher or an evaluation; the rest stays empty.
        own_rows_of: (rank, number of ranks) of a process that keeps only its `OwnRows` of the row-sharded arrays. All
            files are read and checked all the same, so that ranks judge alike. None keeps whole arrays.

    Raises:
        CheckpointError: as `verify_checkpoint`, or the files do not make up one whole checkpoint.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with _errors_of(path):
        _check_file_names(manifest)
        model, _ = read_tensors(path, manifest[MODEL_NAME])
        state = _read_json(path, manifest[STATE_NAME])
        if model_only:
            return Checkpoint(path=path, step=manifest.step, model=model, state=state)
        optimiser, _ = read_tensors(path, manifest[OPTIMISER_NAME])
        ranks = range(manifest.world_size)
        return Checkpoint(
            path=path,
            step=manifest.step,
            model=model,
            state=state,
            optimiser=optimiser,
            optimiser_json=_read_json(path, manifest[OPTIMISER_JSON_NAME]),
            row_sharded={array: _read_array(path, manifest, array, own_rows_of) for array in _sharded_arrays(manifest)},
            rank_states=[_read_json(path, manifest[rank_state_name(rank, manifest.world_size)]) for rank in ranks],
        )


def peek_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint says of itself: its `state`, without a tensor and without reading the large files.

    Of the other files only name and size are compared with the manifest; `load_checkpoint` finds what else is wrong.

    Raises:
        CheckpointError: as `load_checkpoint`, with the same sentence.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with _errors_of(path):
        _check_file_names(manifest)
        for record in manifest.files:
            check_size(path, record)
        return Checkpoint(path=path, step=manifest.step, state=_read_json(path, manifest[STATE_NAME]))


def newest_valid_checkpoint(
    folder: str | Path, *, own_rows_of: tuple[int, int] | None = None
) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """Walk back to the newest checkpoint that verifies, and load it; each byte is read once, checked and kept.

    Args:
        folder: a run folder or its `checkpoints` folder.
        own_rows_of: as `load_checkpoint`.

    Returns:
        The checkpoint, or None where no valid one exists, and the newer ones passed over, each with the reason.
    """
    skipped: list[tuple[Path, str]] = []
    for path in reversed(_named_checkpoints(folder)):
        try:
            _refuse_links(path)
            return load_checkpoint(path, own_rows_of=own_rows_of), skipped
        except CheckpointError as error:
            skipped.append((path, str(error)))
    return None, skipped


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory meant by a path: itself, or the newest valid one of a run or `checkpoints` folder.

    Raises:
        CheckpointError: there is none; names those that were passed over, which are otherwise logged as warnings.
    """
    path = Path(path)
    if (path / MANIFEST_NAME).exists() or step_of(path) is not None:
        return path
    skipped: list[str] = []
    for candidate in reversed(_named_checkpoints(path)):
        try:
            _refuse_links(candidate)
            verify_checkpoint(candidate)
        except CheckpointError as error:
            _log.warning("passing over a checkpoint: %s", error)
            skipped.append(str(error))
        else:
            return candidate
    what = "is no checkpoint and holds no valid one" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}" + "".join(f"\n  {text}" for text in skipped))


def write_manifest_text(manifest: Manifest) -> bytes:
    """The exact bytes of MANIFEST.json. They are canonical: no other bytes are read as the same manifest."""
    content = _manifest_content(manifest)
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content)


def read_manifest(path: Path) -> Manifest:
    """Read and check MANIFEST.json of a checkpoint directory, itself only. Raises CheckpointError."""
    with _errors_of(path):
        if not path.is_dir():
            raise CheckedFileError("is no checkpoint directory" if path.exists() else "does not exist")
        try:
            with open_regular(path / MANIFEST_NAME) as file:
                body = file.read(_MAX_JSON_BYTES + 1)
        except OSError as error:
            raise CheckedFileError(f"{MANIFEST_NAME} cannot be read: {error.strerror}") from error
        manifest = _parse_manifest(_parse_json(MANIFEST_NAME, body))
        if write_manifest_text(manifest) != body:
            raise CheckedFileError(f"{MANIFEST_NAME} is damaged: it disagrees with its own sha256")
        named_step = step_of(path)
        if named_step not in (None, manifest.step):
            raise CheckedFileError(
                f"{MANIFEST_NAME} is of step {manifest.step}, the directory is named for {named_step}"
            )
        return manifest


def _named_checkpoints(folder: str | Path) -> list[Path]:
    """What is called as checkpoints are, by rising step, be it a directory or not."""
    folder = _checkpoints_folder(Path(folder))
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name)
        if match:
            found.append((int(match[1]), match[2] is None, path.name, path))
    return [entry[-1] for entry in sorted(found)]


def _refuse_links(path: Path) -> None:
    """A directory that is found by its name alone must be one; a link is followed only where it is asked for."""
    if path.is_symlink():
        raise CheckpointError(f"{path}: is a symbolic link, which is not followed; give its target by name to use it")


def _checkpoints_folder(path: Path) -> Path:
    inner = path / "checkpoints"
    return inner if inner.is_dir() else path


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn a file's error into one that also names the checkpoint."""
    try:
        yield
    except CheckedFileError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _manifest_content(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "step": manifest.step,
        "world_size": manifest.world_size,
        "attempt": manifest.attempt,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in manifest.files],
    }


def _parse_manifest(content: dict[str, Any]) -> Manifest:
    if content.get("format") != _FORMAT:
        raise CheckedFileError(f"{MANIFEST_NAME} has format {_shown(content.get('format'))}, {_FORMAT!r} expected")
    if content.get("version") != _VERSION:
        raise CheckedFileError(
            f"{MANIFEST_NAME} has version {_shown(content.get('version'))}; this release reads version {_VERSION}"
        )
    if set(content) != {"format", "version", "step", "world_size", "attempt", "files", "sha256"}:
        raise CheckedFileError(f"{MANIFEST_NAME} has the keys {_shown(sorted(content))}")
    if not isinstance(content["attempt"], str) or not isinstance(content["files"], list):
        raise CheckedFileError(f"{MANIFEST_NAME} has no attempt or files")
    files = tuple(_parse_record(entry) for entry in content["files"])
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise CheckedFileError(f"{MANIFEST_NAME} lists a file twice")
    return Manifest(
        step=_count(content["step"], "step", 10**18),
        world_size=_count(content["world_size"], "world_size", 10**9),
        attempt=content["attempt"],
        files=files,
    )


def _parse_record(entry: Any) -> FileRecord:
    if not isinstance(entry, dict) or set(entry) != {"name", "size", "sha256"}:
        raise CheckedFileError(f"{MANIFEST_NAME} has a file entry that is not name, size and sha256")
    name, sha256 = entry["name"], entry["sha256"]
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise CheckedFileError(f"{MANIFEST_NAME} lists {_shown(name)}, which is no plain file name")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise CheckedFileError(f"{MANIFEST_NAME} gives {name} the sha256 {_shown(sha256)}")
    return FileRecord(name, _count(entry["size"], f"size of {name}", _MAX_FILE_BYTES), sha256)


def _shown(value: Any) -> str:
    """A stranger's value for messages: on one line, not longer than people read."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a nested {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:120]}... ({len(text)} characters)"


def _count(value: Any, what: str, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise CheckedFileError(f"{MANIFEST_NAME} gives {what} as {_shown(value)}")
    return value


def _parse_json(name: str, body: bytes) -> dict[str, Any]:
    if len(body) > _MAX_JSON_BYTES:
        raise CheckedFileError(f"{name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        content = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise CheckedFileError(f"{name} is no JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise CheckedFileError(f"{name} holds no JSON object")
    return content


def _read_json(path: Path, record: FileRecord) -> dict[str, Any]:
    return _parse_json(record.name, read_bytes(path, record, max_bytes=_MAX_JSON_BYTES))


def _sharded_arrays(manifest: Manifest) -> list[str]:
    matches = (_SHARD.fullmatch(file.name) for file in manifest.files)
    return sorted({match[1] for match in matches if match})


def _check_file_names(manifest: Manifest) -> None:
    """The manifest must list exactly the files of one whole checkpoint: none missing, none unknown."""
    listed = {file.name for file in manifest.files}
    if manifest.world_size < 1 or manifest.world_size > len(listed):
        raise CheckedFileError(f"{MANIFEST_NAME} has {len(listed)} files for {manifest.world_size} ranks")
    expected = {MODEL_NAME, OPTIMISER_NAME, OPTIMISER_JSON_NAME, STATE_NAME}
    for rank in range(manifest.world_size):
        expected.add(rank_state_name(rank, manifest.world_size))
        expected.update(shard_name(array, rank, manifest.world_size) for array in _sharded_arrays(manifest))
    for name in sorted(expected ^ listed):
        raise CheckedFileError(f"{MANIFEST_NAME} " + (f"lacks {name}" if name in expected else f"lists unknown {name}"))


def _read_array(path: Path, manifest: Manifest, array: str, own_rows_of: tuple[int, int] | None) -> RowArray:
    """Put the shards of one array together, or one rank's rows of it, which may lie in several of them.

    All headers are compared before memory is taken, and every file is read to its end, wanted or not.
    """
    records = [manifest[shard_name(array, rank, manifest.world_size)] for rank in range(manifest.world_size)]
    headers = [read_header(path, record) for record in records]
    rows, ends = _check_shards(records, headers)
    slot = headers[0].slots[ROWS_KEY]
    wanted_first, wanted_end = row_range(rows, *(own_rows_of or (0, 1)))
    wanted = empty_tensor((wanted_end - wanted_first, *slot.shape[1:]), slot.dtype)
    first = 0
    for record, end in zip(records, ends, strict=True):
        held_first, held_end = max(first, wanted_first), min(end, wanted_end)
        if held_first < held_end:
            part = wanted[held_first - wanted_first : held_end - wanted_first]
            read_rows(path, record, ROWS_KEY, held_first - first, part)
        else:
            check_file(path, record)
        first = end
    return wanted if own_rows_of is None else OwnRows(wanted, rows)


def _check_shards(records: Sequence[FileRecord], headers: Sequence[TensorHeader]) -> tuple[int, list[int]]:
    """Row counts of all shards must follow from their sum, and the rest of their shapes and dtypes agree."""
    for record, header in zip(records, headers, strict=True):
        if set(header.slots) != {ROWS_KEY} or not header.slots[ROWS_KEY].shape:
            raise CheckedFileError(f"{record.name} is no shard of rows")
    slots = [header.slots[ROWS_KEY] for header in headers]
    rows = sum(slot.shape[0] for slot in slots)
    ends = []
    for rank, (record, slot) in enumerate(zip(records, slots, strict=True)):
        first, end = row_range(rows, rank, len(records))
        if slot.shape[0] != end - first or slot.shape[1:] != slots[0].shape[1:] or slot.dtype != slots[0].dtype:
            raise CheckedFileError(
                f"{record.name} holds {slot.dtype} {slot.shape}, which does not fit the other shards"
            )
        ends.append(end)
    return rows, ends
