"""Tables and the page hold the newest rows of each machine, and a stranger's row is nothing but text in them."""

from __future__ import annotations

import html.parser
import json
import re
import sys
from pathlib import Path

import pytest
from tests_support import ROOT
from tiny_rows import prelu_row as row

from adadistill.bench import report
from adadistill.bench.report.row_sets import load_rows, machine, newest
from adadistill.bench.report.tables import bench_document
from adadistill.bench.report.targets import TARGETS, standing
from adadistill.bench.row_schema import BENCHES
from adadistill.core.report.html_page import html_page
from adadistill.core.report.markdown_page import markdown_page

HOSTILE = '<script>alert(1)</script>|`$\\frac{$&quot;"[x](javascript:alert(1))\n# h\x1b[31m'


def test_the_newest_row_of_a_key_is_kept_for_each_machine():
    old, new = row(), row(date="2026-11-26T00:00:00+00:00", ms={"median": 5.0, "p20": 4.0, "p80": 6.0})
    gpu = row(device="cuda:1", devices=["H100", "H200"])
    kept = newest([new, old, gpu, row(date="no date", side=28)])
    assert [(machine(one), one["ms"]["median"], one["side"]) for one in kept] == [
        ("A, 2 CPUs", 2.0, 28), ("A, 2 CPUs", 5.0, 56), ("H200", 2.0, 56)]  # fmt: skip


def test_tables_have_units_in_their_heads_spreads_and_shares():
    text = markdown_page(bench_document([row(), row(side=28)]))
    assert "## A, 2 CPUs" in text
    assert "| side | ms | GB/s | share_of_copy_rate | date | commit |" in text
    assert "| 56 | 2 (1 - 3) | 1.5 | 25.0% | 2026-11-25 | abcdef0\\* |" in text
    assert "form ours; batch 2; channels 64; threads 1; torch 2.13; copy_gb_per_s 2 (1 - 3)" in text


@pytest.mark.slow
def test_the_committed_rows_make_a_page_of_its_own(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="charts need the extra `report`")
    page = tmp_path / "page.html"
    assert report.main(["--html", str(page), "--markdown", str(tmp_path / "page.md")]) == 0
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert not re.search(r"(?:src|href)=.?(?:https?:|//)", text)
    for name in {entry["bench"] for entry in load_rows([ROOT / "bench" / "results"])}:
        assert f"({name})" in text
        assert f"({name})" in (tmp_path / "page.md").read_text()
    assert "not measured" in text


class _Collector(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found += [tag, *(name for name, _ in attrs)]


def test_a_strangers_row_is_text_and_nothing_else():
    hostile = bench_document([row(form=HOSTILE, cpu=HOSTILE, torch=HOSTILE, commit=HOSTILE, side=s) for s in (1, 2)])
    tame = bench_document([row(side=side) for side in (1, 2)])
    plain = [name for name in _Collector(html_page(tame)).found if name != "class"]
    assert [name for name in _Collector(html_page(hostile)).found if name != "class"] == plain
    text = markdown_page(hostile)
    assert len(text.splitlines()) == len(markdown_page(tame).splitlines())
    assert "<script" not in text
    assert "\x1b" not in text + html_page(hostile)


def test_without_matplotlib_the_page_has_its_tables_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "r.jsonl"
    rows.write_text("".join(json.dumps(row(side=side)) + "\n" for side in (1, 2)))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(rows), "--html", str(tmp_path / "page.html")]) == 0
    assert "adadistill[report]" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "<svg" not in page
    assert "25.0%" in page
    assert "adadistill[report]" in page


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
        return standing(TARGETS[0], rows).measured

    assert speed() == speed(softmax("fused", 1.0)) == "not measured"
    assert speed(softmax("origin", 20.0), softmax("fused", 1.0)) == "reached: 20 x"
    # Of two forms the better counts, of two shapes the worse.
    both = [softmax("origin", 20.0), softmax("fused", 1.0), softmax("chunks", 4.0)]
    assert speed(*both) == "reached: 20 x"
    assert speed(*both, softmax("origin", 10.0, 7), softmax("chunks", 1.0, 7)) == "missed: 10 x to 20 x"
    out_of_memory = {**softmax("origin", 1.0), "ms": None, "out_of_memory": True}
    assert speed(out_of_memory, softmax("fused", 1.0)) == "not measured"
