"""Benchmark results as JSON and back.

What is read may have been written by anybody, or half by a disk: every field is checked, and a report is refused with
the place that is wrong rather than drawn from what is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np

from adadistill.core.scoring.result import BenchmarkKind, BenchmarkResult, Curve, Histogram, Score


class StoredResultError(ValueError):
    """JSON that is no benchmark result; the text names the field."""


def result_to_json(result: BenchmarkResult) -> dict[str, Any]:
    """All of a result as JSON types. Rates are shares in [0, 1], whatever they are in CSV files."""
    return {
        "kind": result.kind,
        "name": result.name,
        "data_sha256": result.data_sha256,
        "counts": dict(result.counts),
        "headline": result.headline,
        "scores": [
            {
                "key": score.key,
                "label": score.label,
                "value": score.value,
                "is_share": score.is_share,
                "deviation": score.deviation,
                "interval": None if score.interval is None else list(score.interval),
                "protocol": score.protocol,
                "note": score.note,
            }
            for score in result.scores
        ],
        "curves": [
            {
                "name": curve.name,
                "false_accept_rates": curve.false_accept_rates.tolist(),
                "true_accept_rates": curve.true_accept_rates.tolist(),
            }
            for curve in result.curves
        ],
        "histograms": [
            {
                "name": one.name,
                "edges": one.edges.tolist(),
                "same": one.same.tolist(),
                "different": one.different.tolist(),
            }
            for one in result.histograms
        ],
        "errors": [dict(error) for error in result.errors],
        "seconds": dict(result.seconds),
    }


def result_from_json(content: object, *, where: str) -> BenchmarkResult:
    """The result that `result_to_json` wrote.

    Args:
        where: file and place, for errors.

    Raises:
        StoredResultError: a field is missing, of another type, or out of its range.
    """
    fields = _mapping(content, where)
    kind = _text(fields, "kind", where)
    if kind not in get_args(BenchmarkKind):
        raise StoredResultError(f"{where}: kind must be one of {', '.join(get_args(BenchmarkKind))}, got {kind!r:.40}")
    scores = tuple(_score(one, f"{where}: scores[{index}]") for index, one in enumerate(_list(fields, "scores", where)))
    headline = _text(fields, "headline", where)
    keys = [score.key for score in scores]
    if headline not in keys or len(set(keys)) != len(keys):
        raise StoredResultError(f"{where}: the headline must be the key of a score, and keys must differ")
    return BenchmarkResult(
        kind=cast(BenchmarkKind, kind),
        name=_text(fields, "name", where),
        data_sha256=_text(fields, "data_sha256", where),
        counts={
            name: _count(value, f"{where}: counts") for name, value in _mapping_in(fields, "counts", where).items()
        },
        scores=scores,
        headline=headline,
        curves=tuple(_curve(one, f"{where}: curves[{i}]") for i, one in enumerate(_list(fields, "curves", where))),
        histograms=tuple(
            _histogram(one, f"{where}: histograms[{i}]") for i, one in enumerate(_list(fields, "histograms", where))
        ),
        errors=tuple(_plain(one, f"{where}: errors[{i}]") for i, one in enumerate(_list(fields, "errors", where))),
        seconds={n: _number(value, f"{where}: seconds") for n, value in _mapping_in(fields, "seconds", where).items()},
    )


def _score(content: object, where: str) -> Score:
    fields = _mapping(content, where)
    is_share, interval, note = fields.get("is_share"), fields.get("interval"), fields.get("note")
    if type(is_share) is not bool:
        raise StoredResultError(f"{where}: is_share must be true or false")
    if interval is not None and (not isinstance(interval, list) or len(interval) != 2):
        raise StoredResultError(f"{where}: interval must be two numbers or null")
    if note is not None and not isinstance(note, str):
        raise StoredResultError(f"{where}: note must be text or null")
    value = _optional(fields.get("value"), f"{where}: value")
    if is_share and value is not None and not -1e-9 <= value <= 1.0 + 1e-9:
        raise StoredResultError(f"{where}: a share must be in [0, 1], got {value:g}")
    return Score(
        key=_text(fields, "key", where),
        label=_text(fields, "label", where),
        value=value,
        is_share=is_share,
        deviation=_optional(fields.get("deviation"), f"{where}: deviation"),
        interval=None
        if interval is None
        else (_number(interval[0], f"{where}: interval"), _number(interval[1], f"{where}: interval")),
        protocol=_text(fields, "protocol", where),
        note=note,
    )


def _curve(content: object, where: str) -> Curve:
    fields = _mapping(content, where)
    rates = [
        np.array([_share(value, where) for value in _list(fields, name, where)], dtype=np.float64)
        for name in ("false_accept_rates", "true_accept_rates")
    ]
    if len(rates[0]) != len(rates[1]) or (np.diff(rates[0]) < 0.0).any():
        raise StoredResultError(f"{where}: needs as many true as false accept rates, the latter ascending")
    return Curve(name=_text(fields, "name", where), false_accept_rates=rates[0], true_accept_rates=rates[1])


def _histogram(content: object, where: str) -> Histogram:
    fields = _mapping(content, where)
    edges = np.array([_number(value, where) for value in _list(fields, "edges", where)], dtype=np.float64)
    same, different = (
        np.array([_count(value, where) for value in _list(fields, name, where)], dtype=np.int64)
        for name in ("same", "different")
    )
    if len(edges) < 2 or len(same) != len(edges) - 1 or len(different) != len(same) or (np.diff(edges) <= 0.0).any():
        raise StoredResultError(f"{where}: needs rising edges, and a count of each kind between two edges")
    return Histogram(name=_text(fields, "name", where), edges=edges, same=same, different=different)


def _plain(content: object, where: str) -> Mapping[str, Any]:
    """A mapping of numbers, texts, truths, nothing, and short lists of these."""
    fields = _mapping(content, where)
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float):
                _number(one, f"{where}: {name!r:.40}")
            elif one is not None and not isinstance(one, (str, int)):
                raise StoredResultError(f"{where}: {name!r:.40} must be a number, text, or a list of these")
    return fields


def _mapping(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise StoredResultError(f"{where}: must be an object, got {type(content).__name__}")
    return content


def _mapping_in(fields: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return _mapping(fields.get(name), f"{where}: {name}")


def _list(fields: Mapping[str, Any], name: str, where: str) -> Sequence[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise StoredResultError(f"{where}: {name} must be a list, got {type(value).__name__}")
    return value


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise StoredResultError(f"{where}: {name} must be text, got {type(value).__name__}")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise StoredResultError(f"{where}: must be a finite number, got {value!r:.40}")
    return float(value)


def _share(value: object, where: str) -> float:
    number = _number(value, where)
    if not 0.0 <= number <= 1.0:
        raise StoredResultError(f"{where}: a rate must be in [0, 1], got {number:g}")
    return number


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise StoredResultError(f"{where}: must be a count, got {value!r:.40}")
    return value


def _optional(value: object, where: str) -> float | None:
    return None if value is None else _number(value, where)
