"""Train what a recipe describes: `adadistill train RECIPE`, or under torchrun on several devices.

    adadistill train RECIPE [key.path=value ...] [--out FOLDER] [--resume auto|none|PATH]
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.train RECIPE ...
    torchrun --standalone --nproc_per_node=2 --max-restarts=3 -m ...    # goes on by itself when a process has died
    adadistill train RECIPE --profile torch|nsys [--profile-steps FIRST:COUNT]
    adadistill train RECIPE ... --dry-run [--gpu KIND] [--json]    # what it would do; exits 0 if it would start, else 2

Exit codes: 0 finished; 1 the run failed (a non-finite step, a damaged record, a full disk, a lost rank, no memory);
2 the recipe, a file it names or the launch is wrong; 75 a rank stopped answering (stacks are in the run folder's
`hang`); 143 stopped by SIGTERM after saving (130 by SIGINT). docs/reliability.md says what is promised when.
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.distributed import distributed_session
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.profiling import under_nsys
from adadistill.core.recipe import load_recipe
from adadistill.core.training.run import run_training
from adadistill.core.training.trainer import TrainingResult
from adadistill.recipes.dry_run import add_dry_run_options, dry_run, refuse_without_dry_run
from adadistill.recipes.entry_point import entry_point, log_to_stderr
from adadistill.recipes.outputs import will_write_folder
from adadistill.recipes.profiled_launch import (
    add_profile_options,
    hand_to_nsys,
    profile_request,
    refuse_without_cuda,
)


@entry_point("adadistill train", after_stop="go on with --resume auto", codes={"CheckpointError": 1})
def main(argv: Sequence[str]) -> int:
    """Parse, train, report; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.dry_run:
        return dry_run(arguments)
    keep_freed_memory()
    refuse_without_dry_run(arguments)
    profile = profile_request(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    folder = arguments.out or Path("runs") / recipe.name
    will_write_folder(folder, remedy="give another --out")
    if profile is not None and profile.tool == "nsys" and not under_nsys():
        refuse_without_cuda(arguments.device)
        hand_to_nsys(argv, folder, run=arguments.run)
        return 0
    with distributed_session(arguments.device) as ranks:
        log_to_stderr(speaks=ranks.is_main)
        result = run_training(
            recipe,
            folder,
            ranks=ranks,
            resume=arguments.resume,
            resume_allow=arguments.resume_allow,
            take_over=arguments.take_over,
            profile=profile,
        )
        if ranks.is_main:
            _report(result, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships with the package")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of the recipe")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>)")
    parser.add_argument("--resume", default="none", help="auto, none (default), a checkpoint, or a run folder")
    parser.add_argument(
        "--resume-allow",
        action="append",
        default=[],
        metavar="KEY",
        help="recipe key that may have changed",
    )
    parser.add_argument(
        "--take-over", action="store_true", help="the launch on another machine that owns the run folder is dead"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    add_profile_options(parser)
    add_dry_run_options(parser)
    return parser


def _report(result: TrainingResult, folder: Path) -> None:
    print(f"finished: {folder}  ({result.images_per_s:.0f} images/s)")
    for name, evaluation in result.evaluations.items():
        print(f"  {name:<16} {evaluation.summary()}")


if __name__ == "__main__":
    sys.exit(main())
