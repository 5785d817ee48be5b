"""Chooses the layout of a packed store: planes where every image allows it, else RGB, and says what decided.

All headers are read before anything is written, as one image that has no 4:2:0 planes decides for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import (
    TURBOJPEG_REMEDY,
    TurboJpegMissingError,
    planes_available,
    why_no_planes,
)
from adadistill.loaders.block_store.packed_header import Layout, image_bytes
from adadistill.loaders.block_store.row_sources import OnDamaged, is_damage
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.recordio import RecordError

logger = logging.getLogger(__name__)

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
