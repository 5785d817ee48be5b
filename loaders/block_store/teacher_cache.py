"""The cache of teacher embeddings: float16 unit rows of every record in each of its views, computed once.

A folder of `header.json`, `embeddings.bin` with the rows (N, V, D) and `blocks.bin`; docs/formats.md specifies
them. Its header binds the rows to the teacher, the records and the views that training asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.cache_header import KIND, MIRRORED, PLAIN, CacheHeader, CacheView
from adadistill.loaders.block_store.errors import StoreError, StoreWriteError
from adadistill.loaders.block_store.header import differences
from adadistill.loaders.block_store.reader import (
    BlockReader,
    checked_ids,
    checked_out,
    named,
    records_refusal,
    take_rows,
)
from adadistill.loaders.block_store.writer import BlockWriter
from adadistill.loaders.json_text import JSON, plain_json

__all__ = ["MIRRORED", "PLAIN", "CacheHeader", "CacheView", "CacheWriter", "TeacherCache"]

NORM_TOLERANCE = 5e-3
"""How far from 1 the norm of a row may be. Rounding a unit vector to float16 moves it by less than 1e-3."""

_CHECKED_ROWS = 2048  # rows widened to float32 at a time
_PREPROCESSING = ("preprocessing", "image_size")
_NETWORK = ("arch", "embedding_dim")


class TeacherCache(BlockReader[CacheHeader]):
    """A finished cache, read by record id and view; see `BlockReader`."""

    header_type = CacheHeader

    def __init__(self, folder: str | Path) -> None:
        """Open a cache; raises as `BlockReader` does."""
        super().__init__(folder)
        self._columns = {view: column for column, view in enumerate(self.header.views)}
        (file,) = self.header.files()
        self._rows = self._map(file, "<f2").reshape(-1, self.header.embedding_dim)  # (N * V, D)

    def column(self, view: CacheView) -> int | None:
        """Column of a view, for `gather`; None where the cache does not hold it."""
        return self._columns.get(view)

    def gather(
        self,
        record_ids: npt.NDArray[np.integer[Any]],
        views: npt.NDArray[np.integer[Any]],
        out: npt.NDArray[np.float16] | None = None,
    ) -> npt.NDArray[np.float16]:
        """Copy out one stored row for each of n records.

        Args:
            record_ids: (n,) integers in [0, N), in any order, repeats allowed.
            views: (n,) integers in [0, V): the column of the view to take of each.
            out: (n, D) float16 to fill instead of a new array.

        Returns:
            (n, D) float16 unit rows; `out` where it was given.

        Raises:
            IndexError: an id or a column is out of range; they are named.
            ValueError: shapes or dtypes are wrong.
        """
        ids = checked_ids("record ids", record_ids, self.header.num_records)
        columns = checked_ids("view columns", views, self.header.num_views)
        if len(ids) != len(columns):
            raise ValueError(f"there must be one view for each record id, got {len(columns)} for {len(ids)}")
        out = checked_out(out, (len(ids), self.header.embedding_dim), np.float16)
        return take_rows(self._rows, ids * self.header.num_views + columns, out)

    def require(
        self, *, teacher: Mapping[str, Any] | None, records: Mapping[str, Any], views: Sequence[CacheView]
    ) -> None:
        """Refuse this cache unless it is of this teacher, these records, and holds these views.

        Args:
            teacher: identity of the run's teacher as JSON values; its `sha256`, and of `arch`, `embedding_dim`,
                `image_size` and `preprocessing` what it states, must be the cache's. None: the cache's own will do.
            records: `fingerprint` and `num_records` must be the cache's; a `name` is only shown.
            views: those that training will ask for.

        Raises:
            StoreError: something differs; every mismatch is named, with both values.
            ValueError: `teacher` states no sha256, `records` no fingerprint or number, or they are no JSON.
        """
        if problems := _mismatches(self.header, teacher=teacher, records=records, views=views):
            listed = "\n  ".join(problems)
            raise StoreError(
                f"the cache at {self.folder} does not fit:\n  {listed}\n"
                f"Name another folder, or remove this one, and rebuild with: {KIND.command}"
            )


class CacheWriter(BlockWriter[CacheHeader]):
    """Writes the embeddings of a cache block by block; see `BlockWriter`."""

    def write_block(self, block: int, rows: npt.NDArray[np.float16]) -> None:
        """Store the embeddings of one block, and mark it as done when they are on disk.

        Args:
            block: in [0, header.num_blocks). Two threads must not write the same one at the same time.
            rows: (n, V, D) float16, unit vectors, of the records `header.block_record_range(block)` in that order.

        Raises:
            IndexError: no such block.
            ValueError: wrong shape or dtype, or the writer is closed.
            StoreWriteError: a row is not finite or its norm is off 1 by more than 5e-3 (record and view are named), or
                the disk refused the bytes. The block is then not marked as done.
        """
        self._check_open()
        ids = self.header.block_record_range(block)
        wanted = (len(ids), self.header.num_views, self.header.embedding_dim)
        if not isinstance(rows, np.ndarray) or rows.shape != wanted or rows.dtype != np.float16:
            found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise ValueError(f"block {block} needs float16 {wanted}, got {found}")
        stored = np.ascontiguousarray(rows, dtype="<f2").reshape(-1, self.header.embedding_dim)  # (n * V, D)
        self._check_unit_rows(stored, ids.start)
        self._write(block, [memoryview(stored.reshape(-1).view(np.uint8))])  # type: ignore[arg-type]  # a buffer

    def _check_unit_rows(self, rows: npt.NDArray[np.float16], first_id: int) -> None:
        for start in range(0, len(rows), _CHECKED_ROWS):
            wide = rows[start : start + _CHECKED_ROWS].astype(np.float32)
            norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
            bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))  # NaN is not close to 1 either
            if bad.size:
                record, column = divmod(start + int(bad[0]), self.header.num_views)
                norm = norms[bad[0]]
                what = f"has norm {norm:.6g}" if np.isfinite(norm) else "holds values that are not finite"
                raise StoreWriteError(
                    f"{self.folder}: the embedding of record {first_id + record}, view {column} "
                    f"({self.header.views[column]}) {what}; a cache holds unit vectors (norm 1 to {NORM_TOLERANCE:g})"
                )


def _mismatches(
    header: CacheHeader, *, teacher: Mapping[str, Any] | None, records: Mapping[str, Any], views: Sequence[CacheView]
) -> list[str]:
    """One text for each way in which a cache is not the one that training asks for; see `TeacherCache.require`.

    Raises:
        ValueError: `teacher` states no sha256, `records` no fingerprint or number, or they are no JSON.
    """
    found = [] if teacher is None else _teacher_mismatches(header.teacher, _plain("teacher", teacher, ("sha256",)))
    wanted = _plain("records", records, ("fingerprint", "num_records"))
    if refusal := records_refusal(header.records, wanted, "was made of"):
        found.append(refusal)
    return found + _view_mismatches(header.views, views)


def _plain(name: str, value: Mapping[str, Any], needed: Sequence[str]) -> dict[str, JSON]:
    plain = plain_json(value)
    if not isinstance(plain, dict) or not set(needed) <= set(plain):
        raise ValueError(f"{name} must be an object with {' and '.join(needed)}, got {value!r}")
    return plain


def _teacher_mismatches(stored: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> list[str]:
    if stored["sha256"] != wanted["sha256"]:
        return [
            f"another teacher: it was written by {named(stored)} with sha256 {stored['sha256']}, "
            f"this run loads {named(wanted)} with sha256 {wanted['sha256']}. Embeddings of two teachers must not mix"
        ]
    found = []
    if lines := _field_differences(stored, wanted, _PREPROCESSING):
        found.append(f"other preprocessing: the same weights saw their images another way; {lines}")
    if lines := _field_differences(stored, wanted, _NETWORK):
        found.append(f"another network: the same weights were read as another network; {lines}")
    return found


def _field_differences(stored: Mapping[str, JSON], wanted: Mapping[str, JSON], names: Sequence[str]) -> str:
    lines: list[str] = []
    for name in names:
        if name in wanted:
            lines += differences(name, stored.get(name), wanted[name])
    return ", ".join(lines)


def _view_mismatches(stored: Sequence[CacheView], wanted: Sequence[CacheView]) -> list[str]:
    missing = [view for view in dict.fromkeys(wanted) if view not in stored]
    found = []
    if PLAIN in missing:
        found.append(f"missing view plain: the recipe shows images as they are, and this cache holds {_listed(stored)}")
    if MIRRORED in missing:
        found.append(
            "missing view mirrored: the recipe mirrors images (data.mirror_probability > 0) and this cache holds "
            f"{_listed(stored)}"
        )
    augmented = [view for view in missing if view.kind == "augmented"]
    if augmented:
        count = "" if len(augmented) == 1 else f" (and {len(augmented) - 1} more)"
        found.append(f"missing {augmented[0]}{count}: the recipe augments images, and {_why_not(stored, augmented[0])}")
    return found


def _why_not(stored: Sequence[CacheView], wanted: CacheView) -> str:
    """What the cache holds in place of an augmented view."""
    augmented = [view for view in stored if view.kind == "augmented"]
    same_policy = [view for view in augmented if view.policy == wanted.policy]
    if not augmented:
        return f"this cache holds {_listed(stored)}"
    if not same_policy:
        return f"this cache's were augmented in another way: {augmented[0]}"
    same_seed = sorted(view.view for view in same_policy if view.seed == wanted.seed and view.view is not None)
    if not same_seed:
        return f"this cache's have another seed: {same_policy[0].seed}"
    return f"this cache holds {len(same_seed)} views of that seed, {same_seed[0]} to {same_seed[-1]}"


def _listed(views: Sequence[CacheView]) -> str:
    kinds = list(dict.fromkeys(view.kind for view in views))
    return f"{' and '.join(kinds)} views only"
