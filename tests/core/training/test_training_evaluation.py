"""Benchmarks of minutes during training: every so many epochs, on all ranks, under stable keys; also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_networks import write_tinyface
from rank_processes import run_ranks
from tiny_training import PlainStudent, logged, tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.evaluation_config import EvaluationConfig
from adadistill.core.training.run import run_training
from adadistill.loaders.evaluation_sets.image_sets import ImageSetError

WORKER = Path(__file__).parent.parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    write_tinyface(folder / "faces")
    return folder


def overrides(data: Path, **others: object) -> dict[str, Any]:
    return {
        "evaluation__sets": f"[{data}/pairs.bin]",
        "evaluation__tinyface": f"[{data}/faces]",
        "evaluation__large_every_epochs": 2,
        "optim__epochs": 3,
        **others,
    }


def test_every_second_epoch_and_the_last_are_scored(data, tmp_path):
    run_training(tiny_recipe(data, **overrides(data)), tmp_path / "run", ranks=Ranks())

    rows = logged(tmp_path / "run", "evaluation")
    assert [(row["set"], row["epoch"]) for row in rows] == [
        ("pairs", 1), ("pairs", 2), ("faces", 2), ("pairs", 3), ("faces", 3),
    ]  # fmt: skip
    large = rows[2]
    assert large.keys() == {
        "event", "time", "step", "epoch", "set", "kind", "seconds", "data_sha256", "headline", "scores",
    }  # fmt: skip
    assert (large["kind"], large["headline"]) == ("tinyface", "tinyface.faces.rank-1")
    assert list(large["scores"]) == [f"tinyface.faces.rank-{rank}" for rank in (1, 5, 20)]
    assert all(0.0 <= value <= 1.0 for value in large["scores"].values())


def test_two_ranks_score_as_one_does(data, tmp_path):
    settings = overrides(data, precision="float64", optim__epochs=1, optim__milestones="[]")
    del settings["evaluation__sets"]  # the large ones alone, too
    run_training(tiny_recipe(data, **settings), tmp_path / "alone", ranks=Ranks(), student=PlainStudent())
    plan = {"data": str(data), "run": str(tmp_path / "run"), "overrides": settings, "student": "plain"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run_ranks([str(WORKER), str(tmp_path / "plan.json"), str(tmp_path)], 2)
    (one,), (other,) = logged(tmp_path / "alone", "evaluation"), logged(tmp_path / "run", "evaluation")
    assert one["scores"] == pytest.approx(other["scores"], abs=1e-12)


def test_a_folder_that_is_no_benchmark_stops_the_run_before_it_trains(data, tmp_path):
    recipe = tiny_recipe(data, **overrides(data, evaluation__tinyface=f"[{data}]"))
    with pytest.raises((ImageSetError, FileNotFoundError)):
        run_training(recipe, tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(ValueError, match="large_every_epochs must be positive, got 0"):
        EvaluationConfig(large_every_epochs=0)
