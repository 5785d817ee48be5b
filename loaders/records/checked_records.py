"""Image records with everything checked that can be checked before a decoder sees the bytes.

A wrong size found in the decoder costs the pipeline; a header that no JPEG parser accepts brings DALI's decoder down
with the whole process (a segmentation fault in DALI 2.4, seen in batches of 128). So headers are parsed here first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from adadistill.loaders.orientation import UPRIGHT
from adadistill.loaders.pixels import (
    ImageDecodeError,
    ImageHeader,
    ImageLimits,
    decode_image,
    image_header,
    image_size,
    jpeg_outline,
    require_few_scans,
    resized,
)
from adadistill.loaders.records.damaged_records import DAMAGE, SKIPPED_LABEL
from adadistill.loaders.records.image_source import EncodedImage, ImageSource

_HEAD_BYTES = 4096  # of a JPEG whose frame header lies behind more, such as a thumbnail, the scans are counted
_PLAIN_JPEG = ("YCbCr", "Gray")
"""Colour spaces that every decoder turns into the same RGB."""


class ImageSizeError(ImageDecodeError):
    """An image is not as large as the recipe says; found and wanted sizes are (height, width)."""

    def __init__(self, where: str, record_id: int, found: tuple[int, int], wanted: tuple[int, int]) -> None:
        self.record_id, self.found, self.wanted = record_id, found, wanted
        super().__init__(
            f"{where}: the image is {found[0]} x {found[1]} pixels, the recipe wants {wanted[0]} x {wanted[1]}. "
            "Set data.image_size to the size of the records, or data.wrong_size=resize"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """A record's name in messages, made when a message is: naming each costs a tenth of reading it."""

    records: ImageSource
    record_id: int

    def __str__(self) -> str:
        return self.records.where(self.record_id)


class CheckedRecords:
    """Reads records whose images are all `image_size` pixels square, or are made so.

    Args:
        records: opened here, so that a missing file, index or identity count is reported before training starts.
        image_size: side S in pixels.
        limits: of what a header may claim; larger images are not decoded.
        wrong_size: refuse an image of another size, or resize it.
    """

    def __init__(
        self,
        records: ImageSource,
        image_size: int,
        *,
        limits: ImageLimits | None = None,
        wrong_size: Literal["refuse", "resize"] = "refuse",
    ) -> None:
        self.num_records, self.num_classes = len(records), records.num_classes
        self.image_size = image_size
        self._records = records
        self._limits = limits or ImageLimits()
        self._resizes = wrong_size == "resize"

    def read(self, record_id: int) -> EncodedImage:
        """Label and encoded bytes of one image of the right size.

        Raises:
            RecordError: the record is damaged or its label is no class.
            ImageDecodeError: the body is no JPEG or PNG, its header is damaged, or claims too much.
            ImageSizeError: the image has another size, and those are refused.
        """
        return self._checked(record_id)[0]

    def decode(self, record_id: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Label and (S, S, 3) uint8 RGB pixels. Raises as `read`, and ImageDecodeError where the image is damaged."""
        encoded, _ = self._checked(record_id)
        return encoded.label, self._pixels(encoded.body, record_id)

    def feedable(self, record_id: int) -> tuple[int, bytes]:
        """Label and bytes that DALI decodes to the same pixels; raises as `decode`.

        Upright JPEGs of plain colour and the right size are as stored, all others are decoded here and written as PPM.
        """
        encoded, header = self._checked(record_id)
        plain = header.kind == "jpeg" and header.colorspace in _PLAIN_JPEG and header.orientation == UPRIGHT
        if plain and self._fits(header):
            require_few_scans(encoded.body, where=_Place(self._records, record_id))
            return encoded.label, encoded.body
        pixels = self._pixels(encoded.body, record_id)
        return encoded.label, b"P6\n%d %d\n255\n" % (self.image_size, self.image_size) + pixels.tobytes()

    def read_plain(
        self, record_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint8] | None]]:
        """Labels and JPEG bytes of many records for `decode_plain`, as `ImageSource.read_plain` gives them."""
        return self._records.read_plain(record_ids)

    def decode_plain(self, record_id: int, body: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8] | None:
        """(S, S, 3) uint8 RGB pixels of one of them; None where `decode` has to say what is the matter with it."""
        if body is None or not self._is_plain(record_id, body):
            return None
        import simplejpeg

        try:
            pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(body, colorspace="RGB")
        except ValueError:
            return None
        return pixels

    def feedable_batch(
        self, record_ids: npt.NDArray[np.int64], damaged: Callable[[int, ValueError], bytes]
    ) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint8]]]:
        """`feedable` of many, faster: plain records are checked together and not copied (4 us an image, not 9).

        Args:
            record_ids: (n,) of the batch.
            damaged: called for each record that `feedable` refuses, with its id and the error; returns what DALI is fed
                in its place, or raises.

        Returns:
            (n,) int64 labels, SKIPPED_LABEL for what is damaged; n encoded images as uint8.
        """
        labels, plain = self._records.read_plain(record_ids)
        bodies = []
        for row, (record_id, body) in enumerate(zip(record_ids.tolist(), plain, strict=True)):
            if body is None or not self._is_plain(record_id, body):
                try:
                    labels[row], encoded = self.feedable(record_id)
                except DAMAGE as error:
                    labels[row], encoded = SKIPPED_LABEL, damaged(record_id, error)
                body = np.frombuffer(encoded, dtype=np.uint8)
            bodies.append(body)
        return labels, bodies

    def why_resized(self, body: bytes, *, where: str) -> str | None:
        """What is said of an image that `read` let pass and `decode` resizes; None where its size is right."""
        height, width = image_size(body, where=where) if self._resizes else (self.image_size,) * 2
        if height == self.image_size == width:
            return None
        return f"is {height} x {width} pixels and has to be resized"

    def where(self, record_id: int) -> str:
        """Name one record in messages: file, id, key and byte."""
        return self._records.where(record_id)

    def _is_plain(self, record_id: int, body: npt.NDArray[np.uint8]) -> bool:
        """Whether `feedable` would feed a JPEG as it is. False is no verdict: whoever decodes it then gives that."""
        if body.size > self._limits.max_bytes or not self._records.matches_seal(record_id):
            return False
        import simplejpeg

        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(body)
        except ValueError:
            return False
        fits = height == self.image_size == width and colorspace in _PLAIN_JPEG
        return fits and jpeg_outline(body[:_HEAD_BYTES].tobytes()) == (True, UPRIGHT)

    def _checked(self, record_id: int) -> tuple[EncodedImage, ImageHeader]:
        encoded, where = self._records.read(record_id), _Place(self._records, record_id)
        if len(encoded.body) > self._limits.max_bytes:
            raise ImageDecodeError(
                f"{where}: the image has {len(encoded.body)} encoded bytes, max_image_bytes "
                f"allows {self._limits.max_bytes}"
            )
        header = image_header(encoded.body, where=where)
        if not self._fits(header) and not self._resizes:
            found, wanted = (header.height, header.width), (self.image_size, self.image_size)
            raise ImageSizeError(str(where), record_id, found, wanted)
        if max(header.height, header.width) > max(self._limits.max_side, self.image_size):
            raise ImageDecodeError(
                f"{where}: claims {header.height} x {header.width} pixels, max_image_side allows "
                f"{self._limits.max_side} a side"
            )
        return encoded, header

    def _fits(self, header: ImageHeader) -> bool:
        return header.height == self.image_size == header.width

    def _pixels(self, body: bytes, record_id: int) -> npt.NDArray[np.uint8]:
        where = _Place(self._records, record_id)
        pixels = decode_image(body, where=where)
        if pixels.shape[:2] != (self.image_size, self.image_size):
            pixels = resized(pixels, self.image_size, where=where)
        return pixels
