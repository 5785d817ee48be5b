"""What holds under damage: kills, full disks, flipped bits, mutated files; a table and one row for each kind of damage.

Isolates promises, not speed: each kind of damage is done many times, drawn from a seed, to the real thing (processes
that train, files that they wrote), and the row says how often the promise held and how the trials ended. Leaves out
what no program can cause: power cuts, controllers that lie about what they have written. docs/reliability.md says what
is promised and how it is tried.

Exit codes: 0 every promise held; 1 one did not; 2 the arguments are wrong.

    make trials                                      a quarter of an hour on two cores
    make trials TRIALS_ARGS="--only kills --seed 7"  one family, another draw
    make trials TRIALS_ARGS=--small                  the same kinds of damage, seconds each
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench.report.row_sets import machine, newest
from adadistill.bench.row_schema import Row
from adadistill.bench.rows import append_row, read_rows, results_folder
from adadistill.core.report.document import Cell, Number, Table
from adadistill.core.report.markdown_page import markdown_table, replace_marked
from adadistill.core.report.text import markdown_text, short_number
from adadistill.loaders.atomic_file import write_whole
from trials.tally import Tally

FAMILIES = ("corruption", "disk", "kills", "mutations", "signals")
"""Modules beside this one, each with a `run`."""
BEGIN = '<!-- trials: begin. Written by `make trials TRIALS_ARGS="--rows FILE --markdown THIS"` -->'
END = "<!-- trials: end -->"

_HEADS = ["What", "Damage", "Promise", "Held", "How the trials ended", "Peak MiB"]


def main(argv: Sequence[str] | None = None) -> int:
    """Do the trials, print the table, append rows; returns the exit code."""
    arguments = _parse(argv)
    logging.getLogger("adadistill").setLevel(logging.ERROR)  # hundreds of warnings are what the trials are for
    rows: list[Row] = []
    broken = 0
    for name in FAMILIES if arguments.only is None else arguments.only:
        try:
            tallies = _try_family(name, arguments)
        except RuntimeError as error:  # what was to be damaged did not work undamaged
            print(f"\n{name}: the trials did not come to their end: {error}")
            broken += 1
            continue
        for tally in tallies:
            print(_line(tally), flush=True)
            broken += tally.held < tally.trials
            row = append_row(
                arguments.rows, bench="reliability", device="cpu", family=name, group=tally.group, damage=tally.damage,
                promise=tally.promise, small=arguments.small, seed=arguments.seed, held=tally.held, trials=tally.trials,
                outcomes=tally.outcomes, peak_mib=tally.peak_mib, failures=tally.failures,
            )  # fmt: skip
            rows.append(row)
    if arguments.markdown is not None:
        path = None if arguments.rows is None else results_folder() / arguments.rows
        _write_markdown(arguments.markdown, table_text(rows if path is None else newest(read_rows(path))))
    print(f"{len(rows)} kinds of damage, {broken} of them broke a promise")
    return int(broken > 0)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; what would fail after a quarter of an hour is found out now."""
    parser = argparse.ArgumentParser(
        prog="make trials", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=lambda text: text.split(","), metavar="NAMES",
        help=f"families, with commas between them, of {', '.join(FAMILIES)} (default: all)")  # fmt: skip
    add("--small", action="store_true", help="few trials of each kind: seconds")
    add("--seed", type=int, default=0, help="of all draws (default: 0)")
    add("--folder", type=Path, help="for the files of the trials (default: a temporary one, removed)")
    add("--rows", help="JSONL file for the rows (default: print only)")
    add("--markdown", type=Path, metavar="FILE",
        help="write the table between the markers of this file; with --rows that of the newest rows of each kind there"
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.only or ()) - set(FAMILIES)):
        parser.error(f"--only: no family is called {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    if arguments.folder is not None and not arguments.folder.is_dir():
        parser.error(f"--folder {arguments.folder}: no such folder")
    if arguments.markdown is not None:
        try:
            replace_marked(arguments.markdown.read_text(encoding="utf-8"), BEGIN, END, "")
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def _try_family(name: str, arguments: argparse.Namespace) -> list[Tally]:
    module = importlib.import_module(f"trials.{name}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"adadistill-{name}-", dir=arguments.folder) as folder:
        tallies: list[Tally] = module.run(tiny=arguments.small, seed=arguments.seed, folder=Path(folder))
    print(f"\n{name}: {sum(one.trials for one in tallies):,} trials in {time.monotonic() - started:.0f} s")
    return tallies


def _line(tally: Tally) -> str:
    peak = "" if tally.peak_mib is None else f", peak {short_number(tally.peak_mib)} MiB"
    lines = [
        f"  {'held' if tally.held == tally.trials else 'BROKEN':<6}  {tally.held}/{tally.trials}  "
        f"{tally.group}, {tally.damage}: {tally.promise}",
        f"          {_endings(tally.outcomes)}{peak}",
        *(f"          ! {text}" for text in tally.failures),
    ]
    return "\n".join(lines)


def _endings(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(outcomes.items(), key=lambda one: -one[1]))


def table_text(rows: Sequence[Row]) -> str:
    """Rows of these trials as a Markdown table, with the machine and the date below; small ones where no others are."""
    rows = [row for row in rows if not row["small"]] or rows
    lines: list[Sequence[Cell]] = [
        [
            row["group"], row["damage"], row["promise"],
            Number(row["held"], f"{row['held']:,} of {row['trials']:,}"),
            _endings(row["outcomes"]),
            None if row.get("peak_mib") is None else Number(row["peak_mib"], short_number(row["peak_mib"])),
        ]
        for row in rows
    ]  # fmt: skip
    where = {
        f"{machine(row)}; torch {row['torch']}; {row['date'][:10]}; seed {row['seed']}"
        + ("; few trials of each kind (--small)" if row["small"] else "")
        for row in rows
    }
    table = markdown_table(Table(caption="", heads=_HEADS, rows=lines))
    return "\n".join([table, "", *map(markdown_text, sorted(where)), ""])


def _write_markdown(path: Path, table: str) -> None:
    write_whole(path, replace_marked(path.read_text(encoding="utf-8"), BEGIN, END, table))


if __name__ == "__main__":
    sys.exit(main())
