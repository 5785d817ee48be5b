"""How many images each identity has: the shape of a set, its thin end, and images that are there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.loaders.records.image_records import ImageRecords

BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Bin:
    """Identities with `first` to `last` images, both included."""

    first: int
    last: int
    identities: int
    images: int


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images whose bytes are those of an earlier one."""

    groups: tuple[tuple[int, ...], ...]
    """Record ids with the same bytes, ascending; only groups of two and more."""
    across_identities: int
    """Groups whose images have different labels: one of them is wrong."""

    @property
    def images(self) -> int:
        """That could be left out."""
        return sum(len(group) - 1 for group in self.groups)


def images_per_identity(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    """(C,) images of each identity; 0 where there is none."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def histogram(counts: npt.NDArray[np.int64]) -> list[Bin]:
    """Identities by their number of images, in bins that double: 0, 1, 2-3, 4-7 ... up to the largest."""
    bins: list[Bin] = []
    first, width = 0, 1
    while first <= int(counts.max(initial=0)):
        inside = counts[(counts >= first) & (counts < first + width)]
        if first or len(inside):
            bins.append(Bin(first, first + width - 1, len(inside), int(inside.sum())))
        first, width = first + width, width if first == 0 else 2 * width
    return bins


def bars(bins: Sequence[Bin]) -> list[str]:
    """The bins as lines of text, each with a bar in proportion to its identities."""
    names = [str(one.first) if one.first == one.last else f"{one.first}-{one.last}" for one in bins]
    width, most = max(map(len, names), default=0), max((one.identities for one in bins), default=0)
    lines = []
    for name, one in zip(names, bins, strict=True):
        bar = "#" * -(-BAR_WIDTH * one.identities // most) if most else ""
        lines.append(f"{name:>{width}} images  {one.identities:>9} identities  {one.images:>11} images  {bar}".rstrip())
    return lines


def identities_below(counts: npt.NDArray[np.int64], least: int) -> npt.NDArray[np.int64]:
    """Labels of the identities with fewer than `least` images, those without any included."""
    return np.flatnonzero(counts < least)


def find_duplicates(records: ImageRecords, progress: Progress | None = None) -> Duplicates:
    """Compare the bytes of all images, by 16 bytes of their sha256. Reads the whole file.

    Memory: 24 bytes an image, whatever its size.

    Raises:
        RecordError: a record is damaged.
    """
    total = len(records)
    digests = np.empty((total, 2), np.uint64)
    labels = np.empty(total, np.int64)
    for record_id in range(total):
        encoded = records.read(record_id)
        digests[record_id] = np.frombuffer(hashlib.sha256(encoded.body).digest()[:16], np.uint64)
        labels[record_id] = encoded.label
        if progress is not None:
            progress(record_id + 1, total)
    order = np.lexsort((np.arange(total), digests[:, 1], digests[:, 0]))
    starts_group = np.ones(total, np.bool_)
    starts_group[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    bounds = np.append(np.flatnonzero(starts_group), total)
    sizes = np.diff(bounds)
    groups = [
        tuple(order[start : start + size].tolist())
        for start, size in zip(bounds[:-1][sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True)
    ]
    across = sum(len(np.unique(labels[list(group)])) > 1 for group in groups)
    return Duplicates(tuple(sorted(groups)), across)
