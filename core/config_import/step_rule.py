"""AdaDistill's rate schedule, and insightface's of 2021, written as a function of the epoch, recognised by its text:

    ((epoch + 1) / (W + 1)) ** 2 if epoch < W else 0.1 ** len([m for m in MILESTONES if m - 1 <= epoch])

The epoch counts from 0, so that the rate drops at the start of the epochs m - 1. With W below 1 there is no warm-up.
"""

from __future__ import annotations

import ast
import re
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
# Of the text that `ast.unparse` gives, which has one way to write each expression.
_BRANCH: Final = re.compile(r"(?P<warm>.+) if EPOCH < (?P<length>.+?) else (?P<rest>.+)")
_SQUARED: Final = re.compile(r"\(\(EPOCH \+ 1\) / (?P<end>.+)\) \*\* 2")
_DROPS: Final = re.compile(
    r"(?P<gamma>[^ ]+) \*\* len\(\[(?P<m>\w+) for (?P=m) in (?P<milestones>.+) "
    r"if (?P=m)( - (?P<earlier>\w+))? <= EPOCH\]\)"
)


def read_step_rule(function: ast.FunctionDef | ast.Lambda, value: Callable[[ast.expr], Any]) -> StepRule:
    """Recognise the rate function.

    Args:
        value: the value of an expression of literals; raises NotLiteralError.

    Raises:
        NotLiteralError: it is another function.
    """

    def number(text: str) -> float:
        found = value(ast.parse(text, mode="eval").body)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise NotLiteralError(_OTHER)
        return float(found)

    rest, warmup = _text(function), 0.0
    if branch := _BRANCH.fullmatch(rest):
        rest, warmup = branch["rest"], max(0.0, number(branch["length"]))
        # Where it is never reached, whatever it says does not matter.
        squared = _SQUARED.fullmatch(branch["warm"])
        if warmup and squared is None:
            raise NotLiteralError(_OTHER)
        if warmup and squared is not None and number(squared["end"]) != warmup + 1:
            raise NotLiteralError(f"a warm-up of {warmup:g} epochs that does not end at the full rate")
    if (drops := _DROPS.fullmatch(rest)) is None:
        raise NotLiteralError(_OTHER)
    listed = value(ast.parse(drops["milestones"], mode="eval").body)
    earlier = number(drops["earlier"] or "0")
    if not isinstance(listed, list | tuple) or earlier % 1 or not all(type(m) is int for m in listed):
        raise NotLiteralError(_OTHER)
    return StepRule(tuple(sorted(m - int(earlier) for m in listed)), number(drops["gamma"]), warmup)


def _text(function: ast.FunctionDef | ast.Lambda) -> str:
    """What the function returns, its one argument written EPOCH."""
    if isinstance(function, ast.Lambda):
        returned: ast.expr | None = function.body
    else:
        *others, last = function.body
        sober = all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in others)
        returned = last.value if isinstance(last, ast.Return) and sober and not function.decorator_list else None
    arguments = [*function.args.posonlyargs, *function.args.args]
    others_too = function.args.vararg or function.args.kwarg or function.args.kwonlyargs
    if returned is None or len(arguments) != 1 or others_too:
        raise NotLiteralError(_OTHER)
    return re.sub(rf"(?<![.\w]){re.escape(arguments[0].arg)}(?!\w)", "EPOCH", ast.unparse(returned))
