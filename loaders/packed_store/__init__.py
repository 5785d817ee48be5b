"""Decoded images on disk: every record decoded once, read by record id in every epoch.

A store is a folder: `header.json` says of which records the images are and how they are laid out; `shard-*.npy` hold
the images, (n, image_bytes) uint8; `labels.npy` the labels; `blocks.bin` which blocks are done, with their checksums;
`damaged.json` lists the records that could not be read. The files are the same bytes however often the packing was
killed and on however many ranks it ran. docs/packed_format.md describes them for other readers and writers.
"""

from adadistill.loaders.packed_store.errors import (
    PackDamagedError,
    PackError,
    PackFormatError,
    PackIncompleteError,
    PackMismatchError,
    PackMissingError,
    PlanesUnfitError,
    TurboJpegMissingError,
)
from adadistill.loaders.packed_store.header import DAMAGED_LABEL, DAMAGED_PIXEL, Layout, PackedHeader, image_bytes
from adadistill.loaders.packed_store.packing import PackProgress, PackResult, pack_records
from adadistill.loaders.packed_store.reader import PackedStore

__all__ = [
    "DAMAGED_LABEL",
    "DAMAGED_PIXEL",
    "Layout",
    "PackDamagedError",
    "PackError",
    "PackFormatError",
    "PackIncompleteError",
    "PackMismatchError",
    "PackMissingError",
    "PackProgress",
    "PackResult",
    "PackedHeader",
    "PackedStore",
    "PlanesUnfitError",
    "TurboJpegMissingError",
    "image_bytes",
    "pack_records",
]
