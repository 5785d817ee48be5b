"""Entry point for recipes themselves: what ships, what one means, whether files are sound, and what differs.

    adadistill recipes ls
    adadistill recipes show RECIPE [key.path=value ...] [--resolved] [--json]
    adadistill recipes cp RECIPE FILE [--overwrite]
    adadistill recipes validate FILE ...
    adadistill recipes diff RECIPE RECIPE
    adadistill recipes import-config CONFIG.py [--out FILE] [--devices N] [--family F] [--drop KEY ...]

RECIPE is a YAML file or the name of a recipe that ships with the package. docs/recipes.md tells more.

Exit codes: 0 done, sound or equal; 1 two recipes differ; 2 something is wrong, or cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write


@entry_point("adadistill recipes")
def main(argv: Sequence[str]) -> int:
    """Run a verb; exit codes as the module says."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("ls", help="every recipe that ships, with the first sentence of its header")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_ls)
    show = verbs.add_parser("show", help="a recipe as it is written, or every value with its origin")
    show.add_argument("recipe")
    show.add_argument("overrides", nargs="*", metavar="key.path=value", help="with --resolved: replace values")
    show.add_argument("--resolved", action="store_true", help="every value, defaults included, and where it comes from")
    show.add_argument("--json", action="store_true", help="with --resolved: print JSON")
    show.set_defaults(run=_show)
    copy = verbs.add_parser("cp", help="copy a recipe, and its base beside it, to be edited")
    copy.add_argument("recipe")
    copy.add_argument("file", type=Path, help="where to; an existing folder takes the recipe's own name")
    copy.add_argument("--overwrite", action="store_true", help="replace files that are there")
    copy.set_defaults(run=_cp)
    validate = verbs.add_parser("validate", help="every problem of every file, with its line")
    validate.add_argument("files", nargs="+", metavar="FILE")
    validate.set_defaults(run=_validate)
    diff = verbs.add_parser("diff", help="the values in which two recipes differ")
    diff.add_argument("first")
    diff.add_argument("second")
    diff.set_defaults(run=_diff)
    _add_import(verbs.add_parser("import-config", help="make a recipe of a config.py, which is read and never run"))
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="config.py of the origin, AdaDistill or insightface's arcface_torch")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the recipe there (default: print it)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there")
    parser.add_argument("--name", help="name of the recipe (default: that of FILE, else of the config)")
    parser.add_argument("--devices", type=int, help="GPUs that share a step, as batches are per GPU there")
    parser.add_argument(
        "--family", choices=("origin", "adadistill", "insightface"), help="whose config it is (default: by its keys)"
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="KEY",
        help="train without what this key decides; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print what became of every key as JSON")
    parser.set_defaults(run=_import_config)


def _ls(arguments: argparse.Namespace) -> int:
    from adadistill.core.recipe import shipped_recipes
    from adadistill.recipes.recipe_header import read_recipe_header

    rows = [(name, read_recipe_header(path).purpose) for name, path in shipped_recipes().items()]
    if arguments.json:
        print(json.dumps([{"name": name, "about": about} for name, about in rows], indent=1))
        return 0
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {about}" for name, about in rows))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from adadistill.core.config.strict_yaml import RecipeError
    from adadistill.core.recipe import find_recipe, resolve_recipe
    from adadistill.recipes.resolved_recipe import resolved_text, resolved_values

    if arguments.resolved:
        loaded = resolve_recipe(arguments.recipe, arguments.overrides)
        if arguments.json:
            print(json.dumps(resolved_values(loaded), indent=1))
        else:
            print("\n".join(resolved_text(loaded)))
        return 0
    if arguments.overrides or arguments.json:
        raise RecipeError(arguments.recipe, ["values to replace, and --json, go with --resolved"])
    text = read_recipe_text(find_recipe(arguments.recipe))
    print("".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text), end="")
    return 0


def read_recipe_text(path: Path) -> str:
    """The text of a recipe file, no more of it than a recipe can have."""
    from adadistill.core.config.yaml_tree import MAX_BYTES

    with path.open("rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")


def _cp(arguments: argparse.Namespace) -> int:
    from adadistill.core.recipe import find_recipe

    source = find_recipe(arguments.recipe)
    target = arguments.file / source.name if arguments.file.is_dir() else arguments.file
    will_write(target, makes_parents=True)
    for written in _copy_recipe(source, target, overwrite=arguments.overwrite):
        print(f"written: {written}")
    return 0


def _copy_recipe(source: Path, target: Path, *, overwrite: bool) -> list[Path]:
    """Copy a recipe to a file so that it loads from there: its base goes to the same place relative to it.

    A base that is there already with the same bytes is left alone.

    Returns:
        The files that were written.

    Raises:
        RecipeError: the recipe is not sound, the target is no `.yaml` or is there (and not `overwrite`), or another
            base is.
        OSError: a file cannot be written.
    """
    from adadistill.core.config.strict_yaml import RecipeError
    from adadistill.core.recipe import load_recipe

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
    from adadistill.core.config.yaml_tree import MapNode, ScalarNode, parse_document

    root = parse_document(source.read_bytes(), str(source)).root
    base = root.entries.get("base") if isinstance(root, MapNode) else None
    return str(base.value) if isinstance(base, ScalarNode) else None


def _holds(path: Path, body: bytes) -> bool:
    return path.is_file() and path.read_bytes() == body


def _validate(arguments: argparse.Namespace) -> int:
    from adadistill.core.config.strict_yaml import RecipeError
    from adadistill.core.recipe import load_recipe

    code = 0
    for file in arguments.files:
        try:
            load_recipe(file)
        except RecipeError as error:
            code = 2
            print("\n".join(_placed(problem, error.source) for problem in error.problems))
        else:
            print(f"{file}: sound")
    return code


def _placed(problem: str, source: str) -> str:
    """A problem after the file and line that it is about, as compilers write them, where these are known."""
    from adadistill.core.config.reader import PlacedProblem
    from adadistill.core.config.yaml_tree import show_text

    shown = show_text(source, 300)
    if isinstance(problem, PlacedProblem):
        return f"{show_text(problem.origin, 300)}:{problem.line}: {problem}"
    line = re.match(r"line (\d+): ", problem)
    return f"{shown}:{line[1]}: {problem[line.end() :]}" if line else f"{shown}: {problem}"


def _diff(arguments: argparse.Namespace) -> int:
    from adadistill.core.recipe import load_recipe, recipe_differences

    differences = recipe_differences(load_recipe(arguments.first), load_recipe(arguments.second))
    print("\n".join(differences) if differences else "equal")
    return 1 if differences else 0


def _import_config(arguments: argparse.Namespace) -> int:
    from adadistill.recipes.config_import_command import import_config_file

    if arguments.out is not None:
        will_write(arguments.out)
    return import_config_file(
        arguments.config,
        out=arguments.out,
        overwrite=arguments.overwrite,
        name=arguments.name,
        devices=arguments.devices,
        family=arguments.family,
        drop=arguments.drop,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
