"""Configs as text: YAML that reads back to an equal config, canonical JSON for hashes, differences by dotted key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, get_args, get_origin

from adadistill.core.config.schema import alternatives, config_schema

_SAFE_WORD: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*", re.ASCII)
_RESERVED_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf", "none"))
_NO_KEY: Final = "(no such key)"


def dump_config(config: Any) -> str:
    """YAML of every value, in the order of the fields; reading it gives an equal config.

    Floats keep their bits; text that some YAML reader might take for something else is quoted.
    """
    return "".join(_dump_lines(config, indent=0))


def canonical_json(config: Any) -> str:
    """One line of JSON, the same for equal configs: sorted keys, floats by repr, ints in float fields as floats.

    What stands at its default is left out, so that a key that is added to a config does not change what was made of
    the configs before it.
    """
    return json.dumps(_changed_values(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_differences(first: Any, second: Any) -> list[str]:
    """Dotted keys whose values differ between two configs of a class, with both values: `optim.lr: 0.1 != 0.2`."""
    return value_differences(plain_values(first), plain_values(second))


def value_differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """As `config_differences`, of two trees of plain values, of which one may lack keys of the other.

    Args:
        prefix: put before every key.
    """
    differences: list[str] = []
    for name in [*second, *(name for name in first if name not in second)]:
        left, right = first.get(name, _NO_KEY), second.get(name, _NO_KEY)
        if isinstance(left, dict) and isinstance(right, dict):
            differences += value_differences(left, right, f"{prefix}{name}.")
        elif left != right:
            differences.append(f"{prefix}{name}: {_shown(left)} != {_shown(right)}")
    return differences


def plain_values(config: Any) -> dict[str, Any]:
    """A config as dicts, lists and scalars; a whole number in a float field becomes a float, -0.0 becomes 0.0."""
    schema = config_schema(type(config))
    return {name: _plain_value(getattr(config, name), schema.types[name]) for name in schema.fields}


def _changed_values(config: Any) -> dict[str, Any]:
    """The values that do not stand at their defaults; of a section that differs from its default, those of its own."""
    known, changed = config_schema(type(config)), {}
    for name, plain in plain_values(config).items():
        field, value = known.fields[name], getattr(config, name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is MISSING or _plain_value(default, known.types[name]) != plain:
            changed[name] = _changed_values(value) if is_dataclass(value) else plain
    return changed


def _shown(value: Any) -> str:
    return value if value is _NO_KEY else dump_value(value)


def leaf_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values in a config; an absent section is one of them."""
    for name in config_schema(type(config)).fields:
        value = getattr(config, name)
        if is_dataclass(value):
            yield from leaf_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def dump_value(value: Any) -> str:
    """One value of `plain_values` in flow style, as recipes write it: `null`, `true`, `1.0e-05`, `[7, 13]`, `"010"`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 readers take 1e-05 for text; with a dot it is a number everywhere.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(dump_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {dump_value(item)}' for key, item in value.items())}}}"
    if _SAFE_WORD.fullmatch(value) and value.lower() not in _RESERVED_WORDS:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _plain_value(value: Any, kind: Any) -> Any:
    if is_dataclass(value):
        return plain_values(value)
    members = alternatives(kind)
    if isinstance(value, (tuple, list)):
        element = next((get_args(member)[0] for member in members if get_origin(member) is tuple), None)
        return [_plain_value(item, element) for item in value]
    if float in members and (type(value) is float or (type(value) is int and int not in members)):
        return float(value) + 0.0
    return value


def _dump_lines(config: Any, indent: int) -> Iterator[str]:
    plain = plain_values(config)
    for name in plain:
        value = getattr(config, name)
        lead = f"{'  ' * indent}{name}:"
        if is_dataclass(value) and fields(value):
            yield f"{lead}\n"
            yield from _dump_lines(value, indent + 1)
        else:
            yield f"{lead} {dump_value(plain[name])}\n"
