"""Filtered and rebuilt `.idx` files, and what DALI's own reader makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from noise_records import jpeg

from adadistill.loaders.dataset_tools.index_files import rebuild_index, write_image_index
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_index import load_record_index
from adadistill.loaders.records.recordio import RecordError, RecordWriter, write_insightface_records

LABELS = [0, 0, 1, 2, 2, 2]


@pytest.fixture
def insightface(tmp_path: Path) -> Path:
    samples = [(label, jpeg(number)) for number, label in enumerate(LABELS)]
    return write_insightface_records(tmp_path, samples, image_size=(16, 16))


def dali_samples(records: Path, index: Path, count: int) -> list[tuple[float, bytes]]:
    """(first label, encoded bytes) of `count` records, as DALI's own reader gives them to a decoder."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded, labels = fn.readers.mxnet(path=[str(records)], index_path=[str(index)])
        pipeline.set_outputs(encoded, labels, fn.decoders.image(encoded))
    pipeline.build()
    found = []
    for _ in range(count):
        body, label, _ = pipeline.run()
        found.append((float(label.at(0).ravel()[0]), body.at(0).tobytes()))
    return found


def test_dali_reads_our_images_and_labels_by_the_filtered_index_and_fails_by_the_whole_one(insightface: Path):
    written = write_image_index(insightface, None, insightface.with_suffix(".images.idx"))
    assert (written.lines, written.left_out, written.keys_from) == (6, 4, "idx")
    records = ImageRecords(insightface)
    wanted = [(float(one.label), one.body) for one in (records.read(number) for number in range(len(records)))]
    assert dali_samples(insightface, written.path, 6) == wanted
    with pytest.raises(RuntimeError):
        dali_samples(insightface, insightface.with_suffix(".idx"), 10)  # an identity record reaches the decoder


def test_dali_reads_records_of_several_parts_by_the_filtered_index(tmp_path: Path):
    magic = (0xCED7230A).to_bytes(4, "little")
    body = jpeg(0)
    marked = body[:2] + b"\xff\xfe\x00\x0a" + b"\0\0" + magic + b"\0\0" + body[2:]  # a comment with the magic at byte 8
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, marked, labels=3.0)
        writer.write(1, body, labels=4.0)
    written = write_image_index(tmp_path / "train.rec", None, tmp_path / "train.images.idx")
    assert dali_samples(tmp_path / "train.rec", written.path, 2) == [(3.0, marked), (4.0, body)]


def test_a_lost_index_comes_back_as_it_was(insightface: Path):
    index = insightface.with_suffix(".idx")
    before = index.read_bytes()
    index.write_text("damaged")
    with pytest.raises(FileExistsError, match="--overwrite"):
        rebuild_index(insightface, index)
    assert rebuild_index(insightface, index, overwrite=True).keys_from == "ids"
    assert index.read_bytes() == before


def test_keys_that_the_headers_do_not_hold_come_from_insightface_s_header_record_or_are_counted(tmp_path: Path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, label in enumerate(LABELS, start=1):
            writer.write(key, jpeg(key), labels=(float(label), 1.0), id=key - 1)
        for key, (first, stop) in enumerate([(1, 3), (3, 4), (4, 7)], start=7):
            writer.write(key, b"", labels=(float(first), float(stop)), id=0)
        writer.write(0, b"", labels=(7.0, 10.0), id=0)
    index = tmp_path / "train.idx"
    before = index.read_bytes()
    assert rebuild_index(tmp_path / "train.rec", index, overwrite=True).keys_from == "header record"
    assert index.read_bytes() == before
    assert load_record_index(tmp_path / "train.rec").num_identities == 3
    with RecordWriter(tmp_path / "odd.rec") as writer:
        for key in (7, 3, 9):
            writer.write(key, jpeg(key), labels=1.0, id=5)
    written = rebuild_index(tmp_path / "odd.rec", tmp_path / "new.idx")
    assert (written.keys_from, written.images) == ("ordinals", 3)
    assert load_record_index(tmp_path / "odd.rec", tmp_path / "new.idx").keys.tolist() == [0, 1, 2]


def test_nothing_that_is_read_is_written_over(insightface: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in (insightface, insightface.with_suffix(".idx"))}
    for target in before:
        with pytest.raises(ValueError, match="and stays"):
            write_image_index(insightface, None, target, overwrite=True)
    with pytest.raises(ValueError, match="is the record file"):
        rebuild_index(insightface, insightface, overwrite=True)
    insightface.with_suffix(".images.idx").write_text("mine")
    with pytest.raises(FileExistsError):
        write_image_index(insightface, None, insightface.with_suffix(".images.idx"))
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "train.rec").write_bytes(insightface.read_bytes()[:-7])
    with pytest.raises(RecordError):
        rebuild_index(tmp_path / "cut" / "train.rec", tmp_path / "cut" / "train.idx")
    assert not (tmp_path / "cut" / "train.idx").exists()
