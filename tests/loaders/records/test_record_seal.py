"""A sealed file: any changed bit is found and named, by whoever verifies and by whoever loads, and nothing else is."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from adadistill.loaders.dataset_tools.record_check import check_images, damaged_spans
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_seal import (
    ChecksumError,
    RecordSeal,
    SealError,
    open_seal,
    seal_path,
    write_seal,
)
from adadistill.loaders.records.recordio import RecordFile, write_insightface_records

COUNT, IDENTITIES = 60, 6


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """insightface's layout: images, identity records and a header record."""
    noise = np.random.RandomState(0)
    images = noise.randint(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    samples = [(number * IDENTITIES // COUNT, simplejpeg.encode_jpeg(image)) for number, image in enumerate(images)]
    return write_insightface_records(tmp_path, samples, image_size=(16, 16))


def _seal(records: Path) -> RecordSeal:
    return write_seal(RecordFile(records), ImageRecords(records).index)


def test_a_seal_that_grew_beyond_its_records_is_refused_before_it_is_read(records: Path):
    _seal(records)
    os.truncate(seal_path(records), 1 << 40)
    with pytest.raises(SealError, match="more than the"):
        open_seal(records)


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        content[bit // 8] ^= 1 << (bit % 8)


def test_the_spans_tile_the_file_and_the_images_are_the_record_ids(records: Path):
    seal, index = _seal(records), ImageRecords(records).index
    assert seal.num_images == COUNT
    assert seal.starts[0] == 0
    assert seal.starts[-1] == records.stat().st_size
    assert (np.diff(seal.starts) > 0).all()
    assert np.array_equal(seal.starts[seal.image_spans], index.offsets)
    body = records.read_bytes()
    for span in range(seal.num_spans):
        assert zlib.crc32(body[seal.starts[span] : seal.starts[span + 1]]) == seal.crc32[span]


@pytest.mark.slow
def test_single_bit_flips_are_each_reported_with_their_record(records: Path):
    seal, file = _seal(records), RecordFile(records)
    assert list(damaged_spans(file, seal, range(seal.num_spans))) == []
    draws = np.random.RandomState(1)
    bits = draws.randint(0, 8 * records.stat().st_size, 1000).tolist()
    for bit in bits:
        _flip(records, bit)
        span = int(np.searchsorted(seal.starts, bit // 8, side="right")) - 1
        around = range(max(0, span - 1), min(seal.num_spans, span + 2))
        found = list(damaged_spans(file, seal, around))
        assert [bad.record_id for bad in found] == [seal.record_of(span)]
        assert found[0].offset == seal.starts[span]
        _flip(records, bit)
    assert list(damaged_spans(file, seal, range(seal.num_spans))) == []


@pytest.mark.slow
def test_a_flip_anywhere_is_reported_by_a_whole_verification_and_by_loading(records: Path):
    seal = _seal(records)
    draws = np.random.RandomState(2)
    for bit in draws.randint(0, 8 * records.stat().st_size, 25).tolist():
        _flip(records, bit)
        span = int(np.searchsorted(seal.starts, bit // 8, side="right")) - 1
        record_id = seal.record_of(span)
        found = check_images(records, workers=2)
        assert [bad.record_id for bad in found.bad if bad.kind == "checksum"] == [record_id]
        if record_id is not None:
            images = ImageRecords(records)
            with pytest.raises(ChecksumError, match=rf"record {record_id} \(key {record_id + 1}\)"):
                images.read(record_id)
            images.read((record_id + 1) % COUNT)
        _flip(records, bit)
    assert check_images(records).bad == ()


def test_every_record_of_a_clean_file_reads(records: Path):
    plain = [ImageRecords(records).read(record_id) for record_id in range(COUNT)]
    _seal(records)
    sealed = ImageRecords(records)
    assert sealed.sealed
    assert [sealed.read(record_id) for record_id in range(COUNT)] == plain
    assert not ImageRecords(records, seal="ignore").sealed
    assert ImageRecords(records, seal="require").sealed


def test_where_a_seal_is_required_none_is_an_error(records: Path):
    with pytest.raises(SealError, match=r"train\.rec\.seal is not there.*adadistill data check --seal"):
        len(ImageRecords(records, seal="require"))
    assert not ImageRecords(records).sealed


def test_batches_are_checked_against_the_seal_too(records: Path):
    """Bits deep in a body, which decode to something all the same."""
    _seal(records)
    last = int(ImageRecords(records).index.limits[3]) - 12
    _flip(records, 8 * last)
    checked = CheckedRecords(ImageRecords(records), 16)
    _, bodies = checked.read_plain(np.arange(COUNT))
    assert [checked.decode_plain(i, body) is None for i, body in enumerate(bodies)] == [i == 3 for i in range(COUNT)]
    refused: list[int] = []

    def damaged(record_id: int, error: ValueError) -> bytes:
        assert isinstance(error, ChecksumError)
        refused.append(record_id)
        return b""

    checked.feedable_batch(np.arange(COUNT), damaged)
    assert refused == [3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-1],
        lambda body: body + b"\0",
        lambda body: b"X" + body[1:],
        lambda body: body[:40] + bytes([body[40] ^ 1]) + body[41:],
        lambda body: body[:16] + (1 << 62).to_bytes(8, "little") + body[24:],
        lambda body: b"",
    ],
)
def test_a_damaged_seal_is_refused_and_never_passed_over(records: Path, damage):
    _seal(records)
    path = seal_path(records)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SealError, match=r"train\.rec\.seal is damaged"):
        open_seal(records)
    with pytest.raises(SealError, match="is damaged"):
        ImageRecords(records).read(0)


def test_a_seal_of_another_file_is_refused_by_name(records: Path, tmp_path: Path):
    _seal(records)
    with records.open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(SealError, match=r"was made for a file of \d+ bytes"):
        ImageRecords(records).read(0)
    with pytest.raises(SealError, match="cut, added to, or replaced"):
        check_images(records)


def test_a_seal_serves_the_file_with_an_index_of_images_alone_and_with_none(records: Path):
    _seal(records)
    index = records.with_suffix(".idx")
    lines = [line for line in index.read_text().splitlines() if 1 <= int(line.split()[0]) <= COUNT]
    index.write_text("\n".join(lines) + "\n")
    assert ImageRecords(records).sealed
    index.unlink()
    assert ImageRecords(records).sealed
