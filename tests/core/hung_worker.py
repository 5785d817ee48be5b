"""One rank that gathers a number again and again, under the watchdog, until something happens to it.

Arguments: folder, time limit in seconds, and what happens to the last rank after 20 steps: `none`, `sleep`, `stop`
(SIGSTOP), or `gil` (a call into C that holds the interpreter's lock). After 40 steps it is done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch

from adadistill.core.distributed import barrier, distributed_session, gather_rows
from adadistill.core.training.heartbeat import TRAINING, beat, phase
from adadistill.core.training.watchdog import Watchdog


def main(folder: Path, timeout_s: float, event: str) -> None:
    """Step until the event, or to the end."""
    with distributed_session("cpu") as ranks:
        barrier(ranks)
        with Watchdog(folder, ranks, timeout_s, launch="test"), phase(TRAINING):
            for step in range(40):
                if step == 20 and ranks.rank == ranks.world_size - 1:
                    _happen(event)
                gather_rows(torch.ones(1), ranks)
                beat(step + 1)
                time.sleep(0.01)


def _happen(event: str) -> None:
    if event == "sleep":
        time.sleep(3600)
    elif event == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif event == "gil":
        ctypes.PyDLL(None).sleep(3600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
