"""Every bench runs tiny on the CPU and leaves rows that hold what the schema asks for, so that none rots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_rows import assert_made_here

from adadistill.bench import __main__ as command
from adadistill.bench import real_faces, rows
from adadistill.bench.catalogue import bench_named, benches, tiny_arguments
from adadistill.bench.kernels import bench_centre_update, bench_head_prologue

FORMS = {
    "kernels.bench_prelu": {"torch", "ours"},
    "kernels.bench_centre_update": {"merge", "step", "sequential"},
    "kernels.bench_planar_augment": {"torch", "threads"},
    "kernels.bench_head_prologue": {"eager"},
}
RUN_ELSEWHERE = {"scaling", "beside_origin", "real_faces", "loader", "step", "teacher", "teacher_cache",
                 "kernels.bench_margin_softmax"}  # fmt: skip
"""Benches with tests of their own, which run them once and look at the same of their rows."""


@pytest.mark.usefixtures("importable_processes")
@pytest.mark.parametrize("name", [bench.name for bench in benches() if bench.name not in RUN_ELSEWHERE])
def test_every_bench_runs_tiny_and_leaves_rows(name: str, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert command.main([name, "--tiny", "--rows", str(path)]) == 0
    found = rows.read_rows(path)
    assert found
    assert FORMS.get(name, set()) <= {row.get("form") for row in found}
    assert_made_here(found)


def test_the_drift_of_half_precision_centres(tmp_path: Path):
    rows_path = str(tmp_path / "r.jsonl")
    bench_centre_update.measure_drift(torch.device("cpu"), rows_path, classes=6, dim=16, batch=4, steps=8)
    found = rows.read_rows(rows_path)
    assert [(row["half"], row["updates_each"]) for row in found[:2]] == [("bfloat16", 8 / 6), ("float16", 8 / 6)]
    assert len(found) == 8
    assert all(0.0 <= row["one_minus_cosine"]["mean"] < 1e-4 for row in found)


def test_the_head_prologue_bench_counts_what_eager_torch_launches():
    problem = bench_head_prologue.make_problem(5, 20, 16, torch.device("cpu"))
    form = bench_head_prologue.forms_on(torch.device("cpu"))["eager"]
    launches = bench_head_prologue.launches_of("eager", lambda: bench_head_prologue.step(problem, *form))
    assert 80 < launches < 180  # docs/method.md has 126 of them; torch decides


def test_the_head_prologue_bench_times_nothing_that_is_wrong():
    problem = bench_head_prologue.make_problem(5, 20, 16, torch.device("cpu"))
    made, gradient = bench_head_prologue.step(problem, *bench_head_prologue.forms_on(torch.device("cpu"))["eager"])
    assert bench_head_prologue.check(problem, (made, gradient)) < 1e-5
    with pytest.raises(ValueError, match="nothing was timed"):
        bench_head_prologue.check(problem, (made, 1.001 * gradient))


@pytest.mark.parametrize("kind", ["distilled", "baseline"])
def test_both_kinds_of_training_on_faces_leave_their_score(tmp_path: Path, kind: str):
    arguments = tiny_arguments(bench_named("real_faces"), tmp_path)
    more = ["--kinds", kind, "--seeds", "3", "--rows", str(tmp_path / "r.jsonl")]
    assert real_faces.main([*arguments, *more]) == 0
    (row,) = rows.read_rows(tmp_path / "r.jsonl")
    assert (row["kind"], row["seed"], row["set"]) == (kind, 3, "faces_holdout")
    assert 0.0 <= row["accuracy"] <= 1.0
    assert_made_here([row])
