"""Recording with NVIDIA Nsight Systems: marks what nsys, which this process runs under, is to capture.

`nsys profile --capture-range=cudaProfilerApi` captures from cudaProfilerStart to cudaProfilerStop. Both wait for the
device, so that the capture holds the kernels of its own steps and no others. nsys writes its report itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch

from adadistill.core.profiling.step_window import StepWindow

logger = logging.getLogger(__name__)

NVTX_DOMAIN = "adadistill"


def under_nsys(environment: Mapping[str, str] | None = None) -> bool:
    """Whether nsys started this process; it then sets this variable in the environment."""
    return "NSYS_PROFILING_SESSION_ID" in (os.environ if environment is None else environment)


def nvtx_range(name: str) -> AbstractContextManager[object]:
    """A range for tools that listen to NVTX; close to nothing where none does."""
    import nvtx

    return cast("AbstractContextManager[object]", nvtx.annotate(name, domain=NVTX_DOMAIN))


class NsysRecorder:
    """Captures the steps of a window.

    Args:
        device: that trains, cuda.

    Raises:
        ValueError: another device.
    """

    def __init__(self, window: StepWindow, device: torch.device, *, speaks: bool) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"--profile nsys captures the work of CUDA devices, this launch trains on {device}; use --profile torch"
            )
        self._window, self._device, self._speaks = window, device, speaks
        self._capturing = False

    def open_range(self, name: str) -> AbstractContextManager[object]:
        """See `Recorder`."""
        return nvtx_range(name)

    def before_step(self, number: int) -> None:
        """See `Recorder`."""
        if number == self._window.warm_up:
            torch.cuda.synchronize(self._device)
            torch.cuda.profiler.start()
            self._capturing = True

    def finish(self, steps: Sequence[int]) -> None:
        """See `Recorder`."""
        self.abandon()
        if self._speaks:
            logger.info("profile: steps %d to %d captured; nsys writes its report when it ends", steps[0], steps[-1])

    def abandon(self) -> None:
        """See `Recorder`."""
        if self._capturing:
            self._capturing = False
            torch.cuda.synchronize(self._device)
            torch.cuda.profiler.stop()
