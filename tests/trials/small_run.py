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
from trials.training_process import TrainingProcess, rank_environments

IMAGE_SIZE, EMBEDDING_DIM, BATCH = 32, 64, 8
_IDENTITIES = 8
_TIMES = ("time", "images_per_s", "wait_share", "eta_s", "peak_mib", "seconds")
"""Fields of a log line that no two runs share."""


@dataclass(frozen=True, slots=True)
class SmallRun:
    """A recipe on files of its own."""

    recipe: Path
    steps: int
    """Steps of the whole run; each of them is saved."""

    def arguments(self, folder: Path, *more: str) -> list[str]:
        """Arguments of `adadistill train`, to begin the run in a folder or to go on there."""
        return [str(self.recipe), *more, "--out", str(folder), "--device", "cpu", "--resume", "auto"]

    def start(self, folder: Path, ranks: int = 1) -> list[TrainingProcess]:
        """Begin or go on, one process a rank, each with a log beside the folder."""
        return [
            TrainingProcess(self.arguments(folder), folder.with_name(f"{folder.name}-{rank}.log"), environment)
            for rank, environment in enumerate(rank_environments(ranks))
        ]


def write_small_run(folder: Path, *, epochs: int, centres: int, images_each: int = 6, pairs: int = 20) -> SmallRun:
    """Write records of eight identities, stored teacher embeddings, a verification set and a recipe.

    Args:
        centres: rows of the class centres, 256 bytes each; at least 8.
    """
    config = SyntheticFacesConfig(image_size=IMAGE_SIZE, identities=_IDENTITIES, images_per_identity=images_each)
    images = _IDENTITIES * images_each
    write_synthetic_records(folder, config, threads=1)
    write_synthetic_pairs(folder / "pairs.bin", config, pairs=pairs, threads=1)
    rng = np.random.default_rng(0)
    people = np.repeat(rng.standard_normal((_IDENTITIES, 1, EMBEDDING_DIM)), images_each, axis=0)
    rows = people + rng.standard_normal((images, 2, EMBEDDING_DIM))  # a teacher that knew nobody would be refused
    np.save(folder / "teacher.npy", (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
name: small
seed: 3
data: {{records: "{folder}/train.rec", num_classes: {centres}, image_size: {IMAGE_SIZE}, global_batch_size: {BATCH},
        decoder: cpu, workers: 1}}
teacher: {{embeddings: "{folder}/teacher.npy"}}
student: {{arch: mobilefacenet, embedding_dim: {EMBEDDING_DIM}, width: 0.125}}
geometry_margin: {{mode: adaptive}}
optim: {{lr: 0.1, epochs: {epochs}, milestones: []}}
checkpoint: {{every_steps: 1, every_epochs: null, keep: 2}}
evaluation: {{sets: ["{folder}/pairs.bin"]}}
log: {{every: 1}}
""",
        encoding="utf-8",
    )
    return SmallRun(recipe, epochs * images // BATCH)


def lines_logged(folder: Path) -> int:
    """Lines of the run's log: its own clock, as a busy machine has no other."""
    metrics = RunFolder(folder).metrics
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished run leaves, without what two equal runs do not share."""

    step: int
    files: dict[str, str]
    """sha256 of each file of the last checkpoint: parameters, optimiser, centres, random state, position."""
    lines: list[dict[str, Any]]
    """What it logged, steps and scores, without times."""


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
