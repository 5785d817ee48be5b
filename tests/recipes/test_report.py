"""`adadistill report`: one page that needs nothing beside it, says every number, and lets no name write into it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluated_networks import write_checkpoints, write_pairs
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training
from adadistill.recipes.cli import main as cli
from adadistill.recipes.evaluate import main as evaluate
from adadistill.recipes.report import main, write_report
from adadistill.recipes.scoring.files import read_evaluation, write_evaluation

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>| `x` [a](http://evil)'


class Page(HTMLParser):
    """Tags, texts and `<data>` values; fails where tags are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.numbers: set[float] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "data":
            self.numbers.add(float(attributes["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A folder of evaluations: two checkpoints on two sets."""
    folder = tmp_path_factory.mktemp("scored")
    run = write_checkpoints(folder / "run", count=2)
    sets = [write_pairs(folder / "faces.bin"), write_pairs(folder / "others.bin", seed=1)]
    code = evaluate([str(run), "--all", "--sets", *map(str, sets), "--out", str(folder / "results"), "--device", "cpu"])
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def page(scored) -> str:
    html, _ = write_report(scored / "results")
    return html.read_text(encoding="utf-8")


def test_the_page_is_whole_and_refers_to_nothing_outside(page):
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "image"}
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("xlink:href") or "#").startswith("#")
        assert "src" not in attributes
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("url(") == page.count("url(#")
    assert "@import" not in page


def test_the_page_can_be_read_without_seeing_it(page):
    tags = Page(page).tags
    names = [tag for tag, _ in tags]
    assert {"main", "header", "nav", "h1", "h2", "caption", "figcaption"} <= set(names)
    assert names.count("h1") == 1
    drawings = [attributes for tag, attributes in tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawings) == 2 * (2 + 2)  # of two sets: ROC, DET, two histograms
    assert all(attributes["aria-label"] for attributes in drawings)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert ("html", {"lang": "en"}) in tags


def test_every_number_of_the_json_files_is_in_the_page(scored, page):
    parsed = Page(page)
    seen = 0
    for path in (scored / "results").glob("verification-*.json"):
        evaluation = read_evaluation(path)
        assert evaluation.sha256 in parsed.text
        for result in evaluation.results:
            assert result.data_sha256 in parsed.text
            assert all(f"{count:,} {name}" in parsed.text for name, count in result.counts.items())
            assert set(result.seconds.values()) <= parsed.numbers
            for score in result.scores:
                seen += 1
                assert score.key in parsed.text
                assert score.protocol in " ".join(parsed.text.split())
                assert score.value is None or score.value in parsed.numbers
                assert score.deviation is None or f"{100 * score.deviation:.2f}" in parsed.text
                if score.interval is not None:
                    assert "[{:.2f}, {:.2f}]".format(*(100 * end for end in score.interval)) in parsed.text
                assert score.note is None or score.note in " ".join(parsed.text.split())
    assert seen == 2 * 2 * 11


def test_the_summary_orders_by_the_score_that_was_named(scored, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing need be drawn for it
    arguments = [str(scored / "run"), "--all", "--sets", str(scored / "faces.bin"), "--out", str(tmp_path)]
    assert evaluate([*arguments, "--device", "cpu", "--best-by", "verification.faces.AUC", "--report"]) == 0
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    stored = {path.stem[13:]: read_evaluation(path) for path in tmp_path.glob("verification-*.json")}
    values = {name: one.score("verification.faces.AUC").value for name, one in stored.items()}
    best = max(values, key=values.__getitem__)
    (row,) = [line for line in lines if line.startswith(f"| **{best}**") and line.count("|") == 4]
    assert row.endswith(f"| {values[best]:.4f} |")
    assert f"{best} is the best of them by the verification.faces.AUC." in " ".join(lines)


def test_markdown_says_the_same(scored, page):
    text = (scored / "results" / "report.md").read_text(encoding="utf-8")
    html_numbers = Page(page).numbers
    shown = {float(cell) for cell in re.findall(r"(?<![\w.])-?\d+\.\d+(?![\w.])", text)}
    for path in (scored / "results").glob("verification-*.json"):
        for result in read_evaluation(path).results:
            assert result.data_sha256 in text
            headline = result[result.headline].value
            assert headline in html_numbers
            assert round(100 * headline, 2) in shown
    assert "<" not in text


def test_names_from_files_stay_text(scored, tmp_path):
    evaluation = read_evaluation(next((scored / "results").glob("verification-*.json")))
    name = HOSTILE * 300
    done = tuple(
        replace(
            one,
            result=replace(
                one.result,
                name=name,
                scores=tuple(replace(score, label=name, note=name) for score in one.result.scores),
                curves=tuple(replace(curve, name=name) for curve in one.result.curves),
                errors=({name: name}, *one.result.errors),
                counts={name: 7},
            ),
        )
        for one in evaluation.done
    )
    hostile = replace(evaluation, name="x", facts={**evaluation.facts, "network": {"arch": name}}, done=done)
    write_evaluation(tmp_path, hostile)
    content = json.loads((tmp_path / "verification-x.json").read_text())
    content["name"] = name
    (tmp_path / "verification-x.json").write_text(json.dumps(content))

    html, markdown = write_report(tmp_path)

    parsed = Page(html.read_text(encoding="utf-8"))
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert "<script>alert(1)</script>" in parsed.text
    text = markdown.read_text(encoding="utf-8")
    assert "<" not in text
    assert "[a](" not in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_faces_are_embedded_only_where_their_set_is_named(scored, tmp_path, page, capsys, monkeypatch):
    assert "<img" not in page
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing need be drawn for it
    out = tmp_path / "shown.html"
    arguments = [str(scored / "results"), "--out", str(out), "--show-images", str(scored / "faces.bin")]
    assert main(arguments) == 0
    images = [attributes for tag, attributes in Page(out.read_text()).tags if tag == "img"]
    assert len(images) == 20
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in images)
    assert all(re.fullmatch(r"pair \d+, (same|different), cosine -?0\.\d+", one["alt"]) for one in images)

    other = write_pairs(tmp_path / "faces.bin", seed=9)
    assert main([str(scored / "results"), "--show-images", str(other)]) == 2
    assert "its sha256 is another" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of the tiny training, evaluated while it trained."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_records(folder)
    recipe = tiny_recipe(folder, evaluation__sets=f"[{folder}/pairs.bin]", checkpoint__every_epochs=1)
    run_training(recipe, folder / "run", ranks=Ranks())
    return folder / "run"


def test_a_run_is_reported_from_its_metrics(trained, capsys):
    assert cli(["report", str(trained)]) == 0
    page = (trained / "report" / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    titles = "Loss", "Teacher, student and centres", "Geometry margin", "Embedding norms", "Learning rate", "Speed"
    for title in titles:
        assert f"{title}, as logged" in parsed.text
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    accuracies = {row["accuracy"] for row in rows if row["event"] == "evaluation"}
    assert len([row for row in rows if row["event"] == "evaluation"]) == 2
    assert accuracies <= parsed.numbers
    steps = [row for row in rows if row["event"] == "train"]
    assert {steps[0]["loss"], steps[-1]["loss"], steps[-1]["centre_momentum"], steps[-1]["lr"]} <= parsed.numbers


def test_evaluate_writes_the_report_of_a_run_beside_its_results(trained, capsys):
    pairs = trained.parent / "pairs.bin"
    assert evaluate([str(trained), "--all", "--sets", str(pairs), "--report", "--device", "cpu"]) == 0
    parsed = Page((trained / "report" / "report.html").read_text(encoding="utf-8"))
    assert "Loss, as logged" in parsed.text
    assert parsed.text.count("step-00000012") > 3


def test_half_a_line_of_metrics_and_odd_values_do_not_stop_a_report(trained, tmp_path):
    lines = (trained / "metrics.jsonl").read_text()
    run = tmp_path / "run"
    run.mkdir()
    odd = '{"event": "train", "step": 99, "loss": null, "lr": -1, "quality": 1e300}\n[1]\n'
    odd += '{"event": "train", "step": "9"}\n'
    (run / "metrics.jsonl").write_text(lines + odd + '{"event": "evaluation", "set": [], "epoch": 1}\n' + lines[:40])
    html, _ = write_report(run)
    Page(html.read_text(encoding="utf-8"))


def test_nothing_to_report_is_an_error_with_what_to_do(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "run adadistill evaluate first" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 2
    (tmp_path / "verification-old.json").write_text('{"sets": {}}')
    assert main([str(tmp_path)]) == 2
    assert "run adadistill evaluate again" in capsys.readouterr().err


def test_without_matplotlib_the_report_says_which_extra_shows_the_curves(scored, tmp_path, page, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(scored / "results"), "--out", str(tmp_path / "bare.html")]) == 0
    assert "adadistill[report]" in capsys.readouterr().out
    bare = Page((tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert "pip install 'adadistill[report]'" in bare.text
    assert "svg" not in {tag for tag, _ in bare.tags}
    assert bare.numbers == Page(page).numbers
