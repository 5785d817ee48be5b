"""Reads a pickle of lists, bytes, flags and plain numpy arrays from a stranger, without running anything it names.

Verification sets travel as pickles, and `pickle.load` executes whatever a pickle asks for. Here three fences stand in
a row, each enough against the common attacks on its own:

1. A scan of the opcodes before anything is unpickled: only those such a file needs, none unknown; no declared length
   beyond the end of the file, no memo index beyond the opcodes read so far (both make the real unpickler allocate what
   a few bytes claim), no more opcodes than `MAX_OPCODES` (an opcode of one byte can cost 64 bytes of memory).
2. Nine allowed globals, those that bytes and numpy arrays need under pickle protocols 0 to 5.
3. None of the nine is the real thing: each is a stand-in that checks its arguments and stores bytes. No numpy
   constructor is within reach of the file, so neither are its object arrays, its huge shapes or its structured dtypes.

Python 2 pickles are read too: their strings come back as bytes. Metadata of evaluation sets need a little more, by the
same rules: dictionaries, whose keys are text or small integers (`pickle_keys.py` says why), floating numbers, and
arrays of numbers and text.

Memory: what the pickle holds, plus at most 64 bytes per opcode. Time: one pass over the opcodes, image bytes skipped.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.pickle_keys import DictionaryKeys

MAX_OPCODES = 2_000_000
"""Sixteen times what the largest public set needs (14,000 images, 9 opcodes each); bounds memory to some 200 MiB."""

MAX_TEXT = 256
"""Longest line an opcode with a text argument (a global's name, a decimal number) may have."""

_ALLOWED_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
    )
)
_METADATA_OPCODES = _ALLOWED_OPCODES | {"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINFLOAT"}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_MEMO_WRITES = {"PUT", "LONG_BINPUT"}
_LONG_TEXTS = {"STRING", "UNICODE"}
_DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
_METADATA_DTYPE = re.compile(r"[biu]1|[iu][248]|f[248]|[US][1-9][0-9]{0,3}")


class PickleRefusedError(ValueError):
    """The pickle asks for something that no plain pickle of bytes and flags asks for."""


class PickleDamagedError(ValueError):
    """The pickle is no pickle, is incomplete, or contradicts itself."""


class StoredArray:
    """A numpy array as a pickle describes it: its bytes, shape and dtype, checked against each other."""

    __slots__ = ("body", "dtype", "fortran_order", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.fortran_order = False
        self.body: bytes = b""

    def __setstate__(self, state: object) -> None:
        """What numpy pickles: (version, shape, dtype, fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleDamagedError("an array's state is not (version, shape, dtype, order, bytes)")
        _, shape, dtype, fortran_order, body = state
        self.fill(body, dtype, shape, bool(fortran_order))

    def fill(self, body: object, dtype: object, shape: object, fortran_order: bool) -> None:
        """Take over bytes, dtype and shape.

        Raises:
            PickleRefusedError: the elements are Python objects.
            PickleDamagedError: the parts have other types, or the bytes do not fill the shape.
        """
        if isinstance(body, list):
            raise PickleRefusedError("holds a numpy array of Python objects")
        if not isinstance(dtype, _StoredDtype) or not isinstance(body, bytes):
            raise PickleDamagedError("an array holds neither bytes nor a known dtype")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise PickleDamagedError("an array's shape is not a tuple of sizes")
        if len(shape) > 8 or math.prod(shape) * dtype.to_numpy().itemsize != len(body):
            raise PickleDamagedError(f"an array of shape {shape[:8]} and dtype {dtype.code} holds {len(body)} bytes")
        self.shape, self.dtype, self.fortran_order, self.body = shape, dtype.to_numpy(), fortran_order, body

    def to_numpy(self) -> npt.NDArray[Any]:
        """The array, read-only, over the stored bytes."""
        return np.frombuffer(self.body, self.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


def load_plain_pickle(data: bytes, *, metadata: bool = False) -> object:
    """Unpickle lists, tuples, bytes, text, integers, flags and numpy arrays of integers or flags.

    Args:
        data: a whole pickle, protocol 0 to 5, of Python 2 or 3. What follows its end is ignored.
        metadata: allow dictionaries, floating numbers, and numpy arrays of numbers and text too.

    Returns:
        Its object; arrays as `StoredArray`, numpy scalars as Python's, Python 2 strings as bytes.

    Raises:
        PickleRefusedError: it asks for more than that: another global, a persistent object, an array of objects, an
            opcode that is unknown or not needed, a length or a memo index made to exhaust memory.
        PickleDamagedError: it is cut off or contradicts itself.
    """
    scan_opcodes(data, metadata=metadata)
    unpickler = _AllowListUnpickler(data, metadata)
    # What the unpickler raises on nonsense, from reading on an empty stack to calling a stand-in with wrong arguments.
    nonsense = (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError)
    try:
        return unpickler.load()
    except (PickleRefusedError, PickleDamagedError):
        raise
    except nonsense as error:
        raise PickleDamagedError(f"cannot be unpickled: {str(error)[:MAX_TEXT]}") from None


def scan_opcodes(data: bytes, *, metadata: bool = False) -> int:
    """Walk the opcodes of a pickle without executing any, and return how many it has.

    Raises:
        PickleRefusedError: an opcode, a length or a memo index that no honest file of this kind has.
        PickleDamagedError: the end comes before a STOP opcode.
    """
    allowed = _METADATA_OPCODES if metadata else _ALLOWED_OPCODES
    keys = DictionaryKeys() if metadata else None  # without dictionaries nothing is hashed
    position = 0
    for count in range(MAX_OPCODES):
        if position >= len(data):
            raise PickleDamagedError(f"ends after {len(data)} bytes without a STOP opcode; is the file complete?")
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            raise PickleRefusedError(f"unknown opcode 0x{data[position]:02x} at offset {position}")
        if opcode.name not in allowed:
            raise PickleRefusedError(f"opcode {opcode.name} at offset {position}; plain values need none")
        if opcode.name == "STOP":
            return count + 1
        end = _argument_end(data, position, opcode)
        if opcode.name in _MEMO_WRITES:
            _check_memo_index(data[position + 1 : end], opcode.name, count, position)
        if keys is not None:
            _check_keys(keys, opcode.name, data[position + 1 : min(end, position + 1 + MAX_TEXT)], position)
        position = end
    raise PickleRefusedError(f"more than {MAX_OPCODES:,} opcodes")


def opcodes_of(data: bytes | mmap.mmap, start: int) -> Iterator[tuple[str, int, int]]:
    """Walk the opcodes of any pickle without executing one: name, first byte and end of each one's argument.

    Ends behind a STOP opcode or before one that is unknown.

    Raises:
        PickleRefusedError: an argument declares more bytes than there are, or there are too many opcodes.
        PickleDamagedError: the end comes first.
    """
    position = start
    for _ in range(MAX_OPCODES):
        if position >= len(data):
            raise PickleDamagedError(f"ends after {len(data)} bytes without a STOP opcode; is the file complete?")
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            return
        end = _argument_end(data, position, opcode)
        yield opcode.name, position + 1, end
        if opcode.name == "STOP":
            return
        position = end
    raise PickleRefusedError(f"more than {MAX_OPCODES:,} opcodes")


def _argument_end(data: bytes | mmap.mmap, position: int, opcode: pickletools.OpcodeInfo) -> int:
    """Offset after the opcode at `position` and its argument, both within the data."""
    start = position + 1
    if opcode.arg is None:
        return start
    size = opcode.arg.n
    if size == pickletools.UP_TO_NEWLINE:
        return _lines_end(data, position, opcode.name)
    if size < 0:
        width = _LENGTH_BYTES[size]
        length = int.from_bytes(data[start : start + width], "little")
        start += width
    else:
        length = size
    if opcode.name == "FRAME":
        start, length = start + 8, int.from_bytes(data[start : start + 8], "little")
    if length > len(data) - start:
        raise PickleRefusedError(
            f"{opcode.name} at offset {position} declares {length:,} bytes where {max(0, len(data) - start):,} "
            "are left: cut off, or made to exhaust memory"
        )
    return start if opcode.name == "FRAME" else start + length


def _lines_end(data: bytes | mmap.mmap, position: int, name: str) -> int:
    """Offset after the line (for a global: two lines) that is the opcode's argument."""
    end = position + 1
    for _ in range(2 if name == "GLOBAL" else 1):
        start = end
        end = data.find(b"\n", start) + 1
        if end == 0:
            raise PickleDamagedError(f"{name} at offset {position} has no end; is the file complete?")
        if end - start > MAX_TEXT and name not in _LONG_TEXTS:
            raise PickleRefusedError(f"{name} at offset {position} has an argument of {end - start:,} characters")
    return end


def _check_memo_index(argument: bytes, name: str, opcodes_before: int, position: int) -> None:
    """The memo is an array: the index a PUT names is what the unpickler allocates."""
    if name == "PUT":
        digits = argument.strip()
        if not digits.isdigit():
            raise PickleRefusedError(f"PUT at offset {position} names no memo index")
        index = int(digits)
    else:
        index = int.from_bytes(argument, "little")
    if index > opcodes_before:
        raise PickleRefusedError(f"memo index {index:,} at offset {position}, after only {opcodes_before:,} opcodes")


def _check_keys(keys: DictionaryKeys, name: str, argument: bytes, position: int) -> None:
    try:
        accepted = keys.accepts(name, argument)
    except (LookupError, ValueError):
        raise PickleDamagedError(f"{name} at offset {position} finds nothing to work on") from None
    if not accepted:
        raise PickleRefusedError(
            f"not a dictionary by names: a key at offset {position} is neither text nor a number, or tuples are nested"
        )


class _AllowListUnpickler(pickle.Unpickler):
    """Knows nine globals by exact name, and no persistent objects."""

    def __init__(self, data: bytes, metadata: bool) -> None:
        # encoding="bytes" only concerns Python 2 strings, which hold image bytes.
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="bytes")
        copies = _ByteCopies(budget=len(data))
        self._allowed: dict[tuple[str, str], object] = {
            ("_codecs", "encode"): copies.encode,
            ("numpy", "ndarray"): _ARRAY_TYPE,
            ("numpy", "dtype"): _make_metadata_dtype if metadata else _make_dtype,
        }
        for package in ("numpy.core", "numpy._core"):
            self._allowed[f"{package}.multiarray", "_reconstruct"] = _reconstruct
            self._allowed[f"{package}.multiarray", "scalar"] = _scalar
            self._allowed[f"{package}.numeric", "_frombuffer"] = copies.frombuffer

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get((module, name))
        if found is None:
            raise PickleRefusedError(f"names the global {f'{module}.{name}'[:MAX_TEXT]!r}, which would be executed")
        return found

    def persistent_load(self, persistent_id: object) -> Any:
        raise PickleRefusedError("refers to a persistent object outside the file")


class _ByteCopies:
    """The two globals that copy bytes: `_codecs.encode` and `_frombuffer`.

    Both may copy as many bytes as the file holds, which is what an honest pickle needs; one that copies a long text or
    buffer many times over would grow without bound.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def encode(self, text: object, encoding: object) -> bytes:
        """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 write bytes."""
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise PickleRefusedError("calls _codecs.encode with something else than Latin-1 text")
        self._spend(len(text))
        return text.encode("latin-1")

    def frombuffer(
        self, body: object, dtype: object, shape: object, order: object, axis_order: object = None
    ) -> StoredArray:
        """`numpy._core.numeric._frombuffer`: how protocol 5 writes arrays."""
        if axis_order is not None or order not in ("C", "F"):
            raise PickleDamagedError("an array has its axes in another order than C or F")
        if isinstance(body, bytearray):
            self._spend(len(body))
            body = bytes(body)
        stored = StoredArray()
        stored.fill(body, dtype, shape, order == "F")
        return stored

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise PickleRefusedError("copies more bytes than the file holds")


class _StoredDtype:
    """A numpy dtype as a pickle describes it: one of few codes and a byte order."""

    __slots__ = ("_order", "code")

    def __init__(self, code: str) -> None:
        self.code = code
        self._order = "="

    def __setstate__(self, state: object) -> None:
        """What numpy pickles: (version, order, subarray, names, fields, size, alignment, flags[, metadata])."""
        if not isinstance(state, tuple) or not 5 <= len(state) <= 9:
            raise PickleDamagedError("a dtype's state is not what numpy writes")
        order = _as_text(state[1])
        if order not in {"<", ">", "|", "="}:
            raise PickleDamagedError("a dtype has no byte order")
        if any(part is not None for part in (*state[2:5], *state[8:])):
            raise PickleRefusedError("holds a structured numpy dtype")
        self._order = order

    def to_numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order + self.code)


class _ArrayType:
    """Stands where a pickle names `numpy.ndarray`, for `_reconstruct` to see."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> None:
        """Refuses: called, the real one allocates whatever shape it is given."""
        raise PickleRefusedError("calls numpy.ndarray")


_ARRAY_TYPE = _ArrayType()


def _make_dtype(code: object, align: object = False, copy: object = True) -> _StoredDtype:
    text = _as_text(code)
    if text.startswith("O"):
        raise PickleRefusedError("holds a numpy array of Python objects")
    if text not in _DTYPES:
        raise PickleRefusedError(f"holds a numpy dtype {text[:32]!r}; encoded images and flags are integers")
    return _StoredDtype(text)


def _make_metadata_dtype(code: object, align: object = False, copy: object = True) -> _StoredDtype:
    text = _as_text(code)
    if text.startswith("O"):
        raise PickleRefusedError("holds a numpy array of Python objects")
    if _METADATA_DTYPE.fullmatch(text) is None:
        raise PickleRefusedError(f"holds a numpy dtype {text[:32]!r}, which is neither numbers nor text")
    return _StoredDtype(text)


def _reconstruct(array_type: object, shape: object, code: object) -> StoredArray:
    if array_type is not _ARRAY_TYPE:
        raise PickleDamagedError("reconstructs something else than an array")
    return StoredArray()


def _scalar(dtype: object, body: object) -> int | bool | float | str | bytes:
    stored = StoredArray()
    stored.fill(body, dtype, (), False)
    value = stored.to_numpy().item()
    assert isinstance(value, (int, bool, float, str, bytes))
    return value


def _as_text(value: object) -> str:
    """Text, or the ASCII bytes that a Python 2 string comes back as."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise PickleDamagedError("a name is not text")
    return value
