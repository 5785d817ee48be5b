"""The folder that stands in for real faces where a bench only has to show that it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)

IMAGE_SIZE = 32
IDENTITIES = 12
EMBEDDING_DIM = 16


def write_tiny_faces(folder: Path) -> None:
    """Synthetic faces under the names of real ones, and rows of a teacher that knows them."""
    config = SyntheticFacesConfig(image_size=IMAGE_SIZE, identities=IDENTITIES, images_per_identity=2)
    write_synthetic_records(folder, config)
    write_synthetic_pairs(folder / "faces_holdout.bin", config, pairs=20)
    generator = np.random.default_rng(0)
    people = generator.standard_normal((IDENTITIES, 1, EMBEDDING_DIM), dtype=np.float32).repeat(2, axis=0)
    rows = people + 0.3 * generator.standard_normal((2 * IDENTITIES, 2, EMBEDDING_DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    np.save(folder / "teacher_embeddings.npy", rows.astype(np.float16))
