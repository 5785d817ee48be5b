"""Records to a folder and back keep every image, label, key and identity; what changed in between is told."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise_records import contents, jpeg, write_insightface

from adadistill.loaders.dataset_tools.record_folder.folder_to_records import folder_to_records
from adadistill.loaders.dataset_tools.record_folder.image_lists import ListedImage, read_list
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import records_to_folder
from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.image_source import EncodedImage
from adadistill.loaders.records.recordio import (
    BadBodyError,
    BadLabelError,
    RecordError,
    RecordFile,
    RecordWriter,
    write_insightface_records,
)


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def content(path: Path) -> list[tuple[int, tuple[float, ...], bytes]]:
    """Key, labels and bytes of each image, in order."""
    index, file = ImageRecords(path).index, RecordFile(path)
    read = [file.read(offset) for offset in index.offsets.tolist()]
    return [(key, tuple(one.labels), one.body) for key, one in zip(index.keys.tolist(), read, strict=True)]


class Stop:
    """A `progress` that ends a conversion after some images, as a signal does."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, done: int, total: int) -> None:
        if done == self._after:
            raise KeyboardInterrupt


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.tuples(st.integers(0, 12), st.lists(FLOATS, max_size=3)), min_size=1, max_size=8),
    data=st.data(),
)
def test_keys_labels_order_and_images_come_back(tmp_path_factory, records, data: st.DataObject):
    folder = tmp_path_factory.mktemp("odd")
    keys = data.draw(st.permutations(range(0, 3 * len(records), 3)))
    with RecordWriter(folder / "train.rec") as writer:
        for number, (key, (identity, others)) in enumerate(zip(keys, records, strict=True)):
            writer.write(key, jpeg(number), labels=(float(identity), *others) if others else float(identity), id=7)
    (folder / "property").write_bytes(b"13,112,112\r\nmade by \xff\n")
    wanted = content(folder / "train.rec")

    records_to_folder(folder / "train.rec", folder / "images")
    folder_to_records(folder / "images", folder / "again")

    assert content(folder / "again" / "train.rec") == wanted
    assert (folder / "again" / "property").read_bytes() == (folder / "property").read_bytes()
    shutil.rmtree(folder)


def test_a_folder_that_an_earlier_version_made_is_converted_back(tmp_path: Path):
    lines = [
        {"format": "adadistill-record-folder", "version": 1, "records": "train.rec"},
        {"key": 5, "file": "3/05.jpg", "labels": [3, 1], "id": 5, "bytes": 4, "crc32": "0000abcd"},
        {"key": 2, "file": "0/02.jpg", "label": 0, "id": 2, "bytes": 4, "crc32": "0000abcd"},
        {"key": 6, "labels": [1, 6], "id": 6},
        {"end": 3, "images": 2, "bytes": 1, "rec_sha256": "", "index": "key", "copies": {}, "sha256": ""},
    ]
    folder = write_images(tmp_path / "old", "3/05.jpg", "0/02.jpg")
    (folder / ".records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / ".records.property").write_text("9,16,16\n")
    folder_to_records(folder, tmp_path / "out")
    assert content(tmp_path / "out" / "train.rec") == [(5, (3.0, 1.0), jpeg(0)), (2, (0.0,), jpeg(1))]
    assert ImageRecords(tmp_path / "out" / "train.rec").num_classes == 9


def test_folders_are_named_by_labels_json_where_its_names_are_good(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    (tmp_path / "a" / "labels.json").write_text('["ann", "bob", "cy"]')
    records_to_folder(source, tmp_path / "good")
    assert sorted(path.name for path in (tmp_path / "good").iterdir() if path.is_dir()) == ["ann", "bob", "cy"]
    folder_to_records(tmp_path / "good", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    for bad in ('["..", "a/b", "cy"]', '["ann", "ANN", "bob"]', '["ann"]', "[" * 100_000, '{"a": 1}'):
        (tmp_path / "a" / "labels.json").write_text(bad)
        shutil.rmtree(tmp_path / "plain", ignore_errors=True)
        records_to_folder(source, tmp_path / "plain")
        assert sorted(path.name for path in (tmp_path / "plain").iterdir() if path.is_dir()) == ["0", "1", "2"]


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), (2.0**24, 0.0)])
def test_labels_that_name_no_identity_are_refused_before_anything_is_written(tmp_path: Path, label):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(5, jpeg(0), labels=0.0)
        writer.write(9, jpeg(1), labels=label)
    with pytest.raises(BadLabelError, match=r"\(key 9\).*names no folder"):
        records_to_folder(tmp_path / "train.rec", tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_damage_in_the_records_is_named(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    source.with_suffix(".idx").unlink()
    source.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(RecordError):
        records_to_folder(source, tmp_path / "images")
    with RecordWriter(tmp_path / "b.rec") as writer:
        writer.write(1, b"no image", labels=0.0)
    with pytest.raises(BadBodyError, match="begins like no image"):
        records_to_folder(tmp_path / "b.rec", tmp_path / "images")
    assert contents(tmp_path / "images").keys() <= {".records.unfinished"}
    (tmp_path / "c.rec").write_bytes(b"")  # as a download that failed leaves it
    with pytest.raises(ImageFolderError, match=r"c\.rec holds no image records"):
        records_to_folder(tmp_path / "c.rec", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_unpacking_goes_on_where_it_was_stopped_and_mends_torn_files(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    records_to_folder(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        records_to_folder(source, tmp_path / "b", progress=Stop(4))
    assert not (tmp_path / "b" / ".records.lst").exists()
    with pytest.raises(ImageFolderError, match="unfinished conversion and lacks images"):
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert folder_to_records(tmp_path / "b", tmp_path / "c", ignore_manifest=True).images == 4
    images = sorted((tmp_path / "b").rglob("*.jpg"))
    assert len(images) == 4
    body = images[1].read_bytes()
    images[1].write_bytes(body[:100])  # as a kill leaves it
    images[2].write_bytes(bytes(300))  # as a power cut may
    done = records_to_folder(source, tmp_path / "b")
    assert (done.images, done.kept_images) == (6, 2)
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")
    images[0].unlink()
    assert records_to_folder(source, tmp_path / "b").kept_images == 5  # a finished folder is made whole again
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")


def test_nothing_that_is_there_is_written_over(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    other = write_insightface(tmp_path / "other", (1, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ImageFolderError, match="none of them is written over"):
        records_to_folder(source, tmp_path / "mine")
    with pytest.raises(ImageFolderError, match="none of them is written over"):
        records_to_folder(source, source.parent)
    with pytest.raises(KeyboardInterrupt):
        records_to_folder(source, tmp_path / "b", progress=Stop(3))
    with pytest.raises(ImageFolderError, match="unfinished conversion of other records"):
        records_to_folder(other, tmp_path / "b")
    image = min((tmp_path / "b").rglob("*.jpg"))
    image.write_bytes(jpeg(99))
    with pytest.raises(ImageFolderError, match="holds another image than its record"):
        records_to_folder(source, tmp_path / "b")
    assert image.read_bytes() == jpeg(99)
    image.unlink()
    image.symlink_to(tmp_path / "mine" / "letter.txt")
    with pytest.raises(ImageFolderError, match="no file of ours"):
        records_to_folder(source, tmp_path / "b")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    records_to_folder(source, tmp_path / "c")
    with pytest.raises(ImageFolderError, match="images of other records"):
        records_to_folder(other, tmp_path / "c")


def _remove(folder: Path) -> None:
    (folder / "1" / "03.jpg").unlink()


def _add(folder: Path) -> None:
    (folder / "1" / "new.png").write_bytes(jpeg(5))


@pytest.mark.parametrize(
    ("change", "message"), [(_remove, r"1 missing \('1/03.jpg'\)"), (_add, r"1 added \('1/new.png'\)")]
)
def test_a_folder_that_changed_is_converted_by_names_only_when_told(tmp_path: Path, change, message: str):
    records_to_folder(write_insightface(tmp_path / "a", (2, 4, 5)), tmp_path / "b")
    change(tmp_path / "b")
    with pytest.raises(ImageFolderError, match=message) as caught:
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert "--ignore-manifest" in str(caught.value)
    assert not (tmp_path / "c" / "train.rec").exists()
    made = folder_to_records(tmp_path / "b", tmp_path / "d", ignore_manifest=True)
    images = sorted(path for path in (tmp_path / "b").rglob("*") if path.suffix in (".jpg", ".png"))
    assert made.images == len(images)
    records = ImageRecords(made.path)
    assert [records.read(number).body for number in range(len(records))] == [path.read_bytes() for path in images]


def test_a_plain_folder_is_what_insightface_s_layout_makes_of_it(tmp_path: Path):
    samples = [(0, jpeg(0)), (0, jpeg(1)), (1, jpeg(2))]
    ignored = ("ann/notes.txt", "ann/.hidden.jpg", ".cache/x.jpg", "readme.jpg")
    write_images(tmp_path / "set", "ann/1.jpg", "ann/2.JPG", "bob/0.jpeg", *ignored)
    (tmp_path / "set" / "empty").mkdir()
    before = contents(tmp_path / "set")
    folder_to_records(tmp_path / "set", tmp_path / "out")
    (tmp_path / "wanted").mkdir()
    write_insightface_records(tmp_path / "wanted", samples, image_size=(16, 16))
    made = contents(tmp_path / "out")
    assert json.loads(made.pop("labels.json")) == ["ann", "bob"]
    assert made == contents(tmp_path / "wanted")
    assert contents(tmp_path / "set") == before


def test_a_conversion_that_is_ended_leaves_no_records_and_one_that_was_killed_is_cleared_away(tmp_path: Path):
    folder = write_images(tmp_path / "set", "a/0.jpg", "a/1.jpg", "b/2.jpg")
    with pytest.raises(KeyboardInterrupt):
        folder_to_records(folder, tmp_path / "out", progress=Stop(2))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".train.rec.partial-123").write_bytes(b"of a conversion that was killed")
    folder_to_records(folder, tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {"train.rec", "train.idx", "property", "labels.json"}


def test_records_that_are_there_stay_unless_told(tmp_path: Path):
    folder = write_images(tmp_path / "set", "a/0.jpg", "a/1.jpg")
    folder_to_records(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already"):
        folder_to_records(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (folder / "a" / "1.jpg").unlink()
    assert folder_to_records(folder, tmp_path / "out", overwrite=True).images == 1
    with pytest.raises(ValueError, match="only read"):
        folder_to_records(folder, folder / "out")


def test_bad_images_are_named_and_leave_nothing_behind(tmp_path: Path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "0.jpg").write_bytes(jpeg(0))
    for body in (b"", b"GIF89a" + bytes(40), b"text"):
        (tmp_path / "set" / "a" / "1.jpg").write_bytes(body)
        with pytest.raises(ValueError, match=r"1\.jpg: neither JPEG nor PNG"):
            folder_to_records(tmp_path / "set", tmp_path / "out")
        assert contents(tmp_path / "out") == {} if (tmp_path / "out").exists() else True
    (tmp_path / "set" / "a" / "1.jpg").write_bytes(jpeg(1, 24))
    with pytest.raises(ImageFolderError, match="24 x 24 pixels, 16 a side were asked for"):
        folder_to_records(tmp_path / "set", tmp_path / "out", image_side=16)
    (tmp_path / "set" / "a" / "1.jpg").unlink()
    (tmp_path / "set" / "a" / "1.jpg").symlink_to("/etc/hostname")
    with pytest.raises(ImageFolderError, match="leads out of"):
        folder_to_records(tmp_path / "set", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ImageFolderError, match="no labelled images"):
        folder_to_records(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        folder_to_records(tmp_path / "nowhere", tmp_path / "out")


def test_a_folder_that_changes_meanwhile_is_told(tmp_path: Path):
    write_images(tmp_path / "set", "a/1.jpg", "b/2.jpg", "b/3.jpg")

    def meddle(done: int, _total: int) -> None:
        if done == 1:
            (tmp_path / "set" / "b" / "0.jpg").write_bytes(jpeg(1))

    with pytest.raises(ImageFolderError, match="changed while it was converted"):
        folder_to_records(tmp_path / "set", tmp_path / "out", progress=meddle)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_at_the_door(tmp_path: Path, monkeypatch):
    source = write_insightface(tmp_path / "a")
    records_to_folder(source, tmp_path / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match=r"the disk has 0\.000 GB free"):
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists() or not any((tmp_path / "c").iterdir())


@pytest.mark.parametrize("flag_labels", [(3.0,), (3.0, 1.0, 0.25)])
def test_a_list_gives_keys_labels_and_order(tmp_path: Path, flag_labels: tuple[float, ...]):
    write_images(tmp_path / "set", "x/0.jpg", "x/1.jpg", "x/2.jpg")
    labels = "\t".join(f"{label:f}" for label in flag_labels)
    (tmp_path / "a.lst").write_text("".join(f"{key}\t{labels}\tx/{n}.jpg\n" for n, key in enumerate((7, 2, 9))))
    made = folder_to_records(tmp_path / "set", tmp_path / "out", lst=tmp_path / "a.lst")
    records = ImageRecords(made.path)
    assert records.index.keys.tolist() == [7, 2, 9]
    assert [records.read(number) for number in range(3)] == [EncodedImage(3, jpeg(number)) for number in range(3)]
    assert (tmp_path / "out" / "property").read_text() == "4,16,16\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\t1\t../a.jpg", "no path within"),
        ("1\tx/0.jpg\t0", "insightface's own"),
        ("0\t-1\tx.jpg", "no whole number"),
        ("0\tnan\tx.jpg", "is no line"),
        ("0\t1\tnone.jpg", "1 images that are not in"),
        ("0\t1\ta.jpg\n0\t1\ta.jpg", r"a\.lst: key 0 is used twice"),
        ("", "holds no lines"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path: Path, line: str, message: str):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "a.lst").write_text(line)
    with pytest.raises(ValueError, match=message):
        folder_to_records(tmp_path / "set", tmp_path / "out", lst=tmp_path / "a.lst")


def test_a_damaged_list_is_refused_or_names_no_file_outside(tmp_path: Path):
    whole = b"".join(ListedImage(key, (float(key), 1.0), f"{key}/{key}.jpg").line() for key in range(4))
    draw, path = random.Random(0), tmp_path / "a.lst"
    for trial in range(100):
        body = bytearray(whole)
        if trial % 3 == 0:
            body = body[: draw.randrange(len(body))]
        else:
            body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        path.write_bytes(body)
        try:
            listed = list(read_list(path))
        except ImageFolderError:
            continue
        assert all((tmp_path / one.path).resolve().is_relative_to(tmp_path.resolve()) for one in listed)
    path.write_bytes(b"x" * (5 << 20))
    with pytest.raises(ImageFolderError, match="no list has such"):
        list(read_list(path))


@pytest.mark.realdata
def test_a_list_makes_of_images_what_mxnet_made_of_them(tmp_path: Path, data_dir: Path):
    source = data_dir / "recordio" / "faces8" / "train.rec"
    records = ImageRecords(source)
    names = [line.split("\t")[-1] for line in source.with_suffix(".lst").read_text().splitlines()]
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(records.read(number).body)
    made = folder_to_records(tmp_path / "set", tmp_path / "out", lst=source.with_suffix(".lst"))
    assert made.path.read_bytes() == source.read_bytes()
    assert made.path.with_suffix(".idx").read_bytes() == source.with_suffix(".idx").read_bytes()
