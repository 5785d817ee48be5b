"""Small record files of small JPEGs, and packed stores of them, for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from adadistill.core.teachers import record_binding
from adadistill.loaders.block_store.packing import PackResult, pack_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter

SIDE = 32
COUNT = 23
CLASSES = 7


def picture(seed: int, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """(side, side, 3) RGB: blocks of colour under noise, so that every coefficient and both chromas count."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-side // 8), -(-side // 8), 3))
    fine = random.normal(0.0, 20.0, (side, side, 3))
    return (coarse.repeat(8, 0).repeat(8, 1)[:side, :side] + fine).clip(0, 255).astype(np.uint8)


def jpeg(seed: int, side: int = SIDE, *, sampling: str = "420", quality: int = 90) -> bytes:
    """A YCbCr JPEG of `picture`."""
    return simplejpeg.encode_jpeg(picture(seed, side), quality=quality, colorspace="RGB", colorsubsampling=sampling)


def saved(seed: int, kind: str, *, mode: str = "RGB", side: int = SIDE, **options: Any) -> bytes:
    """The picture as Pillow writes it: PNG, and JPEGs that simplejpeg does not write."""
    body = io.BytesIO()
    Image.fromarray(picture(seed, side)).convert(mode).save(body, kind, **options)
    return body.getvalue()


def write_records(folder: Path, bodies: Sequence[bytes], *, side: int = SIDE) -> Path:
    """A record file of these images in seven classes; the record of image i has key i + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for place, body in enumerate(bodies):
            writer.write(place + 1, body, labels=float(place % CLASSES))
    (folder / "property").write_text(f"{CLASSES},{side},{side}\n")
    return folder / "train.rec"


def small_bodies(count: int = COUNT) -> list[bytes]:
    """JPEGs in 4:2:0."""
    return [jpeg(seed) for seed in range(count)]


def pack(path: Path, folder: Path, **changes: Any) -> PackResult:
    """Pack a record file in shards of five, unless changed."""
    records = ImageRecords(path)
    arguments: dict[str, Any] = {"image_size": SIDE, "shard_records": 5, "workers": 2}
    return pack_records(records, folder, binding=record_binding(records), **(arguments | changes))
