"""YAML text as a tree of nodes that know their line, read within limits and without surprises.

A recipe may come from a stranger, and a typing slip in one must not train a different network, so `yaml.safe_load` will
not do: it reads `1e-4` as text, `no` as False, `010` as 8 and `1:30` as 90, keeps the last of two equal keys without a
word, expands aliases until memory ends and dies of recursion at a few thousand brackets. Of PyYAML only the scanner and
the parser run here; no constructor does. What a plain scalar means follows the core schema of YAML 1.2, with one
difference: a number with a leading zero stays text, because half of the world reads it as octal.

Limits: 1 MB of UTF-8, 64 levels, 100,000 nodes; one document; no anchors, aliases, tags, directives or merge keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_NUMBER_CHARACTERS = 1000  # far beyond any number, far below where Python refuses to convert digits


class YamlError(ValueError):
    """Text that is no YAML, or YAML that recipes do not use.

    Attributes:
        origin: the file, or the words that name the text.
        line: 1-based line, or None where it is not known.
        reason: what is wrong, in one line.
    """

    def __init__(self, origin: str, line: int | None, reason: str) -> None:
        self.origin = origin
        self.line = line
        self.reason = reason
        super().__init__(f"{origin}, line {line}: {reason}" if line is not None else f"{origin}: {reason}")


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """One value. `value` is what it means, `text` how it was written without its quotes."""

    value: bool | int | float | str | None
    text: str
    quoted: bool
    origin: str
    line: int


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    items: tuple[Node, ...]
    origin: str
    line: int


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping from names to nodes, in the order of the text."""

    entries: dict[str, Node]
    origin: str
    line: int


Node = ScalarNode | ListNode | MapNode


@dataclass(frozen=True, slots=True)
class ParsedYaml:
    """A tree, and the problems that did not keep it from being read (keys that occur twice; the first one is kept)."""

    root: Node
    problems: tuple[str, ...]


def parse_document(data: bytes, origin: str) -> ParsedYaml:
    """Read one YAML document.

    Args:
        data: the bytes of the file.
        origin: what errors call it, and what every node remembers.

    Raises:
        YamlError: not UTF-8, not YAML, empty, beyond the limits, or using a feature that recipes do not have.
    """
    if len(data) > MAX_BYTES:
        raise YamlError(origin, None, f"is larger than {MAX_BYTES:,} bytes, too large for a recipe")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YamlError(origin, line, f"not UTF-8 text (byte 0x{data[error.start]:02x})") from None
    builder = _TreeBuilder(text.removeprefix("\ufeff"), origin)
    root = builder.build()
    return ParsedYaml(root, tuple(builder.problems))


def parse_value(text: str, origin: str) -> ParsedYaml:
    """Read the value of an override: one scalar, or a list or mapping in flow style, with nothing around it.

    Raises:
        YamlError: as `parse_document`, or the value is empty, has control characters, or would lose a part (a comment,
            a second document, a block of lines), which then has to be quoted.
    """
    text = text.strip(" ")
    if not text:
        raise YamlError(origin, None, "has no value; write null for none, '' for empty text")
    if len(text) > MAX_BYTES:
        raise YamlError(origin, None, f"is longer than {MAX_BYTES:,} characters")
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        raise YamlError(origin, None, "the value has control characters")
    builder = _TreeBuilder(text, origin)
    try:
        root = builder.build()
    except YamlError as error:
        raise YamlError(origin, None, f"{error.reason}; quote the value if it is meant as text") from None
    if not builder.root_is_flow or builder.root_span != (0, len(text)):
        raise YamlError(origin, None, "must be one value, or a list or mapping in brackets; quote it if it is text")
    return ParsedYaml(root, tuple(builder.problems))


def merge(below: Node, above: Node) -> Node:
    """`above` laid over `below`: mappings are merged key by key, anything else (null as well) replaces."""
    if not (isinstance(below, MapNode) and isinstance(above, MapNode)):
        return above
    entries = dict(below.entries)
    for key, node in above.entries.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    return MapNode(entries, above.origin, above.line)


def show_text(text: str, limit: int = 60) -> str:
    """Foreign text for a one-line message: unprintable characters escaped, shortened in the middle."""
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]}...{text[-limit // 4 :]}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def resolve_plain(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means in the core schema of YAML 1.2; numbers with a leading zero stay text.

    Raises:
        ValueError: a number of more digits than any number needs.
    """
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    is_integer = _DECIMAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text) or _OCTAL.fullmatch(text)
    if (is_integer or _FLOAT.fullmatch(text)) and len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"a number of {len(text)} characters")
    if is_integer:
        return int(text, 10 if _DECIMAL.fullmatch(text) else 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


class _TreeBuilder:
    """Turns PyYAML's events into nodes; depth is checked before it recurses, so it cannot exhaust the stack."""

    def __init__(self, text: str, origin: str) -> None:
        self.problems: list[str] = []
        self.root_span = (0, 0)
        self.root_is_flow = False
        self._text = text
        self._origin = origin
        self._events = self._guarded_events()
        self._nodes = 0

    def build(self) -> Node:
        next(self._events)  # StreamStart
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise self._error(None, "is empty")
        assert isinstance(event, yaml.DocumentStartEvent)
        if event.version is not None or event.tags:
            raise self._error(event, "directives (%YAML, %TAG) are not allowed")
        first = next(self._events)
        is_block_scalar = isinstance(first, yaml.ScalarEvent) and first.style in ("|", ">")
        self.root_is_flow = not is_block_scalar and getattr(first, "flow_style", True) is not False
        root, end = self._node(first, path="", depth=1)
        assert first.start_mark is not None
        assert end.end_mark is not None
        self.root_span = (first.start_mark.index, end.end_mark.index)
        next(self._events)  # DocumentEnd
        trailing = next(self._events)
        if not isinstance(trailing, yaml.StreamEndEvent):
            raise self._error(trailing, "a second document (---) is not allowed")
        return root

    def _guarded_events(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = error.problem or error.context or "not YAML"
            if "'\\t'" in reason:
                reason += "; indent with spaces, not tabs"
            line = mark.line + 1 if mark is not None else None
            raise YamlError(self._origin, line, show_text(reason, 200)) from None
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise YamlError(self._origin, line, "has a character that YAML does not allow") from None
        except (ValueError, OverflowError):
            # PyYAML converts some digits (escapes in double quotes, %YAML versions) without checking their range.
            raise YamlError(self._origin, None, "has an escape or number out of range") from None

    def _node(self, event: yaml.Event, path: str, depth: int) -> tuple[Node, yaml.Event]:
        """Build the node that `event` opens; returns it with the event that closed it."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(event, f"has more than {MAX_NODES:,} values, too many for a recipe")
        if depth > MAX_DEPTH:
            raise self._error(event, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._error(event, "anchors and aliases (& and *) are not allowed; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._error(event, f"tags ({show_text(tag)}) are not allowed; a recipe holds plain values")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event), event
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(event, path, depth)
        assert isinstance(event, yaml.MappingStartEvent)
        return self._map(event, path, depth)

    def _scalar(self, event: yaml.ScalarEvent) -> ScalarNode:
        quoted = event.style is not None
        try:
            value = event.value if quoted else resolve_plain(event.value)
        except ValueError as error:
            raise self._error(event, str(error)) from None
        return ScalarNode(value, event.value, quoted, self._origin, _line(event))

    def _list(self, start: yaml.Event, path: str, depth: int) -> tuple[ListNode, yaml.Event]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            item, _ = self._node(event, f"{path}[{len(items)}]", depth + 1)
            items.append(item)
        return ListNode(tuple(items), self._origin, _line(start)), event

    def _map(self, start: yaml.Event, path: str, depth: int) -> tuple[MapNode, yaml.Event]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, _ = self._node(event, path, depth + 1)
            if not isinstance(key, ScalarNode):
                raise self._error(event, "a key must be a name, not a list or a mapping")
            if key.text == "<<" and not key.quoted:
                raise self._error(event, "merge keys (<<) are not allowed; use `base:` for a recipe built on another")
            key_path = f"{path}.{key.text}" if path else key.text
            value, _ = self._node(next(self._events), key_path, depth + 1)
            if key.text in entries:
                self.problems.append(f"duplicate key `{show_text(key_path)}` (again in line {key.line})")
            else:
                entries[key.text] = value
        return MapNode(entries, self._origin, _line(start)), event

    def _error(self, event: yaml.Event | None, reason: str) -> YamlError:
        return YamlError(self._origin, _line(event) if event is not None else None, reason)


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1
