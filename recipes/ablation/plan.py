"""What an ablation is to train: a recipe, variants of it laid over it, and seeds.

A variant is a name of `recipes/variants/`, a YAML file of recipe keys, or `recipe`, the recipe as it is given. `--vary`
multiplies every variant by values of a key. Everything that can be wrong with names, files and values is found here,
before anything is trained, and said at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.config.yaml_tree import show_text
from adadistill.core.recipe import Recipe, load_overlaid_recipe, load_recipe, recipe_differences, recipe_hash

AS_GIVEN = "recipe"
MOST_RUNS = 10_000

_FILE_SUFFIXES = (".yaml", ".yml")
_FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_LONG_SECTION = re.compile(r"\{.{40,}\}")
_LONGEST_FOLDER = 120


T = TypeVar("T", int, str)


class AblationError(ValueError):
    """An ablation that cannot be run as asked; the text lists everything that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lead = [f"{len(self.problems)} problems:"] if len(self.problems) > 1 else []
        super().__init__("\n  ".join([*lead, *self.problems]))


@dataclass(frozen=True, slots=True)
class Variant:
    """One recipe of the comparison."""

    label: str
    """Name of the variant, and the varied keys with their values: `geometry_adaptive,geometry_margin.scale=3`."""
    description: str
    """One line; empty where its file has none."""
    recipe: Recipe
    """With the seed of the recipe it was laid over."""

    def differences(self, base: Recipe) -> list[str]:
        """What it changes, whole sections shortened: `head.kind: adaface != arcface`, `teacher: {...} != null`."""
        return [_LONG_SECTION.sub("{...}", line) for line in recipe_differences(base, self.recipe)]

    @property
    def folder_name(self) -> str:
        """The label as the name of a folder; shortened or altered labels end in a hash, so that none collide."""
        name = _UNSAFE.sub("_", self.label)[:_LONGEST_FOLDER]
        if name == self.label:
            return name
        return f"{name}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def title(self) -> str:
        """As logs name it."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """All runs of an ablation."""

    base: Recipe
    """The recipe as it was given."""
    variants: tuple[Variant, ...]
    baseline: str
    """Label of the variant that the others are compared with."""
    seeds: tuple[int, ...]
    folder: Path

    def runs(self) -> Iterator[PlannedRun]:
        """Seed by seed, all variants of one seed before the next: what is there early can be compared early."""
        for seed in self.seeds:
            for variant in self.variants:
                yield self.run(variant, seed)

    def run(self, variant: Variant, seed: int) -> PlannedRun:
        """One of them; its folder is an ordinary run folder."""
        folder = self.folder / "runs" / variant.folder_name / f"seed-{seed}"
        return PlannedRun(variant.label, seed, _with_seed(variant.recipe, seed), folder)


def shipped_variants() -> dict[str, Path]:
    """Variants that come with the package, by name."""
    folder = Path(__file__).resolve().parents[1] / "variants"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def variant_description(path: Path) -> str:
    """The comment that a variant's file opens with, one line; empty where there is none or it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(1000)
    except (OSError, ValueError):  # reading it as a recipe says what is wrong
        return ""
    return show_text(first.lstrip("# ").rstrip(), 300) if first.startswith("#") else ""


def plan_ablation(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    *,
    variants: Sequence[str] = (),
    vary: Sequence[str] = (),
    seeds: str = "3",
    baseline: str | None = None,
    folder: Path,
) -> AblationPlan:
    """Work out all runs.

    Args:
        recipe: as `load_recipe`; `overrides` belong to it, and variants are laid over both.
        variants: names and files; none at all means the recipe as it is given, for `vary` alone.
        vary: `key.path=value,value,...`; several are multiplied out.
        seeds: a number of seeds, counted up from the recipe's own, or a list of them, `0,7,13`.
        baseline: label of the variant to compare with; the first one when left out.

    Raises:
        RecipeError: the recipe itself is wrong.
        AblationError: anything else is.
    """
    base = load_recipe(recipe, overrides)
    problems: list[str] = []
    if not base.evaluation.sets:
        problems.append("evaluation.sets is empty, and an ablation compares accuracies on verification sets; name some")
    chosen_seeds = _parse_seeds(seeds, base.seed, problems)
    named = _find_variants(variants or (AS_GIVEN,), problems)
    axes = [axis for text in _without_repeats(vary, problems) if (axis := _parse_vary(text, problems)) is not None]
    if not problems and not variants and not axes:
        problems.append(f"there is nothing to compare; give --variants or --vary (variants: {_known_variants()})")
    count = len(named) * len(chosen_seeds)
    for axis in axes:
        count *= len(axis)
    if count > MOST_RUNS:
        problems.append(f"these are {count:,} runs; {MOST_RUNS:,} at most")
    if problems:
        raise AblationError(problems)

    found: list[Variant] = []
    for name, path in named.items():
        description = variant_description(path) if path is not None else "the recipe as it is given"
        for values in itertools.product(*axes):
            label = ",".join([*([] if name == AS_GIVEN and values else [name]), *values])
            try:
                laid = load_overlaid_recipe(recipe, overrides, overlay=path, overlay_overrides=values)
            except RecipeError as error:
                problems += [f"variant {show_text(label, 200)}: {problem}" for problem in error.problems]
            else:
                if laid.seed != base.seed:
                    problems.append(f"variant {label} sets the seed; seeds are chosen with --seeds")
                if laid.evaluation.sets != base.evaluation.sets:
                    problems.append(f"variant {label} sets evaluation.sets; all variants are scored on the same pairs")
                found.append(Variant(label, description, laid))
    problems += _equal_variants(found)
    labels = [variant.label for variant in found]
    if not problems and baseline is not None and baseline not in labels:
        problems.append(f"--baseline {show_text(baseline)} is none of the variants{_nearest(baseline, labels)}")
    if problems:
        raise AblationError(problems)
    return AblationPlan(base, tuple(found), baseline or labels[0], chosen_seeds, folder)


def _parse_seeds(text: str, first: int, problems: list[str]) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,19}", part) for part in parts):
        problems.append(f"--seeds must be a number of seeds or a list of them such as 0,1,2, got {show_text(text)}")
        return ()
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        if not 1 <= numbers[0] <= MOST_RUNS:
            problems.append(f"--seeds must be at least 1 and at most {MOST_RUNS:,}, got {numbers[0]}")
            return ()
        numbers = list(range(first, first + numbers[0]))
    if max(numbers) >= 2**63:
        problems.append(f"--seeds must be in [0, 2^63), got {max(numbers)}")
    problems += [f"--seeds names {number} twice" for number in _repeated(numbers)]
    return tuple(numbers)


def _find_variants(names: Sequence[str], problems: list[str]) -> dict[str, Path | None]:
    """Variants by name, with the file of each; None for the recipe as it is given."""
    shipped = shipped_variants()
    found: dict[str, Path | None] = {}
    for name in names:
        path: Path | None = None
        key = name
        if name.endswith(_FILE_SUFFIXES):
            path = Path(name)
            key = path.stem
            if not _FILE_STEM.fullmatch(key):
                problems.append(f"variant file {show_text(name)} must be named with letters, digits, '.', '_' and '-'")
                continue
            if key == AS_GIVEN:
                problems.append(
                    f"variant file {show_text(name)} must have another name; `{AS_GIVEN}` is the recipe itself"
                )
                continue
        elif name in shipped:
            path = shipped[name]
        elif "=" in name:
            problems.append(f"variant {show_text(name)} is an override; overrides stand before --variants")
            continue
        elif name != AS_GIVEN:
            hint = _nearest(name, [*shipped, AS_GIVEN]) or f"; there are {_known_variants()}"
            problems.append(f"there is no variant {show_text(name)}{hint}")
            continue
        if key in found:
            problems.append(f"variant {key} is named twice")
        found[key] = path
    return found


def _without_repeats(vary: Sequence[str], problems: list[str]) -> list[str]:
    keys = [text.partition("=")[0] for text in vary]
    problems += [f"--vary names {show_text(key)} twice; give all its values in one" for key in _repeated(keys)]
    return list(vary)


def _parse_vary(text: str, problems: list[str]) -> list[str] | None:
    """`key=a,b` as the overrides `key=a` and `key=b`; whether the key exists is seen when they are laid over."""
    key, equals, values = text.partition("=")
    if not equals or not key:
        problems.append(f"--vary must be written key.path=value,value, got {show_text(text)}")
        return None
    if key == "seed":
        problems.append("--vary seed: seeds are chosen with --seeds")
        return None
    parts = _split_values(values)
    if "" in parts:
        problems.append(f"--vary {show_text(text)} has an empty value; write null for none")
        return None
    problems += [f"--vary {show_text(key)} has the value {show_text(part)} twice" for part in _repeated(parts)]
    return [f"{key}={part}" for part in parts]


def _split_values(text: str) -> list[str]:
    """At commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _equal_variants(variants: Sequence[Variant]) -> list[str]:
    """Two names for one recipe would be trained twice and compared with themselves."""
    first: dict[str, str] = {}
    problems = []
    for variant in variants:
        other = first.setdefault(recipe_hash(variant.recipe), variant.label)
        if other != variant.label:
            problems.append(f"variants {other} and {variant.label} give the same recipe; leave one out")
    return problems


def _repeated(values: Iterable[T]) -> list[T]:
    seen: set[T] = set()
    repeated: list[T] = []
    for value in values:
        if value in seen and value not in repeated:
            repeated.append(value)
        seen.add(value)
    return repeated


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:200], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known_variants() -> str:
    return ", ".join([*shipped_variants(), f"or {AS_GIVEN}, the recipe as it is given"])


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return dataclasses.replace(recipe, seed=seed)
