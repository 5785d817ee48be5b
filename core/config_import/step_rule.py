"""AdaDistill's rate schedule, and insightface's of 2021, written as a function of the epoch, recognised by its syntax:

    ((epoch + 1) / (W + 1)) ** 2 if epoch < W else 0.1 ** len([m for m in MILESTONES if m - 1 <= epoch])

The epoch counts from 0, so that the rate drops at the start of the epochs m - 1. With W below 1 there is no warm-up.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


class ConfigImportError(ValueError):
    """No recipe can be made of a config file; the text says why, and what to do."""


class NotLiteralError(ValueError):
    """An expression that is no literal; the text says what it is instead."""


@dataclass(frozen=True, slots=True)
class StepRule:
    """A rate that drops at some epochs."""

    milestones: tuple[int, ...]
    """0-based epochs at whose start it drops."""
    gamma: float
    """What it is multiplied by there."""
    warmup_epochs: float
    """Length of its squared warm-up; 0 for none."""


_OTHER: Final = "another function than AdaDistill's rate schedule, which is not run; write it with its milestones"


def _pattern(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


# Words in capitals stand for any expression, the same one wherever they stand.
_BRANCH: Final = _pattern("WARM if EPOCH < LENGTH else REST")
_SQUARED: Final = _pattern("((EPOCH + 1) / END) ** 2")
_DROPS: Final = (
    _pattern("GAMMA ** len([M for M in MILESTONES if M - EARLIER <= EPOCH])"),
    _pattern("GAMMA ** len([M for M in MILESTONES if M <= EPOCH])"),
)


def read_step_rule(function: ast.FunctionDef | ast.Lambda, value: Callable[[ast.expr], Any]) -> StepRule:
    """Recognise the rate function.

    Args:
        value: the value of an expression of literals; raises NotLiteralError.

    Raises:
        NotLiteralError: it is another function.
    """
    arguments = [*function.args.posonlyargs, *function.args.args]
    if len(arguments) != 1 or function.args.vararg or function.args.kwarg or function.args.kwonlyargs:
        raise NotLiteralError(_OTHER)
    bound: dict[str, ast.AST] = {"EPOCH": ast.Name(arguments[0].arg)}
    rest, warmup = _returned(function), 0.0
    if _matches(_BRANCH, rest, bound):
        rest, warmup = _bound(bound, "REST"), max(0.0, _number(value(_bound(bound, "LENGTH"))))
        # Where it is never reached, whatever it says does not matter.
        if warmup and not _matches(_SQUARED, bound["WARM"], bound):
            raise NotLiteralError(_OTHER)
        if warmup and _number(value(_bound(bound, "END"))) != warmup + 1:
            raise NotLiteralError(f"a warm-up of {warmup:g} epochs that does not end at the full rate")
    for pattern in _DROPS:
        tried = dict(bound)
        if _matches(pattern, rest, tried):
            listed = value(_bound(tried, "MILESTONES"))
            earlier = value(_bound(tried, "EARLIER")) if "EARLIER" in tried else 0
            if not isinstance(listed, list | tuple) or not all(type(m) is int for m in (*listed, earlier)):
                break
            gamma = _number(value(_bound(tried, "GAMMA")))
            return StepRule(tuple(sorted(m - earlier for m in listed)), gamma, warmup)
    raise NotLiteralError(_OTHER)


def _returned(function: ast.FunctionDef | ast.Lambda) -> ast.expr:
    if isinstance(function, ast.Lambda):
        return function.body
    last = function.body[-1]
    others = function.body[:-1]
    if (
        isinstance(last, ast.Return)
        and last.value is not None
        and not function.decorator_list
        and all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in others)
    ):
        return last.value
    raise NotLiteralError(_OTHER)


def _matches(pattern: Any, node: Any, bound: dict[str, ast.AST]) -> bool:
    """Whether a syntax tree has the shape of a pattern; binds what its words in capitals stand for."""
    if isinstance(pattern, ast.Name) and pattern.id.isupper():
        return ast.unparse(bound.setdefault(pattern.id, node)) == ast.unparse(node)
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(_matches(*pair, bound) for pair in zip(pattern, node, strict=True))
    if not isinstance(pattern, ast.AST):
        return bool(pattern == node)
    return type(pattern) is type(node) and all(
        _matches(getattr(pattern, name), getattr(node, name), bound) for name in pattern._fields if name != "ctx"
    )


def _bound(bound: dict[str, ast.AST], word: str) -> ast.expr:
    found = bound[word]
    assert isinstance(found, ast.expr), "patterns are expressions"
    return found


def _number(found: Any) -> float:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return float(found)
    raise NotLiteralError(_OTHER)
