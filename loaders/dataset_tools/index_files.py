"""The two kinds of `.idx` of a record file: of its images alone, and of every record, made anew by a walk.

DALI's own reader (`fn.readers.mxnet`), as insightface and others use it, takes every line of an `.idx` for an image and
hands insightface's header and identity records to the decoder, which fails. `train.images.idx` lists the images only
and makes the same file usable as it is. A complete `.idx` can be lost or damaged; the records say enough to make it
again: insightface's tools keep each record's key in its image header, and its header record tells which keys are whose.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import atomic_file
from adadistill.loaders.records.record_index import load_record_index, write_record_index
from adadistill.loaders.records.recordio import RecordError, RecordFile

KeySource: TypeAlias = Literal["ids", "header record", "ordinals"]


@dataclass(frozen=True, slots=True)
class IndexWritten:
    """An `.idx` that was written."""

    path: Path
    lines: int
    images: int
    left_out: int
    """Header and identity records that it does not list."""
    keys_from: KeySource | Literal["idx", "scan"]
    """Where the keys come from: an `.idx`, the image headers, insightface's header record, the order of the file; scan:
    as training takes them without an `.idx`."""


def write_image_index(records: Path, index: Path | None, target: Path, *, overwrite: bool = False) -> IndexWritten:
    """Write an `.idx` of the images alone, by offset, for readers that take every line for an image.

    Args:
        index: the `.idx` to go by; None takes the one beside the records, or a scan.
        target: for example `train.images.idx`.

    Raises:
        ValueError: the target is the record file or its own complete `.idx`, or there is no image.
        FileExistsError: the target exists and `overwrite` is false.
        RecordError: the index cannot be trusted, and a frame is damaged.
    """
    own = {records.resolve(), (index or records.with_suffix(".idx")).resolve()}
    if target.resolve() in own:
        raise ValueError(f"{target} is what is read here, and stays; name another file, as train.images.idx")
    _refuse_to_replace(target, overwrite)
    found = load_record_index(records, index)
    if not len(found):
        raise ValueError(f"{records} holds no image records")
    write_record_index(found, target)
    return IndexWritten(
        path=target,
        lines=len(found),
        images=len(found),
        left_out=found.num_records - len(found),
        keys_from=found.source,
    )


def rebuild_index(records: Path, target: Path, *, overwrite: bool = False) -> IndexWritten:
    """Write an `.idx` of all records, by key, from a walk through the file; an `.idx` that there is is not read.

    Raises:
        FileExistsError: the target exists and `overwrite` is false.
        RecordError: a frame is damaged: what lies behind it cannot be found.
    """
    file = RecordFile(records)
    if target.resolve() == records.resolve():
        raise ValueError(f"{target} is the record file; name an .idx")
    _refuse_to_replace(target, overwrite)
    starts, ids, bodiless = array("q"), array("Q"), array("b")
    for record in file.scan():
        starts.append(record.offset)
        ids.append(record.id)
        bodiless.append(record.holds_no_image)
    offsets, without_image = np.array(starts, np.int64), np.array(bodiless, np.bool_)
    keys, source = _recovered_keys(file, offsets, np.array(ids, np.uint64), without_image)
    order = np.argsort(keys, kind="stable")
    with atomic_file(target) as out:
        out.writelines(b"%d\t%d\n" % line for line in zip(keys[order].tolist(), offsets[order].tolist(), strict=True))
    images = int((~without_image).sum())
    return IndexWritten(path=target, lines=len(keys), images=images, left_out=0, keys_from=source)


def _recovered_keys(
    file: RecordFile,
    offsets: npt.NDArray[np.int64],
    ids: npt.NDArray[np.uint64],
    without_image: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], KeySource]:
    """(N,) keys of all records in file order."""
    by_header = _keys_by_header(file, offsets, without_image)
    distinct = len(np.unique(ids)) == len(ids) and (not len(ids) or int(ids.max()) < 1 << 63)
    if distinct:
        keys = ids.astype(np.int64)
        if by_header is None or np.array_equal(keys[without_image], by_header[without_image]):
            return keys, "ids"
    if by_header is not None:
        return by_header, "header record"
    return np.arange(len(offsets), dtype=np.int64), "ordinals"


def _keys_by_header(
    file: RecordFile, offsets: npt.NDArray[np.int64], without_image: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64] | None:
    """Keys as insightface gives them: images 1 .. H0-1, identities H0 .. H1-1, each in file order; header 0.

    None where no record without an image says [H0, H1] for as many images and identities as there are.
    """
    places = np.flatnonzero(without_image)
    images = len(offsets) - len(places)
    bounds = (float(images + 1), float(images + len(places)))
    for header in (*places[-1:], *places[:1]):  # it is written last; some tools write it first
        try:
            labels = file.read(int(offsets[header])).labels
        except RecordError:
            continue
        if tuple(labels) == bounds:
            keys = np.zeros(len(offsets), np.int64)
            keys[~without_image] = np.arange(1, images + 1)
            identities = places[places != header]
            keys[identities] = np.arange(images + 1, images + 1 + len(identities))
            return keys
    return None


def _refuse_to_replace(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces it")
