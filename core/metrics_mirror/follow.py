"""The process that makes the copies: reads `metrics.jsonl`, hands its rows to the sinks, until the run is over.

    python -m adadistill.core.metrics_mirror.follow RUN --tensorboard --until-pipe-closes

Exit codes: 0 all copies are complete; 1 one of them is not; the text says which.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.metrics_mirror.config import MirrorConfig, WandbConfig
from adadistill.core.metrics_mirror.rows import GrowingFile, without_repeats
from adadistill.core.metrics_mirror.sinks import Sink, open_sinks

_LOOK_EVERY_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Copy; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.until_pipe_closes:
        os.nice(10)  # training has the cores first
    return mirror(arguments.run, mirror_config(arguments), follow=arguments.until_pipe_closes)


def mirror_config(arguments: argparse.Namespace) -> MirrorConfig:
    """The copies that a command line asks for.

    Raises:
        ValueError: the project has no proper name.
    """
    wandb = None
    if arguments.wandb is not None:
        wandb = WandbConfig(project=arguments.wandb, entity=arguments.wandb_entity, mode=arguments.wandb_mode)
    return MirrorConfig(tensorboard=arguments.tensorboard, wandb=wandb)


def mirror(run: Path, config: MirrorConfig, *, follow: bool) -> int:
    """Copy a run's metrics.

    Args:
        follow: go on until standard input is at its end; otherwise once.

    Returns:
        0 where every copy is complete, else 1.
    """
    copies = [_Copy(run / "metrics.jsonl", sink) for sink in open_sinks(run, config)]
    running = follow
    while True:
        running = running and not _input_has_ended(_LOOK_EVERY_S)
        for copy in copies:
            copy.advance()
        if not running:
            break
    for copy in copies:
        copy.finish()
    return 0 if sum(copy.is_good for copy in copies) == len(config.wanted) else 1


class _Copy:
    """One sink and how far it is; the first thing that goes wrong ends it, and no other."""

    def __init__(self, path: Path, sink: Sink) -> None:
        self._file = GrowingFile(path, sink.start)
        self._sink = sink
        self._first = True
        self.is_good = True

    def advance(self) -> None:
        rows = self._file.new_rows()
        # What was there at the start may hold steps twice, of a run that was resumed.
        rows, self._first = without_repeats(rows) if self._first else rows, False
        rows = [row for row in rows if isinstance(row.get("step"), int)]  # others are no points of a curve
        if rows:
            self._attempt("write", rows, self._file.position)

    def finish(self) -> None:
        self._attempt("close")

    def _attempt(self, what: str, *arguments: object) -> None:
        if not self.is_good:
            return
        try:
            getattr(self._sink, what)(*arguments)
        # Anything: libraries of others, networks, disks; see `sinks.open_sinks`.
        except Exception as error:
            self.is_good = False
            name = type(self._sink).__name__
            print(f"{name} ends: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _input_has_ended(wait_s: float) -> bool:
    """Wait for the end of standard input, at most so long."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    return bool(ready) and os.read(sys.stdin.fileno(), 1024) == b""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill mirror",
        description="Copy the metrics.jsonl of a run to TensorBoard (RUN/tensorboard) or Weights & Biases.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard anew")
    parser.add_argument("--wandb", metavar="PROJECT", help="send what a project does not have yet")
    parser.add_argument("--wandb-entity", metavar="NAME", help="user or team that owns the project")
    parser.add_argument("--wandb-mode", choices=("online", "offline"), default="online", help="default: online")
    parser.add_argument("--until-pipe-closes", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
