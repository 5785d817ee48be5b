"""The tools that record the steps of a window: torch's profiler, and NVIDIA Nsight Systems.

torch's writes `profile/` of the run folder (docs/performance.md lists the files). nsys has started the process and
writes its report itself; here it is told, by cudaProfilerStart and cudaProfilerStop, which steps to capture.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from adadistill.core.distributed import Ranks
from adadistill.core.profiling.step_profile import NO_PROFILE, ProfileRequest, StepProfile, StepWindow
from adadistill.core.profiling.summary import summarise, summary_text
from adadistill.core.training.metrics_log import peak_mib
from adadistill.loaders.atomic_file import write_whole

logger = logging.getLogger(__name__)

NVTX_DOMAIN = "adadistill"
_MEMORY_ENTRIES = 200_000
"""Allocations and frees kept with their stacks, a few hundred bytes each. A step makes some thousands."""


def under_nsys(environment: Mapping[str, str] | None = None) -> bool:
    """Whether nsys started this process; it then sets this variable in the environment."""
    return "NSYS_PROFILING_SESSION_ID" in (os.environ if environment is None else environment)


def nvtx_range(name: str) -> AbstractContextManager[object]:
    """A range for tools that listen to NVTX; close to nothing where none does."""
    import nvtx

    return cast("AbstractContextManager[object]", nvtx.annotate(name, domain=NVTX_DOMAIN))


@contextmanager
def both_ranges(name: str) -> Iterator[None]:
    """A range on torch's timeline and on NVTX's."""
    with nvtx_range(name), record_function(name):
        yield


class NsysProfile(StepProfile):
    """Has nsys capture the steps of a window.

    Raises:
        ValueError: the launch does not train on CUDA.
    """

    open_range = staticmethod(nvtx_range)

    def __init__(self, window: StepWindow, ranks: Ranks) -> None:
        if ranks.device.type != "cuda":
            raise ValueError(
                f"--profile nsys captures the work of CUDA devices, this launch trains on {ranks.device}; use "
                "--profile torch"
            )
        super().__init__(window, ranks)
        self._capturing = False

    def before_step(self, number: int) -> None:
        if number == self.window.warm_up:
            # Both wait for the device, so that the capture holds the kernels of its own steps and no others.
            torch.cuda.synchronize(self.ranks.device)
            torch.cuda.profiler.start()
            self._capturing = True

    def finish(self, steps: Sequence[int]) -> None:
        self.abandon()
        if self.ranks.is_main:
            logger.info("profile: steps %d to %d captured; nsys writes its report when it ends", steps[0], steps[-1])

    def abandon(self) -> None:
        if self._capturing:
            self._capturing = False
            torch.cuda.synchronize(self.ranks.device)
            torch.cuda.profiler.stop()


class TorchProfile(StepProfile):
    """Has torch's profiler record the steps of a window, into a folder that is made when something is written."""

    open_range = staticmethod(both_ranges)

    def __init__(self, window: StepWindow, ranks: Ranks, folder: Path) -> None:
        super().__init__(window, ranks)
        self._folder = folder
        self._cuda = ranks.device.type == "cuda"
        self._profiler: profile | None = None
        self._remembers = False

    def before_step(self, number: int) -> None:
        if number == 0:
            self._start()
            return
        if number == self.window.warm_up:
            self._end_memory_history(keep=True)
        assert self._profiler is not None, "step 0 comes first"
        self._profiler.step()

    def finish(self, steps: Sequence[int]) -> None:
        assert self._profiler is not None, "some step was recorded"
        profiler, self._profiler = self._profiler, None
        peak = peak_mib(self.ranks.device)  # of training: reading the timeline takes memory too
        profiler.stop()
        if self.ranks.is_main:
            summary = summarise(profiler.events() or (), steps)
            title = f"Profile of steps {steps[0]} to {steps[-1]}"
            text = summary_text(summary, title=title, facts=self._facts(peak), on_cuda=self._cuda)
            logger.info("%s", text)  # before anything is written: a full disk costs the files alone
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(f"trace-rank{self.ranks.rank}.json.gz", _timeline(profiler))
        if self.ranks.is_main:
            self._write("summary.md", text.encode())
            data = {**self._launch(), "peak_mib": peak, **asdict(summary)}
            self._write("summary.json", (json.dumps(data, indent=1) + "\n").encode())
            logger.info("profile: %s", self._folder)

    def abandon(self) -> None:
        self._end_memory_history(keep=False)
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()

    def _start(self) -> None:
        if self._cuda:
            # With stacks, which cost the host time: only while what is timed is thrown away.
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_ENTRIES, stacks="python")
            self._remembers = True
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])],
            # The steps to wait for are over by now.
            schedule=schedule(wait=0, warmup=self.window.warm_up, active=self.window.count, repeat=1),
            # The loader's threads too, which open `h2d`.
            experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True),
        )
        self._profiler.start()

    def _end_memory_history(self, *, keep: bool) -> None:
        if self._remembers:
            self._remembers = False
            if keep:
                self._folder.mkdir(parents=True, exist_ok=True)
                torch.cuda.memory._dump_snapshot(str(self._folder / f"memory-rank{self.ranks.rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, name: str, body: bytes) -> None:
        write_whole(self._folder / name, body, durable=False)

    def _launch(self) -> dict[str, Any]:
        window, ranks = self.window, self.ranks
        return {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "device": str(ranks.device),
            "torch": torch.__version__,
            "schedule": {"wait": window.wait, "warm_up": window.warm_up, "active": window.count, "repeat": 1},
        }

    def _facts(self, peak: float) -> list[str]:
        window, ranks = self.window, self.ranks
        files = f"Timeline: `trace-rank{ranks.rank}.json.gz` (open it in ui.perfetto.dev)"
        if self._cuda:
            files += f"; allocations of the warm-up: `memory-rank{ranks.rank}.pickle` (pytorch.org/memory_viz)"
        memory = "device memory" if self._cuda else "resident memory of the process"
        return [
            f"Rank {ranks.rank} of {ranks.world_size} on {ranks.device}, torch {torch.__version__}. Schedule in steps "
            f"of this launch: wait {window.wait}, warm-up {window.warm_up}, active {window.count}, repeat 1.",
            f"{files}. Peak {memory} so far: {peak:.0f} MiB.",
        ]


def _timeline(profiler: profile) -> bytes:
    """The timeline, compressed, without the name of the machine: run folders get shared.

    Raises:
        OSError: there is no room for it.
        RuntimeError: it cannot be read back.
    """
    with tempfile.TemporaryDirectory(prefix="adadistill-profile-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        try:
            trace = json.loads(path.read_bytes())
        except ValueError as error:
            raise RuntimeError(f"torch's profiler wrote a timeline that is no JSON: {error}") from error
    kept = {key: value for key, value in trace.items() if key not in ("host_name", "traceName")}
    return gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), compresslevel=5)


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
    if request.tool == "nsys":
        return NsysProfile(request.window, ranks)
    if under_nsys():
        raise ValueError(
            "--profile torch and nsys cannot both read the GPU's timeline; use --profile nsys, or start without nsys"
        )
    return TorchProfile(request.window, ranks, folder)
