"""The settings that a `config.py` assigns, read from its syntax tree. Nothing of the file is ever run.

The reader understands literals assigned to one config object (`config.lr = 0.1`), arithmetic on numbers and on settings
assigned before, `if` on whether two of them are equal, and AdaDistill's rate function. A value that is anything else is
not known; any other statement that names the config may set anything, and is listed with its line.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.loaders.first_bytes import what_it_is

MAX_BYTES: Final = 1 << 18
MAX_NODES: Final = 20_000

_CONFIG_NAMES: Final = ("config", "cfg")
_START: Final = re.compile(r"\{\}|(?:\w+\.)*(?:edict|EasyDict|dict|ConfigDict|AttrDict|Namespace|SimpleNamespace)\(\)")
_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
# `config.a` and `config["a"]`, as `ast.unparse` writes them.
_KEY: Final = re.compile(r"(?P<config>\w+)(?:\.(?P<key>\w{1,100})|\['(?P<text>\w{1,100})'\])")
# What the rate function returns, its argument written EPOCH:
#   ((epoch + 1) / (W + 1)) ** 2 if epoch < W else 0.1 ** len([m for m in MILESTONES if m - 1 <= epoch])
# The epoch counts from 0, so that the rate drops at the start of the epochs m - 1. With W below 1 there is no warm-up.
_STEPS: Final = re.compile(
    r"(?:(?P<warm>.+) if EPOCH < (?P<length>.+?) else )?(?P<gamma>[^ ]+) \*\* len\(\["
    r"(?P<m>\w+) for (?P=m) in (?P<milestones>.+) if (?P=m)(?: - (?P<earlier>\w+))? <= EPOCH\]\)"
)
_SQUARED: Final = re.compile(r"\(\(EPOCH \+ 1\) / (?P<end>.+)\) \*\* 2")
_OTHER: Final = "another function than AdaDistill's rate schedule, which is not run; write it with its milestones"


class ConfigImportError(ValueError):
    """No recipe can be made of a config file; the text says why, and what to do."""


class _NotReadError(ValueError):
    """A piece of Python that is not understood; the text says what it is."""


@dataclass(frozen=True, slots=True)
class StepRule:
    """A rate that drops at some epochs."""

    milestones: tuple[int, ...]
    """0-based epochs at whose start the rate drops."""
    gamma: float
    """What the rate is multiplied by there."""
    warmup_epochs: float
    """Length of the squared warm-up; 0 for none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The value that a key has at the end of the file: a literal, or a `StepRule`."""

    value: Any
    line: int
    unread: str = ""
    """Why the value could not be read; empty where it was."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A statement that could not be read."""

    line: int
    reason: str
    keys: tuple[str, ...]
    """The settings whose value it leaves unknown."""
    anything: bool = False
    """Whether it may have set any key."""


@dataclass(slots=True)
class ConfigLiterals:
    """What a file assigns, and its statements that could not be read."""

    settings: dict[str, Setting] = field(default_factory=dict)
    statements: list[Unread] = field(default_factory=list)

    @property
    def unread(self) -> list[Unread]:
        """Everything that could not be read, by line."""
        values = [Unread(one.line, one.unread, (key,)) for key, one in self.settings.items() if one.unread]
        return sorted([*self.statements, *values], key=lambda one: one.line)


def read_literals(data: bytes, source: str) -> ConfigLiterals:
    """Read the settings of a config file, of at most 256 KiB of UTF-8.

    Args:
        data: its bytes.
        source: what errors call it.

    Raises:
        ConfigImportError: the file is not Python, is beyond the limits, or assigns no setting.
    """
    name, reader = show_text(source, 300), _Reader()
    try:
        reader.block(_parse(data, name).body)
    except (MemoryError, RecursionError):
        raise ConfigImportError(f"{name}: is not Python, or nested too deeply to be a config") from None
    if not reader.found.settings and not reader.found.statements:
        raise ConfigImportError(f"{name}: assigns no settings; `config.key = value` is looked for")
    return reader.found


def _parse(data: bytes, name: str) -> ast.Module:
    if len(data) > MAX_BYTES:
        raise ConfigImportError(f"{name}: is larger than {MAX_BYTES:,} bytes, too large for a config")
    if data and (other := what_it_is(data, "text", "unknown")) is not None:
        raise ConfigImportError(f"{name} {other}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes are the file's business
            tree = ast.parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigImportError(f"{name}: is not UTF-8 text (byte {error.start})") from None
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigImportError(f"{name}{where}: is not Python 3: {show_text(str(error.msg), 120)}") from None
    except ValueError:
        raise ConfigImportError(f"{name}: is not Python") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ConfigImportError(f"{name}: has more than {MAX_NODES:,} parts, too many for a config")
    return tree


class _Reader:
    """Goes through statements in their order, as Python would, and keeps what they assign."""

    def __init__(self) -> None:
        self.found = ConfigLiterals()
        self._rules: dict[str, StepRule] = {}
        self._config = ""

    def block(self, statements: Iterable[ast.stmt]) -> None:
        """Take in some statements. One that is not understood may have set anything where it names the config."""
        for statement in statements:
            try:
                self._statement(statement)
            except _NotReadError as error:
                names = {getattr(child, "id", getattr(child, "name", None)) for child in ast.walk(statement)}
                anything = self._config in names or isinstance(statement, ast.Import | ast.ImportFrom)
                self._rules = {name: rule for name, rule in self._rules.items() if name not in names}
                self.found.statements.append(Unread(statement.lineno, str(error), (), anything))

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(node.targets[0], node.value)
        elif isinstance(node, ast.If):
            self.block(node.body if self._holds(node.test) else node.orelse)
        elif isinstance(node, ast.FunctionDef):
            self._rules[node.name] = self._step_rule(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name in {(alias.asname or alias.name).partition(".")[0] for alias in node.names}:
                self._rules.pop(name, None)
                if name in ("*", self._config, *_CONFIG_NAMES):
                    self._config = self._config or name
                    raise _NotReadError("settings of another file, which is not read; put them into this one")
        elif not _says_nothing(node):
            raise _NotReadError(f"{_words(node)}, which is not run")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        key = self._key(target)
        if key is not None:
            try:
                self.found.settings[key] = Setting(self._value(value), value.lineno)
            except _NotReadError as error:
                self.found.settings[key] = Setting(None, value.lineno, str(error))
        elif isinstance(target, ast.Name) and self._config in ("", target.id) and _START.fullmatch(ast.unparse(value)):
            self.found.settings.clear()
            self._config = target.id
        else:
            raise _NotReadError("an assignment to something other than a setting")

    def _key(self, node: ast.expr) -> str | None:
        """The key of a setting, None for anything else."""
        written = _KEY.fullmatch(ast.unparse(node))
        return None if written is None or written["config"] != self._config else written["key"] or written["text"]

    def _holds(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            same = self._value(node.left) == self._value(node.comparators[0])
            return bool(same) is isinstance(node.ops[0], ast.Eq)
        raise _NotReadError("an `if` on something other than whether two literals are equal")

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression of literals. Raises _NotReadError for any other."""
        if isinstance(node, ast.Attribute | ast.Subscript):
            setting = self.found.settings.get(self._key(node) or "")
            if setting is None or setting.unread:
                raise _NotReadError("it reads something that is not known")
            return setting.value
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Lambda):
            return self._step_rule(node)
        if isinstance(node, ast.Name) and node.id in self._rules:
            return self._rules[node.id]
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            raise _NotReadError(f"{_words(node)}, which is not run") from None
        return _bounded(value) if isinstance(value, float) else value

    def _arithmetic(self, node: ast.BinOp) -> int | float:
        left, right, how = self._value(node.left), self._value(node.right), _OPERATORS.get(type(node.op))
        if how is None or not _is_number(left) or not _is_number(right):
            raise _NotReadError("arithmetic on something other than numbers")
        if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 1e6):
            raise _NotReadError("a power beyond any setting")
        try:
            return _bounded(how(left, right))
        except (ArithmeticError, TypeError):
            raise _NotReadError("arithmetic without a result") from None

    def _step_rule(self, function: ast.FunctionDef | ast.Lambda) -> StepRule:
        """Recognise AdaDistill's rate function by its text, which `ast.unparse` writes in one way."""
        found = _STEPS.fullmatch(_returned(function))
        if found is None:
            raise _NotReadError(_OTHER)
        warmup = max(0.0, self._number(found["length"] or "0"))
        squared = _SQUARED.fullmatch(found["warm"] or "")
        if warmup and (squared is None or self._number(squared["end"]) != warmup + 1):
            raise _NotReadError(_OTHER)  # without a warm-up it is never reached, whatever it says
        listed = self._value(ast.parse(found["milestones"], mode="eval").body)
        earlier = self._number(found["earlier"] or "0")
        if not isinstance(listed, list | tuple) or earlier % 1 or not all(type(m) is int for m in listed):
            raise _NotReadError(_OTHER)
        return StepRule(tuple(sorted(m - int(earlier) for m in listed)), self._number(found["gamma"]), warmup)

    def _number(self, text: str) -> float:
        found = self._value(ast.parse(text, mode="eval").body)
        if not _is_number(found):
            raise _NotReadError(_OTHER)
        return float(found)


def _returned(function: ast.FunctionDef | ast.Lambda) -> str:
    """What a function returns that does nothing else, its one argument written EPOCH."""
    lines = [ast.Return(function.body)] if isinstance(function, ast.Lambda) else function.body
    argument, last = ast.unparse(function.args), lines[-1]
    if not argument.isidentifier() or not isinstance(last, ast.Return) or last.value is None:
        raise _NotReadError(_OTHER)
    if getattr(function, "decorator_list", []) or not all(map(_says_nothing, lines[:-1])):
        raise _NotReadError(_OTHER)
    return re.sub(rf"(?<![.\w]){argument}(?!\w)", "EPOCH", ast.unparse(last.value))


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounded(value: Any) -> int | float:
    """The number, if a setting can be so large."""
    if not _is_number(value) or not math.isfinite(value) or abs(value) >= 2**63:
        raise _NotReadError("a number that no setting has")
    return value


def _words(node: ast.AST) -> str:
    """What a piece of Python is, for people."""
    if isinstance(node, ast.Expr):
        return _words(node.value)
    known = {"AugAssign": "an update in place", "Call": "a call", "For": "a loop", "JoinedStr": "a formatted string"}
    return known.get(type(node).__name__, f"Python's {type(node).__name__}")
