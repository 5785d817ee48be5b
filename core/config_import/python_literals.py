"""The settings that a `config.py` assigns, read from its syntax tree. Nothing of the file is ever run.

Understood are assignments of literals to the attributes or items of one config object (`config.lr = 0.1`), arithmetic
on numbers, names and settings assigned before, `if` on what is known by then, and AdaDistill's rate function. A setting
that is assigned anything else loses the value it had, since what the script would see is then not known: it is listed,
with its line and the reason.

Limits: 256 KiB of UTF-8, 64 levels, 20,000 nodes; numbers of 64 bits, texts of 4,096 characters.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.errors import ConfigImportError
from adadistill.core.config_import.step_rule import NotLiteralError, read_step_rule

MAX_BYTES: Final = 1 << 18
MAX_DEPTH: Final = 64
MAX_NODES: Final = 20_000
MAX_TEXT: Final = 4096

_CONFIG_NAMES: Final = ("config", "cfg")
_MAKERS: Final = ("edict", "EasyDict", "dict", "ConfigDict", "AttrDict", "Namespace", "SimpleNamespace")
_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: lambda left, right: left is right or left == right,
    ast.IsNot: lambda left, right: not (left is right or left == right),
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The value that a key has at the end of the file: a literal, or a `StepRule`."""

    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class Unread:
    """A statement that is not a literal assignment."""

    line: int
    reason: str
    keys: tuple[str, ...]
    """Settings whose value it leaves unknown."""


@dataclass(slots=True)
class ConfigLiterals:
    """What could be read of a file, and what could not."""

    settings: dict[str, Setting] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)


def read_literals(data: bytes, source: str) -> ConfigLiterals:
    """Read the settings of a config file.

    Args:
        data: its bytes.
        source: what errors call it.

    Raises:
        ConfigImportError: not Python, beyond the limits, or it assigns no setting.
    """
    tree = _parse(data, source)
    reader = _Reader()
    reader.block(tree.body)
    if not reader.found.settings and not reader.found.unread:
        raise ConfigImportError(f"{show_text(source, 300)}: assigns no settings; `config.key = value` is looked for")
    known = set(reader.found.settings)  # what is assigned again later is known after all
    unread = []
    for one in reversed(reader.found.unread):
        unread.append(replace(one, keys=tuple(key for key in one.keys if key not in known)))
        known.update(one.keys)
    reader.found.unread = unread[::-1]
    return reader.found


def _parse(data: bytes, source: str) -> ast.Module:
    name = show_text(source, 300)
    if len(data) > MAX_BYTES:
        raise ConfigImportError(f"{name}: is larger than {MAX_BYTES:,} bytes, too large for a config")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigImportError(f"{name}: is not UTF-8 text (byte {error.start})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes are the file's business
            tree = ast.parse(text)
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigImportError(f"{name}{where}: is not Python 3: {show_text(str(error.msg), 120)}") from None
    except (ValueError, MemoryError, RecursionError):
        raise ConfigImportError(f"{name}: is not Python, or nested too deeply to be a config") from None
    level: list[ast.AST] = [tree]
    nodes = depth = 0
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigImportError(
                f"{name}: has more than {MAX_NODES:,} parts or {MAX_DEPTH} levels, too many for a config"
            )
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return tree


class _Reader:
    """Goes through statements in their order, as Python would, and keeps what they leave known."""

    def __init__(self) -> None:
        self.found = ConfigLiterals()
        self._names: dict[str, Any] = {}
        self._configs: set[str] = set()

    def block(self, statements: Iterable[ast.stmt]) -> None:
        """Take in some statements."""
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value, node)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._assign(node.target, node.value, node)
        elif isinstance(node, ast.If):
            self._branch(node)
        elif isinstance(node, ast.FunctionDef):
            self._function(node)
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or _is_text(node):
            self._imported(node)
        else:
            self._give_up(node, f"{_words(node)}, which is not run")

    def _imported(self, node: ast.stmt) -> None:
        """A module's name stands for nothing that is known here; a config from elsewhere may hold anything."""
        for alias in getattr(node, "names", ()):
            name = (alias.asname or alias.name).partition(".")[0]
            self._names.pop(name, None)
            if name in self._configs or (not self._configs and name in _CONFIG_NAMES):
                self._configs = {name}
                self._forget(tuple(sorted(self.found.settings)), node, "settings of another file, which is not read")

    def _assign(self, target: ast.expr, value: ast.expr, node: ast.stmt) -> None:
        if isinstance(target, ast.Name):
            self._assign_name(target.id, value, node)
            return
        key = self._key(target)
        if key is None:
            self._give_up(node, "an assignment to something other than a setting")
            return
        if _makes_config(value) and not _content(value):
            return  # an empty group of settings
        try:
            self.found.settings[key] = Setting(self._value(value), node.lineno)
        except NotLiteralError as error:
            self._forget((key,), node, str(error))

    def _assign_name(self, name: str, value: ast.expr, node: ast.stmt) -> None:
        if _makes_config(value) and (not self._configs or name in self._configs):
            self.found.settings.clear()
            self._configs = {name}
            self._names.pop(name, None)
            for key, item in _content(value):
                try:
                    self.found.settings[key] = Setting(self._value(item), item.lineno)
                except NotLiteralError as error:
                    self._forget((key,), item, str(error))
            return
        if isinstance(value, ast.Name) and value.id in self._configs:
            self._configs.add(name)
            return
        if name in self._configs:
            self._give_up(node, "the config is replaced by something that is not known")
            return
        try:
            self._names[name] = self._value(value)
        except NotLiteralError as error:
            self._names.pop(name, None)
            self.found.unread.append(Unread(node.lineno, f"{name}: {error}", ()))

    def _branch(self, node: ast.If) -> None:
        try:
            holds = bool(self._value(node.test))
        except NotLiteralError as error:
            self._give_up(node, f"an `if` whose condition is not known: {error}")
            return
        self.block(node.body if holds else node.orelse)

    def _function(self, node: ast.FunctionDef) -> None:
        try:
            self._names[node.name] = read_step_rule(node, self._value)
        except NotLiteralError as error:
            self._names.pop(node.name, None)
            self.found.unread.append(Unread(node.lineno, f"function {show_text(node.name)}: {error}", ()))

    def _give_up(self, node: ast.stmt, reason: str) -> None:
        """What a statement may have changed is not known any more; where it may be anything, nothing is."""
        touched = [child for child in ast.walk(node) if isinstance(child, ast.Attribute | ast.Subscript | ast.Name)]
        keys = {key for child in touched if _is_written(child) and (key := self._key(child)) is not None}
        whole = self._hands_over_config(node)
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and _is_written(child):
                self._names.pop(child.id, None)
            elif isinstance(child, ast.FunctionDef | ast.ClassDef):
                self._names.pop(child.name, None)
            elif isinstance(child, ast.alias):
                self._names.pop((child.asname or child.name).partition(".")[0], None)
        self._forget(tuple(sorted(self.found.settings)) if whole else tuple(sorted(keys)), node, reason)

    def _hands_over_config(self, node: ast.stmt) -> bool:
        """Whether a statement uses the config other than by its settings, or writes it: anything may come of it."""
        inside = {id(child.value) for child in ast.walk(node) if isinstance(child, ast.Attribute | ast.Subscript)}
        called = {id(child.func) for child in ast.walk(node) if isinstance(child, ast.Call)}
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and child.id in self._configs and id(child) not in inside:
                return True
            if id(child) in called and isinstance(child, ast.Attribute) and self._key(child) is not None:
                return True  # config.update(...)
        return False

    def _forget(self, keys: tuple[str, ...], node: ast.stmt | ast.expr, reason: str) -> None:
        for key in keys:
            self.found.settings.pop(key, None)
        self.found.unread.append(Unread(node.lineno, reason, keys))

    def _key(self, node: ast.expr) -> str | None:
        """The dotted key of a setting (`config.a.b`, `config["a"]`), None for anything else."""
        parts: list[str] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                if not isinstance(node.slice.value, str) or len(node.slice.value) > 100:
                    return None
                parts.append(node.slice.value)
                node = node.value
            else:
                return None
        return ".".join(reversed(parts)) if parts and node.id in self._configs else None

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression of literals. Raises NotLiteralError for any other."""
        if isinstance(node, ast.Constant):
            return _bounded(node.value)
        if isinstance(node, ast.Name):
            if node.id in self._names:
                return self._names[node.id]
            raise NotLiteralError(f"the name {show_text(node.id)} is not known")
        if isinstance(node, ast.Attribute | ast.Subscript):
            key = self._key(node)
            if key is not None and key in self.found.settings:
                return self.found.settings[key].value
            raise NotLiteralError("it reads something that is not known")
        if isinstance(node, ast.List | ast.Tuple):
            items = [_item(self._value(item)) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {self._key_of(key): _item(self._value(item)) for key, item in pairs}
        if isinstance(node, ast.UnaryOp | ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.BoolOp):
            value = self._value(node.values[0])
            for operand in node.values[1:]:
                if bool(value) is isinstance(node.op, ast.Or):
                    return value
                value = self._value(operand)
            return value
        if isinstance(node, ast.IfExp):
            return self._value(node.body if self._value(node.test) else node.orelse)
        if isinstance(node, ast.Lambda):
            return read_step_rule(node, self._value)
        raise NotLiteralError(f"{_words(node)}, which is not run")

    def _key_of(self, node: ast.expr | None) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
            return _bounded(node.value)
        raise NotLiteralError("a mapping whose keys are no literals")

    def _arithmetic(self, node: ast.UnaryOp | ast.BinOp) -> Any:
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand)
            if isinstance(node.op, ast.Not):
                return not value
            if not _is_number(value) or isinstance(node.op, ast.Invert):
                raise NotLiteralError("arithmetic on something other than numbers")
            return -value if isinstance(node.op, ast.USub) else value
        left, right, how = self._value(node.left), self._value(node.right), _OPERATORS.get(type(node.op))
        texts = isinstance(left, str) and isinstance(right, str) and isinstance(node.op, ast.Add)
        if how is None or not (texts or (_is_number(left) and _is_number(right))):
            raise NotLiteralError("arithmetic on something other than numbers")
        if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 1e6):
            raise NotLiteralError("a power beyond any setting")
        try:
            return _bounded(how(left, right))
        except (ArithmeticError, ValueError, TypeError):
            raise NotLiteralError("arithmetic without a result") from None

    def _comparison(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for how, operand in zip(node.ops, node.comparators, strict=True):
            right = self._value(operand)
            try:
                if not _COMPARISONS[type(how)](left, right):
                    return False
            except TypeError:
                raise NotLiteralError("a comparison of values that cannot be compared") from None
            left = right
        return True


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounded(value: Any) -> Any:
    """The value, if a setting can be so large."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    raise NotLiteralError("a value that no setting has")


def _item(value: Any) -> Any:
    """The value, if it may stand in a list: deeper nests could double with every line that names them twice."""
    if not isinstance(value, list | tuple | dict):
        return value
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
    if any(isinstance(item, list | tuple | dict) for item in inner):
        raise NotLiteralError("lists in lists in lists")
    return value


def _makes_config(node: ast.expr) -> bool:
    if isinstance(node, ast.Dict):
        return all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys)
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if name not in _MAKERS or len(node.args) > 1 or any(keyword.arg is None for keyword in node.keywords):
        return False
    return all(isinstance(argument, ast.Dict) and _makes_config(argument) for argument in node.args)


def _content(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Key and expression of what a config is made with."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            assert isinstance(key, ast.Constant), "checked by _makes_config"
            yield str(key.value), value
    elif isinstance(node, ast.Call):
        for argument in node.args:
            yield from _content(argument)
        for keyword in node.keywords:
            assert keyword.arg is not None, "checked by _makes_config"
            yield keyword.arg, keyword.value


def _is_written(node: ast.expr) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def _words(node: ast.AST) -> str:
    """What a piece of Python is, for people."""
    if isinstance(node, ast.Expr):
        return _words(node.value)
    kind = type(node).__name__
    known = {
        "Call": "a call",
        "AugAssign": "an update in place",
        "For": "a loop",
        "While": "a loop",
        "With": "a `with` block",
        "Try": "a `try` block",
        "Delete": "a `del`",
        "ClassDef": "a class",
        "JoinedStr": "a formatted string",
        "ListComp": "a comprehension",
        "Assert": "an assertion",
    }
    return known.get(kind, f"Python's {kind}")
