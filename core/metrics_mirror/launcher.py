"""The run's side of its copies: starts the processes that make them, and does not wait for them.

A process reads `metrics.jsonl`, so nothing is handed over but the end: the run holds the writing end of a pipe, and
when that closes, because the run closed it or died, the process copies what is left and goes.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

from adadistill.core.metrics_mirror.config import MirrorConfig

_log = logging.getLogger(__name__)

FINISHED_GRACE_S = 30.0
"""How long a finished run waits for its copies: the last lines may have to cross a network."""

STOPPED_GRACE_S = 2.0
"""How long a stopped or failed one does: who stops a machine does not wait for a web page."""


class MetricsMirror:
    """The copies of one run, each with a process of its own, so that one that hangs keeps no other waiting.

    Args:
        run: the run folder; `metrics_mirror.log` in it takes what the processes say.
        config: the copies; none starts nothing.
    """

    def __init__(self, run: Path, config: MirrorConfig) -> None:
        self._log_file = run / "metrics_mirror.log"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name, command in follow_commands(run, config).items():
            self._start(name, command)

    def check(self) -> None:
        """Say it once where a process has died; costs a system call."""
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                self._warn(name, f"ended with code {process.returncode}")
                self._forget(name)

    def close(self, *, finished: bool) -> None:
        """Let the processes copy what is left, for as long as a run of this end waits, and end them."""
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
        until = time.monotonic() + (FINISHED_GRACE_S if finished else STOPPED_GRACE_S)
        for name, process in list(self._running.items()):
            try:
                code = process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self._warn(name, "was not done in time after the run and was ended")
            else:
                if code != 0:
                    self._warn(name, f"ended with code {code}")
            self._forget(name)

    def _start(self, name: str, command: list[str]) -> None:
        try:
            with self._log_file.open("ab") as said:
                self._running[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is for the run, which then tells the process by the pipe
                )
        except OSError as error:
            _log.warning("no copy of metrics.jsonl is made for %s: its process did not start (%s)", name, error)

    def _warn(self, name: str, what: str) -> None:
        _log.warning(
            "the process that copies metrics.jsonl to %s %s; training is not affected. See %s; `adadistill mirror %s` "
            "copies again",
            name,
            what,
            self._log_file,
            self._log_file.parent,
        )

    def _forget(self, name: str) -> None:
        process = self._running.pop(name)
        if process.stdin is not None:
            process.stdin.close()


def follow_commands(run: Path, config: MirrorConfig) -> dict[str, list[str]]:
    """What to run for each of a run's copies."""
    follow = [
        sys.executable,
        "-m",
        "adadistill.core.metrics_mirror.follow",
        str(run.absolute()),
        "--until-pipe-closes",
    ]
    commands = {}
    if config.tensorboard:
        commands["TensorBoard"] = [*follow, "--tensorboard"]
    if config.wandb is not None:
        entity = [] if config.wandb.entity is None else ["--wandb-entity", config.wandb.entity]
        mode = ["--wandb-mode", config.wandb.mode]
        commands["Weights & Biases"] = [*follow, "--wandb", config.wandb.project, *mode, *entity]
    return commands
