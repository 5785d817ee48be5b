"""Whether a teacher knows the people of the records, tried on a sample before anything is learned from it.

Weights converted by half, rows in another order and embeddings that are all alike train students and fill caches
without a word. Two images of one person must be more alike to a teacher than images of two; how much more, whatever the
teacher is (a network, a cache, a file of rows), is decided here:

    the mean cosines are `KNOWN_GAP` apart, and
    d' = (mean same - mean different) / sqrt((variance same + variance different) / 2) is at least `KNOWN_SEPARATION`.

Measured on real faces, 64 couples: two real teachers have a gap of 0.55 to 0.64 and d' of 3.9 to 6.4; fifteen untrained
networks a gap up to 0.12 and d' up to 0.72, as have the pixels themselves. The standard errors of 64 couples are 0.025
and 0.2. With random last layers the two keep d' 3.3 to 5.9: those still know people, and pass.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, broadcast_text
from adadistill.core.scoring.embedding import Forward, embed_images
from adadistill.core.teachers.interface import LoadedTeacher, RecordTeacher, TeacherError
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.evaluation_sets.verification_pairs import fit_square
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.records.damaged_records import may_be_skipped
from adadistill.loaders.records.image_source import ImageSource

KNOWN_GAP: Final = 0.1
"""Cosine. Teachers of faces give 0.4 and more for two images of a person, about 0 for two people; shuffled rows 0."""
KNOWN_SEPARATION: Final = 1.0
"""d' that no untrained network reaches; a narrow network of 86 % accuracy on synthetic faces has 2."""
ALIKE: Final = 0.99
"""Mean cosine between different people from which embeddings are called all alike."""
LEAST_PAIRS: Final = 20
"""Same pairs, and different pairs, that d' needs: a variance of fewer is a guess."""

_COUPLES = 64  # 128 images: 8 s of an IR-50 on a CPU core that embeds 16 images/s
_ROW_COUPLES = 500  # rows cost no embedding
_STRANGERS = 8  # raises the z of a colour check by half over one stranger for each face, and costs no embedding
_SMALLEST_DEVIATION = 1e-6  # cosines closer than float32 embeddings can tell
_WINDOW, _SAMPLED_RECORDS = 256, (1 << 12, 1 << 14, 1 << 16)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PeopleScore:
    """How well embeddings tell people apart."""

    same: float
    """Mean cosine of the same pairs."""
    different: float
    """Mean cosine of the different pairs."""
    separation: float
    """d', see above."""
    same_pairs: int
    different_pairs: int

    @property
    def knows_people(self) -> bool:
        """Whether this may be a teacher. d' is not asked where there are too few pairs to know it."""
        many = min(self.same_pairs, self.different_pairs) >= LEAST_PAIRS
        return self.same - self.different >= KNOWN_GAP and (not many or self.separation >= KNOWN_SEPARATION)

    def summary(self) -> str:
        """The numbers in a line."""
        return (
            f"mean cosine {self.same:.4f} within a person and {self.different:.4f} between people, d' "
            f"{self.separation:.2f} ({self.same_pairs} same and {self.different_pairs} different pairs)"
        )


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
    """One record of each identity looked at, at most `_COUPLES`."""
    seen: str
    """What was looked at, for messages."""


def check_network(
    loaded: LoadedTeacher, *, records: ImageSource, image_size: int, ranks: Ranks, score: PeopleScore | None = None
) -> None:
    """Refuse a network that does not know the people of the records. All ranks call it together; rank 0 embeds.

    Damaged records are left out; training names them. Where no identity has two images, an image and its mirror image
    stand for one person.

    Args:
        image_size: side of the images, in pixels.
        score: of the network on the records, where it is known already.

    Raises:
        TeacherError: as said, or embeddings are zero, not finite, or all alike.
        OSError: on rank 0, which reads the records.
    """
    who = f"teacher {loaded.identity.name}"

    def look() -> None:
        if score is not None:
            _judge(score, who, records)
            return
        couples = record_couples(records, most=_COUPLES)
        images, labels = decoded_couples(records, couples, image_size)
        mirrors = len(np.unique(labels)) < 2
        if mirrors:
            images, labels = _mirror_couples(records, couples, image_size)
        if len(images):
            _look_at(embeddings_of(loaded, images, ranks.device), labels, who, records, couples, mirrors=mirrors)

    on_rank_0(look, ranks, "try the teacher on the records")


def check_rows(teacher: RecordTeacher, augmentation: Augmentation, *, name: str, records: ImageSource) -> None:
    """As `check_network`, of stored embeddings. The second image of a couple is taken from the second view."""
    couples = record_couples(records, most=_ROW_COUPLES)
    two_views = augmentation.mirror_probability > 0.0 or (augmentation.views or 1) > 1
    mirrors = len(np.unique(couples.labels)) < 2
    first, second = (couples.singles, couples.singles) if mirrors else couples.ids.T
    augmented = augmentation.alters_pixels
    rows = [
        teacher.rows(ids, np.full(len(ids), view == 1 and not augmented), view if augmented else None)
        for ids, view in ((first, 0), (second, int(two_views)))
    ]
    embeddings = torch.stack(rows, dim=1).flatten(0, 1).double().cpu().numpy()  # (2U, D)
    labels = np.arange(len(first)) if mirrors else couples.labels
    _look_at(embeddings, labels, name, records, couples, mirrors=mirrors, tells=two_views or not mirrors)
    if not mirrors and couples.first >= 2:  # what a shift leaves of few identities with many images
        _look_at(embeddings[: 2 * couples.first], labels[: couples.first], name, records, couples, mirrors=False)


def on_rank_0(look: Callable[[], Any], ranks: Ranks, what: str) -> Any:
    """What rank 0 finds (JSON values), on every rank; its error too, so that no rank waits for what does not come."""
    answer, error = "", None
    if ranks.is_main:
        try:
            answer = json.dumps({"found": look()}, allow_nan=False)
        except (OSError, ValueError, RuntimeError) as caught:
            error = caught
            answer = json.dumps({"error": f"{type(caught).__name__}: {caught}"})
    heard = json.loads(broadcast_text(answer, ranks))
    if error is not None:
        raise error
    if "error" in heard:
        raise TeacherError(f"rank 0 could not {what}: {heard['error']}")
    return heard["found"]


def embeddings_of(loaded: LoadedTeacher, images_u8: Tensor, device: torch.device, batch_size: int = 64) -> Floats:
    """(n, D) raw embeddings of (n, H, W, 3) images, computed in float32; the network is on the CPU afterwards."""
    try:
        forward = Forward(ranks=Ranks(device=device), batch_size=batch_size)
        return embed_images(loaded.network().to(device), images_u8, forward).numpy().astype(np.float64)
    finally:
        loaded.body.to("cpu")


def pair_cosines(rows: Floats, pairs: Integers) -> Floats:
    """(P,) cosines of the (P, 2) pairs among (n, D) rows; a zero row has cosine 0 to everything."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms == 0.0, 1.0, norms)
    return (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)


def people_score(cosines: Floats, same: Bools) -> PeopleScore:
    """The score of (P,) cosines, of which the flagged ones are of same pairs."""
    alike, unlike = cosines[same], cosines[~same]
    return PeopleScore(
        same=float(alike.mean()),
        different=float(unlike.mean()),
        separation=float(separation(alike.mean(), unlike.mean(), alike.var(), unlike.var())),
        same_pairs=len(alike),
        different_pairs=len(unlike),
    )


def separation(same_mean: Any, different_mean: Any, same_variance: Any, different_variance: Any) -> Any:
    """d', elementwise."""
    deviation = np.sqrt(np.maximum(0.0, same_variance + different_variance) / 2.0)
    return (same_mean - different_mean) / np.maximum(deviation, _SMALLEST_DEVIATION)


def record_couples(records: ImageSource, *, most: int) -> RecordCouples:
    """Couples among the records, chosen without chance; of large files, evenly spread windows are looked at.

    Files sorted by identity and shuffled ones both have couples there. More windows are read until there are couples
    of `most` identities, 65,536 records at most. Records that cannot be read are left out.
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
    return RecordCouples(ids[places], labels[places[:, 0]], first, ids[evenly_spread(singles, _COUPLES)], seen)


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


def _look_at(
    rows: Floats,
    labels: Integers,
    who: str,
    records: ImageSource,
    couples: RecordCouples,
    *,
    mirrors: bool,
    tells: bool = True,
) -> None:
    """Judge the (2U, D) rows of U couples. `tells`: the images of a couple are two images, or two views of one."""
    lengths = np.linalg.norm(rows, axis=1)
    for what, bad in (("NaN or infinity", ~np.isfinite(lengths)), ("zero", lengths == 0.0)):
        if bad.any():
            raise TeacherError(
                f"{who} gives {what} for {bad.sum()} of {len(rows)} images of {records.path}; its weights are damaged, "
                "or not what they are taken for"
            )
    pairs, same = compared(labels)
    if same.all():
        logger.warning("%s: whether it knows people cannot be tried on %s, %s", who, records.path, couples.seen)
        return
    cosines = pair_cosines(rows, pairs)
    alike = float(cosines[~same].mean())
    if alike > ALIKE:
        raise TeacherError(
            f"{who} gives nearly one and the same embedding for everybody: mean cosine {alike:.4f} between people of "
            f"{records.path} ({couples.seen}). Its weights are not what they are taken for, or its images are not "
            "normalised as it wants them (teacher.mean, teacher.std)"
        )
    if tells:
        _judge(people_score(cosines, same), who, records)
    if mirrors:
        logger.warning(
            "%s: no two images are of one identity (%s), so that %s was tried on %s alone",
            records.path, couples.seen, who, "images and their mirror images" if tells else "whether all are alike",
        )  # fmt: skip


def _judge(score: PeopleScore, who: str, records: ImageSource) -> None:
    if score.knows_people:
        logger.info("%s knows the people of %s: %s", who, records.path.name, score.summary())
        return
    raise TeacherError(
        f"{who} does not know the people of {records.path}, or the labels are not theirs: {score.summary()}. At least "
        f"{KNOWN_GAP:g} more within a person, and d' {KNOWN_SEPARATION:g}, is asked of a teacher. Look at its weights "
        "(untrained, or converted by half), at teacher.color, mean and std, and at the order: rows or labels that are "
        "shuffled or shifted look like this too. Where the labels name no people, teacher.check=false does without this"
    )


def _mirror_couples(records: ImageSource, couples: RecordCouples, image_size: int) -> tuple[Tensor, Integers]:
    """Images of different identities, each followed by its mirror image, as couples."""
    found = [_decoded(records, record_id, image_size) for record_id in couples.singles.tolist()]
    images = [view for image in found if image is not None for view in (image, image[:, ::-1])]
    return _stacked(images, image_size), np.arange(len(images) // 2)


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
