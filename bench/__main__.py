"""`python -m adadistill.bench NAME ...` and `adadistill bench NAME ...`: runs one bench, several, or reports on rows.

Benches are found by looking (`catalogue.py`); nothing is imported before its name is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench import suite
from adadistill.bench.catalogue import Bench, UnknownBenchError, bench_named, benches, tiny_arguments
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write, will_write_folder

_SEVERAL = {
    "kernels": "every kernel bench, one after the other, with its defaults",
    "all": "every bench by priority, at the sizes that matter on this machine, inside a time budget",
}
_OTHERS = {
    "report": "tables and a page from rows, a comparison of two sets of rows, the README's figures",
    "demo": "the row of a finished `make demo`, from its report",
    "gpu_check": "the GPU tests, then `all`: what `make gpu-check` runs",
}

_EXAMPLES = """
  adadistill bench all --tiny                     is everything in order? a minute or two on any CPU
  adadistill bench step --rows mine.jsonl         one bench; its options: adadistill bench step --help
  adadistill bench all --minutes 20 --out before  every bench; rows go to the folder `before`
  adadistill bench report before --html page.html what was measured
  adadistill bench report --compare before after  what a change did, and whether that is more than noise

Every bench takes `--rows FILE`, JSONL that rows are appended to (relative: under $OUT where that is set, else
bench/results), and `--tiny`, for seconds on any CPU. docs/performance.md says what each isolates and how to read it."""


@entry_point("bench")
def main(argv: Sequence[str]) -> int:
    """Run what is named; returns its exit code."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in _OTHERS:
        return int(importlib.import_module(f"adadistill.bench.{name}").main(rest) or 0)
    if name in _SEVERAL:
        return _run_all(rest) if name == "all" else _run_kernels(rest)
    try:
        bench = bench_named(name, others=[*_SEVERAL, *_OTHERS])
    except UnknownBenchError as error:
        print(f"bench: {error}\n\n{_usage()}", file=sys.stderr)
        return 2
    return _run_one(bench, rest)


def _run_one(bench: Bench, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="adadistill-tiny-") as folder:
        if "--tiny" in arguments:
            arguments = [word for word in arguments if word != "--tiny"]
            arguments = [*tiny_arguments(bench, Path(folder)), *arguments]
        module = importlib.import_module(bench.module)
        if "--rows" in arguments[:-1]:
            from adadistill.bench.rows import results_folder

            rows = results_folder() / arguments[arguments.index("--rows") + 1]  # which may be absolute
            will_write(rows, is_result=False, makes_parents=True, remedy="name another file with --rows")
        return int(module.main(arguments) or 0)


def _run_kernels(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m adadistill.bench kernels",
        description="Every kernel bench, one after the other. Options not listed here go to each of them.",
    )
    _add_common(parser, minutes=30.0)
    options, rest = parser.parse_known_args(arguments)
    chosen = [bench for bench in benches() if bench.name.startswith("kernels.")]
    listed = suite.tiny_jobs(chosen, rest) if options.tiny else suite.default_jobs(chosen, rest)
    return _run_jobs(listed, options, parser)


def _run_all(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m adadistill.bench all",
        description="Every bench by priority, inside a time budget. Exit code 1 if one failed.",
    )
    _add_common(parser, minutes=30.0)
    parser.add_argument("--faces", type=Path, help="folder of real faces (default: $ADADISTILL_DATA/faces, if there)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="whose sizes (default: cuda where there is a GPU)")
    options = parser.parse_args(arguments)
    if options.tiny:
        return _run_jobs(suite.tiny_jobs(benches()), options, parser)
    import torch

    cuda = torch.cuda.is_available() if options.device is None else options.device == "cuda"
    try:
        listed = suite.jobs(suite.faces_folder(options.faces), cuda=cuda)
    except ValueError as error:
        parser.error(str(error))
    return _run_jobs(listed, options, parser)


def _add_common(parser: argparse.ArgumentParser, *, minutes: float) -> None:
    parser.add_argument("--minutes", type=float, default=minutes, help=f"time budget (default: {minutes:g})")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run the jobs whose names hold one of these")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where rows go (default: $OUT, else bench/results)")
    parser.add_argument(
        "--tiny", action="store_true", help="seconds each, on the CPU; rows are written only with --out"
    )
    parser.add_argument("--list", action="store_true", help="print the jobs and end")


def _run_jobs(listed: Sequence[suite.Job], options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        chosen = suite.chosen_jobs(listed, options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for job in chosen:
            print(f"{job.name:<26} at most {job.limit_s:>4.0f} s   python {' '.join(job.command)}")
        return 0
    if options.out is not None:
        will_write_folder(options.out, remedy="name another with --out")
        os.environ["OUT"] = str(options.out.resolve())
    elif options.tiny:
        with tempfile.TemporaryDirectory(prefix="adadistill-tiny-") as folder:
            os.environ["OUT"] = folder
            return suite.run_jobs(chosen, minutes=options.minutes)
    return suite.run_jobs(chosen, minutes=options.minutes)


def _usage() -> str:
    stages = {bench.name: bench.about for bench in benches() if not bench.name.startswith("kernels.")}
    kernels = {bench.name: bench.about for bench in benches() if bench.name.startswith("kernels.")}
    width = max(len(name) for name in (*stages, *kernels, *_SEVERAL, *_OTHERS))
    parts = ["usage: python -m adadistill.bench NAME ...     or: adadistill bench NAME ..."]
    for title, group in (("stages", stages), ("kernels", kernels), ("several", _SEVERAL), ("rows", _OTHERS)):
        parts.append(f"\n{title}")
        parts += [f"  {name:<{width}}  {about}" for name, about in group.items()]
    return "\n".join([*parts, "\nexamples", _EXAMPLES.strip("\n")])


if __name__ == "__main__":
    sys.exit(main())
