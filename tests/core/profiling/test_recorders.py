"""Profiles of real runs: what is written, that training does not notice, where nothing can be; and marks for nsys."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import logged, newest, tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.profiling import ProfileRequest, StepWindow, open_profile, under_nsys
from adadistill.core.profiling.recorders import NVTX_DOMAIN, NsysProfile, nvtx_range
from adadistill.core.recipe import Recipe
from adadistill.core.training.run import run_training
from adadistill.loaders.named_ranges import named_range


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(data: Path) -> Recipe:
    """Six steps."""
    return tiny_recipe(data, log__every=1, data__prefetch=1, optim__epochs=1, optim__milestones="[]")


@pytest.fixture(scope="module")
def plain(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody watches."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_training(recipe, folder, ranks=Ranks())
    return folder


@pytest.fixture(scope="module")
def profiled(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, steps 2 to 4 profiled."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    run_training(recipe, folder, ranks=Ranks(), profile=ProfileRequest("torch", StepWindow(2, 3)))
    return folder


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in logged(folder)]


def timeline(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(gzip.decompress((folder / "profile" / f"trace-rank{rank}.json.gz").read_bytes()))


def nested_ranges(trace: dict[str, Any], step: int) -> list[str]:
    """Names of the ranges inside a step, in order, each under the names that it lies in: `head/teacher`."""
    spans = [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    (own,) = [span for span in spans if span["name"] == f"step {step}"]
    inside = [
        span
        for span in spans
        if span["tid"] == own["tid"] and own["ts"] <= span["ts"] and span["ts"] + span["dur"] <= own["ts"] + own["dur"]
    ]
    paths, open_spans = [], []
    for span in sorted(inside, key=lambda span: (span["ts"], -span["dur"])):
        if span["name"].startswith("Optimizer."):
            continue  # torch's own
        open_spans = [each for each in open_spans if each["ts"] + each["dur"] > span["ts"]] + [span]
        paths.append("/".join(each["name"] for each in open_spans[1:]))
    return paths[1:]


def test_profiling_changes_no_bit_of_training(plain: Path, profiled: Path):
    assert losses(profiled) == losses(plain)
    assert len(losses(plain)) == 6
    before, after = newest(plain), newest(profiled)
    for one, other in ((before.model, after.model), (before.row_sharded, after.row_sharded)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert before.state == after.state, "the recipe and its hash are what they were"


def test_the_timeline_holds_the_named_ranges_of_the_chosen_steps_nested_in_order(profiled: Path):
    trace = timeline(profiled)
    names = {event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"}
    assert {name for name in names if name.startswith("step ")} == {"step 2", "step 3", "step 4"}
    assert "h2d" in names
    assert not {"host_name", "traceName"} & trace.keys(), "neither the machine nor a temporary file is named"
    for step in (2, 3, 4):
        assert nested_ranges(trace, step) == [
            "load", "student_fwd", "head", "head/teacher", "head/centres", "backward", "optimiser", "centres",
        ]  # fmt: skip


def test_the_summary_accounts_for_the_whole_step(profiled: Path):
    summary = json.loads((profiled / "profile" / "summary.json").read_text())
    assert summary["steps"] == [2, 3, 4]
    assert summary["schedule"] == {"wait": 0, "warm_up": 2, "active": 3, "repeat": 1}
    assert (summary["rank"], summary["world_size"], summary["device"]) == (0, 1, "cpu")
    assert sum(row["host_share"] for row in summary["ranges"]) == pytest.approx(1.0, abs=1e-6)
    assert {"load", "student_fwd", "head", "teacher", "centres", "backward", "optimiser", "other"} == {
        row["name"] for row in summary["ranges"]
    }
    assert [row["name"] for row in summary["beside"]] == ["h2d"]
    assert summary["operators"][0]["ms"] > 0
    assert summary["device_time"] is None
    assert summary["peak_mib"] > 0
    text = (profiled / "profile" / "summary.md").read_text()
    assert text.startswith("# Profile of steps 2 to 4\n")
    assert "wait 0, warm-up 2, active 3, repeat 1" in text
    assert "| `backward` | 1.0 |" in text
    assert not [path for path in (profiled / "profile").iterdir() if path.name.startswith(".")]


def profile_toy_steps(folder: Path, ranks: Ranks, window: StepWindow, steps: int) -> None:
    """Steps of a multiplication, as the loop goes through its own."""
    profile = open_profile(ProfileRequest("torch", window), folder, ranks)
    for step in range(steps):
        with profile.step(step), named_range("student_fwd"):
            torch.ones(3) * 2
        profile.finish_if_due()
    profile.close()


def test_a_profile_that_cannot_be_written_is_named_and_its_numbers_are_said(tmp_path: Path, caplog):
    folder = tmp_path / "profile"
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        profile_toy_steps(folder, Ranks(), StepWindow(1, 1), 3)
    assert f"FileExistsError: [Errno 17] File exists: '{folder}'" in caplog.text
    assert "no profile, training goes on without" in caplog.text
    assert "# Profile of steps 1 to 1" in caplog.text


def test_every_rank_writes_a_timeline_and_rank_0_the_summary_of_what_there_is(tmp_path: Path, caplog):
    for rank in (0, 1):
        profile_toy_steps(tmp_path / "profile", Ranks(rank=rank, world_size=2), StepWindow(2, 5), 4)
    written = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert written == ["summary.json", "summary.md", "trace-rank0.json.gz", "trace-rank1.json.gz"]
    assert nested_ranges(timeline(tmp_path, 1), 2) == ["student_fwd"]
    assert "Rank 0 of 2" in (tmp_path / "profile" / "summary.md").read_text()
    assert "the run ended after 2 of 5 recorded steps" in caplog.text
    assert json.loads((tmp_path / "profile" / "summary.json").read_text())["steps"] == [2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_idle_time_and_allocations_are_recorded(recipe: Recipe, tmp_path: Path):
    import pickle

    ranks = Ranks(device=torch.device("cuda", 0))
    run_training(recipe, tmp_path / "run", ranks=ranks, profile=ProfileRequest("torch", StepWindow(2, 3)))
    summary = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert summary["kernels"]
    assert 0.0 <= summary["device_time"]["idle_share"] < 1.0
    on_device = {row["name"]: row["device_ms"] for row in summary["ranges"]}
    assert on_device["backward"] > 0
    assert on_device["student_fwd"] > 0
    history = pickle.loads((tmp_path / "run" / "profile" / "memory-rank0.pickle").read_bytes())
    assert any(history["device_traces"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: calls.append("synchronise"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize("steps", [8, 4, 2], ids=["to its end", "cut short", "ends in the warm-up"])
def test_the_capture_holds_the_work_of_the_recorded_steps_alone(calls: list[str], steps: int):
    window = StepWindow(3, 2)
    profile = NsysProfile(window, Ranks(device=torch.device("cuda", 0)))
    for step in range(steps):
        with profile.step(step):
            calls.append(f"step {step}")
        profile.finish_if_due()
    profile.close()
    before, within, after = ["step 0", "step 1", "step 2"], ["step 3", "step 4"], ["step 5", "step 6", "step 7"]
    started = [*before, "synchronise", "start"]
    assert (
        calls
        == {
            8: [*started, *within, "synchronise", "stop", *after],
            4: [*started, "step 3", "synchronise", "stop"],
            2: before[:2],
        }[steps]
    )


@pytest.mark.parametrize(("tool", "remedy"), [("nsys", "torch"), ("torch", "nsys")])
def test_a_tool_that_cannot_profile_the_launch_under_nsys_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, remedy: str
):
    """nsys captures no CPU, and torch's profiler cannot read the GPU's timeline beside it."""
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")
    assert under_nsys()
    with pytest.raises(ValueError, match=f"use --profile {remedy}"):
        open_profile(ProfileRequest(tool), tmp_path, Ranks())


def test_nvtx_ranges_carry_the_name_and_the_domain(monkeypatch: pytest.MonkeyPatch):
    import nvtx

    opened = []
    original = nvtx.annotate
    monkeypatch.setattr(nvtx, "annotate", lambda *a, **k: opened.append((*a, k)) or original(*a, **k))
    with nvtx_range("student_fwd"):
        pass
    assert opened == [("student_fwd", {"domain": NVTX_DOMAIN})]
