"""Faces of eight pixels a side whose red and blue tell who it is as well as a test asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg

from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import write_insightface_records

SIDE = 8


def faces(people: int, images: int, *, red: float, blue: float, seed: int = 0) -> np.ndarray:
    """(people, images, SIDE, SIDE, 3) uint8: who it is shows in red and in blue, under so much noise in each."""
    draw = np.random.default_rng(seed)
    who = draw.normal(size=(people, 1, SIDE, SIDE, 1))
    noise = draw.normal(size=(people, images, SIDE, SIDE, 3)) * np.array([red, 1.0, blue])
    return np.clip(128 + 25 * (who + noise), 0, 255).astype(np.uint8)


def write_faces(folder: Path, people: int, images: int, *, red: float = 0.5, blue: float = 3.0) -> ImageRecords:
    pixels = faces(people, images, red=red, blue=blue)
    encoded = [
        (label, simplejpeg.encode_jpeg(image, quality=100, colorsubsampling="444"))
        for label, group in enumerate(pixels)
        for image in group
    ]
    folder.mkdir(exist_ok=True)
    return ImageRecords(write_insightface_records(folder, encoded, image_size=(SIDE, SIDE)))
