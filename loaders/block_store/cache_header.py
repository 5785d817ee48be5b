"""The header of a cache of teacher embeddings: what its rows are of, of whom, and how they were made.

docs/formats.md specifies the fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from adadistill.loaders.block_store.header import (
    DataFile,
    Span,
    StoreHeader,
    StoreKind,
    check_agrees,
    check_sha256,
    check_whole,
    checked_object,
    shown,
)
from adadistill.loaders.json_text import JSON

ViewKind: TypeAlias = Literal["plain", "mirrored", "augmented"]

DATA_NAME = "embeddings.bin"

_MAX_EMBEDDING_DIM = 1 << 16
_MAX_VIEWS = 1 << 10
_MAX_BLOCK_BYTES = 1 << 30  # a writer holds whole blocks in memory

KIND = StoreKind(
    name="cache",
    making="build",
    command="adadistill cache build RECIPE",
    format="adadistill-teacher-cache",
    constants={"dtype": "float16"},
    data_names=re.compile(re.escape(DATA_NAME)),
    ranks_lock=True,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheView:
    """One stored view of every record: the image as it is, mirrored left to right, or augmented.

    An augmented view is a function of (seed, view, record id) and of the augmentation, so that training can show the
    student the very image that the teacher saw.
    """

    kind: ViewKind
    seed: int | None = None
    """The seed of the augmentation, in [0, 2**63); of augmented views only."""
    view: int | None = None
    """The number of the view, from 0; of augmented views only."""
    policy: str | None = None
    """The augmentation as canonical JSON text, which is compared as text; of augmented views only."""

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
class CacheHeader(StoreHeader):
    """What a cache holds: N records, V views of each, D-d embeddings, checked in blocks of whole records.

    Making one checks it.

    Raises:
        ValueError: a value has a wrong type or is out of range, or the parts contradict each other.
    """

    kind: ClassVar[StoreKind] = KIND

    num_records: int
    """The number of records N, at least 1."""
    embedding_dim: int
    """The numbers in each embedding, D."""
    views: tuple[CacheView, ...]
    """The V stored views of each record, in the order of their columns; all different."""
    block_records: int
    """Records in a block. The last block holds what is left."""
    teacher: Mapping[str, JSON]
    """Whose embeddings they are: `sha256` of the weights, architecture, preprocessing. Binds training."""
    records: Mapping[str, JSON]
    """Of which images they are: `fingerprint` and `num_records` of the record file. Binds training."""
    built: Mapping[str, JSON]
    """How they were made: precision, decoder and such. Training does not mind; a build only goes on as it began."""

    def __post_init__(self) -> None:
        self.check_common_fields()
        check_whole("embedding_dim", self.embedding_dim, 1, _MAX_EMBEDDING_DIM)
        object.__setattr__(self, "views", _checked_views(self.views))
        block_bytes = min(self.block_records, self.num_records) * self.record_bytes
        if block_bytes > _MAX_BLOCK_BYTES:
            raise ValueError(f"a block has {block_bytes} bytes, {_MAX_BLOCK_BYTES} are allowed; take smaller blocks")
        for name in ("teacher", "built"):
            object.__setattr__(self, name, checked_object(name, getattr(self, name)))
        check_sha256("teacher.sha256", self.teacher.get("sha256"))
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
    def record_bytes(self) -> int:
        """Bytes of all views of one record."""
        return self.num_views * 2 * self.embedding_dim

    @property
    def data_bytes(self) -> int:
        """Bytes of `embeddings.bin`."""
        return self.num_records * self.record_bytes

    @property
    def sizes(self) -> str:
        """What the bytes come from, for people."""
        return f"{self.num_records:,} records x {self.num_views} views x {self.embedding_dim} x 2 bytes"

    def files(self) -> tuple[DataFile, ...]:
        """The file of the rows."""
        return (DataFile(DATA_NAME, self.data_bytes),)

    def block_record_range(self, block: int) -> range:
        """Record ids in a block. Raises IndexError where there is no such block."""
        self.check_block(block)
        start = block * self.block_records
        return range(start, min(start + self.block_records, self.num_records))

    def block_spans(self, block: int) -> tuple[Span, ...]:
        """Where a block's rows lie. Raises IndexError where there is no such block."""
        ids = self.block_record_range(block)
        return (Span(DATA_NAME, range(ids.start * self.record_bytes, ids.stop * self.record_bytes)),)

    def to_fields(self) -> dict[str, JSON]:
        """The header's own fields as JSON values."""
        own = StoreHeader.to_fields(self)  # super() does not know the class that `slots=True` makes
        return {**own, "views": [view.to_json() for view in self.views]}

    @classmethod
    def from_fields(cls, content: dict[str, Any]) -> CacheHeader:
        """A header from its fields; raises ValueError."""
        views = content["views"]
        if not isinstance(views, list):
            raise ValueError(f"views must be a list, got {shown(views)}")
        return cls(**{**content, "views": tuple(CacheView.from_json(view) for view in views)})


def _checked_views(views: Sequence[CacheView]) -> tuple[CacheView, ...]:
    views = tuple(views)
    if not all(isinstance(view, CacheView) for view in views):
        raise ValueError("views must be CacheViews")
    if not 1 <= len(views) <= _MAX_VIEWS:
        raise ValueError(f"a cache holds 1 to {_MAX_VIEWS} views, got {len(views)}")
    columns: dict[CacheView, int] = {}
    for column, view in enumerate(views):
        if columns.setdefault(view, column) != column:
            raise ValueError(f"views {columns[view]} and {column} are the same: {view}")
    return views
