"""Benchmark results as JSON and back.

What is read may have been written by anybody, or half by a disk: every field is held to its type in `result.py`, and a
report is refused with the place that is wrong rather than drawn from what is left of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from adadistill.core.scoring.evaluation_config import KINDS
from adadistill.core.scoring.result import BenchmarkResult

_NOT_STORED = ("details", "told")
"""Fields of a result that its evaluation keeps elsewhere, or that are made of the others."""


_HUGE = 1e300
"""Beyond any number of ours; infinities, NaN and whole numbers that are no float lie beyond it too."""


class StoredResultError(ValueError):
    """JSON that is no benchmark result, or no evaluation; the text names file and field."""


def result_to_json(result: BenchmarkResult) -> dict[str, Any]:
    """All of a result as JSON types. Rates are shares in [0, 1], whatever they are in CSV files."""
    content: dict[str, Any] = _jsonable(dataclasses.asdict(result))
    return {name: value for name, value in content.items() if name not in _NOT_STORED}


def result_from_json(content: object, *, where: str) -> BenchmarkResult:
    """The result that `result_to_json` wrote, without its `details`.

    Args:
        where: file and place, for errors.

    Raises:
        StoredResultError: a field is missing, of another type, or out of its range.
    """
    result: BenchmarkResult = _read(BenchmarkResult, content, where)
    if result.kind not in KINDS:
        raise StoredResultError(f"{where}: kind must be one of {', '.join(KINDS)}, got {result.kind!r:.40}")
    keys = [score.key for score in result.scores]
    if result.headline not in keys or len(set(keys)) != len(keys):
        raise StoredResultError(f"{where}: the headline must be the key of a score, and keys must differ")
    return result


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _jsonable(one) for key, one in value.items()}
    return [_jsonable(one) for one in value] if isinstance(value, (list, tuple)) else value


def _read(wanted: Any, content: object, where: str) -> Any:
    """A value of JSON as one of the type that is wanted. Raises StoredResultError."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if dataclasses.is_dataclass(wanted):
        return _read_fields(wanted, _held(content, dict, where), where)
    if origin is np.ndarray:
        number = float if inner[1] == np.dtype[np.float64] else int
        return np.array([_read(number, one, where) for one in _held(content, list, where)], dtype=get_args(inner[1])[0])
    if origin is tuple and inner[-1] is ...:
        return tuple(_read(inner[0], one, f"{where}[{i}]") for i, one in enumerate(_held(content, list, where)))
    if origin is tuple:
        values = _held(content, list, where)
        if len(values) != len(inner):
            raise StoredResultError(f"{where} must be {len(inner)} values, got {len(values)}")
        return tuple(_read(one, value, where) for one, value in zip(inner, values, strict=True))
    if origin is Mapping:
        values = _held(content, dict, where)
        return {name: _read(inner[1], value, f"{where}: {name!r:.40}") for name, value in values.items()}
    if NoneType in inner:
        return None if content is None else _read(inner[0], content, where)
    return _read_plain(wanted, content, where)


def _read_fields(wanted: Any, content: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(wanted, include_extras=False)
    names = [one.name for one in dataclasses.fields(wanted) if one.name not in _NOT_STORED]
    values = {name: _read(hints[name], content.get(name), f"{where}: {name}") for name in names}
    try:
        return wanted(**values)
    except ValueError as error:  # of the class's own checks
        raise StoredResultError(f"{where}: {error}") from None


def _read_plain(wanted: Any, content: object, where: str) -> Any:
    if wanted is Any:  # of a worst case: numbers, texts, truths, nothing, and short lists of these
        for one in content if isinstance(content, list) else [content]:
            if isinstance(one, float):
                _read_plain(float, one, where)
            elif one is not None and not isinstance(one, (str, int)):
                raise StoredResultError(f"{where} must be a number, text, or a list of these")
        return content
    if wanted is float and type(content) in (int, float) and -_HUGE < content < _HUGE:  # type: ignore[operator]
        return float(content)  # type: ignore[arg-type]
    if wanted is int and type(content) is int and 0 <= content < 1 << 62:
        return content
    if wanted in (str, bool) and type(content) is wanted:
        return content
    expected = {float: "a finite number", int: "a count", str: "text", bool: "true or false"}[wanted]
    raise StoredResultError(f"{where} must be {expected}, got {content!r:.40}")


def _held(content: object, wanted: type, where: str) -> Any:
    if not isinstance(content, wanted):
        expected = "an object" if wanted is dict else "a list"
        raise StoredResultError(f"{where} must be {expected}, got {type(content).__name__}")
    return content
