"""Images come back by id as they were packed, from plain `.npy` files; labels and records are believed when checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_stores import RECORDS, PackedFace, build, small_packed_header

from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError
from adadistill.loaders.block_store.packed_header import HEAD_BYTES
from adadistill.loaders.block_store.packed_images import PackedStore, PackWriter

FACE, COUNT, CLASSES = PackedFace(), 23, 7
IMAGES = FACE.expected(range(COUNT))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return build(FACE, tmp_path_factory.mktemp("packed") / "store")


def test_a_store_says_what_it_holds(packed):
    store = PackedStore(packed)
    assert (store.layout, store.num_records, store.image_size, store.image_bytes) == ("rgb", COUNT, 4, 48)
    assert store.labels.dtype == np.int64
    np.testing.assert_array_equal(store.labels, np.arange(COUNT) % CLASSES)
    assert not store.labels.flags.writeable


@pytest.mark.parametrize("shard_records", [10, 100])
def test_rows_come_back_in_the_order_of_their_ids(tmp_path, shard_records):
    store = PackedStore(build(FACE, tmp_path / "store", small_packed_header(shard_records=shard_records)))
    for ids in (range(COUNT), [22, 0, 7, 6, 21, 5, 4], [3, 3, 3], [22], []):
        rows = store.gather(np.array(ids, np.int32))
        assert (rows.shape, rows.dtype) == ((len(ids), 48), np.uint8)
        np.testing.assert_array_equal(rows, IMAGES[np.array(ids, np.int64)])


def test_rows_go_where_they_are_asked_to(packed):
    store = PackedStore(packed)
    buffer = np.zeros((4, 48), np.uint8)
    view = buffer[1:3]
    assert store.gather(np.array([20, 1]), view) is view
    np.testing.assert_array_equal(buffer[1:3], IMAGES[[20, 1]])
    assert not buffer[[0, 3]].any()
    store.gather([], buffer[:0])
    for wrong in (buffer[:3], buffer[:2].astype(np.int8), buffer[:2, 1:]):
        with pytest.raises(ValueError, match="out must be writeable uint8"):
            store.gather([20, 1], wrong)
    buffer.flags.writeable = False
    with pytest.raises(ValueError, match="got read-only"):
        store.gather([20, 1, 2, 3], buffer)


def test_ids_that_are_none_are_named(packed):
    store = PackedStore(packed)
    with pytest.raises(IndexError, match=r"must be in \[0, 23\), got -1, 23"):
        store.gather([0, -1, 23])
    for wrong in ([[1]], [0.5], [True]):
        with pytest.raises(ValueError, match=r"must be \(n,\) integers"):
            store.gather(np.array(wrong))


def test_files_are_plain_npy(packed):
    shards = [np.load(path, allow_pickle=False) for path in sorted(packed.glob("shard-*.npy"))]
    assert [len(shard) for shard in shards] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(shards), IMAGES)
    np.testing.assert_array_equal(np.load(packed / "labels.npy", allow_pickle=False), np.arange(COUNT) % CLASSES)


@pytest.mark.parametrize(
    ("name", "place", "body", "said"),
    [
        ("labels.npy", HEAD_BYTES + 8 * 12, np.int64(4).tobytes(), r"beside it in labels.npy is damaged"),  # was 5
        ("labels.npy", HEAD_BYTES + 8 * 11, np.int64(CLASSES).tobytes(), r"record 11 has label 7, not in \[0, 7\)"),
        ("shard-00002.npy", 70, b"\0", r"shard-00002\.npy is damaged: its first 128 bytes"),
    ],
)
def test_labels_and_heads_are_believed_when_checked(packed, tmp_path, name, place, body, said):
    folder = Path(shutil.copytree(packed, tmp_path / "store"))
    with (folder / name).open("r+b") as file:
        file.seek(place)
        file.write(body)
    with pytest.raises(StoreDamagedError, match=said):
        PackedStore(folder).check()


def test_blocks_of_a_wrong_shape_or_label_are_refused(tmp_path):
    images, labels = IMAGES[:5], np.arange(5)
    with PackWriter(tmp_path / "store", small_packed_header(), main=True) as writer:
        for wrong in ((images[:4], labels), (images.astype(np.int8), labels), (images[:, ::-1], labels)):
            with pytest.raises(ValueError, match=r"needs contiguous uint8 \(5, 48\)"):
                writer.write_block(0, *wrong)
        for wrong_labels in (labels[:4], labels - 2, labels + 3):
            with pytest.raises(ValueError, match=r"needs 5 labels in \[0, 7\) or -1"):
                writer.write_block(0, images, wrong_labels)
        assert writer.missing_blocks() == 5
        writer.write_block(0, images, labels - 1)
        assert writer.damaged_ids()[0] == 0


def test_other_records_are_refused_with_both_sides(packed):
    store = PackedStore(packed)
    own = RECORDS | {"num_records": COUNT}
    store.require(records=own | {"name": "elsewhere.rec"})
    with pytest.raises(StoreError) as error:
        store.require(records=own | {"fingerprint": "ee" * 32, "num_records": 22})
    for part in ("other records", "23 image records", "22 image records", "ee" * 32, "adadistill data pack"):
        assert part in str(error.value)
