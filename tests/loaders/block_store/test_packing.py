"""Packing survives being killed anywhere, is the same bytes on any number of ranks, stores nothing it cannot read."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from small_cache import contents, die, run_in_child
from small_pack import CLASSES, COUNT, SIDE, jpeg, pack, picture, saved, small_bodies, write_records

from adadistill.loaders.block_store import jpeg_planes, packed_header, packing
from adadistill.loaders.block_store.errors import StoreError, StoreIncompleteError
from adadistill.loaders.block_store.jpeg_planes import TurboJpegMissingError, planes_available
from adadistill.loaders.block_store.packed_images import PackedStore, PackWriter
from adadistill.loaders.block_store.packing import choose_layout
from adadistill.loaders.pixels import ImageDecodeError, PillowMissingError
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordError

needs_turbojpeg = pytest.mark.skipif(not planes_available(), reason="libturbojpeg is not installed")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Five shards of three blocks (two, two and one images), the last of two: 14 blocks."""
    monkeypatch.setattr(packed_header, "_BLOCK_RECORDS", 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), small_bodies())


@pytest.fixture(scope="module")
def undisturbed(path, tmp_path_factory) -> Path:
    """A store that nothing disturbed."""
    folder = tmp_path_factory.mktemp("stores") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_header, "_BLOCK_RECORDS", 2)
        pack(path, folder, layout="rgb")
    return folder


@pytest.fixture(scope="module")
def whole(undisturbed) -> dict[str, bytes]:
    """Its files."""
    return contents(undisturbed)


def with_damage(folder: Path) -> Path:
    """Records 3 (no image), 8 (cut short) and 22 (a damaged frame) cannot be read."""
    bodies = small_bodies()
    bodies[3], bodies[8] = b"\xff\xd8\xff nothing more", bodies[8][:-200]
    path = write_records(folder, bodies)
    content = bytearray(path.read_bytes())
    content[content.index(bodies[22]) - 32] ^= 1  # its magic number
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("layout", ["rgb", pytest.param("planes", marks=needs_turbojpeg)])
def test_every_image_and_label_is_stored(path, tmp_path, layout):
    result = pack(path, tmp_path / "store", layout=layout)
    assert (result.images, result.missing_blocks, result.damaged, result.stopped) == (COUNT, 0, 0, False)
    store = PackedStore(tmp_path / "store")
    assert (result.is_complete, result.digest) == (True, store.digest())
    store.check()
    luma_or_rgb = "RGB" if layout == "rgb" else "GRAY"
    expected = [simplejpeg.decode_jpeg(body, colorspace=luma_or_rgb).reshape(-1) for body in small_bodies()]
    np.testing.assert_array_equal(store.gather(range(COUNT))[:, : len(expected[0])], expected)
    assert json.loads((tmp_path / "store" / "damaged.json").read_bytes())["damaged"] == []


@pytest.mark.parametrize("at", ["in a block", "at the damaged list"])
def test_a_killed_packing_goes_on_and_ends_with_the_same_bytes(path, tmp_path, whole, at):
    """Every other moment is that of `test_writer`."""
    folder = tmp_path / "store"
    dies_in = ("_write", 8) if at == "in a block" else ("write_damaged_list", 1)

    def dying() -> None:
        real, calls = getattr(PackWriter, dies_in[0]), []

        def counted(*arguments: Any) -> None:
            calls.append(1)
            die() if len(calls) == dies_in[1] else real(*arguments)

        setattr(PackWriter, dies_in[0], counted)
        pack(path, folder, layout="rgb", workers=1)

    assert run_in_child(dying) == -9
    if at == "in a block":
        with pytest.raises(StoreIncompleteError, match="7 of 14 blocks"):
            PackedStore(folder)
    assert pack(path, folder, layout="rgb").is_complete
    assert contents(folder) == whole


def test_folders_of_others_and_other_stores_are_refused_before_any_record_is_read(
    path, tmp_path, undisturbed, whole, monkeypatch
):
    monkeypatch.setattr(packing, "choose_layout", None)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match=r"not empty and holds no packed store \('thesis.tex'\)"):
        pack(path, tmp_path / "theirs")
    assert contents(tmp_path / "theirs") == {"thesis.tex": b"precious"}
    with pytest.raises(StoreError, match="shard_records: 5 stored, 4 wanted"):
        pack(path, undisturbed, layout="rgb", shard_records=4)
    assert contents(undisturbed) == whole


def test_a_packing_that_goes_on_decodes_only_what_is_missing(path, tmp_path, whole):
    folder, asked = tmp_path / "store", []
    first = pack(path, folder, layout="rgb", workers=1, stop=lambda: asked.append(1) or len(asked) > 4)
    assert (first.stopped, first.is_complete, first.digest, first.missing_blocks) == (True, False, None, 10)
    assert first.images == 7, "blocks of two, two, one and two"
    with pytest.raises(StoreIncompleteError, match="4 of 14 blocks"):
        PackedStore(folder)
    assert pack(path, folder, layout="rgb").images == COUNT - 7
    assert contents(folder) == whole
    assert pack(path, folder, layout="rgb").images == 0
    assert contents(folder) == whole


@needs_turbojpeg
def test_a_packing_that_goes_on_keeps_the_layout_without_reading_headers_again(path, tmp_path, monkeypatch):
    pack(path, tmp_path / "store", stop=iter([False, False, False, True]).__next__, workers=1)
    monkeypatch.setattr(packing, "choose_layout", None)
    assert pack(path, tmp_path / "store").header.layout == "planes"


def test_ranks_share_the_blocks_and_end_with_the_same_bytes(path, tmp_path, whole):
    folder, results, errors, world_size = tmp_path / "store", {}, [], 3

    def work(rank: int) -> None:
        try:
            results[rank] = pack(path, folder, layout="rgb", workers=1, rank=rank, world_size=world_size)
        except Exception as error:
            errors.append(error)

    # Rank 0 last: the others wait for its header.
    threads = [threading.Thread(target=work, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(result.images for result in results.values()) == COUNT
    assert any(result.is_complete for result in results.values())
    assert contents(folder) == whole


def test_a_rank_waits_for_the_first_one_and_not_for_ever(path, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "HEADER_WAIT_S", 0.2)
    with pytest.raises(StoreError, match="rank 0 has made no packed store there in 0 s"):
        pack(path, tmp_path / "store", rank=1, world_size=2)
    assert pack(path, tmp_path / "store", rank=1, world_size=2, stop=lambda: True).stopped
    assert not (tmp_path / "store").exists()


def test_the_first_damaged_record_stops_a_packing_by_name(tmp_path):
    path = with_damage(tmp_path / "records")
    with pytest.raises((ImageDecodeError, RecordError), match=r"record 3 \(key 4\)"):
        pack(path, tmp_path / "store", layout="rgb")
    assert pack(path, tmp_path / "store", layout="rgb", on_damaged="skip").damaged == 3, "the next call may skip them"


@pytest.mark.parametrize("layout", ["rgb", pytest.param("planes", marks=needs_turbojpeg)])
def test_skipped_records_are_grey_without_a_label_and_listed(path, tmp_path, caplog, layout):
    records = with_damage(tmp_path / "records")
    result = pack(records, tmp_path / "store", layout=layout, on_damaged="skip")
    store, damaged = PackedStore(tmp_path / "store"), [3, 8, 22]
    assert (result.damaged, result.header.layout) == (3, layout)
    assert np.flatnonzero(store.labels == -1).tolist() == damaged
    assert (store.gather(damaged) == 128).all()
    sound = [place for place in range(COUNT) if place not in damaged]
    np.testing.assert_array_equal(store.labels[sound], np.array(sound) % CLASSES)
    pack(path, tmp_path / "sound", layout=layout)
    np.testing.assert_array_equal(store.gather(sound), PackedStore(tmp_path / "sound").gather(sound))
    assert json.loads((tmp_path / "store" / "damaged.json").read_bytes())["damaged"] == damaged
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [sum(f"record {place} (key {place + 1})" in text for text in warnings) for place in damaged] == [1, 1, 1]


def test_pngs_are_stored_as_they_are_and_never_skipped_for_want_of_a_package(tmp_path, monkeypatch):
    path = write_records(tmp_path / "records", [jpeg(0), saved(1, "PNG")])
    pack(path, tmp_path / "store")
    rows = PackedStore(tmp_path / "store").gather([1])
    np.testing.assert_array_equal(rows[0], picture(1).reshape(-1))

    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    with pytest.raises(PillowMissingError, match=r"record 1 \(key 2\).*is a PNG; reading those needs Pillow"):
        pack(path, tmp_path / "other", layout="rgb", on_damaged="skip", workers=1)


def test_images_of_another_size_are_resized_where_told_and_make_the_store_rgb(tmp_path, monkeypatch):
    path = write_records(tmp_path / "records", [jpeg(0), jpeg(1, 48), saved(2, "PNG", side=40)])
    result = pack(path, tmp_path / "store", wrong_size="resize")
    assert result.header is not None
    assert result.header.layout == "rgb"
    rows = PackedStore(tmp_path / "store").gather([0, 1, 2]).reshape(3, SIDE, SIDE, 3)
    decoding = CheckedRecords(ImageRecords(path), SIDE, wrong_size="resize")
    for record_id in range(3):
        np.testing.assert_array_equal(rows[record_id], decoding.decode(record_id)[1])
    with pytest.raises(StoreError, match=r"--layout rgb"):
        pack(path, tmp_path / "planes", wrong_size="resize", layout="planes")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PillowMissingError, match="resizing needs Pillow"):
        pack(path, tmp_path / "other", wrong_size="resize", on_damaged="skip", workers=1)


def test_arguments_out_of_range_are_refused_before_anything_is_made(path, tmp_path):
    for changes, reason in (
        ({"layout": "yuv"}, "layout must be"), ({"workers": 0}, "workers must be"),
        ({"on_damaged": "shrug"}, "on_damaged must be"), ({"rank": 2, "world_size": 2}, "rank must be"),
        ({"shard_records": 0}, "shard_records must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            pack(path, tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


# ---- which layout


def checked(folder: Path, bodies: list[bytes], side: int = SIDE) -> CheckedRecords:
    return CheckedRecords(ImageRecords(write_records(folder, bodies, side=side)), side)


@pytest.fixture
def without_turbojpeg(monkeypatch):
    jpeg_planes._checked_library.cache_clear()
    monkeypatch.setattr(jpeg_planes, "_LIBRARY_NAMES", ("libthatisnotthere.so.9",))
    yield
    jpeg_planes._checked_library.cache_clear()


@needs_turbojpeg
def test_images_in_420_and_grey_become_planes(tmp_path):
    bodies = [*small_bodies(5), saved(0, "JPEG", mode="L"), saved(1, "JPEG", subsampling=2, progressive=True)]
    assert choose_layout("auto", checked(tmp_path, bodies), on_damaged="stop") == "planes"


@pytest.mark.parametrize(
    ("body", "reason"), [(jpeg(0, sampling="444"), "4:4:4 chroma, not 4:2:0"), (saved(0, "PNG"), "is no JPEG")]
)
def test_one_image_without_planes_makes_all_of_them_rgb_and_is_named(tmp_path, caplog, body, reason):
    records = checked(tmp_path, [*small_bodies(3), body, *small_bodies(2)])
    with caplog.at_level(logging.INFO):
        assert choose_layout("auto", records, on_damaged="stop") == "rgb"
    assert "record 3 (key 4)" in caplog.text
    assert reason in caplog.text
    if planes_available():
        with pytest.raises(StoreError, match=r"record 3 \(key 4\).*Pack with --layout rgb"):
            choose_layout("planes", records, on_damaged="stop")


def test_without_the_library_auto_says_what_rgb_costs_and_planes_are_refused(tmp_path, caplog, without_turbojpeg):
    records = checked(tmp_path, small_bodies(3))
    assert choose_layout("auto", records, on_damaged="stop") == "rgb"
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "twice the bytes, 3072 and not 1536 an image" in warnings[0]
    assert "apt-get install libturbojpeg0" in warnings[0]
    with pytest.raises(TurboJpegMissingError, match="apt-get install libturbojpeg0"):
        choose_layout("planes", records, on_damaged="stop")


def test_another_size_is_refused_even_where_damage_is_skipped(tmp_path):
    with pytest.raises(ImageSizeError, match=r"record 1 \(key 2\).*48 x 48"):
        choose_layout("auto", checked(tmp_path, [jpeg(0), jpeg(1, 48)]), on_damaged="skip")
