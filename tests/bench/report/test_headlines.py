"""README and rows say the same; several machines are told apart, and the newest row wins."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tests_support import ROOT

from adadistill.bench import report
from adadistill.bench.report.headlines import BEGIN, END, HEADLINES, measured_text, with_measured_text
from adadistill.bench.report.row_sets import load_rows, matching
from adadistill.bench.row_schema import BENCHES

COMMITTED = ROOT / "bench" / "results"


def test_the_readme_shows_the_committed_rows():
    assert report.main(["--readme", str(ROOT / "README.md"), "--check", str(COMMITTED)]) == 0, (
        "write it anew: python -m adadistill.bench report --readme README.md"
    )


def test_every_headline_asks_for_fields_that_rows_have():
    for headline in HEADLINES:
        for value in (*headline.here, *headline.compared):
            entry = BENCHES[str(value.where["bench"])]
            assert set(value.where) - {"bench"} <= set(entry.keys)
            assert value.value.split(".")[0] in entry.values
            assert value.text.format(1.0) != value.text


def test_a_newer_row_of_another_machine_wins_and_takes_its_comparisons_from_there():
    rows = load_rows([COMMITTED])
    softmax = matching(rows, {"bench": "margin_softmax", "batch": 512, "classes": 100_000})
    elsewhere = copy.deepcopy([row for row in softmax if row["form"] in ("torch", "origin") and row["extra_mib"]])
    for row in elsewhere:
        row |= {"date": "2030-01-01T00:00:00+00:00", "cpu": "Another <CPU>", "cpu_count": 8}
        row["ms"] = dict.fromkeys(("median", "p20", "p80"), 111.0 if row["form"] == "torch" else 222.0)
    text = measured_text([*rows, *elsewhere])
    first, rest = text.split("AMD EPYC")
    assert first.startswith("Another &lt;CPU&gt;, 8 CPUs; torch 2.13.0+cpu; 2030-01-01:")
    assert "**111 ms**" in first
    assert "222 ms" in first
    assert "linear_cross_entropy" not in first, "it was not measured there"
    assert "Margin softmax" not in rest
    assert "Loader" in rest


def test_seeds_are_averaged_and_counted():
    rows = load_rows([COMMITTED])
    faces = matching(rows, {"bench": "real_faces", "kind": "distilled", "epochs": 20})
    other = {**copy.deepcopy(faces[-1]), "seed": 1, "accuracy": 0.885}
    text = measured_text([*rows, other])
    assert "mean of 2 seeds" in text
    assert "**87.50%** distilled" in text


def test_what_nobody_measured_is_left_out():
    assert measured_text([]) == ""


def test_a_stale_readme_is_told_from_a_fresh_one_and_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    assert report.main(["--readme", str(readme), "--check"]) == 1
    assert "are not those of the rows" in capsys.readouterr().err
    assert "old figures" in readme.read_text()
    assert report.main(["--readme", str(readme)]) == 0
    written = readme.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old figures" not in written
    assert report.main(["--readme", str(readme), "--check"]) == 0
    assert with_measured_text(written, load_rows([COMMITTED])) == written


@pytest.mark.parametrize("text", ["nothing", END + BEGIN, BEGIN + END + END])
def test_a_readme_without_its_markers_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert report.main(["--readme", str(readme)]) == 2
    assert "two lines" in capsys.readouterr().err
    assert readme.read_text() == text
