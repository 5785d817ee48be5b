"""Makes a cache of embeddings that somebody else computed, after checking that they belong to the records.

A file of rows says nothing of the order in which its maker read the images; shuffled or shifted rows still train a
student, towards other people's faces. Rows that belong show it in two means: two images of one identity are more alike
than images of two, and two views of one image more than two images of one identity. Pairs are chosen without chance.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.core.teachers import record_binding
from adadistill.core.teachers.cache_build import CacheBuildResult
from adadistill.core.teachers.cache_views import VIEWS, ViewChoice
from adadistill.core.teachers.face_pairs import couples_of, evenly_spread
from adadistill.core.teachers.interface import file_sha256
from adadistill.core.teachers.knows_people import KNOWN_GAP
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.loaders.block_store.teacher_cache import CacheHeader, CacheWriter, TeacherCache
from adadistill.loaders.block_store.writer import BlockProgress
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

DEFAULT_MARGIN = KNOWN_GAP

_BLOCK_RECORDS = 4096
"""8 MiB of float16 in two views of 512."""
_SAMPLED_PAIRS = 20_000
"""The means are then known to 0.002, and reading the rows takes a second."""
_DTYPES = ("float16", "float32", "float64")


class ImportRefusedError(ValueError):
    """A file of embeddings cannot be what it is said to be; the text says why, with the numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCheck:
    """Whether rows belong to the records, judged by labels: mean cosines over `pairs` pairs."""

    pairs: int
    same: float
    """First and last image of an identity."""
    shuffled: float
    """First image of an identity, last image of another one."""


def import_embeddings(
    source: Path,
    folder: Path,
    *,
    records: ImageSource,
    stop: StopSignal,
    views: ViewChoice | None = None,
    margin: float = DEFAULT_MARGIN,
    label_check: bool = True,
    name: str | None = None,
    image_size: int = 112,
    report: Callable[[BlockProgress], None] | None = None,
) -> CacheBuildResult:
    """Turn a file of embeddings into a cache that is bound to its records. In one process.

    Nothing is written before every check has passed. A call that was stopped goes on where it was.

    Args:
        source: `.npy`, (N, V, D) or (N, D) float16, float32 or float64, row = record id, view 0 as stored, view 1
            mirrored. Read as a stream; rows are normalised in float64 and rounded once.
        views: `plain` drops a mirrored view; None keeps what there is.
        margin: cosine by which pairs of one identity must beat pairs of two.
        label_check: False leaves the comparison of identities out, and the cache says so.
        name: what the cache calls the teacher; the file's name where left out.
        image_size: side of the images that the teacher saw, in pixels; recorded.
        report: called after each block.

    Raises:
        ImportRefusedError: the rows are no embeddings, or do not belong to the records or the views to each other.
        StopRequested: `stop` was set before all was done.
        StoreError, RecordError, OSError: the cache cannot be written, or the records or the file cannot be read.
    """
    if not 0.0 <= margin <= 2.0:
        raise ValueError(f"the margin is a difference of cosines, in [0, 2], got {margin}")
    rows = _chosen_views(open_rows(source), source, views)
    if len(rows) != len(records):
        raise ImportRefusedError(
            f"{source} holds rows of {len(rows)} records, {records.path} has {len(records)} image records; rows must "
            "be of the very same images, row = record id (header and identity records of insightface are no images)"
        )
    _check_every_row(rows, source, records, stop)
    found = check_labels(rows, records, source=source, margin=margin) if label_check else None
    if rows.shape[1] == 2:
        _check_views(rows, source, found, margin)
    teacher = {
        "kind": "imported", "name": name or source.name, "arch": None, "preprocessing": None,
        "sha256": file_sha256(source), "embedding_dim": rows.shape[2], "image_size": image_size,
    }  # fmt: skip
    header = CacheHeader(
        num_records=len(rows),
        embedding_dim=rows.shape[2],
        views=VIEWS["both" if rows.shape[1] == 2 else "plain"],
        block_records=_BLOCK_RECORDS,
        teacher=teacher,
        records=record_binding(records),
        built={"by": "import", "dtype": rows.dtype.name, "label_check": _as_recorded(found, margin)},
    )
    return _write(rows, header, folder, stop, report)


def open_rows(path: Path) -> npt.NDArray[np.floating]:
    """(N, V, D) float16, float32 or float64 rows of an `.npy` file, mapped and read-only; (N, D) files have V = 1.

    Raises ImportRefusedError where it is none, OSError where it cannot be read.
    """
    try:
        rows = open_npy(path)
    except NpyFileError as error:
        raise ImportRefusedError(f"{path} is no .npy file of embeddings: {error}") from None
    if rows.dtype.newbyteorder("=").name not in _DTYPES:
        raise ImportRefusedError(f"{path} holds {rows.dtype}; embeddings are {', '.join(_DTYPES)}")
    if rows.ndim not in (2, 3):
        raise ImportRefusedError(f"{path} has shape {rows.shape}; embeddings are (N, V, D) or (N, D)")
    return rows if rows.ndim == 3 else rows[:, None]


def check_labels(
    rows: npt.NDArray[np.floating], records: ImageSource, *, source: Path, margin: float = DEFAULT_MARGIN
) -> LabelCheck:
    """Refuse (N, V, D) rows whose view 0 does not tell the records' identities apart by the margin.

    Raises ImportRefusedError, also where there are fewer than two identities with two images.
    """
    couples, whole = couples_of(records.labels(), _SAMPLED_PAIRS)
    first, last = couples[:whole].T  # first and last image of each identity
    if len(first) < 2:
        raise ImportRefusedError(
            f"{records.path} has {len(first)} identities of two images, two are needed to tell whether rows belong to "
            "their records. Pass --no-label-check to import them unchecked; the cache will say so"
        )
    unit_first, unit_last = _unit_rows(rows[first, 0]), _unit_rows(rows[last, 0])
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(first))
    others = np.roll(order, 1)  # one cycle through all identities: none is paired with itself
    found = LabelCheck(
        pairs=len(first),
        same=float(np.einsum("pd,pd->p", unit_first, unit_last).mean()),
        shuffled=float(np.einsum("pd,pd->p", unit_first[order], unit_last[others]).mean()),
    )
    logger.info("labels: cosine %.3f within, %.3f across identities, %d pairs", found.same, found.shuffled, found.pairs)
    if not found.same >= found.shuffled + margin:
        raise ImportRefusedError(
            f"the rows of {source} do not belong to the records of {records.path}: two images of one identity have a "
            f"mean cosine of {found.same:.4f}, with shuffled labels it is {found.shuffled:.4f} ({found.pairs} pairs). "
            f"The margin to beat is {margin:g}. Rows that are shifted or in another order look like this; "
            "row = record id, the ordinal by byte offset among the image records"
        )
    return found


def _check_views(rows: npt.NDArray[np.floating], source: Path, labels: LabelCheck | None, margin: float) -> None:
    """Refuse a second view that is not of the same images as the first."""
    chosen = evenly_spread(np.arange(len(rows)), _SAMPLED_PAIRS)
    plain, mirrored = _unit_rows(rows[chosen, 0]), _unit_rows(rows[chosen, 1])
    alike = float(np.einsum("pd,pd->p", plain, mirrored).mean())
    if labels is not None:
        least, what = labels.same, "two images of one identity"
    else:
        least = float(np.einsum("pd,pd->p", plain, np.roll(mirrored, 1, axis=0)).mean()) + margin
        what = f"those of two records, and {margin:g} more"
    logger.info("views: cosine %.3f between the two views of an image, %d images", alike, len(chosen))
    if not alike > least:
        raise ImportRefusedError(
            f"the two views of {source} do not belong to the same images: view 0 and view 1 of a record have a mean "
            f"cosine of {alike:.4f}, which does not beat {what} ({least:.4f}). View 1 must be of the same record, "
            "mirrored; pass --views plain to leave it out"
        )


def _check_every_row(rows: npt.NDArray[np.floating], source: Path, records: ImageSource, stop: StopSignal) -> None:
    """Read all rows once and name the first without a direction, before anything is written."""
    for start in range(0, len(rows), _BLOCK_RECORDS):
        if stop.requested:
            raise StopRequested(stop.exit_code)
        norms = np.linalg.norm(rows[start : start + _BLOCK_RECORDS].astype(np.float64), axis=2)  # (n, V)
        bad = np.argwhere(~(np.isfinite(norms) & (norms > 0.0)))
        if len(bad):
            row, view = bad[0].tolist()
            where = records.where(start + row)
            raise ImportRefusedError(
                f"{source}: the first row without a direction is that of {where}, view {view}: its norm is "
                f"{norms[row, view]}. In the {len(norms)} records from {start} there are {len(bad)} such rows"
            )


def _write(
    rows: npt.NDArray[np.floating],
    header: CacheHeader,
    folder: Path,
    stop: StopSignal,
    report: Callable[[BlockProgress], None] | None,
) -> CacheBuildResult:
    images, began = 0, time.perf_counter()
    with CacheWriter(folder, header, main=True) as writer:
        pending = writer.pending().tolist()
        for done, block in enumerate(pending):
            if stop.requested:
                left = len(pending) - done
                logger.warning("%s: stopped with %d blocks left to do; the same command goes on", folder, left)
                raise StopRequested(stop.exit_code)
            ids = header.block_record_range(block)
            writer.write_block(block, _unit_rows(rows[ids.start : ids.stop]).astype(np.float16))
            images += len(ids)
            if report is not None:
                report(BlockProgress(blocks=done + 1, of_blocks=len(pending), images=images))
    return CacheBuildResult(
        folder=folder,
        header=header,
        digest=TeacherCache(folder).digest(),
        images=images,
        seconds=time.perf_counter() - began,
    )


def _chosen_views(rows: npt.NDArray[np.floating], source: Path, views: ViewChoice | None) -> npt.NDArray[np.floating]:
    """(N, 1 or 2, D): the views to keep."""
    held = rows.shape[1]
    if views == "plain":
        return rows[:, :1]
    if held > 2:
        raise ImportRefusedError(
            f"{source} holds {held} views, and only the first two have a meaning (as stored, mirrored); "
            "pass --views plain to keep the first"
        )
    if views == "both" and held == 1:
        raise ImportRefusedError(f"{source} holds one view of each record, --views both asks for two")
    return rows


def _unit_rows(rows: npt.NDArray[np.floating]) -> Floats:
    """Rows (..., D) of any float type, normalised in float64."""
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def _as_recorded(found: LabelCheck | None, margin: float) -> dict[str, Any] | str:
    """Rounded, so that another machine's last bit does not make another header."""
    if found is None:
        return "left out"
    return {key: round(value, 4) for key, value in asdict(found).items()} | {"margin": margin}
