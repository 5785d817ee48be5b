"""AdaDistill's rate schedule, which its configs write as a function of the epoch, recognised from the syntax tree:

    ((epoch + 1) / (W + 1)) ** 2 if epoch < W else 0.1 ** len([m for m in MILESTONES if m - 1 <= epoch])

The epoch counts from 0, so that the rate drops at the start of the epochs m - 1. With W below 1 there is no warm-up.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


_OTHER = "another function than AdaDistill's rate schedule, which is not run"


def read_step_rule(function: ast.FunctionDef | ast.Lambda, value: Callable[[ast.expr], Any]) -> StepRule:
    """Recognise the rate function.

    Args:
        value: the value of an expression of literals; raises NotLiteralError.

    Raises:
        NotLiteralError: it is another function.
    """
    arguments = function.args
    if len(arguments.args) != 1 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
        raise NotLiteralError(_OTHER)
    epoch, body = arguments.args[0].arg, _returned(function)
    if not isinstance(body, ast.IfExp):
        milestones, gamma = _drops(body, epoch, value)
        return StepRule(milestones, gamma, 0.0)
    milestones, gamma = _drops(body.orelse, epoch, value)
    return StepRule(milestones, gamma, _warm_up(body, epoch, value))


def _returned(function: ast.FunctionDef | ast.Lambda) -> ast.expr:
    if isinstance(function, ast.Lambda):
        return function.body
    statements = [
        node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    if len(statements) == 1 and isinstance(statements[0], ast.Return) and statements[0].value is not None:
        return statements[0].value
    raise NotLiteralError(_OTHER)


def _warm_up(node: ast.IfExp, epoch: str, value: Callable[[ast.expr], Any]) -> float:
    """W of `((epoch + 1) / (W + 1)) ** 2 if epoch < W`."""
    test, squared = node.test, node.body
    if not (
        isinstance(test, ast.Compare)
        and _is_name(test.left, epoch)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Lt)
    ):
        raise NotLiteralError(_OTHER)
    length = _number(value(test.comparators[0]))
    if length <= 0.0:
        return 0.0  # never reached, whatever it says
    if not (isinstance(squared, ast.BinOp) and isinstance(squared.op, ast.Pow) and _number(value(squared.right)) == 2):
        raise NotLiteralError(_OTHER)
    ratio = squared.left
    if not (isinstance(ratio, ast.BinOp) and isinstance(ratio.op, ast.Div) and _is_next(ratio.left, epoch)):
        raise NotLiteralError(_OTHER)
    if _number(value(ratio.right)) != length + 1:
        raise NotLiteralError(f"a warm-up of {length:g} epochs that does not end at the full rate")
    return length


def _drops(node: ast.expr, epoch: str, value: Callable[[ast.expr], Any]) -> tuple[tuple[int, ...], float]:
    """`gamma ** len([m for m in MILESTONES if m - 1 <= epoch])`."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Call)):
        raise NotLiteralError(_OTHER)
    call = node.right
    if not (_is_name(call.func, "len") and len(call.args) == 1 and not call.keywords):
        raise NotLiteralError(_OTHER)
    counted = call.args[0]
    if not (isinstance(counted, ast.ListComp) and len(counted.generators) == 1):
        raise NotLiteralError(_OTHER)
    loop = counted.generators[0]
    if not (isinstance(loop.target, ast.Name) and _is_name(counted.elt, loop.target.id) and len(loop.ifs) == 1):
        raise NotLiteralError(_OTHER)
    earlier = _offset(loop.ifs[0], loop.target.id, epoch, value)
    listed = value(loop.iter)
    if not (isinstance(listed, list | tuple) and all(type(m) is int for m in listed)):
        raise NotLiteralError(_OTHER)
    return tuple(sorted(m - earlier for m in listed)), _number(value(node.left))


def _offset(node: ast.expr, name: str, epoch: str, value: Callable[[ast.expr], Any]) -> int:
    """k of `m - k <= epoch`; 0 of `m <= epoch`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.LtE):
        left = node.left
        if _is_name(node.comparators[0], epoch):
            if _is_name(left, name):
                return 0
            if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Sub) and _is_name(left.left, name):
                offset = value(left.right)
                if type(offset) is int:
                    return offset
    raise NotLiteralError(_OTHER)


def _is_next(node: ast.expr, epoch: str) -> bool:
    """`epoch + 1`."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and _is_name(node.left, epoch)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
    )


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _number(found: Any) -> float:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return float(found)
    raise NotLiteralError(_OTHER)
