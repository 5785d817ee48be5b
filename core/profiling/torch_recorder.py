"""Recording with torch's profiler: a timeline of every rank, and what rank 0's says in numbers.

profile/
  trace-rank0.json.gz     the timeline, for ui.perfetto.dev or chrome://tracing
  memory-rank0.pickle     CUDA: allocations of the warm-up steps, for pytorch.org/memory_viz
  summary.md              rank 0: time by range, operators, kernels, idle time, memory
  summary.json            rank 0: the same as data
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from adadistill.core.distributed import Ranks
from adadistill.core.profiling.nsys_recorder import nvtx_range
from adadistill.core.profiling.step_window import StepWindow
from adadistill.core.profiling.summary_text import summary_text
from adadistill.core.profiling.trace_summary import TraceSummary, summarise
from adadistill.core.training.metrics_log import peak_mib

logger = logging.getLogger(__name__)

_MEMORY_ENTRIES = 200_000
"""Allocations and frees kept with their stacks, a few hundred bytes each. A step makes some thousands."""


class TorchRecorder:
    """Records the steps of a window on one rank.

    Args:
        folder: where files go; made when they are written.
    """

    def __init__(self, window: StepWindow, folder: Path, ranks: Ranks) -> None:
        self._window, self._folder, self._ranks = window, folder, ranks
        self._cuda = ranks.device.type == "cuda"
        self._profiler: profile | None = None
        self._memory_history: Any = None
        self._memory_recorded = False

    def open_range(self, name: str) -> AbstractContextManager[object]:
        """See `Recorder`."""
        return _both_timelines(name)

    def before_step(self, number: int) -> None:
        """See `Recorder`."""
        if number == 0:
            self._start()
            return
        if number == self._window.warm_up:
            self._end_memory_history()
        assert self._profiler is not None, "step 0 comes first"
        self._profiler.step()

    def finish(self, steps: Sequence[int]) -> None:
        """See `Recorder`."""
        assert self._profiler is not None, "some step was recorded"
        profiler, self._profiler = self._profiler, None
        peak = peak_mib(self._ranks.device)  # of training: reading the timeline takes memory too
        profiler.stop()
        trace = _exported(profiler)
        if not self._ranks.is_main:
            self._write_timeline(trace)
            return
        summary = summarise(trace["traceEvents"], steps)
        title = f"Profile of steps {steps[0]} to {steps[-1]}"
        text = summary_text(summary, title=title, facts=self._facts(peak), on_cuda=self._cuda)
        logger.info("%s", text)  # before anything is written: a full disk costs the files alone
        self._write_timeline(trace)
        _replace(self._folder / "summary.md", text.encode())
        _replace(self._folder / "summary.json", (json.dumps(self._as_data(summary, peak), indent=1) + "\n").encode())
        logger.info("profile: %s", self._folder)

    def abandon(self) -> None:
        """See `Recorder`."""
        self._end_memory_history()
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()

    def _start(self) -> None:
        if self._cuda:
            # With stacks, which cost the host time: only while what is timed is thrown away.
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_ENTRIES, stacks="python")
            self._memory_recorded = True
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])],
            # The steps to wait for are over by now.
            schedule=schedule(wait=0, warmup=self._window.warm_up, active=self._window.count, repeat=1),
            # The loader's threads too, which open `h2d`.
            experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True),
        )
        self._profiler.start()

    def _end_memory_history(self) -> None:
        if self._memory_recorded:
            self._memory_recorded = False
            self._memory_history = torch.cuda.memory._snapshot(self._ranks.device)
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write_timeline(self, trace: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rank = self._ranks.rank
        body = gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), compresslevel=5)
        _replace(self._folder / f"trace-rank{rank}.json.gz", body)
        if self._memory_history is not None:
            _replace(self._folder / f"memory-rank{rank}.pickle", pickle.dumps(self._memory_history))

    def _facts(self, peak: float) -> list[str]:
        window, ranks = self._window, self._ranks
        files = f"Timeline: `trace-rank{ranks.rank}.json.gz` (open it in ui.perfetto.dev)"
        if self._memory_history is not None:
            files += f"; allocations of the warm-up: `memory-rank{ranks.rank}.pickle` (pytorch.org/memory_viz)"
        memory = "device memory" if self._cuda else "resident memory of the process"
        return [
            f"Rank {ranks.rank} of {ranks.world_size} on {ranks.device}, torch {torch.__version__}. Schedule in steps "
            f"of this launch: wait {window.wait}, warm-up {window.warm_up}, active {window.count}, repeat 1.",
            f"{files}. Peak {memory} so far: {peak:.0f} MiB.",
        ]

    def _as_data(self, summary: TraceSummary, peak: float) -> dict[str, Any]:
        window, ranks = self._window, self._ranks
        device = summary.device_time
        return {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "device": str(ranks.device),
            "torch": torch.__version__,
            "schedule": {"wait": window.wait, "warm_up": window.warm_up, "active": window.count, "repeat": 1},
            "peak_mib": peak,
            **asdict(summary),
            "load_share": summary.load_share,
            "device_time": None if device is None else {**asdict(device), "idle_share": device.idle_share},
        }


@contextmanager
def _both_timelines(name: str) -> Iterator[None]:
    with nvtx_range(name), record_function(name):
        yield


def _exported(profiler: profile) -> dict[str, Any]:
    """The timeline, without the name of the machine: run folders get shared.

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
    return {key: value for key, value in trace.items() if key not in ("host_name", "traceName")}


def _replace(path: Path, body: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(body)
    os.replace(partial, path)
