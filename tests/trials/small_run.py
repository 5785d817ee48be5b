"""The run that is damaged: synthetic faces, a small network, centres of some megabytes, a save after every step.

Saves are what kills and full disks are to hit, so they are as frequent as they can be, and large enough (thousands of
identities that the records need not have) that writing one takes longer than a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adadistill.core.checkpoints import CheckpointError, newest_valid_checkpoint
from adadistill.core.checkpoints.files import read_manifest
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)

_IMAGE_SIZE, _IDENTITIES, _IMAGES_EACH = 32, 8, 6
_EMBEDDING_DIM, _BATCH = 64, 8
_TIMES = ("time", "images_per_s", "wait_share", "eta_s", "peak_mib", "seconds")
"""Fields of a log line that no two runs share."""


@dataclass(frozen=True, slots=True)
class SmallRun:
    """A recipe on files of its own."""

    recipe: Path
    epochs: int

    @property
    def steps(self) -> int:
        """Of the whole run; each of them is saved."""
        return self.epochs * _IDENTITIES * _IMAGES_EACH // _BATCH

    def arguments(self, folder: Path, *more: str) -> list[str]:
        """Of `adadistill train`, to begin the run in a folder or to go on there."""
        return [str(self.recipe), "--out", str(folder), "--device", "cpu", "--resume", "auto", *more]


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished run leaves, without what two equal runs do not share."""

    step: int
    files: dict[str, str]
    """sha256 of each file of the last checkpoint: parameters, optimiser, centres, random state, position."""
    lines: list[dict[str, Any]]
    """What it logged, steps and scores, without times."""


def write_small_run(folder: Path, *, epochs: int, identities: int) -> SmallRun:
    """Write records, stored teacher embeddings, a verification set and a recipe.

    Args:
        identities: rows of the class centres, 256 bytes each; at least 8.
    """
    config = SyntheticFacesConfig(image_size=_IMAGE_SIZE, identities=_IDENTITIES, images_per_identity=_IMAGES_EACH)
    records = write_synthetic_records(folder, config, threads=1)
    write_synthetic_pairs(folder / "pairs.bin", config, pairs=20, threads=1)
    shape = (_IDENTITIES * _IMAGES_EACH, 2, _EMBEDDING_DIM)
    rows = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.save(folder / "teacher.npy", (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
name: small
seed: 3
data:
  records: {records}
  num_classes: {identities}
  image_size: {_IMAGE_SIZE}
  global_batch_size: {_BATCH}
  decoder: cpu
  workers: 1
teacher: {{embeddings: {folder}/teacher.npy}}
student: {{arch: mobilefacenet, embedding_dim: {_EMBEDDING_DIM}, width: 0.125}}
geometry_margin: {{mode: adaptive}}
optim: {{lr: 0.1, epochs: {epochs}, milestones: []}}
checkpoint: {{every_steps: 1, every_epochs: null, keep: 2}}
evaluation: {{sets: ["{folder}/pairs.bin"]}}
log: {{every: 1}}
""",
        encoding="utf-8",
    )
    return SmallRun(recipe, epochs)


def ending_of(folder: Path) -> Ending:
    """What a finished run left in its folder.

    Raises:
        CheckpointError: no valid checkpoint, damaged ones, or leftovers beside them.
    """
    saved, skipped = newest_valid_checkpoint(folder)
    if saved is None or skipped:
        raise CheckpointError(f"{folder}: newest checkpoint {saved and saved.step}, passed over {skipped}")
    run_folder = RunFolder(folder)
    leftovers = [path.name for path in run_folder.checkpoints.iterdir() if not path.name.startswith("step-")]
    if leftovers:
        raise CheckpointError(f"{folder}: {leftovers} left beside the checkpoints of a finished run")
    lines = [
        {key: value for key, value in row.items() if key not in _TIMES}
        for row in read_metrics(run_folder.metrics)
        if row.get("event") in ("train", "evaluation")
    ]
    return Ending(saved.step, {file.name: file.sha256 for file in read_manifest(saved.path).files}, lines)


def difference(found: Ending, expected: Ending) -> str:
    """What tells two endings apart, for people; empty if nothing does."""
    if found.step != expected.step:
        return f"ended at step {found.step}, not {expected.step}"
    other = sorted(name for name in expected.files if found.files.get(name) != expected.files[name])
    if other or found.files.keys() != expected.files.keys():
        return f"other bits in {', '.join(other) or sorted(found.files)}"
    if found.lines != expected.lines:
        steps = [[(line["event"], line["step"]) for line in ending.lines] for ending in (found, expected)]
        return "metrics.jsonl has other values" if steps[0] == steps[1] else f"metrics.jsonl stands as {steps[0]}"
    return ""
