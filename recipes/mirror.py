"""`adadistill mirror RUN`: copies of a run's metrics made again, or for the first time.

    adadistill mirror RUN --tensorboard
    adadistill mirror RUN --wandb PROJECT [--wandb-entity NAME] [--wandb-mode offline]

Exit codes: 0 copied; 1 a copy is not complete; 2 there is no such run, or a package is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.metrics_sinks import MetricsSinks, WandbConfig, require_sinks
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write_folder


@entry_point("adadistill mirror")
def main(argv: Sequence[str]) -> int:
    """Copy; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    run, tensorboard, wandb = arguments.run, arguments.tensorboard, None
    if arguments.wandb is not None:
        wandb = WandbConfig(project=arguments.wandb, entity=arguments.wandb_entity, mode=arguments.wandb_mode)
    require_sinks(tensorboard=tensorboard, wandb=wandb)
    if not tensorboard and wandb is None:
        raise ValueError("say where to: --tensorboard, --wandb PROJECT, or both")
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; name the folder of a run")
    for name in ["tensorboard"] * tensorboard + ["wandb"] * (wandb is not None):
        will_write_folder(run / name, remedy="copy the run to where it can be")
    if tensorboard:
        for old in (run / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()
    sinks = MetricsSinks(run, tensorboard=tensorboard, wandb=wandb)
    for row in read_metrics(run / "metrics.jsonl"):
        sinks.write(row)
    return 0 if sinks.close() else 1


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
