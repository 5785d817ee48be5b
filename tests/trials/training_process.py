"""Training processes that are there to be killed, or to meet a disk that takes no more.

Each is a process of its own that runs what `adadistill train` runs, forked from one that has the libraries loaded
already: importing them takes seconds, fifty times over.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path


class TrainingProcess:
    """One rank of a training run.

    Args:
        arguments: of `adadistill train`.
        log: file that its output is added to.
        environment: variables beside those that this process was started with.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log, self._begin = log, log.stat().st_size if log.exists() else 0
        self._process = _context().Process(
            target=_train, args=(list(arguments), str(log), dict(environment or {})), daemon=True
        )
        self._process.start()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return not self._process.is_alive()

    def limit_files(self, length: int) -> None:
        """From now on no file that it writes may grow past so many bytes: a full disk that it has to itself."""
        pid = self._process.pid
        assert pid is not None, "a started process has a number"
        with suppress(ProcessLookupError):  # it has ended meanwhile
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (length, hard))

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.join()

    def wait(self, limit_s: float) -> int | None:
        """Its exit code, negative after a signal; None, and killed, if it did not end in time."""
        self._process.join(limit_s)
        if self._process.is_alive():
            self.kill()
            return None
        return self._process.exitcode

    def told(self) -> str:
        """What was written to its log since it started."""
        return self._log.read_bytes()[self._begin :].decode(errors="replace") if self._log.exists() else ""


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """What torchrun tells each rank, for ranks on this machine; nothing for one alone."""
    if world_size == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def child_environment() -> dict[str, str]:
    """This process's environment with one OpenMP thread, in which `python -m trials.X` works."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # The last one is what a first optimiser step imports.
    context.set_forkserver_preload(["adadistill.core.training.run", "adadistill.recipes.train", "torch._dynamo"])
    return context


def _train(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """In the process: what the command does, its output in a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environment)
    import torch

    from adadistill.recipes import train

    torch.set_num_threads(1)  # of several processes on a few cores
    sys.exit(train.main(arguments))
