"""Copies of the metrics show what the file holds, and whatever becomes of them, the run does not feel it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tests_support
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.metrics_mirror import MetricsMirror, MirrorConfig, MirrorError, WandbConfig, launcher
from adadistill.core.metrics_mirror.follow import main as follow
from adadistill.core.metrics_mirror.rows import GrowingFile, series, without_repeats
from adadistill.core.training.run import run_training
from adadistill.recipes.mirror import main as mirror_again

TENSORBOARD = MirrorConfig(tensorboard=True)
WANDB = MirrorConfig(wandb=WandbConfig(project="faces"))


def _row(step: int, **values: object) -> dict[str, object]:
    return {"event": "train", "time": 100.0 + step, "step": step, "epoch": 0, **values}


def _write(run: Path, *rows: dict[str, object]) -> Path:
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def _curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def test_lines_are_read_once_they_are_whole(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    growing = GrowingFile(path)
    assert growing.new_rows() == []
    path.write_bytes(b'{"step": 1}\n{"step"')
    assert growing.new_rows() == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b': 2}\nno json\n[3]\n{"step": 4}\n')
    assert growing.new_rows() == [{"step": 2}, {"step": 4}]
    assert growing.position == path.stat().st_size
    path.write_bytes(b"")  # cut short by whoever resumed
    assert growing.new_rows() == []
    assert growing.position == 0


def test_steps_that_a_resumed_run_did_again_count_once():
    first = [_row(step, loss=float(step)) for step in (10, 20, 30)]
    again = [_row(20, loss=0.5), _row(30, loss=0.25)]
    scored = {"event": "evaluation", "set": "lfw", "step": 30, "accuracy": 0.9}
    assert without_repeats([*first, scored, *again]) == [first[0], scored, *again]


def test_every_number_has_a_name_of_its_own():
    evaluation = {"event": "evaluation", "set": "IJBC", "kind": "ijb", "step": 3, "seconds": 1.0, "time": 5.0}
    scores = {"headline": "n1d1", "scores": {"n1d1/tar@1e-4": 0.9}, "ok": True, "lost": None}
    assert dict(series({**evaluation, **scores})) == {"evaluation/IJBC/n1d1/tar@1e-4": 0.9}
    assert dict(series(_row(3, loss=2, lr=0.1))) == {"train/loss": 2.0, "train/lr": 0.1}


def test_a_run_has_its_curves_in_tensorboard_when_it_ends(tmp_path: Path):
    write_tiny_records(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data", log__tensorboard="true", log__every=2)
    run_training(recipe, tmp_path / "run", ranks=Ranks())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["loss"])) for row in rows if row["event"] == "train"]
    assert _curves(tmp_path / "run")["train/loss"] == expected
    assert len(expected) == 6


def test_a_copy_made_again_is_one_curve(tmp_path: Path):
    run = _write(tmp_path / "run", _row(1, loss=1.0), _row(2, loss=2.0))
    assert mirror_again([str(run), "--tensorboard"]) == 0
    (run / "tensorboard" / "notes.txt").write_text("mine")
    _write(run, _row(2, loss=3.0), _row(3, loss=4.0))
    assert mirror_again([str(run), "--tensorboard"]) == 0
    assert _curves(run) == {"train/loss": [(1, 1.0), (2, 3.0), (3, 4.0)]}
    assert (run / "tensorboard" / "notes.txt").read_text() == "mine"


def test_a_package_that_is_missing_is_said_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MirrorError, match=r"log.wandb is asked for.*pip install 'adadistill\[wandb\]'"):
        WANDB.require_packages()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "say where to"), (["--tensorboard"], "holds no metrics.jsonl"), (["--wandb", "a/b"], "without '/'")],
)
def test_the_verb_refuses_at_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message):
    assert mirror_again([str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


# A stand-in for the library at its worst; the real one needs a network and an account.
_WANDB = """
import os, sys, time
def Settings(**_): return None
class Run:
    def define_metric(self, *_, **__): pass
    def log(self, values):
        if os.environ["TROUBLE"] == "log": raise RuntimeError("server said no")
        print("logged", values["step"], flush=True)
    def finish(self):
        if os.environ["TROUBLE"] == "finish": time.sleep(600)
def init(**settings):
    print("id", settings["id"], flush=True)
    if os.environ["TROUBLE"] == "init": time.sleep(600)
    if os.environ["TROUBLE"] == "refuse": raise ConnectionError("no route")
    if os.environ["TROUBLE"] == "crash": os._exit(139)
    return Run()
"""


@pytest.fixture
def with_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the stand-in on the path of processes to come, with one kind of trouble."""
    package = tmp_path / "site" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_WANDB)
    importable = tests_support.ROOT / ".typecheck"
    paths = [str(package.parent), *([str(importable)] if importable.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return lambda trouble: monkeypatch.setenv("TROUBLE", trouble)


@pytest.mark.parametrize("trouble", ["init", "finish", "refuse", "crash", "log"])
def test_no_trouble_of_a_copy_reaches_the_run(
    tmp_path: Path, with_wandb: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog, trouble: str
):
    with_wandb(trouble)
    monkeypatch.setattr(launcher, "FINISHED_GRACE_S", 3.0)
    run = _write(tmp_path / "run", _row(1, loss=1.0))
    with caplog.at_level(logging.WARNING):
        mirror = MetricsMirror(run, WANDB)
        started = time.monotonic()
        for _ in range(1000):
            mirror.check()
        assert time.monotonic() - started < 2.0
        mirror.close(finished=True)
        assert time.monotonic() - started < 60.0
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "training is not affected" in warnings[0]
    assert "adadistill mirror" in warnings[0]


def test_a_resumed_run_goes_on_with_the_same_page(tmp_path: Path, with_wandb: Callable[[str], None]):
    with_wandb("none")
    run = _write(tmp_path / "run", _row(1, loss=1.0))
    said = run / "metrics_mirror.log"
    for rows in ([], [_row(2, loss=2.0)]):
        _write(run, *rows)
        mirror = MetricsMirror(run, WANDB)
        mirror.close(finished=True)
    lines = said.read_text().splitlines()
    assert lines[0] == lines[2]  # the id
    assert [line for line in lines if line.startswith("logged")] == ["logged 1", "logged 2"]


def test_a_process_without_a_run_ends_by_itself(tmp_path: Path):
    import subprocess

    run = _write(tmp_path / "run", _row(1, loss=1.0))
    command = launcher.follow_commands(run, TENSORBOARD)["TensorBoard"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()  # as it is when the run has been killed
    assert process.wait(60) == 0
    assert _curves(run) == {"train/loss": [(1, 1.0)]}


def test_a_read_only_folder_costs_the_copy_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = _write(tmp_path / "run", _row(1, loss=1.0))
    (run / "tensorboard").write_text("a file where the folder should be")
    assert follow([str(run), "--tensorboard"]) == 1
    assert "could not be opened" in capfd.readouterr().err


def test_torch_is_not_loaded_by_the_process_that_copies():
    import subprocess

    code = "import sys, adadistill.core.metrics_mirror.follow as f; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
