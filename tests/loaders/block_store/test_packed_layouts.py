"""Planes where every image allows them, else RGB; what decided is said, and nothing is lost without a word."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from small_pack import SIDE, jpeg, saved, small_bodies, write_records

from adadistill.loaders.block_store import jpeg_planes
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import TurboJpegMissingError, planes_available
from adadistill.loaders.block_store.packed_layouts import choose_layout
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.image_records import ImageRecords

needs_turbojpeg = pytest.mark.skipif(not planes_available(), reason="libturbojpeg is not installed")


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


def test_images_of_odd_size_become_rgb(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert choose_layout("auto", checked(tmp_path, [jpeg(0, 31)], 31), on_damaged="stop") == "rgb"
    assert "31 x 31 pixels have no whole 4:2:0 planes" in caplog.text


def test_rgb_is_taken_without_reading_a_record(tmp_path):
    records = checked(tmp_path, small_bodies(2))
    records.read = None  # type: ignore[assignment,method-assign]
    assert choose_layout("rgb", records, on_damaged="stop") == "rgb"


def test_without_the_library_auto_says_what_rgb_costs_and_planes_are_refused(tmp_path, caplog, without_turbojpeg):
    records = checked(tmp_path, small_bodies(3))
    assert choose_layout("auto", records, on_damaged="stop") == "rgb"
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "twice the bytes, 3072 and not 1536 an image" in warnings[0]
    assert "apt-get install libturbojpeg0" in warnings[0]
    with pytest.raises(TurboJpegMissingError, match="apt-get install libturbojpeg0"):
        choose_layout("planes", records, on_damaged="stop")


def test_without_the_library_nothing_is_said_where_planes_are_impossible_anyway(tmp_path, caplog, without_turbojpeg):
    choose_layout("auto", checked(tmp_path, [jpeg(0, sampling="444")]), on_damaged="stop")
    assert not [entry for entry in caplog.records if entry.levelno == logging.WARNING]


@needs_turbojpeg
def test_damaged_records_stop_the_choice_or_decide_nothing(tmp_path):
    records = checked(tmp_path, [*small_bodies(3), b"\xff\xd8\xff and no more"])
    with pytest.raises(ImageDecodeError, match=r"record 3 \(key 4\)"):
        choose_layout("auto", records, on_damaged="stop")
    assert choose_layout("auto", records, on_damaged="skip") == "planes"


def test_another_size_is_refused_even_where_damage_is_skipped(tmp_path):
    with pytest.raises(ImageSizeError, match=r"record 1 \(key 2\).*48 x 48"):
        choose_layout("auto", checked(tmp_path, [jpeg(0), jpeg(1, 48)]), on_damaged="skip")


def test_a_stop_ends_the_choice(tmp_path):
    assert choose_layout("auto", checked(tmp_path, small_bodies(2)), on_damaged="stop", stop=lambda: True) is None
