"""A finished demo becomes a row; a folder without one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadistill.bench import demo as bench
from adadistill.bench.rows import read_rows
from adadistill.recipes import demo


def test_the_report_of_a_demo_is_its_row(tmp_path: Path):
    scores = {role: demo.Score((0.5, 0.6), 20) for role in ("untrained", "no_teacher", "distilled", "teacher")}
    demo.report(tmp_path, scores, seconds=12.5)
    assert bench.main([str(tmp_path), "--rows", str(tmp_path / "r.jsonl")]) == 0
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert (row["seeds"], row["seconds"], row["gain_by_seed"]) == (2, 12.5, [0.0, 0.0])
    assert row["scores"]["teacher"]["accuracies"] == [0.5, 0.6]


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench.main([str(tmp_path)])
    assert "no folder of a finished demo" in capsys.readouterr().err
