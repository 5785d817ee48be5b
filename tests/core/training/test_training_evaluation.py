"""Benchmarks of minutes during training: every so many epochs, on all ranks, under stable keys; also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_networks import write_tinyface
from rank_processes import run_ranks
from tiny_training import tiny_recipe, write_tiny_records

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


def events(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "evaluation"]


def test_every_second_epoch_and_the_last_are_scored(data, tmp_path):
    run_training(tiny_recipe(data, **overrides(data)), tmp_path / "run", ranks=Ranks())

    rows = events(tmp_path / "run")
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
    settings = overrides(data, precision="float64", optim__epochs=2)
    del settings["evaluation__sets"]  # the large ones alone, too
    found = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        plan = {"data": str(data), "run": str(folder / "run"), "overrides": settings, "student": "plain"}
        (folder / "plan.json").write_text(json.dumps(plan))
        run_ranks([str(WORKER), str(folder / "plan.json"), str(folder)], world_size)
        found.append(events(folder / "run"))
    assert len(found[0]) == len(found[1]) == 1
    assert found[0][0]["scores"] == pytest.approx(found[1][0]["scores"], abs=1e-12)


def test_a_run_killed_before_its_evaluation_makes_up_for_it(data, tmp_path, monkeypatch):
    from adadistill.core.scoring.tinyface.benchmark import TinyFaceBenchmark

    recipe = tiny_recipe(data, **overrides(data, checkpoint__every_epochs=1, checkpoint__keep=9))
    with monkeypatch.context() as patch:
        patch.setattr(TinyFaceBenchmark, "score", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, tmp_path / "run", ranks=Ranks())
    assert [row["set"] for row in events(tmp_path / "run")] == ["pairs", "pairs"]

    run_training(recipe, tmp_path / "run", ranks=Ranks(), resume="auto")

    assert [(row["set"], row["epoch"]) for row in events(tmp_path / "run")][2:] == [
        ("pairs", 2), ("faces", 2), ("pairs", 3), ("faces", 3),
    ]  # fmt: skip


def test_a_folder_that_is_no_benchmark_stops_the_run_before_it_trains(data, tmp_path):
    recipe = tiny_recipe(data, **overrides(data, evaluation__tinyface=f"[{data}]"))
    with pytest.raises((ImageSetError, FileNotFoundError)):
        run_training(recipe, tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(ValueError, match="large_every_epochs must be positive, got 0"):
        EvaluationConfig(large_every_epochs=0)
