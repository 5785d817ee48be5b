"""Options of a profile, and the command that puts a launch under nsys."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forked_python import forked_python
from tests_support import ROOT
from tiny_training import tiny_recipe

from adadistill.core.profiling import ProfileRequest, StepWindow
from adadistill.core.recipe import dump_recipe
from adadistill.recipes import train
from adadistill.recipes.profiled_launch import (
    add_profile_options,
    hand_to_nsys,
    nsys_command,
    nsys_process,
    profile_request,
)

FLAGS = (
    "nsys profile -t cuda,nvtx,osrt --sample=none --cpuctxsw=none --cuda-graph-trace=node "
    "--capture-range=cudaProfilerApi --capture-range-end=stop --force-overwrite=true"
)
ARGUMENTS = ["my recipe.yaml", "optim.lr=0.1", "--profile", "nsys", "--profile-steps", "20:3", "--run"]
TRAIN = f"{shlex.quote(sys.executable)} -m adadistill.recipes.train 'my recipe.yaml' optim.lr=0.1 --profile nsys " + (
    "--profile-steps 20:3"
)


def parse(*arguments: str) -> ProfileRequest | None:
    parser = argparse.ArgumentParser()
    add_profile_options(parser)
    return profile_request(parser.parse_args(arguments))


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A PATH on which there is an nsys, which prints what it is started with."""
    nsys = tmp_path / "bin" / "nsys"
    nsys.parent.mkdir()
    nsys.write_text('#!/bin/sh\necho "$@"\n')
    nsys.chmod(0o755)
    return f"{nsys.parent}:{os.environ['PATH']}"


def test_options_make_a_request_or_none():
    assert parse() is None
    assert parse("--profile", "torch") == ProfileRequest("torch", StepWindow(10, 5))
    assert parse("--profile", "nsys", "--profile-steps", "20:3", "--run") == ProfileRequest("nsys", StepWindow(20, 3))


OF_TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("launcher", "before", "report"),
    [
        ({}, "", "nsys-rank0"),
        (OF_TORCHRUN, "torchrun --standalone --nproc_per_node=4 --no-python ", "nsys-rank%q{RANK}"),
        (
            {**OF_TORCHRUN, "GROUP_WORLD_SIZE": "2"},
            "torchrun --nnodes=2 YOUR_RENDEZVOUS_OPTIONS --nproc_per_node=4 --no-python ",
            "nsys-rank%q{RANK}",
        ),
        ({"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "", "nsys-rank%q{RANK}"),
    ],
    ids=["one process", "torchrun", "several nodes", "another launcher"],
)
def test_every_rank_gets_a_report_of_its_own(installed: str, launcher: dict[str, str], before: str, report: str):
    environment = {"PATH": installed, **launcher}
    process = nsys_process(ARGUMENTS, Path("runs/a b"), environment)
    assert nsys_command(process, Path("runs/a b"), environment) == (
        f"mkdir -p 'runs/a b/profile' && {before}{FLAGS} -o 'runs/a b/profile/{report}' {TRAIN}"
    )


def test_missing_nsys_is_named_with_the_way_out(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nsys is not on the PATH.*--profile torch"):
        nsys_process(ARGUMENTS, Path("runs/x"), {"PATH": str(tmp_path)})


def test_only_rank_0_prints_the_command(
    installed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", installed)
    for rank, says in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        hand_to_nsys(ARGUMENTS, Path("runs/x"), run=False)
        assert (FLAGS in capsys.readouterr().out) is says


def test_run_becomes_nsys_once(installed: str, tmp_path: Path):
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import tests_support; tests_support.make_importable()\n"
        "from adadistill.recipes.profiled_launch import hand_to_nsys\n"
        f"hand_to_nsys({ARGUMENTS!r}, pathlib.Path({str(tmp_path / 'run')!r}), run=True)\n"
        "print('came back')"
    )
    environment = {**os.environ, "PATH": installed}
    done = subprocess.run([forked_python(), "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("profile -t cuda,nvtx,osrt ")
    assert done.stdout.endswith("--profile nsys --profile-steps 20:3\n"), "not --run again"
    assert "came back" not in done.stdout
    assert (tmp_path / "run" / "profile").is_dir(), "nsys does not make the folder of its report"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "torch", "--profile-steps", "ten"], "--profile-steps must be FIRST:COUNT"),
        (["--profile", "torch", "--profile-steps", "0:5"], "at least 1 step"),
        (["--profile-steps", "10:5"], "--profile-steps needs a tool"),
        (["--profile", "torch", "--run"], "it goes with --profile nsys"),
        (["--profile", "nsys", "--device", "cpu"], "this launch trains on cpu; use --profile torch"),
    ],
)
def test_wrong_options_end_at_the_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(tmp_path)))
    assert train.main([str(tmp_path / "recipe.yaml"), *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
