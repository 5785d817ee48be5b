"""Runs with frozen or slow centres and with regression: they learn, go on where they stopped, refuse other centres."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from term_cases import EVERY_TERM
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import Checkpoint, newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import CentresFileError, read_centres, stored_centres, write_centres
from adadistill.core.training.resume_check import ResumeError
from adadistill.core.training.run import run_training

RANKS = Ranks()
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
REGRESSION_ALONE = {"centres__kind": "none", "geometry_margin__mode": "off", "regression__weight": 64.0}
EIGHT_EPOCHS = {"optim__epochs": 8, "optim__milestones": "[7]", "optim__lr": 0.05, "optim__lr_batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, and beside them `teacher`: a run that trained its centres on them."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    run_training(tiny_recipe(folder, optim__epochs=1, optim__milestones="[]", **TRAINABLE), folder / "run", ranks=RANKS)
    return folder


def _objectives(data: Path) -> dict[str, dict[str, object]]:
    frozen = {"centres__kind": "frozen", "centres__path": data / "run"}
    return {
        "frozen": {**frozen, "teacher": "null", "geometry_margin__mode": "off"},
        "frozen with geometry and regression": {**frozen, "regression__weight": 2.0},
        "regression alone": REGRESSION_ALONE,
        "adaptive with regression": {"regression__weight": 2.0},
        "adaptive with every term and hard regression, sampled": {
            **EVERY_TERM, "regression__weight": 64.0, "regression__hardest": 0.5, "centres__sample_rate": 0.7,
            "data__global_batch_size": 4,
        },
        "adaptive with headroom": {"geometry_margin__mode": "headroom", "geometry_margin__headroom_momentum": 0.9},
        "trainable with regression": {"centres__kind": "trainable", "geometry_margin__mode": "off",
                                      "regression__weight": 2.0},
    }  # fmt: skip


NAMES = list(_objectives(Path()))


def _newest(folder: Path) -> Checkpoint:
    checkpoint, skipped = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    assert not skipped
    return checkpoint


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_resumed_at_any_step_equals_one_that_never_stopped(data: Path, tmp_path: Path, name: str):
    changes = _objectives(data)[name]
    recipe = tiny_recipe(data, checkpoint__every_steps=3, checkpoint__keep=4, **EIGHT_EPOCHS, **changes)
    run_training(recipe, tmp_path / "whole", ranks=RANKS)
    rows, whole = _rows(tmp_path / "whole"), _newest(tmp_path / "whole")
    assert sum(row["loss"] for row in rows[-4:]) < 0.9 * sum(row["loss"] for row in rows[:4])
    assert ("regression" in rows[0]) == ("regression" in name)
    assert ("student_teacher_cosine" in rows[0]) == (changes.get("teacher") != "null")
    assert ("confidence" in rows[0]) == (name.startswith("adaptive") or name == "frozen with geometry and regression")
    assert ("slow_confidence" in rows[0]) == (name == "adaptive with headroom")
    if name == "regression alone":
        assert all(row["loss"] == pytest.approx(64.0 * row["regression"], rel=1e-5) for row in rows)

    # 6 steps an epoch (12 where classes are sampled): in the middle of one, and at its edge.
    for step in (whole.step - 9, whole.step - 6):
        start = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
        torch.manual_seed(step)
        run_training(recipe, tmp_path / f"from-{step}", ranks=RANKS, resume=str(start))
        resumed = _newest(tmp_path / f"from-{step}")
        assert resumed.state == whole.state
        for part in ("model", "optimiser", "row_sharded"):
            ours, theirs = getattr(resumed, part), getattr(whole, part)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), part


def test_checkpoints_name_frozen_centres_and_do_not_hold_them(data: Path, tmp_path: Path):
    once = {"optim__epochs": 1, "optim__milestones": "[]"}
    run_training(tiny_recipe(data, **once, **_objectives(data)["frozen"]), tmp_path / "frozen", ranks=RANKS)
    run_training(tiny_recipe(data, **once, **REGRESSION_ALONE), tmp_path / "alone", ranks=RANKS)

    frozen, alone = _newest(tmp_path / "frozen"), _newest(tmp_path / "alone")
    assert frozen.row_sharded == alone.row_sharded == {}
    assert frozen.state["frozen_centres"] == {"source": "run, step 6", "sha256": read_centres(data / "run").sha256}
    assert "frozen_centres" not in alone.state
    with pytest.raises(CentresFileError, match="or of a run with frozen centres or none"):
        read_centres(tmp_path / "frozen")


def test_a_frozen_run_goes_on_with_the_same_centres_from_elsewhere_and_with_no_others(data: Path, tmp_path: Path):
    frozen = _objectives(data)["frozen"]
    run_training(tiny_recipe(data, optim__epochs=1, optim__milestones="[]", **frozen), tmp_path / "run", ranks=RANKS)
    allowed = ["optim.epochs", "optim.milestones", "centres.path"]

    other = read_centres(data / "run").rows.clone()
    other[0, 0] += 1e-4
    write_centres(tmp_path / "other.safetensors", stored_centres(other, "other"))
    changed = tiny_recipe(data, **{**frozen, "centres__path": tmp_path / "other.safetensors"})
    with pytest.raises(ResumeError, match=r"trained with frozen class centres of sha256 .*, centres\.path holds other"):
        run_training(changed, tmp_path / "run", ranks=RANKS, resume="auto", resume_allow=allowed)

    write_centres(tmp_path / "same.npy", read_centres(data / "run"), file_format="npy")
    same = tiny_recipe(data, **{**frozen, "centres__path": tmp_path / "same.npy"})
    with pytest.raises(ResumeError, match=r"centres\.path: "):
        run_training(same, tmp_path / "run", ranks=RANKS, resume="auto", resume_allow=allowed[:2])
    run_training(same, tmp_path / "run", ranks=RANKS, resume="auto", resume_allow=allowed)
    assert _newest(tmp_path / "run").step == 12


@pytest.mark.parametrize("name", ["frozen", "regression alone"])
def test_a_run_of_another_kind_is_not_gone_on_with(data: Path, tmp_path: Path, name: str):
    changed = tiny_recipe(data, **_objectives(data)[name])
    allowed = ["centres.kind", "centres.path", "teacher", "geometry_margin.mode", "regression.weight", "head.kind",
               "optim.epochs", "optim.milestones"]  # fmt: skip
    with pytest.raises(ResumeError, match=r"trained with no frozen class centres|does not fit this run"):
        run_training(changed, tmp_path / "run", ranks=RANKS, resume=str(data / "run"), resume_allow=allowed)


def test_centres_of_other_records_stop_the_run_at_the_door(data: Path, tmp_path: Path):
    write_tiny_records(tmp_path / "other", images=9)
    frozen = {**_objectives(data)["frozen"], "data__records": tmp_path / "other" / "train.rec"}
    with pytest.raises(CentresFileError, match=r"class centres of other records .* export"):
        run_training(tiny_recipe(data, **frozen), tmp_path / "run", ranks=RANKS)
    with pytest.raises(CentresFileError, match=r"16-d class centres, the student's embeddings are 32-d"):
        run_training(
            tiny_recipe(data, **_objectives(data)["frozen"], student__embedding_dim=32), tmp_path / "run", ranks=RANKS
        )
    assert not (tmp_path / "run").exists()


def test_float64_runs_take_float32_centres(data: Path, tmp_path: Path):
    frozen = {**_objectives(data)["frozen"], "precision": "float64", "optim__epochs": 1, "optim__milestones": "[]"}
    result = run_training(tiny_recipe(data, **frozen), tmp_path / "run", ranks=RANKS)
    assert result.metrics["loss"] > 0.0
