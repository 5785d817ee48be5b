"""Networks in and out of checkpoints: the student of a run, a teacher, converted public weights.

A checkpoint of ours says in its state what network its tensors are, so that a path is all one needs to load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adadistill.core.backbones import BackboneConfig, backbone_skeleton, build_backbone
from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    Snapshot,
    load_checkpoint,
    resolve_checkpoint,
)


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network in evaluation mode and what it is."""

    network: nn.Module
    """Images (B, 3, H, W), RGB in [-1, 1] -> raw embeddings (B, D)."""
    backbone: BackboneConfig
    image_size: int
    path: Path
    """The checkpoint directory it came from."""
    step: int
    """Finished optimiser steps at the save."""


def describe_network(backbone: BackboneConfig, image_size: int) -> dict[str, Any]:
    """What a checkpoint's state holds under `network`."""
    return {**asdict(backbone), "image_size": image_size}


def load_network(path: str | Path, *, device: torch.device) -> LoadedNetwork:
    """Rebuild the network of a checkpoint, strictly.

    Args:
        path: a checkpoint directory, or a run folder, whose newest valid checkpoint is taken.

    Raises:
        CheckpointError: none is valid, it does not say what network it holds, or its tensors are not that network's.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(path), model_only=True)
    backbone, image_size = _read_description(checkpoint.state, checkpoint.path)
    _require_tensors_of(backbone, image_size, checkpoint)
    network = build_backbone(backbone, image_size, generator=0)
    dtypes = {tensor.dtype for tensor in checkpoint.model.values() if tensor.is_floating_point()}
    if dtypes == {torch.float64}:
        network.double()
    try:
        network.load_state_dict(checkpoint.model, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not hold a {backbone.arch} as it says: {error}") from None
    return LoadedNetwork(network.to(device).eval(), backbone, image_size, checkpoint.path, checkpoint.step)


def save_network(
    path: str | Path, network: nn.Module, backbone: BackboneConfig, image_size: int, **origin: Any
) -> Path:
    """Write a network alone as a checkpoint, to serve as a teacher or for evaluation.

    Args:
        path: a folder like that of a run; the checkpoint becomes its `checkpoints/step-00000000`.
        origin: JSON values that say where the weights come from, kept in the state.

    Returns:
        The checkpoint directory.
    """
    folder = Path(path) / "checkpoints"
    state = {"network": describe_network(backbone, image_size), "origin": origin}
    with CheckpointWriter(folder, keep=1) as writer:
        writer.save(0, Snapshot(model=network.state_dict(), state=state))
    return resolve_checkpoint(path)


def _require_tensors_of(backbone: BackboneConfig, image_size: int, checkpoint: Checkpoint) -> None:
    """Refuse tensors that are not the described network's before any memory is taken for that network."""
    try:
        expected = backbone_skeleton(backbone, image_size).state_dict()
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # sides or products that no tensor can have
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint.path}/state.json describes no network that can be built: {reason}"
        ) from None
    held = checkpoint.model
    problems = [f"lacks {name}" for name in expected.keys() - held.keys()]
    problems += [f"holds an unknown {name[:80]}" for name in held.keys() - expected.keys()]
    problems += [
        f"holds {name} of shape {tuple(held[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & held.keys()
        if held[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:8])
        raise CheckpointError(f"{checkpoint.path} does not hold a {backbone.arch} as it says: it {listed}")


def _read_description(state: Mapping[str, Any], path: Path) -> tuple[BackboneConfig, int]:
    description = state.get("network")
    if not isinstance(description, dict) or "image_size" not in description:
        raise CheckpointError(f"{path}/state.json does not say what network it holds (key `network`)")
    fields = dict(description)
    image_size = fields.pop("image_size")
    try:
        if type(image_size) is not int:
            raise ValueError(f"image_size must be an integer, got {image_size!r}")
        return BackboneConfig(**fields), image_size
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json describes no network we know: {error}") from None
