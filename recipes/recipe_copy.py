"""Copies a recipe file so that it loads from where it lands: its base goes beside it, and comments stay."""

from __future__ import annotations

from pathlib import Path

from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.config.yaml_tree import MapNode, ScalarNode, parse_document
from adadistill.core.recipe import load_recipe


def copy_recipe(source: Path, target: Path, *, overwrite: bool) -> list[Path]:
    """Copy a recipe to a file, and the base that it names to the same place relative to it.

    A base that is there already with the same bytes is left alone.

    Returns:
        The files that were written.

    Raises:
        RecipeError: the recipe is not sound, the target is no `.yaml` or is there (and not `overwrite`), or another
            base is.
        OSError: a file cannot be written.
    """
    load_recipe(source)
    if target.suffix != ".yaml":
        raise RecipeError(str(target), ["must end in .yaml, as recipes do"])
    copies = [(source, target)]
    base = _base_name(source)
    if base is not None:
        copies.append((source.parent / base, target.parent / base))
    bodies = [(below.read_bytes(), above) for below, above in copies]
    wanted = [(body, path) for body, path in bodies if path == target or not _holds(path, body)]
    there = [str(path) for _, path in wanted if path.exists()]
    if there and not overwrite:
        raise RecipeError(str(target), [f"{path} is there already; add --overwrite to replace it" for path in there])
    for body, path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if overwrite else "xb") as file:
            file.write(body)
    return [path for _, path in wanted]


def _base_name(source: Path) -> str | None:
    root = parse_document(source.read_bytes(), str(source)).root
    base = root.entries.get("base") if isinstance(root, MapNode) else None
    return str(base.value) if isinstance(base, ScalarNode) else None


def _holds(path: Path, body: bytes) -> bool:
    return path.is_file() and path.read_bytes() == body
