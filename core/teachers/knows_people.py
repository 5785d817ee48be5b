"""Whether a teacher knows the people of the records, tried on a sample before anything is learned from it.

Weights converted by half, rows in another order and embeddings that are all alike train students and fill caches
without a word. Two images of one person must be more alike to a teacher than images of two, whatever the teacher is (a
network, a cache, a file of rows): their mean cosines `KNOWN_GAP` apart, and d' at least `KNOWN_SEPARATION`.

Measured on real faces, 64 couples: two real teachers have a gap of 0.55 to 0.64 and d' of 3.9 to 6.4; fifteen untrained
networks a gap up to 0.12 and d' up to 0.72, as have the pixels themselves. The standard errors of 64 couples are 0.025
and 0.2. With random last layers the two keep d' 3.3 to 5.9: those still know people, and pass.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import torch

from adadistill.core.distributed import Ranks, run_on_main
from adadistill.core.teachers.face_pairs import (
    FEW_COUPLES,
    LEAST_PAIRS,
    Integers,
    RecordCouples,
    compared,
    decoded_couples,
    mirror_couples,
    record_couples,
)
from adadistill.core.teachers.interface import LoadedTeacher, RecordTeacher, TeacherError
from adadistill.core.teachers.people_score import Floats, PeopleScore, embeddings_of, pair_cosines, people_score
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.records.image_source import ImageSource

KNOWN_GAP: Final = 0.1
"""Cosine. Teachers of faces give 0.4 and more for two images of a person, about 0 for two people; shuffled rows 0."""
KNOWN_SEPARATION: Final = 1.0
"""d' that no untrained network reaches; a narrow network of 86 % accuracy on synthetic faces has 2."""
ALIKE: Final = 0.99
"""Mean cosine between different people from which embeddings are called all alike."""

_ROW_COUPLES: Final = 500  # rows cost no embedding

logger = logging.getLogger(__name__)


def check_network(
    loaded: LoadedTeacher, *, records: ImageSource, image_size: int, ranks: Ranks, score: PeopleScore | None = None
) -> None:
    """Refuse a network that does not know the people of the records. All ranks call it together; rank 0 embeds.

    Where no identity has two images, an image and its mirror image stand for one person.

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
        couples = record_couples(records, most=FEW_COUPLES)
        images, labels = decoded_couples(records, couples, image_size)
        mirrors = len(np.unique(labels)) < 2
        if mirrors:
            images, labels = mirror_couples(records, couples, image_size)
        if len(images):
            _look_at(embeddings_of(loaded, images, ranks.device), labels, who, records, couples, mirrors=mirrors)

    run_on_main(look, ranks)


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


def knows_people(score: PeopleScore) -> bool:
    """Whether this may be the score of a teacher. d' is not asked where there are too few pairs to know it."""
    many = min(score.same_pairs, score.different_pairs) >= LEAST_PAIRS
    gap = score.same_cosine - score.different_cosine
    return gap >= KNOWN_GAP and (not many or score.separation >= KNOWN_SEPARATION)


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
    if knows_people(score):
        logger.info("%s knows the people of %s: %s", who, records.path.name, score.summary())
        return
    raise TeacherError(
        f"{who} does not know the people of {records.path}, or the labels are not theirs: {score.summary()}. At least "
        f"{KNOWN_GAP:g} more within a person, and d' {KNOWN_SEPARATION:g}, is asked of a teacher. Look at its weights "
        "(untrained, or converted by half), at teacher.color, mean and std, and at the order: rows or labels that are "
        "shuffled or shifted look like this too. Where the labels name no people, teacher.check=false does without this"
    )
