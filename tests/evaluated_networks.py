"""Small networks and pair sets for the tests of evaluations and their reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import CheckpointWriter, Snapshot
from adadistill.core.checkpoints.network_checkpoint import describe_network
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin

BACKBONE = BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.25)
SIDE = 32


def write_pairs(path: Path, *, pairs: int = 24, seed: int = 0) -> Path:
    """Pairs of noise; the second image of a same pair is the first one with some more noise."""
    draw = np.random.default_rng(seed)
    images = []
    for pair in range(pairs):
        first = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        noise = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        images += [first, (first // 2 + noise // 2).astype(np.uint8) if pair % 2 == 0 else noise]
    bodies = [simplejpeg.encode_jpeg(np.ascontiguousarray(image)) for image in images]
    write_verification_bin(path, bodies, [pair % 2 == 0 for pair in range(pairs)])
    return path


def write_checkpoints(folder: Path, count: int = 3) -> Path:
    """A run folder with checkpoints of untrained networks, at the steps 10, 20, ..."""
    state = {"network": describe_network(BACKBONE, SIDE)}
    with CheckpointWriter(folder / "checkpoints", keep=count) as writer:
        for index in range(count):
            network = build_backbone(BACKBONE, SIDE, generator=index).eval()
            writer.save(10 * (index + 1), Snapshot(model=network.state_dict(), state=state))
            writer.wait()
    return folder


def write_tinyface(root: Path, *, side: int = SIDE) -> Path:
    """TinyFace's own layout with six probes, of which five have a mate, and seven distractors."""
    draw = np.random.default_rng(0)
    for folder, names in (
        ("Probe", [f"{person}_1.jpg" for person in range(6)]),
        ("Gallery_Match", [f"{person}_2.jpg" for person in range(5)]),
        ("Gallery_Distractor", [f"{number}.jpg" for number in range(7)]),
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            (root / folder / name).write_bytes(simplejpeg.encode_jpeg(pixels))
    return root
