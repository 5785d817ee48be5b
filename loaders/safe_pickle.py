"""Reads the pickles of strangers (verification sets, `metadata.pt`, what `torch.save` wrote) without running anything.

`pickle.load` calls whatever a file names. Here a machine of our own runs some fifty opcodes: what a file names is
looked up in a table of nine stand-ins, none of which is the real thing, and nothing is imported. Lengths are held
against the file before anything is copied, opcodes are counted, and only text, bytes and small integers become keys.
Tensors are read by torch's restricted unpickler, whose pickles the same machine goes through first.
"""

from __future__ import annotations

import codecs
import io
import math
import mmap
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.first_bytes import what_it_is

MAX_OPCODES: Final = 2_000_000
"""Sixteen times what the largest public set needs (14,000 images, 9 opcodes each); bounds memory to some 200 MiB."""
MAX_TEXT: Final = 256
"""Longest line an opcode with a text argument (a global's name, a decimal number) may have."""
MAX_METADATA_BYTES: Final = 2 << 30
"""Largest pickle of a `metadata.pt` that is read; IJB-C's, with 15.7 million pairs, has some 600 MB."""

_MAX_TUPLES: Final = 64  # in one another
_MAX_ENCODED_BYTES: Final = 64 << 20
_MAX_DIRECTORY_BYTES: Final = 4 << 20
"""Of an archive's list of members, some 80 bytes each; the largest public networks have a thousand tensors."""
_MAX_METADATA_MEMBERS: Final = 64

Data: TypeAlias = bytes | mmap.mmap


class PickleRefusedError(ValueError):
    """The pickle asks for something that no plain pickle asks for."""


class PickleDamagedError(ValueError):
    """It is no pickle or archive, is incomplete, or contradicts itself."""


class TorchMetadataError(ValueError):
    """A file is no dictionary of lists and arrays as `torch.save` writes it, or asks for more than that."""


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
    return _Machine(data, metadata=metadata).run()


def refuse_exhausting_pickles(data: Data, *, zipped: bool) -> None:
    """Refuse pickles with which torch's restricted unpickler would exhaust memory, time or the stack.

    It runs nothing that a file names, but it makes a `bytearray` of any size, hashes keys nested a million deep until
    the stack of the process overflows, and encodes one text twenty thousand times. No state dict needs any of this.

    Args:
        data: `data.pkl` of an archive, or a whole legacy file, which begins with five pickles: magic number, protocol,
            sizes of the system's types, the object, and the names of its storages.

    Raises:
        PickleRefusedError: it names a global, nests, repeats or declares what no state dict does.
        PickleDamagedError: it is cut off, or contradicts itself.
    """
    position = 0
    for _ in range(1 if zipped else 5):
        machine = _TorchRehearsal(data, position)
        machine.run()
        position = machine.position
        if position >= len(data):
            return


def pickle_in_archive(path: Path, *, max_members: int, max_bytes: int) -> bytes:
    """The `data.pkl` of a zip archive as `torch.save` writes it: nothing compressed, one member after the other.

    An archive of a megabyte can hold a gigabyte of zeros, one member under a thousand names, or a directory of a
    million entries. Stored members in places of their own are never larger than their file; others are refused.

    Raises:
        PickleDamagedError: damaged, compressed, overlapping, too many members, no `data.pkl` or several, or one of more
            than `max_bytes`.
    """
    damage = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, LookupError)
    try:
        with _BoundedDirectory(path, "rb") as file, zipfile.ZipFile(file) as archive:
            pickled = _checked_pickle(archive.infolist(), max_members, max_bytes)
            file.has_directory = True
            with archive.open(pickled) as body:
                return body.read(max_bytes)
    except PickleDamagedError:
        raise
    except (*damage, OverflowError, MemoryError) as error:  # what zipfile raises on cut and changed bytes
        reason = ascii(str(error))[:120]
        raise PickleDamagedError(f"is no archive as torch.save writes it, or was cut short: {reason}") from None


def read_torch_metadata(path: Path) -> dict[str, object]:
    """Lists and arrays of a `metadata.pt` by name: what `torch.save` made of a dictionary of them.

    `torch.load` would need numpy's constructors, with which a crafted dtype makes numpy take bytes for pointers.

    Returns:
        Name -> a numpy array (read-only), or what plain values are there: lists of text, numbers ...

    Raises:
        FileNotFoundError: there is no such file.
        TorchMetadataError: damaged, another format, or asking for anything but plain values and arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if (other := what_it_is(path, "zip")) is not None:
        raise TorchMetadataError(f"{path} {other}")
    try:
        pickled = pickle_in_archive(path, max_members=_MAX_METADATA_MEMBERS, max_bytes=MAX_METADATA_BYTES)
        content = load_plain_pickle(pickled, metadata=True)
    except PickleRefusedError as error:
        raise TorchMetadataError(f"{path}: {error}. Hostile or damaged; nothing of it was run") from None
    except PickleDamagedError as error:
        raise TorchMetadataError(f"{path}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise TorchMetadataError(f"{path}: holds a {type(content).__name__}, not a dictionary by names")
    return {name: value.to_numpy() if isinstance(value, StoredArray) else value for name, value in content.items()}


class StoredArray:
    """A numpy array as a pickle describes it: its bytes, shape and dtype, checked against each other."""

    __slots__ = ("body", "dtype", "fortran_order", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.fortran_order = False
        self.body: bytes = b""

    def build(self, state: object) -> None:
        """Take over what numpy pickles: (version, shape, dtype, fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleDamagedError("an array's state is not (version, shape, dtype, order, bytes)")
        self.fill(state[4], state[2], state[1], bool(state[3]))

    def fill(self, body: object, dtype: object, shape: object, fortran_order: bool) -> None:
        """Take over bytes, dtype and shape; refused where the bytes do not fill the shape, or are Python objects."""
        if isinstance(body, list):
            raise PickleRefusedError("holds a numpy array of Python objects")
        if not isinstance(dtype, _StoredDtype) or not isinstance(body, bytes) or not isinstance(shape, tuple):
            raise PickleDamagedError("an array holds no bytes, or has no known dtype or no shape")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise PickleDamagedError("an array holds no bytes, or has no known dtype or no shape")
        if len(shape) > 8 or math.prod(shape) * dtype.to_numpy().itemsize != len(body):
            raise PickleDamagedError(f"an array of shape {shape[:8]} and dtype {dtype.code} holds {len(body)} bytes")
        self.shape, self.dtype, self.fortran_order, self.body = shape, dtype.to_numpy(), fortran_order, body

    def to_numpy(self) -> npt.NDArray[Any]:
        """The array, read-only, over the stored bytes."""
        return np.frombuffer(self.body, self.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


class _StoredDtype:
    """A numpy dtype as a pickle describes it: one of few codes and a byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._order = "="

    def build(self, state: object) -> None:
        """Take over what numpy pickles: (version, order, subarray, names, fields, size, alignment, flags, ...)."""
        order = _as_text(state[1]) if isinstance(state, tuple) and 5 <= len(state) <= 9 else ""
        if not isinstance(state, tuple) or order not in ("<", ">", "|", "="):
            raise PickleDamagedError("a dtype's state is not what numpy writes")
        if any(part is not None for part in (*state[2:5], *state[8:])):
            raise PickleRefusedError("holds a structured numpy dtype")
        self._order = order

    def to_numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order + self.code)


class _Machine:
    """Runs one pickle: a stack, a memo, and what each opcode does to them.

    Memory: what the pickle holds, plus at most 64 bytes per opcode. Time: one pass, image bytes are copied whole.
    """

    def __init__(self, data: Data, position: int = 0, *, metadata: bool = False) -> None:
        self.position = position
        """Of the next opcode; in the end, behind STOP."""
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._opcodes = _PLAIN_OPCODES | (_DICTIONARY_OPCODES if metadata else frozenset())
        self._dtypes = _METADATA_DTYPES if metadata else _IMAGE_DTYPES
        self._bytes_to_copy = len(data)

    def run(self) -> object:
        """Run to the STOP opcode, and return what is then on the stack."""
        try:
            for count in range(MAX_OPCODES):
                if self._step(count):
                    return self._stack.pop()
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            if isinstance(error, PickleRefusedError | PickleDamagedError):
                raise
            raise PickleDamagedError(f"cannot be unpickled: contradicts itself before byte {self.position}") from None
        raise PickleRefusedError(f"more than {MAX_OPCODES:,} opcodes")

    def _step(self, count: int) -> bool:
        """Do one opcode; true for the last one."""
        at = self.position
        if at >= len(self._data):
            raise PickleDamagedError(f"ends after {len(self._data)} bytes without a STOP opcode; is the file complete?")
        opcode = _OPCODES.get(self._data[at])
        if opcode is None:
            raise PickleRefusedError(f"unknown opcode 0x{self._data[at]:02x} at offset {at}")
        name = opcode.name
        if name not in self._opcodes:
            raise PickleRefusedError(f"opcode {name} at offset {at}; plain values need none")
        if name in _CONSTANTS:
            self.position = at + 1
            self._stack.append(_CONSTANTS[name]())
            return False
        first, self.position = _argument(self._data, at, opcode)
        if name in _VALUES:
            self._stack.append(_VALUES[name](self._bytes(first)))
        elif name in _MEMO_WRITES or name in _MEMO_READS:
            self._remember(name, first, count)
        else:
            self._combine(name, first, at)
        return name == "STOP"

    def _combine(self, name: str, first: int, at: int) -> None:
        """Make one value of those on the stack."""
        stack = self._stack
        match name:
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
                self._extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
                self._set(stack[-1], items, at)
            case "DICT":
                stack.append(self._set({}, self._pop_to_mark(), at))
            case "LIST":
                stack.append(self._pop_to_mark())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(self._tuple(self._pop_to_mark() if name == "TUPLE" else self._pop(int(name[-1]))))
            case "GLOBAL":
                stack.append(self._global(*self._bytes(first).decode("latin-1").split("\n")[:2]))
            case "STACK_GLOBAL":
                stack.append(self._global(*self._pop(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(self._call(*self._pop(2)))
            case "BINPERSID":
                self._pop(1)
                stack.append(None)
            case "BUILD":
                (state,) = self._pop(1)
                self._build(stack[-1], state)

    def _remember(self, name: str, first: int, count: int) -> None:
        """Put the last value into the memo, or take one from it."""
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
            return
        body = self._bytes(first)
        index = int(body) if name in ("PUT", "GET") else int.from_bytes(body, "little")
        if name in _MEMO_READS:
            self._stack.append(self._memo[index])
        elif 0 <= index <= count:
            self._memo[index] = self._stack[-1]
        else:
            raise PickleRefusedError(f"memo index {index:,} before byte {self.position}, after {count:,} opcodes")

    def _bytes(self, first: int) -> bytes:
        return self._data[first : self.position]

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        popped = self._stack[-count:]
        del self._stack[-count:]
        if _MARK in popped:
            raise IndexError
        return popped

    def _pop_to_mark(self) -> list[Any]:
        popped = []
        while (top := self._stack.pop()) is not _MARK:
            popped.append(top)
        popped.reverse()
        return popped

    def _set(self, target: Any, items: list[Any], at: int) -> Any:
        """Keys are hashed. Of text and bytes the hash is salted, of small integers it is their value; of tuples it can
        be the same for sixty thousand of them, which takes a minute, and deep ones overflow the stack of the process.
        """
        for key in items[::2]:
            if not (type(key) in (str, bytes, _Named) or (type(key) is int and abs(key) < 1 << 31)):
                raise PickleRefusedError(
                    f"not a dictionary by names: a key at offset {at} is neither text nor a number"
                )
        return self._update(target, items)

    # What a rehearsal does otherwise.

    def _extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def _update(self, target: Any, items: list[Any]) -> Any:
        if type(target) is not dict:
            raise TypeError
        target.update(zip(items[::2], items[1::2], strict=True))
        return target

    def _tuple(self, values: list[Any]) -> Any:
        return tuple(values)

    def _global(self, module: object, name: object) -> Any:
        asked = f"{_as_text(module)}.{_as_text(name)}"
        method = _STAND_INS.get(asked)
        if method is None:
            raise PickleRefusedError(f"names the global {asked[:MAX_TEXT]!r}, which would be executed")
        return _Named(method)

    def _call(self, function: object, arguments: object) -> Any:
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise PickleDamagedError("calls what is no function")
        return getattr(self, function.name)(*arguments)

    def _build(self, target: object, state: object) -> None:
        if not isinstance(target, StoredArray | _StoredDtype):
            raise PickleDamagedError("gives a state to what has none")
        target.build(state)

    # The stand-ins.

    def ndarray(self, *arguments: object) -> None:
        raise PickleRefusedError("calls numpy.ndarray")  # the real one allocates whatever shape it is given

    def dtype(self, code: object, align: object = False, copy: object = True) -> _StoredDtype:
        text = _as_text(code)
        if text.startswith("O"):
            raise PickleRefusedError("holds a numpy array of Python objects")
        if self._dtypes.fullmatch(text) is None:
            raise PickleRefusedError(f"holds a numpy dtype {text[:32]!r}, which no such file needs")
        return _StoredDtype(text)

    def reconstruct(self, array_type: object, shape: object, code: object) -> StoredArray:
        if not isinstance(array_type, _Named) or array_type.name != "ndarray":
            raise PickleDamagedError("reconstructs something else than an array")
        return StoredArray()

    def scalar(self, dtype: object, body: object) -> Any:
        stored = StoredArray()
        stored.fill(body, dtype, (), False)
        return stored.to_numpy().item()

    def frombuffer(
        self, body: object, dtype: object, shape: object, order: object, axis_order: object = None
    ) -> StoredArray:
        """How protocol 5 writes arrays."""
        if axis_order is not None or order not in ("C", "F"):
            raise PickleDamagedError("an array has its axes in another order than C or F")
        if isinstance(body, bytearray):
            self._copies(len(body))
            body = bytes(body)
        stored = StoredArray()
        stored.fill(body, dtype, shape, order == "F")
        return stored

    def encode(self, text: object, encoding: object) -> bytes:
        """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 write bytes."""
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise PickleRefusedError("calls _codecs.encode with something else than Latin-1 text")
        self._copies(len(text))
        return text.encode("latin-1")

    def _copies(self, size: int) -> None:
        """An honest pickle copies each byte once; a long text copied many times over would grow without bound."""
        self._bytes_to_copy -= size
        if self._bytes_to_copy < 0:
            raise PickleRefusedError("copies more bytes than the file holds")


class _TorchRehearsal(_Machine):
    """Goes through a pickle of tensors as torch's unpickler would, making nothing of what it asks for."""

    def __init__(self, data: Data, position: int) -> None:
        super().__init__(data, position)
        self._opcodes = _PLAIN_OPCODES | _DICTIONARY_OPCODES | {"NEWOBJ", "BINPERSID", "EMPTY_SET"}
        self._calls, self._longest, self._encodes = 0, 0, False

    def _bytes(self, first: int) -> bytes:
        self._longest = max(self._longest, self.position - first)
        return super()._bytes(first) if self.position - first <= MAX_TEXT else b""

    def _extend(self, target: Any, items: list[Any]) -> None:
        pass

    def _update(self, target: Any, items: list[Any]) -> Any:
        return None

    def _tuple(self, values: list[Any]) -> Any:
        depth = 1 + max((value.depth for value in values if type(value) is _Nested), default=0)
        if depth > _MAX_TUPLES:
            raise PickleRefusedError(f"nests tuples {_MAX_TUPLES} deep before byte {self.position}")
        return _Nested(depth)

    def _global(self, module: object, name: object) -> Any:
        asked = f"{_as_text(module)}.{_as_text(name)}"
        if asked in ("builtins.bytearray", "__builtin__.bytearray", "builtins.set", "__builtin__.set"):
            raise PickleRefusedError(f"asks for {asked}, which no state dict needs")
        self._encodes = self._encodes or asked == "_codecs.encode"
        return _Named(asked)

    def _call(self, function: object, arguments: object) -> Any:
        self._calls += 1
        if self._encodes and self._calls * self._longest > _MAX_ENCODED_BYTES:
            raise PickleRefusedError("encodes long texts again and again")
        return None

    def _build(self, target: object, state: object) -> None:
        pass


class _Named:
    """What a file names, in the place of the real thing. Lightning keeps callbacks' states under their classes."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Nested:
    """A tuple in a rehearsal: how many tuples deep it is."""

    __slots__ = ("depth",)

    def __init__(self, depth: int) -> None:
        self.depth = depth


def _argument(data: Data, at: int, opcode: pickletools.OpcodeInfo) -> tuple[int, int]:
    """Where the argument of the opcode at `at` begins, behind its length, and ends; both within the data."""
    start, name = at + 1, opcode.name
    if opcode.arg is None:
        return start, start
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        end = start
        for _ in range(2 if name == "GLOBAL" else 1):
            line = end
            end = data.find(b"\n", line) + 1
            if end == 0:
                raise PickleDamagedError(f"{name} at offset {at} has no end; is the file complete?")
            if end - line > MAX_TEXT and name not in ("STRING", "UNICODE"):
                raise PickleRefusedError(f"{name} at offset {at} has an argument of {end - line:,} characters")
        return start, end
    length = opcode.arg.n
    if length < 0 or name == "FRAME":
        width = _LENGTH_BYTES.get(length, 8)
        length = int.from_bytes(data[start : start + width], "little")
        start += width
    if length > len(data) - start:
        left = max(0, len(data) - start)
        raise PickleRefusedError(
            f"{name} at offset {at} declares {length:,} bytes where {left:,} are left: cut off, or hostile"
        )
    return start, start if name == "FRAME" else start + length


def _unquoted(line: bytes) -> bytes:
    """The bytes of Python 2's `repr` of a string."""
    body = line.strip()
    if len(body) < 2 or body[:1] != body[-1:] or body[:1] not in (b"'", b'"'):
        raise ValueError
    return codecs.escape_decode(body[1:-1])[0]


def _as_text(value: object) -> str:
    """Text, or the ASCII bytes that a Python 2 string comes back as."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise PickleDamagedError("a name is not text")
    return value


_MARK: Final = object()
_MEMO_WRITES: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_MEMO_READS: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_OPCODES: Final = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_LENGTH_BYTES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_CONSTANTS: Final[Mapping[str, Callable[[], Any]]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list},
}
_VALUES: Final[Mapping[str, Callable[[bytes], Any]]] = {
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), bytes),
    "BYTEARRAY8": bytearray,
    "STRING": _unquoted,
    "UNICODE": lambda line: str(line.removesuffix(b"\n"), "raw-unicode-escape"),
    **dict.fromkeys(
        ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), lambda body: str(body, "utf-8", "surrogatepass")
    ),
    "INT": lambda line: line == b"01\n" if line in (b"00\n", b"01\n") else int(line),
    "LONG": lambda line: int(line.strip().removesuffix(b"L")),
    **dict.fromkeys(("BININT1", "BININT2"), lambda body: int.from_bytes(body, "little")),
    **dict.fromkeys(("BININT", "LONG1"), lambda body: int.from_bytes(body, "little", signed=True)),
    "BINFLOAT": lambda body: struct.unpack(">d", body)[0],
}
_DICTIONARY_OPCODES: Final = frozenset(("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINFLOAT"))
_PLAIN_OPCODES: Final = frozenset(
    (
        *((_CONSTANTS.keys() | _VALUES.keys()) - {"EMPTY_DICT", "EMPTY_SET", "BINFLOAT"}),
        *("PROTO", "FRAME", "STOP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "LIST", "APPEND", "APPENDS"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", *_MEMO_WRITES, *_MEMO_READS),
    )
)
_STAND_INS: Final[Mapping[str, str]] = {
    "_codecs.encode": "encode",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    **{f"numpy.{core}.multiarray._reconstruct": "reconstruct" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "frombuffer" for core in ("core", "_core")},
}
"""What bytes and numpy arrays need under pickle protocols 0 to 5 -> the method of the machine in its place."""
_IMAGE_DTYPES: Final = re.compile(r"b1|[iu][1248]")
_METADATA_DTYPES: Final = re.compile(r"[biu]1|[iu][248]|f[248]|[US][1-9][0-9]{0,3}")


class _BoundedDirectory(io.FileIO):
    """A file of which zipfile may read the directory, at whatever size that is stated, up to a limit."""

    has_directory = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.has_directory and size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a list of members of {size:,} bytes")
        return super().read(-1 if size is None else size)


def _checked_pickle(members: list[zipfile.ZipInfo], max_members: int, max_bytes: int) -> zipfile.ZipInfo:
    """The member that is the pickle, once all are known to be stored as `torch.save` stores them."""
    if any("/code/__torch__" in member.filename for member in members):
        raise PickleDamagedError("a TorchScript program, whose code is not run")
    pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        held = ", ".join(ascii(member.filename)[:60] for member in members[:4])
        raise PickleDamagedError(f"an archive without one data.pkl; torch.save writes one, and here is {held}")
    if len(members) > max_members:
        raise PickleDamagedError(f"an archive of {len(members):,} members; at most {max_members:,} are expected")
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            shown = ascii(member.filename)[:80]
            raise PickleDamagedError(f"an archive whose {shown} is compressed; torch.save compresses nothing")
        if member.header_offset < end or (not end and member.header_offset):
            raise PickleDamagedError("an archive whose members do not lie one after the other, as torch.save does it")
        end = member.header_offset + member.file_size + 1
    if pickles[0].file_size > max_bytes:
        raise PickleDamagedError(f"its data.pkl has more than {max_bytes:,} bytes ({pickles[0].file_size:,})")
    return pickles[0]
