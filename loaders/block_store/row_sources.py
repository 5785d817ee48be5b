"""Fills the rows of a packed store from records: as planes, or as RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import PlaneDecoder
from adadistill.loaders.block_store.packed_header import Layout
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.damaged_records import may_be_skipped
from adadistill.loaders.records.recordio import StaleIndexError

OnDamaged: TypeAlias = Literal["stop", "skip"]

DecodeRecord: TypeAlias = Callable[[int], tuple[int, npt.NDArray[np.uint8]]]
"""Label and (S, S, 3) uint8 RGB pixels of a record id, for stores whose images are made in another way."""


def is_damage(error: Exception) -> bool:
    """Whether a record may be stored as damaged: not where the size or the index is what is wrong, for all of them."""
    return may_be_skipped(error) and not isinstance(error, (ImageSizeError, StaleIndexError))


class RowSource(Protocol):
    """Reads one record; threads share it."""

    def fill(self, record_id: int, row: npt.NDArray[np.uint8]) -> int:
        """Write the image of a record to `row`, (image_bytes,) uint8; its label.

        Raises:
            RecordError, ImageDecodeError: the record is damaged, or its image has another size.
            StoreError: the image cannot be stored in this layout.
        """
        ...


def row_source(layout: Layout, records: CheckedRecords, decode: DecodeRecord | None = None) -> RowSource:
    """What fills the rows of a store.

    Args:
        decode: used in place of our own decoder, rgb only.

    Raises:
        StoreError: planes are asked for and the TurboJPEG library is missing or decodes other pixels, or `decode` is
            given.
    """
    if layout == "rgb":
        return _RgbRows(records, decode)
    if decode is not None:
        raise StoreError("planes are stored as the JPEG holds them; images that are made otherwise need --layout rgb")
    return _PlaneRows(records)


class _PlaneRows:
    def __init__(self, records: CheckedRecords) -> None:
        self._records = records
        self._decoder = PlaneDecoder(records.image_size)

    def fill(self, record_id: int, row: npt.NDArray[np.uint8]) -> int:
        encoded = self._records.read(record_id)
        self._decoder.decode(encoded.body, row, where=self._records.where(record_id))
        return encoded.label


class _RgbRows:
    def __init__(self, records: CheckedRecords, decode: DecodeRecord | None) -> None:
        self._records = records
        self._decode = decode or records.decode

    def fill(self, record_id: int, row: npt.NDArray[np.uint8]) -> int:
        label, pixels = self._decode(record_id)
        side = self._records.image_size
        if pixels.shape != (side, side, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"decoding must give uint8 {(side, side, 3)}, got {pixels.dtype} {pixels.shape}")
        row.reshape(pixels.shape)[...] = pixels
        return label
