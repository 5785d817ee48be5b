"""Copies of the metrics for TensorBoard and Weights & Biases, beside `metrics.jsonl`.

Each is made by its library's own writer on a thread of its own: the run puts a row into a queue and goes on, so a
server that does not answer, a full disk or an error of the library costs the copy alone. The file stays the truth,
from which `adadistill mirror` makes a copy again.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from adadistill.loaders.atomic_file import write_whole

logger = logging.getLogger(__name__)

FINISHED_GRACE_S = 30.0
"""How long a finished run waits for its copies: the last lines may have to cross a network."""
STOPPED_GRACE_S = 2.0
"""How long a stopped or failed one does: who stops a machine does not wait for a web page."""

Row = Mapping[str, Any]
_NO_SERIES = ("event", "time", "step", "epoch", "seconds", "set", "kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class WandbConfig:
    """Where in Weights & Biases a run is shown. The key comes from the environment or from `wandb login`, never from
    here."""

    project: str
    """Name of the project."""
    entity: str | None = None
    """User or team that owns it. Left out: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps the copy in the run folder, for `wandb sync`."""

    def __post_init__(self) -> None:
        if not self.project.strip() or "/" in self.project:
            raise ValueError(f"project must be a name without '/', got {self.project!r}; the owner goes into entity")
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode must be online or offline, got {self.mode!r}")


def require_sinks(*, tensorboard: bool, wandb: WandbConfig | None) -> None:
    """See that what makes the copies is installed; nothing is imported.

    Raises:
        ValueError: a package is missing.
    """
    wanted = [name for name, on in (("tensorboard", tensorboard), ("wandb", wandb is not None)) if on]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"log.{missing[0]} is asked for, and its package is not installed: "
            f"pip install 'adadistill[{','.join(missing)}]', or leave it out"
        )


class MetricsSinks:
    """The copies of one run.

    Args:
        run: the run folder.
        tensorboard: write `RUN/tensorboard`.
        wandb: where in Weights & Biases the run goes; None for nowhere.
    """

    def __init__(self, run: Path, *, tensorboard: bool = False, wandb: WandbConfig | None = None) -> None:
        self._copies: list[_Copy] = []
        if tensorboard:
            self._copies.append(_Copy("TensorBoard", run, lambda first: _TensorBoard(run, first)))
        if wandb is not None:
            self._copies.append(_Copy("Weights & Biases", run, lambda _: _Wandb(run, wandb)))
        for copy in self._copies:
            copy.start()

    def write(self, row: Row) -> None:
        """Hand a row to every copy; waits for none."""
        if isinstance(row.get("step"), int):  # others are no points of a curve
            for copy in self._copies:
                copy.rows.put(row)

    def close(self, within_s: float | None = None) -> bool:
        """Let the copies end, for at most so long. Whether all are complete; what is wrong with one has been said."""
        for copy in self._copies:
            copy.rows.put(None)
        until = math.inf if within_s is None else time.monotonic() + within_s
        for copy in self._copies:
            copy.join(None if within_s is None else max(0.0, until - time.monotonic()))
            if copy.is_alive():
                copy.say("was not done in time after the run")
        return not any(copy.failed for copy in self._copies)


class _Sink(Protocol):
    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class _Copy(threading.Thread):
    """Feeds one sink. A thread that hangs is left behind when the process ends."""

    def __init__(self, title: str, run: Path, make: Callable[[Row], _Sink]) -> None:
        super().__init__(name=f"adadistill-{title}", daemon=True)
        self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self.failed = False
        self._title, self._run, self._make = title, run, make

    def run(self) -> None:
        sink: _Sink | None = None
        try:
            while (row := self.rows.get()) is not None:
                sink = sink or self._make(row)
                sink.write(row)
            if sink is not None:
                sink.close()
        except Exception as error:  # anything: libraries of others, networks, disks
            self.say(f"failed with {type(error).__name__}: {error}")

    def say(self, what: str) -> None:
        self.failed = True
        logger.warning(
            "the copy of metrics.jsonl for %s %s; training is not affected. `adadistill mirror %s` copies again",
            self._title, what, self._run,
        )  # fmt: skip


class _TensorBoard:
    """`RUN/tensorboard`. Steps that a resumed run does again hide those of before: it has one curve."""

    def __init__(self, run: Path, first: Row) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = first["step"] + 1 if first.get("event") == "resume" else None
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=again, flush_secs=10)

    def write(self, row: Row) -> None:
        for name, value in series(row):
            self._writer.add_scalar(name, value, row["step"], walltime=row.get("time"))

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One run of Weights & Biases for a run folder, gone on with when that is resumed; it takes no step twice."""

    def __init__(self, run: Path, config: WandbConfig) -> None:
        import wandb

        (run / "wandb").mkdir(exist_ok=True)
        recipe = run / "recipe.resolved.yaml"
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            dir=str(run),
            id=_page_id(run / "wandb" / "mirror.json"),
            name=run.name,
            resume="allow",
            config={"recipe": recipe.read_text(encoding="utf-8") if recipe.is_file() else None},
            settings=wandb.Settings(console="off", silent=True, _disable_stats=True),
        )

    def write(self, row: Row) -> None:
        values = dict(series(row))
        if values:
            self._run.log(values, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _page_id(path: Path) -> str:
    """The page's id, kept in the run folder."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["id"]
        if isinstance(known, str):
            return known
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none yet, or damaged: a new one
    made = secrets.token_hex(8)
    write_whole(path, json.dumps({"id": made}))
    return made


def series(row: Row) -> Iterator[tuple[str, float]]:
    """Name and value of every number in a row: `train/loss`, `evaluation/lfw/accuracy`."""
    event, name = row.get("event"), row.get("set")
    prefix = f"{event}/{name}" if isinstance(name, str) else f"{event}"
    yield from _numbers(prefix, {key: value for key, value in row.items() if key not in _NO_SERIES})


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(prefix if key == "scores" else f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}/{key}", float(value)
