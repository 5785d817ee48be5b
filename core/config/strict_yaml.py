"""YAML files into config dataclasses: everything that is wrong is said at once, and nothing is guessed.

A config is a frozen dataclass beside the thing it configures. This reader builds one from a file, the file's `base:`
and `key.path=value` overrides. What is wrong with the text is found by `yaml_tree`, what is wrong with keys and values
by `config_reader`; both end here in one `RecipeError` with file, dotted keys and, where it helps, the nearest name.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from adadistill.core.config.reader import find_node, read_config_nodes, show_node
from adadistill.core.config.text import leaf_keys
from adadistill.core.config.yaml_tree import (
    MAX_BYTES,
    MapNode,
    Node,
    ParsedYaml,
    ScalarNode,
    YamlError,
    merge,
    parse_document,
    parse_value,
    show_text,
)

Config = TypeVar("Config")

MAX_LISTED = 50  # problems spelt out in one error; a hostile file can hold tens of thousands


class RecipeError(ValueError):
    """A recipe that cannot be used.

    Attributes:
        source: the file as the caller named it.
        problems: every problem found, one line each.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        shown = show_text(source, 300)
        if len(self.problems) == 1:
            super().__init__(f"{shown}: {self.problems[0]}")
            return
        lines = list(self.problems[:MAX_LISTED])
        if len(self.problems) > MAX_LISTED:
            lines.append(f"... and {len(self.problems) - MAX_LISTED} more")
        super().__init__("\n  ".join([f"{shown}, {len(self.problems)} problems:", *lines]))


@dataclass(frozen=True, slots=True)
class LoadedConfig(Generic[Config]):
    """A config and where each of its values came from."""

    config: Config
    provenance: dict[str, str]
    """Dotted key of every value -> `default`, `FILE:LINE` or the override as it was written."""


def read_config(cls: type[Config], path: Path | str, overrides: Iterable[str] = ()) -> LoadedConfig[Config]:
    """Read a config of class `cls` from a YAML file.

    Args:
        path: the file. Its top-level key `base` may name another file, relative to it and in its folder or below, over
            which it is laid key by key: mappings merge; values, lists and null replace. A base has no base itself.
        overrides: `key.path=value`, laid over both. The value is one scalar under the same rules, or a list or mapping
            in flow style (`[7, 13]`, `{kind: arcface}`). Each key may be given once.

    Raises:
        RecipeError: anything is wrong with the file, its base, the overrides or the values in them.
    """
    return read_overlaid_config(cls, path, overlay=None, overlay_overrides=overrides)


def read_overlaid_config(
    cls: type[Config],
    path: Path | str,
    overrides: Iterable[str] = (),
    *,
    overlay: Path | str | None,
    overlay_overrides: Iterable[str] = (),
) -> LoadedConfig[Config]:
    """As `read_config`, with a second file and a second list of overrides laid over the result, key by key.

    Args:
        overlay: a YAML file of any of the config's keys, without `base`; None lays only `overlay_overrides` over it.

    Raises:
        RecipeError: as `read_config`; problems with values of the overlay name it.
    """
    path = Path(path)
    source = str(path)
    main = _parse_file(path, source)
    problems = list(main.problems)
    root = _lay_over_base(path, _root_mapping(main.root, source), source, problems)
    given: set[str] = set()
    for override in overrides:
        root = _apply_override(root, override, given, problems)
    if overlay is not None:
        root = _lay_overlay(root, Path(overlay), problems)
    return _build(cls, root, source, overlay_overrides, problems)


def parse_config(
    cls: type[Config], text: str | bytes, *, source: str = "recipe", overrides: Iterable[str] = ()
) -> LoadedConfig[Config]:
    """Read a config from text, as `read_config` does from a file; `base` is unknown here, as it needs a folder.

    Raises:
        RecipeError: as `read_config`.
    """
    parsed = _parse(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, source)
    return _build(cls, _root_mapping(parsed.root, source), source, overrides, list(parsed.problems))


def _build(
    cls: type[Config], root: MapNode, source: str, overrides: Iterable[str], problems: list[str]
) -> LoadedConfig[Config]:
    given: set[str] = set()
    for override in overrides:
        root = _apply_override(root, override, given, problems)
    config = read_config_nodes(cls, root, source, problems)
    if problems or config is None:
        raise RecipeError(source, problems)
    return LoadedConfig(config, {key: _written_where(root, key) for key in leaf_keys(config)})


def _written_where(root: MapNode, key: str) -> str:
    node = find_node(root, key)
    if node is None:
        return "default"
    if node.origin.startswith(_OVERRIDE):
        return node.origin.removeprefix(_OVERRIDE).removesuffix("`")
    return f"{node.origin}:{node.line}"


_OVERRIDE = "override `"


def _parse_file(path: Path, source: str) -> ParsedYaml:
    return _parse(_read_file(path, source), source)


def _read_file(path: Path, source: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            reason = "is not a regular file"  # opening a pipe would wait for a writer
        else:
            with path.open("rb") as stream:
                return stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL, or characters that the file system cannot encode
        reason = "is not a possible file name"
    raise RecipeError(source, [reason])


def _parse(data: bytes, source: str) -> ParsedYaml:
    try:
        return parse_document(data, source)
    except YamlError as error:
        raise RecipeError(source, [_located(error)]) from None


def _located(error: YamlError) -> str:
    return f"line {error.line}: {error.reason}" if error.line is not None else error.reason


def _root_mapping(root: Node, source: str) -> MapNode:
    if isinstance(root, MapNode):
        return root
    raise RecipeError(source, [f"line {root.line}: must be a mapping of keys to values, got {show_node(root)}"])


def _lay_over_base(path: Path, root: MapNode, source: str, problems: list[str]) -> MapNode:
    """`root` over the file that its key `base` names.

    A base that cannot be used raises at once: without its values every later problem would be a false one.
    """
    if "base" not in root.entries:
        return root
    named = root.entries["base"]
    own = MapNode({key: node for key, node in root.entries.items() if key != "base"}, root.origin, root.line)
    if not (isinstance(named, ScalarNode) and isinstance(named.value, str) and named.value):
        raise RecipeError(source, [*problems, f"base must be the name of a file, got {show_node(named)}"])
    base = path.parent / named.value
    if not _lies_within(base, path.parent):
        raise RecipeError(source, [*problems, f"base must lie in this file's folder or below, got {show_node(named)}"])
    name = show_text(str(base), 300)
    try:
        parsed = _parse_file(base, str(base))
        below = _root_mapping(parsed.root, str(base))
    except RecipeError as error:
        raise RecipeError(source, [*problems, *(f"base {name}: {problem}" for problem in error.problems)]) from None
    if "base" in below.entries:
        raise RecipeError(source, [*problems, f"base {name} has a base itself; only one level is allowed"])
    problems.extend(f"base {name}: {problem}" for problem in parsed.problems)
    merged = merge(below, own)
    assert isinstance(merged, MapNode)
    return merged


def _lay_overlay(root: MapNode, overlay: Path, problems: list[str]) -> MapNode:
    """The mapping of a file over `root`. One that cannot be parsed raises at once, as a base does."""
    source = str(overlay)
    parsed = _parse_file(overlay, source)
    above = _root_mapping(parsed.root, source)
    if "base" in above.entries:
        raise RecipeError(source, ["has a `base`; an overlay has none, since it is laid over whatever it is given"])
    problems.extend(f"{show_text(source, 300)}: {problem}" for problem in parsed.problems)
    merged = merge(root, above)
    assert isinstance(merged, MapNode)
    return merged


def _lies_within(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        return False


_KEY_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


def _apply_override(root: MapNode, override: str, given: set[str], problems: list[str]) -> MapNode:
    name = f"{_OVERRIDE}{show_text(override, 150)}`"
    key, equals, value = override.partition("=")
    if not equals or not _KEY_PATH.fullmatch(key) or len(key) > 200:
        problems.append(f"{name}: must be written key.path=value")
        return root
    if key in given:
        problems.append(f"{name}: `{key}` is given twice")
        return root
    given.add(key)
    if key.split(".")[0] == "base":
        problems.append(f"{name}: `base` cannot be overridden; name another recipe instead")
        return root
    try:
        parsed = parse_value(value, name)
    except YamlError as error:
        problems.append(f"{name}: {error.reason}")
        return root
    problems.extend(f"{name}: {problem}" for problem in parsed.problems)
    node = parsed.root
    for part in reversed(key.split(".")):
        node = MapNode({part: node}, name, 1)
    merged = merge(root, node)
    assert isinstance(merged, MapNode)
    return merged
