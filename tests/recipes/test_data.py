"""`adadistill data`: record files in, record files out, with the same images under the labels that were asked for."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from tests_support import DATA

from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.recipes.cli import main as cli
from adadistill.recipes.data import main

FACES = DATA / "faces" / "train.rec"


def _jpeg(seed: int, side: int = 16) -> bytes:
    noise = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(noise, colorsubsampling="420")


def _write(path: Path, labels: list[int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path) as writer:
        for number, label in enumerate(labels):
            writer.write(10 + number, _jpeg(seed + number), labels=float(label))
    return path


def _content(path: Path) -> Counter[tuple[int, bytes]]:
    records = ImageRecords(path)
    return Counter((encoded.label, encoded.body) for encoded in (records.read(i) for i in range(len(records))))


def _dali_labels(path: Path, index: Path) -> list[int]:
    """Labels of all records in file order, as DALI's own reader sees them."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        encoded, labels = fn.readers.mxnet(path=[str(path)], index_path=[str(index)])
        pipeline.set_outputs(fn.decoders.image(encoded), labels)
    pipeline.build()
    return [int(pipeline.run()[1].at(0)[0]) for _ in range(len(ImageRecords(path)))]


def test_a_verb_that_is_gone_says_what_to_do_instead(capsys):
    assert main(["shuffle", "a.rec", "b.rec"]) == 2
    assert "shuffle is gone: training draws a true permutation" in capsys.readouterr().err


def test_the_place_may_be_named_as_it_was_before_there_was_an_out_option(tmp_path: Path, capsys):
    source = str(_write(tmp_path / "a" / "train.rec", [0, 0, 1]))
    for words in (
        ["split", source, str(tmp_path / "s0"), "--names", "all", "--fractions", "1"],
        ["split", "--relabel", source, "--identities", str(tmp_path / "s1"), "--fractions", "0.5", "0.5"],
        ["merge", str(tmp_path / "m0"), source, "--drop-duplicates", source],
        ["merge", source, source, "--out", str(tmp_path / "m1")],
    ):
        assert main(words) == 0
    assert (tmp_path / "s0" / "all" / "train.rec").is_file()
    assert len(ImageRecords(tmp_path / "m0" / "train.rec")) == 3
    assert len(ImageRecords(tmp_path / "m1" / "train.rec")) == 6
    for words in (["split", source], ["split", source, "x", "--out", "y"], ["merge", source]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_a_source_is_never_replaced_and_an_old_seal_goes_with_its_records(tmp_path: Path, capsys):
    source = _write(tmp_path / "a" / "train.rec", [n // 5 for n in range(20)])
    before = source.read_bytes()
    assert main(["merge", str(source), "--out", str(source.parent), "--overwrite"]) == 2
    assert "is where the images come from, and stays" in capsys.readouterr().err
    assert source.read_bytes() == before
    target = _write(tmp_path / "b" / "train.rec", [0, 0, 1])
    assert main(["verify", str(target), "--seal"]) == 0
    assert main(["merge", str(source), "--out", str(target.parent), "--overwrite"]) == 0
    assert not target.with_name("train.rec.seal").exists()
    assert _content(target) == _content(source)


@pytest.mark.parametrize("relabel", [False, True])
@pytest.mark.parametrize("identities", [False, True])
def test_parts_of_a_split_share_nothing_and_lose_nothing(tmp_path: Path, identities: bool, relabel: bool):
    source = _write(tmp_path / "train.rec", [n % 10 for n in range(60)])
    flags = ["--identities"] * identities + ["--relabel"] * relabel
    names = ["--names", "train", "val", "test", "--fractions", "0.6", "0.2", "0.2"]
    assert main(["split", str(source), "--out", str(tmp_path / "parts"), *names, *flags]) == 0
    parts = [tmp_path / "parts" / name / "train.rec" for name in ("train", "val", "test")]
    bodies = [[body for _, body in _content(part).elements()] for part in parts]
    assert Counter(body for part in bodies for body in part) == Counter(body for _, body in _content(source).elements())
    assert [len(part) for part in bodies] == [36, 12, 12]
    for part in parts:
        own = json.loads((part.parent / "labels.json").read_text()) if relabel else list(range(10))
        restored = Counter((own[label], body) for label, body in _content(part).elements())
        assert restored <= _content(source)
    if not relabel and not identities:
        assert _dali_labels(parts[1], parts[1].with_suffix(".idx")) == ImageRecords(parts[1]).labels().tolist()
    if identities:
        of_body = {body: label for label, body in _content(source)}
        people = [{of_body[body] for body in part} for part in bodies]
        assert sum(map(len, people)) == len(set.union(*people)) == 10


def test_merged_files_keep_identities_apart_or_together(tmp_path: Path):
    one = _write(tmp_path / "a" / "train.rec", [0, 0, 1, 1, 1])
    two = _write(tmp_path / "b" / "train.rec", [1, 0, 0], seed=100)
    assert main(["merge", str(one), str(two), "--out", str(tmp_path / "apart")]) == 0
    assert sorted(label for label, _ in _content(tmp_path / "apart" / "train.rec").elements()) == [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        3,
    ]
    assert (tmp_path / "apart" / "property").read_text() == "4,16,16\n"
    assert main(["merge", str(tmp_path / "same"), str(one), str(two), "--same-identities"]) == 0
    assert _content(tmp_path / "same" / "train.rec") == _content(one) + _content(two)
    assert ImageRecords(tmp_path / "same" / "train.rec").index.num_identities == 2


def test_duplicates_are_left_out_when_told_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = _write(tmp_path / "a" / "train.rec", [0, 0, 1])
    again = _write(tmp_path / "b" / "train.rec", [0, 0, 1])
    arguments = ["merge", str(tmp_path / "c"), str(one), str(again), "--same-identities", "--drop-duplicates"]
    assert main(arguments) == 0
    assert "3 images of 2 identities, 3 duplicates left out" in capsys.readouterr().out
    assert _content(tmp_path / "c" / "train.rec") == _content(one)


def test_statistics_count_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = _write(tmp_path / "train.rec", [0, 0, 0, 2])
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


@pytest.mark.realdata
@pytest.mark.skipif(not FACES.is_file(), reason=f"no real faces at {FACES}")
def test_real_faces_survive_a_split_and_a_merge(tmp_path: Path):
    assert main(["split", str(FACES), "--out", str(tmp_path), "--fractions", "0.6", "0.4"]) == 0
    parts = [str(tmp_path / name / "train.rec") for name in ("train", "val")]
    assert main(["merge", *parts, "--same-identities", "--out", str(tmp_path / "merged")]) == 0
    assert _content(tmp_path / "merged" / "train.rec") == _content(FACES)


def _tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, body in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            shard.addfile(entry, io.BytesIO(body))
    return path


def test_webdataset_shards_become_records(tmp_path: Path):
    shards = [
        _tar(tmp_path / f"{number}.tar", [
            part for n in range(6) for part in (
                (f"{number}/{n:03d}.jpg", _jpeg(10 * number + n)), (f"{number}/{n:03d}.cls", b"%d" % (7 * (n % 3)))
            )
        ])
        for number in range(2)
    ]  # fmt: skip
    assert main(["convert", *map(str, shards), "--out", str(tmp_path / "out")]) == 0
    wanted = Counter((n % 3, _jpeg(10 * number + n)) for number in range(2) for n in range(6))
    assert _content(tmp_path / "out" / "train.rec") == wanted
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == [0, 7, 14]


def test_labels_may_lie_in_json_members(tmp_path: Path):
    shard = _tar(tmp_path / "a.tar", [("x.png.jpg", b""), ("y.jpeg", _jpeg(1)), ("y.json", b'{"person": 4, "o": "p"}')])
    assert main(["convert", str(shard), "--out", str(tmp_path / "out"), "--label-key", "person"]) == 0
    assert _content(tmp_path / "out" / "train.rec") == Counter([(0, _jpeg(1))])


def test_parquet_image_sets_become_records(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as parquet

    images = [{"bytes": _jpeg(n), "path": f"{n}.jpg"} for n in range(10)]
    table = pyarrow.table({"image": images, "label": [n % 4 for n in range(10)]})
    features = {"label": {"names": ["ann", "bob", "cy", "dee"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert main(["convert", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]) == 0
    assert _content(tmp_path / "out" / "train.rec") == Counter((n % 4, _jpeg(n)) for n in range(10))
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["ann", "bob", "cy", "dee"]


def test_class_folders_become_records(tmp_path: Path):
    for person, count in (("ann", 2), ("bob", 3)):
        (tmp_path / "set" / person).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "set" / person / f"{number}.jpg").write_bytes(_jpeg(number + 10 * count))
    (tmp_path / "set" / "notes.txt").write_text("not a person")
    assert main(["convert", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    assert _content(tmp_path / "out" / "train.rec") == Counter(
        [(0, _jpeg(20)), (0, _jpeg(21)), (1, _jpeg(30)), (1, _jpeg(31)), (1, _jpeg(32))]
    )
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["ann", "bob"]


def _link(path: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(entry)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: _tar(p, [("a.jpg", _jpeg(0))]), r"has no \.cls beside its image"),
        (lambda p: _tar(p, [("a.jpg", _jpeg(0)), ("a.cls", b"one")]), "holds no whole number"),
        (lambda p: _tar(p, [("a.jpg", _jpeg(0)), ("a.cls", b"-3")]), "holds no whole number"),
        (lambda p: _tar(p, [("a.jpg", b"GIF89a" + bytes(50)), ("a.cls", b"1")]), "neither JPEG nor PNG"),
        (lambda p: _tar(p, [("a.jpg", bytes(17 << 20)), ("a.cls", b"1")]), "at most 16777216 are read"),
        (_link, "no labelled images"),
        (lambda p: p.write_bytes(b"not a tar file at all" * 100) and p, "no plain tar file"),
        (lambda p: p.write_bytes(_tar(p, [("a.jpg", _jpeg(0)), ("a.cls", b"1")]).read_bytes()[:700]) and p, "."),
    ],
)
def test_hostile_and_broken_shards_are_refused_and_nothing_is_written(tmp_path: Path, capsys, make, message: str):
    shard = make(tmp_path / "a.tar")
    assert main(["convert", str(shard), "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_damaged_record_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = _write(tmp_path / "train.rec", [0, 0, 1])
    with source.open("r+b") as file:
        file.seek(ImageRecords(source).index.offsets[1].item() + 32)
        file.write(b"XXXX")
    target = tmp_path / "new" / "b" / "train.rec"
    assert main(["split", str(source), "--out", str(target.parents[1]), "--names", "b", "--fractions", "1"]) == 1
    assert "record 1" in capsys.readouterr().err
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "none.rec", "--out", "b"], "no record file at none.rec"),
        (["merge", "{source}", "--out", "{holes.parent}"], "exists already"),
        (["split", "{source}", "--out", "{folder}", "--fractions", "0.9", "0.2"], "sum to at most 1"),
        (["split", "{source}", "--out", "{folder}", "--fractions", "0.5"], "each part needs a name"),
        (["merge", "{folder}", "{source}", "{holes}", "--same-identities"], "identity 3 has no image"),
        (["stats", "{source}", "--sample", "0"], "--sample must be positive"),
        (["convert", "{property}", "--out", "{folder}"], "neither .tar shards"),
        (["convert", "none.tar", "--out", "{folder}"], "no such file or folder"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys, arguments: list[str], message: str):
    source = _write(tmp_path / "train.rec", [0, 1, 2])
    (tmp_path / "property").write_text("3,16,16\n")
    holes = _write(tmp_path / "holes" / "train.rec", [4])
    places = {"source": source, "folder": tmp_path / "out", "holes": holes, "property": tmp_path / "property"}
    assert main([argument.format(**places) for argument in arguments]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_verb_is_one_of_the_command_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = _write(tmp_path / "train.rec", [0, 1])
    assert cli(["data", "check", str(source)]) == 0
    assert "0 bad" in capsys.readouterr().out
    assert cli(["data", "pack", str(source), "--out", str(tmp_path / "packed"), "--image-size", "16", "--layout", "rgb"]) == 0
    assert (tmp_path / "packed" / "header.json").is_file()
