"""What a run says while it runs: one line every N steps, the same values in `metrics.jsonl`, a bar on a terminal.

Per-step values stay on the device and are summed there; they are read, and averaged over ranks, when a line is due. The
keys of `metrics.jsonl` are stable: every line has `event` (train, evaluation, stop), `step` and `time`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, average_
from adadistill.core.metrics_mirror import MirrorConfig, WandbConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """How often a run speaks, and where else than in its folder."""

    every: int = 50
    """Steps between log lines. Positive."""
    tensorboard: bool = False
    """Copy the metrics to RUN/tensorboard as they come; needs the extra tensorboard. See docs/metrics.md."""
    wandb: WandbConfig | None = None
    """Copy the metrics to Weights & Biases as they come; needs the extra wandb. Left out: no copy."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be positive, got {self.every}")

    @property
    def copies(self) -> MirrorConfig:
        """Where the metrics are copied to."""
        return MirrorConfig(tensorboard=self.tensorboard, wandb=self.wandb)


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
    "geometry": "geometry {:.3f}",
    "margins_clipped": "clipped {:.1%}",
    "gradient_norm": "grad {:.2f}",
    "peak_mib": "peak {:.0f} MiB",
    "damaged_records": "damaged {:.0f}",
}


class MetricsFile:
    """Appends lines of JSON, each in one write, so that a killed run leaves whole lines. Rank 0 writes.

    Args:
        path: `metrics.jsonl`, or None on ranks that do not write.
        after_write: called after each line.
    """

    def __init__(self, path: Path | None, after_write: Callable[[], None] | None = None) -> None:
        self._after_write = after_write
        self._file: TextIO | None = None if path is None else path.open("a", encoding="utf-8")

    def write(self, event: str, **values: object) -> None:
        """One line; non-finite numbers become null, as JSON knows none."""
        if self._file is not None:
            clean = {key: _json_number(value) for key, value in values.items()}
            self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **clean}) + "\n")
            self._file.flush()
            if self._after_write is not None:
                self._after_write()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; none where there is no file.

    A line that is no JSON object, such as the last one of a machine that died, says nothing and is passed over.
    """
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
