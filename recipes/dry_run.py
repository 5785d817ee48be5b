"""The part of `adadistill train` that does not train: `--dry-run` says what the launch would do, and whether it can.

Everything is looked at and nothing touched: no folder, no lock, no download, no process group. Under torchrun rank 0
speaks for all; the others end at once. Files are looked for where rank 0 runs.

Exit codes: 0 the run would start; 2 it would not, and every reason is listed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.cost_model.devices import DEVICES
from adadistill.core.distributed import LaunchError, announced_ranks
from adadistill.core.launch_check.check import check_launch
from adadistill.core.launch_check.findings import Findings
from adadistill.core.profiling import under_nsys
from adadistill.core.recipe import resolve_recipe
from adadistill.recipes.dry_run_text import as_json, as_text
from adadistill.recipes.profiled_launch import profile_request, refuse_without_cuda


def add_dry_run_options(parser: argparse.ArgumentParser) -> None:
    """`--dry-run`, `--gpu` and `--json`."""
    group = parser.add_argument_group("dry run", "what the launch would do, without doing it; docs/planning.md")
    group.add_argument("--dry-run", action="store_true", help="resolve, check and estimate; exit 0 or 2")
    group.add_argument(
        "--gpu", choices=sorted(DEVICES), help="with --dry-run: kind of device to estimate memory for (default: here)"
    )
    group.add_argument("--json", action="store_true", help="with --dry-run: print JSON")


def refuse_without_dry_run(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options of a dry run on a launch that is none."""
    given = [name for name, value in (("--gpu", arguments.gpu), ("--json", arguments.json)) if value]
    if given:
        raise ValueError(f"{' and '.join(given)} go with --dry-run; this launch trains")


def dry_run(arguments: argparse.Namespace) -> int:
    """Look at the launch that `adadistill train` was asked for, print what was found; returns the exit code."""
    if _rank() != 0:
        return 0
    findings = Findings()
    profiles = False
    with findings.collected():
        profile = profile_request(arguments)
        profiles = profile is not None
        if profile is not None and profile.tool == "nsys" and not under_nsys():
            refuse_without_cuda(arguments.device)
    try:
        loaded = resolve_recipe(arguments.recipe, arguments.overrides)
    except RecipeError as error:
        problems = [*findings.problems, *(f"{error.source}: {problem}" for problem in error.problems)]
        if arguments.json:
            print(json.dumps({"would_start": False, "problems": problems}, indent=1))
        else:
            print("\n".join([f"would not start, {len(problems)} problem(s):", *(f"  - {line}" for line in problems)]))
        return 2
    found = check_launch(
        loaded,
        arguments.out or Path("runs") / loaded.config.name,
        device=arguments.device,
        kind=arguments.gpu,
        resume=arguments.resume,
        resume_allow=arguments.resume_allow,
        take_over=arguments.take_over,
        profiles=profiles,
        findings=findings,
    )
    print(json.dumps(as_json(found), indent=1) if arguments.json else as_text(found))
    return 0 if found.would_start else 2


def _rank() -> int:
    try:
        return announced_ranks("cpu").rank
    except LaunchError:  # reported by the check, of which every process is then the first
        return 0
