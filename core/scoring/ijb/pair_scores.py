"""Cosines of the pairs of a 1:1 protocol, in float64.

IJB-C compares a fifth of all combinations of its 3,531 gallery and 19,593 probe templates. Taking two rows of 512 for
each of 15.7 million pairs moves 128 GB; multiplying blocks of gallery rows with all probe rows and keeping what is
asked for costs 71 GFLOP and reads each row once. Sets whose pairs are few among the combinations go row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations

_BLOCK_BYTES = 16 << 20
"""Of cosines, or of rows, at once."""

_DENSE_ABOVE = 1 / 100
"""Share of all combinations from which products of blocks are faster. On one core a pair by itself takes 4 us, which is
fetching its rows, and a combination within a product 16 to 40 ns, at 512 columns."""


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Pairs sorted by their first template, once for all modes."""

    order: npt.NDArray[np.int64]
    """(P,) pair i of the plan is pair order[i] of the set."""
    same: npt.NDArray[np.bool_]
    """(P,) in the plan's order, as all that follow."""
    rows: npt.NDArray[np.int32]
    """(U,) first templates, each once."""
    begins: npt.NDArray[np.int64]
    """(U + 1,) where each one's pairs begin."""
    columns: npt.NDArray[np.int32]
    """(V,) second templates, each once."""
    column_of_pair: npt.NDArray[np.int32]
    """(P,) place among the columns."""


def plan_pairs(annotations: IjbAnnotations) -> PairPlan:
    """Sort a set's pairs. Takes seconds for IJB-C, and 400 MB."""
    # Sorting places and positions as one number is several times faster than a stable argsort, and as exact.
    keys = annotations.first.astype(np.int64) << 32
    keys |= np.arange(len(keys))
    keys.sort()
    first, order = (keys >> 32).astype(np.int32), keys & 0xFFFFFFFF
    begins = np.flatnonzero(np.append(True, first[1:] != first[:-1]))
    used = np.zeros(len(annotations.template_ids), dtype=np.bool_)
    used[annotations.second] = True
    place = np.cumsum(used, dtype=np.int32) - 1  # (T,)
    return PairPlan(
        order=order,
        same=annotations.same[order],
        rows=first[begins],
        begins=np.append(begins, len(order)),
        columns=np.flatnonzero(used).astype(np.int32),
        column_of_pair=place[annotations.second[order]],
    )


def pair_scores(unit_templates: npt.NDArray[np.float64], plan: PairPlan) -> npt.NDArray[np.float64]:
    """(T, D) unit rows -> (P,) cosines in the plan's order."""
    columns = unit_templates[plan.columns]  # (V, D)
    if len(plan.order) >= _DENSE_ABOVE * len(plan.rows) * len(plan.columns):
        return _by_blocks(unit_templates, columns, plan)
    return _by_pairs(unit_templates, columns, plan)


def _by_blocks(
    unit_templates: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], plan: PairPlan
) -> npt.NDArray[np.float64]:
    scores = np.empty(len(plan.order))
    at_once = max(1, _BLOCK_BYTES // (8 * len(columns)))
    held = np.empty((at_once, len(columns)))  # once: fresh memory costs page faults
    for first in range(0, len(plan.rows), at_once):
        last = min(first + at_once, len(plan.rows))
        cosines = np.matmul(unit_templates[plan.rows[first:last]], columns.T, out=held[: last - first])  # (rows, V)
        start, stop = plan.begins[first], plan.begins[last]
        row_of_pair = np.repeat(np.arange(last - first), np.diff(plan.begins[first : last + 1]))
        scores[start:stop] = cosines[row_of_pair, plan.column_of_pair[start:stop]]
    return scores


def _by_pairs(
    unit_templates: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], plan: PairPlan
) -> npt.NDArray[np.float64]:
    scores = np.empty(len(plan.order))
    row_of_pair = np.repeat(plan.rows, np.diff(plan.begins))
    at_once = max(1, _BLOCK_BYTES // (16 * columns.shape[1]))
    for start in range(0, len(scores), at_once):
        part = slice(start, start + at_once)
        np.einsum("pd,pd->p", unit_templates[row_of_pair[part]], columns[plan.column_of_pair[part]], out=scores[part])
    return scores
