"""A tiny network of 8 x 8 images and sets of noise, for the tests of scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import nn

from adadistill.core.precision import resolve_precision
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin

FLOAT64 = resolve_precision("float64", torch.device("cpu"))


class TinyNetwork(nn.Module):
    """8 x 8 images to 6-d embeddings, with what behaves otherwise in training: batch norm and dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 6), nn.BatchNorm1d(6))
        self.batch_sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.batch_sizes.append(len(images))
        return self.body(self.frozen(images))


def pixels(count: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    """(count, side, side, 3) uint8."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def write_set(path: Path, pairs: int, side: int = 8) -> Path:
    """A verification set of noise, same and different pairs in turn."""
    images = [simplejpeg.encode_jpeg(image.numpy(), quality=95) for image in pixels(2 * pairs, seed=pairs, side=side)]
    write_verification_bin(path, images, [index % 2 == 0 for index in range(pairs)])
    return path
