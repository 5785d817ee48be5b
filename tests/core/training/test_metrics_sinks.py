"""Copies of the metrics show what the file holds, and whatever becomes of them, the run does not feel it."""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.training.metrics_sinks import MetricsSinks, WandbConfig, require_sinks, series
from adadistill.core.training.run import run_training
from adadistill.recipes.mirror import main as mirror

WANDB = WandbConfig(project="faces")


def _row(step: int, **values: object) -> dict[str, object]:
    return {"event": "train", "time": 100.0 + step, "step": step, "epoch": 0, **values}


def _write(run: Path, *rows: dict[str, object]) -> Path:
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def _curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_every_number_has_a_name_of_its_own():
    evaluation = {"event": "evaluation", "set": "IJBC", "kind": "ijb", "step": 3, "seconds": 1.0, "time": 5.0}
    scores = {"headline": "n1d1", "scores": {"n1d1/tar@1e-4": 0.9}, "ok": True, "lost": None}
    assert dict(series({**evaluation, **scores})) == {"evaluation/IJBC/n1d1/tar@1e-4": 0.9}
    assert dict(series(_row(3, loss=2, lr=0.1))) == {"train/loss": 2.0, "train/lr": 0.1}


def test_a_run_has_its_curves_in_tensorboard_when_it_ends(tmp_path: Path):
    pytest.importorskip("tensorboard")
    write_tiny_records(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data", log__tensorboard="true", log__every=2)
    run_training(recipe, tmp_path / "run", ranks=Ranks())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["loss"])) for row in rows if row["event"] == "train"]
    assert _curves(tmp_path / "run")["train/loss"] == expected
    assert len(expected) == 6


def test_a_resumed_run_is_one_curve_and_so_is_a_copy_made_again(tmp_path: Path):
    pytest.importorskip("tensorboard")
    first = [_row(1, loss=1.0), _row(2, loss=2.0), _row(3, loss=2.5)]
    again = [{"event": "resume", "time": 110.0, "step": 1, "epoch": 0}, _row(2, loss=3.0), _row(3, loss=4.0)]
    run = _write(tmp_path / "run", *first, *again)
    for rows in (first, again):
        sinks = MetricsSinks(run, tensorboard=True)
        for row in rows:
            sinks.write(row)
        assert sinks.close()
        time.sleep(1.1)  # event files are told apart by the second
    curve = {"train/loss": [(1, 1.0), (2, 3.0), (3, 4.0)]}
    assert _curves(run) == curve

    (run / "tensorboard" / "notes.txt").write_text("mine")
    assert mirror([str(run), "--tensorboard"]) == 0
    assert _curves(run) == curve
    assert (run / "tensorboard" / "notes.txt").read_text() == "mine"


def test_a_package_that_is_missing_is_said_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"log.wandb is asked for.*pip install 'adadistill\[wandb\]'"):
        require_sinks(tensorboard=False, wandb=WANDB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "say where to"), (["--tensorboard"], "holds no metrics.jsonl"), (["--wandb", "a/b"], "without '/'")],
)
def test_the_verb_refuses_at_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message):
    assert mirror([str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


class _Wandb(types.ModuleType):
    """A stand-in for the library at its worst; the real one needs a network and an account."""

    def __init__(self, trouble: str = "none") -> None:
        super().__init__("wandb")
        self.trouble, self.ids, self.logged = trouble, [], []

    def Settings(self, **_: object) -> None:  # noqa: N802
        return None

    def init(self, **settings: Any) -> _Wandb:
        self.ids.append(settings["id"])
        if self.trouble == "init":
            time.sleep(600)
        if self.trouble == "refuse":
            raise ConnectionError("no route")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.trouble == "log":
            raise RuntimeError("server said no")
        self.logged.append((step, values))

    def finish(self) -> None:
        if self.trouble == "finish":
            time.sleep(600)


@pytest.mark.parametrize("trouble", ["init", "finish", "refuse", "log"])
def test_no_trouble_of_a_copy_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, trouble: str):
    monkeypatch.setitem(sys.modules, "wandb", _Wandb(trouble))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        sinks = MetricsSinks(tmp_path, wandb=WANDB)
        for step in range(1000):
            sinks.write(_row(step, loss=1.0))
        assert not sinks.close(within_s=0.5)
    assert time.monotonic() - started < 5.0
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "training is not affected" in warning
    assert f"adadistill mirror {tmp_path}" in warning


def test_a_resumed_run_goes_on_with_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", library)
    for step in (1, 2):
        sinks = MetricsSinks(tmp_path, wandb=WANDB)
        sinks.write(_row(step, loss=0.5))
        sinks.write({"event": "stop", "step": step, "epoch": 0})
        assert sinks.close()
    assert library.ids[0] == library.ids[1]
    assert library.logged == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.5})]


def test_a_folder_that_cannot_be_written_costs_the_copy_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    sinks = MetricsSinks(tmp_path, tensorboard=True)
    sinks.write(_row(1, loss=1.0))
    assert not sinks.close()
    assert "the copy of metrics.jsonl for TensorBoard failed with" in caplog.text
