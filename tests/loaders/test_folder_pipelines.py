"""Batches from a folder of identities are those of the same bodies in a record file, damaged and odd ones included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from small_pack import SIDE, jpeg, saved

from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.pipeline import DataConfig, build_pipeline, named_records
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.open_images import open_images
from adadistill.loaders.records.recordio import RecordWriter

BODIES = [
    *(jpeg(seed, sampling=("420", "444", "422")[seed % 3]) for seed in range(8)),
    saved(8, "PNG"),
    jpeg(9)[:-300],  # only decoding can tell
    b"GIF89a" + bytes(60),
    jpeg(11, side=24),
    jpeg(12)[:2] + b"\xff\xc0\x00",  # a header that ends
    saved(13, "PNG"),
    bytes(5),
]
ODD = {9, 10, 12, 14}
"""Damaged; 11 has another size."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bodies as a record file and as a folder, five to an identity; suffixes say nothing of the content."""
    folder = tmp_path_factory.mktemp("sources")
    with RecordWriter(folder / "train.rec") as writer:
        for number, body in enumerate(BODIES):
            writer.write(number, body, labels=float(number // 5))
            path = folder / "faces" / f"{number // 5}" / f"{number:03d}{('.jpg', '.PNG', '.jpeg')[number % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    return {"records": folder / "train.rec", "folder": folder / "faces"}


def _batches(path: Path, decoder: str, **more: object) -> Iterator[Batch]:
    config = DataConfig(
        records=str(path), decoder=decoder, image_size=SIDE, workers=2, on_damaged="skip", num_classes=3, **more
    )
    records = named_records(config)
    augmentation = Augmentation(AugmentConfig(), mirror_probability=0.5, seed=3, image_size=SIDE)
    order = SampleOrder(len(records), 5, 7)
    pipeline = build_pipeline(
        config, records, order, rank=0, world_size=1, device=torch.device("cpu"), augmentation=augmentation
    )
    with closing(pipeline):
        for epoch in range(2):
            yield from pipeline.epoch(epoch)


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
@pytest.mark.parametrize("wrong_size", ["refuse", "resize"])
def test_batches_are_the_same_in_every_bit(sources: dict[str, Path], decoder: str, wrong_size: str):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    skipped = set[int]()
    both = (_batches(sources[name], decoder, wrong_size=wrong_size) for name in ("records", "folder"))
    for one, other in zip(*both, strict=True):
        for field in ("record_ids", "labels", "mirrored", "images"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field
        skipped |= set(one.record_ids[one.labels == -1].tolist())
    assert skipped == ODD | ({11} if wrong_size == "refuse" else set())


def test_more_bytes_than_the_recipe_allows_are_not_read(sources: dict[str, Path]):
    config = DataConfig(records=str(sources["folder"]), max_image_bytes=1024)
    with pytest.raises(ValueError, match=r"data\.max_image_bytes allows 1024"):
        named_records(config).read(0)
    assert open_images(sources["folder"]).read(0).body == BODIES[0]
