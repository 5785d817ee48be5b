"""How large the checkpoints of a run would be, how many there will be at a time, and whether the disk has room."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from adadistill.core.checkpoints import CheckpointConfig, list_checkpoints
from adadistill.core.cost_model.network_cost import network_cost
from adadistill.core.launch_check.findings import Findings, stat_of
from adadistill.core.method.slow_centres import slow_centres_dtype
from adadistill.core.recipe import Recipe
from adadistill.core.training.optimiser import parts_like_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSpace:
    """Space of a run's checkpoints, in bytes."""

    parts_bytes: dict[str, int]
    """Of one checkpoint; headers and JSON, some kilobytes, are not counted."""
    one_bytes: int
    kept: int
    """Checkpoints at the end of the run."""
    most_at_once: int
    """While a new one is written, before the oldest goes."""
    needed_bytes: int
    """Beside what the run folder's checkpoints take already."""
    free_bytes: int | None
    """On the disk of the run folder; None where the system does not tell."""


def checkpoint_space(
    recipe: Recipe, folder: Path, *, identities: int, steps_per_epoch: int, findings: Findings
) -> CheckpointSpace:
    """Estimate it, and note a problem where the disk has too little room."""
    parts = checkpoint_parts(recipe, identities)
    one = sum(parts.values())
    saves = number_of_saves(recipe.checkpoint, epochs=recipe.optim.epochs, steps_per_epoch=steps_per_epoch)
    most = min(recipe.checkpoint.keep + 1, saves)
    needed = max(0, most * one - _bytes_of_checkpoints(folder))
    free = _free_bytes(folder)
    if free is not None and needed > free:
        findings.problems.append(
            f"too little room for checkpoints where {folder} would lie: {most} at once of {one / 1e9:.2f} GB need "
            f"{needed / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free; make room, give --out another disk, or lower "
            f"checkpoint.keep ({recipe.checkpoint.keep})"
        )
    return CheckpointSpace(
        parts_bytes=parts,
        one_bytes=one,
        kept=min(recipe.checkpoint.keep, saves),
        most_at_once=most,
        needed_bytes=needed,
        free_bytes=free,
    )


def checkpoint_parts(recipe: Recipe, identities: int) -> dict[str, int]:
    """Bytes of the tensors in one checkpoint, by what they are."""
    network = network_cost(recipe.student, recipe.data.image_size)
    exact = torch.float64 if recipe.precision == "float64" else torch.float32
    centres = identities * recipe.student.embedding_dim
    kind, half = recipe.centres.kind, recipe.centres.half
    parts = {
        "student": (network.parameters + network.running_statistics) * exact.itemsize,
    }
    kept = parts_like_parameters(recipe.optim)
    parts |= dict.fromkeys(kept, network.parameters * exact.itemsize)
    if kind == "adaptive":
        parts["class centres"] = centres * (exact if half is None else getattr(torch, half)).itemsize
    elif kind == "trainable":
        of_centres = ("class centres", *(f"{part} of the centres" for part in kept))
        parts |= dict.fromkeys(of_centres, centres * exact.itemsize)
    if recipe.geometry_margin.mode == "headroom":
        parts["slow centres"] = centres * slow_centres_dtype(half, exact).itemsize
    return parts


def number_of_saves(config: CheckpointConfig, *, epochs: int, steps_per_epoch: int) -> int:
    """Checkpoints that a run writes; the end is always saved, and a step is saved once."""
    total = epochs * steps_per_epoch
    periods = [config.every_steps or 0, (config.every_epochs or 0) * steps_per_epoch]
    every = [period for period in periods if period]
    both = math.lcm(*every) if len(every) == 2 else 0
    due = sum(total // period for period in every) - (total // both if both else 0)
    return due + all(total % period for period in every)


def _bytes_of_checkpoints(folder: Path) -> int:
    """What the folder's checkpoints take already: they make room for new ones."""
    try:
        files = [file for checkpoint in list_checkpoints(folder) for file in checkpoint.iterdir()]
    except OSError:  # what cannot be listed is a problem of the run folder, noted there
        return 0
    return sum(found.st_size for file in files if (found := stat_of(file)) is not None)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(existing_ancestor(folder)).free
    except OSError:
        return None


def existing_ancestor(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((candidate for candidate in (path, *path.parents) if stat_of(candidate) is not None), path)
