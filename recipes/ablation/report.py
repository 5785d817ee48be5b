"""What an ablation found: accuracies by variant and seed, paired differences to the baseline, and what they can tell.

    ablation.jsonl  a row for each run and set: accuracy, recipe hash, and what the number depends on, as bench rows
    ablation.json   the statistics
    ablation.md     the same as tables and sentences
    ablation.svg    differences with their intervals, where matplotlib is installed

Everything is read from the run folders. Rates are in [0, 1] in the JSON files, percent and percentage points in tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adadistill.core.recipe import recipe_hash
from adadistill.core.seed_statistics import (
    LEVEL,
    PairedDifference,
    Spread,
    paired_difference,
    proportion_standard_error,
    seeds_to_tell,
    spread,
)
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.evaluation_sets.verification_pairs import verification_set_name
from adadistill.recipes.ablation.plan import AblationPlan, PlannedRun
from adadistill.recipes.ablation.runs import RunState
from adadistill.recipes.scoring.files import write_whole

GAIN = 0.002
"""The difference that the report plans seeds for: 0.2 points, as large as the gains published for this method."""
SCORES = ("accuracy", "accuracy_std", "tar_10fold", "tar_strict", "far_target", "auc", "eer", "xnorm", "pairs")
ENVIRONMENT = (
    "date", "commit", "python", "torch", "cuda", "devices", "device", "cpu", "cpu_count", "threads", "world_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One variant on one verification set."""

    label: str
    accuracies: Mapping[int, float]
    """By seed, of the runs that are finished."""
    failures: Mapping[int, str]
    """By seed, why a run failed."""
    spread: Spread | None
    """None without a finished run."""
    difference: PairedDifference | None
    """To the baseline, over the seeds that both have; None for the baseline itself and without such a seed."""
    corrected: PairedDifference | None
    """The same at the level that Bonferroni's correction for all comparisons asks for."""

    def sentence(self, baseline: str, planned: int) -> str:
        """What its interval says, in words."""
        lost = f"; {len(self.failures)} of {planned} runs failed" if self.failures else ""
        if self.spread is None:
            return f"no run is finished{lost}"
        if self.label == baseline:
            return f"the baseline{lost}"
        found = self.difference
        if found is None:
            return f"no seed in common with {baseline}{lost}"
        if found.interval is None:
            return f"{_points(found.mean)} points in one seed, which has no interval: nothing can be told{lost}"
        seeds = f"these {len(found.differences)} seeds"
        if not any(found.differences):
            return f"the same accuracy as {baseline} in each of {seeds}{lost}"
        low, high = found.interval
        if not found.excludes_zero:
            return f"no difference can be told from {seeds}: {_points(low)} to {_points(high)} points{lost}"
        word = "better" if low > 0.0 else "worse"
        corrected = self.corrected is not None and self.corrected.excludes_zero
        kept = "" if corrected else ", but not when all comparisons are counted (Bonferroni)"
        return f"{word} than {baseline}, {_points(low)} to {_points(high)} points in {seeds}{kept}{lost}"


@dataclass(frozen=True, slots=True)
class SetResult:
    """One verification set."""

    name: str
    pairs: int | None
    variants: tuple[VariantResult, ...]

    @property
    def pairs_standard_error(self) -> float | None:
        """Standard error of one network's accuracy that comes from the choice of pairs, at the mean accuracy."""
        means = [variant.spread.mean for variant in self.variants if variant.spread is not None]
        if self.pairs is None or not means:
            return None
        return proportion_standard_error(sum(means) / len(means), self.pairs)


@dataclass(frozen=True, slots=True)
class AblationResult:
    """Everything that a report says."""

    plan: AblationPlan
    states: Mapping[PlannedRun, RunState]
    failures: Mapping[PlannedRun, str]
    sets: tuple[SetResult, ...]
    comparisons: int
    """Intervals in all sets together."""


def ablation_result(
    plan: AblationPlan, states: Mapping[PlannedRun, RunState], failures: Mapping[PlannedRun, str]
) -> AblationResult:
    """Compare what is finished.

    Args:
        states: of every run of the plan.
        failures: why runs failed in this launch.
    """
    names = [verification_set_name(path) for path in plan.base.evaluation.sets]
    comparisons = (len(plan.variants) - 1) * len(names)
    return AblationResult(
        plan=plan,
        states=states,
        failures=failures,
        sets=tuple(_set_result(name, plan, states, failures, comparisons) for name in names),
        comparisons=comparisons,
    )


def _set_result(
    name: str,
    plan: AblationPlan,
    states: Mapping[PlannedRun, RunState],
    failures: Mapping[PlannedRun, str],
    comparisons: int,
) -> SetResult:
    accuracies: dict[str, dict[int, float]] = {variant.label: {} for variant in plan.variants}
    failed: dict[str, dict[int, str]] = {variant.label: {} for variant in plan.variants}
    pairs = None
    for run, state in states.items():
        if run in failures:
            failed[run.variant][run.seed] = failures[run]
        scores = state.evaluations.get(name)
        if scores is not None and scores["accuracy"] is not None:
            accuracies[run.variant][run.seed] = scores["accuracy"]
            pairs = scores["pairs"]
    baseline = accuracies[plan.baseline]
    variants = []
    for label, ours in accuracies.items():
        difference = corrected = None
        common = [seed for seed in ours if seed in baseline]
        if label != plan.baseline and common:
            both = [ours[seed] for seed in common], [baseline[seed] for seed in common]
            difference = paired_difference(*both)
            corrected = paired_difference(*both, level=1.0 - (1.0 - LEVEL) / comparisons)
        of = spread(list(ours.values())) if ours else None
        variants.append(VariantResult(label, ours, failed[label], of, difference, corrected))
    return SetResult(name, pairs, tuple(variants))


def write_report(result: AblationResult, folder: Path) -> list[Path]:
    """Write `ablation.jsonl`, `.json` and `.md`, each whole or not at all; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "ablation.jsonl": "".join(json.dumps(row) + "\n" for row in report_rows(result)),
        "ablation.json": json.dumps(report_json(result), indent=1) + "\n",
        "ablation.md": report_markdown(result),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def report_rows(result: AblationResult) -> list[dict[str, Any]]:
    """One row for each run and verification set; a run without scores has one row, which says why."""
    rows = []
    for run, state in result.states.items():
        environment = _environment(run)
        common = {
            "bench": "ablation",
            **{key: environment.get(key) for key in ENVIRONMENT},
            "recipe": result.plan.base.name,
            "variant": run.variant,
            "baseline": result.plan.baseline,
            "seed": run.seed,
            "recipe_hash": recipe_hash(run.recipe),
            "state": _state(run, result),
            "failed": result.failures.get(run),
        }
        for name, scores in state.evaluations.items():
            rows.append({**common, "set": name, **{key: scores.get(key) for key in SCORES}})
        if not state.evaluations:
            rows.append({**common, "set": None, **dict.fromkeys(SCORES)})
    return rows


def report_json(result: AblationResult) -> dict[str, Any]:
    """The statistics. They depend on the runs alone, not on when or in how many launches these were trained."""
    plan = result.plan
    return {
        "recipe": plan.base.name,
        "baseline": plan.baseline,
        "seeds": list(plan.seeds),
        "level": LEVEL,
        "comparisons": result.comparisons,
        "variants": [
            {
                "name": variant.label,
                "description": variant.description,
                "differences": variant.differences(plan.base),
                "runs": [
                    {
                        "seed": run.seed,
                        "recipe_hash": recipe_hash(run.recipe),
                        "folder": run.folder.relative_to(plan.folder).as_posix(),
                        "state": _state(run, result),
                        "failed": result.failures.get(run),
                    }
                    for run in (plan.run(variant, seed) for seed in plan.seeds)
                ],
            }
            for variant in plan.variants
        ],
        "sets": [_set_json(one, plan) for one in result.sets],
    }


def _set_json(one: SetResult, plan: AblationPlan) -> dict[str, Any]:
    return {
        "set": one.name,
        "pairs": one.pairs,
        "pairs_standard_error": one.pairs_standard_error,
        "variants": [
            {
                "name": variant.label,
                "accuracies": {str(seed): accuracy for seed, accuracy in variant.accuracies.items()},
                "mean": None if variant.spread is None else variant.spread.mean,
                "std": None if variant.spread is None else variant.spread.std,
                "difference": _difference_json(variant),
                "sentence": variant.sentence(plan.baseline, len(plan.seeds)),
            }
            for variant in one.variants
        ],
    }


def _difference_json(variant: VariantResult) -> dict[str, Any] | None:
    found, corrected = variant.difference, variant.corrected
    if found is None:
        return None
    return {
        "by_seed": list(found.differences),
        "mean": found.mean,
        "std": found.std,
        "interval": None if found.interval is None else list(found.interval),
        "excludes_zero": found.excludes_zero,
        "corrected_interval": None if corrected is None or corrected.interval is None else list(corrected.interval),
        f"seeds_for_{GAIN:g}": _seeds_for_gain(found),
    }


def report_markdown(result: AblationResult) -> str:
    """Tables and sentences."""
    plan = result.plan
    lines = [
        f"# Ablation of {plan.base.name}",
        "",
        f"{len(plan.variants)} variants, {_seeds(plan.seeds)}. Differences are to `{plan.baseline}`, paired by seed, "
        f"in percentage points, with Student's {100 * LEVEL:g} % interval over the seeds.",
        "",
    ]
    for one in result.sets:
        lines += [f"## {one.name}", "", *_set_markdown(one, plan), ""]
    lines += ["## Reading it", "", *(f"- {note}" for note in reading_notes(result)), ""]
    lines += ["## Variants", ""]
    for variant in plan.variants:
        changes = "; ".join(f"`{line}`" for line in variant.differences(plan.base)) or "the recipe itself"
        lines += [f"- **{_cell(variant.label)}**: {variant.description or 'no description'} ({changes})"]
    lines += ["", "## Runs", "", "| Variant | Seed | State |", "| --- | ---: | --- |"]
    for run in result.states:
        lines.append(f"| {_cell(run.variant)} | {run.seed} | {_cell(_told(run, result))} |")
    measured = _measured_on(result)
    return "\n".join([*lines, "", *([f"Measured on {measured}.", ""] if measured else [])])


def _set_markdown(one: SetResult, plan: AblationPlan) -> list[str]:
    head = f"| Variant | Accuracy % | Std over seeds | Difference | {100 * LEVEL:g} % interval | By seed | Seeds |"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | --- | ---: |"]
    lines += [f"| {' | '.join(map(_cell, cells))} |" for cells in _cells(one, plan)]
    return [*lines, "", *(f"- {_cell(line)}" for line in _sentences(one, plan)), "", _pairs_note(one)]


def report_text(result: AblationResult) -> str:
    """The tables for a terminal."""
    blocks = []
    for one in result.sets:
        head = ("variant", "accuracy %", "std", "difference", f"{100 * LEVEL:g} % interval", "by seed", "seeds")
        rows = [head, *_cells(one, result.plan)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        table.insert(1, "-" * max(map(len, table)))
        blocks.append("\n".join([f"{one.name}:", *table, "", *_sentences(one, result.plan), _pairs_note(one)]))
    return "\n\n".join([*blocks, *reading_notes(result)])


def _cells(one: SetResult, plan: AblationPlan) -> list[tuple[str, ...]]:
    """A row for each variant: name, mean, std, difference, interval, differences by seed, seeds."""
    rows = []
    for variant in one.variants:
        of, found = variant.spread, variant.difference
        seeds = f"{len(variant.accuracies)} of {len(plan.seeds)}"
        if of is None:
            rows.append((variant.label, *(["failed" if variant.failures else "-"] + ["-"] * 4), seeds))
            continue
        by_seed = "" if found is None else ", ".join(map(_points, found.differences))
        interval = "-" if found is None or found.interval is None else " to ".join(map(_points, found.interval))
        rows.append(
            (
                variant.label,
                f"{100 * of.mean:.2f}",
                "-" if of.std is None else f"{100 * of.std:.2f}",
                "baseline" if variant.label == plan.baseline else "-" if found is None else _points(found.mean),
                interval,
                by_seed or "-",
                seeds,
            )
        )
    return rows


def _sentences(one: SetResult, plan: AblationPlan) -> list[str]:
    lines = []
    for variant in one.variants:
        lines.append(f"{variant.label}: {variant.sentence(plan.baseline, len(plan.seeds))}.")
        for seed, reason in variant.failures.items():
            lines.append(f"{variant.label}, seed {seed}, failed: {reason}")
    return lines


def _pairs_note(one: SetResult) -> str:
    error = one.pairs_standard_error
    if error is None:
        return "No run is finished."
    return (
        f"For scale: one network's accuracy has a standard error of {100 * error:.2f} points from the choice of "
        f"{one.pairs:,} pairs, which all runs here share."
    )


def reading_notes(result: AblationResult) -> list[str]:
    """What to keep in mind with these numbers."""
    notes = []
    if len(result.plan.seeds) == 1:
        notes.append(
            "There is one seed, so there are no intervals: differences between single runs are noise until shown "
            "otherwise."
        )
    elif result.comparisons > 1:
        notes.append(
            f"There are {result.comparisons} comparisons. If no variant differed at all, "
            f"{result.comparisons * (1 - LEVEL):.2g} of their intervals would still be expected to exclude zero; "
            f"Bonferroni's correction asks for intervals of {100 * (1 - (1 - LEVEL) / result.comparisons):.2f} %."
        )
    for one in result.sets:
        stds = [v.difference.std for v in one.variants if v.difference is not None and v.difference.std is not None]
        if any(stds):
            typical = math.sqrt(sum(std * std for std in stds) / len(stds))
            count = seeds_to_tell(GAIN, typical)
            needed = f"{count:,} seeds" if count is not None else "more than a thousand seeds"
            notes.append(
                f"{one.name}: paired differences spread by {100 * typical:.2f} points from seed to seed. Showing a "
                f"true difference of {100 * GAIN:g} points in four experiments of five takes {needed}."
            )
    return notes


def _seeds_for_gain(found: PairedDifference) -> int | None:
    return None if found.std is None else seeds_to_tell(GAIN, found.std)


def _state(run: PlannedRun, result: AblationResult) -> str:
    return "failed" if run in result.failures else result.states[run].stage


def _told(run: PlannedRun, result: AblationResult) -> str:
    return f"failed: {result.failures[run]}" if run in result.failures else result.states[run].told


def _environment(run: PlannedRun) -> dict[str, Any]:
    """What the run wrote of its start; empty where it wrote nothing, or damage made it unreadable."""
    try:
        content = json.loads(RunFolder(run.folder).environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _measured_on(result: AblationResult) -> str:
    """Devices, versions, commits and days of the finished runs."""
    found: dict[str, None] = {}
    for run, state in result.states.items():
        if state.stage == "finished":
            told = _environment(run)
            device = ", ".join(told.get("devices") or []) if str(told.get("device", "")).startswith("cuda") else "CPU"
            commit, changed, _ = str(told.get("commit")).partition("+")
            found[
                f"{device} (processor {told.get('cpu')}, {told.get('cpu_count')} cores, {told.get('world_size')} "
                f"process(es) of {told.get('threads')} thread(s)), torch {told.get('torch')}, commit {commit[:12]}"
                f"{' with changes' if changed else ''}, {str(told.get('date'))[:10]}"
            ] = None
    return "; ".join(found)


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _cell(text: str) -> str:
    """Text that leaves a Markdown table as it is."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
