"""Images of a record file that are there twice, byte for byte: once too often, or under two identities."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.loaders.json_text import JSON
from adadistill.loaders.records.image_records import ImageRecords


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images whose bytes are those of an earlier one."""

    groups: tuple[tuple[int, ...], ...]
    """Record ids with the same bytes, ascending; only groups of two and more."""
    across_identities: int
    """Groups whose images have different labels: one of them is wrong."""

    @property
    def images(self) -> int:
        """Images that could be left out."""
        return sum(len(group) - 1 for group in self.groups)

    def to_json(self) -> dict[str, JSON]:
        """JSON values."""
        groups: list[JSON] = [list(group) for group in self.groups]
        return {"images": self.images, "groups": groups, "across_identities": self.across_identities}


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
