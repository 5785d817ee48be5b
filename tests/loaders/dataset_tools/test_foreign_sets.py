"""Tar shards and parquet sets become records; hostile ones are refused, and nothing is written."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from noise_records import jpeg, labelled

from adadistill.recipes.data import main


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
                (f"{number}/{n:03d}.jpg", jpeg(10 * number + n)), (f"{number}/{n:03d}.cls", b"%d" % (7 * (n % 3)))
            )
        ])
        for number in range(2)
    ]  # fmt: skip
    assert main(["convert", *map(str, shards), "--out", str(tmp_path / "out")]) == 0
    wanted = Counter((n % 3, jpeg(10 * number + n)) for number in range(2) for n in range(6))
    assert labelled(tmp_path / "out" / "train.rec") == wanted
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == [0, 7, 14]


def test_labels_may_lie_in_json_members(tmp_path: Path):
    shard = _tar(tmp_path / "a.tar", [("x.png.jpg", b""), ("y.jpeg", jpeg(1)), ("y.json", b'{"person": 4, "o": "p"}')])
    assert main(["convert", str(shard), "--out", str(tmp_path / "out"), "--label-key", "person"]) == 0
    assert labelled(tmp_path / "out" / "train.rec") == Counter([(0, jpeg(1))])


def test_parquet_image_sets_become_records(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as parquet

    images = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(10)]
    table = pyarrow.table({"image": images, "label": [n % 4 for n in range(10)]})
    features = {"label": {"names": ["ann", "bob", "cy", "dee"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert main(["convert", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]) == 0
    assert labelled(tmp_path / "out" / "train.rec") == Counter((n % 4, jpeg(n)) for n in range(10))
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["ann", "bob", "cy", "dee"]


def _link(path: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(entry)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: _tar(p, [("a.jpg", jpeg(0))]), r"has no \.cls beside its image"),
        (lambda p: _tar(p, [("a.jpg", jpeg(0)), ("a.cls", b"one")]), "holds no whole number"),
        (lambda p: _tar(p, [("a.jpg", jpeg(0)), ("a.cls", b"-3")]), "holds no whole number"),
        (lambda p: _tar(p, [("a.jpg", b"GIF89a" + bytes(50)), ("a.cls", b"1")]), "neither JPEG nor PNG"),
        (lambda p: _tar(p, [("a.jpg", bytes(17 << 20)), ("a.cls", b"1")]), "at most 16777216 are read"),
        (_link, "no labelled images"),
        (lambda p: p.write_bytes(b"not a tar file at all" * 100) and p, "no plain tar file"),
        (lambda p: p.write_bytes(_tar(p, [("a.jpg", jpeg(0)), ("a.cls", b"1")]).read_bytes()[:700]) and p, "."),
    ],
)
def test_hostile_and_broken_shards_are_refused_and_nothing_is_written(tmp_path: Path, capsys, make, message: str):
    shard = make(tmp_path / "a.tar")
    assert main(["convert", str(shard), "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
