"""`adadistill data stats`: the shape of a set of identities, its thin end, and what is there twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from noise_records import jpeg, write_plain

from adadistill.loaders.dataset_tools.statistics import BAR_WIDTH, bars, histogram
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.recipes.data import main


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Seven images of identities 0, 2 and 3 of five; images 0, 1 and 5 are the same bytes."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, (label, seed) in enumerate([(0, 1), (0, 1), (0, 2), (2, 3), (3, 4), (3, 1), (0, 5)]):
            writer.write(key, jpeg(seed), labels=float(label))
    (tmp_path / "property").write_text("5,16,16\n")
    return tmp_path / "train.rec"


def test_bins_double_and_lose_nobody():
    counts = np.array([0, 1, 1, 2, 3, 4, 7, 8, 300])
    bins = histogram(counts)
    assert [(one.first, one.last, one.identities) for one in bins[:5]] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 3, 2),
        (4, 7, 2),
        (8, 15, 1),
    ]
    assert sum(one.identities for one in bins) == len(counts)
    assert sum(one.images for one in bins) == counts.sum()
    assert bins[-1].first <= 300 <= bins[-1].last
    lines = bars(bins)
    assert max(line.count("#") for line in lines) == BAR_WIDTH
    assert all("#" in line for line, one in zip(lines, bins, strict=True) if one.identities)
    assert bars(histogram(np.zeros(0, np.int64))) == []


def test_statistics_count_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_plain(tmp_path / "train.rec", [0, 0, 0, 2])
    (tmp_path / "property").write_text("5,16,16\n")
    assert main(["stats", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["identities"], found["empty_identities"]) == (4, 5, 3)
    spread = {"min": 1, "lower_quartile": 1.5, "median": 2.0, "upper_quartile": 2.5, "max": 3, "singletons": 1}
    assert found["images_per_identity"] == spread
    assert found["kinds"] == {"jpeg YCbCr 420 16x16": 4}
    assert found["sorted_by_identity"]
    text = "labels 0 to 2, 3 identities never appear (the first: 1); the number of 5 is from property"
    assert found["problems"] == [text]
    assert main(["stats", str(source)]) == 0
    assert "packed planes lose nothing" in capsys.readouterr().out


def test_thin_identities_and_duplicates_are_listed(records: Path, capsys, tmp_path: Path):
    command = ["stats", str(records), "--below", "2", "--duplicates", "--histogram", str(tmp_path / "ids.csv")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["below"] == [1, 2, 4]
    assert found["duplicates"] == {"images": 2, "groups": [[0, 1, 5]], "across_identities": 1}
    assert found["histogram"] == [[0, 0, 2, 0], [1, 1, 1, 1], [2, 3, 1, 2], [4, 7, 1, 4]]
    assert (tmp_path / "ids.csv").read_text() == "label,images\n0,4\n1,0\n2,1\n3,2\n4,0\n"
    assert main(command) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "below 2      3 identities, label (images): 1 (0), 2 (1), 4 (0)" in printed
    assert "2 images are there again, in 1 groups; 1 groups under several identities" in printed
    assert "records 0, 1, 5  labels [0, 3]" in printed
    assert "quartiles 1.5, 2, 3" in printed


def test_numbers_that_make_no_sense_are_refused(records: Path, capsys):
    for wrong in (["--below", "0"], ["--sample", "-1"]):
        assert main(["stats", str(records), *wrong]) == 2
        assert "must be positive" in capsys.readouterr().err
