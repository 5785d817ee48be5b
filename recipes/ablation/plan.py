"""What an ablation is to train: a recipe, variants of it laid over it, and seeds.

A variant is a name of `recipes/variants/`, a YAML file of recipe keys, or `recipe`, the recipe as it is given. `--vary`
multiplies every variant by values of a key. Whatever can be wrong with names, files and values is found here, before
anything is trained, and said at once.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Its seed is that of the recipe it was laid over."""

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
        return PlannedRun(variant.label, seed, dataclasses.replace(variant.recipe, seed=seed), folder)


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
    axes = _parse_axes(vary, problems)
    if not problems and not variants and not axes:
        problems.append(f"there is nothing to compare; give --variants or --vary (variants: {_known_variants()})")
    count = math.prod([len(named), len(chosen_seeds), *map(len, axes)])
    if count > MOST_RUNS:
        problems.append(f"these are {count:,} runs; {MOST_RUNS:,} at most")
    if problems:
        raise AblationError(problems)

    found: dict[str, Variant] = {}
    for (name, path), values in itertools.product(named.items(), itertools.product(*axes)):
        label = ",".join([*([] if name == AS_GIVEN and values else [name]), *values])
        try:
            laid = load_overlaid_recipe(recipe, overrides, overlay=path, overlay_overrides=values)
        except RecipeError as error:
            problems += [f"variant {show_text(label, 200)}: {problem}" for problem in error.problems]
            continue
        if laid.seed != base.seed:
            problems.append(f"variant {label} sets the seed; seeds are chosen with --seeds")
        if laid.evaluation.sets != base.evaluation.sets:
            problems.append(f"variant {label} sets evaluation.sets; all variants are scored on the same pairs")
        # Two names for one recipe would be trained twice and compared with themselves.
        other = found.setdefault(recipe_hash(laid), Variant(label, _description(path), laid))
        if other.label != label:
            problems.append(f"variants {other.label} and {label} give the same recipe; leave one out")
    labels = [variant.label for variant in found.values()]
    if not problems and baseline is not None and baseline not in labels:
        problems.append(f"--baseline {show_text(baseline)} is none of the variants{_nearest(baseline, labels)}")
    if problems:
        raise AblationError(problems)
    return AblationPlan(base, tuple(found.values()), baseline or labels[0], chosen_seeds, folder)


def _parse_seeds(text: str, first: int, problems: list[str]) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,19}(,[0-9]{1,19})*", text):
        problems.append(f"--seeds must be a number of seeds or a list of them such as 0,1,2, got {show_text(text)}")
        return ()
    numbers = [int(part) for part in text.split(",")]
    if len(numbers) == 1:
        if not 1 <= numbers[0] <= MOST_RUNS:
            problems.append(f"--seeds must be at least 1 and at most {MOST_RUNS:,}, got {numbers[0]}")
            return ()
        numbers = list(range(first, first + numbers[0]))
    if max(numbers) >= 2**63:
        problems.append(f"--seeds must be in [0, 2^63), got {max(numbers)}")
    problems += [f"--seeds names {number} twice" for number in _repeated(list(map(str, numbers)))]
    return tuple(numbers)


def _find_variants(names: Sequence[str], problems: list[str]) -> dict[str, Path | None]:
    """Variants by name, with the file of each; None for the recipe as it is given."""
    shipped = shipped_variants()
    found: dict[str, Path | None] = {}
    for name in names:
        key, path = name, shipped.get(name)
        if name.endswith(_FILE_SUFFIXES):
            key, path = Path(name).stem, Path(name)
            if not _FILE_STEM.fullmatch(key):
                problems.append(f"variant file {show_text(name)} must be named with letters, digits, '.', '_' and '-'")
            elif key == AS_GIVEN:
                told = f"must have another name; `{AS_GIVEN}` is the recipe itself"
                problems.append(f"variant file {show_text(name)} {told}")
        elif "=" in name:
            problems.append(f"variant {show_text(name)} is an override; overrides stand before --variants")
        elif path is None and name != AS_GIVEN:
            hint = _nearest(name, [*shipped, AS_GIVEN]) or f"; there are {_known_variants()}"
            problems.append(f"there is no variant {show_text(name)}{hint}")
        found[key] = path
    keys = [Path(name).stem if name.endswith(_FILE_SUFFIXES) else name for name in names]
    problems += [f"variant {key} is named twice" for key in _repeated(keys)]
    return found


def _parse_axes(vary: Sequence[str], problems: list[str]) -> list[list[str]]:
    """`key=a,b` as the overrides `key=a` and `key=b`; whether the key exists is seen when they are laid over."""
    keys = [text.partition("=")[0] for text in vary]
    problems += [f"--vary names {show_text(key)} twice; give all its values in one" for key in _repeated(keys)]
    axes = []
    for key, text in zip(keys, vary, strict=True):
        values = _split_values(text.partition("=")[2])
        if "=" not in text or not key:
            problems.append(f"--vary must be written key.path=value,value, got {show_text(text)}")
        elif key == "seed":
            problems.append("--vary seed: seeds are chosen with --seeds")
        elif "" in values:
            problems.append(f"--vary {show_text(text)} has an empty value; write null for none")
        problems += [f"--vary {show_text(key)} has the value {show_text(one)} twice" for one in _repeated(values)]
        axes.append([f"{key}={value}" for value in values])
    return axes


def _split_values(text: str) -> list[str]:
    """At commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _description(path: Path | None) -> str:
    return "the recipe as it is given" if path is None else variant_description(path)


def _repeated(values: Sequence[str]) -> list[str]:
    return [value for value, count in collections.Counter(values).items() if value and count > 1]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:200], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known_variants() -> str:
    return ", ".join([*shipped_variants(), f"or {AS_GIVEN}, the recipe as it is given"])
