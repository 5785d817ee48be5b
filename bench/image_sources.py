"""Record files to measure on, and the pipelines that can feed from them on this machine.

Real records are best: the cost of a JPEG follows its bytes. Without any, synthetic faces stand in, drawn once and
repeated, encoded so that they have about the bytes of a published training set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from adadistill.core.teachers import record_binding
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packed_images import Layout
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.pipelines.dali_pipeline import DaliMissingError, require_dali
from adadistill.loaders.pipelines.pipeline import DataConfig, ImagePipeline, build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import decode_image, image_size
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)

SOURCES = ("cpu", "dali", "packed_rgb", "packed_planes")
"""Ways for images into a training step; the packed ones once for each place a store can live in."""

_DRAWN = 256
"""Different synthetic faces: enough that no processor keeps all of them decoded in its caches."""
_PER_IDENTITY = 4
_QUALITY = 90
"""4:2:0 at this quality gives a synthetic face of 112 x 112 pixels about 5 KB, as in MS1MV2."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What a training step takes: formats, batch and sample order of a pipeline."""

    batch_size: int
    workers: int
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    augmentation: Augmentation


def open_records(path: Path | None, folder: Path, *, size: int, count: int) -> ImageRecords:
    """Records of a file, or of synthetic faces where there is none, repeated until there are enough of them.

    Args:
        path: a .rec file, or a folder with train.rec; None draws faces.
        folder: where files are written for the time being.
        size: side of synthetic faces in pixels; a file has its own.
        count: records wanted; a file that has as many is used as it is.
    """
    if path is None:
        return ImageRecords(synthetic_records(folder, size=size, count=count))
    records = ImageRecords(path / "train.rec" if path.is_dir() else path)
    if len(records) >= count:
        return records
    return ImageRecords(tiled_records(records, folder / "tiled.rec", count, None))


def synthetic_records(folder: Path, *, size: int, count: int) -> Path:
    """A .rec file of `count` records that hold a few hundred synthetic faces again and again."""
    config = SyntheticFacesConfig(
        image_size=size, identities=max(1, min(_DRAWN, count) // _PER_IDENTITY), images_per_identity=_PER_IDENTITY
    )
    drawn = write_synthetic_records(folder / "drawn", config)
    return tiled_records(ImageRecords(drawn), folder / "synthetic.rec", count, _QUALITY)


def tiled_records(records: ImageRecords, path: Path, count: int, quality: int | None) -> Path:
    """The images again and again, as `count` records; with a quality, encoded anew at it, 4:2:0."""
    bodies = [records.read(record_id).body for record_id in range(len(records))]
    if quality is not None:
        import simplejpeg

        bodies = [
            simplejpeg.encode_jpeg(decode_image(body, where="tile"), quality=quality, colorsubsampling="420")
            for body in bodies
        ]
    labels = records.labels()
    with RecordWriter(path) as writer:
        for key in range(count):
            writer.write(key, bodies[key % len(bodies)], labels=float(labels[key % len(bodies)]))
    return path


def pipeline_builders(
    records: ImageRecords,
    feed: Feed,
    folder: Path,
    *,
    chosen: Sequence[str] = SOURCES,
    dali: Mapping[str, Mapping[str, Any]] = MappingProxyType({"dali": {}}),
) -> dict[str, Callable[[], ImagePipeline]]:
    """What can feed a step here, by name. What cannot says why on standard output.

    Args:
        folder: where packed stores are written, once for all feeds.
        chosen: of `SOURCES`.
        dali: ways to run DALI, each with further values of `DataConfig`, by the name it gets.
    """
    size = image_size(records.read(0).body, where=records.where(0))[0]

    def builder(**data: object) -> Callable[[], ImagePipeline]:
        config = DataConfig(records=str(records.path), image_size=size, workers=feed.workers, **data)  # type: ignore[arg-type]
        return lambda: build_pipeline(
            config,
            records,
            SampleOrder(len(records), feed.batch_size, seed=0),
            rank=0,
            world_size=1,
            device=feed.device,
            augmentation=feed.augmentation,
            dtype=feed.dtype,
            channels_last=feed.channels_last,
        )

    found = {}
    for source in chosen:
        try:
            if source == "cpu":
                found["cpu"] = builder(decoder="cpu")
            elif source == "dali":
                require_dali()
                found |= {name: builder(decoder="dali", **options) for name, options in dali.items()}
            else:
                layout, places = source.removeprefix("packed_"), ("page_cache", "device")
                store = _packed(records, folder / layout, size, feed.workers)
                for place in places if feed.device.type == "cuda" else places[:1]:
                    found[f"packed {layout}, {place}"] = builder(packed=str(store), packed_in=place)
        except (DaliMissingError, StoreError) as reason:
            print(f"without {source}: {reason}")
    return found


def _packed(records: ImageRecords, store: Path, size: int, workers: int) -> Path:
    """The images in the layout that the folder is named for, written once."""
    if not store.exists():
        layout: Layout = "rgb" if store.name == "rgb" else "planes"
        binding = record_binding(records)
        pack_records(records, store, binding=binding, layout=layout, image_size=size, workers=workers)
    return store


def write_tiny_faces(folder: Path, *, identities: int = 12, embedding_dim: int = 16) -> None:
    """Synthetic faces under the names of real ones, and rows of a teacher that knows them, for runs that only show that
    a bench runs."""
    config = SyntheticFacesConfig(image_size=32, identities=identities, images_per_identity=2)
    write_synthetic_records(folder, config)
    write_synthetic_pairs(folder / "faces_holdout.bin", config, pairs=20)
    generator = np.random.default_rng(0)
    people = generator.standard_normal((identities, 1, embedding_dim), dtype=np.float32).repeat(2, axis=0)
    rows = people + 0.3 * generator.standard_normal((2 * identities, 2, embedding_dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    np.save(folder / "teacher_embeddings.npy", rows.astype(np.float16))
