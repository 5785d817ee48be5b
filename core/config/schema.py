"""What a config class says about its keys: fields, resolved types, sections inside sections.

A config is a frozen dataclass beside the thing it configures. Its fields may be bool, int, float, str, Literal,
tuple[X, ...] of those, X | None, and other config classes, which are the sections of a recipe. A field that is newer
than stored runs carries the metadata `before: VALUE` where its default is not what was done before it existed.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class ConfigSchema:
    """Fields of a config class by name, in their order, with their types resolved."""

    fields: dict[str, Field[Any]]
    types: dict[str, Any]
    required: tuple[str, ...]
    """Names of the fields without a default."""


def config_schema(cls: Any) -> ConfigSchema:
    """The schema of a config class."""
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    required = tuple(n for n, field in known.items() if field.default is MISSING and field.default_factory is MISSING)
    return ConfigSchema(known, {name: hints[name] for name in known}, required)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def section_class(kind: Any) -> Any | None:
    """The config class that a field's type names, as itself or as `X | None`; None for a plain value."""
    return next((member for member in alternatives(kind) if is_dataclass(member)), None)


def dotted_keys(cls: Any, prefix: str = "") -> tuple[str, ...]:
    """Every key of a config and of its sections: `head`, `head.margin`, ..."""
    keys: list[str] = []
    for name, kind in config_schema(cls).types.items():
        keys.append(prefix + name)
        section = section_class(kind)
        if section is not None:
            keys.extend(dotted_keys(section, f"{prefix}{name}."))
    return tuple(keys)
