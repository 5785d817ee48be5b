"""Train variants of a recipe with several seeds and say what their differences can tell: `adadistill ablate`.

    adadistill ablate RECIPE [key.path=value ...] --variants geometry_adaptive geometry_headroom no_teacher --seeds 5 \\
        --out runs/ablation
    adadistill ablate RECIPE --variants geometry_adaptive --vary geometry_margin.scale=1,3,9 --out runs/scales
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.ablate RECIPE ...

Variants are names of recipes/variants/, YAML files of recipe keys, or `recipe`, the recipe as it is given; each is laid
over RECIPE and its overrides. Every run is an ordinary run folder under OUT/runs. The same command goes on after a kill
at any moment, trains nothing that is finished, and rewrites the report in OUT/report; more seeds or variants may be
added to it. A run that failed is tried again by the next launch. Runs whose rows were kept (`--done`) need no folder.

Exit codes: 0 every run is finished; 1 some run failed, and the others are in the report; 2 the recipe, a variant, the
folder or the launch is wrong; 143 stopped by SIGTERM after saving (130 by SIGINT).
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import dataclasses
import gc
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from adadistill.core.distributed import Ranks, barrier, broadcast_text, distributed_session
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.report.charts import NO_DRAWINGS
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.training.non_finite import NonFiniteError
from adadistill.core.training.run import run_training
from adadistill.loaders.errors import Refused, WorkFailed
from adadistill.recipes.ablation.plan import (
    AblationPlan,
    PlannedRun,
    plan_ablation,
    shipped_variants,
    variant_description,
)
from adadistill.recipes.ablation.report import ablation_result, report_text, write_report
from adadistill.recipes.ablation.runs import (
    RunState,
    check_folder,
    claim_folder,
    read_done,
    read_state,
    read_states,
    refuse_mixtures,
)
from adadistill.recipes.entry_point import entry_point, log_to_stderr
from adadistill.recipes.outputs import will_write_folder

logger = logging.getLogger("adadistill")

RUN_ERRORS = (Refused, WorkFailed, ValueError, OSError, ImportError, torch.OutOfMemoryError)
"""What ends one run and leaves the others their turn."""
AGREED_ERRORS = (NonFiniteError, NonFiniteEmbeddingsError)
"""Of these, what every rank raises at the same step. After any other, ranks may no longer be at the same place."""


@entry_point("adadistill ablate", after_stop="go on with the same command")
def main(argv: Sequence[str]) -> int:
    """Plan, train, report; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    keep_freed_memory()
    plan = plan_ablation(
        arguments.recipe,
        arguments.overrides,
        variants=arguments.variants,
        vary=arguments.vary,
        seeds=arguments.seeds,
        baseline=arguments.baseline,
        folder=arguments.out,
    )
    check_folder(plan)
    if arguments.dry_run:
        print(listing(plan, read_states(plan, read_done(arguments.done))))
        return 0
    will_write_folder(plan.folder, remedy="give another --out")
    with distributed_session(arguments.device) as ranks:
        return _run(plan, arguments.done, ranks)


def listing(plan: AblationPlan, states: dict[PlannedRun, RunState]) -> str:
    """What an ablation would do: variants with their differences, runs with where they are."""
    lines = [f"{plan.base.name}: {len(plan.variants)} variants, {len(plan.seeds)} seeds, {len(states)} runs"]
    for variant in plan.variants:
        mark = "  (baseline)" if variant.label == plan.baseline else ""
        lines += ["", f"{variant.label}{mark}", *([f"  {variant.description}"] if variant.description else [])]
        lines += [f"    {line}" for line in variant.differences(plan.base)] or ["    the recipe itself"]
        for seed in plan.seeds:
            run = plan.run(variant, seed)
            lines.append(f"  seed {seed}: {states[run].told}  ({run.folder})")
    left = sum(state.stage != "finished" for state in states.values())
    return "\n".join([*lines, "", f"{len(states) - left} finished, {left} left"])


def _run(plan: AblationPlan, done: Sequence[Path], ranks: Ranks) -> int:
    """Train what is not finished, one run after the other, and report; the exit code, equal on all ranks."""
    log_to_stderr(speaks=ranks.is_main)
    states = _claim(plan, done, ranks)
    failures: dict[PlannedRun, str] = {}
    runs = list(plan.runs())
    for number, run in enumerate(runs, start=1):
        place = f"run {number} of {len(runs)}: {run.title}"
        if states[run].stage == "finished":
            logger.info("%s is finished", place)
            continue
        logger.info("%s", place)
        _forget_the_last_run(ranks)
        try:
            run_training(run.recipe, run.folder, ranks=ranks, resume="auto")
        except RUN_ERRORS as error:
            failures[run] = _reason(error)
            logger.error("%s failed: %s", place, failures[run])
            if ranks.world_size > 1 and not isinstance(error, AGREED_ERRORS):
                logger.error("the ranks may be at different places now; start again to go on with the other runs")
                return 1
        if ranks.is_main:
            states[run] = read_state(run)
            write_report(ablation_result(plan, states, failures), plan.folder / "report")
    if ranks.is_main:
        refuse_mixtures(states)
        result = ablation_result(plan, states, failures)
        written = write_report(result, plan.folder / "report")
        print(f"\n{report_text(result)}\n\nwritten: {', '.join(map(str, written))}")
        if len(plan.variants) > 1 and written[-1].suffix != ".svg":
            print(f"no figure: {NO_DRAWINGS}")
    barrier(ranks)
    return 1 if failures else 0


def _claim(plan: AblationPlan, done: Sequence[Path], ranks: Ranks) -> dict[PlannedRun, RunState]:
    """Where every run is, as rank 0 found it before anybody trained; every rank must skip the same ones.

    Raises:
        AblationError, OSError: the folder cannot be used; on rank 0, which ends the launch.
    """
    text = ""
    if ranks.is_main:
        claim_folder(plan)
        text = json.dumps([dataclasses.asdict(state) for state in read_states(plan, read_done(done)).values()])
    states = json.loads(broadcast_text(text, ranks))
    return {run: RunState(**state) for run, state in zip(plan.runs(), states, strict=True)}


def _forget_the_last_run(ranks: Ranks) -> None:
    """What a run leaves in the process, so that the next one starts as in a process of its own."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # networks of one class share a limit of recompilations, beyond which they run eagerly
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)


def _reason(error: BaseException) -> str:
    """Type and first line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:400]}"


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<20} {variant_description(path)}" for name, path in shipped_variants().items()]
    parser = argparse.ArgumentParser(
        prog="adadistill ablate",
        description="\n".join([__doc__ or "", "Shipped variants:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships with the package")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the recipe, below the variants")
    parser.add_argument(
        "--variants", nargs="+", action="extend", default=[], metavar="VARIANT", help="names, YAML files, or `recipe`"
    )
    parser.add_argument(
        "--vary", action="append", default=[], metavar="KEY=A,B", help="multiply every variant by values of a key"
    )
    parser.add_argument(
        "--seeds", default="3", help="how many, counted up from the recipe's own, or a list: 0,7,13 (default: 3)"
    )
    parser.add_argument("--baseline", metavar="VARIANT", help="to compare with (default: the first variant)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the ablation")
    parser.add_argument(
        "--done", nargs="+", action="extend", default=[], type=Path, metavar="ROWS.jsonl",
        help="rows of earlier reports: a run of the same recipe hash and training code is not trained again",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list runs and where they are; write nothing")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
