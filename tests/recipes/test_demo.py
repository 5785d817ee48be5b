"""The demo runs from faces to report, and says what it measured: also when it is not good enough."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from adadistill.recipes import demo

SHORT = ["optim.epochs=1", "optim.milestones=[]", "data.global_batch_size=16", "optim.warmup_epochs=0"]


@pytest.fixture
def few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "TEACHER_FACES", dataclasses.replace(demo.TEACHER_FACES, identities=8, images_per_identity=4)
    )
    monkeypatch.setattr(
        demo, "STUDENT_FACES", dataclasses.replace(demo.STUDENT_FACES, identities=4, images_per_identity=4)
    )
    monkeypatch.setattr(demo, "PAIRS", 40)


@pytest.mark.slow
@pytest.mark.usefixtures("few_faces")
def test_the_demo_leaves_every_run_and_a_report_and_fails_when_the_student_learnt_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = demo.main(["--out", str(tmp_path / "demo"), "--seeds", "1", *SHORT])

    printed = capsys.readouterr().out
    assert code == 1, "two steps of training cannot lift a student ten standard errors above an untrained one"
    for title in (
        "untrained student",
        "student without a teacher",
        "distilled student",
        "teacher",
        "gain of distilling",
    ):
        assert title in printed
    summary = json.loads((tmp_path / "demo" / "report" / "demo.json").read_text())
    assert set(summary["scores"]) == {"untrained", "no_teacher", "distilled", "teacher"}
    for run in ("teacher", "no_teacher-seed0", "distilled-seed0"):
        names = {path.name for path in (tmp_path / "demo" / run).iterdir()}
        assert {"recipe.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoints", "report"} <= names


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "something").write_text("kept")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_a_student_far_above_chance_passes_and_the_gain_is_printed_with_its_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scores = {
        "untrained": demo.Score((0.52, 0.53, 0.51), 3000),
        "no_teacher": demo.Score((0.80, 0.81, 0.79), 3000),
        "distilled": demo.Score((0.88, 0.87, 0.89), 3000),
        "teacher": demo.Score((0.90,), 3000),
    }
    assert demo.report(tmp_path, scores, seconds=1.0)
    assert "+8.00% (by seed: +8.00%, +6.00%, +10.00%)" in capsys.readouterr().out
    scores["distilled"] = demo.Score((0.79, 0.80, 0.78), 3000)
    assert demo.report(tmp_path, scores, seconds=1.0)
    assert "-1.00%" in capsys.readouterr().out
    scores["distilled"] = demo.Score((0.60, 0.61, 0.59), 3000)
    assert not demo.report(tmp_path, scores, seconds=1.0)


def test_the_standard_error_counts_pairs_and_seeds():
    assert demo.Score((0.5,), 2500).standard_error == pytest.approx(0.01)
    spread = demo.Score((0.4, 0.6), 10**12)
    assert spread.standard_error == pytest.approx(0.1, rel=1e-3)


def test_baseline_and_student_differ_in_nothing_but_the_method():
    from adadistill.core.recipe import load_recipe, recipe_differences

    differing = {
        line.split(":")[0].split(".")[0]
        for line in recipe_differences(load_recipe("demo_no_teacher"), load_recipe("demo_distilled"))
    }
    assert differing == {"name", "teacher", "head", "centres", "regression"}
