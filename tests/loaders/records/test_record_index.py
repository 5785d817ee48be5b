"""Record ids: the same from every usable index and from a scan, never shifted by damage; stale indexes are found."""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.loaders.records.record_index import RecordIndex, load_record_index, write_record_index
from adadistill.loaders.records.recordio import (
    BadMagicError,
    RecordError,
    RecordFile,
    RecordWriter,
    TruncatedRecordError,
    write_insightface_records,
)

Lines = list[tuple[int, int]]
NUM_IMAGES = 9
IDENTITIES = [0, 0, 1, 1, 1, 2, 3, 3, 3]


def body(i: int) -> bytes:
    """Different contents and lengths, so that a shifted id is seen."""
    return b"\xff\xd8\xff" + bytes([i]) * (11 + 7 * i)


def write_insightface(folder: Path) -> Path:
    samples = [(label, body(i)) for i, label in enumerate(IDENTITIES)]
    return write_insightface_records(folder, samples, image_size=(112, 112))


def write_im2rec(folder: Path) -> Path:
    """Flag 0, keys and ids shuffled, no header; key 0 is an ordinary image."""
    with RecordWriter(folder / "train.rec") as writer:
        for i, key in enumerate([4, 0, 7, 5, 1, 6, 3, 2, 8]):
            writer.write(key, body(i), labels=float(IDENTITIES[i]))
    return folder / "train.rec"


def write_headless(folder: Path) -> Path:
    """Flag 2 on every image (as face2rec2 writes), keys from 0, no header: flag > 0 alone means nothing."""
    with RecordWriter(folder / "train.rec") as writer:
        for i, label in enumerate(IDENTITIES):
            writer.write(i, body(i), labels=(float(label), 1.0))
    return folder / "train.rec"


LAYOUTS = {"insightface": write_insightface, "im2rec": write_im2rec, "headless": write_headless}


@pytest.fixture(params=LAYOUTS)
def records(request, tmp_path) -> Path:
    return LAYOUTS[request.param](tmp_path)


@pytest.fixture
def insightface(tmp_path) -> Path:
    return write_insightface(tmp_path)


def read_lines(records: Path) -> Lines:
    return [(int(key), int(at)) for key, at in (line.split() for line in records.with_suffix(".idx").open())]


def write_lines(records: Path, lines: Lines) -> None:
    records.with_suffix(".idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in lines))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read_body(records: Path, index: RecordIndex, record_id: int) -> bytes:
    offset, limit = int(index.offsets[record_id]), int(index.limits[record_id])
    return RecordFile(records).read(offset, limit=limit, record_id=record_id).body


def assert_right_ids(records: Path, index: RecordIndex) -> None:
    assert [read_body(records, index, i) for i in range(len(index))] == [body(i) for i in range(NUM_IMAGES)]


def test_a_complete_index_gives_the_images_by_offset_without_a_warning(records, caplog):
    lines = read_lines(records)
    np.random.default_rng(0).shuffle(lines)  # their order does not matter
    write_lines(records, lines)
    index = load_record_index(records)
    assert_right_ids(records, index)
    assert (index.source, index.reason) == ("idx", str(records.with_suffix(".idx")))
    assert dict(zip(index.offsets.tolist(), index.keys.tolist(), strict=True)).items() <= {
        (offset, key) for key, offset in read_lines(records)
    }
    assert caplog.records == []


def test_an_image_and_an_identity_record_that_change_places_in_the_index_are_noticed(insightface, caplog):
    """Every line still names a record, but the image would be none, and all later ids would be of the image before."""
    lines = read_lines(insightface)
    by_key = dict(lines)
    for image, identity in ((1, NUM_IMAGES + 1), (NUM_IMAGES // 2, max(by_key)), (NUM_IMAGES, NUM_IMAGES + 1)):
        swapped = by_key | {image: by_key[identity], identity: by_key[image]}
        write_lines(insightface, list(swapped.items()))
        assert_right_ids(insightface, load_record_index(insightface))


def test_a_missing_index_is_rebuilt_with_a_warning_and_the_same_keys(records, caplog):
    expected = load_record_index(records)
    records.with_suffix(".idx").unlink()
    index = load_record_index(records)
    assert_right_ids(records, index)
    np.testing.assert_array_equal(index.keys, expected.keys)
    np.testing.assert_array_equal(index.limits, expected.limits)
    assert (index.source, index.num_records, index.num_identities) == (
        "scan",
        expected.num_records,
        expected.num_identities,
    )
    assert "train.idx does not exist" in index.reason
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert index.reason in warning.getMessage()


def test_an_index_of_the_images_alone_gives_the_same_ids(records, caplog):
    complete = load_record_index(records)
    write_record_index(complete, records.with_suffix(".images.idx"))
    filtered = load_record_index(records, records.with_suffix(".images.idx"))
    assert_right_ids(records, filtered)
    np.testing.assert_array_equal(filtered.offsets, complete.offsets)
    np.testing.assert_array_equal(filtered.keys, complete.keys)
    assert (filtered.source, caplog.records) == ("idx", [])


@pytest.mark.parametrize("left_out", [{0}, {0, 10, 11, 12, 13}, {10, 11, 12, 13}, {0, 10, 12}])
def test_leaving_out_header_and_identity_records_changes_nothing(insightface, caplog, left_out):
    assert NUM_IMAGES == 9
    write_lines(insightface, [line for line in read_lines(insightface) if line[0] not in left_out])
    index = load_record_index(insightface)
    assert_right_ids(insightface, index)
    assert (index.source, caplog.records) == ("idx", [])


def test_header_and_identity_records_are_none_and_are_counted(insightface):
    index = load_record_index(insightface)
    assert (len(index), index.num_records, index.num_identities) == (9, 14, 4)
    assert index.keys.tolist() == list(range(1, 10))
    assert not any(array.flags.writeable for array in (index.offsets, index.limits, index.keys))


def test_keys_beyond_float32_are_told_apart_by_structure(tmp_path):
    first_identity = (1 << 24) + 1  # stored as 2**24
    with RecordWriter(tmp_path / "train.rec") as writer:
        for i in range(NUM_IMAGES):
            writer.write(first_identity - NUM_IMAGES + i, body(i), labels=(0.0, 1.0))
        writer.write(first_identity, b"", labels=(1.0, 2.0))
        writer.write(0, b"", labels=(float(first_identity), float(first_identity + 1)))
    index = load_record_index(tmp_path / "train.rec")
    assert_right_ids(tmp_path / "train.rec", index)
    assert index.source == "idx"


def _without(position: int) -> Callable[[Lines], Lines]:
    return lambda lines: lines[:position] + lines[position + 1 :]


def _moved(position: int, by: int) -> Callable[[Lines], Lines]:
    return lambda lines: [(k, at + by if i == position else at) for i, (k, at) in enumerate(lines)]


STALE = {
    "first image missing": (_without(0), "leaves out the record at byte 0"),
    "middle image missing": (_without(4), "leaves out the record at byte"),
    "last image missing": (_without(8), "leaves out the record at byte"),
    "a whole tail missing": (lambda lines: lines[:3], "leaves out the record at byte"),
    "an offset twice": (lambda lines: [*lines, (99, lines[3][1])], "lists one offset twice"),
    "a key twice": (lambda lines: [(lines[1][0], lines[0][1]), *lines[1:]], "lists one key twice"),
    "an offset too low": (_moved(4, -4), "inside the record at byte"),
    "an offset too high": (_moved(4, 8), "leaves out the record at byte"),
    "the first offset wrong": (_moved(0, 4), "leaves out the record at byte 0"),
    "all but the first wrong": (
        lambda lines: [(k, at + 4 * (i > 0)) for i, (k, at) in enumerate(lines[:-1])],
        "leaves out the record at byte",
    ),
    "not a multiple of 4": (_moved(4, 1), "not multiples of 4"),
    "past the end": (lambda lines: [*lines, (99, 1 << 40)], "lists 1 records past the end of the file"),
    "a negative key": (lambda lines: [(-1, lines[0][1]), *lines[1:]], "negative"),
}


@pytest.mark.parametrize("case", STALE)
def test_a_stale_index_is_rebuilt_with_a_warning_that_says_why(tmp_path, caplog, case):
    change, message = STALE[case]
    for layout, write in LAYOUTS.items():
        (tmp_path / layout).mkdir()
        records = write(tmp_path / layout)
        write_lines(records, change(sorted(read_lines(records), key=lambda line: line[1])))
        caplog.clear()
        index = load_record_index(records)
        assert_right_ids(records, index)
        assert index.source == "scan"
        assert message in index.reason
        assert len(caplog.records) == 1
        assert index.reason in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"0\t0\n1\n", "not a list of `key<TAB>offset` lines"),
        (b"0\t0\t0\n", "3 columns"),
        (b"0\t1e3\n", "not a list"),
        (b"0\t99999999999999999999999\n", "not a list"),
        (b"\xff\xfe\x00\x01", "not a list"),
        (b"1" * 1_000_000, "holds fewer records than that"),  # is not read
    ],
)
def test_an_unreadable_index_is_rebuilt_with_a_warning_that_says_why(insightface, caplog, content, message):
    insightface.with_suffix(".idx").write_bytes(content)
    index = load_record_index(insightface)
    assert_right_ids(insightface, index)
    assert message in index.reason
    assert len(caplog.records) == 1


# Part of a record overwritten: (byte in the record, what).
DAMAGE = {
    "magic": (0, b"\0\0\0\0"),
    "length too long": (4, struct.pack("<I", 300)),
    "length too short": (4, struct.pack("<I", 36)),
    "length past the end": (4, struct.pack("<I", (1 << 29) - 1)),
    "part flag": (5, b"\xff\xff\xff"),
    "label count": (8, b"\xff\xff\0\0"),
    "frame and image header lost": (0, bytes(32)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("filtered", [False, True], ids=["complete", "images"])
def test_a_damaged_record_keeps_its_id_and_the_index(records, caplog, filtered, damage):
    sound = load_record_index(records)
    if filtered:
        write_record_index(sound, records.with_suffix(".idx"))
    content = records.read_bytes()
    where, data = DAMAGE[damage]
    for damaged in (0, 4, NUM_IMAGES - 1):
        overwrite(records, int(sound.offsets[damaged]) + where, data)
        index = load_record_index(records)
        assert index.source == "idx"
        np.testing.assert_array_equal(index.offsets, sound.offsets)
        for i in set(range(NUM_IMAGES)) - {damaged}:
            assert read_body(records, index, i) == body(i)
        with pytest.raises(RecordError) as caught:
            read_body(records, index, damaged)
        assert (caught.value.record_id, caught.value.offset) == (damaged, sound.offsets[damaged])
        records.write_bytes(content)
    assert caplog.records == []


HEADER_DAMAGE = [*DAMAGE.values(), *((32, struct.pack("<f", number)) for number in (5, 11, 99, np.nan)), (8, b"\0")]


@pytest.mark.parametrize(("where", "data"), HEADER_DAMAGE)
def test_a_damaged_header_record_is_mentioned_and_changes_no_id(insightface, caplog, where, data):
    sound = load_record_index(insightface)
    overwrite(insightface, dict(read_lines(insightface))[0] + where, data)
    index = load_record_index(insightface)
    np.testing.assert_array_equal(index.offsets, sound.offsets)
    assert "header" in caplog.text


def test_a_damaged_file_without_index_stops_at_the_damage(records):
    sound = load_record_index(records)
    records.with_suffix(".idx").unlink()
    overwrite(records, int(sound.offsets[5]), b"\0")
    with pytest.raises(BadMagicError) as caught:
        load_record_index(records)
    assert (caught.value.record_id, caught.value.offset) == (5, sound.offsets[5])


def test_a_file_cut_inside_an_image_is_refused_and_one_cut_inside_the_last_record_is_read(records):
    sound = load_record_index(records)
    content = records.read_bytes()
    records.write_bytes(content[: int(sound.offsets[4]) + 20])
    with pytest.raises(TruncatedRecordError) as caught:
        load_record_index(records)
    assert (caught.value.record_id, caught.value.offset) == (4, sound.offsets[4])

    records.write_bytes(content[:-4])
    index = load_record_index(records)
    np.testing.assert_array_equal(index.offsets, sound.offsets)


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory) -> dict[str, tuple[bytes, bytes]]:
    """Record file and index of each layout."""
    written = {layout: write(tmp_path_factory.mktemp(layout)) for layout, write in LAYOUTS.items()}
    return {layout: (path.read_bytes(), path.with_suffix(".idx").read_bytes()) for layout, path in written.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("examples")


def damaged(data: st.DataObject, content: bytearray, lines: list[bytes]) -> tuple[bytes, bytes]:
    """One thing went wrong with the records or their index."""
    what = data.draw(st.sampled_from(["record bit", "cut records", "index byte", "cut index", "lost line"]))
    index = bytearray(b"".join(lines))
    if what == "record bit":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif what == "cut records":
        del content[data.draw(st.integers(0, len(content))) :]
    elif what == "index byte":
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.sampled_from(b"0123456789\t\n -"))
    elif what == "cut index":
        del index[data.draw(st.integers(0, len(index))) :]
    else:
        lost = data.draw(st.integers(0, len(lines) - 1))
        index = bytearray(b"".join(lines[:lost] + lines[lost + 1 :]))
    return bytes(content), bytes(index)


@settings(max_examples=80)
@given(st.data())
def test_ids_never_shift_whatever_happens_to_one_of_the_files(sound_files, folder, data):
    content, index_content = sound_files[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    content, index_content = damaged(data, bytearray(content), index_content.splitlines(keepends=True))
    records = folder / "train.rec"
    records.write_bytes(content)
    records.with_suffix(".idx").write_bytes(index_content)
    with contextlib.suppress(RecordError):
        index = load_record_index(records)
        assert len(index) == NUM_IMAGES or index.source == "scan"
        for i in range(len(index)):
            with contextlib.suppress(RecordError):
                found = read_body(records, index, i)
                assert len(found) < 12 or Counter(found).most_common(1)[0][0] == i, "damage may change it, not swap it"


def test_a_large_index_loads_in_seconds_and_a_gap_in_it_is_found(tmp_path):
    count = 100_000
    frame = struct.pack("<IIIfQQ", 0xCED7230A, 28, 0, 3.0, 0, 0) + b"\xff\xd8\xff\xe0"
    records = tmp_path / "train.rec"
    records.write_bytes(frame * count)
    offsets = np.arange(count) * len(frame)
    lines = [f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist())]
    records.with_suffix(".idx").write_text("".join(lines))

    started = time.process_time()
    index = load_record_index(records)
    assert time.process_time() - started < 2, "seconds of processor time for a hundred thousand lines"
    np.testing.assert_array_equal(index.offsets, offsets)
    assert index.source == "idx"

    del lines[23_456]
    records.with_suffix(".idx").write_text("".join(lines))
    index = load_record_index(records)
    np.testing.assert_array_equal(index.offsets, offsets)
    assert (index.source, index.reason.endswith(f"leaves out the record at byte {offsets[23_456]}")) == ("scan", True)


@pytest.mark.realdata
def test_real_datasets_give_the_same_ids_from_index_filtered_index_and_scan(data_dir, tmp_path):
    files = sorted(data_dir.glob("*/train.rec")) + sorted(data_dir.glob("*/*/train.rec"))
    assert files, "no train.rec"
    for number, records in enumerate(files):
        index = load_record_index(records)
        assert index.source == "idx"
        folder = tmp_path / str(number)
        folder.mkdir()
        write_record_index(index, folder / "images.idx")
        filtered = load_record_index(records, folder / "images.idx")
        (folder / "train.rec").symlink_to(records.resolve())
        scanned = load_record_index(folder / "train.rec")
        assert (filtered.source, scanned.source) == ("idx", "scan")
        for other in (filtered, scanned):
            np.testing.assert_array_equal(other.offsets, index.offsets)
            np.testing.assert_array_equal(other.keys, index.keys)
