"""One rank of a run to which something happens: started with torchrun's variables in its environment.

Arguments: what happens to which rank at which finished step, `KIND:RANK:STEP`, and then those of `adadistill train`.
KIND: `term` (SIGTERM to itself in a step), `term-evaluation` (in the evaluation at that step), `sleep` (for ever, in a
step). From the third step on, none may wait for the device on any rank, whatever travels with it; the first two settle
DDP's buckets.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from sync_watch import NoHostWait

import adadistill.core.scoring.embedding as evaluation
from adadistill.core.training.trainer import Trainer
from adadistill.core.training.training_step import TrainingStep
from adadistill.recipes import train


def main(event: str, arguments: list[str]) -> int:
    """Patch this process, then train."""
    torch.set_num_threads(1)
    kind, rank, step = event.split(":")
    _refuse_waits()
    if int(os.environ.get("RANK", "0")) == int(rank):
        if kind == "term-evaluation":
            _patch_evaluation(int(step))
        else:
            _patch_step(kind, int(step))
    return train.main(arguments)


def _refuse_waits() -> None:
    original, done = TrainingStep.run, []

    def run(*args, **more):
        done.append(1)
        with NoHostWait() if len(done) > 2 else nullcontext():
            return original(*args, **more)

    TrainingStep.run = run


def _patch_step(kind: str, at: int) -> None:
    original = TrainingStep.run

    def run(self: TrainingStep, *args, global_step: int, **more):
        if global_step == at:
            if kind == "sleep":
                time.sleep(3600)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, global_step=global_step, **more)

    TrainingStep.run = run


def _patch_evaluation(at: int) -> None:
    original, embed = Trainer._evaluate, evaluation._embed_range

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(*args)

    def evaluate(self: Trainer, *args):
        evaluation._embed_range = interrupted if self.global_step == at else embed
        return original(self, *args)

    Trainer._evaluate = evaluate


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
