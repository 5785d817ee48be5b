"""The smallest run there is: a few synthetic faces, a stored teacher, a recipe and students for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adadistill.core.checkpoints import Checkpoint
    from adadistill.core.recipe import Recipe
    from adadistill.loaders.batch import Batch
    from adadistill.loaders.pipelines.pipeline import ImagePipeline


class PlainStudent(torch.nn.Module):
    """A small convolutional network without batch norm: its embeddings of a sample do not depend on the batch."""

    def __init__(self, embedding_dim: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.convolutions = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
                torch.nn.PReLU(8),
                torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
                torch.nn.PReLU(16),
                torch.nn.AdaptiveAvgPool2d(2),
            )
            self.linear = torch.nn.Linear(64, embedding_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D); scaled so that norms are near those of real networks."""
        return 20.0 * self.linear(self.convolutions(images).flatten(1))


def write_tiny_records(folder: Path, *, identities: int = 6, images: int = 8, image_size: int = 32) -> Path:
    """Synthetic faces as `train.rec`, teacher embeddings as `teacher.npy` ((N, 2, 16), by identity), 20 `pairs.bin`."""
    import simplejpeg

    from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
    from adadistill.loaders.records.recordio import write_insightface_records
    from adadistill.loaders.synthetic.synthetic_faces import SyntheticFacesConfig, render_faces

    folder.mkdir(parents=True, exist_ok=True)
    config = SyntheticFacesConfig(image_size=image_size, identities=identities, images_per_identity=images)
    labels = np.repeat(np.arange(identities), images)
    pixels = render_faces(config, labels, np.tile(np.arange(images), identities)).images_u8
    samples = [(int(label), simplejpeg.encode_jpeg(image)) for label, image in zip(labels, pixels, strict=True)]
    records = write_insightface_records(folder, samples, image_size=(image_size, image_size))
    generator = np.random.RandomState(0)
    means = generator.normal(size=(identities, 1, 1, 16)) + 0.3 * generator.normal(size=(identities, images, 2, 16))
    rows = means.reshape(identities * images, 2, 16)
    np.save(folder / "teacher.npy", (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16))
    jpegs = [body for _, body in samples]
    pairs = [jpegs[i] for pair in range(20) for i in (pair, pair + 1 if pair % 2 else (pair + 20) % len(jpegs))]
    write_verification_bin(folder / "pairs.bin", pairs, [bool(pair % 2) for pair in range(20)])
    return records


def tiny_recipe(folder: Path, **overrides: object) -> Recipe:
    """A recipe on `write_tiny_records`: stored teacher, AdaFace, adaptive geometry, MobileFaceNet of 16 dimensions.

    Args:
        overrides: dotted keys with `__` for the dot, for example `optim__epochs=3`.
    """
    from adadistill.core.recipe import parse_recipe

    text = f"""
name: tiny
seed: 5
data: {{records: {folder}/train.rec, image_size: 32, global_batch_size: 8, decoder: cpu, workers: 1}}
teacher: {{embeddings: {folder}/teacher.npy}}
student: {{arch: mobilefacenet, embedding_dim: 16, width: 0.125}}
geometry_margin: {{mode: adaptive}}
optim: {{lr: 0.1, epochs: 2, milestones: [1], warmup_epochs: 1}}
checkpoint: {{every_epochs: null}}
log: {{every: 3}}
"""
    return parse_recipe(text, overrides=[f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])


def logged(run: Path, event: str = "train") -> list[dict[str, Any]]:
    """The lines of one kind in the log of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run; none of its checkpoints may be damaged."""
    from adadistill.core.checkpoints import newest_valid_checkpoint

    checkpoint, skipped = newest_valid_checkpoint(run)
    assert checkpoint is not None
    assert not skipped
    return checkpoint


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    """All that the newest checkpoint of a run holds, by name."""
    checkpoint = newest(run)
    return {**checkpoint.model, **checkpoint.optimiser, **checkpoint.row_sharded}


class NanImages:
    """Wraps a pipeline and damages one image of one step, past everything that could have refused it."""

    def __init__(self, pipeline: ImagePipeline, epoch: int, step: int, sample: int) -> None:
        self._pipeline, self._where, self._sample = pipeline, (epoch, step), sample
        self.steps_per_epoch, self.damaged = pipeline.steps_per_epoch, pipeline.damaged

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for batch in self._pipeline.epoch(epoch, first_step):
            if (batch.epoch, batch.step) == self._where:
                batch.images[self._sample, 0, 0, 0] = float("nan")
            yield batch

    def close(self) -> None:
        self._pipeline.close()
