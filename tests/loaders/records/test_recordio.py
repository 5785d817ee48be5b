"""RecordIO: exact bytes both ways, against real files and a second, straightforward encoder; damage; processes."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.loaders.records.recordio import (
    MAX_PARTS,
    BadFlagError,
    BadLengthError,
    BadMagicError,
    Record,
    RecordFile,
    RecordWriter,
    StaleIndexError,
    TruncatedRecordError,
    write_insightface_records,
)

MAGIC = struct.pack("<I", 0xCED7230A)
BODIES = [b"\xff\xd8\xff" + bytes([i]) * (20 + i) for i in range(6)]  # lengths with every remainder by 4


def encode_record(payload: bytes) -> bytes:
    """A second encoder, word by word as the format's definition reads, to compare the writer with."""
    parts, part = [], b""
    for start in range(0, len(payload), 4):
        word = payload[start : start + 4]
        if word == MAGIC:
            parts.append(part)
            part = b""
        else:
            part += word
    parts.append(part)
    encoded = b""
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        encoded += MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
    return encoded


def encode_payload(record: Record) -> bytes:
    label = record.labels[0] if record.flag == 0 else 0.0
    vector = b"" if record.flag == 0 else struct.pack(f"<{record.flag}f", *record.labels)
    return struct.pack("<IfQQ", record.flag, label, record.id, record.id2) + vector + record.body


def write_bodies(path: Path) -> list[int]:
    with RecordWriter(path) as writer:
        return [writer.write(key, body, labels=(float(key), 1.0)) for key, body in enumerate(BODIES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples of a property test."""
    return tmp_path_factory.mktemp("examples")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


float32s = st.floats(width=32, allow_nan=False) | st.just(struct.unpack("<f", MAGIC)[0])
ids = st.integers(0, 2**64 - 1) | st.just(int.from_bytes(MAGIC * 2, "little"))
# Pieces of four bytes keep the magic aligned, single bytes move it off.
bodies = st.lists(st.sampled_from([MAGIC, b"abcd", b"x", MAGIC[:3], MAGIC[1:], b"\0\0\0\0"]), max_size=12).map(b"".join)
records = st.builds(
    lambda scalar, vector, id_, id2, body: Record(tuple(vector) if vector else (scalar,), id_, id2, len(vector), body),
    float32s,
    st.lists(float32s, max_size=5),
    ids,
    ids,
    bodies,
)


@settings(max_examples=25)  # each flushes to disk three times
@given(st.lists(records, max_size=5))
def test_any_records_round_trip_and_are_encoded_by_the_definition(folder, written):
    path = folder / "any.rec"
    with RecordWriter(path, overwrite=True) as writer:
        offsets = [
            writer.write(
                key,
                record.body,
                labels=record.labels if record.flag else record.labels[0],
                id=record.id,
                id2=record.id2,
            )
            for key, record in enumerate(written)
        ]
    assert path.read_bytes() == b"".join(encode_record(encode_payload(record)) for record in written)

    file = RecordFile(path)
    limits = [*offsets, file.size][1:]
    assert [file.read(offset, limit=limit) for offset, limit in zip(offsets, limits, strict=True)] == written
    assert [file.read(offset) for offset in offsets] == written
    scanned = list(file.scan())
    assert [(s.offset, s.next_offset) for s in scanned] == list(zip(offsets, limits, strict=True))
    assert [(s.id, s.flag, s.body_bytes) for s in scanned] == [(r.id, r.flag, len(r.body)) for r in written]


@pytest.mark.realdata
def test_a_real_im2rec_file_reads_as_listed(data_dir):
    folders = sorted(path.parent for path in (data_dir / "recordio").glob("*/expected.json"))
    assert folders, "no folder with expected.json"
    for folder in folders:
        file = RecordFile(folder / "train.rec")
        expected = json.loads((folder / "expected.json").read_text())
        assert [s.offset for s in file.scan()] == [entry["offset"] for entry in expected]
        for entry in expected:
            record = file.read(entry["offset"])
            assert (record.flag, record.id, record.id2) == (entry["flag"], entry["id"], entry["id2"])
            assert list(record.labels) == entry["labels"]
            assert (len(record.body), zlib.crc32(record.body)) == (entry["body_bytes"], entry["body_crc32"])


@pytest.mark.realdata
def test_rewriting_a_real_insightface_dataset_gives_the_same_bytes(data_dir, tmp_path):
    source = data_dir / "faces"
    file = RecordFile(source / "train.rec")
    images = [s for s in file.scan() if not s.holds_no_image]
    samples = ((int(record.labels[0]), record.body) for record in (file.read(s.offset) for s in images))
    height, width = (int(number) for number in (source / "property").read_text().split(",")[1:3])

    write_insightface_records(tmp_path, samples, image_size=(height, width))

    assert (tmp_path / "train.rec").read_bytes() == (source / "train.rec").read_bytes()
    assert (tmp_path / "property").read_bytes() == (source / "property").read_bytes()
    assert sorted((tmp_path / "train.idx").read_text().split("\n")) == sorted(
        (source / "train.idx").read_text().split("\n")
    )


def test_the_insightface_layout_is_the_documented_one(tmp_path):
    samples = [(0, b"one"), (0, b"two"), (1, b"three"), (2, b"four"), (2, b"five"), (2, b"six")]
    path = write_insightface_records(tmp_path, samples, image_size=(96, 112))
    file = RecordFile(path)
    stored = {record.id: record for record in (file.read(s.offset) for s in file.scan())}

    assert list(stored) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0], "keys in physical order, the header last"
    assert [(stored[k].flag, stored[k].labels, stored[k].body) for k in range(1, 7)] == [
        (2, (float(label), 1.0), body) for label, body in samples
    ]
    assert [(stored[k].labels, stored[k].body) for k in (7, 8, 9)] == [((1, 3), b""), ((3, 4), b""), ((4, 7), b"")]
    assert (stored[0].flag, stored[0].labels, stored[0].body) == (2, (7.0, 10.0), b"")
    assert (tmp_path / "property").read_text() == "3,96,112\n"
    lines = [tuple(map(int, line.split("\t"))) for line in (tmp_path / "train.idx").read_text().splitlines()]
    assert {key: file.read(offset).id for key, offset in lines} == {key: key for key in range(10)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "need 1 to"),
        ([(1, b"x")], "got 1 for image 1"),
        ([(0, b"x"), (2, b"x")], "got 2 for image 2"),
        ([(0, b"x"), (1, b"x"), (0, b"x")], "got 0 for image 3"),
        ([(0, b"")], "image 1 of identity 0 is empty"),
    ],
)
def test_the_insightface_writer_refuses_what_the_layout_cannot_hold_and_leaves_nothing(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        write_insightface_records(tmp_path, samples, image_size=(112, 112))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_keeps_the_old_files(tmp_path):
    path = tmp_path / "a.rec"
    write_bodies(path)
    before = path.read_bytes(), path.with_suffix(".idx").read_bytes()

    def interrupted() -> None:
        with RecordWriter(path, overwrite=True) as writer:
            writer.write(0, b"new", labels=0.0)
            assert path.read_bytes() == before[0], "nothing shows under its name before it is complete"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_bytes(), path.with_suffix(".idx").read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]


def test_existing_files_are_replaced_only_when_asked(tmp_path):
    path = write_insightface_records(tmp_path, [(0, b"x")], image_size=(112, 112))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        RecordWriter(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_insightface_records(tmp_path, [(0, b"y")], image_size=(112, 112))
    assert path.read_bytes() == before
    write_insightface_records(tmp_path, [(0, b"y"), (1, b"z")], image_size=(112, 112), overwrite=True)
    assert RecordFile(path).read(0).body == b"y"
    assert (tmp_path / "property").read_text() == "2,112,112\n"


def test_the_writer_refuses_bad_arguments_and_goes_on(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.rec"):
        RecordWriter(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="inside its `with` block"):
        RecordWriter(tmp_path / "a.rec").write(0, b"", labels=0.0)
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in (5, 1, 3):
            writer.write(key, b"", labels=0.0)
        for key in (5, 1, 3):
            with pytest.raises(ValueError, match="used twice"):
                writer.write(key, b"", labels=0.0)
        for key, labels, ids in [
            (-1, 0.0, {}),
            (6, (), {}),
            (6, 1e39, {}),
            (6, 0.0, {"id": -1}),
            (6, 0.0, {"id2": 1 << 64}),
        ]:
            with pytest.raises(ValueError, match=r"record keys|1 to 65536 labels|do not fit"):
                writer.write(key, b"", labels=labels, **ids)
        writer.write(2, b"last", labels=0.0)
    assert [s.id for s in RecordFile(tmp_path / "a.rec").scan()] == [5, 1, 3, 2]
    assert [line.split("\t")[0] for line in (tmp_path / "a.idx").read_text().splitlines()] == ["1", "2", "3", "5"]


# What is written where in record 2, and the error that must come of it.
LENGTH = 8 + 24 + 8 + len(BODIES[2])
DAMAGE = {
    "magic": (0, b"\0\0\0\0", BadMagicError, "expected magic 0xced7230a"),
    "part flag beyond 3": (4, struct.pack("<I", 5 << 29 | LENGTH - 8), BadFlagError, "part flag 5"),
    "part flag out of sequence": (
        4,
        struct.pack("<I", 3 << 29 | LENGTH - 8),
        BadFlagError,
        "part flag 3 .* expected 0 or 1",
    ),
    "first part without a second": (4, struct.pack("<I", 1 << 29 | LENGTH - 8), BadLengthError, "multiple of 4"),
    "length past the next record": (4, struct.pack("<I", LENGTH), BadLengthError, "past the next record"),
    "length short by its last byte": (4, struct.pack("<I", LENGTH - 8 - 1), BadLengthError, "is wrong"),
    "no room for an image header": (4, struct.pack("<I", 4), BadLengthError, "no record follows"),
    "label count of gigabytes": (8, struct.pack("<I", 0xFFFFFFFF), BadFlagError, "label count 4294967295"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_kind_of_damage_is_a_named_error_that_says_where(tmp_path, damage):
    path = tmp_path / "a.rec"
    offsets = write_bodies(path)
    where, data, kind, message = DAMAGE[damage]
    overwrite(path, offsets[2] + where, data)
    file = RecordFile(path)

    with pytest.raises(kind, match=message) as caught:
        file.read(offsets[2], key=20, record_id=2, limit=offsets[3])
    error = caught.value
    assert type(error) is kind
    assert (error.path, error.key, error.record_id, error.offset) == (path, 20, 2, offsets[2])
    assert str(error).startswith(f"{path}: record 2 (key 20) at byte {offsets[2]}: {error.reason}. ")
    for i in (0, 1, 3, 4):
        assert file.read(offsets[i], limit=offsets[i + 1]).body == BODIES[i], "the others still read"


def test_a_payload_without_room_for_the_image_header_is_an_error(tmp_path):
    (tmp_path / "a.rec").write_bytes(encode_record(b"short"))
    file = RecordFile(tmp_path / "a.rec")
    with pytest.raises(BadLengthError, match="too few for the image header"):
        file.read(0)
    assert [s.body_bytes for s in file.scan()] == [-1]


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([(1, b"a" * 24), (1, b"b")], BadFlagError),
        ([(1, b"a" * 24), (2, b"b" * 4), (0, b"c")], BadFlagError),
        ([(1, b"a" * 24), (2, b"bb"), (3, b"c")], BadLengthError),
        ([(1, b"a" * 24), (2, b"b" * 4)], TruncatedRecordError),
    ],
)
def test_parts_out_of_sequence_are_errors(tmp_path, parts, kind):
    encoded = b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4) for flag, part in parts
    )
    (tmp_path / "a.rec").write_bytes(encoded)
    with pytest.raises(kind):
        RecordFile(tmp_path / "a.rec").read(0)


def test_a_chain_of_very_many_parts_is_an_error_and_is_not_written(tmp_path):
    """A thousand frames that lead into one chain of a million parts would be a thousand million steps."""
    for middles, allowed in ((MAX_PARTS - 2, True), (MAX_PARTS - 1, False)):
        encoded = MAGIC + struct.pack("<I", 1 << 29 | 24) + bytes(24)
        encoded += (MAGIC + struct.pack("<I", 2 << 29)) * middles + MAGIC + struct.pack("<I", 3 << 29)
        (tmp_path / "a.rec").write_bytes(encoded)
        if allowed:
            assert len(RecordFile(tmp_path / "a.rec").read(0).body) == 4 * (MAX_PARTS - 1)
        else:
            with pytest.raises(BadFlagError, match=f"more than {MAX_PARTS} parts"):
                RecordFile(tmp_path / "a.rec").read(0)
    with RecordWriter(tmp_path / "b.rec") as writer, pytest.raises(ValueError, match="holds the magic 1024 times"):
        writer.write(0, MAGIC * MAX_PARTS, labels=0.0)


def test_a_file_cut_anywhere_is_an_error_for_the_cut_record_only(tmp_path):
    path = tmp_path / "a.rec"
    offsets = write_bodies(path)
    content = path.read_bytes()
    for size in range(offsets[4] + 1, len(content)):
        if size == offsets[5]:
            continue  # cut between two records
        path.write_bytes(content[:size])
        file = RecordFile(path)
        last = 5 if size > offsets[5] else 4
        with pytest.raises(TruncatedRecordError) as caught:
            file.read(offsets[last], limit=len(content))
        assert caught.value.offset == offsets[last]
        assert file.read(offsets[3]).body == BODIES[3]
        with pytest.raises(TruncatedRecordError) as caught:
            list(file.scan())
        assert (caught.value.offset, caught.value.record_id) == (offsets[last], last)


def test_offsets_where_no_record_can_be_are_errors(tmp_path):
    path = tmp_path / "a.rec"
    write_bodies(path)
    for offset in (-4, 1, 10**12, 2**63):
        with pytest.raises((TruncatedRecordError, BadMagicError)):
            RecordFile(path).read(offset)


def test_a_record_that_skips_another_image_reports_the_index(tmp_path):
    path = tmp_path / "a.rec"
    offsets = write_bodies(path)
    with pytest.raises(StaleIndexError, match=f"follows at byte {offsets[2]}"):
        RecordFile(path).read(offsets[1], limit=offsets[3])


def test_a_scan_keeps_the_place_of_a_record_with_a_damaged_label_count(tmp_path):
    path = tmp_path / "a.rec"
    offsets = write_bodies(path)
    overwrite(path, offsets[3] + 8, struct.pack("<I", 77777))
    scanned = list(RecordFile(path).scan())
    assert [s.offset for s in scanned] == offsets
    assert [s.body_bytes < 0 for s in scanned] == [False, False, False, True, False, False]


def test_offsets_beyond_32_bits_and_part_flags_there_are_read_right(tmp_path):
    path = tmp_path / "sparse.rec"
    start = 5 << 30
    whole = encode_record(struct.pack("<IfQQ", 0, 7.0, 1, 2) + b"far out")
    split = encode_record(struct.pack("<IfQQ", 0, 8.0, 1, 2) + MAGIC + b"two")
    with path.open("wb") as file:
        file.seek(start)
        file.write(whole + split)
        file.truncate(7 << 30)  # room behind, so that a part flag taken for a length would stay inside the file
    records = RecordFile(path)
    assert records.read(start).body == b"far out"
    assert records.read(start + len(whole)).body == MAGIC + b"two"
    records.close()


def test_record_errors_cross_process_boundaries():
    error = BadLengthError(Path("a.rec"), 12, "reason", 3, 2)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (BadLengthError, str(error))
    assert (copy.path, copy.offset, copy.reason, copy.key, copy.record_id) == (Path("a.rec"), 12, "reason", 3, 2)
