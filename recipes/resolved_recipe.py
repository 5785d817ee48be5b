"""Every value of a recipe with where it came from, for people and as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adadistill.core.config.strict_yaml import LoadedConfig
from adadistill.core.config.text import dump_value, leaf_keys, plain_values
from adadistill.core.recipe import Recipe


def resolved_values(loaded: LoadedConfig[Recipe]) -> dict[str, dict[str, Any]]:
    """Dotted key -> `value`, plain, and `origin`: a file and line, an override, or `default`."""
    plain = plain_values(loaded.config)
    rows = {}
    for key in leaf_keys(loaded.config):
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        rows[key] = {"value": value, "origin": loaded.provenance[key]}
    return rows


def resolved_text(loaded: LoadedConfig[Recipe]) -> list[str]:
    """Key, value and origin of every value in columns; a file is shown by its name."""
    rows = [
        (key, dump_value(row["value"]), _short(row["origin"])) for key, row in resolved_values(loaded).items()
    ]  # fmt: skip
    names = max(len(key) for key, _, _ in rows)
    values = min(36, max(len(value) for _, value, _ in rows))  # longer ones push their origin to the right
    return [f"{key:<{names}}  {value:<{values}}  {origin}" for key, value, origin in rows]


def recipe_files(loaded: LoadedConfig[Recipe]) -> list[str]:
    """The recipe's file and its base's, as far as a value came from them."""
    return sorted({found for origin in loaded.provenance.values() if (found := _file_of(origin))})


def _file_of(origin: str) -> str:
    """The file of an origin `FILE:LINE`; empty for `default` and for an override, `key=value`."""
    path, _, line = origin.rpartition(":")
    return path if line.isdecimal() and "=" not in path else ""


def _short(origin: str) -> str:
    path = _file_of(origin)
    return f"{Path(path).name}{origin.removeprefix(path)}" if path else origin
