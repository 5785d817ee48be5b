"""Two gloo processes against one, with frozen and slow centres and regression: the same training, equal replicas.

The student has no batch norm, so that a sample's embedding does not depend on how the batch is divided.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from term_cases import EVERY_TERM
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records
from torch import Tensor

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training

WORKER = Path(__file__).parent.parent / "distributed_worker.py"
FLOAT64 = {"precision": "float64", "log__every": 1}
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records and `run`: a network that was trained on them with centres of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    run_training(
        tiny_recipe(folder, optim__epochs=1, optim__milestones="[]", **TRAINABLE), folder / "run", ranks=Ranks()
    )
    return folder


def _objectives(data: Path) -> dict[str, dict[str, object]]:
    network = {"teacher__embeddings": "null", "teacher__checkpoint": str(data / "run"), "teacher__check": "false"}
    frozen = {"centres__kind": "frozen", "centres__path": str(data / "run")}
    return {
        # A network embeds the rank's own images, whose rows are not gathered; a store is asked for them.
        "frozen, geometry and regression, network": {**frozen, **network, "regression__weight": 2.0},
        "regression alone, stored": {
            "centres__kind": "none",
            "geometry_margin__mode": "off",
            "regression__weight": 64.0,
        },
        "adaptive with every term and sampled classes, stored": {
            **EVERY_TERM,
            "centres__sample_rate": 0.7,
            "data__global_batch_size": 4,
            "regression__weight": 2.0,
            "regression__hardest": 0.5,
        },
        "adaptive with headroom and regression, network": {
            **network,
            "geometry_margin__mode": "headroom",
            "regression__weight": 2.0,
        },
    }


@pytest.fixture(scope="module")
def launched(data: Path) -> Path:
    """Folder of a launch of two processes, which have trained every objective one after the other."""
    folder, plans = data / "two", []
    for number, changes in enumerate(_objectives(data).values()):
        out = folder / str(number)
        out.mkdir(parents=True)
        plans.append({"data": str(data), "run": str(out / "run"), "out": str(out), "student": "plain",
                      "overrides": {**FLOAT64, **changes}})  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plans))
    run_ranks([str(WORKER), str(folder / "plan.json")], 2)
    return folder


def _final(folder: Path) -> dict[str, Tensor]:
    checkpoint, _ = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    return {**checkpoint.model, **checkpoint.optimiser, **checkpoint.row_sharded}


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


@pytest.mark.parametrize(("number", "name"), list(enumerate(_objectives(Path()))))
def test_two_processes_train_as_one_does(data: Path, launched: Path, tmp_path: Path, number: int, name: str):
    changes, two = {**FLOAT64, **_objectives(data)[name]}, launched / str(number)
    run_training(tiny_recipe(data, **changes), tmp_path / "one", ranks=Ranks(), student=PlainStudent())
    states = [torch.load(two / f"rank-{rank}.pt") for rank in range(2)]

    alone, together = _final(tmp_path / "one"), _final(two / "run")
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        assert (together[key] - value).abs().max() <= 1e-10 * value.abs().max(), key
    for ours, theirs in zip(_metrics(tmp_path / "one"), _metrics(two / "run"), strict=True):
        # Metrics are summed in float32.
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)
        assert theirs["regression"] == pytest.approx(ours["regression"], rel=1e-6)
    assert ("slow_centres" in states[0]) == ("headroom" in name)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
