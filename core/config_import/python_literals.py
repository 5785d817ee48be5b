"""The settings that a `config.py` assigns, read from its syntax tree. Nothing of the file is ever run.

Understood are literals assigned to one config object (`config.lr = 0.1`, `edict(lr=0.1)`, `config.update({...})`),
arithmetic on numbers, names and settings assigned before, `if` on whether two of them are equal, and AdaDistill's rate
function. A setting that anything else may change loses its value, and is listed with the line and the reason.

Limits: 256 KiB of UTF-8, 20,000 nodes; numbers of 64 bits, texts of 4,096 characters.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.step_rule import ConfigImportError, NotLiteralError, read_step_rule
from adadistill.loaders.first_bytes import what_it_is

MAX_BYTES: Final = 1 << 18
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
    anything: bool = False
    """Whether it may have set any key, those too that are not named."""


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
    try:
        reader.block(tree.body)
    except RecursionError:
        raise ConfigImportError(f"{show_text(source, 300)}: is nested too deeply to be a config") from None
    found = reader.found
    if not found.settings and not found.unread:
        raise ConfigImportError(f"{show_text(source, 300)}: assigns no settings; `config.key = value` is looked for")
    # What is assigned again later is known after all.
    found.unread = [
        replace(one, keys=tuple(key for key in one.keys if key not in found.settings)) for one in found.unread
    ]
    return found


def _parse(data: bytes, source: str) -> ast.Module:
    name = show_text(source, 300)
    if len(data) > MAX_BYTES:
        raise ConfigImportError(f"{name}: is larger than {MAX_BYTES:,} bytes, too large for a config")
    if data and (other := what_it_is(data, "text", "unknown")) is not None:
        raise ConfigImportError(f"{name} {other}")
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
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ConfigImportError(f"{name}: has more than {MAX_NODES:,} parts, too many for a config")
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
            try:
                self._statement(statement)
            except NotLiteralError as error:
                self._give_up(statement, str(error))

    def _statement(self, node: ast.stmt) -> None:
        called = node.value if isinstance(node, ast.Expr) else None
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if node.value is not None:
                    self._assign(target, node.value)
        elif isinstance(node, ast.If):
            self.block(node.body if self._holds(node.test) else node.orelse)
        elif isinstance(node, ast.FunctionDef):
            self._names[node.name] = read_step_rule(node, self._value)
        elif isinstance(called, ast.Call) and (content := self._updated(called)) is not None:
            self._set(content)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._imported({(alias.asname or alias.name).partition(".")[0] for alias in node.names})
        elif not isinstance(node, ast.Pass) and not isinstance(called, ast.Constant):
            raise NotLiteralError(f"{_words(node)}, which is not run")

    def _imported(self, names: set[str]) -> None:
        """A module's name stands for nothing that is known here; a config from elsewhere may hold anything."""
        for name in names:
            self._names.pop(name, None)
        configs = names & (self._configs or set(_CONFIG_NAMES))
        if configs or "*" in names:
            self._configs |= configs
            raise NotLiteralError("settings of another file, which is not read; put them into this one")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, ast.Name):
            key = self._key(target)
            if key is None:
                raise NotLiteralError("an assignment to something other than a setting")
            if _content(value) != []:  # else an empty group of settings
                self._set([(key, value)])
            return
        name, content = target.id, _content(value)
        if content is not None and (not self._configs or name in (*self._configs, *_CONFIG_NAMES)):
            self.found.settings.clear()
            self._configs = {name}
            self._names.pop(name, None)
            self._set(content)
        elif isinstance(value, ast.Name) and value.id in self._configs:
            self._configs.add(name)
        elif name in self._configs:
            raise NotLiteralError("the config is replaced by something that is not known")
        else:
            self._names[name] = self._value(value)

    def _set(self, content: Iterable[tuple[str, ast.expr]]) -> None:
        for key, node in content:
            try:
                self.found.settings[key] = Setting(self._value(node), node.lineno)
            except NotLiteralError as error:
                self._forget({key}, node, str(error))

    def _give_up(self, node: ast.stmt, reason: str) -> None:
        """What a statement may have changed is not known any more; where it may be anything, nothing is."""
        keys, inside = set[str](), set[int]()
        anything = isinstance(node, ast.ImportFrom | ast.Import)
        for child in ast.walk(node):  # from the outside in
            written = isinstance(getattr(child, "ctx", None), ast.Store | ast.Del)
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
                anything |= isinstance(child.func.value, ast.Name) and child.func.value.id in self._configs
            if isinstance(child, ast.Attribute | ast.Subscript) and (key := self._key(child)) is not None:
                setting = self.found.settings.get(key)
                if written or (setting is not None and isinstance(setting.value, list | dict)):
                    keys.add(key)
                inside.add(id(child.value))
            elif isinstance(child, ast.Name):
                anything |= child.id in self._configs and id(child) not in inside
            if written or isinstance(child, ast.FunctionDef | ast.ClassDef):
                self._names.pop(getattr(child, "id", getattr(child, "name", "")), None)
        self._forget(set(self.found.settings) if anything else keys, node, reason, anything=anything)

    def _forget(self, keys: set[str], node: ast.stmt | ast.expr, reason: str, *, anything: bool = False) -> None:
        for key in keys:
            self.found.settings.pop(key, None)
        self.found.unread.append(Unread(node.lineno, reason, tuple(sorted(keys)), anything))

    def _updated(self, node: ast.Call) -> list[tuple[str, ast.expr]] | None:
        """What `config.update(...)` sets, None for another call."""
        whose = node.func.value if isinstance(node.func, ast.Attribute) else None
        return _content(node, "update") if isinstance(whose, ast.Name) and whose.id in self._configs else None

    def _key(self, node: ast.expr) -> str | None:
        """The dotted key of a setting (`config.a.b`, `config["a"]`), None for anything else."""
        parts: list[str] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                parts.append(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                if not isinstance(node.slice.value, str) or len(node.slice.value) > 100:
                    return None
                parts.append(node.slice.value)
            else:
                return None
            node = node.value
        return ".".join(reversed(parts)) if parts and node.id in self._configs else None

    def _holds(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            same = self._value(node.left) == self._value(node.comparators[0])
            return bool(same) is isinstance(node.ops[0], ast.Eq)
        raise NotLiteralError("an `if` on something other than whether two literals are equal")

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression of literals. Raises NotLiteralError for any other."""
        if isinstance(node, ast.Constant):
            return _bounded(node.value)
        if isinstance(node, ast.Name) and node.id in self._names:
            return self._names[node.id]
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            key = self._key(node)
            if key is not None and key in self.found.settings:
                return self.found.settings[key].value
            raise NotLiteralError("it reads something that is not known")
        if isinstance(node, ast.List | ast.Tuple):
            items = [_item(self._value(item)) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict) and (content := _content(node)) is not None:
            return {_bounded(key): _item(self._value(item)) for key, item in content}
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._value(node.operand)
            if _is_number(value):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Lambda):
            return read_step_rule(node, self._value)
        raise NotLiteralError(f"{_words(node)}, which is not run")

    def _arithmetic(self, node: ast.BinOp) -> Any:
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


def _content(node: ast.expr, *makers: str) -> list[tuple[str, ast.expr]] | None:
    """Keys and expressions of `{...}` and of calls like `edict({...}, key=value)`; None for anything else."""
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        named = [key for key in keys if isinstance(key, str)]
        return list(zip(named, node.values, strict=True)) if len(named) == len(keys) else None
    if not isinstance(node, ast.Call):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    given = [_content(argument) for argument in node.args if isinstance(argument, ast.Dict)]
    named = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    if name not in (makers or _MAKERS) or len(given) < len(node.args) or len(named) < len(node.keywords):
        return None
    if len(given) > 1 or None in given:
        return None
    first = given[0] if given and given[0] is not None else []
    return first + [(key, keyword.value) for key, keyword in zip(named, node.keywords, strict=True)]


def _words(node: ast.AST) -> str:
    """What a piece of Python is, for people."""
    if isinstance(node, ast.Expr):
        return _words(node.value)
    known = {"Call": "a call", "AugAssign": "an update in place", "For": "a loop", "JoinedStr": "a formatted string"}
    return known.get(type(node).__name__, f"Python's {type(node).__name__}")
