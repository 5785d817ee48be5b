"""Marking the steps that nsys captures. The calls themselves are recorded here: nsys and CUDA are elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadistill.core.distributed import Ranks
from adadistill.core.profiling import ProfileRequest, StepProfile, StepWindow, open_profile, under_nsys
from adadistill.core.profiling.nsys_recorder import NVTX_DOMAIN, NsysRecorder, nvtx_range


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: calls.append("synchronise"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize("steps", [8, 4], ids=["to its end", "cut short"])
def test_the_capture_holds_the_work_of_the_recorded_steps_alone(calls: list[str], steps: int):
    window = StepWindow(3, 2)
    profile = StepProfile(window, NsysRecorder(window, torch.device("cuda", 0), speaks=True))
    for step in range(steps):
        with profile.step(step):
            calls.append(f"step {step}")
        profile.finish_if_due()
    profile.close()
    before, within, after = ["step 0", "step 1", "step 2"], ["step 3", "step 4"], ["step 5", "step 6", "step 7"]
    ended = [*within, "synchronise", "stop", *after] if steps == 8 else ["step 3", "synchronise", "stop"]
    assert calls == [*before, "synchronise", "start", *ended]


def test_a_run_that_ends_in_the_warm_up_has_no_capture_to_end(calls: list[str]):
    window = StepWindow(3, 2)
    profile = StepProfile(window, NsysRecorder(window, torch.device("cuda", 0), speaks=True))
    for step in range(2):
        with profile.step(step):
            pass
    profile.close()
    assert calls == []


def test_a_launch_on_the_cpu_is_refused_under_nsys_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")
    assert under_nsys()
    with pytest.raises(ValueError, match="use --profile torch"):
        open_profile(ProfileRequest("nsys"), tmp_path, Ranks())


def test_the_torch_profiler_is_refused_under_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")
    with pytest.raises(ValueError, match="use --profile nsys"):
        open_profile(ProfileRequest("torch"), tmp_path, Ranks())


def test_nvtx_ranges_carry_the_name_and_the_domain(monkeypatch: pytest.MonkeyPatch):
    import nvtx

    opened = []
    original = nvtx.annotate
    monkeypatch.setattr(nvtx, "annotate", lambda *a, **k: opened.append((*a, k)) or original(*a, **k))
    with nvtx_range("student_fwd"):
        pass
    assert opened == [("student_fwd", {"domain": NVTX_DOMAIN})]
