"""IJB-C's 1:1 scores from embeddings of its images, in all pooling modes: time and memory, against loops.

Isolates scoring: pooling, pairs, ROC, strict rates; leaves out reading files and embedding images. The set is drawn at
random at IJB-C's size: 3,531 gallery and 19,593 probe templates, 469,375 images, 15,658,489 pairs of different
templates in no order. Smaller shares have so much of its images and pairs, and of its templates the square root, so
that pairs stay as dense among the combinations. First a small share is scored by both forms, which must agree; then
the whole. Loops take one template, one medium and one pair at a time, as public scripts pool. `against_loop` is loops
to ours on the same small share, in processor time, and `against_loop_wall` by the clock, where ours scores as many
modes at a time as there are cores; loops are timed in one mode and counted once for each. `extra_mib` is what the
process grows by, beside the embeddings.

    python -m adadistill.bench ijb
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row
from adadistill.bench.timing import extra_mib
from adadistill.core.scoring.ijb.pooling import ALL_MODES
from adadistill.core.scoring.ijb.roc import PUBLISHED_FARS
from adadistill.core.scoring.ijb.scoring import score_ijb
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations, make_annotations

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TINY = "--share 0.0004 --loop-share 0.0002 --dim 16"

_CPU = torch.device("cpu")
_GALLERY, _PROBES, _IMAGES, _PAIRS, _SAME = 3_531, 19_593, 469_375, 15_658_489, 19_557
_NOISE = 6.0
"""Of an image, in lengths of its identity's vector: rates are neither 0 nor 1."""


class DisagreementError(WorkFailed, ValueError):
    """Both forms score one set otherwise."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    share: float
    embeddings: npt.NDArray[np.float32]
    annotations: IjbAnnotations

    def sizes(self) -> dict[str, float | int]:
        counts = self.annotations.counts
        return {
            "share": self.share,
            **{name: counts[name] for name in ("images", "templates", "pairs")},
            "embedding_dim": self.embeddings.shape[1],
            "modes": len(ALL_MODES),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("ijb", __doc__, takes_device=False)
    parser.add_argument("--share", type=float, default=1.0, help="of IJB-C's size, for ours")
    parser.add_argument("--loop-share", type=float, default=0.1, help="of IJB-C's size, for both")
    parser.add_argument("--dim", type=int, default=512)
    arguments = parser.parse_args(argv)
    small = _draw(arguments.loop_share, arguments.dim)
    loops, expected = _loops(small)
    ours, extra, result = _ours(small)
    try:
        _check(result, expected)
    except DisagreementError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    _report(arguments.rows, "loop", small, loops, loops, None)
    _report(arguments.rows, "ours", small, ours, loops, extra)
    del small
    whole = _draw(arguments.share, arguments.dim)
    ours, extra, _ = _ours(whole)
    _report(arguments.rows, "ours", whole, ours, None, extra)
    return 0


def _draw(share: float, dim: int) -> _Drawn:
    random = np.random.default_rng(0)
    gallery, probes = (max(2, round(count * share**0.5)) for count in (_GALLERY, _PROBES))
    templates = gallery + probes
    images = max(round(_IMAGES * share), 2 * templates)
    subject_of = np.concatenate([np.arange(gallery), random.integers(0, gallery, probes)])
    template_of = random.permutation(
        np.concatenate([np.arange(templates), random.integers(0, templates, images - templates)])
    )
    centres = random.standard_normal((gallery, dim), dtype=np.float32)
    embeddings = random.standard_normal((images, dim), dtype=np.float32)
    embeddings *= _NOISE
    for start in range(0, images, 1 << 16):
        part = slice(start, start + (1 << 16))
        embeddings[part] += centres[subject_of[template_of[part]]]
    first, second, same = _pairs(random, gallery, subject_of, round(_PAIRS * share), round(_SAME * share))
    annotations = make_annotations(
        name="drawn",
        where="drawn",
        templates=template_of,
        medias=random.integers(0, 4, images),
        detector_scores=random.uniform(0.3, 1.0, images),
        first=first,
        second=second,
        same=same,
    )
    return _Drawn(share, embeddings, annotations)


def _pairs(
    random: np.random.Generator, gallery: int, subject_of: npt.NDArray[np.int64], count: int, same_count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Each probe's own pair, up to `same_count`, and different ones drawn among all combinations, in random order."""
    probes = len(subject_of) - gallery
    own = (np.arange(gallery, len(subject_of)), subject_of[gallery:])
    chosen = np.flatnonzero(random.random(gallery * probes, dtype=np.float32) < 1.02 * count / (gallery * probes))
    first, second = (chosen // probes).astype(np.int32), (chosen % probes + gallery).astype(np.int32)
    kept = random.permutation(np.flatnonzero(first != subject_of[second]))[: count - same_count]
    first = np.concatenate([own[1][:same_count], first[kept]]).astype(np.int32)
    second = np.concatenate([own[0][:same_count], second[kept]]).astype(np.int32)
    order = random.permutation(len(first))
    return first[order], second[order], (order < min(same_count, probes))


def pooled(
    embeddings: npt.NDArray[np.floating], templates: Ints, medias: Ints, scores: Floats, *, norm: bool, det: bool
) -> dict[int, Floats]:
    """Number of each template -> its unit vector, of (N, D) flip sums and (N,) of what is said of each image."""
    rows = embeddings.astype(np.float64)
    if not norm:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if det:
        rows = rows * scores[:, None]
    vectors = {}
    for template in np.unique(templates):
        (own,) = np.where(templates == template)
        total = np.zeros(rows.shape[1])
        for medium in np.unique(medias[own]):
            total += rows[own][medias[own] == medium].mean(axis=0)
        vectors[int(template)] = total / np.linalg.norm(total)
    return vectors


def cosines(vectors: dict[int, Floats], first: Ints, second: Ints) -> Floats:
    """(P,) of pairs of numbers."""
    return np.array([vectors[int(one)] @ vectors[int(other)] for one, other in zip(first, second, strict=True)])


def nearest_rates(scores: Floats, same: npt.NDArray[np.bool_], fars: tuple[float, ...]) -> list[float]:
    """The published rate at each target, by scikit-learn."""
    from sklearn.metrics import roc_curve

    false_rates, true_rates, _ = roc_curve(same, scores)
    flipped, rates = false_rates[::-1], true_rates[::-1]
    return [float(rates[int(np.argmin(np.abs(flipped - far)))]) for far in fars]


@dataclass(frozen=True, slots=True)
class _Times:
    wall_s: float
    cpu_s: float
    """Of all threads: what is left to compare where other work shares the cores."""


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, times: int = 1) -> _Times:
        """Since it was made, times so many."""
        return _Times(times * (time.perf_counter() - self._wall), times * (time.process_time() - self._cpu))


def _loops(drawn: _Drawn) -> tuple[_Times, list[float]]:
    """Times of all modes, from one of them, and its rates."""
    import sklearn.metrics  # noqa: F401  seconds of importing are none of scoring

    known, mode = drawn.annotations, ALL_MODES[0]
    clock = _Clock()
    vectors = pooled(
        drawn.embeddings, known.templates.astype(np.int64), known.medias, known.detector_scores,
        norm=mode.norm, det=mode.det,
    )  # fmt: skip
    scores = cosines(vectors, known.first.astype(np.int64), known.second.astype(np.int64))
    rates = nearest_rates(scores, known.same, PUBLISHED_FARS)
    return clock.read(len(ALL_MODES)), rates


def _ours(drawn: _Drawn) -> tuple[_Times, float | None, BenchmarkResult]:
    """Times, MiB beside the embeddings, and the scores."""
    found: list[tuple[_Times, BenchmarkResult]] = []

    def score() -> None:
        clock = _Clock()
        result = score_ijb(drawn.embeddings, drawn.annotations, data_sha256="")
        found.append((clock.read(), result))

    extra = extra_mib(score, _CPU)
    if not found:
        score()
    return found[0][0], extra, found[0][1]


def _check(result: BenchmarkResult, expected: Sequence[float]) -> None:
    for far, rate in zip(PUBLISHED_FARS, expected, strict=True):
        found = result[f"ijb.drawn.{ALL_MODES[0].name}_tpr_at_fpr_{far}"].value
        if found != rate:
            raise DisagreementError(f"TAR at FAR {far:g}: {found} here, {rate} by loops")


def _report(
    rows: str | None, form: str, drawn: _Drawn, times: _Times, loops: _Times | None, extra: float | None
) -> None:
    append_row(
        rows, bench="ijb", device=_CPU, form=form, **drawn.sizes(), seconds=times.wall_s, cpu_seconds=times.cpu_s,
        against_loop=None if loops is None else loops.cpu_s / times.cpu_s,
        against_loop_wall=None if loops is None else loops.wall_s / times.wall_s,
        extra_mib=extra, embeddings_mib=drawn.embeddings.nbytes / 2**20,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
