"""What holds under damage: kills, full disks, flipped bits, mutated files; a table and one row for each kind of damage.

Isolates promises, not speed: each kind of damage is done many times, drawn from a seed, to the real thing (processes
that train, files that they wrote), and the row says how often the promise held and how the trials ended. Leaves out
what no program can cause: power cuts, controllers that lie about what they have written. docs/reliability.md says what
is promised and how it is tried. Trials are found by looking: every file beside this one with a `run` is a family.

Exit codes: 0 every promise held; 1 one did not; 2 the arguments are wrong.

    make trials                                      a quarter of an hour on two cores
    make trials TRIALS_ARGS="--only kills --seed 7"  one family, another draw
    make trials TRIALS_ARGS=--small                  the same kinds of damage, seconds each
"""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adadistill.bench.report.row_sets import machine, newest
from adadistill.bench.row_schema import Row
from adadistill.bench.rows import append_row, read_rows, results_folder
from adadistill.core.report.document import Cell, Number, Table
from adadistill.core.report.markdown_page import markdown_table, replace_marked
from adadistill.core.report.text import markdown_text, short_number
from adadistill.loaders.atomic_file import write_whole
from trials.outcome import TrialOutcome

BEGIN = '<!-- trials: begin. Written by `make trials TRIALS_ARGS="--rows FILE --markdown THIS"` -->'
END = "<!-- trials: end -->"

_TRIALS = Path(__file__).resolve().parent
_HEADS = ["What", "Damage", "Promise", "Held", "How the trials ended", "Peak MiB"]


def main(argv: Sequence[str] | None = None) -> int:
    """Do the trials, print the table, append rows; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="make trials",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = families()
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help=f"families, with commas between them, of {', '.join(known)} (default: all)",
    )
    parser.add_argument("--small", action="store_true", help="few trials of each kind: seconds")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--folder", type=Path, help="for the files of the trials (default: a temporary one, removed)")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the table between the markers of this file; with --rows that of the newest rows of each kind there",
    )
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.only or ()) - set(known))
    if unknown:
        parser.error(f"--only: no family is called {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.folder is not None and not arguments.folder.is_dir():
        parser.error(f"--folder {arguments.folder}: no such folder")
    if arguments.markdown is not None:
        try:
            _write_markdown(arguments.markdown, None)
        except (OSError, ValueError) as error:  # found out now, and not after a quarter of an hour
            parser.error(f"--markdown {arguments.markdown}: {error}")
    chosen = [name for name in known if arguments.only is None or name in arguments.only]
    rows: list[Row] = []
    broken = 0
    for name in chosen:
        try:
            with _warnings_left_out():
                outcomes = _try_family(name, arguments)
        except RuntimeError as error:  # what was to be damaged did not work undamaged
            print(f"\n{name}: the trials did not come to their end: {error}")
            broken += 1
            continue
        for outcome in outcomes:
            print(_line(outcome), flush=True)
            broken += outcome.held < outcome.trials
            rows.append(_append(arguments.rows, name, outcome, arguments))
    if arguments.markdown is not None:
        path = None if arguments.rows is None else results_folder() / arguments.rows
        _write_markdown(arguments.markdown, rows if path is None else newest(read_rows(path)))
    print(f"{len(rows)} kinds of damage, {broken} of them broke a promise")
    return int(broken > 0)


@contextmanager
def _warnings_left_out() -> Iterator[None]:
    """Hundreds of warnings are what the trials are for."""
    logger = logging.getLogger("adadistill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def families() -> list[str]:
    """Files beside this one with a `run`, found without importing them."""
    found = []
    for path in sorted(_TRIALS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found.append(path.stem)
    return found


def table_text(rows: Sequence[Row]) -> str:
    """Rows of this bench as a Markdown table, with the machine and the date below."""
    lines: list[Sequence[Cell]] = [
        [
            row["group"],
            row["damage"],
            row["promise"],
            Number(row["held"], f"{row['held']:,} of {row['trials']:,}"),
            _endings(row["outcomes"]),
            None if row.get("peak_mib") is None else Number(row["peak_mib"], short_number(row["peak_mib"])),
        ]
        for row in rows
    ]
    where = sorted(
        {
            f"{machine(row)}; torch {row['torch']}; {row['date'][:10]}; seed {row['seed']}"
            + ("; few trials of each kind (--small)" if row["small"] else "")
            for row in rows
        }
    )
    return "\n".join([markdown_table(Table(caption="", heads=_HEADS, rows=lines)), "", *map(markdown_text, where), ""])


def _try_family(name: str, arguments: argparse.Namespace) -> list[TrialOutcome]:
    module = importlib.import_module(f"trials.{name}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"adadistill-{name}-", dir=arguments.folder) as folder:
        outcomes: list[TrialOutcome] = module.run(tiny=arguments.small, seed=arguments.seed, folder=Path(folder))
    print(f"\n{name}: {sum(one.trials for one in outcomes):,} trials in {time.monotonic() - started:.0f} s")
    return outcomes


def _line(outcome: TrialOutcome) -> str:
    peak = "" if outcome.peak_mib is None else f", peak {short_number(outcome.peak_mib)} MiB"
    lines = [
        f"  {'held' if outcome.held == outcome.trials else 'BROKEN':<6}  {outcome.held}/{outcome.trials}  "
        f"{outcome.group}, {outcome.damage}: {outcome.promise}",
        f"          {_endings(outcome.outcomes)}{peak}",
        *(f"          ! {text}" for text in outcome.failures),
    ]
    return "\n".join(lines)


def _endings(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in outcomes.items())


def _append(path: str | None, family: str, outcome: TrialOutcome, arguments: argparse.Namespace) -> Row:
    return append_row(
        path, bench="reliability", device="cpu", family=family, group=outcome.group, damage=outcome.damage,
        promise=outcome.promise, small=arguments.small, seed=arguments.seed, held=outcome.held, trials=outcome.trials,
        outcomes=outcome.outcomes, peak_mib=outcome.peak_mib, failures=list(outcome.failures),
    )  # fmt: skip


def _write_markdown(path: Path, rows: Sequence[Row] | None) -> None:
    """Write the table between the markers; None only looks whether they are there."""
    before = path.read_text(encoding="utf-8")
    if rows is None:
        replace_marked(before, BEGIN, END, "")
        return
    write_whole(path, replace_marked(before, BEGIN, END, table_text([row for row in rows if not row["small"]] or rows)))


if __name__ == "__main__":
    sys.exit(main())
