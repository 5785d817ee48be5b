"""What a report says of accuracies: sentences, tables, rows, the figure, and its absence."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adadistill.core.report.markdown_page import markdown_page
from adadistill.recipes.ablation.plan import AblationPlan, plan_ablation
from adadistill.recipes.ablation.report import (
    AblationResult,
    ablation_result,
    difference_chart,
    reading_notes,
    report_document,
    report_json,
    report_rows,
    report_text,
    write_report,
)
from adadistill.recipes.ablation.runs import RunState
from adadistill.recipes.ablation.seed_statistics import seeds_to_tell

BASE, OTHER, ALONE = "adadistill_adaface", "geometry_adaptive", "no_teacher"


def result_of(
    folder: Path,
    accuracies: Mapping[str, list[float | str | None]],
    *,
    sets: tuple[str, ...] = ("lfw",),
    pairs: int = 6000,
) -> AblationResult:
    """The result of runs with these accuracies by variant and seed; text fails a run, None leaves it unfinished."""
    names = ", ".join(f"{name}.bin" for name in sets)
    plan: AblationPlan = plan_ablation(
        "demo_distilled",  # whose own seed is 0
        [f"evaluation.sets=[{names}]"],
        variants=list(accuracies),
        seeds=str(len(next(iter(accuracies.values())))),
        folder=folder,
    )
    states, failures = {}, {}
    for run in plan.runs():
        value = accuracies[run.variant][run.seed]
        if isinstance(value, float):
            score = {"accuracy": value, "pairs": pairs, "auc": 0.9}
            states[run] = RunState("finished", "finished", dict.fromkeys(sets, score))
        else:
            states[run] = RunState("begun", "begun, epoch 1 of 16")
            if value is not None:
                failures[run] = value
    return ablation_result(plan, states, failures)


def page_of(result: AblationResult) -> str:
    return markdown_page(report_document(result))


def sentence(result: AblationResult, label: str) -> str:
    (one,) = result.sets
    (variant,) = (variant for variant in one.variants if variant.label == label)
    return variant.sentence(result.plan.baseline, len(result.plan.seeds))


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        # Differences +1, +2, +3 points: 2 +- 2.48.
        ([0.81, 0.82, 0.83], "no difference can be told from these 3 seeds: -0.48 to +4.48 points"),
        # +2.0, +2.1, +1.9: 2 +- 0.25.
        ([0.820, 0.821, 0.819], f"better than {BASE}, +1.75 to +2.25 points in these 3 seeds"),
        ([0.780, 0.779, 0.781], f"worse than {BASE}, -2.25 to -1.75 points in these 3 seeds"),
        ([0.80, 0.80, 0.80], f"the same accuracy as {BASE} in each of these 3 seeds"),
        # Two seeds: -0.4 and +1.0, 0.3 +- 12.71 * 0.99 / 1.41.
        ([0.796, 0.810, "NonFiniteError: step 7"],
         "no difference can be told from these 2 seeds: -8.59 to +9.19 points; 1 of 3 runs failed"),
        ([0.81, None, None], "+1.00 points in one seed, which has no interval: nothing can be told"),
        (["broken"] * 3, "no run is finished; 3 of 3 runs failed"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_the_interval_says(tmp_path: Path, ours: list[float | str | None], told: str):
    result = result_of(tmp_path, {BASE: [0.80, 0.80, 0.80], OTHER: ours})
    assert sentence(result, OTHER) == told
    assert sentence(result, BASE) == "the baseline"


def test_only_seeds_that_both_have_are_paired(tmp_path: Path):
    result = result_of(tmp_path, {BASE: [None, 0.80, 0.81], OTHER: [0.99, 0.90, None]})
    (one,) = result.sets
    assert one.variants[1].difference.differences == pytest.approx((0.10,))
    result = result_of(tmp_path, {BASE: [None, 0.80], OTHER: [0.99, None]})
    assert sentence(result, OTHER) == f"no seed in common with {BASE}"


def test_a_difference_that_many_comparisons_could_give_by_chance_says_so(tmp_path: Path):
    """2.0 +- 1.1 points at 95 %, and +- 2.6 at the 99 % that five comparisons ask for."""
    ours = [0.820, 0.8245, 0.8155]
    one = result_of(tmp_path, {BASE: [0.8] * 3, OTHER: ours})
    assert sentence(one, OTHER).endswith("in these 3 seeds")
    five = result_of(
        tmp_path,
        {BASE: [0.8] * 3, OTHER: ours, ALONE: [0.7] * 3, "geometry_static": [0.7] * 3, "geometry_headroom": [0.7] * 3,
         "adadistill_arcface": [0.7] * 3},
    )  # fmt: skip
    assert sentence(five, OTHER).endswith("but not when all comparisons are counted (Bonferroni)")
    (note, *_) = reading_notes(five)
    assert "5 comparisons" in note
    assert "0.25 of their intervals" in note
    assert "99.00 %" in note


def test_the_notes_say_how_many_seeds_a_small_gain_takes(tmp_path: Path):
    result = result_of(tmp_path, {BASE: [0.80, 0.80, 0.80], OTHER: [0.80, 0.802, 0.804]})
    assert any("spread by 0.20 points" in note and "takes 10 seeds" in note for note in reading_notes(result))
    (note,) = reading_notes(result_of(tmp_path, {BASE: [0.8], OTHER: [0.9]}))
    assert "one seed, so there are no intervals" in note


def test_the_page_s_table_of_seeds_is_what_the_report_computes():
    page = (Path(__file__).resolve().parents[3] / "docs" / "ablation.md").read_text(encoding="utf-8")
    (_, table) = page.split("| Spread of paired differences, points |")
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 6
    for spread, *counts in rows:
        assert [seeds_to_tell(gain, float(spread)) for gain in (0.2, 0.5, 1.0)] == [int(count) for count in counts]


def test_the_pairs_own_error_is_given_for_scale(tmp_path: Path):
    result = result_of(tmp_path, {BASE: [0.5, 0.5], OTHER: [0.5, 0.5]}, pairs=2500)
    assert "standard error of 1.00 points from the choice of 2,500 pairs" in page_of(result)
    nothing = result_of(tmp_path, {BASE: [None], OTHER: [None]})
    assert "No run is finished." in page_of(nothing)


def test_failed_runs_stand_in_every_form_with_their_reason(tmp_path: Path):
    result = result_of(tmp_path, {BASE: [0.8, 0.8], ALONE: ["RecordError: a | b", "RecordError: c"]})
    page, text, rows = page_of(result), report_text(result), report_rows(result)
    assert "failed: RecordError: a \\| b" in page
    assert f"{ALONE}, seed 1, failed: RecordError: c" in text
    (row,) = (row for row in rows if row["variant"] == ALONE and row["seed"] == 0)
    assert (row["state"], row["failed"], row["set"], row["accuracy"]) == ("failed", "RecordError: a | b", None, None)


def test_rows_are_those_of_a_bench_with_variant_seed_set_and_recipe(tmp_path: Path):
    result = result_of(tmp_path, {BASE: [0.8, 0.81], OTHER: [0.82, 0.8]}, sets=("lfw", "cplfw"))
    environment = {
        "date": "2026-01-01", "commit": None, "training_code": "0123456789ab", "python": "3.11.7",
        "torch": "2.13.0", "cuda": None, "devices": [],
        "device": "cpu", "cpu": "a processor", "cpu_count": 2, "threads": 2, "world_size": 1,
    }  # fmt: skip
    first = next(iter(result.states))
    told = dataclasses.replace(result.states[first], environment=environment)
    result = dataclasses.replace(result, states={**result.states, first: told})
    write_report(result, tmp_path / "report")

    from adadistill.bench.row_schema import row_problems

    rows = [json.loads(line) for line in (tmp_path / "report" / "ablation.jsonl").read_text().splitlines()]
    assert [row_problems(row) for row in rows[:2]] == [[], []]
    assert [(row["variant"], row["seed"], row["set"]) for row in rows[:3]] == [
        (BASE, 0, "lfw"), (BASE, 0, "cplfw"), (OTHER, 0, "lfw"),
    ]  # fmt: skip
    assert (rows[0]["accuracy"], rows[0]["pairs"], rows[0]["threads"], rows[0]["device"]) == (0.8, 6000, 2, "cpu")
    assert len(rows[0]["recipe_hash"]) == 64
    assert rows[2]["date"] is None, "a run folder that says nothing of its start gives no guess"
    saved = json.loads((tmp_path / "report" / "ablation.json").read_text())
    assert saved == json.loads(json.dumps(report_json(result)))
    assert saved["sets"][1]["variants"][1]["difference"]["mean"] == pytest.approx(0.005)
    assert saved["comparisons"] == 2


@pytest.mark.slow
def test_the_figure_names_every_variant_and_set_and_stands_beside_the_report(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    result = result_of(
        tmp_path, {BASE: [0.8, 0.81], OTHER: [0.82, 0.8], ALONE: ["broken", "broken"]}, sets=("lfw", "cplfw")
    )
    written = write_report(result, tmp_path / "report")
    drawn = written[-1].read_text()
    assert written[-1].name == "ablation.svg"
    text = "".join(ElementTree.fromstring(drawn).itertext())
    for part in (OTHER, ALONE, "lfw", "cplfw", "percentage points", "failed"):
        assert part in text
    assert drawn == difference_chart(result)
    assert difference_chart(result_of(tmp_path, {BASE: [0.8]})) is None, "one variant has no differences"


def test_without_matplotlib_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(result_of(tmp_path, {BASE: [0.8], OTHER: [0.9]}), tmp_path / "report")
    assert [path.name for path in written] == ["ablation.jsonl", "ablation.json", "ablation.md"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(path.name for path in written)
