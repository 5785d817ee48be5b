"""IJB and TinyFace through `adadistill evaluate`: keys and units of the CSV, resuming, and what a report compares."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_networks import BACKBONE, write_pairs, write_tinyface

from adadistill.core.backbones import build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.scoring import embedding
from adadistill.core.scoring.result import BenchmarkResult, Score
from adadistill.recipes.evaluate import main
from adadistill.recipes.report import write_report
from adadistill.recipes.scoring.files import Done, Evaluation, csv_text, read_evaluation, write_evaluation

SIDE = 112  # IJB's images are aligned to it


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and one small benchmark of each kind."""
    small_ijb = pytest.importorskip("small_ijb", reason="writing a small IJB set needs pillow")
    folder = tmp_path_factory.mktemp("benchmarks")
    save_network(folder / "run", build_backbone(BACKBONE, SIDE, generator=7).eval(), BACKBONE, SIDE)
    small_ijb.write_original(folder / "IJBC", small_ijb.small_ijb())
    write_tinyface(folder / "tinyface", side=SIDE)
    write_pairs(folder / "faces.bin")
    return folder


def evaluate(folder: Path, *others: object) -> int:
    paths = ["--sets", folder / "faces.bin", "--ijb", folder / "IJBC", "--tinyface", folder / "tinyface"]
    return main([str(one) for one in (folder / "run", *paths, "--device", "cpu", *others)])


def test_every_benchmark_is_in_table_json_csv_and_report(folder, tmp_path, capsys):
    assert evaluate(folder, "--out", tmp_path, "--report") == 0

    printed = capsys.readouterr().out
    assert re.search(r"^TAR@FAR=0\.0001 .*Norm:False_Det:True", printed, re.MULTILINE)
    assert re.search(r"^rank-20 ", printed, re.MULTILINE)
    stored = read_evaluation(tmp_path / "verification-step-00000000.json")
    assert [result.kind for result in stored.results] == ["verification", "ijb", "tinyface"]
    with (tmp_path / "verification-step-00000000.csv").open(newline="") as file:
        values = {key: float(value) for key, value in list(csv.reader(file))[1:]}
    name = stored.results[1].name
    for key, factor in (
        ("verification.faces.Accuracy-Flip", 1.0),
        (f"ijb.{name}.Norm:True_Det:True_tpr_at_fpr_0.0001", 100.0),
        (f"ijb.{name}.Norm:True_Det:True_thresh_at_fpr_0.1", 1.0),
        ("tinyface.tinyface.rank-20", 100.0),
    ):
        assert values[key] == pytest.approx(factor * stored.score(key).value, abs=1e-6), key
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for result in stored.results:
        for score in result.scores:
            assert score.key in page
            assert score.value is None or f'<data value="{score.value!r}">' in page


def test_what_is_scored_is_not_scored_again(folder, tmp_path, capsys):
    assert evaluate(folder, "--all", "--out", tmp_path) == 0
    assert "3 of 3 benchmarks to do" in capsys.readouterr().err
    assert evaluate(folder, "--all", "--out", tmp_path) == 0
    assert "done before" in capsys.readouterr().err
    (folder / "tinyface" / "Probe" / "0_1.jpg").write_bytes((folder / "tinyface" / "Probe" / "1_1.jpg").read_bytes())
    assert evaluate(folder, "--all", "--out", tmp_path) == 0
    assert "1 of 3 benchmarks to do" in capsys.readouterr().err


def test_kept_embeddings_are_scored_without_the_network(folder, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    assert evaluate(folder, "--out", tmp_path / "first", "--embeddings", kept) == 0
    assert len(list(kept.glob("*-float32/*/header.json"))) == 2  # IJB and TinyFace; verification sets are small

    def embeds(*_: object) -> None:
        raise AssertionError("the network is not needed")

    monkeypatch.setattr(embedding, "_flip_sums", embeds)
    assert evaluate(folder, "--out", tmp_path / "second", "--embeddings", kept) == 0
    first, second = (read_evaluation(tmp_path / run / "verification-step-00000000.json") for run in ("first", "second"))
    assert [one.scores for one in first.results] == [one.scores for one in second.results]
    with pytest.raises(AssertionError, match="not needed"):
        evaluate(folder, "--out", tmp_path / "third")


@pytest.mark.parametrize("option", ["--ijb", "--tinyface"])
def test_folders_that_are_no_benchmarks_are_refused(folder, tmp_path, capsys, option):
    arguments = [
        str(folder / "run"),
        "--sets",
        str(folder / "faces.bin"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "o"),
    ]
    for path in (tmp_path, tmp_path / "absent"):
        assert main([*arguments, option, str(path)]) == 2
        assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def result(kind: str, name: str, counts: dict[str, int], **values: float) -> BenchmarkResult:
    """Scores by what follows kind and name in their keys."""
    scores = tuple(
        Score(key=f"{kind}.{name}.{key}", label=key, value=value, protocol="p") for key, value in values.items()
    )
    return BenchmarkResult(
        kind=kind, name=name, data_sha256="0" * 64, counts=counts, scores=scores, headline=scores[0].key
    )


def page_of(folder: Path, *results: BenchmarkResult) -> str:
    done = tuple(Done(result=one, settings={}) for one in results)
    facts = {"model_sha256": "1" * 64}
    write_evaluation(folder, Evaluation(name="ours", facts=facts, setting={}, done=done))
    return write_report(folder)[1].read_text(encoding="utf-8")


IJBC = {"pairs": 15_658_489}
KEPT = {"Norm:True_Det:True_tpr_at_fpr_0.0001": 0.9, "Norm:True_Det:True_tpr_at_fpr_1e-05": 0.8}
UNIT = {"Norm:False_Det:True_tpr_at_fpr_0.0001": 0.7}


def test_published_rows_stand_beside_scores_of_their_own_pooling_mode_alone(tmp_path):
    kept = page_of(tmp_path / "kept", result("ijb", "IJBC_gt_aligned", IJBC, **KEPT))
    assert "| ours | - | 90.00 | 80.00 | this report |".replace("| ours", "| **ours**") in kept
    assert "93.98 | 90.33" in kept
    assert "93.27 | 89.32" in kept  # AdaArcDistill's own, of this mode
    assert "97.66" not in kept  # AdaFace's, without detector scores

    unit = page_of(tmp_path / "unit", result("ijb", "IJBC_gt_aligned", IJBC, **UNIT))
    assert "| 93.27 |" in unit
    assert "93.98" not in unit
    assert "97.66" not in unit


def test_sets_of_another_size_or_name_are_compared_with_nothing(tmp_path):
    whole = result("verification", "lfw", {"pairs": 6000}, **{"Accuracy-Flip": 0.99})
    assert "AdaFace, arXiv" in page_of(tmp_path / "whole", whole)
    for other in (replace(whole, counts={"pairs": 600}), replace(whole, counts={})):
        page = page_of(tmp_path / str(len(other.counts)), other)
        assert "AdaFace, arXiv" not in page
        assert "lfw: no published set, or not of the published size" in page
    strict = result("ijb", "IJBC", IJBC, **{"Norm:True_Det:True_tpr_at_fpr_0.0001_strict": 0.9})
    assert "93.98" not in page_of(tmp_path / "strict", strict)


def test_csv_survives_odd_names():
    name = 'with, comma "and" quotes\nand lines'
    text = csv_text([Score(key=f"verification.{name}.AUC", label="AUC", value=0.5, protocol="p")])
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["metric", "value"],
        [f"verification.{name}.AUC", "0.500000"],
    ]
    withheld = Score(key="ijb.x.y", label="y", value=None, protocol="p")
    assert csv_text([withheld]) == "metric,value\n"


def test_json_is_versioned_and_another_version_is_refused(tmp_path):
    page_of(tmp_path, result("ijb", "IJBC", IJBC, **UNIT))
    path = tmp_path / "verification-ours.json"
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("adadistill-evaluation", 1)
    path.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(ValueError, match=r"version 2 of the format, this is 1; run adadistill evaluate again"):
        read_evaluation(path)
