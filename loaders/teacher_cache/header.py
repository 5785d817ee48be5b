"""The header of a cache of teacher embeddings: what its rows are, of whom, and how they were made.

Why: two files of float16 rows look the same whoever made them. Training only believes rows whose header says that they
come from the teacher, the records and the views that the recipe asks for; and a build that was killed only goes on
where its header says the same again. See docs/cache_format.md for the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from adadistill.loaders.stored_blocks.header_text import (
    check_agrees,
    check_sha256,
    check_whole,
    checked_object,
    differences,
    header_fields,
    header_text,
    shown,
    stated_sha256,
)
from adadistill.loaders.stored_blocks.json_text import JSON
from adadistill.loaders.stored_blocks.kind import StoreKind
from adadistill.loaders.teacher_cache.errors import (
    CacheDamagedError,
    CacheFormatError,
    CacheIncompleteError,
    CacheMissingError,
)

ViewKind: TypeAlias = Literal["plain", "mirrored", "augmented"]

DATA_NAME = "embeddings.bin"
FORMAT = "adadistill-teacher-cache"
VERSION = 1
DTYPE = "float16"
"""Little-endian, as all of the format."""

MAX_RECORDS = 1 << 40
MAX_EMBEDDING_DIM = 1 << 16
MAX_VIEWS = 1 << 10
MAX_BLOCKS = 1 << 20
"""So that the slots of all blocks, which a reader holds in memory, are 16 MiB at most."""
MAX_BLOCK_BYTES = 1 << 30
"""A writer holds whole blocks in memory."""

KIND = StoreKind(
    name="cache",
    making="build",
    command="adadistill cache build RECIPE",
    missing=CacheMissingError,
    incomplete=CacheIncompleteError,
    damaged=CacheDamagedError,
    unknown_format=CacheFormatError,
)


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
            raise ValueError(f"kind of a view must be plain, mirrored or augmented, got {shown(self.kind)}")
        given = [name for name in ("seed", "view", "policy") if getattr(self, name) is not None]
        if self.kind != "augmented":
            if given:
                raise ValueError(f"a {self.kind} view has no {' or '.join(given)}")
            return
        if len(given) != 3:
            raise ValueError(f"an augmented view needs seed, view and policy, got {' and '.join(given) or 'none'}")
        check_whole("seed of a view", self.seed, 0, (1 << 63) - 1)
        check_whole("view of a view", self.view, 0, (1 << 31) - 1)
        if not isinstance(self.policy, str) or not self.policy:
            raise ValueError(f"policy of a view must be text, got {shown(self.policy)}")

    def __str__(self) -> str:
        if self.kind != "augmented":
            return self.kind
        return f"augmented view {self.view} of seed {self.seed}, policy {shown(self.policy)}"

    def to_json(self) -> dict[str, JSON]:
        """JSON values; what the view does not have is left out."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> CacheView:
        """Raises ValueError where `value` is no view."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or "kind" not in value or not names.issuperset(value):
            raise ValueError(f"a view has kind, seed, view and policy, got {shown(value)}")
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
        check_whole("num_records", self.num_records, 1, MAX_RECORDS)
        check_whole("embedding_dim", self.embedding_dim, 1, MAX_EMBEDDING_DIM)
        check_whole("block_records", self.block_records, 1, MAX_RECORDS)
        object.__setattr__(self, "views", _checked_views(self.views))
        for name in ("teacher", "records", "built"):
            object.__setattr__(self, name, checked_object(name, getattr(self, name)))
        self._check_blocks()
        check_sha256("teacher.sha256", self.teacher.get("sha256"))
        check_sha256("records.fingerprint", self.records.get("fingerprint"))
        check_agrees("records.num_records", self.records.get("num_records"), "num_records", self.num_records)
        if "embedding_dim" in self.teacher:
            stated = self.teacher["embedding_dim"]
            check_agrees("teacher.embedding_dim", stated, "embedding_dim", self.embedding_dim)

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

    def describe_block(self, block: int) -> str:
        """Name a block, its records and its bytes in messages."""
        ids, span = self.block_record_range(block), self.block_byte_range(block)
        return f"block {block} (records [{ids.start}, {ids.stop}), bytes [{span.start}, {span.stop}) of {DATA_NAME})"

    def differences(self, wanted: CacheHeader) -> list[str]:
        """One line for each field that is not as in `wanted`: its dotted name and both values."""
        stored_fields, wanted_fields = self._to_json(), wanted._to_json()
        return [line for name in stored_fields for line in differences(name, stored_fields[name], wanted_fields[name])]

    def to_bytes(self) -> bytes:
        """The text of `header.json`: sorted keys, no dates, no paths, so that equal headers are equal bytes.

        Raises ValueError where it is longer than a reader accepts.
        """
        return header_text(self._to_json())

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
        stated_sha256(text, where=where, kind=KIND)
        try:
            return cls(**_header_fields(text))
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


def _header_fields(text: bytes) -> dict[str, Any]:
    """The constructor's arguments from a header's text. Raises ValueError."""
    names = {field.name for field in fields(CacheHeader)}
    found: dict[str, Any] = header_fields(text, format_name=FORMAT, version=VERSION, names=names | {"dtype"})
    if (dtype := found.pop("dtype")) != DTYPE:
        raise ValueError(f"its dtype is {shown(dtype)}, not {DTYPE!r}")
    views = found["views"]
    if not isinstance(views, list):
        raise ValueError(f"views must be a list, got {shown(views)}")
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
