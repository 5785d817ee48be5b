"""From embeddings of all images to every number that is reported of an IJB set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.ijb.identification import FPIRS, RANKS, search_gallery
from adadistill.core.scoring.ijb.pair_scores import PairPlan, pair_scores, plan_pairs
from adadistill.core.scoring.ijb.pooling import ALL_MODES, PoolingMode, pool_templates, why_withheld
from adadistill.core.scoring.ijb.roc import PUBLISHED_FARS, RocPoints, nearest_point, roc_points, thinned
from adadistill.core.scoring.pair_metrics import misses_target, operating_point, too_few
from adadistill.core.scoring.result import BenchmarkResult, Curve, Histogram, Score
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations
from adadistill.loaders.usable_cpus import usable_cpus

HEADLINE_MODE = PoolingMode(norm=False, det=True)
HEADLINE_FAR = 1e-4
"""What CVLface's tables show. insightface's and the origin's show Norm:True, Det:True at the same rate."""

_BINS = 200
_WORST = 10

Floats = npt.NDArray[np.float64]


def score_ijb(
    embeddings: npt.NDArray[np.floating[Any]],
    annotations: IjbAnnotations,
    *,
    data_sha256: str,
    modes: Sequence[PoolingMode] = ALL_MODES,
    note: str | None = None,
    seconds: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> BenchmarkResult:
    """All scores of a set.

    Args:
        embeddings: (N, D) flip sums of raw embeddings, float32 or float64.
        data_sha256: of the set.
        modes: at least one; the headline is CVLface's mode where it is among them, else the first.
        note: that goes with every score, for example that the set is not the published one.
        seconds: of the stages before this one.
        threads: templates pooled and modes scored at a time; None takes as many as there are cores. The same bits come
            out of any number.

    Raises:
        NonFiniteEmbeddingsError: an embedding is NaN, infinite or zero; names image and template.
        ValueError: counts disagree, or there are no modes.

    Memory, for IJB-C: 100 MB for each mode, 0.7 GB, and 0.8 GB a thread, beside the embeddings.
    """
    if not modes:
        raise ValueError("name at least one pooling mode")
    headline_mode = HEADLINE_MODE if HEADLINE_MODE in modes else modes[0]
    from threadpoolctl import threadpool_limits

    pooled = pool_templates(embeddings, annotations, modes, threads=threads)
    plan = plan_pairs(annotations)

    def scored(mode: PoolingMode) -> _ModeScores:
        return _score_mode(mode, pooled[mode], plan, annotations, note, names_worst=mode == headline_mode)

    # numpy lets go of the interpreter while it multiplies, gathers and sorts, which is nearly all there is to do. Its
    # products take one thread each: modes would fight over more, and sums would depend on the number of cores.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(min(threads or usable_cpus(), len(modes))) as pool,
    ):
        found = list(pool.map(scored, modes))
    return BenchmarkResult(
        kind="ijb",
        name=annotations.name,
        data_sha256=data_sha256,
        counts=annotations.counts,
        scores=tuple(score for one in found for score in one.scores),
        headline=f"ijb.{annotations.name}.{headline_mode.name}_tpr_at_fpr_{HEADLINE_FAR}",
        curves=tuple(curve for one in found for curve in one.curves),
        histograms=tuple(histogram for one in found for histogram in one.histograms),
        errors=tuple(error for one in found for error in one.errors),
        seconds=dict(seconds or {}),
    )


@dataclass(frozen=True, slots=True)
class _ModeScores:
    scores: list[Score]
    curves: list[Curve]
    histograms: list[Histogram]
    errors: list[Mapping[str, Any]]


def _score_mode(
    mode: PoolingMode,
    pooled: Floats,
    plan: PairPlan,
    annotations: IjbAnnotations,
    note: str | None,
    *,
    names_worst: bool,
) -> _ModeScores:
    cosines = pair_scores(pooled, plan)
    prefix, curve_name = f"ijb.{annotations.name}.{mode.name}", f"{annotations.name} {mode.name}"
    errors = _worst_pairs(cosines, plan, annotations) if names_worst else []
    same, different = np.sort(cosines[plan.same]), cosines[~plan.same]
    del cosines
    different.sort()
    points = roc_points(same, different)
    scores: list[Score] = []
    for far in PUBLISHED_FARS:
        scores += _nearest_scores(prefix, mode, points, different, far, note)
        scores.append(_strict_score(prefix, mode, same, different, far, note))
    scores += _identification_scores(prefix, mode, pooled, annotations, note)
    reason = why_withheld(mode, pooled, annotations)
    if reason is not None:
        return _ModeScores([replace(score, value=None, note=reason) for score in scores], [], [], [])
    rates = thinned(points)
    return _ModeScores(
        scores,
        [Curve(name=curve_name, false_accept_rates=rates[0], true_accept_rates=rates[1])],
        [_histogram(curve_name, same, different)],
        errors,
    )


def _protocol(mode: PoolingMode, what: str) -> str:
    norm = "norms kept" if mode.norm else "unit embeddings"
    detector = "times detector scores" if mode.det else "without detector scores"
    return f"{what}, {mode.name} ({norm}, {detector}), flip sum"


def _nearest_scores(
    prefix: str, mode: PoolingMode, points: RocPoints, different: Floats, far: float, note: str | None
) -> list[Score]:
    """The rate and the threshold under the names of the public files; a rate of too few pairs is given as published."""
    nearest = nearest_point(points, far)
    missed = misses_target(different[::-1], far)
    note = "; ".join(part for part in (missed or too_few(len(different), far), note) if part) or None
    threshold = None if missed or not np.isfinite(nearest.threshold) else nearest.threshold
    protocol = _protocol(mode, f"1:1, point nearest to FAR {far:g} as published")
    rate = Score(
        key=f"{prefix}_tpr_at_fpr_{far}",
        label=f"TAR@FAR={far:g}",
        value=None if missed else nearest.tar,
        protocol=protocol,
        note=note,
    )
    return [
        rate,
        Score(
            key=f"{prefix}_thresh_at_fpr_{far}",
            label=f"threshold@FAR={far:g}",
            value=threshold,
            is_share=False,
            protocol=protocol,
            note=note if missed or threshold is not None else "the nearest point accepts nothing",
        ),
    ]


def _strict_score(
    prefix: str, mode: PoolingMode, same: Floats, different: Floats, far: float, note: str | None
) -> Score:
    point = operating_point(different[::-1], same, far=far)
    return Score(
        key=f"{prefix}_tpr_at_fpr_{far}_strict",
        label=f"TAR@FAR<={far:g}",
        value=point.tar,
        protocol=_protocol(mode, f"1:1, strict: FAR at most {far:g}"),
        note=point.reason or note,
    )


def _identification_scores(
    prefix: str, mode: PoolingMode, pooled: Floats, annotations: IjbAnnotations, note: str | None
) -> list[Score]:
    probes = annotations.probes
    if probes is None:
        return []
    searches = [
        search_gallery(pooled[gallery.templates], gallery.subjects, pooled[probes.templates], probes.subjects)
        for gallery in annotations.galleries
    ]
    scores = []
    for place, fpir in enumerate(FPIRS):
        rates = [search.tpirs[place] for search in searches]
        missed = next((why for search in searches if (why := search.missed[place]) is not None), None)
        scores.append(
            Score(
                key=f"{prefix}_tpir_at_fpir_{fpir}",
                label=f"TPIR@FPIR={fpir:g}",
                value=None if missed else sum(rate for rate in rates if rate is not None) / len(rates),
                protocol=_protocol(mode, "1:N, mean over galleries searched apart"),
                note=missed or note,
            )
        )
    for place, rank in enumerate(RANKS):
        hits = sum(search.hits[place] for search in searches)
        scores.append(
            Score(
                key=f"{prefix}_rank-{rank}",
                label=f"rank {rank}",
                value=hits / len(probes),
                protocol=_protocol(mode, "1:N, hits in all galleries over all probes"),
                note=note,
            )
        )
    return scores


def _histogram(name: str, same: Floats, different: Floats) -> Histogram:
    """Counts from ascending scores."""
    edges = np.linspace(-1.0, 1.0, _BINS + 1)
    inner = edges[1:-1]  # rounding may take a cosine past 1: the outer bins hold whatever lies beyond
    counts = [
        np.diff(np.concatenate([[0], np.searchsorted(scores, inner), [len(scores)]])) for scores in (same, different)
    ]
    return Histogram(name=name, edges=edges, same=counts[0], different=counts[1])


def _worst_pairs(cosines: Floats, plan: PairPlan, annotations: IjbAnnotations) -> list[Mapping[str, Any]]:
    """Same pairs with the lowest scores and different pairs with the highest, worst first."""
    worst: list[Mapping[str, Any]] = []
    for same in (True, False):
        places = np.flatnonzero(plan.same == same)
        badness = cosines[places] if same else -cosines[places]
        count = min(_WORST, len(places))
        chosen = np.argpartition(badness, count - 1)[:count]
        for place in places[chosen[np.argsort(badness[chosen], kind="stable")]]:
            pair = int(plan.order[place])
            worst.append(
                {
                    "pair": pair,
                    "same": same,
                    "score": float(cosines[place]),
                    "templates": [
                        int(annotations.template_ids[side[pair]]) for side in (annotations.first, annotations.second)
                    ],
                }
            )
    return worst
