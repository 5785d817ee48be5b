"""Entry point: the tables of docs/recipes.md, made from the shipped recipes so that they cannot go stale.

    python -m adadistill.recipes.recipe_catalogue docs/recipes.md

rewrites what stands between the page's two markers; without a file the tables are printed. A test compares the
committed page with the generated tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.method.heads import HEADS
from adadistill.core.recipe import Recipe, load_recipe, shipped_recipes
from adadistill.recipes.recipe_header import read_recipe_header

BEGIN = "<!-- tables: python -m adadistill.recipes.recipe_catalogue docs/recipes.md -->"
END = "<!-- end of tables -->"

DATASETS = {
    "ms1mv2": "MS1MV2",
    "ms1mv3": "MS1MV3",
    "glint360k": "Glint360K",
    "webface4m": "WebFace4M",
    "webface12m": "WebFace12M",
    "casia": "CASIA-WebFace",
    "idifface": "IDiff-Face (synthetic)",
    "demo": "The demo (synthetic)",
}
"""First part of a recipe's name -> the dataset as its readers know it, in the order of the page."""

_COLUMNS = ("Recipe", "Student", "Teacher", "Head", "Centres", "Schedule", "Aims at", "Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables of a page, or print them; 2 when the page has no place for them."""
    parser = argparse.ArgumentParser(description="Generate the tables of shipped recipes.")
    parser.add_argument("page", nargs="?", type=Path, help="page to rewrite; without it the tables are printed")
    page = parser.parse_args(arguments).page
    if page is None:
        print(catalogue(), end="")
        return 0
    try:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{page}: {error}", file=sys.stderr)
        return 2
    return 0


def with_tables(page: str) -> str:
    """`page` with the present tables between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"must hold the lines {BEGIN!r} and {END!r} once each, in this order")
    return f"{before}{BEGIN}\n\n{catalogue()}\n{END}{after}"


def catalogue() -> str:
    """A table of recipes for each dataset, as Markdown.

    Raises:
        ValueError: a recipe's name begins with no known dataset.
    """
    groups: dict[str, list[str]] = {dataset: [] for dataset in DATASETS}
    for name in shipped_recipes():
        dataset = name.split("_")[0]
        if dataset not in groups:
            raise ValueError(f"{name} must begin with one of {', '.join(DATASETS)}, or DATASETS lacks its dataset")
        groups[dataset].append(_row(name))
    header = [_cells(_COLUMNS), _cells(["---"] * len(_COLUMNS))]
    tables = ["\n".join([f"### {DATASETS[dataset]}", "", *header, *rows]) for dataset, rows in groups.items() if rows]
    return "\n\n".join(tables) + "\n"


def _row(name: str) -> str:
    recipe, header = load_recipe(name), read_recipe_header(shipped_recipes()[name])
    return _cells(
        [
            f"[`{name}`](../recipes/{name}.yaml)",
            _student(recipe),
            _teacher(recipe),
            _head(recipe),
            _centres(recipe),
            _schedule(recipe),
            header.aim.rstrip(".") or "-",
            header.result.rstrip("."),
        ]
    )


def _student(recipe: Recipe) -> str:
    width = recipe.student.width
    return recipe.student.arch if width == 1.0 else f"{recipe.student.arch} x {width:g}"


def _teacher(recipe: Recipe) -> str:
    if recipe.teacher is None:
        return "-"
    named = None if recipe.teacher.source is None else getattr(recipe.teacher, recipe.teacher.source)
    text = f"`{named or recipe.teacher.embeddings or recipe.teacher.cache}`"
    return f"{text}, cached" if named and recipe.teacher.cache else text


def _head(recipe: Recipe) -> str:
    if recipe.centres.kind == "none":
        return "-"
    text = f"{HEADS[recipe.head.kind].title} {recipe.head.margin:g}"
    geometry = recipe.geometry_margin
    if geometry.mode == "off":
        return text
    return f"{text}, {geometry.mode} geometry x {geometry.weight:g}, scale {geometry.scale:g}"


def _centres(recipe: Recipe) -> str:
    centres = recipe.centres
    parts: list[str] = [centres.kind]
    if centres.kind == "adaptive" and centres.momentum == "unweighted":
        parts.append("unweighted")
    if centres.placement == "sharded":
        parts.append("sharded")
    if centres.path is not None:
        parts.append(f"`{centres.path}`")
    if recipe.regression.weight > 0.0:
        parts.append(f"regression {recipe.regression.weight:g}")
    parts += [f"{name} {term.weight:g}" for name, term in recipe.terms.chosen.items()]
    if centres.sample_rate < 1.0:
        parts.append(f"{centres.sample_rate:.0%} sampled")
    return ", ".join(parts)


def _schedule(recipe: Recipe) -> str:
    optim = recipe.optim
    fall = "linear to 0" if optim.power == 1.0 else f"to 0 with power {optim.power:g}"
    if optim.schedule == "step":
        fall = f"drops at {', '.join(map(str, optim.milestones))}"
    rate = optim.lr * recipe.data.global_batch_size / optim.lr_batch_size
    parts = [f"{optim.epochs} epochs of {recipe.data.global_batch_size}, rate {rate:g}, {fall}"]
    if optim.warmup_epochs > 0.0:
        parts.append(f"{optim.warmup} warm-up {optim.warmup_epochs:g}")
    parts.append(f"decay {optim.weight_decay:g}" + (" of matrices" if optim.decay == "matrices" else ""))
    if recipe.augment.alters_pixels:
        parts.append(f"{recipe.augment.policy} augmentation")
    return ", ".join(parts)


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
