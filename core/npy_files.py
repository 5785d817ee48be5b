"""Opens `.npy` files from strangers: mapped, never unpickled, and refused by one error whatever is wrong with them.

numpy's own reader hands a damaged header to Python's tokeniser and maps what it says; this one reads a literal of at
most 10,000 bytes and nothing else, and holds the file to the size that the literal implies.

Source: format versions 1 to 3, as numpy.lib.format describes them.
"""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.first_bytes import what_it_is

_MAGIC = b"\x93NUMPY"
_VERSIONS = (b"\x01\x00", b"\x02\x00", b"\x03\x00")
_MAX_HEADER_BYTES = 10_000
_MAX_FILE_BYTES = 1 << 62
_MAX_SIDES = 32
_KINDS = "biufc"  # numbers


class NpyFileError(ValueError):
    """A file is no readable `.npy` file of numbers; the text says why, without the path."""


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool
    data_begin: int
    """Byte."""


def open_npy(path: Path) -> npt.NDArray[Any]:
    """Map an `.npy` file of numbers read-only.

    Raises:
        FileNotFoundError: there is no such file.
        NpyFileError: it is damaged, cut short, another format, empty, or holds no numbers.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    header = _read_header(path)
    needed, size = header.data_begin + header.dtype.itemsize * math.prod(header.shape), path.stat().st_size
    if needed > _MAX_FILE_BYTES:  # such a number may have more digits than Python turns into text
        raise NpyFileError(f"{size} bytes, while its header implies more than any file holds; it is damaged")
    if size != needed:
        raise NpyFileError(f"{size} bytes, while its header implies {needed}; it was cut short or damaged")
    if 0 in header.shape:
        raise NpyFileError(f"it is empty: shape {header.shape}")
    order = "F" if header.columns_first else "C"
    return np.memmap(path, header.dtype, mode="r", offset=header.data_begin, shape=header.shape, order=order)  # type: ignore[call-overload]


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(8)
        if (other := what_it_is(path, "npy")) is not None:
            raise NpyFileError(f"it {other}")
        if start[:6] != _MAGIC or start[6:] not in _VERSIONS:
            raise NpyFileError(f"no .npy file of version 1 to 3: it begins with {start.hex(' ') or 'nothing'}")
        length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
        if length > _MAX_HEADER_BYTES:
            raise NpyFileError(f"a header of {length} bytes, {_MAX_HEADER_BYTES} are allowed")
        text = file.read(length)
        data_begin = file.tell()
    try:
        shape, dtype, columns_first = _parse(text)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise NpyFileError(f"damaged header: {type(error).__name__}: {_shown(error)}") from None
    return _Header(shape, dtype, columns_first, data_begin)


def _parse(text: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd escapes in what is refused below
        content = ast.literal_eval(text.decode("utf-8").strip())
    shape, descriptor, columns_first = content["shape"], content["descr"], content["fortran_order"]
    if not isinstance(descriptor, str) or type(columns_first) is not bool or not isinstance(shape, tuple):
        raise ValueError(f"descr {_shown(descriptor)}, fortran_order {_shown(columns_first)}, shape {_shown(shape)}")
    if len(shape) > _MAX_SIDES or not all(type(side) is int and 0 <= side < _MAX_FILE_BYTES for side in shape):
        raise ValueError(f"shape {_shown(shape)}")
    dtype = np.dtype(descriptor)
    if dtype.kind not in _KINDS:
        raise ValueError(f"it holds {_shown(descriptor)}, which are no numbers")
    return shape, dtype, columns_first


def _shown(value: object) -> str:
    text = ascii(str(value))
    return text if len(text) <= 120 else f"{text[:120]}..."
