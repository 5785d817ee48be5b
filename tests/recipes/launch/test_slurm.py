"""The SLURM script is whole: its shell parses, its torchrun command is one that torchrun and our entry point take, and
with stand-ins for SLURM's commands a signal makes it save, queue itself again, and resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import forked_python
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.recipe import dump_recipe
from adadistill.recipes import train

SCRIPT = ROOT / "recipes" / "launch" / "slurm.sbatch"

SRUN_TELLS = f"""#!{sys.executable}
import json, os, sys
json.dump({{"arguments": sys.argv[1:], "threads": os.environ["OMP_NUM_THREADS"]}}, open(os.environ["TOLD"], "w"))
"""
SRUN_RUNS = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; echo other-node; else echo "$@" >> "$REQUEUED"; fi
"""


def _environment(folder: Path, srun: str) -> dict[str, str]:
    """A job of one node with two processes, whose `srun` and `scontrol` are these."""
    commands = folder / "commands"
    commands.mkdir(parents=True)
    for name, text in (("srun", srun), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (folder / "path").mkdir()
    (folder / "path" / "adadistill").symlink_to(ROOT)
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder / "path"), os.environ.get("PYTHONPATH", "")]),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "node",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "TOLD": str(folder / "told.json"),
        "REQUEUED": str(folder / "requeued.txt"),
    }


def test_the_shell_parses():
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_its_command_is_one_that_torchrun_and_our_entry_point_take(tmp_path: Path):
    from torch.distributed.run import get_args_parser

    given = ["my.yaml", "optim.lr=0.2", "--out", "runs/two nodes"]
    environment = {**_environment(tmp_path, SRUN_TELLS), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "24"}
    subprocess.run(["bash", str(SCRIPT), *given], env=environment, check=True, timeout=60)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["threads"] == "12"
    interpreter = told["arguments"].index(sys.executable)
    assert all(option.startswith("--") for option in told["arguments"][:interpreter])
    flag, launcher, *arguments = told["arguments"][interpreter + 1 :]
    assert (flag, launcher) == ("-m", "torch.distributed.run")

    launched = get_args_parser().parse_args(arguments)
    assert launched.module
    assert launched.training_script == "adadistill.recipes.train"
    assert (launched.nnodes, launched.nproc_per_node, launched.rdzv_backend) == ("2", "2", "c10d")
    assert launched.rdzv_endpoint.startswith("127.0.0.1:")
    ours = train._parser().parse_intermixed_args(launched.training_script_args)
    assert (ours.recipe, ours.overrides, ours.resume) == ("my.yaml", ["optim.lr=0.2"], "auto")
    assert ours.out == Path("runs/two nodes")


def test_without_a_recipe_it_says_how_it_is_used(tmp_path: Path):
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=_environment(tmp_path, SRUN_TELLS), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


def test_a_run_that_fails_by_itself_is_not_queued_again(tmp_path: Path):
    environment = _environment(tmp_path, "#!/usr/bin/env bash\nexit 7\n")
    done = subprocess.run(["bash", str(SCRIPT), "my.yaml"], env=environment, check=False, timeout=60)
    assert done.returncode == 7
    assert not (tmp_path / "requeued.txt").exists()


@pytest.mark.slow
def test_a_signal_saves_queues_again_and_the_next_start_resumes(tmp_path: Path):
    write_tiny_records(tmp_path / "faces")
    recipe = tiny_recipe(tmp_path / "faces", optim__epochs=10, log__every=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    environment = {**_environment(tmp_path, SRUN_RUNS), "PYTHON": forked_python(), "PYTHON_EXEC": forked_python()}
    command = ["bash", str(SCRIPT), str(tmp_path / "recipe.yaml"), "--device", "cpu", "--out", str(tmp_path / "run")]

    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert "queued again" in said
    assert (tmp_path / "requeued.txt").read_text().split() == ["requeue", environment["SLURM_JOB_ID"]]
    saved, _ = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None
    assert 0 < saved.step < 60

    again = {**environment, "SLURM_RESTART_COUNT": "1"}
    second = subprocess.run(command, env=again, capture_output=True, text=True, check=False, timeout=240)
    assert second.returncode == 0, second.stderr
    assert f"at epoch {saved.step // 6}, step {saved.step % 6}" in second.stderr
    assert second.stdout.count("finished:") == 1
    last, _ = newest_valid_checkpoint(tmp_path / "run")
    assert last is not None
    assert last.step == 60
