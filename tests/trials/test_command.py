"""The command that does the trials: a broken promise is an error, the table is that of the rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests_support import ROOT

from adadistill.bench.rows import read_rows
from trials import __main__ as command
from trials.tally import Tally


def _tally(held: int, damage: str = "one bit flipped") -> Tally:
    tally = Tally("checkpoint", damage, "found")
    for number in range(5):
        tally.add("passed over", "" if number < held else f"trial {number}: loaded <b>wrong</b> | bits", peak_mib=123.4)
    return tally


@pytest.fixture
def tallies(monkeypatch: pytest.MonkeyPatch) -> list[Tally]:
    """What the only family there is reports."""
    listed = [_tally(5)]
    monkeypatch.setattr(command, "FAMILIES", ("weather",))
    monkeypatch.setattr(command.importlib, "import_module", lambda name: SimpleNamespace(run=lambda **_: listed))
    return listed


def test_a_broken_promise_is_exit_code_1_and_stands_in_its_row_and_in_the_table(
    tallies: list[Tally], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows, document = tmp_path / "rows.jsonl", tmp_path / "page.md"
    document.write_text(f"before\n\n{command.BEGIN}\nold\n{command.END}\n\nafter\n")
    arguments = ["--rows", str(rows), "--markdown", str(document)]
    assert command.main(arguments) == 0
    tallies[:] = [_tally(4, "cut | off")]
    assert command.main([*arguments, "--seed", "7"]) == 1
    printed = capsys.readouterr().out
    assert "BROKEN  4/5  checkpoint, cut | off: found" in printed
    assert "! trial 4: loaded" in printed
    assert "1 kinds of damage, 1 of them broke a promise" in printed
    found = [(row["family"], row["damage"], row["held"], row["seed"]) for row in read_rows(rows)]
    assert found == [("weather", "one bit flipped", 5, 0), ("weather", "cut | off", 4, 7)]
    text = document.read_text()
    assert text.startswith(f"before\n\n{command.BEGIN}\n\n| What | Damage |")
    assert text.endswith(f"{command.END}\n\nafter\n")
    assert "| checkpoint | one bit flipped | found | 5 of 5 | 5 passed over | 123 |" in text
    assert r"| checkpoint | cut \| off | found | 4 of 5 | 4 passed over, 1 promise broken |" in text
    assert "old" not in text
    assert command.main(["--markdown", str(document)]) == 1
    assert "one bit flipped" not in document.read_text(), "without a file of rows the table is of this run alone"


def test_trials_that_do_not_come_to_their_end_are_no_success(
    tallies: list[Tally], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(**_: object) -> list[Tally]:
        raise RuntimeError("a run that nobody killed ended with 1")

    monkeypatch.setattr(command.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert command.main([]) == 1
    assert "weather: the trials did not come to their end: a run that nobody killed" in capsys.readouterr().out


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
    tallies: list[Tally], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    (tmp_path / "unmarked.md").write_text("nothing")
    with pytest.raises(SystemExit) as ended:
        command.main([argument.format(tmp=tmp_path) for argument in arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_families_are_there_and_the_page_has_room_for_their_table():
    for name in command.FAMILIES:
        assert "\ndef run(" in (ROOT / "tests" / "trials" / f"{name}.py").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert text.count(command.BEGIN) == text.count(command.END) == 1


def test_a_tally_keeps_the_first_failures_and_the_largest_peak():
    tally = Tally("what", "damage", "promise")
    tally.add("well", peak_mib=3.0)
    for number in range(20):
        tally.add("well", f"trial {number}: " + 1000 * "x", peak_mib=number)
    assert (tally.trials, tally.held, tally.peak_mib) == (21, 1, 19)
    assert tally.outcomes == {"promise broken": 20, "well": 1}
    assert [len(text) for text in tally.failures] == [400] * 10
