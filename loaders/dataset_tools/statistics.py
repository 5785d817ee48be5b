"""What a record file holds, in numbers: identities, sizes, kinds of JPEG, what copies take, what is there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.loaders.json_text import JSON
from adadistill.loaders.pixels import ImageDecodeError, image_header
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.label_check import LabelCheck, LabelClaimError, check_labels

BAR_WIDTH = 40
_EMBEDDING_BYTES = 2 * 512


@dataclass(frozen=True, slots=True)
class Bin:
    """Identities with `first` to `last` images, both included."""

    first: int
    last: int
    identities: int
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordStatistics:
    """Counts over all labels, and over the headers of a sample of images."""

    images: int
    identities: int
    """Number that the data set states."""
    empty_identities: int
    """Identities that are stated and have no image."""
    counts: npt.NDArray[np.int64]
    """(C,) images of each identity."""
    images_per_identity: dict[str, float]
    """min, quartiles, max over identities with images; singletons: identities of one image."""
    bytes_per_image: dict[str, float]
    """min, median, p95, max, mean of the encoded bodies, frames included."""
    sampled: int
    """Images whose headers were read."""
    kinds: dict[str, int]
    """Images of the sample by kind, such as `jpeg YCbCr 420 112x112`; `damaged header` among them."""
    sorted_by_identity: bool
    """As insightface distributes its files: a reader that shuffles within a window sees few identities at once."""
    problems: tuple[str, ...]
    """Where property file, identity records, labels and the recipe do not agree."""

    def stored_bytes(self) -> dict[str, int]:
        """What copies of the data take: the packed layouts, and a teacher cache of one and of two views of 512-d."""
        return {
            "packed planes": 18_816 * self.images,
            "packed rgb": 37_632 * self.images,
            "teacher cache, 1 view": _EMBEDDING_BYTES * self.images,
            "teacher cache, 2 views": 2 * _EMBEDDING_BYTES * self.images,
        }

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name != "counts"},
            "problems": list(self.problems),
            "stored_bytes": self.stored_bytes(),
            "histogram": [[one.first, one.last, one.identities, one.images] for one in histogram(self.counts)],
        }


def record_statistics(
    records: ImageRecords, *, sample: int = 100_000, image_size: int | None = None
) -> RecordStatistics:
    """Count a record file.

    Args:
        sample: most images whose headers are read, evenly spread.
        image_size: what a recipe says, to be compared; its number of identities is what records were opened with.

    Raises:
        LabelClaimError: labels are no classes.
        RecordError: a label cannot be read.
    """
    found = check_labels(records, needs_several=False)
    if found.beyond:
        raise LabelClaimError(found.beyond)
    labels = records.labels()
    counts = np.bincount(labels, minlength=records.num_classes)
    held = counts[counts > 0]
    sizes = (records.index.limits - records.index.offsets).astype(np.float64)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(sample, len(records))).astype(np.int64))
    kinds = Counter(_kind(records, record_id) for record_id in chosen.tolist())
    return RecordStatistics(
        images=len(records),
        identities=records.num_classes,
        empty_identities=int((counts == 0).sum()),
        counts=counts,
        images_per_identity={
            "min": int(held.min()),
            "lower_quartile": float(np.quantile(held, 0.25)),
            "median": float(np.median(held)),
            "upper_quartile": float(np.quantile(held, 0.75)),
            "max": int(held.max()),
            "singletons": int((held == 1).sum()),
        },
        bytes_per_image={
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "p95": float(np.quantile(sizes, 0.95)),
            "max": int(sizes.max()),
            "mean": float(sizes.mean()),
        },
        sampled=len(chosen),
        kinds=dict(kinds.most_common()),
        sorted_by_identity=bool((np.diff(labels) >= 0).all()) and len(held) > 1,
        problems=tuple(_problems(records, found, image_size, kinds)),
    )


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


def _problems(records: ImageRecords, found: LabelCheck, image_size: int | None, kinds: Counter[str]) -> list[str]:
    claims = records.claims()
    problems = [*found.refused, *found.warnings]
    if len(set(claims.values())) > 1:
        problems.append("the number of identities is " + ", ".join(f"{n} by {name}" for name, n in claims.items()))
    others = sum(count for kind, count in kinds.items() if not kind.endswith(f"{image_size}x{image_size}"))
    if image_size is not None and others:
        size = f"{image_size}x{image_size}"
        problems.append(f"the recipe wants {size} pixels, {others} of the sampled images are of another size")
    return problems


def _kind(records: ImageRecords, record_id: int) -> str:
    try:
        header = image_header(records.read(record_id).body, where=records.where(record_id))
    except ImageDecodeError:
        return "damaged header"
    return f"{header.coding} {header.height}x{header.width}"


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
