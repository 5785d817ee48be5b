"""Runs a worker script once for each rank, with torchrun's variables in its environment: real processes, real gloo."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence

from forked_python import forked_python


def start_ranks(command: Sequence[str], world_size: int, python: str | None = None) -> list[subprocess.Popen[str]]:
    """Start `python COMMAND` on every rank with one thread each.

    Args:
        python: the interpreter, where the processes must be this one's own children; left out, `forked_python()`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [python or forked_python(), *command],
            env={**environment, "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_ranks(command: Sequence[str], world_size: int) -> list[str]:
    """Run `python COMMAND` on every rank with one thread each; what each printed. All of them must succeed."""
    processes = start_ranks(command, world_size)
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(error for _, error in outputs)
    return [output for output, _ in outputs]
