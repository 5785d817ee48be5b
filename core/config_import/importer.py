"""From the bytes of a `config.py` to the YAML of a recipe that the strict reader has accepted."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, get_args

from adadistill.core.config.schema import config_schema, section_class
from adadistill.core.config.text import dump_value
from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.account import Account, KeyFate
from adadistill.core.config_import.adadistill_keys import fill_from_adadistill
from adadistill.core.config_import.insightface_keys import INSIGHTFACE_LOSSES, fill_from_insightface
from adadistill.core.config_import.python_literals import ConfigImportError, ConfigLiterals, Unread, read_literals
from adadistill.core.recipe import Recipe, parse_recipe

Family = Literal["origin", "adadistill", "insightface"]

DEVICES: Final = {"origin": 1, "adadistill": 4, "insightface": 8}
"""GPUs of the published runs."""

_MARKS: Final = {
    "insightface": ("margin_list", "interclass_filtering_threshold", "sample_rate", "decay_epoch"),
    "origin": ("use_geom_margin", "geom_margin_w", "teacher_repo_id", "h", "t_alpha", "val_rec"),
    "adadistill": ("adaptive_alpha", "adaptive_weighted_alpha", "pretrained_teacher_path"),
}
"""Keys that only this family's configs have, in the order in which they decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedConfig:
    """A recipe out of a config, and what became of everything in it."""

    family: Family
    devices: int
    recipe: Recipe | None
    """None where something stands in its way."""
    yaml: str | None
    """The recipe as a file, each value with where it is from."""
    fates: list[KeyFate]
    """Of every key that could be read, by line."""
    unread: list[Unread]
    """Statements that could not."""
    obstacles: list[str]
    """Why there is no recipe."""


def import_config(
    data: bytes,
    source: str,
    *,
    name: str,
    devices: int | None = None,
    family: Family | None = None,
    drop: Collection[str] = (),
) -> ImportedConfig:
    """Make a recipe of a config file, which is parsed and never run.

    Args:
        data: bytes of the file.
        source: what errors call it.
        name: of the recipe.
        devices: GPUs that share a step, since batches are per GPU there; None takes those of the published runs.
        family: whose config it is; None tells by its keys.
        drop: keys to leave out, though they may decide what is trained.

    Raises:
        ConfigImportError: it is no such file, or nothing tells whose it is.
        RecipeError: the recipe that it amounts to is refused, with every reason.
    """
    literals = read_literals(data, source)
    family = _family(literals, source) if family is None else family
    devices = DEVICES[family] if devices is None else devices
    if not 1 <= devices <= 1 << 20:
        raise ConfigImportError(f"devices must be in [1, {1 << 20}], got {devices}")
    account = Account(literals, drop)
    if family == "insightface":
        fill_from_insightface(account, devices=devices)
    else:
        fill_from_adadistill(account, devices=devices, origin=family == "origin")
    fates, recipe, text = account.finish(), None, None
    if not account.obstacles:
        text = _yaml(name, f"{show_text(source, 100)} ({family})", devices, account, fates, literals.unread)
        recipe = parse_recipe(text, source=f"the recipe made of {source}")
    return ImportedConfig(
        family=family,
        devices=devices,
        recipe=recipe,
        yaml=text,
        fates=fates,
        unread=literals.unread,
        obstacles=account.obstacles,
    )


def recipe_name(stem: str) -> str:
    """A name that a recipe can have, out of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:100] or "imported"


def _family(literals: ConfigLiterals, source: str) -> Family:
    for family in _MARKS:
        if any(key in literals.settings for key in _MARKS[family]):
            return next(known for known in get_args(Family) if known == family)
    if "loss" in literals.settings and literals.settings["loss"].value in list(INSIGHTFACE_LOSSES):
        return "insightface"
    known = ", ".join(sorted(map(show_text, literals.settings))[:20])
    raise ConfigImportError(
        f"{show_text(source, 300)}: nothing tells whose config it is (its keys: {known or 'none'}); say it with "
        f"--family {' | '.join(get_args(Family))}"
    )


def _yaml(name: str, of: str, devices: int, account: Account, fates: list[KeyFate], unread: list[Unread]) -> str:
    """The recipe as a file. Nothing of the config gets into it but values, as YAML, and names of keys."""
    left_out = [
        f"{fate.key} (line {fate.line}): {fate.why}" for fate in fates if fate.outcome in ("not taken over", "dropped")
    ]
    left_out += [f"line {one.line}: {show_text(one.reason, 200)}" for one in unread]
    lines = [
        f"# Made of {of} by `adadistill recipes import-config`, for {devices} GPU(s).",
        "# Result   not measured",
        *(["# Not taken over:", *(f"#   {line}" for line in left_out)] if left_out else []),
        f"name: {dump_value(name)}",
    ]
    schema, written = config_schema(Recipe), ""
    for section in schema.fields:
        inner = section_class(schema.types[section])
        for key in [section] if inner is None else [f"{section}.{field}" for field in config_schema(inner).fields]:
            if key not in account.values:
                continue
            if inner is not None and section != written:
                lines.append(f"{section}:")
                written = section
            value, source = account.values[key]
            shown = dump_value(list(value) if isinstance(value, tuple) else value)
            lines.append(
                f"{'' if inner is None else '  '}{key.rpartition('.')[2]}: {shown}".ljust(40) + f"  # {source}"
            )
    return "\n".join(lines) + "\n"
