"""Benchmark results as JSON and back.

What is read may have been written by anybody, or half by a disk: every field is checked, and a report is refused with
the place that is wrong rather than drawn from what is left of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.evaluation_config import KINDS
from adadistill.core.scoring.result import BenchmarkResult, Curve, Histogram, Score

T = TypeVar("T")
Reader = Callable[[object, str], T]
"""Checks one value; the text says what and where it is, for errors."""


class StoredResultError(ValueError):
    """JSON that is no benchmark result, or no evaluation; the text names file and field."""


def result_to_json(result: BenchmarkResult) -> dict[str, Any]:
    """All of a result as JSON types. Rates are shares in [0, 1], whatever they are in CSV files."""
    content = _jsonable(dataclasses.asdict(result))
    del content["details"], content["told"]  # kept apart, and made of the others
    return content


def result_from_json(content: object, *, where: str) -> BenchmarkResult:
    """The result that `result_to_json` wrote, without its `details`.

    Args:
        where: file and place, for errors.

    Raises:
        StoredResultError: a field is missing, of another type, or out of its range.
    """
    result = BenchmarkResult(
        **_fields(
            content,
            where,
            kind=_kind,
            name=_text,
            data_sha256=_text,
            counts=_by_name(_count),
            scores=_each(_score),
            headline=_text,
            curves=_each(_curve),
            histograms=_each(_histogram),
            errors=_each(_plain),
            seconds=_by_name(_number),
        )
    )
    keys = [score.key for score in result.scores]
    _require(
        result.headline in keys and len(set(keys)) == len(keys),
        f"{where}: the headline must be the key of a score, and keys must differ",
    )
    return result


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _jsonable(one) for key, one in value.items()}
    return [_jsonable(one) for one in value] if isinstance(value, (list, tuple)) else value


def _score(content: object, where: str) -> Score:
    score = Score(
        **_fields(
            content,
            where,
            key=_text,
            label=_text,
            value=_optional(_number),
            is_share=_truth,
            deviation=_optional(_number),
            interval=_optional(_interval),
            protocol=_text,
            note=_optional(_text),
        )
    )
    if score.is_share and score.value is not None:
        _require(-1e-9 <= score.value <= 1.0 + 1e-9, f"{where}: a share must be in [0, 1], got {score.value:g}")
    return score


def _curve(content: object, where: str) -> Curve:
    curve = Curve(**_fields(content, where, name=_text, false_accept_rates=_rates, true_accept_rates=_rates))
    fars, tars = curve.false_accept_rates, curve.true_accept_rates
    _require(
        len(fars) == len(tars) and not (np.diff(fars) < 0.0).any(),
        f"{where}: needs as many true as false accept rates, the latter ascending",
    )
    return curve


def _histogram(content: object, where: str) -> Histogram:
    one = Histogram(**_fields(content, where, name=_text, edges=_numbers, same=_counts, different=_counts))
    bins = len(one.edges) - 1
    _require(
        bins >= 1 and len(one.same) == len(one.different) == bins and bool((np.diff(one.edges) > 0.0).all()),
        f"{where}: needs rising edges, and a count of each kind between two edges",
    )
    return one


def _plain(content: object, where: str) -> Mapping[str, Any]:
    """A mapping of numbers, texts, truths, nothing, and short lists of these."""
    fields = _object(content, where)
    for name, value in fields.items():
        place = f"{where}: {name!r:.40}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float):
                _number(one, place)
            else:
                _require(
                    one is None or isinstance(one, (str, int)), f"{place} must be a number, text, or a list of these"
                )
    return fields


def _fields(content: object, where: str, **readers: Reader[Any]) -> dict[str, Any]:
    """The named fields of an object, each through its reader; others are passed over."""
    found = _object(content, where)
    return {name: read(found.get(name), f"{where}: {name}") for name, read in readers.items()}


def _each(read: Reader[T]) -> Reader[tuple[T, ...]]:
    def of_list(content: object, where: str) -> tuple[T, ...]:
        return tuple(read(one, f"{where}[{index}]") for index, one in enumerate(_list(content, where)))

    return of_list


def _by_name(read: Reader[T]) -> Reader[dict[str, T]]:
    return lambda content, where: {
        name: read(value, f"{where}: {name!r:.40}") for name, value in _object(content, where).items()
    }


def _optional(read: Reader[T]) -> Reader[T | None]:
    return lambda content, where: None if content is None else read(content, where)


def _kind(content: object, where: str) -> str:
    kind = _text(content, where)
    _require(kind in KINDS, f"{where} must be one of {', '.join(KINDS)}, got {kind!r:.40}")
    return kind


def _interval(content: object, where: str) -> tuple[float, float]:
    _require(isinstance(content, list) and len(content) == 2, f"{where} must be two numbers or null")
    low, high = (_number(one, where) for one in _list(content, where))
    return low, high


def _rates(content: object, where: str) -> npt.NDArray[np.float64]:
    rates = _numbers(content, where)
    wrong = rates[(rates < 0.0) | (rates > 1.0)]
    _require(not wrong.size, f"{where}: a rate must be in [0, 1], got {wrong[0] if wrong.size else 0:g}")
    return rates


def _numbers(content: object, where: str) -> npt.NDArray[np.float64]:
    return np.array([_number(one, where) for one in _list(content, where)], dtype=np.float64)


def _counts(content: object, where: str) -> npt.NDArray[np.int64]:
    return np.array([_count(one, where) for one in _list(content, where)], dtype=np.int64)


def _object(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise StoredResultError(f"{where} must be an object, got {type(content).__name__}")
    return content


def _list(content: object, where: str) -> Sequence[Any]:
    if not isinstance(content, list):
        raise StoredResultError(f"{where} must be a list, got {type(content).__name__}")
    return content


def _text(content: object, where: str) -> str:
    if not isinstance(content, str):
        raise StoredResultError(f"{where} must be text, got {type(content).__name__}")
    return content


def _truth(content: object, where: str) -> bool:
    if not isinstance(content, bool):
        raise StoredResultError(f"{where} must be true or false")
    return content


def _number(content: object, where: str) -> float:
    if isinstance(content, bool) or not isinstance(content, (int, float)) or not math.isfinite(content):
        raise StoredResultError(f"{where} must be a finite number, got {content!r:.40}")
    return float(content)


def _count(content: object, where: str) -> int:
    if isinstance(content, bool) or not isinstance(content, int) or not 0 <= content < 1 << 62:
        raise StoredResultError(f"{where} must be a count, got {content!r:.40}")
    return content


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise StoredResultError(problem)
