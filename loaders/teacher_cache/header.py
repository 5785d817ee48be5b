"""The header of a cache of teacher embeddings: what its rows are, of whom, and how they were made.

Why: two files of float16 rows look the same whoever made them. Training only believes rows whose header says that they
come from the teacher, the records and the views that the recipe asks for; and a build that was killed only goes on
where its header says the same again. See docs/cache_format.md for the fields.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from adadistill.loaders.teacher_cache.errors import CacheDamagedError, CacheFormatError
from adadistill.loaders.teacher_cache.json_text import JSON, dump_json, parse_json, plain_json

ViewKind: TypeAlias = Literal["plain", "mirrored", "augmented"]

FORMAT = "adadistill-teacher-cache"
VERSION = 1
DTYPE = "float16"
"""Little-endian, as all of the format."""

MAX_HEADER_BYTES = 1 << 20
MAX_RECORDS = 1 << 40
MAX_EMBEDDING_DIM = 1 << 16
MAX_VIEWS = 1 << 10
MAX_BLOCKS = 1 << 20
"""So that the slots of all blocks, which a reader holds in memory, are 16 MiB at most."""
MAX_BLOCK_BYTES = 1 << 30
"""A writer holds whole blocks in memory."""

_MAX_SHOWN = 120  # characters of a value in messages
_SHA256 = re.compile(r"[0-9a-f]{64}")
# In JSON a quote inside a text is escaped, so this is only ever found where `header_sha256` is a key.
_OWN_SHA256 = re.compile(rb'"header_sha256"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheView:
    """One stored view of every record: the image as it is, mirrored left to right, or augmented.

    An augmented view is a function of (seed, view, record id) and of the augmentation, so that training can show the
    student the very image that the teacher saw.
    """

    kind: ViewKind
    seed: int | None = None
    """Augmented views only: seed of the augmentation, in [0, 2**63)."""
    view: int | None = None
    """Augmented views only: number of the view, from 0."""
    policy: str | None = None
    """Augmented views only: the augmentation, as canonical JSON text. Compared as text."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ViewKind):
            raise ValueError(f"kind of a view must be plain, mirrored or augmented, got {_shown(self.kind)}")
        given = [name for name in ("seed", "view", "policy") if getattr(self, name) is not None]
        if self.kind != "augmented":
            if given:
                raise ValueError(f"a {self.kind} view has no {' or '.join(given)}")
            return
        if len(given) != 3:
            raise ValueError(f"an augmented view needs seed, view and policy, got {' and '.join(given) or 'none'}")
        _check_whole("seed of a view", self.seed, 0, (1 << 63) - 1)
        _check_whole("view of a view", self.view, 0, (1 << 31) - 1)
        if not isinstance(self.policy, str) or not self.policy:
            raise ValueError(f"policy of a view must be text, got {_shown(self.policy)}")

    def __str__(self) -> str:
        if self.kind != "augmented":
            return self.kind
        return f"augmented view {self.view} of seed {self.seed}, policy {_shown(self.policy)}"

    def to_json(self) -> dict[str, JSON]:
        """JSON values; what the view does not have is left out."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> CacheView:
        """Raises ValueError where `value` is no view."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or "kind" not in value or not names.issuperset(value):
            raise ValueError(f"a view has kind, seed, view and policy, got {_shown(value)}")
        return cls(**value)


PLAIN = CacheView(kind="plain")
MIRRORED = CacheView(kind="mirrored")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheHeader:
    """What a cache holds: N records, V views of each, D-d embeddings, checked in blocks of whole records.

    Making one checks it.

    Raises:
        ValueError: a value has a wrong type or is out of range, or the parts contradict each other.
    """

    num_records: int
    """N, at least 1."""
    embedding_dim: int
    """D."""
    views: tuple[CacheView, ...]
    """The V stored views of each record, in the order of their columns; all different."""
    block_records: int
    """Records in a block. The last block holds what is left."""
    teacher: Mapping[str, JSON]
    """Whose embeddings they are: `sha256` of the weights, architecture, preprocessing. Binds training."""
    records: Mapping[str, JSON]
    """Of which images: `fingerprint` and `num_records` of the record file. Binds training."""
    built: Mapping[str, JSON]
    """How they were made: precision, decoder and such. Training does not mind; a build only goes on as it began."""

    def __post_init__(self) -> None:
        _check_whole("num_records", self.num_records, 1, MAX_RECORDS)
        _check_whole("embedding_dim", self.embedding_dim, 1, MAX_EMBEDDING_DIM)
        _check_whole("block_records", self.block_records, 1, MAX_RECORDS)
        object.__setattr__(self, "views", _checked_views(self.views))
        for name in ("teacher", "records", "built"):
            object.__setattr__(self, name, _checked_object(name, getattr(self, name)))
        self._check_blocks()
        _check_sha256("teacher.sha256", self.teacher.get("sha256"))
        _check_sha256("records.fingerprint", self.records.get("fingerprint"))
        _check_agrees("records.num_records", self.records.get("num_records"), "num_records", self.num_records)
        if "embedding_dim" in self.teacher:
            stated = self.teacher["embedding_dim"]
            _check_agrees("teacher.embedding_dim", stated, "embedding_dim", self.embedding_dim)

    @property
    def num_views(self) -> int:
        """V."""
        return len(self.views)

    @property
    def num_blocks(self) -> int:
        """Number of blocks, the short last one included."""
        return -(-self.num_records // self.block_records)

    @property
    def row_bytes(self) -> int:
        """Bytes of one embedding."""
        return 2 * self.embedding_dim

    @property
    def record_bytes(self) -> int:
        """Bytes of all views of one record."""
        return self.num_views * self.row_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of `embeddings.bin`."""
        return self.num_records * self.record_bytes

    def block_record_range(self, block: int) -> range:
        """Record ids in a block. Raises IndexError where there is no such block."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block must be in [0, {self.num_blocks}), got {block}")
        start = block * self.block_records
        return range(start, min(start + self.block_records, self.num_records))

    def block_byte_range(self, block: int) -> range:
        """Bytes of a block in `embeddings.bin`. Raises IndexError where there is no such block."""
        ids = self.block_record_range(block)
        return range(ids.start * self.record_bytes, ids.stop * self.record_bytes)

    def differences(self, wanted: CacheHeader) -> list[str]:
        """One line for each field that is not as in `wanted`: its dotted name and both values."""
        stored_fields, wanted_fields = self._to_json(), wanted._to_json()
        return [line for name in stored_fields for line in differences(name, stored_fields[name], wanted_fields[name])]

    def to_bytes(self) -> bytes:
        """The text of `header.json`: sorted keys, no dates, no paths, so that equal headers are equal bytes.

        Raises ValueError where it is longer than a reader accepts.
        """
        blank = dump_json(self._to_json() | {"header_sha256": "0" * 64}).encode()
        if len(blank) > MAX_HEADER_BYTES:
            raise ValueError(f"the header has {len(blank)} bytes, {MAX_HEADER_BYTES} are allowed; shorten its parts")
        match = _OWN_SHA256.search(blank)
        assert match is not None, "the field was just written"
        return blank[: match.start(1)] + hashlib.sha256(blank).hexdigest().encode() + blank[match.end(1) :]

    @classmethod
    def from_bytes(cls, text: bytes, *, where: str = "header.json") -> CacheHeader:
        """Read and check a header.

        Args:
            text: content of the file.
            where: names it in errors.

        Raises:
            CacheDamagedError: the bytes do not fit their own sha256, or are no JSON.
            CacheFormatError: another format, a version from the future, or fields that describe no cache.
        """
        header_digest(text, where=where)
        try:
            content = parse_json(text.decode())
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            return cls(**_header_fields(content))
        except ValueError as error:
            raise CacheFormatError(f"{where} describes no cache that this version reads: {error}") from None

    def _to_json(self) -> dict[str, JSON]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": DTYPE,
            "num_records": self.num_records,
            "embedding_dim": self.embedding_dim,
            "views": [dict(view.to_json()) for view in self.views],
            "block_records": self.block_records,
            "teacher": dict(self.teacher),
            "records": dict(self.records),
            "built": dict(self.built),
        }

    def _check_blocks(self) -> None:
        if self.num_blocks > MAX_BLOCKS:
            raise ValueError(
                f"{self.num_records} records in blocks of {self.block_records} are {self.num_blocks} blocks, "
                f"{MAX_BLOCKS} are allowed; take larger blocks"
            )
        block_bytes = min(self.block_records, self.num_records) * self.record_bytes
        if block_bytes > MAX_BLOCK_BYTES:
            raise ValueError(f"a block has {block_bytes} bytes, {MAX_BLOCK_BYTES} are allowed; take smaller blocks")


def header_digest(text: bytes, *, where: str = "header.json") -> str:
    """The sha256 that a header states of itself, 64 hex digits, checked: of all its bytes, those 64 digits as zeros.

    The rule holds in every version of the format, so that damage can be told from a version of the future.

    Raises:
        CacheDamagedError: the sha256 is another one, or the text was cut short.
        CacheFormatError: the text is too long or states no such sha256: no header of a cache.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise CacheFormatError(f"{where} has {len(text)} bytes, more than a header's {MAX_HEADER_BYTES}: no cache")
    matches = list(_OWN_SHA256.finditer(text))
    if len(matches) != 1:
        raise _no_digest(text, where, len(matches))
    stated = matches[0].group(1).decode()
    found = hashlib.sha256(text[: matches[0].start(1)] + b"0" * 64 + text[matches[0].end(1) :]).hexdigest()
    if found != stated:
        raise CacheDamagedError(
            f"{where} is damaged or was edited: it states sha256 {stated} of itself, its bytes have {found}. "
            "Restore it from a copy, or remove the folder and build the cache again"
        )
    return stated


def _no_digest(text: bytes, where: str, count: int) -> CacheDamagedError | CacheFormatError:
    try:
        parse_json(text.decode())
    except ValueError as error:
        return CacheDamagedError(
            f"{where} is damaged: {_shown(str(error))}. Restore it from a copy, or remove the folder and build again"
        )
    return CacheFormatError(f"{where} is no header of a cache: it states `header_sha256` {count} times, not once")


def _header_fields(content: dict[str, JSON]) -> dict[str, Any]:
    """The constructor's arguments from a header's content. Raises ValueError."""
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {_shown(content.get('format'))}, not {FORMAT!r}")
    version = content.get("version")
    _check_whole("version", version, 1, 1 << 31)
    if version != VERSION:
        raise ValueError(f"it has version {version}, from the future: this adadistill reads version {VERSION}")
    names = {field.name for field in fields(CacheHeader)}
    wanted = names | {"format", "version", "dtype", "header_sha256"}
    if unknown := sorted(set(content) - wanted):
        raise ValueError(f"unknown field {_shown(unknown[0])}")
    if missing := sorted(wanted - set(content)):
        raise ValueError(f"field {missing[0]!r} is missing")
    if content["dtype"] != DTYPE:
        raise ValueError(f"its dtype is {_shown(content['dtype'])}, not {DTYPE!r}")
    views = content["views"]
    if not isinstance(views, list):
        raise ValueError(f"views must be a list, got {_shown(views)}")
    found: dict[str, Any] = {name: content[name] for name in names}
    found["views"] = tuple(CacheView.from_json(view) for view in views)
    return found


def _checked_views(views: Sequence[CacheView]) -> tuple[CacheView, ...]:
    views = tuple(views)
    if not all(isinstance(view, CacheView) for view in views):
        raise ValueError("views must be CacheViews")
    if not 1 <= len(views) <= MAX_VIEWS:
        raise ValueError(f"a cache holds 1 to {MAX_VIEWS} views, got {len(views)}")
    columns: dict[CacheView, int] = {}
    for column, view in enumerate(views):
        if columns.setdefault(view, column) != column:
            raise ValueError(f"views {columns[view]} and {column} are the same: {view}")
    return views


def _checked_object(name: str, value: Any) -> dict[str, JSON]:
    """A copy of a mapping in JSON's own types, so that it equals what is read back."""
    try:
        plain = plain_json(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be stored: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{name} must be an object, got {_shown(value)}")
    return plain


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in [{least}, {most}], got {_shown(value)}")


def _check_sha256(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{name} must be a sha256, 64 lower-case hex digits, got {_shown(value)}")


def _check_agrees(name: str, value: Any, field: str, expected: int) -> None:
    if type(value) is not int or value != expected:
        raise ValueError(f"{name} must be {field} ({expected}), got {_shown(value)}")


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
                found, asked = (_shown(side[key]) if key in side else "nothing" for side in (stored, wanted))
                lines.append(f"{name}.{key}: {found} stored, {asked} wanted")
        return lines
    return [f"{name}: {_shown(stored)} stored, {_shown(wanted)} wanted"]


def _shown(value: Any) -> str:
    """A value for messages: on one line, ASCII, not longer than people read."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"
