"""Class centres as files: what frozen centres are read from, and what `adadistill centres export` writes.

    checkpoint     a run of ours that trained its centres; only their rows are read, each shard against its sha256
    .safetensors   one tensor, `class_centres` (C, D) float32, and in its header num_classes, embedding_dim, the name of
                   its source, sha256 of the rows' bytes, and the fingerprint of the records whose labels they mean
    .npy           (C, D) floating point, for centres from elsewhere; it says nothing of where they come from
    .ckpt          AdaFace's training checkpoint, whose head holds the centres as columns; for export only

These files come from strangers as well: nothing is unpickled but through torch's restricted unpickler, sizes are held
against the file before memory is taken, and a row that is no direction is refused wherever it comes from.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from adadistill.core.backbones.weight_files import read_weight_file
from adadistill.core.checkpoints import CheckpointError, resolve_checkpoint
from adadistill.core.checkpoints.checked_files import (
    FileRecord,
    TensorSlot,
    empty_tensor,
    open_regular,
    read_bytes,
    read_header,
    read_tensors,
)
from adadistill.core.checkpoints.files import ROWS_KEY, STATE_NAME, Manifest, read_manifest, shard_name
from adadistill.core.method.class_centres import LEAST_CENTRE_NORM, row_pieces
from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.atomic_file import sync_folder

CentresFormat: TypeAlias = Literal["safetensors", "npy"]

ARRAY = "class_centres"
ADAFACE_SUFFIXES = (".ckpt", ".pth", ".pt")

_ADAFACE_KERNEL = "head.kernel"
_FORMAT = "adadistill-centres"
_MAX_STATE_BYTES = 1 << 28
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CentresFileError(ValueError):
    """Class centres cannot be read, or do not fit; the text names the file."""


@dataclass(frozen=True, slots=True)
class StoredCentres:
    """Class centres as they lie in a file."""

    rows: Tensor
    """(C, D) float32 or float64 on the CPU, row = label; every row is finite and has a direction."""
    name: str
    """Where they come from, for people. Never a whole path."""
    sha256: str
    """Of the rows' bytes, in order; 64 hex digits."""
    records: str | None = None
    """Fingerprint of the records whose labels the rows mean (`ImageSource.fingerprint`); None where nobody says it."""


def stored_centres(rows: Tensor, name: str, records: str | None = None) -> StoredCentres:
    """Check (C, D) rows on the CPU, float32 or float64, and hash them.

    Raises:
        CentresFileError: another shape or dtype, or a row that is not finite, zero, or as good as zero.
    """
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in (torch.float32, torch.float64):
        raise CentresFileError(f"{name} must hold (C, D) float32 or float64 centres, got {_shape(rows)}")
    digest = hashlib.sha256()
    for piece in row_pieces(len(rows)):
        part = rows[piece].contiguous()
        _check_directions(part, first=piece.start, name=name)
        digest.update(_bytes_of(part))
    return StoredCentres(rows, name, digest.hexdigest(), records)


def read_centres(path: str | Path) -> StoredCentres:
    """Read class centres that are stored as such.

    Args:
        path: a run folder or checkpoint of ours, a `.safetensors` file of `write_centres`, or a `.npy` file.

    Raises:
        CentresFileError: it is none of these, damaged, or holds no usable centres.
    """
    path = Path(path)
    if path.is_dir():
        return _read_checkpoint(path)
    if not path.is_file():
        raise CentresFileError(f"{path}: no such file or run folder to take class centres from")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npy":
        return _read_npy(path)
    raise CentresFileError(
        f"{path} must be a run folder, a checkpoint, a .safetensors file made by `adadistill centres export`, or a "
        ".npy file; that command also makes one from AdaFace's .ckpt"
    )


def read_adaface_head(path: Path) -> StoredCentres:
    """Centres of AdaFace's training checkpoint: the columns of its head's (D, C) kernel, not copied.

    Raises:
        CentresFileError: it holds no such kernel. FileNotFoundError, WeightFileError: it cannot be read.
    """
    kernel = read_weight_file(path).get(_ADAFACE_KERNEL)
    if kernel is None:
        raise CentresFileError(
            f"{path} holds no `{_ADAFACE_KERNEL}`, where AdaFace keeps its class centres; it may be a network alone. "
            "Centres kept under other names can be brought in as a .npy file, (C, D)"
        )
    if kernel.ndim != 2 or not kernel.is_floating_point():
        raise CentresFileError(f"`{_ADAFACE_KERNEL}` in {path} must be (D, C) floating point, got {_shape(kernel)}")
    if kernel.dtype != torch.float64:
        kernel = kernel.float()
    return stored_centres(kernel.T, path.name)


def write_centres(
    out: Path, centres: StoredCentres, *, file_format: CentresFormat = "safetensors", keep_records: bool = True
) -> None:
    """Write centres as float32 to a new file, which appears whole or not at all.

    Beside `centres.rows` it needs memory for one piece of rows, so that centres of many gigabytes can be exported.

    Args:
        keep_records: write the fingerprint of the records down, where it is known. `.npy` holds no such thing.

    Raises:
        FileExistsError: `out` exists.
        CentresFileError: a float64 row is none in float32.
        OSError: it cannot be written; names it.
    """
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists already; choose another name or remove it")
    header = _npy_header(centres.rows)
    if file_format == "safetensors":
        digest = hashlib.sha256()
        for piece in _float32_pieces(centres):
            digest.update(piece)
        header = _safetensors_header(centres, digest.hexdigest(), centres.records if keep_records else None)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(header)
            for piece in _float32_pieces(centres):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:  # a failing write() does not name its file
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        temporary.unlink(missing_ok=True)


# Checkpoints of ours


def _read_checkpoint(path: Path) -> StoredCentres:
    try:
        checkpoint = resolve_checkpoint(path)
        manifest = read_manifest(checkpoint)
        state = json.loads(read_bytes(checkpoint, manifest[STATE_NAME], max_bytes=_MAX_STATE_BYTES))
        if not isinstance(state, dict):
            raise CentresFileError(f"{STATE_NAME} holds no JSON object")
        rows = _read_shards(checkpoint, manifest)
        records = _fingerprint(state.get("records"))
    except (CheckpointError, ValueError, RecursionError) as error:
        raise CentresFileError(f"no class centres can be taken from {path}: {error}") from error
    return stored_centres(rows, f"{path.resolve().name}, step {manifest.step}", records)


def _read_shards(checkpoint: Path, manifest: Manifest) -> Tensor:
    """Put the rows of all ranks together. All headers are compared before memory for the whole is taken."""
    names = [shard_name(ARRAY, rank, manifest.world_size) for rank in range(manifest.world_size)]
    if names[0] not in {record.name for record in manifest.files}:
        raise CentresFileError(
            f"{checkpoint} holds none. It is a network alone, or of a run with frozen centres or none; "
            "name a run whose centres.kind is trainable or adaptive"
        )
    shards = [manifest[name] for name in names]
    slots = [_only_slot(read_header(checkpoint, shard).slots, ROWS_KEY, shard.name) for shard in shards]
    for shard, slot in zip(shards, slots, strict=True):
        if slot.shape[1] != slots[0].shape[1] or slot.dtype != slots[0].dtype:
            raise CentresFileError(f"{shard.name} holds {slot.dtype} {slot.shape}, which does not fit the other shards")
    rows = empty_tensor((sum(slot.shape[0] for slot in slots), slots[0].shape[1]), slots[0].dtype)
    first = 0
    for shard, slot in zip(shards, slots, strict=True):
        read_tensors(checkpoint, shard, into={ROWS_KEY: rows[first : first + slot.shape[0]]})
        first += slot.shape[0]
    return rows


# Files


def _read_safetensors(path: Path) -> StoredCentres:
    real = path.resolve()
    try:
        header = read_header(real.parent, FileRecord(real.name, real.stat().st_size, sha256=""))
        if header.metadata.get("format") != _FORMAT or header.metadata.get("version") != "1":
            raise CentresFileError("it was not made by `adadistill centres export` of this release")
        slot = _only_slot(header.slots, ARRAY, real.name)
        if slot.dtype != torch.float32:
            raise CentresFileError(f"`{ARRAY}` must be float32, got {slot.dtype}")
        rows = empty_tensor(slot.shape, slot.dtype)
        with open_regular(real) as file:
            file.seek(header.data_begin)
            if file.readinto(_bytes_of(rows)) != slot.end - slot.begin:  # type: ignore[attr-defined]  # BufferedReader
                raise CentresFileError("it ended early while it was read")
        records = _fingerprint(header.metadata.get("records"))
    except (ValueError, OSError) as error:
        other = what_it_is(path, "safetensors", "empty") if path.is_file() else None
        reason = f"it {other}" if other is not None else error
        raise CentresFileError(f"no class centres can be taken from {path}: {reason}") from error
    centres = stored_centres(rows, path.name, records)
    if centres.sha256 != header.metadata.get("sha256"):
        raise CentresFileError(
            f"{path} is damaged: its rows have sha256 {centres.sha256}, {header.metadata.get('sha256')} expected"
        )
    return centres


def _read_npy(path: Path) -> StoredCentres:
    try:
        mapped = open_npy(path)
    except (NpyFileError, OSError) as error:
        raise CentresFileError(f"{path} is not an .npy file of class centres: {error}") from None
    if mapped.ndim != 2 or mapped.dtype.kind != "f" or mapped.dtype.itemsize > 8:
        raise CentresFileError(f"{path} must hold (C, D) floating point centres, found {mapped.shape} {mapped.dtype}")
    rows = empty_tensor(mapped.shape, torch.float64 if mapped.dtype.itemsize == 8 else torch.float32)
    np.copyto(rows.numpy(), mapped)
    return stored_centres(rows, path.name)


def _only_slot(slots: dict[str, TensorSlot], name: str, file: str) -> TensorSlot:
    if set(slots) != {name} or len(slots[name].shape) != 2:
        raise CentresFileError(f"{file} must hold one tensor, `{name}` of two dimensions, found {sorted(slots)[:8]}")
    return slots[name]


def _fingerprint(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and _SHA256.fullmatch(value)):
        return value
    raise CentresFileError(f"the fingerprint of its records must be 64 hex digits, got {value!r:.80}")


def _check_directions(rows: Tensor, *, first: int, name: str) -> None:
    """Refuse the first row that cannot be normalised in its own dtype: not finite, too long, zero or nearly so."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    bad = ~(torch.isfinite(norms) & (norms >= LEAST_CENTRE_NORM))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise CentresFileError(
            f"{name}: the centre of class {first + row} has norm {norms[row].item():.3g} and no direction; "
            f"every row must be finite and at least {LEAST_CENTRE_NORM:.0e} long"
        )


def _float32_pieces(centres: StoredCentres) -> Iterator[memoryview]:
    """The bytes to write, piece by piece."""
    for piece in row_pieces(len(centres.rows)):
        part = centres.rows[piece].to(torch.float32).contiguous()
        _check_directions(part, first=piece.start, name=f"{centres.name}, in float32")
        yield _bytes_of(part)


def _safetensors_header(centres: StoredCentres, sha256: str, records: str | None) -> bytes:
    count, dim = centres.rows.shape
    metadata = {
        "format": _FORMAT,
        "version": "1",
        "num_classes": str(count),
        "embedding_dim": str(dim),
        "source": centres.name,
        "sha256": sha256,
    }
    if records is not None:
        metadata["records"] = records
    slot = {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, 4 * count * dim]}
    text = json.dumps({"__metadata__": metadata, ARRAY: slot}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned, as the safetensors library has it
    return len(text).to_bytes(8, "little") + text


def _npy_header(rows: Tensor) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": tuple(rows.shape)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _bytes_of(rows: Tensor) -> memoryview:
    """The bytes of contiguous rows on the CPU, not copied."""
    return memoryview(rows.numpy()).cast("B")  # type: ignore[arg-type]  # numpy's stubs tell only Python 3.12


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
