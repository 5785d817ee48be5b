"""Memory by part: more work takes more, the size of a checkpoint is foretold, what does not fit is told what would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core import memory as memory_module
from adadistill.core.checkpoints import CheckpointConfig, list_checkpoints
from adadistill.core.device_kinds import DEVICES
from adadistill.core.distributed import Ranks
from adadistill.core.memory import (
    DeviceMemory,
    Setting,
    checkpoint_parts,
    checkpoint_space,
    device_memory,
    number_of_saves,
    ways_to_fit,
)
from adadistill.core.recipe import Recipe, load_recipe
from adadistill.core.training.run import run_training

DISTILLED = "ms1mv2_ir50_to_mobilefacenet"
STORED = "teacher={cvlface: null, embeddings: t.npy}"
H200 = Setting(kind=DEVICES["h200"], memory_gb=141.0, images=5_822_653, identities=85_742)


def memory(*overrides: str, recipe: str = DISTILLED, batch: int | None = None, **setting: Any) -> DeviceMemory:
    return device_memory(load_recipe(recipe, overrides), replace(H200, **setting), batch=batch)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder, identities=200, images=1)  # enough centres to be seen beside the network
    return folder


def test_a_larger_batch_and_more_identities_take_more() -> None:
    small, large = memory("data.global_batch_size=256"), memory("data.global_batch_size=1024")
    assert large.parts_gb["activations"] == pytest.approx(4 * small.parts_gb["activations"])
    assert small.parts_gb["student weights"] == large.parts_gb["student weights"]
    for recipe in (DISTILLED, "ms1mv2_ir50_adaface_teacher"):
        few, many = memory(recipe=recipe, identities=10_000), memory(recipe=recipe, identities=2_059_906)
        assert few.parts_gb["centres"] < many.parts_gb["centres"]


def test_centres_take_the_bytes_of_their_formats() -> None:
    million = {"identities": 1_000_000}
    assert memory(**million).parts_gb["centres"] == pytest.approx(6 * 0.512)
    assert memory("precision=float32", **million).parts_gb["centres"] == pytest.approx(8 * 0.512)
    assert memory("centres.half=bfloat16", **million).parts_gb["centres"] == pytest.approx((2 * 512 + 4) * 1e-3)
    trained = memory("centres.placement=sharded", recipe="ms1mv2_ir50_adaface_teacher", ranks=8, **million)
    assert trained.parts_gb["centres"] == pytest.approx(20 * 0.512 / 8)


def test_a_hundred_million_identities_fit_one_h200_in_half_precision() -> None:
    found = memory("centres.half=bfloat16", STORED, identities=100_000_000)
    assert found.parts_gb["centres"] + found.parts_gb["softmax workspace"] <= 125.0
    assert found.fits


def test_a_stored_teacher_has_no_network_and_a_cache_may_live_on_the_device() -> None:
    assert "teacher network" in memory().parts_gb.keys() - memory(STORED).parts_gb.keys()
    cached = memory("teacher={cvlface: null, cache: c, cache_on_device: true}")
    assert cached.parts_gb["teacher embeddings"] == pytest.approx(5_822_653 * 2 * 512 * 2e-9)
    spread = memory("data.packed=p", "data.packed_in=device_share", ranks=8)
    assert spread.parts_gb["packed store"] == pytest.approx(5_822_653 * 112 * 112 * 1.5e-9 / 8)


def test_a_batch_in_parts_keeps_fewer_activations() -> None:
    whole, parts = memory(batch=1024), memory("data.micro_batch_size=256", batch=1024)
    assert parts.parts_gb["activations"] == pytest.approx(whole.parts_gb["activations"] / 4)
    assert parts.parts_gb["prefetched batches"] == whole.parts_gb["prefetched batches"]


def test_what_does_not_fit_is_told_what_would() -> None:
    recipe, small = load_recipe(DISTILLED, ["data.global_batch_size=4096", STORED]), replace(H200, memory_gb=12.0)
    found = device_memory(recipe, small)
    assert not found.fits
    ways = ways_to_fit(recipe, small, found)
    assert [way.split("=")[0] for way in ways[1:3]] == ["data.micro_batch_size", "centres.half"]
    for way in (ways[0].split("(")[1].strip(")"), ways[1].split(",")[0]):
        assert device_memory(_with(recipe, way), small).fits


def _with(recipe: Recipe, override: str) -> Recipe:
    key, value = override.removeprefix("data.").split("=")
    return replace(recipe, data=replace(recipe.data, **{key: int(value)}))


@pytest.mark.parametrize("wrong", [{"ranks": 0}, {"images": 0}, {"memory_gb": -1.0}, {"teacher_arch": "resnet"}])
def test_a_setting_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("teacher_arch", "network")):
        replace(H200, **wrong)


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


def test_a_disk_that_is_too_small_refuses_the_run_with_the_numbers_and_what_helps(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(records, checkpoint__every_epochs=1, optim__epochs=9)
    monkeypatch.setattr(memory_module, "_free_bytes", lambda folder: 1000)

    found = checkpoint_space(recipe, tmp_path / "run", identities=200, steps_per_epoch=25)

    assert (found.kept, found.most_at_once, found.free_bytes) == (3, 4, 1000)
    assert found.needed_bytes == 4 * found.one_bytes
    with pytest.raises(ValueError, match=r"too little room for the checkpoints .* lower checkpoint\.keep"):
        run_training(recipe, tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run").exists()
