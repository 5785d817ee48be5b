"""Weights of the golden backbones: made by rule, key by key, so that nothing large is stored (golden README)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def golden_tensor(key: str, shape: Sequence[int]) -> torch.Tensor:
    """The float64 tensor that the golden cases give to a public key."""
    generator = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        values = generator.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        values = generator.normal(0.0, 0.1, shape)
    elif len(shape) < 2:
        values = generator.uniform(0.5, 1.0, shape)
    else:
        values = generator.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(values))


def golden_shapes(case: Path) -> dict[str, list[int]]:
    """Public state-dict keys of a golden backbone with their shapes."""
    with np.load(case) as arrays:
        return dict(json.loads(str(arrays["keys"])))


def golden_state_dict(case: Path) -> dict[str, torch.Tensor]:
    """The public state dict of a golden backbone, float64."""
    return {key: golden_tensor(key, shape) for key, shape in golden_shapes(case).items()}
