"""Benches are found by looking, without importing them; a stranger's mistake gets the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import ROOT

from adadistill.bench import __main__ as command
from adadistill.bench import catalogue


def test_every_bench_says_what_it_isolates_and_how_it_runs_tiny():
    found = catalogue.benches()
    assert len({bench.rows_file for bench in found}) == len(found)
    for bench in found:
        assert bench.about, f"{bench.name} has no docstring"
        assert bench.tiny is not None, f"{bench.name} has no TINY"


def test_a_new_file_is_a_bench_by_having_a_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "wind.py").write_text('"""Measures wind."""\nTINY = "--short"\ndef main(argv): return 0\n')
    (tmp_path / "tools.py").write_text('"""No bench."""\ndef other(): pass\n')
    (tmp_path / "kernels" / "bench_sum.py").write_text("def main(argv): return 0\n")
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    catalogue.benches.cache_clear()
    try:
        assert catalogue.benches() == (
            catalogue.Bench("wind", "Measures wind.", "--short"),
            catalogue.Bench("kernels.bench_sum", "", None),
        )
        assert catalogue.bench_named("sum").name == "kernels.bench_sum"
        with pytest.raises(ValueError, match=r"kernels\.bench_sum has no TINY"):
            catalogue.tiny_arguments(catalogue.bench_named("sum"), tmp_path)
    finally:
        monkeypatch.undo()
        catalogue.benches.cache_clear()


@pytest.mark.parametrize(
    ("typed", "meant"), [("lodaer", "loader"), ("kernel", "kernels"), ("reprot", "report"), ("prleu", "prelu")]
)
def test_an_unknown_name_gets_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]):
    assert command.main([typed]) == 2
    told = capsys.readouterr().err
    assert "did you mean `" in told.splitlines()[0]
    assert meant in told.splitlines()[0]
    assert "usage:" in told


def test_help_names_every_bench_and_asking_for_nothing_is_a_mistake(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(bench.name in told for bench in catalogue.benches())
    assert command.main([]) == 2


def test_the_verb_reaches_help_and_reports_without_torch(tmp_path: Path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import tests_support
tests_support.make_importable()
from adadistill.recipes import cli
assert cli.main(["bench", "--help"]) == 0
assert cli.main(["bench", "report", "--markdown", {str(tmp_path / "report.md")!r}]) == 0
assert "torch" not in sys.modules, "rows can be read without torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert "margin_softmax" in (tmp_path / "report.md").read_text()
