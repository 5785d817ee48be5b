"""Labelled images by record id: every label is a class, every damaged frame is named, processes agree."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests_support import ROOT

from adadistill.loaders.records.image_records import EncodedImage, ImageRecords
from adadistill.loaders.records.recordio import (
    BadBodyError,
    BadFlagError,
    BadLabelError,
    RecordError,
    RecordWriter,
    write_insightface_records,
)

LABELS = [0, 0, 1, 1, 1, 2]
JPEGS = [b"\xff\xd8\xff\xe0" + bytes([i + 1]) * (20 + i) for i in range(len(LABELS))]


@pytest.fixture
def path(tmp_path) -> Path:
    return write_insightface_records(tmp_path, zip(LABELS, JPEGS, strict=True), image_size=(112, 112))


def write_labels(folder: Path, labels: list[object], name: str = "train") -> Path:
    with RecordWriter(folder / f"{name}.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(key, b"\xff\xd8\xffbody", labels=label)
    return folder / f"{name}.rec"


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_ids_give_labels_and_bodies(path):
    records = ImageRecords(path)
    assert (len(records), records.num_classes) == (6, 3)
    assert [records.read(i) for i in range(6)] == [EncodedImage(*pair) for pair in zip(LABELS, JPEGS, strict=True)]
    assert records.read(np.int64(3)) == records.read(3)
    assert isinstance(records.read(np.int64(3)).label, int)
    np.testing.assert_array_equal(records.labels(), LABELS)
    assert records.labels().dtype == np.int64
    assert records.labels() is records.labels()


def test_a_record_is_named_by_file_id_key_and_byte_and_ids_do_not_wrap(path):
    records = ImageRecords(path)
    assert records.where(2) == f"{path}: record 2 (key 3) at byte {records.index.offsets[2]}"
    for record_id in (-1, 6):
        with pytest.raises(IndexError, match=rf"must be in \[0, 6\), got {record_id}"):
            records.read(record_id)


def test_scalar_vector_and_wide_labels_give_the_first_one(tmp_path):
    records = ImageRecords(write_labels(tmp_path, [2.0, (1.0, 1.0), (0.0,), (3.0, *[0.25] * 100), -0.0]))
    assert [records.read(i).label for i in range(5)] == [2, 1, 0, 3, 0]
    np.testing.assert_array_equal(records.labels(), [2, 1, 0, 3, 0])
    assert records.num_classes == 4


@pytest.mark.parametrize("label", [float("nan"), -float("inf"), 0.5, -1.0, 3.0, float(1 << 24)])
@pytest.mark.parametrize("vector", [False, True])
def test_labels_that_are_no_class_are_named_errors(tmp_path, label, vector):
    path = write_labels(tmp_path, [0.0, (label, 1.0) if vector else label, 2.0])
    records = ImageRecords(path, num_classes=3)
    assert records.read(0).label == 0
    assert records.read(2).label == 2
    for read in (lambda: records.read(1), records.labels):
        with pytest.raises(BadLabelError, match=r"not a whole number in \[0, 3\), given by the caller") as caught:
            read()
        assert (caught.value.record_id, caught.value.key) == (1, 1)
        assert caught.value.offset == records.index.offsets[1]
    with pytest.raises(BadLabelError) as caught:
        _ = ImageRecords(path).labels() if label != 3.0 else ImageRecords(path, num_classes=1).labels()
    assert caught.value.record_id in (1, 2)


def test_the_number_of_classes_comes_from_caller_property_identities_or_labels_in_this_order(path, caplog):
    with RecordWriter(path.with_name("labels.rec")) as writer:
        writer.write(0, JPEGS[0], labels=6.0)
    (path.parent / "property").write_text("7,112,112\n6\nmade by hand\n")
    assert ImageRecords(path, num_classes=9).num_classes == 9
    assert caplog.records == []
    assert ImageRecords(path).num_classes == 7
    assert "the header record says 3 identities, property says 7 and is used" in caplog.text
    (path.parent / "property").unlink()
    assert ImageRecords(path).num_classes == 3
    assert ImageRecords(path.with_name("labels.rec")).num_classes == 7


@pytest.mark.parametrize("content", ["", "\n1,2,3", "many,112,112", "0,112,112", "99999999,112,112", "²,1,1"])
def test_an_unreadable_property_file_stops(path, content):
    (path.parent / "property").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"must begin with `num_classes,height,width`.*data\.num_classes"):
        _ = ImageRecords(path).num_classes


def test_a_property_file_of_a_terabyte_is_not_read_whole(path):
    properties = path.parent / "property"
    properties.write_text("7,112,112\n")
    os.truncate(properties, 1 << 40)
    assert ImageRecords(path).num_classes == 7


def test_another_number_of_classes_than_the_data_set_s_own_is_warned_of(path, caplog):
    assert ImageRecords(path, num_classes=3).read(0).label == 0
    assert not caplog.records
    assert ImageRecords(path, num_classes=7).read(0).label == 0
    assert [record.message.split("property ")[1] for record in caplog.records] == [
        "says 3 identities, data.num_classes says 7 and is used"
    ]
    path.with_name("property").write_text("who knows\n")
    assert ImageRecords(path, num_classes=3).read(0).label == 0
    assert len(caplog.records) == 1


def test_what_is_named_must_be_there_and_make_sense(path):
    for num_classes in (0, (1 << 24) + 1):
        with pytest.raises(ValueError, match=f"got {num_classes}"):
            ImageRecords(path, num_classes=num_classes)
    with pytest.raises(FileNotFoundError, match="no record file"):
        ImageRecords(path.with_name("none.rec"))
    with pytest.raises(FileNotFoundError, match="no index at"):
        ImageRecords(path, path.with_name("none.idx"))
    path.with_name("empty.rec").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no image records"):
        len(ImageRecords(path.with_name("empty.rec")))


def test_bodies_that_are_no_image_are_named_errors(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, b"", labels=0.0)
        writer.write(1, b"text, not an image", labels=(1.0, 1.0))
        writer.write(2, b"\x89PNG\r\n\x1a\n", labels=2.0)
    records = ImageRecords(tmp_path / "train.rec", num_classes=3)
    with pytest.raises(BadBodyError, match="no image"):
        records.read(0)
    with pytest.raises(BadBodyError, match="74 65 78 74"):
        records.read(1)
    assert records.read(2).label == 2
    with pytest.raises(BadBodyError):
        records.labels()


@pytest.mark.parametrize("flag", [0, 3])
def test_a_wrong_label_count_is_told_by_where_the_image_begins(path, flag):
    records = ImageRecords(path)
    patch(path, int(records.index.offsets[4]) + 8, struct.pack("<I", flag))
    for read in (lambda: records.read(4), records.labels):
        with pytest.raises(BadFlagError, match=f"label count is {flag}, but an image begins after 2 labels") as caught:
            read()
        assert (caught.value.record_id, caught.value.key) == (4, 5)


def test_every_flipped_bit_of_a_frame_is_reported_for_its_record_alone(path):
    """Magic, part flag, length, label count: 96 bits; only a length may grow into zero padding unseen."""
    sound = ImageRecords(path)
    truth = [sound.read(i) for i in range(6)]
    content = path.read_bytes()
    silent = []
    for i in (0, 3):
        offset = sound.index.offsets.item(i)
        for bit in range(96):
            flipped = bytearray(content)
            flipped[offset + bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            records = ImageRecords(path)
            np.testing.assert_array_equal(records.index.offsets, sound.index.offsets)
            assert records.read((i + 1) % 6) == truth[(i + 1) % 6]
            assert records.read((i - 1) % 6) == truth[(i - 1) % 6]
            try:
                read = records.read(i)
            except RecordError as error:
                named = (error.record_id, error.offset, error.key)
            else:
                named = (i, offset, i + 1)
                silent.append((i, bit))
                assert read.body.rstrip(b"\0") == truth[i].body
                assert read.label == truth[i].label
            assert named == (i, offset, i + 1)
    grown = [(i, bit) for i in (0, 3) for bit in (32, 33) if not len(JPEGS[i]) >> (bit - 32) & 1]
    assert set(silent) <= set(grown)


def _assert_plain_is_read(records: ImageRecords) -> list[bool]:
    """What `read_plain` gives is what `read` gives, and it gives nothing of what `read` refuses."""
    labels, bodies = records.read_plain(np.arange(len(records)))
    for record_id, body in enumerate(bodies):
        if body is not None:
            assert records.read(record_id) == EncodedImage(int(labels[record_id]), body.tobytes())
    return [body is not None for body in bodies]


def test_many_records_at_once_are_those_read_one_by_one(path):
    records = ImageRecords(path)
    plain = _assert_plain_is_read(records)
    assert all(plain)
    order = np.array([4, 0, 4, 2])
    labels, bodies = records.read_plain(order)
    assert labels.tolist() == [LABELS[i] for i in order]
    assert [body.tobytes() for body in bodies if body is not None] == [JPEGS[i] for i in order]
    assert records.read_plain(np.array([], dtype=np.int64))[1] == []
    for outside in (-1, 6):
        with pytest.raises(IndexError, match=r"\[0, 6\)"):
            records.read_plain(np.array([0, outside]))


def test_what_is_not_plain_is_left_to_read(tmp_path):
    magic = struct.pack("<I", 0xCED7230A)
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, b"\xff\xd8\xff!", labels=0.0)
        writer.write(1, b"\xff\xd8\xff!" + magic + b"more", labels=1.0)  # two parts
        writer.write(2, b"\x89PNG....", labels=1.0)
        writer.write(3, b"\xff\xd8\xff odd", labels=[2.0, 5.0, 6.0])
        writer.write(4, b"\xff\xd8\xff!", labels=3.0)  # no class
    records = ImageRecords(tmp_path / "train.rec", num_classes=3)
    with pytest.raises(BadLabelError):
        records.read(4)
    assert _assert_plain_is_read(records) == [True, False, False, True, False]


def test_no_flipped_bit_passes_many_at_once_that_one_alone_refuses(path):
    """Every bit of two records: frames, headers, labels, the beginnings of bodies, padding."""
    records, whole = ImageRecords(path), path.read_bytes()
    assert len(records) == 6
    _ = records.num_classes
    first, last = int(records.index.offsets[1]), int(records.index.limits[2])
    refused = 0
    for bit in range(8 * first, 8 * last):
        body = bytearray(whole)
        body[bit // 8] ^= 1 << bit % 8
        records._file._buffer = bytes(body)
        labels, bodies = records.read_plain(np.arange(6))
        for record_id in range(6):
            try:
                alone = records.read(record_id)
            except RecordError:
                refused += 1
                assert bodies[record_id] is None, (bit, record_id)
            else:
                plain = bodies[record_id]
                assert plain is None or (int(labels[record_id]), plain.tobytes()) == (alone.label, alone.body)
    assert refused > 2 * 8 * 8


def test_the_fingerprint_is_that_of_the_images_not_of_the_index_file(path, tmp_path):
    fingerprint = ImageRecords(path).fingerprint()
    assert len(fingerprint) == 64
    path.with_suffix(".idx").unlink()
    assert ImageRecords(path).fingerprint() == fingerprint, "rebuilt by a scan"
    (tmp_path / "moved").mkdir()
    shutil.copy(path, tmp_path / "moved" / "other.rec")
    assert ImageRecords(tmp_path / "moved" / "other.rec").fingerprint() == fingerprint, "elsewhere"


def test_the_fingerprint_sees_other_images_labels_lengths_and_numbers(path):
    fingerprints = {ImageRecords(path).fingerprint()}
    variants = [
        (LABELS, [*JPEGS[:2], JPEGS[2][:-1] + b"!", *JPEGS[3:]]),
        ([0, 1, 1, 1, 1, 2], JPEGS),
        (LABELS, [JPEGS[0] + b"longer", *JPEGS[1:]]),
        (LABELS[:-1], JPEGS[:-1]),
        (LABELS, [JPEGS[1], JPEGS[0], *JPEGS[2:]]),
    ]
    for labels, jpegs in variants:
        samples = zip(labels, jpegs, strict=True)
        write_insightface_records(path.parent, samples, image_size=(112, 112), overwrite=True)
        fingerprints.add(ImageRecords(path).fingerprint())
    assert len(fingerprints) == 1 + len(variants)


@pytest.fixture
def importable_in_children(tmp_path, monkeypatch):
    """Spawned children import `adadistill` even where it is not installed."""
    (tmp_path / "import_path").mkdir()
    os.symlink(ROOT, tmp_path / "import_path" / "adadistill", target_is_directory=True)
    monkeypatch.syspath_prepend(tmp_path / "import_path")


@pytest.mark.realdata
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_what_this_one_reads(data_dir, importable_in_children, method):
    records = ImageRecords(data_dir / "faces" / "train.rec")
    records.read(0)  # the map is open before the processes start
    ids = list(range(0, len(records), 11))
    with multiprocessing.get_context(method).Pool(1 if method == "spawn" else 2) as pool:
        read = pool.map(records.read, ids, chunksize=len(ids) // 4)
    assert read == [records.read(i) for i in ids]


def test_threads_may_use_fresh_records_at_once(path):
    records, expected = ImageRecords(path), ImageRecords(path)
    ids = [0, 5, 3, 1, 4, 2] * 50
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(records.read, ids)) == [expected.read(i) for i in ids]
