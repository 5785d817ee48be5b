"""YAML nodes into config dataclasses, collecting every problem on the way.

Types never change silently: an int may stand for a float, and that is all. A `__post_init__` refuses values by raising
ValueError with the field's name first (`margin must be in [0, 1), got 2.0`), several problems on several lines. The
reader puts the path of the section before it, and then looks for further problems with the named field left out: two
values out of range in one section are both reported.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import MISSING, is_dataclass
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from adadistill.core.config.schema import ConfigSchema, alternatives, config_schema, dotted_keys, section_class
from adadistill.core.config.yaml_tree import ListNode, MapNode, Node, ScalarNode, resolve_plain, show_text

MAX_SUGGESTIONS = 50  # a hostile file can hold tens of thousands of unknown keys, and looking for a near name is slow


def read_config_nodes(cls: Any, root: MapNode, source: str, problems: list[str]) -> Any | None:
    """An instance of config class `cls` from a mapping node.

    Args:
        source: name of the file; problems with values that came from elsewhere (a base, an override) say from where.
        problems: list that every problem is appended to, one line each.

    Returns:
        The config, or None where none can be made. It is only to be used when `problems` is empty.
    """
    config, _ = _Reader(cls, root, source, problems).section(cls, root, "")
    return config


def find_node(root: Node, dotted: str) -> Node | None:
    """The node that gave the value at a dotted key, or None where a default did."""
    node: Node | None = root
    for part in dotted.split("."):
        node = node.entries.get(part) if isinstance(node, MapNode) else None
        if node is None:
            return None
    return node


def show_node(node: Node) -> str:
    """A node as errors show it: `3`, `'0.1'`, `[7, 13]`, `a mapping`."""
    if isinstance(node, MapNode):
        return "a mapping"
    if isinstance(node, ListNode):
        inner = ", ".join(show_node(item) for item in node.items[:8])
        return f"[{inner}{', ...' if len(node.items) > 8 else ''}]" if len(inner) < 100 else "a list"
    if node.quoted:
        return f"'{show_text(node.text)}'"
    return show_text(node.text) if node.value is not None else "null"


class PlacedProblem(str):
    """The text of a problem that knows the file and the line of the value that it is about."""

    origin: str
    line: int

    def __new__(cls, text: str, node: Node) -> PlacedProblem:
        """The text, with the place of a node."""
        problem = super().__new__(cls, text)
        problem.origin, problem.line = node.origin, node.line
        return problem


class _Unusable:
    """Stands for a value that was refused; its problem is on the list."""


_UNUSABLE: Final = _Unusable()

# Satisfies "positive", "milestones below epochs" and "a multiple of 16" alike, and is told from what a user writes.
_WHOLE_STAND_IN: Final = 3 * 2**20
_AT_HOME: Final = re.compile(r"~[^/]*/")


class _Reader:
    """Builds sections from nodes and collects every problem on the way."""

    def __init__(self, root_class: Any, root: MapNode, source: str, problems: list[str]) -> None:
        self._root_class = root_class
        self._root = root
        self._source = source
        self._problems = problems

    def section(self, cls: Any, node: MapNode, path: str) -> tuple[Any | None, set[str]]:
        """An instance of `cls`, and the dotted keys that hold a stand-in because their own value was refused.

        The instance is None where no stand-in makes one possible.
        """
        schema = config_schema(cls)
        for key in node.entries:
            if key not in schema.fields:
                self._report(self._unknown(key, path, schema), node.entries[key])
        values: dict[str, Any] = {}
        tainted: set[str] = set()
        for name in schema.fields:
            dotted = f"{path}{name}"
            if name not in node.entries:
                if name in schema.required:
                    self._report(self._missing(schema.types[name], dotted), None)
                    tainted.add(dotted)
                continue
            value, within = self._value(schema.types[name], node.entries[name], dotted)
            tainted |= within
            if value is _UNUSABLE:
                tainted.add(dotted)
            else:
                values[name] = value
        return self._construct(cls, values, path, tainted), tainted

    def _construct(self, cls: Any, values: dict[str, Any], path: str, tainted: set[str]) -> Any | None:
        """Call `cls`, report what it refuses, and go on with stand-ins for refused fields until it has no more to say.

        What it says about a stand-in is not the user's mistake: messages that name a tainted key are left out.
        """
        schema = config_schema(cls)
        trial = {name: _stand_in(schema, name) for name in schema.fields if f"{path}{name}" in tainted} | values
        reported: set[str] = set()
        for _ in range(len(schema.fields) + 1):
            if _UNUSABLE in trial.values():
                return None
            try:
                return cls(**trial)
            except ValueError as error:
                messages = [line.strip() for line in str(error).splitlines() if line.strip()]
            leads = [message.split()[0].strip("`:,") for message in messages]
            for message, lead in zip(messages, leads, strict=True):
                about_stand_in = str(_WHOLE_STAND_IN) in message or any(
                    _mentions(message, key.removeprefix(path)) for key in tainted
                )
                if message not in reported and not about_stand_in:
                    self._refused(message, lead, path, schema)
                    reported.add(message)
            culprits = {name for name in leads if name in schema.fields and f"{path}{name}" not in tainted}
            if not culprits:
                return None
            tainted |= {f"{path}{name}" for name in culprits}
            trial |= {name: _stand_in(schema, name) for name in culprits}
        return None

    def _refused(self, message: str, lead: str, path: str, schema: ConfigSchema) -> None:
        """Report what a `__post_init__` said, with the path of its section before it."""
        names_field = lead.split(".")[0] in schema.fields
        text = f"{path}{message.lstrip('`')}" if names_field or not path else f"{path.removesuffix('.')}: {message}"
        self._report(show_text(text, 1000), find_node(self._root, f"{path}{lead}") if names_field else None)

    def _value(self, kind: Any, node: Node, path: str) -> tuple[Any, set[str]]:
        """The value of a node as type `kind`, or _UNUSABLE; and the tainted keys inside it."""
        section = section_class(kind)
        if section is not None and isinstance(node, MapNode):
            instance, tainted = self.section(section, node, f"{path}.")
            return (_UNUSABLE if instance is None else instance), tainted
        for member in alternatives(kind):
            value = _convert(member, node)
            if value is not _UNUSABLE:
                problem = _value_problem(value)
                if problem is None:
                    return value, set()
                self._report(f"{path} {problem}, got {show_node(node)}", node)
                return _UNUSABLE, set()
        self._report(f"{path} must be {_describe(kind)}, got {show_node(node)}{_hint(kind, node)}", node)
        return _UNUSABLE, set()

    def _report(self, problem: str, node: Node | None) -> None:
        """Add a problem, saying where the value came from unless it is the file itself."""
        if node is not None and node.origin != self._source:
            problem += f" (from {show_text(node.origin, 150)})"
        self._problems.append(problem if node is None else PlacedProblem(problem, node))

    def _missing(self, kind: Any, path: str) -> str:
        section = section_class(kind)
        needed = [f"`{path}.{name}`" for name in config_schema(section).required] if section is not None else []
        return f"missing key `{path}`" + (f", which needs {', '.join(needed)}" if needed else "")

    def _unknown(self, key: str, path: str, schema: ConfigSchema) -> str:
        text = f"unknown key `{show_text(path + key)}`"
        if len(self._problems) > MAX_SUGGESTIONS or len(key) > 100:
            return text
        close = difflib.get_close_matches(key, schema.fields, n=1)
        close += [known for known in schema.fields if len(key) > 2 and key in known]
        if close:
            return f"{text}; did you mean `{path}{close[0]}`?"
        everywhere = [known for known in dotted_keys(self._root_class) if not path.startswith(f"{known}.")]
        elsewhere = [known for known in everywhere if known == key or known.split(".")[-1] == key]
        elsewhere += difflib.get_close_matches(f"{path}{key}", everywhere, n=1, cutoff=0.8)
        if elsewhere and elsewhere[0] == key:
            return f"{text}; sections are nested in a recipe, not dotted"
        if elsewhere:
            return f"{text}; did you mean `{elsewhere[0]}`?"
        return f"{text}; known here: {', '.join(schema.fields)}"


def _mentions(message: str, key: str) -> bool:
    """Whether a message names this dotted key, or a key below it."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", message) is not None


def _stand_in(schema: ConfigSchema, name: str) -> Any:
    """A harmless value for a field whose own was refused: its default, or a plausible value of its type."""
    field = schema.fields[name]
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    return _plausible(schema.types[name])


def _plausible(kind: Any) -> Any:
    members = alternatives(kind)
    if NoneType in members:
        return None
    first: Any = members[0]
    if get_origin(first) is Literal:
        return get_args(first)[0]
    if get_origin(first) is tuple:
        return ()
    if section_class(first) is not None:
        schema = config_schema(first)
        values = {name: _plausible(schema.types[name]) for name in schema.required}
        try:
            return _UNUSABLE if _UNUSABLE in values.values() else first(**values)
        except ValueError:
            return _UNUSABLE
    return {bool: False, int: _WHOLE_STAND_IN, float: 0.5, str: "stand-in"}.get(first, _UNUSABLE)


def _convert(kind: Any, node: Node) -> Any:
    """The node's value if it is one of type `kind` (no union, no section), else _UNUSABLE."""
    origin = get_origin(kind)
    if origin is tuple:
        element, ellipsis = get_args(kind)
        assert ellipsis is Ellipsis, f"only tuple[X, ...] can be read, not {kind}"
        if not isinstance(node, ListNode):
            return _UNUSABLE
        items = [_convert(element, item) for item in node.items]
        return _UNUSABLE if any(item is _UNUSABLE for item in items) else tuple(items)
    if not isinstance(node, ScalarNode):
        return _UNUSABLE
    value = node.value
    if origin is Literal:
        return next((c for c in get_args(kind) if type(c) is type(value) and c == value), _UNUSABLE)
    if kind is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if kind is float and type(value) is float:
        return value + 0.0  # -0.0 becomes 0.0: equal configs must have equal hashes
    if kind is str and isinstance(value, str) and _AT_HOME.match(value):
        return os.path.expanduser(value)  # a path under any key; nothing else begins so
    return value if type(value) is kind else _UNUSABLE


def _value_problem(value: Any) -> str | None:
    """What keeps a value of the right type from being used, whatever the field."""
    if isinstance(value, tuple):
        return next((problem for problem in map(_value_problem, value) if problem is not None), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if type(value) is int and abs(value) >= 2**63:
        return "must fit 64 bits"
    if isinstance(value, str) and any(
        ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value
    ):
        return "must not hold control characters"
    return None


_TYPE_NAMES: Final[dict[Any, tuple[str, str]]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}


def _describe(kind: Any, plural: bool = False) -> str:
    members = alternatives(kind)
    if len(members) > 1:
        ordered = sorted(members, key=lambda member: member is NoneType)
        return " or ".join(_describe(member, plural) for member in ordered)
    if kind is NoneType:
        return "null"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"a list of {_describe(get_args(kind)[0], plural=True)}"
    if is_dataclass(kind):
        return "a mapping of keys to values"
    return _TYPE_NAMES[kind][plural]


_TRUTH_WORDS: Final = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _hint(kind: Any, node: Node) -> str:
    """What the writer probably meant, for the mistakes that YAML invites; empty where nothing suggests itself."""
    members = alternatives(kind)
    if not isinstance(node, ScalarNode):
        return ""
    if any(get_origin(member) is tuple for member in members):
        return "; write a list as [a, b]"
    text, value = node.text.strip()[:100], node.value
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    close = difflib.get_close_matches(text, choices, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    if bool in members and isinstance(value, str) and text.lower() in _TRUTH_WORDS:
        return f"; write {_TRUTH_WORDS[text.lower()]}"
    if str in members and value is not None:
        return "; quote it if it is meant as a string"
    return _number_hint(node, text) if int in members or float in members else ""


def _number_hint(node: ScalarNode, text: str) -> str:
    if isinstance(node.value, float):
        exact = node.value.is_integer() and abs(node.value) < 2**53
        return f"; write {int(node.value)}" if exact else ""
    if not isinstance(node.value, str):
        return ""
    if node.quoted and isinstance(resolve_plain(text), (int, float)):
        return "; remove the quotes"
    if re.fullmatch(r"[-+]?0[0-9][0-9.eE+-]*", text):
        return "; write it without the leading zero"
    if re.fullmatch(r"[-+]?[0-9]+([_,][0-9]+)+", text):
        return "; write the digits without separators"
    return ""
