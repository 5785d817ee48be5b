"""Image records with everything checked that can be checked before a decoder sees the bytes.

A wrong size found in the decoder costs the pipeline; a header that no JPEG parser accepts brings DALI's decoder down
with the whole process (a segmentation fault in DALI 2.4, seen in batches of 128). So headers are parsed here first.
"""

from __future__ import annotations

from adadistill.loaders.image_records import EncodedImage, ImageRecords
from adadistill.loaders.pixels import ImageDecodeError, image_size


class ImageSizeError(ImageDecodeError):
    """An image is not as large as the recipe says; found and wanted sizes are (height, width)."""

    def __init__(self, where: str, record_id: int, found: tuple[int, int], wanted: tuple[int, int]) -> None:
        self.record_id, self.found, self.wanted = record_id, found, wanted
        super().__init__(
            f"{where}: the image is {found[0]} x {found[1]} pixels, the recipe wants {wanted[0]} x {wanted[1]}. "
            "Set data.image_size to the size of the records, or write the records anew at one size"
        )


class CheckedRecords:
    """Reads records whose images are all `image_size` pixels square.

    Args:
        records: opened here, so that a missing file, index or identity count is reported before training starts.
        image_size: side in pixels.
    """

    def __init__(self, records: ImageRecords, image_size: int) -> None:
        self.num_records, self.num_classes = len(records), records.num_classes
        self.image_size = image_size
        self._records = records

    def read(self, record_id: int) -> EncodedImage:
        """Label and encoded bytes of one image of the right size.

        Raises:
            RecordError: the record is damaged or its label is no class.
            ImageDecodeError: the body is no JPEG or PNG, or its header is damaged.
            ImageSizeError: the image has another size.
        """
        encoded = self._records.read(record_id)
        found = image_size(encoded.body, where=self.where(record_id))
        if found != (self.image_size, self.image_size):
            raise ImageSizeError(self.where(record_id), record_id, found, (self.image_size, self.image_size))
        return encoded

    def where(self, record_id: int) -> str:
        """Name one record in messages: file, id, key and byte."""
        return self._records.where(record_id)
