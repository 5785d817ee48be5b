"""What the labels of a set say, compared with what data.num_classes, `property` and identity records claim of them.

Why: every claim sizes the class centres, and a wrong one trains without a word: a `property` copied from another set,
labels from 1, a list that was not sorted by identity. A label that equals the count is met at some random step.

Labels lie in the beginnings of the records, so to read all is to touch every record: a million of them take half a
second to a second in the page cache, and six on a disk that reads 0.7 GB/s. A launch therefore reads some evenly spread
ones and the end, and then all the others in order for as long as `LAUNCH_SECONDS`; tools read all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.records.image_records import HEADER_RECORD, ImageRecords
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT

LAUNCH_SECONDS = 10.0
_LARGEST = "the largest label"
_SPREAD = 1024
_CHUNK = 1 << 16
_RARE = 4
"""Where at most one in so many claimed identities appears, the claim is taken for another set's."""

Int64Array = npt.NDArray[np.int64]


class LabelClaimError(ValueError):
    """Labels are not what is claimed of them. The message names a record, or counts, and says what to set."""


@dataclass(slots=True)
class LabelCheck:
    """What was found, a sentence each."""

    said: str = ""
    """Which labels there are."""
    beyond: str = ""
    """A whole number that is no class, by the first record that has one."""
    odd: str = ""
    """What is no whole number, or negative, by its first record: damage rather than a claim."""
    outside: int = 0
    """Records of both kinds."""
    refused: list[str] = field(default_factory=list)
    """What else training on class centres should not begin with."""
    warnings: list[str] = field(default_factory=list)


def check_labels(
    records: ImageSource,
    labels: Int64Array | None = None,
    *,
    stated: int | None = None,
    needs_several: bool = True,
    seconds: float | None = None,
) -> LabelCheck:
    """Compare labels with claims.

    Args:
        records: opened with `stated`.
        labels: (N,) of these records, -1 for none, where something else holds them; else they are read.
        stated: data.num_classes of a recipe. Whoever states it may have a subset in which few identities appear.
        needs_several: one identity alone is refused, and not only told.
        seconds: most that reading may take, after a sample; None reads all.

    Raises:
        RecordError, ValueError: the records cannot be opened.
    """
    found = LabelCheck()
    claims = records.claims() if isinstance(records, ImageRecords) else {}
    count, source = records.num_classes, next(iter(claims), _LARGEST)
    file = records if labels is None and isinstance(records, ImageRecords) else None
    values: npt.NDArray[Any]
    if file is not None:
        values, read, complete = _read(file, seconds)
    else:
        values = records.labels() if labels is None else labels
        read, complete = values != -1, True
    whole = read & (values >= 0) & (values < MAX_EXACT_FLOAT)  # NaN fails
    if values.dtype.kind == "f":
        whole &= values == np.floor(values)
    odd, beyond = np.flatnonzero(read & ~whole), np.flatnonzero(whole & (values >= count))
    found.outside = len(odd) + len(beyond)
    if len(odd):
        found.odd = f"{records.where(odd.item(0))}: label {values[odd[0]]!s} is no whole number in [0, {count})"
    if not whole.any():
        return found
    known = np.where(whole, values, -1).astype(np.int64)
    seen = np.zeros(int(known.max()) + 1, np.bool_)
    seen[known[whole]] = True
    present = np.flatnonzero(seen)
    first, last = present.item(0), present.item(-1)
    where = "" if complete else f" in {int(read.sum()):,} of {len(read):,} records"
    found.said = f"{first:,} to {last:,}, {len(present):,} identities{where}"
    ranges = "" if file is None else _against_ranges(file, known)
    misled = bool(ranges) and source == HEADER_RECORD and complete and count != len(present)
    if len(beyond):
        why = "labels begin at 1?" if (first, last) == (1, count) else f"labels go up to {last:,}."
        found.beyond = (
            f"{records.where(beyond.item(0))}: label {known[beyond[0]]} with {count:,} identities: {why} The number is "
            f"from {source}; set data.num_classes={last + 1}, or correct what is wrong"
        )
    elif len(present) == 1:
        (found.refused if needs_several else found.warnings).append(
            f"all images{where} have label {first}: one identity, and a margin softmax learns nothing from one. Add "
            "identities, or learn from a teacher alone (centres.kind=none)"
        )
    elif misled:
        found.refused.append(f"{ranges}, and its {count:,} identities are none; set data.num_classes={last + 1}")
    elif (complete and len(present) < count) or _RARE * (last + 1) <= count:
        absent = count - len(present)
        text = f"labels{where} are " if where else "labels "
        text += f"{first:,} to {last:,}, "
        if complete:
            text += f"{absent:,} identit{'ies never appear' if absent > 1 else 'y never appears'} (the first: "
            text += f"{last + 1 if seen.all() else int(np.argmin(seen)):,}); "
        text += f"the number of {count:,} is from {source}" + ("; labels begin at 1?" if first == 1 else "")
        rare = stated is None and _RARE * (len(present) if complete else last + 1) <= count
        (found.refused if rare else found.warnings).append(text + (_advice(count, last, source) if rare else ""))
    if ranges and not misled:
        found.warnings.append(f"{ranges}; labels are used")
    return found


def _advice(count: int, last: int, source: str) -> str:
    anew = "count labels anew (adadistill data split --identities --fractions 1 --names all --relabel)"
    if source == _LARGEST:
        return f". To have so many class centres, set data.num_classes={count}; else {anew}"
    return (
        f". Another set's number? Set data.num_classes={last + 1} if there are no more, {count} if this is a subset "
        f"that keeps its labels, or {anew}"
    )


def _read(records: ImageRecords, seconds: float | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], bool]:
    """(N,) labels as stored, which of them are known, and whether all were looked at."""
    total = len(records)
    values, read = np.full(total, np.nan, np.float32), np.zeros(total, np.bool_)
    until = time.monotonic() + (np.inf if seconds is None else seconds)
    spread = np.unique(np.linspace(0, total - 1, _SPREAD).astype(np.int64))
    values[spread], read[spread] = records.stored_labels(spread)
    starts = range(0, total, _CHUNK)
    for start in (starts[-1], *starts[:-1]):  # the end first: of sorted records it has the largest label
        if time.monotonic() > until:
            return values, read, False
        some = np.arange(start, min(start + _CHUNK, total))
        values[some], read[some] = records.stored_labels(some)
    return values, read, True


def _against_ranges(records: ImageRecords, labels: Int64Array) -> str:
    """What of identity records, which give the keys of each identity's images, the labels contradict; else nothing."""
    ranges = records.index.identity_ranges(records.file)
    if not len(ranges):
        return ""
    ids = np.flatnonzero(labels >= 0)
    ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]  # empty ones before others
    keys, own = records.index.keys[ids], labels[ids]
    place = np.searchsorted(ranges[:, 0], keys, side="right") - 1
    inside = (place >= 0) & (keys < ranges[place, 1])
    if not inside.all():
        return f"{records.where(ids.item(int(np.argmin(inside))))} is in the range of no identity record"
    label_of = np.full(len(ranges), -1, np.int64)
    label_of[place[::-1]] = own[::-1]  # the first image's
    other = np.flatnonzero(own != label_of[place])
    if len(other):
        wanted = label_of[place[other[0]]]
        return (
            f"{records.where(ids.item(other.item(0)))} has label {own[other[0]]}, and its identity record begins with "
            f"an image of label {wanted}: the list was not sorted by identity"
        )
    held, times = np.unique(label_of[label_of >= 0], return_counts=True)
    if len(held) and times.max() > 1:
        return f"label {held[np.argmax(times)]} has {times.max()} identity records: the list was not sorted by identity"
    return ""
