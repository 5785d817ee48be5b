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

from adadistill.loaders.block_store.cache_binding import mismatches
from adadistill.loaders.block_store.cache_header import KIND, MIRRORED, PLAIN, CacheHeader, CacheView
from adadistill.loaders.block_store.errors import StoreError, StoreWriteError
from adadistill.loaders.block_store.reader import BlockReader, checked_ids, checked_out, take_rows
from adadistill.loaders.block_store.writer import BlockWriter

__all__ = ["MIRRORED", "PLAIN", "CacheHeader", "CacheView", "CacheWriter", "TeacherCache"]

NORM_TOLERANCE = 5e-3
"""How far from 1 the norm of a row may be. Rounding a unit vector to float16 moves it by less than 1e-3."""

_CHECKED_ROWS = 2048  # rows widened to float32 at a time


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
        if problems := mismatches(self.header, teacher=teacher, records=records, views=views):
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
