"""From what a launch asks for to a profile that follows its steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adadistill.core.distributed import Ranks
from adadistill.core.profiling.nsys_recorder import NsysRecorder, under_nsys
from adadistill.core.profiling.step_profile import NO_PROFILE, Recorder, StepProfile
from adadistill.core.profiling.step_window import StepWindow
from adadistill.core.profiling.torch_recorder import TorchRecorder


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """The profile that a launch asks for; no part of its recipe."""

    tool: Literal["torch", "nsys"]
    """torch records by itself; nsys has to have started the process."""
    window: StepWindow = StepWindow()


def open_profile(request: ProfileRequest | None, folder: Path, ranks: Ranks) -> StepProfile:
    """This rank's profile; nothing is written before its last step.

    Args:
        request: None to profile nothing.
        folder: for what torch's profiler records; made when something is written.

    Raises:
        ValueError: the tool cannot profile this launch.
    """
    if request is None:
        return NO_PROFILE
    recorder: Recorder
    if request.tool == "nsys":
        recorder = NsysRecorder(request.window, ranks.device, speaks=ranks.is_main)
    elif under_nsys():
        raise ValueError(
            "--profile torch and nsys cannot both read the GPU's timeline; use --profile nsys, or start without nsys"
        )
    else:
        recorder = TorchRecorder(request.window, folder, ranks)
    return StepProfile(request.window, recorder, rank=ranks.rank)
