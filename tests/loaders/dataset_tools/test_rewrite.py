"""`adadistill data split` and `merge`: the same images under the labels that were asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from noise_records import labelled, write_plain

from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.data import main


def test_a_source_is_never_replaced_and_an_old_seal_goes_with_its_records(tmp_path: Path, capsys):
    source = write_plain(tmp_path / "a" / "train.rec", [n // 5 for n in range(20)])
    before = source.read_bytes()
    assert main(["merge", str(source), "--out", str(source.parent), "--overwrite"]) == 2
    assert "is where the images come from, and stays" in capsys.readouterr().err
    assert source.read_bytes() == before
    target = write_plain(tmp_path / "b" / "train.rec", [0, 0, 1])
    assert main(["verify", str(target), "--seal"]) == 0
    assert main(["merge", str(source), "--out", str(target.parent), "--overwrite"]) == 0
    assert not target.with_name("train.rec.seal").exists()
    assert labelled(target) == labelled(source)


@pytest.mark.parametrize(("identities", "relabel"), [(False, False), (True, True)])
def test_parts_of_a_split_share_nothing_and_lose_nothing(tmp_path: Path, identities: bool, relabel: bool):
    source = write_plain(tmp_path / "train.rec", [n % 10 for n in range(60)])
    flags = ["--identities"] * identities + ["--relabel"] * relabel
    names = ["--names", "train", "val", "test", "--fractions", "0.6", "0.2", "0.2"]
    assert main(["split", str(source), "--out", str(tmp_path / "parts"), *names, *flags]) == 0
    parts = [tmp_path / "parts" / name / "train.rec" for name in ("train", "val", "test")]
    bodies = [[body for _, body in labelled(part).elements()] for part in parts]
    assert Counter(body for part in bodies for body in part) == Counter(body for _, body in labelled(source).elements())
    assert [len(part) for part in bodies] == [36, 12, 12]
    for part in parts:
        own = json.loads((part.parent / "labels.json").read_text()) if relabel else list(range(10))
        restored = Counter((own[label], body) for label, body in labelled(part).elements())
        assert restored <= labelled(source)
    if identities:
        of_body = {body: label for label, body in labelled(source)}
        people = [{of_body[body] for body in part} for part in bodies]
        assert sum(map(len, people)) == len(set.union(*people)) == 10


def test_merged_files_keep_identities_apart_or_together(tmp_path: Path):
    one = write_plain(tmp_path / "a" / "train.rec", [0, 0, 1, 1, 1])
    two = write_plain(tmp_path / "b" / "train.rec", [1, 0, 0], seed=100)
    assert main(["merge", str(one), str(two), "--out", str(tmp_path / "apart")]) == 0
    labels = [label for label, _ in labelled(tmp_path / "apart" / "train.rec").elements()]
    assert sorted(labels) == [0, 0, 1, 1, 1, 2, 2, 3]
    assert (tmp_path / "apart" / "property").read_text() == "4,16,16\n"
    assert main(["merge", str(tmp_path / "same"), str(one), str(two), "--same-identities"]) == 0
    assert labelled(tmp_path / "same" / "train.rec") == labelled(one) + labelled(two)
    assert ImageRecords(tmp_path / "same" / "train.rec").index.num_identities == 2


def test_duplicates_are_left_out_when_told_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = write_plain(tmp_path / "a" / "train.rec", [0, 0, 1])
    again = write_plain(tmp_path / "b" / "train.rec", [0, 0, 1])
    arguments = ["merge", str(tmp_path / "c"), str(one), str(again), "--same-identities", "--drop-duplicates"]
    assert main(arguments) == 0
    assert "3 images of 2 identities, 3 duplicates left out" in capsys.readouterr().out
    assert labelled(tmp_path / "c" / "train.rec") == labelled(one)


def test_a_damaged_record_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_plain(tmp_path / "train.rec", [0, 0, 1])
    with source.open("r+b") as file:
        file.seek(ImageRecords(source).index.offsets[1].item() + 32)
        file.write(b"XXXX")
    target = tmp_path / "new" / "b" / "train.rec"
    assert main(["split", str(source), "--out", str(target.parents[1]), "--names", "b", "--fractions", "1"]) == 1
    assert "record 1" in capsys.readouterr().err
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []
