"""What a run says while it runs: one line every N steps, the same values in `metrics.jsonl`, a bar on a terminal.

Per-step values stay on the device and are summed there; they are read, and averaged over ranks, when a line is due. The
keys of `metrics.jsonl` are stable: every line has `event` (train, evaluation, resume, stop), `step` and `time`.

The file is only ever added to. A run that is killed has logged steps that no checkpoint holds; the resumed run does
them again, and its `resume` line says from which step on. `read_metrics` gives what stands: each step once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, average_
from adadistill.core.training.metrics_sinks import WandbConfig
from adadistill.loaders.errors import WorkFailed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """How often a run speaks, and where else than in its folder."""

    every: int = 50
    """Steps between log lines. Positive."""
    tensorboard: bool = False
    """Copy the metrics to RUN/tensorboard as they come; needs the extra tensorboard. See docs/training.md."""
    wandb: WandbConfig | None = None
    """Copy the metrics to Weights & Biases as they come; needs the extra wandb. Left out: no copy."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be positive, got {self.every}")


_LINE_FORMATS = {
    "loss": "loss {:.3f}",
    "lr": "lr {:.4g}",
    "images_per_s": "images/s {:.0f}",
    "wait_share": "wait {:.1%}",
    "centre_momentum": "momentum {:.3f}",
    "confidence": "confidence {:.3f}",
    "slow_confidence": "slow confidence {:.3f}",
    "student_teacher_cosine": "s-t cosine {:.3f}",
    "regression": "regression {:.3f}",
    "distances": "distances {:.4f}",
    "angles": "angles {:.4f}",
    "similarities": "similarities {:.4f}",
    "teacher_classes": "teacher classes {:.3f}",
    "geometry": "geometry {:.3f}",
    "margins_clipped": "clipped {:.1%}",
    "gradient_norm": "grad {:.2f}",
    "peak_mib": "peak {:.0f} MiB",
    "damaged_records": "damaged {:.0f}",
}


class MetricsFileError(WorkFailed, RuntimeError):
    """Lines of `metrics.jsonl` could not be written: the disk is full or broken. The text says how many."""


MAX_WAITING_BYTES = 16 << 20
"""What may wait for a disk that takes nothing: tens of thousands of lines."""


class MetricsFile:
    """Appends lines of JSON, each in one write, so that a killed run leaves whole lines. Rank 0 writes.

    A full disk does not stop training: it warns once, and lines wait in memory until the disk takes them again, in
    order. What still waits when the file is closed is an error, so that no line is lost without a word.

    As a context manager it closes itself; an error under way is not hidden by that of closing.

    Args:
        path: `metrics.jsonl`, or None on ranks that do not write.
        after_write: called with each line.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path | None, after_write: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._path = path
        self._after_write = after_write
        self._waiting = bytearray()
        self._failing = ""
        self._handle: int | None = None
        if path is None:
            return
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if _ends_within_a_line(self._handle):
            self._waiting += b"\n"  # what a full disk or a power cut tore off must not swallow the next line

    def write(self, event: str, **values: object) -> None:
        """One line; non-finite numbers become null, as JSON knows none.

        Raises:
            MetricsFileError: the disk has taken nothing for so long that `MAX_WAITING_BYTES` wait.
        """
        if self._handle is None:
            return
        clean = {key: _json_number(value) for key, value in values.items()}
        row: dict[str, Any] = {"event": event, "time": round(time.time(), 3), **clean}
        self._waiting += (json.dumps(row) + "\n").encode()
        self._flush()
        if len(self._waiting) > MAX_WAITING_BYTES:
            raise self._error()
        if self._after_write is not None:
            self._after_write(row)

    def close(self) -> None:
        """Close the file.

        Raises:
            MetricsFileError: lines still wait for the disk; they are lost.
        """
        handle = self._handle
        if handle is None:
            return
        self._flush()
        self._handle = None
        os.close(handle)
        if self._waiting:
            raise self._error()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except MetricsFileError as lost:
            if error is None:
                raise
            logger.error("%s", lost)  # the error under way matters more

    def _flush(self) -> None:
        assert self._handle is not None, "only an open file is written"
        try:
            while self._waiting:
                # A disk may take a part of it: the rest goes on there the next time.
                del self._waiting[: os.write(self._handle, self._waiting)]
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "%s: %s. Training goes on; lines wait in memory until they can be written",
                    self._path,
                    error.strerror,
                )
            self._failing = error.strerror or type(error).__name__
            return
        if self._failing:
            logger.info("%s can be written again; no line was lost", self._path)
        self._failing = ""

    def _error(self) -> MetricsFileError:
        return MetricsFileError(
            f"{self._path}: {self._failing}: {self._waiting.count(10)} line(s) could not be written and are lost. "
            "Checkpoints are not affected; make room, and go on with --resume auto"
        )


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that stand, in order; none where there is no file.

    Lines of steps that a resumed run did again are passed over, and so is a line that is no JSON object, such as the
    last one of a machine that died.
    """
    standing: list[dict[str, Any]] = []
    first_again, scores_again = math.inf, False  # of the resumes later than a line: the earliest step, from the end on
    for row in reversed(list(_json_lines(path))):
        step = row.get("step")
        if isinstance(step, int):
            if step > first_again or (step == first_again and scores_again and row.get("event") == "evaluation"):
                continue
            if row.get("event") == "resume":
                scores_again = row.get("evaluated") is False or (scores_again and step == first_again)
                first_again = step
        standing.append(row)
    yield from reversed(standing)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _ends_within_a_line(handle: int) -> bool:
    """Whether the last byte of a file is no end of a line. Devices and pipes have no last byte."""
    status = os.fstat(handle)
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and os.pread(handle, 1, status.st_size - 1) != b"\n"


class StepMetrics:
    """Sums per-step values on the device between two lines.

    Args:
        global_batch_size: images per step over all ranks.
        total_steps: of the run, for the estimate of the time left.
    """

    def __init__(self, *, global_batch_size: int, total_steps: int, ranks: Ranks) -> None:
        self._global_batch_size = global_batch_size
        self._total_steps = total_steps
        self._ranks = ranks
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._steps = 0
        self._lr = 0.0
        self._wait_s = 0.0
        self._paused_s = 0.0
        self._since = time.perf_counter()

    def add(self, values: dict[str, Tensor], *, lr: float, wait_s: float) -> None:
        """Add one step's 0-dim device values, its learning rate, and the seconds spent waiting for its batch."""
        stacked = torch.stack([value.detach().to(torch.float32) for value in values.values()])
        self._names = tuple(values)
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._steps += 1
        self._lr = lr
        self._wait_s += wait_s

    def exclude(self, seconds: float) -> None:
        """Do not count this much time in images/s (evaluation between steps)."""
        self._paused_s += seconds

    def take(self, *, step: int) -> dict[str, float]:
        """Means over steps and ranks since the last call, with speed and time left. All ranks must call it together."""
        assert self._sum is not None, "take follows add"
        values = torch.cat([self._sum / self._steps, self._sum.new_tensor([self._wait_s])])
        means = average_(values, self._ranks).tolist()
        elapsed = max(time.perf_counter() - self._since - self._paused_s, 1e-9)
        images_per_s = self._steps * self._global_batch_size / elapsed
        result = dict(zip(self._names, means, strict=False))
        result["lr"] = self._lr
        result["images_per_s"] = images_per_s
        result["wait_share"] = means[-1] / elapsed
        result["eta_s"] = (self._total_steps - step) * self._global_batch_size / images_per_s
        result["peak_mib"] = peak_mib(self._ranks.device)
        self._sum, self._steps, self._wait_s, self._paused_s = None, 0, 0.0, 0.0
        self._since = time.perf_counter()
        return result

    @property
    def pending(self) -> bool:
        """Whether steps have been added since the last `take`."""
        return self._steps > 0


def log_line(values: dict[str, float], *, step: int, total_steps: int, epoch: int) -> str:
    """The one line that rank 0 prints; values that a run does not have are left out."""
    parts = [f"step {step}/{total_steps}", f"epoch {epoch}"]
    parts += [text.format(values[key]) for key, text in _LINE_FORMATS.items() if key in values]
    parts.append(f"ETA {format_seconds(values['eta_s'])}")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class ProgressBar:
    """One line that redraws itself, on rank 0 of a terminal; elsewhere nothing is drawn.

    Args:
        stream: standard error by default, so that redirected results stay clean.
    """

    WIDTH = 24

    def __init__(self, total_steps: int, ranks: Ranks, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._active = ranks.is_main and self._stream.isatty()
        self._total = total_steps
        self._drawn = 0.0
        self._start: tuple[float, int] | None = None

    def update(self, step: int) -> None:
        """Redraw, at most five times a second."""
        now = time.perf_counter()
        if self._start is None:
            self._start = (now, step)
        if not self._active or (now - self._drawn < 0.2 and step < self._total):
            return
        self._drawn = now
        filled = self.WIDTH * step // self._total
        done = step - self._start[1]
        left = (now - self._start[0]) / done * (self._total - step) if done else math.inf
        bar = "#" * filled + "." * (self.WIDTH - filled)
        self._stream.write(f"\r[{bar}] {step}/{self._total}  {format_seconds(left)} left ")
        self._stream.flush()

    def clear(self) -> None:
        """Blank the line, before something else is printed."""
        if self._active and self._drawn:
            self._stream.write("\r" + " " * 70 + "\r")
            self._stream.flush()


def peak_mib(device: torch.device) -> float:
    """Peak so far of the device's allocated memory; on the CPU of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _json_number(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
