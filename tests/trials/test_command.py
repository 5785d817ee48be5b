"""The command that does the trials: families are found, a broken promise is an error, the table is that of the rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests_support import ROOT

from adadistill.bench.rows import read_rows
from trials import __main__ as reliability
from trials.outcome import TrialOutcome

DOCUMENT = f"before\n\n{reliability.BEGIN}\nold\n{reliability.END}\n\nafter\n"


def _outcome(held: int, damage: str = "one bit flipped") -> TrialOutcome:
    failures = ("trial 3: loaded <b>wrong</b> | bits",) if held < 5 else ()
    return TrialOutcome(
        group="checkpoint", damage=damage, promise="found", trials=5, held=held,
        outcomes={"passed over": held, "promise broken": 5 - held}, peak_mib=123.4, failures=failures,
    )  # fmt: skip


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[TrialOutcome]:
    """What the only family there is reports."""
    listed = [_outcome(5)]

    def run(*, tiny: bool, seed: int, folder: Path) -> list[TrialOutcome]:
        assert folder.is_dir()
        return listed

    monkeypatch.setattr(reliability, "families", lambda: ["weather"])
    monkeypatch.setattr(reliability.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    return listed


def test_families_are_the_files_with_a_run():
    assert {"corruption", "disk", "kills"} <= set(reliability.families())
    assert not {"outcome", "tally", "small_run", "training_process", "disk_process"} & set(reliability.families())


def test_a_broken_promise_is_exit_code_1_and_stands_in_its_row(
    outcomes: list[TrialOutcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "rows.jsonl"
    assert reliability.main(["--rows", str(path)]) == 0
    outcomes.append(_outcome(4, "cut off"))
    assert reliability.main(["--rows", str(path), "--seed", "7"]) == 1
    printed = capsys.readouterr().out
    assert "BROKEN  4/5  checkpoint, cut off: found" in printed
    assert "! trial 3: loaded" in printed
    assert "2 kinds of damage, 1 of them broke a promise" in printed
    rows = read_rows(path)
    assert [(row["family"], row["damage"], row["held"], row["seed"]) for row in rows] == [
        ("weather", "one bit flipped", 5, 0), ("weather", "one bit flipped", 5, 7), ("weather", "cut off", 4, 7),
    ]  # fmt: skip
    assert rows[2]["failures"] == ["trial 3: loaded <b>wrong</b> | bits"]


def test_trials_that_do_not_come_to_their_end_are_no_success(
    outcomes: list[TrialOutcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(**_: object) -> list[TrialOutcome]:
        raise RuntimeError("a run that nobody killed ended with 1")

    monkeypatch.setattr(reliability.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert reliability.main([]) == 1
    assert "weather: the trials did not come to their end: a run that nobody killed" in capsys.readouterr().out


def test_the_table_goes_between_the_markers_and_keeps_what_earlier_rows_say(
    outcomes: list[TrialOutcome], tmp_path: Path
):
    rows, document = tmp_path / "rows.jsonl", tmp_path / "page.md"
    document.write_text(DOCUMENT)
    assert reliability.main(["--rows", str(rows), "--markdown", str(document)]) == 0
    outcomes[:] = [_outcome(4, "cut | off")]
    assert reliability.main(["--rows", str(rows), "--markdown", str(document)]) == 1
    text = document.read_text()
    assert text.startswith(f"before\n\n{reliability.BEGIN}\n\n| What | Damage |")
    assert text.endswith(f"{reliability.END}\n\nafter\n")
    assert "| checkpoint | one bit flipped | found | 5 of 5 | 5 passed over, 0 promise broken | 123 |" in text
    assert r"| checkpoint | cut \| off | found | 4 of 5 |" in text
    assert "old" not in text
    assert reliability.main(["--markdown", str(document)]) == 1
    assert "one bit flipped" not in document.read_text(), "without a file of rows the table is of this run alone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "weather,whether"], "no family is called whether; there are weather"),
        (["--folder", "{tmp}/none"], "none: no such folder"),
        (["--markdown", "{tmp}/none.md"], "No such file"),
        (["--markdown", "{tmp}/unmarked.md"], "each once and in this order"),
    ],
)
def test_what_would_fail_after_the_trials_is_refused_before_them(
    outcomes: list[TrialOutcome],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
):
    (tmp_path / "unmarked.md").write_text("nothing")
    with pytest.raises(SystemExit) as ended:
        reliability.main([argument.format(tmp=tmp_path) for argument in arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


def test_the_page_on_reliability_has_room_for_the_table():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert text.count(reliability.BEGIN) == text.count(reliability.END) == 1
