"""Files with a known size and sha256: written and read as a stream, tensors in the safetensors format.

Neither safetensors nor any other checkpoint format notices a flipped bit, so every file of a checkpoint is listed with
its sha256. The hash is taken over the bytes meant to be written, chunk by chunk as they leave memory, and not over the
file read back: whatever the way to the disk changes is then found at the first reading, while a hash of the file would
bless it, and reading back would mostly meet the page cache anyway.

Reading hashes the very bytes that end up in the tensors, so nothing can change between the check and the use.
Both directions stream through 16 MiB pieces: (C, D) centres of 100 GB need no second copy in memory, which is why the
(small) safetensors framing is written here. The files are ordinary safetensors, as the tests show with that library.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 24
_MAX_HEADER_BYTES = 16 << 20  # some 100,000 tensors; parsing takes ten times the memory

_SHOWN = 300  # characters of what a file says, in messages

_DTYPE_OF_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAME_OF_DTYPE = {dtype: name for name, dtype in _DTYPE_OF_NAME.items()}

STORABLE_DTYPES = frozenset(_NAME_OF_DTYPE)


class CheckedFileError(ValueError):
    """A file is missing, damaged or not what it should be; the text names it and says what is wrong."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be: its name inside the folder, its size in bytes, the sha256 of its bytes (64 hex digits)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in a safetensors file: bytes [begin, end) after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Header of a safetensors file: tensors by name in the order of their bytes, free-form strings, header length."""

    slots: dict[str, TensorSlot]
    metadata: dict[str, str]
    data_begin: int


def write_bytes(path: Path, body: bytes) -> FileRecord:
    """Write a new file, fsync it and return its record. Raises OSError naming the file, also when it exists already."""
    return _write_stream(path, [memoryview(body)])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileRecord:
    """Write CPU tensors to a new safetensors file, fsync it and return its record.

    Args:
        path: must not exist.
        tensors: contiguous, on the CPU, of a dtype in `STORABLE_DTYPES`; any shape, 0-dim and empty ones included.
        metadata: strings kept in the header.

    Raises:
        ValueError: a tensor is none of these.
        OSError: the file cannot be written; names it.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in STORABLE_DTYPES or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"tensor `{name}` must be contiguous on the CPU and storable, got {tensor.dtype}")
    # Widest elements first, as the library does, so that every tensor is aligned to its own element.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": _NAME_OF_DTYPE[tensor.dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: {len(tensors)} tensors need a header of {len(text)} bytes, too long for safetensors")
    pieces = [memoryview(len(text).to_bytes(8, "little") + text), *(_bytes_of(tensor) for _, tensor in ordered)]
    return _write_stream(path, pieces)


def read_bytes(folder: Path, record: FileRecord, *, max_bytes: int) -> bytes:
    """Read a whole small file and check it. Raises CheckedFileError."""
    if record.size > max_bytes:
        raise CheckedFileError(f"{record.name} claims {record.size} bytes, more than the {max_bytes} allowed")
    with _CheckedReader(folder, record) as reader:
        body = bytearray(record.size)  # which is the file's by now
        reader.read_into(memoryview(body))
        reader.finish()
    return bytes(body)


def check_file(folder: Path, record: FileRecord) -> None:
    """Read a file once and compare size and sha256 with its record. Raises CheckedFileError."""
    with _CheckedReader(folder, record) as reader:
        reader.finish()


def check_size(folder: Path, record: FileRecord) -> None:
    """See that a file is there and of its size, without reading it. Raises CheckedFileError."""
    with _CheckedReader(folder, record):
        pass


def read_header(folder: Path, record: FileRecord) -> TensorHeader:
    """Read the header of a safetensors file, its bytes not yet checked against the sha256. Raises CheckedFileError."""
    with _CheckedReader(folder, record) as reader:
        return reader.read_header()


def read_tensors(
    folder: Path, record: FileRecord, into: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and check a safetensors file.

    Args:
        folder: the folder that holds it.
        record: what it must be.
        into: contiguous CPU tensors to fill instead of new ones, by name; shape and dtype must fit.

    Returns:
        The tensors by name, contiguous on the CPU, and the header's metadata.

    Raises:
        CheckedFileError: missing, a link, wrong size or sha256, or no well-formed safetensors file.
    """
    tensors: dict[str, Tensor] = {}
    with _CheckedReader(folder, record) as reader:
        header = reader.read_header()
        for name, slot in header.slots.items():
            target = None if into is None else into.get(name)
            if target is None:
                target = empty_tensor(slot.shape, slot.dtype)
            elif tuple(target.shape) != slot.shape or target.dtype != slot.dtype:
                raise CheckedFileError(
                    f"{record.name} holds `{name}` as {slot.dtype} {slot.shape}, "
                    f"expected {target.dtype} {tuple(target.shape)}"
                )
            reader.read_into(_bytes_of(target))
            tensors[name] = target
        reader.finish()
    return tensors, header.metadata


def read_rows(folder: Path, record: FileRecord, name: str, first: int, into: Tensor) -> None:
    """Read rows [first, first + len(into)) of one tensor of a safetensors file, and check the whole file.

    What is not wanted passes through a 16 MiB buffer, so that a part costs the memory of that part.

    Args:
        into: contiguous CPU tensor to fill; its dtype and the shape of a row must be the stored tensor's.

    Raises:
        CheckedFileError: as `read_tensors`, or the file holds no such rows.
    """
    with _CheckedReader(folder, record) as reader:
        slot = reader.read_header().slots.get(name)
        rows = 0 if slot is None or not slot.shape else slot.shape[0]
        if slot is None or slot.dtype != into.dtype or slot.shape[1:] != into.shape[1:] or first + len(into) > rows:
            raise CheckedFileError(f"{record.name} holds no rows {first} to {first + len(into)} of `{name}`")
        if len(into):
            reader.skip(slot.begin + (slot.end - slot.begin) // rows * first)
            reader.read_into(_bytes_of(into))
        reader.finish()


def empty_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor whose size a file asked for. Raises CheckedFileError where that cannot be had."""
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # what the CPU allocator raises
        raise CheckedFileError(f"no memory for a tensor of {dtype} {shape}: {error}") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, refusing symbolic links, devices and pipes. Raises CheckedFileError naming it."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckedFileError(f"{path.name} is missing") from error
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise CheckedFileError(f"{path.name} {reason}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckedFileError(f"{path.name} is no regular file")
    return os.fdopen(handle, "rb")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    array = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)  # type: ignore[arg-type]  # numpy arrays are buffers; its stubs tell only Python 3.12


def _chunks(piece: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(piece), _CHUNK_BYTES):
        yield piece[begin : begin + _CHUNK_BYTES]


def _write_stream(path: Path, pieces: Iterable[memoryview]) -> FileRecord:
    digest = hashlib.sha256()
    size = 0
    try:
        with open(path, "xb") as file:
            for piece in pieces:
                for chunk in _chunks(piece):
                    digest.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a failing write() does not name its file
        raise OSError(error.errno, error.strerror, str(path)) from error
    return FileRecord(path.name, size, digest.hexdigest())


class _CheckedReader:
    """Reads a file front to back and hashes what it hands out; `finish` compares the hash of the whole file."""

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self._record = record
        self._file = open_regular(folder / record.name)
        self._digest = hashlib.sha256()
        self._left = os.fstat(self._file.fileno()).st_size
        if self._left != record.size:
            self._file.close()
            raise CheckedFileError(f"{record.name} has {self._left} bytes, {record.size} expected")

    def __enter__(self) -> _CheckedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, target: memoryview) -> None:
        for chunk in _chunks(target):
            try:
                count = self._file.readinto(chunk)  # type: ignore[attr-defined]  # BufferedReader fills it or meets the end
            except OSError as error:
                raise CheckedFileError(f"{self._record.name} cannot be read: {error.strerror}") from error
            if count != len(chunk):
                raise CheckedFileError(f"{self._record.name} ended early while it was read")
            self._digest.update(chunk)
            self._left -= count

    def read_header(self) -> TensorHeader:
        name, size = self._record.name, self._record.size
        prefix = bytearray(8)
        if size < 8:
            raise CheckedFileError(f"{name} is too short for a safetensors file")
        self.read_into(memoryview(prefix))
        length = int.from_bytes(prefix, "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckedFileError(f"{name} claims a header of {length} bytes")
        text = bytearray(length)
        self.read_into(memoryview(text))
        try:
            slots, metadata = _parse_header(json.loads(text.decode()), size - 8 - length)
        except (ValueError, RecursionError) as error:
            raise CheckedFileError(f"{name} has a damaged safetensors header: {str(error)[:_SHOWN]}") from error
        return TensorHeader(slots, metadata, 8 + length)

    def skip(self, count: int) -> None:
        """Hash `count` bytes that nobody wants."""
        unwanted = memoryview(bytearray(min(count, _CHUNK_BYTES)))
        while count:
            piece = unwanted[:count]
            self.read_into(piece)
            count -= len(piece)

    def finish(self) -> None:
        self.skip(self._left)
        found = self._digest.hexdigest()
        if found != self._record.sha256:
            raise CheckedFileError(f"{self._record.name} has sha256 {found}, {self._record.sha256} expected")


def _parse_header(header: Any, data_size: int) -> tuple[dict[str, TensorSlot], dict[str, str]]:
    """Check a safetensors header as strictly as its specification: slots follow each other and fill the data."""
    if not isinstance(header, dict):
        raise ValueError("not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata must be strings")
    slots = sorted(
        ((name, _parse_slot(name, entry)) for name, entry in header.items()),
        key=lambda item: (item[1].begin, item[1].end),
    )
    position = 0
    for name, slot in slots:
        if slot.begin != position:
            raise ValueError(f"`{name}` begins at byte {slot.begin}, expected {position}")
        position = slot.end
    if position != data_size:
        raise ValueError(f"tensors end at byte {position}, the file at {data_size}")
    return dict(slots), metadata


def _parse_slot(name: str, entry: Any) -> TensorSlot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"`{name}` must have dtype, shape and data_offsets")
    dtype = _DTYPE_OF_NAME.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"`{name}` has dtype {entry['dtype']!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(f"`{name}` has shape or data_offsets that are no counts")
    if len(shape) > 64 or len(offsets) != 2:
        raise ValueError(f"`{name}` has {len(shape)} dimensions and {len(offsets)} offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"`{name}` has shape {shape} in {end - begin} bytes")
    return TensorSlot(dtype, tuple(shape), begin, end)
