"""Where copies go: an event file of TensorBoard, a run of Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from adadistill.core.metrics_mirror.config import MirrorConfig, WandbConfig
from adadistill.core.metrics_mirror.rows import Row, series


class Sink(Protocol):
    """Takes rows in order."""

    start: int
    """Byte of `metrics.jsonl` from which it wants rows."""

    def write(self, rows: list[Row], position: int) -> None:
        """Take rows; `position` is the byte after the last of them."""
        ...

    def close(self) -> None:
        """Finish; may take as long as the network does."""
        ...


class TensorBoardSink:
    """`RUN/tensorboard`: made anew from the whole file whenever a copy begins, so that a resumed run has one curve.

    Only event files of its own name are removed.
    """

    start = 0

    def __init__(self, run: Path) -> None:
        from tensorboard.summary import Writer

        folder = run / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = Writer(str(folder))

    def write(self, rows: list[Row], position: int) -> None:
        """Every number of a row, under the row's own time."""
        for row in rows:
            wall_time = row.get("time")
            for name, value in series(row):
                self._writer.add_scalar(
                    name, value, int(row["step"]), wall_time=wall_time if isinstance(wall_time, (int, float)) else None
                )
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbSink:
    """One run of Weights & Biases for a run folder, gone on with when that is resumed.

    `RUN/wandb/mirror.json` keeps its id and how much of the file it has.
    """

    def __init__(self, run: Path, config: WandbConfig) -> None:
        import wandb

        folder = run / "wandb"
        folder.mkdir(exist_ok=True)
        self._state = folder / "mirror.json"
        known = _read_state(self._state)
        self.start = known["sent_bytes"]
        self._id: str = known["id"]
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            dir=str(run),
            id=self._id,
            name=run.name,
            resume="allow",
            config={"recipe": _text(run / "recipe.resolved.yaml")},
            settings=wandb.Settings(console="off", silent=True, _disable_stats=True),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, rows: list[Row], position: int) -> None:
        """Every number of a row over the run's own step, which may go back where a run was resumed."""
        for row in rows:
            self._run.log({**dict(series(row)), "step": int(row["step"])})
        _write_state(self._state, self._id, position)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def open_sinks(run: Path, config: MirrorConfig) -> list[Sink]:
    """The sinks that work; what is wrong with another is said on standard error, and it is left out."""
    sinks: list[Sink] = []
    wandb = config.wandb
    if config.tensorboard:
        _open(sinks, "tensorboard", lambda: TensorBoardSink(run))
    if wandb is not None:
        _open(sinks, "wandb", lambda: WandbSink(run, wandb))
    return sinks


def _open(sinks: list[Sink], name: str, make: Callable[[], Sink]) -> None:
    try:
        sinks.append(make())
    # Anything: libraries of others, networks, disks. The other sink goes on, and the exit code tells of this one.
    except Exception as error:
        print(f"{name} could not be opened: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state["id"], str) and isinstance(state["sent_bytes"], int) and state["sent_bytes"] >= 0:
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none yet, or damaged: a new one, with all rows
    return {"id": secrets.token_hex(8), "sent_bytes": 0}


def _write_state(path: Path, run_id: str, sent_bytes: int) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"id": run_id, "sent_bytes": sent_bytes}), encoding="utf-8")
    os.replace(partial, path)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
