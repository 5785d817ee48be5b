"""A config that was stored as text, held to the config of now value by value.

A run outlives the code that began it: keys are added, and a few go. Both sides are therefore compared as plain values,
so that what an older version wrote needs not be a valid config of this one, and no hash has to stay what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, is_dataclass
from typing import Any

from adadistill.core.config.schema import config_schema, section_class
from adadistill.core.config.text import plain_values, value_differences
from adadistill.core.config.yaml_tree import ListNode, MapNode, Node, ScalarNode, YamlError, parse_document


def stored_differences(cls: Any, stored: str, now: str, *, source: str, gone: Mapping[str, object]) -> list[str]:
    """What differs between a stored config and the one of now, as `config_differences` says it.

    A key that is not stored stood at its default, or at what its field's metadata calls `before` where that is not
    what was done before the key existed. A stored key that is gone differs, unless it stands at what is done now.

    Args:
        cls: the config class.
        stored: YAML of an earlier `dump_config`; `now`: one of this version.
        source: where `stored` was read, for errors.
        gone: dotted keys that configs once had, with the value that means what is now always done.

    Raises:
        YamlError: one of them is no YAML, or lacks a key that every config has.
    """
    then = _mapping(stored, source)
    _drop(then, gone)
    _complete(cls, then, source)
    return value_differences(then, _mapping(now, "now"))


def _mapping(text: str, source: str) -> dict[str, Any]:
    values = _plain(parse_document(text.encode("utf-8", "surrogateescape"), source).root)
    if not isinstance(values, dict):
        raise YamlError(source, None, "is no mapping of keys to values")
    return values


def _plain(node: Node) -> Any:
    if isinstance(node, MapNode):
        return {key: _plain(value) for key, value in node.entries.items()}
    if isinstance(node, ListNode):
        return [_plain(item) for item in node.items]
    assert isinstance(node, ScalarNode)
    return node.value


def _drop(then: dict[str, Any], gone: Mapping[str, object]) -> None:
    for dotted, always in gone.items():
        *sections, key = dotted.split(".")
        inner: Any = then
        for name in sections:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and key in inner and inner[key] == always:
            del inner[key]


def _complete(cls: Any, then: dict[str, Any], source: str) -> None:
    """Put in the keys that did not exist when a config was stored. Those without a default always have."""
    schema = config_schema(cls)
    for name, field in schema.fields.items():
        section = section_class(schema.types[name])
        if name not in then:
            value = _value_before(field)
            if value is MISSING:
                raise YamlError(source, None, f"has no `{name}`, so it is not whole")
            then[name] = plain_values(value) if is_dataclass(value) else _as_stored(value)
        elif section is not None and isinstance(then[name], dict):
            _complete(section, then[name], source)


def _value_before(field: Field[Any]) -> Any:
    if "before" in field.metadata:
        return field.metadata["before"]
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _as_stored(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
