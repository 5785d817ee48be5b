"""Rows come back by id as they were packed; a store that is not whole, or not of the records, is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from small_cache import signed
from small_pack import CLASSES, COUNT, SIDE, pack, small_bodies, write_records

from adadistill.core.teachers import record_binding
from adadistill.loaders.packed_store import (
    PackDamagedError,
    PackedStore,
    PackFormatError,
    PackIncompleteError,
    PackMismatchError,
    PackMissingError,
    header,
)
from adadistill.loaders.packed_store.files import HEAD_BYTES
from adadistill.loaders.records.image_records import ImageRecords


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A store in rgb: five shards of three blocks (two, two and one images), the last of two."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "_BLOCK_RECORDS", 2)
        pack(write_records(folder / "records", small_bodies()), folder / "store", layout="rgb")
    return folder


@pytest.fixture
def folder(packed, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(packed / "store", tmp_path / "store"))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([simplejpeg.decode_jpeg(body, colorspace="RGB").reshape(-1) for body in small_bodies()])


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_a_store_says_what_it_holds(packed):
    store = PackedStore(packed / "store")
    assert (store.layout, store.num_records, store.image_size, store.image_bytes) == (
        "rgb",
        COUNT,
        SIDE,
        3 * SIDE * SIDE,
    )
    assert len(store) == COUNT
    assert store.labels.dtype == np.int64
    np.testing.assert_array_equal(store.labels, np.arange(COUNT) % CLASSES)
    assert not store.labels.flags.writeable


# Sorted, shuffled over all shards, repeated, one, none.
@pytest.mark.parametrize("ids", [range(COUNT), [22, 0, 7, 6, 21, 5, 4], [3, 3, 3], [22], []])
def test_rows_come_back_in_the_order_of_their_ids(packed, pixels, ids):
    store = PackedStore(packed / "store")
    ids = np.array(ids, np.int64)
    rows = store.gather(ids)
    assert (rows.shape, rows.dtype) == ((len(ids), store.image_bytes), np.uint8)
    np.testing.assert_array_equal(rows, pixels[ids])


def test_one_shard_or_many_give_the_same_rows(packed, pixels, tmp_path):
    pack(packed / "records" / "train.rec", tmp_path / "one", layout="rgb", shard_records=100)
    store, ids = PackedStore(tmp_path / "one"), np.random.default_rng(0).permutation(COUNT)
    assert store.header.num_shards == 1
    np.testing.assert_array_equal(store.gather(ids), pixels[ids])


def test_rows_go_where_they_are_asked_to(packed, pixels):
    store = PackedStore(packed / "store")
    buffer = np.zeros((4, store.image_bytes), np.uint8)
    view = buffer[1:3]
    assert store.gather(np.array([20, 1], np.int32), view) is view
    np.testing.assert_array_equal(buffer[1:3], pixels[[20, 1]])
    assert not buffer[[0, 3]].any()
    store.gather([], buffer[:0])
    for wrong in (buffer[:3], buffer[:2].astype(np.int8), buffer[:2, 1:]):
        with pytest.raises(ValueError, match="out must be writeable uint8"):
            store.gather([20, 1], wrong)
    buffer.flags.writeable = False
    with pytest.raises(ValueError, match="got read-only"):
        store.gather([20, 1, 2, 3], buffer)


def test_ids_that_are_none_are_named(packed):
    store = PackedStore(packed / "store")
    with pytest.raises(IndexError, match=r"must be in \[0, 23\), got -1, 23"):
        store.gather([0, -1, 23])
    for wrong in ([[1]], [0.5], [True]):
        with pytest.raises(ValueError, match=r"must be \(n,\) integers"):
            store.gather(np.array(wrong))


def test_threads_gather_at_the_same_time(packed, pixels):
    store, random = PackedStore(packed / "store"), np.random.default_rng(0)
    batches = [random.permutation(COUNT) for _ in range(50)]
    with ThreadPoolExecutor(4) as pool:
        for ids, rows in zip(batches, pool.map(store.gather, batches), strict=True):
            np.testing.assert_array_equal(rows, pixels[ids])


def test_files_are_plain_npy(packed, pixels):
    shards = [np.load(path, allow_pickle=False) for path in sorted((packed / "store").glob("shard-*.npy"))]
    assert [len(shard) for shard in shards] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate(shards), pixels)
    np.testing.assert_array_equal(
        np.load(packed / "store" / "labels.npy", allow_pickle=False), np.arange(COUNT) % CLASSES
    )


def test_a_pickled_store_opens_the_same_files_or_says_that_they_changed(packed, folder):
    text = pickle.dumps(PackedStore(folder))
    np.testing.assert_array_equal(pickle.loads(text).gather([7]), PackedStore(folder).gather([7]))
    shutil.rmtree(folder)
    pack(packed / "records" / "train.rec", folder, layout="rgb", shard_records=7)
    with pytest.raises(PackMismatchError, match="was replaced while it was in use"):
        pickle.loads(text)


def test_verify_finds_every_flipped_bit_and_names_the_records(folder):
    store = PackedStore(folder)
    seen: list[int] = []
    store.verify(progress=seen.append)
    assert seen == list(range(1, 15)), "four shards of three blocks and one of two"
    place = HEAD_BYTES + 4 * store.image_bytes + 17  # the last image of shard 1: record 9, block 5
    flip(folder / "shard-00001.npy", place)
    with pytest.raises(PackDamagedError, match=r"shard-00001.npy: block 5 \(records \[9, 10\)\)"):
        PackedStore(folder).verify()
    PackedStore(folder).verify(0, 5)
    PackedStore(folder).verify(6)
    flip(folder / "shard-00001.npy", place)
    flip(folder / "labels.npy", HEAD_BYTES + 8 * 12)  # 5 becomes 4, a class too
    with pytest.raises(PackDamagedError, match=r"block 7 \(records \[12, 14\)\)"):
        PackedStore(folder).verify()
    for wrong in ((-1, 2), (3, 2), (0, 15)):
        with pytest.raises(IndexError, match=r"blocks must be in \[0, 14\)"):
            store.verify(*wrong)


def test_the_digest_names_the_content(packed, folder, tmp_path):
    assert PackedStore(folder).digest() == PackedStore(packed / "store").digest()
    bodies = small_bodies()
    write_records(tmp_path / "other", [*bodies[1:], bodies[0]])
    pack(tmp_path / "other" / "train.rec", tmp_path / "others", layout="rgb")
    assert PackedStore(folder).digest() != PackedStore(tmp_path / "others").digest()


@pytest.mark.parametrize("name", ["shard-00002.npy", "labels.npy", "blocks.bin"])
@pytest.mark.parametrize("change", [-1, 1])
def test_files_of_another_size_are_refused_by_name(folder, name, change):
    os.truncate(folder / name, (folder / name).stat().st_size + change)
    with pytest.raises(PackDamagedError, match=f"{name} {'was cut short' if change < 0 else 'has grown'}"):
        PackedStore(folder)


@pytest.mark.parametrize("name", ["shard-00002.npy", "labels.npy", "blocks.bin"])
def test_missing_files_pipes_and_folders_are_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(PackDamagedError, match=f"{name} is missing"):
        PackedStore(folder)
    os.mkfifo(folder / name)
    with pytest.raises(PackDamagedError, match=f"{name} is no regular file"):
        PackedStore(folder)


def test_an_npy_head_that_says_something_else_is_refused(folder):
    flip(folder / "shard-00003.npy", 70)
    with pytest.raises(PackDamagedError, match=r"shard-00003\.npy is damaged: its first 128 bytes"):
        PackedStore(folder)


def test_slots_that_are_not_whole_are_refused(folder):
    flip(folder / "blocks.bin", 16 * 5 + 2)
    with pytest.raises(PackDamagedError, match=r"slot of block 5 \(records \[9, 10\)\), at byte 80"):
        PackedStore(folder)


def test_a_store_that_is_not_finished_says_how_much_is_missing(folder):
    with (folder / "blocks.bin").open("r+b") as file:
        file.seek(16 * 3)
        file.write(bytes(16))
        file.seek(16 * 9)
        file.write(bytes(16))
    with pytest.raises(PackIncompleteError, match=r"12 of 14 blocks are done.* block 3 \(records \[5, 7\)\)"):
        PackedStore(folder)


def test_labels_that_are_no_class_are_refused(folder):
    with (folder / "labels.npy").open("r+b") as file:
        file.seek(HEAD_BYTES + 8 * 11)
        file.write(np.int64(CLASSES).tobytes())
    with pytest.raises(PackDamagedError, match=r"record 11 has label 7, not in \[0, 7\) or -1"):
        PackedStore(folder)


def test_what_is_no_store_is_said(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name, reason in (("none", "does not exist"), ("empty", "holds no header.json"), ("file", "is a file")):
        with pytest.raises(PackMissingError, match=f"{reason}.*adadistill data pack"):
            PackedStore(tmp_path / name)
    (folder / "header.json").rename(folder / "header.json.partial")
    with pytest.raises(PackIncompleteError, match="stopped as it began"):
        PackedStore(folder)
    (folder / "header.json").write_bytes(signed({"format": "something", "version": 1}))
    with pytest.raises(PackFormatError, match="its format is 'something'"):
        PackedStore(folder)


def test_a_header_that_was_edited_and_signed_anew_does_not_own_the_blocks(folder):
    content = json.loads((folder / "header.json").read_bytes())
    del content["header_sha256"]
    content["records"]["num_classes"] = 1000
    (folder / "header.json").write_bytes(signed(content))
    with pytest.raises(PackDamagedError, match=r"belongs to another header\.json"):
        PackedStore(folder)


def test_other_records_are_refused_with_both_sides(packed, tmp_path):
    store = PackedStore(packed / "store")
    store.require(records=record_binding(ImageRecords(packed / "records" / "train.rec")) | {"name": "elsewhere.rec"})
    other = record_binding(ImageRecords(write_records(tmp_path, small_bodies(22))))
    with pytest.raises(PackMismatchError) as error:
        store.require(records=other)
    for part in ("23 image records", "22 image records", str(other["fingerprint"]), "adadistill data pack"):
        assert part in str(error.value)
