"""Which channel order a teacher was trained on, found by trying both on pairs of faces.

A network that is fed BGR where it learned RGB still tells people apart, 0.1 to 1 point worse: nothing fails, and the
student learns from a worse teacher. A few hundred pairs hold too few errors for accuracy to decide. What does is the
separation of the cosines of same and different pairs, to which every pair contributes,

    d' = (mean same - mean different) / sqrt((variance same + variance different) / 2)

compared on the very same pairs: z is the difference of d' between the orders over its standard error. That comes from a
bootstrap that scores both orders on each draw, so that what makes a pair hard in either order cancels, and that draws
whole couples of images, so that a face met in several comparisons is not counted as several pieces of evidence.

Measured with a MobileFaceNet on 800 images of real faces: z = 4.3 to 7.4 over eight choices of the images, while
ten-fold accuracy on 400 pairs put the wrong order ahead.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, broadcast_text
from adadistill.core.evaluation import embed_images
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher, TeacherError
from adadistill.core.teachers.preprocessing import Color, TeacherNetwork
from adadistill.core.verification import area_under_roc, ten_fold_accuracy
from adadistill.loaders.image_source import ImageSource
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.verification_pairs import VerificationPairs, decode_pairs, fit_square, read_verification_bin

DECIDED_Z: Final = 3.0
"""|z| from which one order is the better one: a network blind to colour gets there once in 370 tries."""
LEAST_GAP: Final = 0.01
"""Difference of d' under which nothing is decided whatever z says: what rounding does to a network blind to colour is
smaller by orders of magnitude, and has a small standard error too."""
LEAST_PAIRS: Final = 20
"""Same pairs, and different pairs, that a score needs: a variance of fewer is a guess."""

_DRAWS = 1000  # the standard error is then known to 2 %
_SEED = 0
_STRANGERS = 8  # raises z by half over one stranger for each face, and costs no further embedding
_SMALLEST_DEVIATION = 1e-6  # cosines closer than float32 embeddings can tell
_SAMPLED_RECORDS, _WINDOW = 1 << 16, 64

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ColourPairs:
    """U couples of images, and P pairs among them to compare."""

    images_u8: Tensor
    """(2U, H, W, 3) uint8 RGB; images 2u and 2u + 1 are couple u, of which no image is in another."""
    pairs: Integers
    """(P, 2) the images of each pair."""
    same: npt.NDArray[np.bool_]
    """(P,) True where both images show one person."""
    origin: str
    """Where they come from, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourScore:
    """How well a network tells people apart in one channel order."""

    separation: float
    """d', see above."""
    auc: float
    """Area under the ROC curve."""
    accuracy: float
    """Ten-fold accuracy in [0, 1], on as many different pairs as there are same ones."""
    same_cosine: float
    """Mean over the same pairs."""
    different_cosine: float
    """Mean over the different pairs."""

    def summary(self) -> str:
        """The numbers in a line."""
        return f"d' {self.separation:.3f}, AUC {self.auc:.5f}, accuracy {100.0 * self.accuracy:.2f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourResult:
    """Both channel orders scored on the same pairs, and which is better."""

    rgb: ColourScore
    bgr: ColourScore
    better: Color | None
    """None: undecided."""
    z: float
    """d' of rgb minus d' of bgr, in standard errors of that difference; positive where rgb is better."""
    same_pairs: int
    different_pairs: int
    origin: str
    """Where the pairs come from."""

    @property
    def gap(self) -> float:
        """d' of rgb minus d' of bgr."""
        return self.rgb.separation - self.bgr.separation

    def of(self, color: Color) -> ColourScore:
        """The score of one order."""
        return self.rgb if color == "rgb" else self.bgr

    def summary(self) -> str:
        """Two lines for people: the decision with its evidence, both scores."""
        verdict = "undecided" if self.better is None else f"{self.better} is better"
        return (
            f"colour order: {verdict}, d' rgb - bgr = {self.gap:+.3f}, z = {self.z:+.1f} (decided from {DECIDED_Z:g}), "
            f"{self.same_pairs} same and {self.different_pairs} different pairs of {self.origin}\n"
            f"  rgb {self.rgb.summary()};  bgr {self.bgr.summary()}"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> ColourResult:
        """What `to_json` gave; every number has its bits again."""
        scores = {color: ColourScore(**values[color]) for color in ("rgb", "bgr")}
        return ColourResult(**(values | scores))


def resolve_color(
    loaded: LoadedTeacher,
    config: TeacherConfig,
    *,
    records: ImageSource,
    image_size: int,
    ranks: Ranks,
    batch_size: int = 64,
) -> tuple[LoadedTeacher, ColourResult | None]:
    """Settle the channel order of `color: auto` by trying both. All ranks call it together and agree.

    Rank 0 scores and the others hear of it, so that rounding on another device cannot lead to another answer.

    Args:
        records: the training images, from which pairs are made where the config names no `color_set`.
        image_size: side of the images, in pixels.
        batch_size: images per forward pass.

    Returns:
        The teacher with the order to use, and the scores; unchanged and None where the config is not `auto`.
        Undecided scores keep the order that the source states.

    Raises:
        TeacherError: the scores contradict what the source states, or nothing tells the order; no pairs can be made.
        OSError, VerificationSetError, RecordError, ImageDecodeError: on rank 0, which reads the pairs.
    """
    if config.color != "auto":
        return loaded, None
    result = _on_rank_0(loaded, config, records, image_size, ranks, batch_size)
    color = _agreed_color(result, loaded)
    if ranks.is_main and result.better is None:
        _log.warning(
            "teacher %s: scoring both colour orders does not tell which it was trained on; %s stands, as its source "
            "states", loaded.identity.name, color,
        )  # fmt: skip
    preprocessing = replace(loaded.identity.preprocessing, color=color)
    return replace(loaded, identity=replace(loaded.identity, preprocessing=preprocessing)), result


def colour_pairs(config: TeacherConfig, *, records: ImageSource, image_size: int) -> ColourPairs:
    """The pairs that a recipe's teacher is scored on: of its `color_set`, else made from the training records.

    Raises:
        As `pairs_from_set` and `pairs_from_records`.
    """
    if config.color_set is not None:
        return pairs_from_set(config.color_set, image_size=image_size)
    return pairs_from_records(records, image_size=image_size)


def score_colour_orders(
    loaded: LoadedTeacher, pairs: ColourPairs, *, device: torch.device, batch_size: int = 64
) -> ColourResult:
    """Embed pairs of faces in both channel orders and compare how well each tells people apart.

    Both orders are normalised by the same mean and standard deviation per input channel, and embedded in float32, so
    that the answer does not depend on the number format of a run.

    Args:
        loaded: its own colour order is of no matter; its network is on the CPU again afterwards.
        device: to embed on.
        batch_size: images per forward pass.

    Raises:
        TeacherError: the network gives NaN or infinity.
    """
    cosines = {color: _pair_cosines(loaded, pairs, color, device, batch_size) for color in ("rgb", "bgr")}
    rgb, bgr = (_score(cosines[color], pairs.same) for color in ("rgb", "bgr"))
    gap, error = rgb.separation - bgr.separation, _gap_error(cosines["rgb"], cosines["bgr"], pairs)
    z = gap / error if error > 0.0 else 0.0
    better: Color | None = None
    if abs(z) >= DECIDED_Z and abs(gap) >= LEAST_GAP:
        better = "rgb" if gap > 0.0 else "bgr"
    return ColourResult(
        rgb=rgb,
        bgr=bgr,
        better=better,
        z=z,
        same_pairs=int(pairs.same.sum()),
        different_pairs=int((~pairs.same).sum()),
        origin=pairs.origin,
    )


def pairs_from_set(path: str | Path, *, image_size: int, pairs: int = 1000) -> ColourPairs:
    """Pairs of a verification set: all of them, or of a larger set evenly spread ones, half of them same pairs.

    Args:
        path: a `.bin` file.
        image_size: side that the network takes, in pixels; other images are scaled and cropped to it.
        pairs: at most so many.

    Raises:
        OSError, VerificationSetError, ImageDecodeError: the file cannot be read.
        TeacherError: too few same or different pairs.
    """
    found = read_verification_bin(path)
    kinds = [np.flatnonzero(found.same), np.flatnonzero(~found.same)]
    if min(map(len, kinds)) < LEAST_PAIRS:
        raise TeacherError(
            f"{path} holds {len(kinds[0])} same and {len(kinds[1])} different pairs; {LEAST_PAIRS} of each are needed "
            "to score a colour order"
        )
    chosen = np.sort(np.concatenate([_evenly_spread(kind, pairs // 2) for kind in kinds]))
    images = [image for pair in chosen.tolist() for image in found.images[2 * pair : 2 * pair + 2]]
    subset = VerificationPairs(found.name, images, found.same[chosen], found.path)
    images_u8 = torch.from_numpy(decode_pairs(subset, image_size))
    return ColourPairs(images_u8, np.arange(2 * len(chosen)).reshape(-1, 2), subset.same, found.path.name)


def pairs_from_records(records: ImageSource, *, image_size: int, pairs: int = 400, seed: int = _SEED) -> ColourPairs:
    """Pairs made from training records; equal arguments give equal pairs.

    Couples of two images of one person are the same pairs. They take every identity once before any twice, and no image
    twice. Different pairs are the first image of a couple with the second of each of the 8 that follow, where it shows
    another person. Of more than 65,536 records, labels are read in evenly spread windows alone: files sorted by
    identity and shuffled ones both have couples there, and not all of a large file is read.

    Args:
        image_size: side of the images, in pixels.
        pairs: same pairs, at most; twice as many images are embedded.
        seed: of the choice.

    Raises:
        TeacherError: too few identities have two images.
        RecordError, ImageDecodeError: a record is damaged.
    """
    sample = _sampled_ids(len(records))
    labels = np.array([records.read(record_id).label for record_id in sample.tolist()], dtype=np.int64)
    couples = _couples(labels, pairs, np.random.Generator(np.random.PCG64(seed)))  # (U, 2) places in the sample
    compared, same = _compared(labels[couples[:, 0]])
    if min(same.sum(), (~same).sum()) < LEAST_PAIRS:
        raise TeacherError(
            f"{records.path} gives {same.sum()} same and {(~same).sum()} different pairs ({len(sample)} records of "
            f"{len(np.unique(labels))} identities looked at), and {LEAST_PAIRS} of each are needed to score a colour "
            "order. Set teacher.color_set to a verification set, or teacher.color to the order it was trained on"
        )
    images = [_decoded(records, record_id, image_size) for record_id in sample[couples].reshape(-1).tolist()]
    return ColourPairs(torch.from_numpy(np.stack(images)), compared, same, f"records of {records.path.name}")


def _on_rank_0(
    loaded: LoadedTeacher, config: TeacherConfig, records: ImageSource, image_size: int, ranks: Ranks, batch_size: int
) -> ColourResult:
    """What rank 0 finds, on every rank; its error too, so that no rank waits for an answer that does not come."""
    answer, error = "", None
    if ranks.is_main:
        try:
            pairs = colour_pairs(config, records=records, image_size=image_size)
            result = score_colour_orders(loaded, pairs, device=ranks.device, batch_size=batch_size)
            answer = json.dumps({"result": result.to_json()}, allow_nan=False)
        except (OSError, ValueError, RuntimeError) as caught:
            error = caught
            answer = json.dumps({"error": f"{type(caught).__name__}: {caught}"})
    heard = json.loads(broadcast_text(answer, ranks))
    if error is not None:
        raise error
    if "error" in heard:
        raise TeacherError(f"rank 0 could not score the teacher's colour order: {heard['error']}")
    return ColourResult.from_json(heard["result"])


def _agreed_color(result: ColourResult, loaded: LoadedTeacher) -> Color:
    name, stated = loaded.identity.name, loaded.stated_color
    if result.better is None:
        if stated is None:
            raise TeacherError(
                f"teacher {name}: its source does not state a colour order, and scoring both does not tell either; "
                f"set teacher.color to rgb or bgr\n{result.summary()}"
            )
        return stated
    if stated not in (None, result.better):
        raise TeacherError(
            f"teacher {name}: its source states {stated}, but {result.better} tells people apart better; one of "
            f"them is wrong. Set teacher.color to {result.better} to follow the scores, or to {stated} to follow the "
            f"source\n"
            f"{result.summary()}"
        )
    return result.better


def _pair_cosines(
    loaded: LoadedTeacher, pairs: ColourPairs, color: Color, device: torch.device, batch_size: int
) -> Floats:
    """(P,) cosine of each pair's embeddings; a zero embedding has cosine 0 to everything."""
    network = TeacherNetwork(loaded.body, replace(loaded.identity.preprocessing, color=color)).to(device)
    try:
        embeddings = embed_images(network, pairs.images_u8, ranks=Ranks(device=device), batch_size=batch_size)
    finally:
        loaded.body.to("cpu")
    rows = embeddings.numpy().astype(np.float64)  # (2U, D)
    damaged = int((~np.isfinite(rows).all(axis=1)).sum())
    if damaged:
        raise TeacherError(
            f"teacher {loaded.identity.name} gives NaN or infinity for {damaged} of {len(rows)} images of "
            f"{pairs.origin}"
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms == 0.0, 1.0, norms)
    return (rows[pairs.pairs[:, 0]] * rows[pairs.pairs[:, 1]]).sum(axis=1)


def _score(cosines: Floats, same: npt.NDArray[np.bool_]) -> ColourScore:
    alike, unlike = cosines[same], cosines[~same]
    balanced = np.sort(np.concatenate([np.flatnonzero(same), _evenly_spread(np.flatnonzero(~same), len(alike))]))
    return ColourScore(
        separation=float(_separation(alike.mean(), unlike.mean(), alike.var(), unlike.var())),
        auc=area_under_roc(cosines, same),
        accuracy=ten_fold_accuracy(2.0 - 2.0 * cosines[balanced], same[balanced]).mean,
        same_cosine=float(alike.mean()),
        different_cosine=float(unlike.mean()),
    )


def _separation(same_mean: Any, different_mean: Any, same_variance: Any, different_variance: Any) -> Any:
    """d', elementwise."""
    deviation = np.sqrt(np.maximum(0.0, same_variance + different_variance) / 2.0)
    return (same_mean - different_mean) / np.maximum(deviation, _SMALLEST_DEVIATION)


def _gap_error(rgb: Floats, bgr: Floats, pairs: ColourPairs) -> float:
    """Standard error of the difference of d' between the orders, by drawing couples with replacement.

    A pair within a couple weighs as often as its couple was drawn, a pair across two the product of both: this is what
    the pairs would be had the drawn couples been the data.
    """
    couples = len(pairs.images_u8) // 2
    draw = np.random.Generator(np.random.PCG64(_SEED))
    drawn = draw.multinomial(couples, np.full(couples, 1.0 / couples), size=_DRAWS)  # (draws, U)
    first, second = (pairs.pairs // 2).T
    weights = np.where(first == second, drawn[:, first], drawn[:, first] * drawn[:, second])  # (draws, P)
    means, variances = [], []
    for kind in (pairs.same, ~pairs.same):
        cosines = np.stack([rgb[kind], bgr[kind]], axis=1)  # (n, 2)
        centre = cosines.mean(axis=0)
        deviations = cosines - centre  # near zero, so that the squares below keep their digits
        shares = weights[:, kind] / weights[:, kind].sum(axis=1, keepdims=True)
        mean = shares @ deviations  # (draws, 2)
        means.append(centre + mean)
        variances.append(shares @ deviations**2 - mean**2)
    separations = _separation(*means, *variances)  # (draws, 2)
    return float((separations[:, 0] - separations[:, 1]).std(ddof=1))


def _evenly_spread(items: Integers, most: int) -> Integers:
    if len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, most).astype(np.int64)]


def _sampled_ids(records: int) -> Integers:
    """All ids of a small file; of a large one evenly spread windows of neighbours."""
    if records <= _SAMPLED_RECORDS:
        return np.arange(records)
    starts = np.linspace(0, records - _WINDOW, _SAMPLED_RECORDS // _WINDOW).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_WINDOW))


def _couples(labels: Integers, most: int, draw: np.random.Generator) -> Integers:
    """(U, 2) places of two records of one label; no record twice, each label's first couple before any second one."""
    shuffled = draw.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, size = np.unique(labels[by_label], return_index=True, return_counts=True)
    place_in_label = np.arange(len(labels)) - np.repeat(first, size)
    begins = np.flatnonzero((place_in_label % 2 == 0) & (place_in_label + 1 < np.repeat(size, size)))
    rounds = place_in_label[begins] // 2
    chosen = begins[np.lexsort((draw.random(len(begins)), rounds))[:most]]
    return np.stack([by_label[chosen], by_label[chosen + 1]], axis=1)


def _compared(labels: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Pairs (P, 2) of images of U couples with (U,) labels, and (P,) flags: each couple, then its strangers."""
    couple = np.arange(len(labels))
    steps = np.arange(min(_STRANGERS + 1, len(labels)))  # 0: the couple itself
    other = (couple[:, None] + steps) % max(1, len(labels))  # (U, 9)
    same = np.broadcast_to(steps == 0, other.shape)
    kept = same | (labels[other] != labels[:, None])
    pairs = np.stack([np.broadcast_to(2 * couple[:, None], other.shape), 2 * other + 1], axis=2)  # (U, 9, 2)
    return pairs[kept], same[kept]


def _decoded(records: ImageSource, record_id: int, image_size: int) -> npt.NDArray[np.uint8]:
    pixels = decode_image(records.read(record_id).body, where=records.where(record_id))
    return fit_square(pixels, image_size, where=records.where(record_id))
