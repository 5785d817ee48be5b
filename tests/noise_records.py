"""Record files and folders of small JPEGs of noise, for the tests of the dataset tools."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import simplejpeg

from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter, write_insightface_records


def jpeg(seed: int, side: int = 16) -> bytes:
    noise = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(noise, colorsubsampling="420")


def write_plain(path: Path, labels: list[int], seed: int = 0) -> Path:
    """A `.rec` as im2rec lays it out: one label each, keys from 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path) as writer:
        for number, label in enumerate(labels):
            writer.write(10 + number, jpeg(seed + number), labels=float(label))
    return path


def write_insightface(folder: Path, counts: tuple[int, ...] = (2, 1, 3)) -> Path:
    """A `.rec` of so many images of each identity, with identity and header records."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    samples = [(label, jpeg(number)) for number, label in enumerate(labels)]
    return write_insightface_records(folder, samples, image_size=(16, 16))


def labelled(path: Path) -> Counter[tuple[int, bytes]]:
    """Labels and bytes of all images of a `.rec`, in no order."""
    records = ImageRecords(path)
    return Counter((encoded.label, encoded.body) for encoded in (records.read(i) for i in range(len(records))))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
