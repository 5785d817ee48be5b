"""Entry point: the reference page of all recipe keys, generated from the config classes so that it cannot go stale.

    python -m adadistill.recipes.recipe_reference docs/recipe_reference.md

Without a file the page is printed. A test compares the committed page with the generated one.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from adadistill.core.config.schema import alternatives, config_schema, section_class
from adadistill.core.config.text import dump_value
from adadistill.core.recipe import Recipe

_INTRODUCTION = """\
# Recipe reference

Every key of a recipe, generated from the config classes. After changing one, regenerate this page:
`python -m adadistill.recipes.recipe_reference docs/recipe_reference.md`

## How a recipe is read

- A recipe is one YAML file. `adadistill train RECIPE` takes its path, or the bare name of a recipe that comes with the
  package; a file wins.
- The reader is strict. Unknown and repeated keys, values of a wrong type or out of range, missing keys and sections
  that contradict each other are all reported at once, with the file and the dotted key.
- Types are never guessed. `1e-4` is a number; `true` and `false` are the only truth values, `no`, `off` and `1:30` are
  strings; a number with a leading zero (`010`) is refused where a number is wanted. A whole number may stand for a
  float (`1` for `1.0`), nothing else changes its type. Numbers are finite.
- Anchors, aliases, tags, merge keys, directives and second documents are refused, and so is a file of more than 1 MB,
  64 levels or 100,000 values.
- `base: other.yaml` lays this recipe over another one. The name is relative to this file, and the base lies in this
  file's folder or below. Mappings merge key by key; values, lists and `null` replace. A base has no base itself.
- `key.path=value` on the command line overrides a key: `optim.lr=0.05`, `optim.milestones=[8,14]`, `teacher=null`,
  `head={kind: arcface, margin: 0.5}` (merged as well). Values follow the same rules; each key can be given once.
- Paths (`data.records`, `teacher.*`, `centres.path`, `evaluation.sets`) are relative to the working directory of the
  launch.
- A run saves the resolved recipe with every value. Reading it gives the same recipe and the same hash. Device, number
  of processes and output folder are no part of a recipe.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to a file, or print it."""
    parser = argparse.ArgumentParser(description="Generate the reference page of all recipe keys.")
    parser.add_argument("out", nargs="?", type=Path, help="file to write; without it the page is printed")
    out = parser.parse_args(arguments).out
    if out is None:
        print(recipe_reference(), end="")
    else:
        out.write_text(recipe_reference(), encoding="utf-8")
    return 0


def recipe_reference() -> str:
    """The page as Markdown.

    Raises:
        ValueError: a field has no docstring.
    """
    return "\n".join([_INTRODUCTION, "## Top level\n", *_pages(Recipe, "")])


def _pages(cls: Any, prefix: str) -> list[str]:
    """A table of a config's values, then its sections, each with those inside it."""
    schema, documentation = config_schema(cls), field_documentation(cls)
    pages = [_table(cls, [name for name, kind in schema.types.items() if section_class(kind) is None], prefix)]
    for name, kind in schema.types.items():
        section = section_class(kind)
        if section is not None:
            presence = _presence(schema.fields[name], optional=NoneType in alternatives(kind))
            pages += [f"## `{prefix}{name}`\n", f"{documentation[name]} {presence}\n"]
            pages += _pages(section, f"{prefix}{name}.")
    return pages


def field_documentation(cls: Any) -> dict[str, str]:
    """The docstring under each field of a config class and its bases, on one line. Python itself does not keep them.

    Raises:
        ValueError: a field has none.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        found |= _own_documentation(base)
    missing = [name for name in config_schema(cls).fields if name not in found]
    if missing:
        raise ValueError(f"{cls.__name__} has fields without a docstring: {', '.join(missing)}")
    return found


def _own_documentation(cls: Any) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    found: dict[str, str] = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    kind: str
    default: str
    meaning: str

    def __str__(self) -> str:
        cells = (f"`{self.key}`", self.kind, self.default, self.meaning)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(cls: Any, names: Sequence[str], prefix: str) -> str:
    schema, documentation = config_schema(cls), field_documentation(cls)
    rows = [
        _Row(f"{prefix}{name}", _type_text(schema.types[name]), _default_text(schema.fields[name]), documentation[name])
        for name in names
    ]
    return "\n".join(["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |", *map(str, rows), ""])


def _presence(field: Field[Any], *, optional: bool) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "Required."
    return "Absent by default." if optional else "May be left out."


def _type_text(kind: Any) -> str:
    members = alternatives(kind)
    if len(members) > 1:
        ordered = sorted(members, key=lambda member: member is NoneType)
        return " or ".join(map(_type_text, ordered))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type_text(get_args(kind)[0])}"
    return {NoneType: "null", str: "string"}.get(kind, kind.__name__)


def _default_text(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "**required**"
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{dump_value(list(value) if isinstance(value, tuple) else value)}`"


if __name__ == "__main__":
    raise SystemExit(main())
