"""The command that trains: its exit codes, what it prints, and how it leaves when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked_python import forked_python
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.recipe import dump_recipe
from adadistill.recipes import cli, train


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(folder, evaluation__sets=f"['{folder}/pairs.bin']")))
    return path


def test_a_finished_run_exits_0_and_prints_folder_speed_and_scores(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"finished: {tmp_path / 'run'}" in printed
    assert "images/s" in printed
    assert "pairs" in printed


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["nowhere.yaml"], "no such file"),
        (2, ["{recipe}", "optim.lrr=1"], "did you mean `optim.lr`"),
        (2, ["{recipe}", "data.records=nowhere.rec"], "nowhere.rec"),
        (2, ["{recipe}", "data.global_batch_size=49"], "do not fill one global batch"),
        (2, ["{recipe}", "evaluation.sets=[nowhere.bin]"], "nowhere.bin"),
        (2, ["{recipe}", "--device", "tpu"], "unknown device"),
        (1, ["{recipe}", "--resume", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_exit_nonzero_with_one_message_and_leave_no_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, arguments: list[str], message: str
):
    filled = [argument.format(recipe=recipe) for argument in arguments]
    assert train.main([*filled, "--out", str(tmp_path / "run")]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_damaged_record_ends_the_run_by_name(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = bytearray((recipe.parent / "train.rec").read_bytes())
    second = body.index(b"\xff\xd8\xff", 2000)
    body[second : second + 3] = b"\0\0\0"
    (tmp_path / "train.rec").write_bytes(bytes(body))
    damaged = [f"data.records={tmp_path}/train.rec", "data.num_classes=6"]
    code = train.main([str(recipe), *damaged, "--out", str(tmp_path / "run")])
    assert code == 1
    error = capsys.readouterr().err
    assert "record" in error
    assert str(tmp_path / "train.rec") in error


@pytest.mark.slow
def test_sigterm_saves_exits_143_and_keeps_what_was_profiled(recipe: Path, tmp_path: Path):
    command = [
        forked_python(), "-m", "adadistill.recipes.train", str(recipe), "--out", str(tmp_path / "run"),
        "--device", "cpu", "optim.epochs=400", "--resume", "auto",
        "--profile", "torch", "--profile-steps", "1:100",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / ".typecheck")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    saved, skipped = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None
    assert not skipped
    assert saved.step > 0
    assert "recorded steps" in error, "the window was not over, which is said"
    assert (tmp_path / "run" / "profile" / "trace-rank0.json.gz").exists()
