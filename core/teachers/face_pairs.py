"""Pairs of faces that a teacher is tried on: couples of records with their strangers, or a verification set.

Everything is chosen without chance, so that equal files give equal pairs. Of large record files evenly spread windows
are looked at; damaged records are left out, as training names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.teachers.interface import TeacherError
from adadistill.loaders.evaluation_sets.verification_pairs import (
    VerificationPairs,
    decode_pairs,
    fit_square,
    read_verification_set,
)
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.records.damaged_records import may_be_skipped
from adadistill.loaders.records.image_source import ImageSource

LEAST_PAIRS: Final = 20
"""Same pairs, and different pairs, that d' needs: a variance of fewer is a guess."""
FEW_COUPLES: Final = 64
"""Of a network's first look: 128 images take 8 s of an IR-50 on a CPU core that embeds 16 images/s."""

_STRANGERS: Final = 8  # raises the z of a colour check by half over one stranger for each face, and costs no embedding
_WINDOW: Final = 256
_SAMPLED_RECORDS: Final = (1 << 12, 1 << 14, 1 << 16)

Integers: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class FacePairs:
    """U couples of images, and P pairs among them to compare."""

    images_u8: Tensor
    """(2U, H, W, 3) uint8 RGB; images 2u and 2u + 1 are couple u, of which no image is in another."""
    pairs: Integers
    """(P, 2) the images of each pair."""
    same: Bools
    """(P,) True where both images show one person."""
    origin: str
    """Where they come from, for people."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordCouples:
    """U couples of records of one identity: nested, first with last, second with last but one, each record once."""

    ids: Integers
    """(U, 2). Every identity's first couple comes before any second one."""
    labels: Integers
    """(U,)"""
    first: int
    """The first so many are first couples. Rows that are shifted by one share no identity there, but do further in."""
    singles: Integers
    """One record of each identity looked at, at most `FEW_COUPLES`."""
    seen: str
    """What was looked at, for messages."""


def pairs_of_set(path: str | Path, *, image_size: int, pairs: int = 1000) -> FacePairs:
    """Pairs of a verification set: all of them, or of a larger set evenly spread ones, half of them same pairs.

    Args:
        path: a `.bin` file, or CVLface's folder.
        image_size: side that the network takes, in pixels; other images are scaled and cropped to it.
        pairs: at most so many.

    Raises:
        OSError, VerificationSetError, ImageDecodeError: the file cannot be read.
        TeacherError: too few same or different pairs.
    """
    found = read_verification_set(path)
    kinds = [np.flatnonzero(found.same), np.flatnonzero(~found.same)]
    if min(map(len, kinds)) < LEAST_PAIRS:
        raise TeacherError(
            f"{path} holds {len(kinds[0])} same and {len(kinds[1])} different pairs; {LEAST_PAIRS} of each are needed "
            "to score a colour order"
        )
    chosen = np.sort(np.concatenate([evenly_spread(kind, pairs // 2) for kind in kinds]))
    images = [image for pair in chosen.tolist() for image in found.images[2 * pair : 2 * pair + 2]]
    subset = VerificationPairs(found.name, images, found.same[chosen], found.path)
    images_u8 = torch.from_numpy(decode_pairs(subset, image_size))
    return FacePairs(images_u8, np.arange(2 * len(chosen)).reshape(-1, 2), subset.same, found.path.name)


def pairs_of_records(records: ImageSource, *, image_size: int, pairs: int = 400) -> FacePairs:
    """Pairs made from training records (see `RecordCouples`); `pairs` is the most same pairs.

    Raises:
        TeacherError: too few identities have two images.
    """
    couples = record_couples(records, most=pairs)
    images_u8, labels = decoded_couples(records, couples, image_size)
    pairs_of, same = compared(labels)
    if min(same.sum(), (~same).sum()) < LEAST_PAIRS:
        raise TeacherError(
            f"{records.path} gives {same.sum()} same and {(~same).sum()} different pairs ({couples.seen}), and "
            f"{LEAST_PAIRS} of each are needed to score a colour order. Set teacher.color_set to a verification set, "
            "or teacher.color to the order it was trained on"
        )
    return FacePairs(images_u8, pairs_of, same, f"records of {records.path.name}")


def record_couples(records: ImageSource, *, most: int) -> RecordCouples:
    """Couples among the records. Files sorted by identity and shuffled ones both have couples in windows; more windows
    are read until there are couples of `most` identities, 65,536 records at most.
    """
    for sampled in _SAMPLED_RECORDS:
        ids = sampled_ids(len(records), sampled)
        labels = np.array([_label_or_none(records, record_id) for record_id in ids.tolist()], dtype=np.int64)
        ids, labels = ids[labels >= 0], labels[labels >= 0]
        # The first and last image of an identity that a window cuts are not those of the file, which a shift separates.
        edges = (np.diff(ids, prepend=ids[:1]) > 1) | (np.diff(ids, append=ids[-1:]) > 1)
        whole = np.flatnonzero(~np.isin(labels, labels[edges]))
        if couples_of(labels[whole], 2)[1] < 2:
            whole = np.arange(len(labels))
        places, first = couples_of(labels[whole], most)
        places = whole[places]
        if first >= most or sampled >= len(records):
            break
    _, singles = np.unique(labels, return_index=True)
    seen = f"{len(ids)} records of {len(singles)} identities looked at"
    return RecordCouples(ids[places], labels[places[:, 0]], first, ids[evenly_spread(singles, FEW_COUPLES)], seen)


def couples_of(labels: Integers, most: int) -> tuple[Integers, int]:
    """(U, 2) places of couples in (n,) labels as `RecordCouples` orders them, and how many are first couples."""
    by_label = np.argsort(labels, kind="stable")  # within a label in file order
    starts = np.flatnonzero(np.diff(labels[by_label], prepend=-1))
    sizes = np.diff(starts, append=len(by_label))
    first = evenly_spread(np.flatnonzero(sizes >= 2), most)
    chosen, depth, left = [np.stack([starts[first], starts[first] + sizes[first] - 1], axis=1)], 1, most - len(first)
    while left > 0 and (deep := evenly_spread(np.flatnonzero(sizes >= 2 * depth + 2), left)).size:
        chosen.append(np.stack([starts[deep] + depth, starts[deep] + sizes[deep] - 1 - depth], axis=1))
        depth, left = depth + 1, left - len(deep)
    return by_label[np.concatenate(chosen)], len(first)


def compared(labels: Integers) -> tuple[Integers, Bools]:
    """Pairs (P, 2) of images of U couples with (U,) labels, and (P,) flags: each couple, then its strangers.

    Strangers are the first image of a couple with the second of each of the 8 that follow, where it is of another
    person.
    """
    couple = np.arange(len(labels))
    steps = np.arange(min(_STRANGERS + 1, len(labels)))  # 0: the couple itself
    other = (couple[:, None] + steps) % max(1, len(labels))  # (U, 9)
    same = np.broadcast_to(steps == 0, other.shape)
    kept = same | (labels[other] != labels[:, None])
    pairs = np.stack([np.broadcast_to(2 * couple[:, None], other.shape), 2 * other + 1], axis=2)  # (U, 9, 2)
    return pairs[kept], same[kept]


def decoded_couples(records: ImageSource, couples: RecordCouples, image_size: int) -> tuple[Tensor, Integers]:
    """(2U, H, W, 3) uint8 images of the couples of which both images can be decoded, and their (U,) labels."""
    images: list[npt.NDArray[np.uint8]] = []
    labels = []
    for ids, label in zip(couples.ids.tolist(), couples.labels.tolist(), strict=True):
        both = [image for record_id in ids if (image := _decoded(records, record_id, image_size)) is not None]
        if len(both) == 2:
            images += both
            labels.append(label)
    return _stacked(images, image_size), np.array(labels, dtype=np.int64)


def mirror_couples(records: ImageSource, couples: RecordCouples, image_size: int) -> tuple[Tensor, Integers]:
    """Images of different identities, each followed by its mirror image, as couples; and a label for each."""
    found = [_decoded(records, record_id, image_size) for record_id in couples.singles.tolist()]
    images = [view for image in found if image is not None for view in (image, image[:, ::-1])]
    return _stacked(images, image_size), np.arange(len(images) // 2)


def sampled_ids(records: int, most: int) -> Integers:
    """All ids of a small file; of a large one evenly spread windows of neighbours."""
    if records <= most:
        return np.arange(records)
    starts = np.linspace(0, records - _WINDOW, most // _WINDOW).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_WINDOW))


def evenly_spread(items: Integers, most: int) -> Integers:
    """All items, or so many of them."""
    if len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, most).astype(np.int64)]


def _stacked(images: list[npt.NDArray[np.uint8]], side: int) -> Tensor:
    return torch.from_numpy(np.stack(images)) if images else torch.empty((0, side, side, 3), dtype=torch.uint8)


def _label_or_none(records: ImageSource, record_id: int) -> int:
    """The label, or -1 of a record that cannot be read."""
    try:
        return records.read(record_id).label
    except ValueError as error:
        if may_be_skipped(error):
            return -1
        raise


def _decoded(records: ImageSource, record_id: int, image_size: int) -> npt.NDArray[np.uint8] | None:
    """The image, or None where it is damaged."""
    where = records.where(record_id)
    try:
        return fit_square(decode_image(records.read(record_id).body, where=where), image_size, where=where)
    except ValueError as error:
        if may_be_skipped(error):
            return None
        raise
