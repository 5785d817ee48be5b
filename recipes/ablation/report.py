"""What an ablation found, from the run folders: accuracies by variant and seed, paired differences, and their limits.

    ablation.jsonl  a row for each run and set: accuracy, recipe hash, and what the number depends on, as bench rows
    ablation.json   the statistics
    ablation.md     the same as tables and sentences
    ablation.svg    differences with their intervals, where matplotlib is installed

Rates are in [0, 1] in the JSON files, percent and percentage points in tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adadistill.core.recipe import recipe_hash
from adadistill.core.report.charts import Interval, interval_chart
from adadistill.core.report.document import Block, Bullets, Cell, Document, Heading, Number, Paragraph, Table
from adadistill.core.report.markdown_page import markdown_page, terminal_table
from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.evaluation_sets.verification_pairs import verification_set_name
from adadistill.recipes.ablation.plan import AblationPlan, PlannedRun
from adadistill.recipes.ablation.runs import RunState
from adadistill.recipes.ablation.seed_statistics import (
    LEVEL,
    PairedDifference,
    Spread,
    paired_difference,
    proportion_standard_error,
    seeds_to_tell,
    spread,
)

GAIN = 0.002
"""The difference that the report plans seeds for: 0.2 points, as large as the gains published for this method."""
SCORES = ("accuracy", "accuracy_std", "tar_10fold", "tar_strict", "far_target", "auc", "eer", "xnorm", "pairs")
ENVIRONMENT = (
    "date", "commit", "training_code", "python", "torch", "cuda", "devices", "device", "cpu", "cpu_count", "threads",
    "world_size",
)  # fmt: skip
_MOST_SEEDS_SHOWN = 20  # beyond, dots hide the interval


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
        return f"{self._told(baseline)}{lost}"

    def _told(self, baseline: str) -> str:
        found = self.difference
        if self.spread is None:
            return "no run is finished"
        if self.label == baseline:
            return "the baseline"
        if found is None:
            return f"no seed in common with {baseline}"
        if found.interval is None:
            return f"{_points(found.mean)} points in one seed, which has no interval: nothing can be told"
        seeds = f"these {len(found.differences)} seeds"
        if not any(found.differences):
            return f"the same accuracy as {baseline} in each of {seeds}"
        reach = " to ".join(map(_points, found.interval))
        if not found.excludes_zero:
            return f"no difference can be told from {seeds}: {reach} points"
        corrected = self.corrected is not None and self.corrected.excludes_zero
        kept = "" if corrected else ", but not when all comparisons are counted (Bonferroni)"
        return f"{'better' if found.mean > 0.0 else 'worse'} than {baseline}, {reach} points in {seeds}{kept}"


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
    """Of every run of the plan."""
    failures: Mapping[PlannedRun, str]
    """Why runs failed in this launch."""
    sets: tuple[SetResult, ...]
    comparisons: int
    """Intervals in all sets together."""

    def told(self, run: PlannedRun) -> str:
        """Where a run is, for people."""
        return f"failed: {self.failures[run]}" if run in self.failures else self.states[run].told


def ablation_result(
    plan: AblationPlan, states: Mapping[PlannedRun, RunState], failures: Mapping[PlannedRun, str]
) -> AblationResult:
    """Compare what is finished."""
    names = [verification_set_name(path) for path in plan.base.evaluation.sets]
    comparisons = (len(plan.variants) - 1) * len(names)
    sets = []
    for name in names:
        scores = {run: state.evaluations[name] for run, state in states.items() if name in state.evaluations}
        scores = {run: score for run, score in scores.items() if score["accuracy"] is not None}
        accuracies: dict[str, dict[int, float]] = {variant.label: {} for variant in plan.variants}
        for run, score in scores.items():
            accuracies[run.variant][run.seed] = score["accuracy"]
        pairs = next((score["pairs"] for score in reversed(scores.values())), None)
        variants = []
        for label, ours in accuracies.items():
            failed = {run.seed: reason for run, reason in failures.items() if run.variant == label}
            theirs = {} if label == plan.baseline else accuracies[plan.baseline]
            variants.append(VariantResult(label, ours, failed, *_compared(ours, theirs, comparisons)))
        sets.append(SetResult(name, pairs, tuple(variants)))
    return AblationResult(plan, states, failures, tuple(sets), comparisons)


def _compared(
    ours: Mapping[int, float], theirs: Mapping[int, float], comparisons: int
) -> tuple[Spread | None, PairedDifference | None, PairedDifference | None]:
    of = spread(list(ours.values())) if ours else None
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return of, None, None
    both = [ours[seed] for seed in common], [theirs[seed] for seed in common]
    return of, paired_difference(*both), paired_difference(*both, level=1.0 - (1.0 - LEVEL) / comparisons)


def write_report(result: AblationResult, folder: Path) -> list[Path]:
    """Write `ablation.jsonl`, `.json`, `.md` and, of two variants or more, `.svg`, each whole; those that were."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "ablation.jsonl": "".join(json.dumps(row) + "\n" for row in report_rows(result)),
        "ablation.json": json.dumps(report_json(result), indent=1) + "\n",
        "ablation.md": markdown_page(report_document(result)),
        "ablation.svg": difference_chart(result),
    }
    written = {folder / name: text for name, text in texts.items() if text is not None}
    for path, text in written.items():
        write_whole(path, text)
    return list(written)


def report_rows(result: AblationResult) -> list[dict[str, Any]]:
    """One row for each run and verification set; a run without scores has one row, which says why."""
    rows = []
    for run, state in result.states.items():
        common = {
            "bench": "ablation",
            **{key: state.environment.get(key) for key in ENVIRONMENT},
            "made_of": dict(state.made_of),
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
        "sets": [
            {
                "set": one.name,
                "pairs": one.pairs,
                "pairs_standard_error": one.pairs_standard_error,
                "variants": [_variant_json(variant, plan) for variant in one.variants],
            }
            for one in result.sets
        ],
    }


def _variant_json(variant: VariantResult, plan: AblationPlan) -> dict[str, Any]:
    found, corrected = variant.difference, variant.corrected
    difference = None
    if found is not None:
        difference = {
            "by_seed": found.differences,
            "mean": found.mean,
            "std": found.std,
            "interval": found.interval,
            "excludes_zero": found.excludes_zero,
            "corrected_interval": None if corrected is None else corrected.interval,
            f"seeds_for_{GAIN:g}": None if found.std is None else seeds_to_tell(GAIN, found.std),
        }
    return {
        "name": variant.label,
        "accuracies": {str(seed): accuracy for seed, accuracy in variant.accuracies.items()},
        "mean": None if variant.spread is None else variant.spread.mean,
        "std": None if variant.spread is None else variant.spread.std,
        "difference": difference,
        "sentence": variant.sentence(plan.baseline, len(plan.seeds)),
    }


def report_document(result: AblationResult) -> Document:
    """Tables and sentences."""
    plan = result.plan
    seeds = f"{'seed' if len(plan.seeds) == 1 else 'seeds'} {', '.join(map(str, plan.seeds))}"
    blocks: list[Block] = [
        Paragraph(
            f"{len(plan.variants)} variants, {seeds}. Differences are to {plan.baseline}, paired by seed, in "
            f"percentage points, with Student's {100 * LEVEL:g} % interval over the seeds."
        )
    ]
    for one in result.sets:
        blocks += [Heading(2, one.name), _table(one, plan), Bullets(_sentences(one, plan)), Paragraph(_pairs_note(one))]
    if notes := reading_notes(result):
        blocks += [Heading(2, "Reading it"), Bullets(notes)]
    variants = []
    for variant in plan.variants:
        changes = "; ".join(variant.differences(plan.base)) or "the recipe itself"
        variants.append(f"{variant.label}: {variant.description or 'no description'} ({changes})")
    rows: list[Sequence[Cell]] = [
        [run.variant, Number(run.seed, str(run.seed)), result.told(run)] for run in result.states
    ]
    runs = Table(caption="Every run, and where it is", heads=["Variant", "Seed", "State"], rows=rows)
    blocks += [Heading(2, "Variants"), Bullets(variants), Heading(2, "Runs"), runs]
    if measured := _measured_on(result):
        blocks.append(Paragraph(f"Measured on {measured}."))
    return Document(title=f"Ablation of {plan.base.name}", blocks=blocks)


def report_text(result: AblationResult) -> str:
    """The tables for a terminal."""
    parts = []
    for one in result.sets:
        table = _table(one, result.plan)
        parts.append(
            "\n".join([f"{one.name}:", terminal_table(table), "", *_sentences(one, result.plan), _pairs_note(one)])
        )
    return "\n\n".join([*parts, *reading_notes(result)])


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


def difference_chart(result: AblationResult) -> str | None:
    """Differences to the baseline with their intervals, a panel for each set; None of one variant, or undrawn."""
    panels = {}
    for one in result.sets:
        rows = []
        for variant in one.variants:
            found, label = variant.difference, variant.label
            if label == result.plan.baseline:
                continue
            if found is None:
                rows.append(Interval(label, None, instead="failed" if variant.failures else "not finished"))
                continue
            values = [100 * value for value in found.differences[: _MOST_SEEDS_SHOWN + 1]]
            interval = None if found.interval is None else (100 * found.interval[0], 100 * found.interval[1])
            rows.append(Interval(label, 100 * found.mean, values if len(values) <= _MOST_SEEDS_SHOWN else (), interval))
        panels[f"{one.name}: mean (diamond), seeds (dots), {100 * LEVEL:g} % interval (line)"] = rows
    if len(result.plan.variants) < 2:
        return None
    return interval_chart(panels, f"difference to {result.plan.baseline}, percentage points")


def _table(one: SetResult, plan: AblationPlan) -> Table:
    """A row for each variant: mean, deviation, difference, interval, differences by seed, seeds."""
    rows: list[Sequence[Cell]] = []
    for variant in one.variants:
        of, found = variant.spread, variant.difference
        by_seed = None if found is None else ", ".join(map(_points, found.differences))
        interval = None if found is None or found.interval is None else " to ".join(map(_points, found.interval))
        accuracy: Cell = "failed" if variant.failures else None
        difference: Cell = "baseline" if of is not None and variant.label == plan.baseline else None
        rows.append(
            [
                variant.label,
                accuracy if of is None else Number(of.mean, f"{100 * of.mean:.2f}"),
                None if of is None or of.std is None else Number(of.std, f"{100 * of.std:.2f}"),
                difference if found is None else Number(found.mean, _points(found.mean)),
                interval,
                by_seed,
                f"{len(variant.accuracies)} of {len(plan.seeds)}",
            ]
        )
    heads = ["Variant", "Accuracy %", "Std over seeds", "Difference", f"{100 * LEVEL:g} % interval", "By seed", "Seeds"]
    return Table(caption=f"Accuracies on {one.name}, and differences to {plan.baseline}", heads=heads, rows=rows)


def _sentences(one: SetResult, plan: AblationPlan) -> list[str]:
    lines = []
    for variant in one.variants:
        lines.append(f"{variant.label}: {variant.sentence(plan.baseline, len(plan.seeds))}.")
        lines += [f"{variant.label}, seed {seed}, failed: {reason}" for seed, reason in variant.failures.items()]
    return lines


def _pairs_note(one: SetResult) -> str:
    error = one.pairs_standard_error
    if error is None:
        return "No run is finished."
    return (
        f"For scale: one network's accuracy has a standard error of {100 * error:.2f} points from the choice of "
        f"{one.pairs:,} pairs, which all runs here share."
    )


def _state(run: PlannedRun, result: AblationResult) -> str:
    return "failed" if run in result.failures else result.states[run].stage


def _measured_on(result: AblationResult) -> str:
    """Devices, versions, commits and days of the finished runs."""
    found: dict[str, None] = {}
    for state in result.states.values():
        if state.stage == "finished":
            told = state.environment
            device = ", ".join(told.get("devices") or []) if str(told.get("device", "")).startswith("cuda") else "CPU"
            commit, changed, _ = str(told.get("commit")).partition("+")
            found[
                f"{device} (processor {told.get('cpu')}, {told.get('cpu_count')} cores, {told.get('world_size')} "
                f"process(es) of {told.get('threads')} thread(s)), torch {told.get('torch')}, commit {commit[:12]}"
                f"{' with changes' if changed else ''}, {str(told.get('date'))[:10]}"
            ] = None
    return "; ".join(found)


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"
