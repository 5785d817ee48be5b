"""`adadistill recipes import-config`: the recipe to a file or the screen, and a table of what became of every key."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import import ConfigImportError, ImportedConfig, import_config
from adadistill.core.config_import.importer import Family, recipe_name
from adadistill.core.config_import.python_literals import MAX_BYTES
from adadistill.loaders.command_text import quoted


def import_config_file(
    path: Path,
    *,
    out: Path | None,
    overwrite: bool,
    name: str | None,
    devices: int | None,
    family: Family | None,
    drop: Collection[str],
    as_json: bool,
) -> int:
    """Import one file; the recipe goes to `out`, else to stdout with the table on stderr. Returns the exit code.

    Raises:
        ConfigImportError, RecipeError: as `import_config`; `out` is there already.
        OSError: a file cannot be read or written.
    """
    if out is not None and out.exists() and not overwrite:
        raise ConfigImportError(f"{out} is there already; add --overwrite to replace it")
    if not path.is_file():
        raise ConfigImportError(f"{path} is no file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    stem = (out or path).stem
    imported = import_config(data, path.name, name=name or recipe_name(stem), devices=devices, family=family, drop=drop)
    if imported.yaml is not None and out is not None:
        with out.open("w" if overwrite else "x", encoding="utf-8") as file_out:
            file_out.write(imported.yaml)
    if as_json:
        print(json.dumps(_as_json(imported), indent=1))
    else:
        if imported.yaml is not None and out is None:
            print(imported.yaml, end="")
        print(_table(imported), file=sys.stdout if out is not None else sys.stderr)
    if imported.obstacles:
        print(
            "\n  ".join([f"no recipe can be made of {path}:", *imported.obstacles]),
            file=sys.stderr,
        )
        return 2
    if out is not None and not as_json:
        print(f"written: {out}; look at it with `adadistill train {quoted(out)} --dry-run`")
    return 0


def _table(imported: ImportedConfig) -> str:
    rows = [
        (
            str(fate.line),
            fate.key,
            fate.value,
            fate.outcome,
            ", ".join(fate.becomes) + (f" ({fate.why})" if fate.becomes and fate.why else fate.why),
        )
        for fate in imported.fates
    ]
    rows += [
        (str(one.line), ", ".join(map(show_text, one.keys[:8])), "", "not taken over", show_text(one.reason, 200))
        for one in imported.unread
    ]
    rows.sort(key=lambda row: int(row[0]))
    widths = [min(34, max((len(row[column]) for row in rows), default=0)) for column in range(4)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row[:4], widths, strict=True)) for row in rows]
    return "\n".join(
        [
            f"{imported.family}, {imported.devices} GPU(s) share a step (--devices says another number)",
            *(f"{line}  {row[4]}".rstrip() for line, row in zip(lines, rows, strict=True)),
        ]
    )


def _as_json(imported: ImportedConfig) -> dict[str, object]:
    return {
        "family": imported.family,
        "devices": imported.devices,
        "recipe": imported.yaml,
        "keys": [asdict(fate) for fate in imported.fates],
        "unread": [{**asdict(one), "reason": show_text(one.reason, 200)} for one in imported.unread],
        "obstacles": imported.obstacles,
    }
