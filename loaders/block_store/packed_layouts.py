"""The two layouts of packed images: which one a new store takes, and what fills its rows.

Planes where every image allows it, else RGB. All headers are read before anything is written, as one image that has no
4:2:0 planes decides for all of them; what decided is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import (
    TURBOJPEG_REMEDY,
    PlaneDecoder,
    TurboJpegMissingError,
    planes_available,
    why_no_planes,
)
from adadistill.loaders.block_store.packed_header import Layout, image_bytes
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.damaged_records import may_be_skipped
from adadistill.loaders.records.recordio import RecordError, StaleIndexError

logger = logging.getLogger(__name__)

OnDamaged: TypeAlias = Literal["stop", "skip"]
DecodeRecord: TypeAlias = Callable[[int], tuple[int, npt.NDArray[np.uint8]]]
"""Label and (S, S, 3) uint8 RGB pixels of a record id, for stores whose images are made in another way."""
FillRow: TypeAlias = Callable[[int, npt.NDArray[np.uint8]], int]
"""Writes the image of a record id to a row, (image_bytes,) uint8, and returns its label. Threads share it.

It raises RecordError or ImageDecodeError where the record is damaged or its image has another size.
"""
LayoutChoice: TypeAlias = Literal["auto", "planes", "rgb"]

_LOOK_EVERY = 1024  # records between two looks at the stop signal


def choose_layout(
    choice: LayoutChoice,
    records: CheckedRecords,
    *,
    on_damaged: OnDamaged,
    stop: Callable[[], bool] | None = None,
) -> Layout | None:
    """The layout of a new store; None where `stop` said so before it was known.

    Args:
        choice: what was asked for.
        records: whose headers are read, in file order, up to the first that has no planes.
        on_damaged: `skip` lets damaged records decide nothing.
        stop: asked now and then whether to give up.

    Raises:
        StoreError: planes were asked for, and a record or the image size does not allow them.
        TurboJpegMissingError: planes were asked for, and the library is not there.
        RecordError, ImageDecodeError: a damaged record, unless they are skipped; ImageSizeError always.
    """
    if choice == "rgb":
        return "rgb"
    if choice == "planes" and not planes_available():
        raise TurboJpegMissingError(
            f"--layout planes needs libjpeg-turbo's TurboJPEG library: {TURBOJPEG_REMEDY}, or pack with --layout rgb"
        )
    size = records.image_size
    misfit = _first_misfit(records, on_damaged, stop)
    if misfit is None:
        return None
    if not misfit and planes_available():
        return "planes"
    if choice == "planes":
        raise StoreError(f"planes cannot hold these images: {misfit}. Pack with --layout rgb")
    stored, possible = image_bytes("rgb", size), image_bytes("planes", size)
    if misfit:
        logger.info("layout rgb, %d bytes an image: %s", stored, misfit)
    else:
        logger.warning(
            "layout rgb costs twice the bytes, %d and not %d an image, as the images could be stored as planes: %s",
            stored,
            possible,
            TURBOJPEG_REMEDY,
        )
    return "rgb"


def _first_misfit(records: CheckedRecords, on_damaged: OnDamaged, stop: Callable[[], bool] | None) -> str | None:
    """What cannot be stored as planes, and why; empty where nothing is, None where `stop` said so."""
    size = records.image_size
    if size % 2:
        return f"images of {size} x {size} pixels have no whole 4:2:0 planes"
    logger.info("reading the headers of %d images, to choose a layout", records.num_records)
    for record_id in range(records.num_records):
        if stop is not None and record_id % _LOOK_EVERY == 0 and stop():
            return None
        where = records.where(record_id)
        try:
            body = records.read(record_id).body
            reason = why_no_planes(body, where=where) or records.why_resized(body, where=where)
        except (RecordError, ImageDecodeError) as error:
            if on_damaged == "stop" or not is_damage(error):
                raise
            continue
        if reason:
            return f"{where} {reason}"
    return ""


def row_filler(layout: Layout, records: CheckedRecords, decode: DecodeRecord | None = None) -> FillRow:
    """What fills the rows of a store.

    Args:
        decode: used in place of our own decoder, rgb only.

    Raises:
        StoreError: planes are asked for and the TurboJPEG library is missing or decodes other pixels, or `decode` is
            given.
    """
    side, decode_rgb = records.image_size, decode or records.decode

    def fill_rgb(record_id: int, row: npt.NDArray[np.uint8]) -> int:
        label, pixels = decode_rgb(record_id)
        if pixels.shape != (side, side, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"decoding must give uint8 {(side, side, 3)}, got {pixels.dtype} {pixels.shape}")
        row.reshape(pixels.shape)[...] = pixels
        return label

    if layout == "rgb":
        return fill_rgb
    if decode is not None:
        raise StoreError("planes are stored as the JPEG holds them; images that are made otherwise need --layout rgb")
    decoder = PlaneDecoder(side)

    def fill_planes(record_id: int, row: npt.NDArray[np.uint8]) -> int:
        encoded = records.read(record_id)
        decoder.decode(encoded.body, row, where=records.where(record_id))
        return encoded.label

    return fill_planes


def is_damage(error: Exception) -> bool:
    """Whether a record may be stored as damaged: not where the size or the index is what is wrong, for all of them."""
    return may_be_skipped(error) and not isinstance(error, (ImageSizeError, StaleIndexError))
