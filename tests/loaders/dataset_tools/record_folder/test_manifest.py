"""A manifest from a stranger is checked line by line, and never leads out of its folder."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from adadistill.loaders.dataset_tools.record_folder.errors import RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.folder_to_records import folder_to_records
from adadistill.loaders.dataset_tools.record_folder.manifest import MANIFEST_NAME, Manifest, is_image_name
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import records_to_folder
from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.records.recordio import write_insightface_records


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    body = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    source = write_insightface_records(folder, [(0, body), (0, body), (1, body)], image_size=(16, 16))
    records_to_folder(source, folder / "images")
    return folder / "images"


def rewritten(unpacked: Path, folder: Path, number: int, **fields: Any) -> Path:
    """A copy whose manifest has other fields in one line (None leaves one out), and a checksum that fits."""
    shutil.copytree(unpacked, folder)
    lines = [json.loads(line) for line in (folder / MANIFEST_NAME).read_text().splitlines()]
    lines[number] = {name: value for name, value in {**lines[number], **fields}.items() if value is not None}
    body = "".join(json.dumps(line) + "\n" for line in lines[:-1]).encode()
    lines[-1].pop("sha256")
    lines[-1]["sha256"] = hashlib.sha256(body + json.dumps(lines[-1]).encode() + b"\n").hexdigest()
    (folder / MANIFEST_NAME).write_bytes(body + json.dumps(lines[-1]).encode() + b"\n")
    return folder


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "/a.jpg", "a/../b.jpg", "a/b/c.jpg", "a.jpg", "a/.b.jpg", "./b.jpg", "a\\b/c.jpg", "a/b\0.jpg",
     "a/\n.jpg", "a/", "a/b.exe", "a/" + "b" * 300 + ".jpg", " a/b.jpg", "a/con:.jpg"],
)  # fmt: skip
def test_names_that_are_no_image_in_a_folder_are_refused(unpacked: Path, tmp_path: Path, name: str):
    assert not is_image_name(name)
    folder = rewritten(unpacked, tmp_path / "x", 1, file=name)
    with pytest.raises(RecordFolderError, match=r"is not `identity/image\.jpg` within the folder"):
        folder_to_records(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (0, {"version": 2}, "has version 2, this program reads 1"),
        (0, {"format": "other"}, "is no manifest of records"),
        (0, {"records": "../../train.rec"}, "its name of the record file is none"),
        (1, {"key": -1}, "its key is no whole number"),
        (1, {"key": 1.5}, "its key is no whole number"),
        (1, {"labels": []}, "labels must be 1 to"),
        (1, {"labels": ["nan"]}, "is no float32"),
        (1, {"labels": [1e300]}, "is no float32"),
        (1, {"labels": [True]}, "is no float32"),
        (1, {"labels": None}, "neither label nor labels"),
        (1, {"id": "7"}, "its id is no whole number"),
        (1, {"bytes": 1 << 40}, "its bytes or crc32"),
        (1, {"crc32": "xyz"}, "its bytes or crc32"),
        (1, {"crc32": None}, "a record without has none"),
        (1, {"file": None}, "a record without has none"),
        (1, {"parts": [3, 5]}, "its parts do not make up the record"),
        (1, {"surprise": 1}, "unknown field 'surprise'"),
        (2, {"file": "0/1.jpg"}, "1 added"),
        (-1, {"images": 2}, "names a file twice, or miscounts"),
        (-1, {"end": 3}, "does not close"),
        (-1, {"index": "random"}, "does not close"),
        (-1, {"copies": {"../../etc/passwd": "0" * 64}}, "does not close"),
        (-1, {"rec_sha256": "0" * 64}, "the records would not be the original"),
        (-1, {"index_sha256": "0" * 64}, "the .idx would not be the original"),
    ],
)
def test_lines_that_are_wrong_are_named(unpacked: Path, tmp_path: Path, number: int, fields: dict, message: str):
    folder = rewritten(unpacked, tmp_path / "x", number, **fields)
    with pytest.raises(RecordFolderError, match=message):
        folder_to_records(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train.rec").exists()


def test_an_image_that_is_a_link_out_of_the_folder_is_not_read(unpacked: Path, tmp_path: Path):
    shutil.copytree(unpacked, tmp_path / "x")
    image = min((tmp_path / "x").rglob("*.jpg"))
    shutil.move(image, tmp_path / "secret.jpg")
    image.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ImageFolderError, match="leads out of"):
        folder_to_records(tmp_path / "x", tmp_path / "out")


def test_damage_anywhere_is_found_by_the_checksum_or_the_parser(unpacked: Path, tmp_path: Path):
    folder = tmp_path / "x"
    shutil.copytree(unpacked, folder)
    path = folder / MANIFEST_NAME
    whole = path.read_bytes()
    draw = random.Random(0)
    for trial in range(300):
        body = bytearray(whole)
        if trial % 3 == 0:
            body = body[: draw.randrange(len(body))]
        else:
            body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        path.write_bytes(body)
        if body != whole[:-1]:  # without its last line break it is read as the same
            with pytest.raises(RecordFolderError):
                Manifest(path)
    path.write_bytes(b"x" * (5 << 20))
    with pytest.raises(RecordFolderError, match="no manifest has such"):
        Manifest(path)
