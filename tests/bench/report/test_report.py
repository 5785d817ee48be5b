"""Tables and the page hold the newest rows of each machine, and a stranger's row is nothing but text in them."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest
from tests_support import ROOT

from adadistill.bench import report
from adadistill.bench.report import charts
from adadistill.bench.report.charts import MatplotlibMissingError, bar_chart
from adadistill.bench.report.markdown import escaped, markdown_report
from adadistill.bench.report.page import html_page
from adadistill.bench.report.row_sets import load_rows, machine, newest
from adadistill.bench.report.tables import Bar, machines
from adadistill.bench.report.targets import TARGETS, standings
from adadistill.bench.row_schema import BENCHES

HOSTILE = '<script>alert(1)</script>|`$\\frac{$&quot;"[x](javascript:alert(1))\n# h\x1b[31m'


def row(**changes: object) -> dict:
    spread = {"median": 2.0, "p20": 1.0, "p80": 3.0}
    common = {"bench": "prelu", "schema": 2, "date": "2026-11-25T00:00:00+00:00", "commit": "abcdef0123+changes",
              "python": "3.11", "torch": "2.13", "devices": [], "cpu": "A", "cpu_count": 2, "threads": 1,
              "device": "cpu", "probes": {"copy_gb_per_s": spread}}  # fmt: skip
    return {**common, "form": "ours", "batch": 2, "channels": 64, "side": 56, "ms": spread, "gb_per_s": 1.5,
            "share_of_copy_rate": 0.25, **changes}  # fmt: skip


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_the_newest_row_of_a_key_is_kept_for_each_machine():
    old, new = row(), row(date="2026-11-26T00:00:00+00:00", ms={"median": 5.0, "p20": 4.0, "p80": 6.0})
    gpu = row(device="cuda:1", devices=["H100", "H200"])
    kept = newest([new, old, gpu, row(date="no date", side=28)])
    assert [(machine(one), one["ms"]["median"], one["side"]) for one in kept] == [
        ("A, 2 CPUs", 2.0, 28), ("A, 2 CPUs", 5.0, 56), ("H200", 2.0, 56)]  # fmt: skip


def test_tables_have_units_in_their_heads_spreads_and_shares():
    text = markdown_report(machines([row(), row(side=28)]), [])
    assert "## A, 2 CPUs" in text
    assert "| side | ms | GB/s | share_of_copy_rate | date | commit |" in text
    assert "| 56 | 2 (1 - 3) | 1.5 | 25.0% | 2026-11-25 | abcdef0\\* |" in text
    assert "form ours; batch 2; channels 64; threads 1; torch 2.13; copy_gb_per_s 2 (1 - 3)" in text


def test_the_committed_rows_make_a_page_of_its_own(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="charts need the extra `report`")
    page = tmp_path / "page.html"
    assert report.main(["--html", str(page), "--markdown", str(tmp_path / "page.md")]) == 0
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert not re.search(r"(?:src|href)=.?(?:https?:|//)", re.sub(r"xmlns(?::xlink)?=\"[^\"]*\"", "", text))
    assert "@import" not in text
    assert "<script" not in text
    for name in {entry["bench"] for entry in load_rows([ROOT / "bench" / "results"])}:
        assert f"({name})" in text
        assert f"({name})" in (tmp_path / "page.md").read_text()
    assert "not measured" in text


class _Collector(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_strangers_row_is_text_and_nothing_else():
    pytest.importorskip("matplotlib", reason="charts need the extra `report`")
    hostile = [row(form=HOSTILE, cpu=HOSTILE, torch=HOSTILE, commit=HOSTILE, side=side) for side in (1, 2)]
    tame = [row(side=side) for side in (1, 2)]
    pages = [html_page(machines(rows), standings(rows)) for rows in (hostile, tame)]
    parsed = [_Collector(), _Collector()]
    for parser, page in zip(parsed, pages, strict=True):
        parser.feed(page)
    assert parsed[0].tags == parsed[1].tags
    assert parsed[0].attributes == parsed[1].attributes
    text = markdown_report(machines(hostile), [])
    plain = markdown_report(machines(tame), [])
    assert "<script" not in text
    assert len(text.splitlines()) == len(plain.splitlines())
    unescaped = re.sub(r"\\.", "", text)
    assert [line.count("|") for line in unescaped.splitlines()] == [line.count("|") for line in plain.splitlines()]
    assert "](javascript" not in unescaped
    assert "\x1b" not in text + pages[0]


def test_escaped_text_is_one_short_line():
    assert escaped("a\n| b") == "a \\| b"
    assert len(escaped("x" * 10_000)) == 160


def test_chart_labels_are_drawn_as_they_are_and_the_same_bars_give_the_same_text():
    pytest.importorskip("matplotlib", reason="charts need the extra `report`")
    bars = [Bar("$\\frac{", 3.0, 2.0, 4.0), Bar("</text><script>", 3000.0, 2900.0, 3100.0)]
    chart = bar_chart(bars, "ms")
    assert chart.startswith("<svg")
    assert "<script" not in chart
    assert "mathdefault" not in chart
    assert chart == bar_chart(bars, "ms")


def test_without_matplotlib_the_page_names_the_extra_and_tables_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = write(tmp_path / "r.jsonl", row())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MatplotlibMissingError, match=r"adadistill\[report\]"):
        charts.require_matplotlib()
    assert report.main([str(rows), "--html", str(tmp_path / "page.html")]) == 2
    assert "pip install adadistill[report]" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    assert report.main([str(rows)]) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{}\n", "line 1: `bench` must be"), (b"\xff", "no text in UTF-8"), (b'{"bench": Infinity}', "Infinity")],
)
def test_rows_that_cannot_be_used_end_with_code_2_and_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
):
    (tmp_path / "r.jsonl").write_bytes(content)
    assert report.main([str(tmp_path)]) == 2
    assert said in (told := capsys.readouterr().err)
    assert "r.jsonl" in told
    assert report.main([str(tmp_path / "nowhere.jsonl")]) == 2
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty")]) == 2
    assert "holds no .jsonl file" in capsys.readouterr().err


def test_every_target_looks_at_fields_that_rows_have():
    for target in TARGETS:
        if target.where:
            entry = BENCHES[str(target.where["bench"])]
            assert set(target.where) - {"bench"} <= set(entry.keys)
            assert set(target.against) <= set(entry.keys)
            assert target.value in entry.values


def test_a_target_is_reached_missed_or_not_measured():
    def softmax(form: str, median: float, classes: int = 100, **changes: object) -> dict:
        found = row(bench="margin_softmax", form=form, classes=classes, dim=8, device="cuda", devices=["H200"],
                    ms={"median": median, "p20": median, "p80": median}, out_of_memory=False, **changes)  # fmt: skip
        return {name: value for name, value in found.items() if name not in ("channels", "side", "gb_per_s")}

    def speed(*rows: dict) -> str:
        return standings(rows)[0].measured

    assert speed() == speed(softmax("fused", 1.0)) == "not measured"
    assert speed(softmax("origin", 20.0), softmax("fused", 1.0)) == "reached: 20 x"
    # Of two forms the better counts, of two shapes the worse.
    both = [softmax("origin", 20.0), softmax("fused", 1.0), softmax("chunks", 4.0)]
    assert speed(*both) == "reached: 20 x"
    assert speed(*both, softmax("origin", 10.0, 7), softmax("chunks", 1.0, 7)) == "missed: 10 x to 20 x"
    out_of_memory = {**softmax("origin", 1.0), "ms": None, "out_of_memory": True}
    assert speed(out_of_memory, softmax("fused", 1.0)) == "not measured"
