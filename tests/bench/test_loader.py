"""The loader bench runs on a handful of images, so that it cannot rot, and refuses to time wrong pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from tests_support import ROOT
from tiny_rows import assert_made_here

from adadistill.bench import loader
from adadistill.bench.rows import read_rows
from adadistill.loaders.records.recordio import RecordWriter

TINY = ["--batch-size", "4", "--batches", "2", "--repeats", "1", "--workers", "1", "--device", "cpu"]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "train.rec"
    noise = np.random.RandomState(0)
    with RecordWriter(path) as writer:
        for number in range(10):
            pixels = noise.randint(0, 256, (16, 16, 3), dtype=np.uint8)
            writer.write(number, simplejpeg.encode_jpeg(pixels, quality=90), labels=0.0)
    return path


@pytest.mark.slow
def test_each_pipeline_and_stage_gets_a_row(records, tmp_path, capsys):
    """Augmented, tiled and encoded anew, and the fit of decode time last."""
    path = tmp_path / "rows.jsonl"
    more = ["--augment", "adaface", "--tile", "30", "--quality", "80", "--fit"]
    assert loader.main([str(records), *TINY, *more, "--rows", str(path)]) == 0
    table = capsys.readouterr().out
    *rows, fit = read_rows(path)
    assert_made_here([*rows, fit])
    measured = [(row["pipeline"], row["stage"], row["augment"]) for row in rows]
    assert measured[:4] == [
        ("one thread", "read", "none"), ("one thread", "decode", "none"), ("one thread", "augment", "adaface"),
        ("cpu", "batch", "adaface"),
    ]  # fmt: skip
    assert ("packed rgb, page_cache", "batch", "adaface") in measured
    pillow = ("torch DataLoader + Pillow", "batch", "none")
    assert (pillow in measured) == (importlib.util.find_spec("PIL") is not None)
    for row in rows:
        assert row["images_per_s"]["median"] > 0
        assert row["cpu_s_per_10k"]["median"] > 0
        assert row["records"] == 30
        assert row["pipeline"] in table
    assert (fit["bench"], len(fit["kb"])) == ("decode_fit", 5)
    table = loader.markdown_table(path)
    assert table.count("\n") == 1 + len(rows)
    assert "| one thread | augment | adaface | cpu |" in table


def test_pixels_that_are_not_those_of_the_record_are_not_timed(records, monkeypatch):
    decode = loader.decode_image
    monkeypatch.setattr(loader, "decode_image", lambda body, where: decode(body, where=where) ^ 1)
    with pytest.raises(ValueError, match=r"levels off; nothing was timed"):
        loader.main([str(records), *TINY, "--sources", "cpu"])


def test_time_that_overlaps_counts_once():
    assert loader.covered([]) == 0.0
    assert loader.covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (7.0, 8.0)]) == 6.0


def test_the_page_on_data_shows_the_committed_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OUT", raising=False)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rates = [line.split("|")[5].strip() for line in loader.markdown_table().splitlines() if "| batch |" in line]
    assert len(rates) == 10
    assert [rate for rate in rates if f"| {rate} |" not in page] == []
