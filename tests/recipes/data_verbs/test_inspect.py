"""`adadistill data inspect` tells kinds apart by bytes, says what is wrong, and survives whatever it is given."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from tests_support import DATA

from adadistill.loaders.dataset_tools.index_files import write_image_index
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import records_to_folder
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter, write_insightface_records
from adadistill.recipes.data import main

FACES = DATA / "faces"


def jpeg(seed: int, side: int = 112, colorspace: str = "RGB") -> bytes:
    channels = {"RGB": 3, "CMYK": 4}[colorspace]
    noise = np.random.RandomState(seed).randint(0, 256, (side, side, channels), dtype=np.uint8)
    return simplejpeg.encode_jpeg(noise, colorspace=colorspace)


def turned(body: bytes) -> bytes:
    """The JPEG with the EXIF orientation 6."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    return body[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + body[2:]


def inspect(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    code = main(["inspect", str(path), "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    return found


@pytest.fixture
def insightface(tmp_path: Path) -> Path:
    samples = [(label, jpeg(number)) for number, label in enumerate([0, 0, 1, 2])]
    return write_insightface_records(tmp_path, samples, image_size=(112, 112))


def test_whose_records_they_are_is_told(tmp_path: Path, insightface: Path, capsys):
    found = inspect(insightface, capsys)
    assert found["title"].endswith("insightface's layout (header record with key 0, identity records)")
    facts = found["facts"]
    assert (facts["images"], facts["identities by its header"], facts["header and identity records"]) == (4, 3, 4)
    assert facts["index"] == "train.idx fits: 8 lines in key order"
    assert any("adadistill data index" in step for step in found["next"])
    filtered = tmp_path / "train.images.idx"
    write_image_index(insightface, None, filtered)
    found = inspect(insightface, capsys, "--index", str(filtered))
    assert found["title"].endswith("by an index of its images alone")
    assert "usable by DALI's own reader with this index" in found["next"]
    (tmp_path / "im2rec").mkdir()
    with RecordWriter(tmp_path / "im2rec" / "train.rec") as writer:
        for key in (3, 1):
            writer.write(key, jpeg(key), labels=float(key))
    assert "im2rec" in inspect(tmp_path / "im2rec" / "train.rec", capsys)["title"]
    (tmp_path / "im2rec" / "train.tsv").write_text("")
    assert "CVLface" in inspect(tmp_path / "im2rec" / "train.rec", capsys)["title"]


def test_odd_images_labels_and_files_beside_the_records_are_told(tmp_path: Path, capsys):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, jpeg(0, 64), labels=0.5)
        writer.write(1, turned(jpeg(1, colorspace="CMYK")), labels=(3.0, 1.0))
        writer.write(2, b"\xff\xd8\xff broken", labels=-1.0)
    (tmp_path / "property").write_text("many,112,112")
    (tmp_path / "train.rec.seal").write_bytes(b"ADRSEAL1 but short")
    found = inspect(tmp_path / "train.rec", capsys)
    assert found["facts"]["height x width"] == {"64 x 64": 1, "112 x 112": 1}
    assert (found["facts"]["CMYK or YCCK"], found["facts"]["turned by EXIF orientation"]) == (1, 1)
    assert found["facts"]["labels"] == {"one, in the image header (flag 0)": 2, "2 behind the header (flag 2)": 1}
    told = "\n".join(found["problems"])
    for text in ("1 of 3 images looked at cannot be read", "2 of 3 labels name no identity", "property", "is damaged"):
        assert text in told
    (tmp_path / "train.idx").write_text("0\t8\n")
    assert "the .idx does not fit" in "\n".join(inspect(tmp_path / "train.rec", capsys)["problems"])


def test_stores_beside_the_records_are_told_as_theirs_or_others(insightface: Path, capsys):
    records = ImageRecords(insightface)
    for name, fingerprint in (("mine", records.fingerprint()), ("other", "0" * 64)):
        (insightface.parent / name).mkdir()
        header = {"format": "adadistill-teacher-cache", "records": {"fingerprint": fingerprint}}
        (insightface.parent / name / "header.json").write_text(json.dumps(header))
    assert inspect(insightface, capsys)["facts"]["stores beside it"] == [
        "mine: adadistill-teacher-cache, of these records",
        "other: adadistill-teacher-cache, of other records",
    ]
    assert inspect(insightface.parent / "mine", capsys)["kind"] == "teacher-cache"


def test_one_record_is_shown_and_saved_byte_for_byte(tmp_path: Path, insightface: Path, capsys):
    assert main(["inspect", str(insightface), "--record", "2", "--save", str(tmp_path / "one.jpg"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["key"], facts["labels"], facts["flag"]) == (3, [1.0, 1.0], 2)
    assert facts["image"] == "jpeg YCbCr 444, 112 x 112" or facts["image"].startswith("jpeg YCbCr")
    assert (tmp_path / "one.jpg").read_bytes() == jpeg(2)
    assert inspect(tmp_path / "one.jpg", capsys)["kind"] == "image"
    for wrong in (["--record", "4"], ["--record", "-1"], ["--record", "2", "--save", str(tmp_path / "one.jpg")]):
        assert main(["inspect", str(insightface), *wrong]) == 2
    assert "0 to 3" in capsys.readouterr().err


def test_verification_sets_and_pickles_that_are_none(tmp_path: Path, capsys):
    write_verification_bin(tmp_path / "a.bin", [jpeg(n) for n in range(40)], [True, False] * 10)
    found = inspect(tmp_path / "a.bin", capsys)
    assert (found["facts"]["pairs"], found["facts"]["same"], found["facts"]["pickle protocol"]) == (20, 10, 4)
    (tmp_path / "b.bin").write_bytes(pickle.dumps(([jpeg(0)] * 4, [1, 0]), protocol=2))
    assert inspect(tmp_path / "b.bin", capsys)["facts"]["pickle protocol"] == 2

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "c.bin").write_bytes(pickle.dumps(([Attack()], [True])))
    found = inspect(tmp_path / "c.bin", capsys)
    assert found["kind"] == "pickle"
    assert found["problems"]
    assert not (tmp_path / "ran").exists()


def test_folders_are_told_by_what_is_in_them(tmp_path: Path, insightface: Path, capsys):
    assert inspect(tmp_path, capsys)["kind"] == "record-folder"
    records_to_folder(insightface, tmp_path / "images")
    found = inspect(tmp_path / "images", capsys)
    assert (found["kind"], found["facts"]["images"], found["facts"]["identities"]) == ("image-folder", 4, 3)
    assert found["facts"]["manifest"] == ".records.lst, 4 images of a record file"
    min((tmp_path / "images").rglob("*.jpg")).unlink()
    assert inspect(tmp_path / "images", capsys)["problems"] == ["its .records.lst names 4 images, 3 are there"]
    for name, entry, kind in [
        ("run", "recipe.resolved.yaml", "run"),
        ("step", "MANIFEST.json", "checkpoint"),
        ("tars", "0.tar", "tar-shards"),
        ("arrow", "state.json", "arrow-set"),
        ("nothing", "letter.txt", "folder"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / entry).write_text("{}")
        assert inspect(tmp_path / name, capsys)["kind"] == kind


def test_small_files_are_told_by_their_bytes(tmp_path: Path, capsys):
    for name, content, kind in (
        ("x.idx", b"0\t0\n1\t44\n", "index"),
        ("whatever", b"7\t1\t3\tb/a.jpg\n", "list"),
        ("x.npy", b"\x93NUMPY\x01\x00", "array"),
        ("x.parquet", b"PAR1", "parquet"),
        ("x.pt", b"PK\x03\x04", "zip"),
        ("x.rec", b"", "empty"),
        ("x.json", b'{"a": 1}', "json"),
        ("x.json", b"[" * 100_000, "json"),
        ("x.txt", b"hello\n", "text"),
        ("x", b"\xfe\xfd\x00", "unknown"),
        ("x.safetensors", (1 << 39).to_bytes(8, "little") + b"{}", "safetensors"),
        ("x.rec.seal", b"ADRSEAL1", "seal"),
    ):
        (tmp_path / name).write_bytes(content)
        assert inspect(tmp_path / name, capsys)["kind"] == kind, name


def test_a_name_that_promises_something_else_is_told(tmp_path: Path, capsys):
    for name, content in [("a.tar", b"x" * 1000), ("b.jpg", b"PAR1"), ("c.NPY", b"hello")]:
        (tmp_path / name).write_bytes(content)
        assert "its bytes are of no such file" in inspect(tmp_path / name, capsys)["problems"][0]
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    (odd / "1").mkdir(parents=True)
    (odd / "1" / "a.jpg").symlink_to("nowhere")
    assert main(["inspect", str(odd)]) == 1
    assert "a.jpg is a link to nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_that_was_damaged_brings_it_down(tmp_path: Path, insightface: Path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train.rec", "train.idx", "property"):
        shutil.copy(insightface.with_name(name), source)
    write_verification_bin(source / "a.bin", [jpeg(n, 8) for n in range(8)], [True, False] * 2)
    np.save(source / "a.npy", np.zeros((2, 3), np.float16))
    (source / "a.lst").write_text("0\t1\ta.jpg\n1\t0\tb.jpg\n")
    (source / "a.safetensors").write_bytes((20).to_bytes(8, "little") + b'{"a":{"shape":[1]}} ')
    records_to_folder(source / "train.rec", source / "images")
    draw = random.Random(0)
    names = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    for trial in range(20):
        target = tmp_path / "trial"
        shutil.copytree(source, target)
        victim = target / draw.choice(names)
        body = bytearray(victim.read_bytes())
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(body) + 1)
            body[place : place + draw.choice([0, 1, 4])] = draw.randbytes(draw.choice([0, 1, 4]))
        victim.write_bytes(body[: draw.choice([len(body), draw.randrange(len(body) + 1)])])
        for looked_at in {victim, target / "train.rec", target / "images"}:
            assert main(["inspect", str(looked_at)]) in (0, 1, 2), (trial, victim)
        assert "Traceback" not in capsys.readouterr().err
        shutil.rmtree(target)


@pytest.mark.realdata
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_files_are_inspected(capsys):
    facts = inspect(FACES / "train.rec", capsys, "--sample", "200")["facts"]
    assert (facts["images"], facts["identities by its header"], facts["property"]) == (4145, 816, "816,112,112")
    assert inspect(DATA / "recordio" / "faces8" / "train.rec", capsys)["facts"]["images"] == 8
    assert inspect(FACES / "train.idx", capsys)["facts"]["lines"] == 4962
    found = inspect(FACES / "small_lfw.bin", capsys)
    assert (found["facts"]["pairs"], found["facts"]["different"]) == (10, 0)
