"""The size of a checkpoint is foretold from the recipe, and a disk that is too small is named before the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import CheckpointConfig, list_checkpoints
from adadistill.core.distributed import Ranks
from adadistill.core.launch_check import checkpoint_space as space_module
from adadistill.core.launch_check.checkpoint_space import checkpoint_parts, checkpoint_space, number_of_saves
from adadistill.core.launch_check.findings import Findings
from adadistill.core.training.run import run_training


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder, identities=200, images=1)  # enough centres to be seen beside the network
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"centres__half": "bfloat16"},
        {"geometry_margin__mode": "headroom"},
        {"centres__kind": "trainable", "teacher": "null", "geometry_margin__mode": "off"},
        {"centres__kind": "none", "regression__weight": "1.0", "geometry_margin__mode": "off"},
    ],
    ids=["adaptive", "half", "headroom", "trainable", "none"],
)
def test_the_foretold_size_is_that_of_the_files_but_for_headers(
    records: Path, tmp_path: Path, overrides: dict[str, str]
) -> None:
    recipe = tiny_recipe(records, optim__epochs=1, optim__milestones="[]", data__global_batch_size=100, **overrides)
    run_training(recipe, tmp_path / "run", ranks=Ranks(device=torch.device("cpu")))

    (checkpoint,) = list_checkpoints(tmp_path / "run")
    written = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    headers = 0
    for file in checkpoint.glob("*.safetensors"):
        headers += 8 + int.from_bytes(file.read_bytes()[:8], "little")
    foretold = sum(checkpoint_parts(recipe, 200).values())
    batch_counters = 8 * 64  # one int64 a batch norm, statistics of norms: not foretold
    assert 0 <= written - headers - foretold <= batch_counters


@pytest.mark.parametrize(
    ("config", "saves"),
    [
        (CheckpointConfig(), 5),
        (CheckpointConfig(every_epochs=2), 3),
        (CheckpointConfig(every_epochs=None), 1),
        (CheckpointConfig(every_epochs=None, every_steps=7), 8),
        (CheckpointConfig(every_epochs=1, every_steps=10), 5),
        (CheckpointConfig(every_epochs=1, every_steps=4), 15),
    ],
)
def test_a_step_that_is_due_twice_is_saved_once(config: CheckpointConfig, saves: int) -> None:
    total = {step for step in range(1, 51) if config.is_due(step, 10)} | {50}
    assert number_of_saves(config, epochs=5, steps_per_epoch=10) == saves == len(total)


def test_a_run_without_end_is_counted_without_walking_it() -> None:
    assert number_of_saves(CheckpointConfig(every_steps=1), epochs=2**60, steps_per_epoch=1) == 2**60


def test_too_small_a_disk_is_a_problem_with_the_numbers_and_what_helps(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(records, checkpoint__every_epochs=1, optim__epochs=9)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    findings = Findings()

    found = checkpoint_space(recipe, tmp_path / "run", identities=200, steps_per_epoch=25, findings=findings)

    assert (found.kept, found.most_at_once, found.free_bytes) == (3, 4, 1000)
    assert found.needed_bytes == 4 * found.one_bytes
    (problem,) = findings.problems
    assert "too little room for checkpoints" in problem
    assert "checkpoint.keep" in problem
