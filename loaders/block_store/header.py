"""The header of a store: what its rows are of, how they lie in files, and what the header itself sums to.

Two files of rows look the same whoever made them. Training only believes rows whose header says that they come from
what the recipe names, and a build that was killed only goes on where its header says the same again. `header.json`
states its own sha256, by a rule that holds in every version, so that damage can be told from a version of the future.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError
from adadistill.loaders.json_text import JSON, dump_json, parse_json, plain_json

VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_RECORDS = 1 << 40
MAX_BLOCKS = 1 << 20
"""The most blocks of a store: a reader holds the slots of all of them in memory, 16 MiB at most."""

_MAX_SHOWN = 120  # characters of a value in messages
_SHA256 = re.compile(r"[0-9a-f]{64}")
# In JSON a quote inside a text is escaped, so this is only ever found where `header_sha256` is a key.
_OWN_SHA256 = re.compile(rb'"header_sha256"\s*:\s*"([0-9a-f]{64})"')

H = TypeVar("H", bound="StoreHeader")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreKind:
    """What differs between one kind of store and another, beside the fields of its header."""

    name: str
    """Names the store in messages, for example `cache`: "no cache at ..."."""
    making: str
    """Names its writing, for example `build`: "its build was stopped"."""
    command: str
    """The command that makes or continues one."""
    format: str
    """The header's field `format`."""
    constants: Mapping[str, JSON]
    """Further fields of the header that have one value only."""
    data_names: re.Pattern[str]
    """Names of its files of rows."""
    ranks_lock: bool
    """Whether the ranks that join a build hold its lock too. They must then come after the rank that began it."""

    @property
    def remedy(self) -> str:
        """What to do about damage that no block can be blamed for."""
        return f"Restore it from a copy, or remove the folder and run again: {self.command}"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows: `head`, then `data_bytes` bytes."""

    name: str
    data_bytes: int
    head: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + self.data_bytes


class Span(NamedTuple):
    """A part of a file: the bytes [start, stop) of it."""

    name: str
    bytes: range


class StoreHeader(ABC):
    """What a store holds: N records in blocks. Base of frozen dataclasses, whose fields are those of `header.json`."""

    __slots__ = ()
    kind: ClassVar[StoreKind]
    num_records: int
    block_records: int
    records: Mapping[str, JSON]

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def data_bytes(self) -> int:
        """Bytes of all rows."""

    @property
    @abstractmethod
    def sizes(self) -> str:
        """What the bytes come from, for people."""

    @abstractmethod
    def files(self) -> Sequence[DataFile]:
        """The files of rows, in the order in which they are made."""

    @abstractmethod
    def block_record_range(self, block: int) -> range:
        """Record ids in a block. Raises IndexError where there is no such block."""

    @abstractmethod
    def block_spans(self, block: int) -> Sequence[Span]:
        """Where a block's bytes lie, in the order in which they are summed. Raises IndexError."""

    def describe_block(self, block: int) -> str:
        """Name a block and its records in messages."""
        ids = self.block_record_range(block)
        return f"block {block} (records [{ids.start}, {ids.stop}))"

    def check_common_fields(self) -> None:
        """Check the fields that all stores have, and the number of blocks that they make; raises ValueError."""
        check_whole("num_records", self.num_records, 1, MAX_RECORDS)
        check_whole("block_records", self.block_records, 1, MAX_RECORDS)
        object.__setattr__(self, "records", checked_object("records", self.records))
        check_sha256("records.fingerprint", self.records.get("fingerprint"))
        check_agrees("records.num_records", self.records.get("num_records"), "num_records", self.num_records)
        if self.num_blocks > MAX_BLOCKS:
            raise ValueError(f"{self.num_blocks} blocks are more than {MAX_BLOCKS}; take larger blocks")

    def check_block(self, block: int) -> None:
        """Raise IndexError where there is no such block."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block must be in [0, {self.num_blocks}), got {block}")

    def checked_blocks(self, first: int, stop: int | None) -> range:
        """The blocks [first, stop), up to the last where `stop` is None. Raises IndexError."""
        stop = self.num_blocks if stop is None else stop
        if not 0 <= first <= stop <= self.num_blocks:
            raise IndexError(f"blocks must be in [0, {self.num_blocks}), got [{first}, {stop})")
        return range(first, stop)

    def differences(self: H, wanted: H) -> list[str]:
        """One line for each field that is not as in `wanted`: its dotted name and both values."""
        stored_fields, wanted_fields = self.to_fields(), wanted.to_fields()
        return [line for name in stored_fields for line in differences(name, stored_fields[name], wanted_fields[name])]

    def to_fields(self) -> dict[str, JSON]:
        """The header's own fields as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_fields(cls: type[H], content: dict[str, Any]) -> H:
        """A header from its fields; raises ValueError."""
        return cls(**content)

    def to_bytes(self) -> bytes:
        """The text of `header.json`: sorted keys, no dates, no paths, so that equal headers are equal bytes.

        Raises ValueError where it is longer than a reader accepts.
        """
        own: dict[str, JSON] = {"format": self.kind.format, "version": VERSION, "header_sha256": "0" * 64}
        blank = dump_json({**own, **self.kind.constants, **self.to_fields()}).encode()
        if len(blank) > MAX_HEADER_BYTES:
            raise ValueError(f"the header has {len(blank)} bytes, {MAX_HEADER_BYTES} are allowed; shorten its parts")
        match = _OWN_SHA256.search(blank)
        assert match is not None, "the field was just written"
        return blank[: match.start(1)] + hashlib.sha256(blank).hexdigest().encode() + blank[match.end(1) :]

    @classmethod
    def from_bytes(cls: type[H], text: bytes, *, where: str = "header.json") -> H:
        """Read and check a header.

        Args:
            text: content of the file.
            where: names it in errors.

        Raises:
            StoreDamagedError: the bytes do not fit their own sha256, or are no JSON.
            StoreError: another format, a version from the future, or fields that describe no such store.
        """
        stated_sha256(text, where=where, kind=cls.kind)
        try:
            return cls.from_fields(_own_fields(text, cls.kind, {field.name for field in fields(cls)}))  # type: ignore[arg-type]
        except ValueError as error:
            name = cls.kind.name
            raise StoreError(f"{where} describes no {name} that this version reads: {error}") from None


def stated_sha256(text: bytes, *, where: str, kind: StoreKind) -> str:
    """The sha256 that a header states of itself, 64 hex digits, checked.

    Raises:
        StoreDamagedError: the sha256 is another one, or the text was cut short.
        StoreError: the text is too long or states no such sha256: no header of a store.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise StoreError(f"{where} has more than a header's {MAX_HEADER_BYTES} bytes: no {kind.name}")
    matches = list(_OWN_SHA256.finditer(text))
    if len(matches) != 1:
        try:
            parse_json(text.decode())
        except ValueError as error:
            raise StoreDamagedError(f"{where} is damaged: {shown(str(error))}. {kind.remedy}") from None
        raise StoreError(
            f"{where} is no header of a {kind.name}: it states `header_sha256` {len(matches)} times, not once"
        )
    stated = matches[0].group(1).decode()
    found = hashlib.sha256(text[: matches[0].start(1)] + b"0" * 64 + text[matches[0].end(1) :]).hexdigest()
    if found != stated:
        raise StoreDamagedError(
            f"{where} is damaged or was edited: it states sha256 {stated} of itself, its bytes have {found}. "
            f"{kind.remedy}"
        )
    return stated


def _own_fields(text: bytes, kind: StoreKind, names: set[str]) -> dict[str, Any]:
    """The fields `names` of a header whose sha256 was checked; raises ValueError where others are missing or there."""
    content = parse_json(text.decode())
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    if content.get("format") != kind.format:
        raise ValueError(f"its format is {shown(content.get('format'))}, not {kind.format!r}")
    stated = content.get("version")
    check_whole("version", stated, 1, 1 << 31)
    if stated != VERSION:
        raise ValueError(f"it has version {stated}, from the future: this adadistill reads version {VERSION}")
    wanted = names | {"format", "version", "header_sha256", *kind.constants}
    if unknown := sorted(set(content) - wanted):
        raise ValueError(f"unknown field {shown(unknown[0])}")
    if missing := sorted(wanted - set(content)):
        raise ValueError(f"field {missing[0]!r} is missing")
    for name, value in kind.constants.items():
        if content[name] != value:
            raise ValueError(f"its {name} is {shown(content[name])}, not {value!r}")
    return {name: content[name] for name in names}


def checked_object(name: str, value: Any) -> dict[str, JSON]:
    """A copy of a mapping in JSON's own types, so that it equals what is read back. Raises ValueError."""
    try:
        plain = plain_json(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be stored: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    return plain


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ValueError unless `value` is a whole number in [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in [{least}, {most}], got {shown(value)}")


def check_sha256(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is 64 lower-case hex digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{name} must be a sha256, 64 lower-case hex digits, got {shown(value)}")


def check_agrees(name: str, value: Any, field: str, expected: int) -> None:
    """Raise ValueError unless `value` is the number that another field holds."""
    if type(value) is not int or value != expected:
        raise ValueError(f"{name} must be {field} ({expected}), got {shown(value)}")


def differences(name: str, stored: JSON, wanted: JSON) -> list[str]:
    """One line for each place where two values differ: its dotted name below `name`, what is stored, what is wanted."""
    if dump_json(stored) == dump_json(wanted):  # 1, 1.0 and true are equal in Python and other bytes in the file
        return []
    if isinstance(stored, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(set(stored) | set(wanted)):
            if key in stored and key in wanted:
                lines += differences(f"{name}.{key}", stored[key], wanted[key])
            else:
                found, asked = (shown(side[key]) if key in side else "nothing" for side in (stored, wanted))
                lines.append(f"{name}.{key}: {found} stored, {asked} wanted")
        return lines
    return [f"{name}: {shown(stored)} stored, {shown(wanted)} wanted"]


def shown(value: Any) -> str:
    """A value for messages: on one line, ASCII, not longer than people read."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"
