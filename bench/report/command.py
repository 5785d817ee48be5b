"""`python -m adadistill.bench report`: what it is asked for, and where that goes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench.report.charts import MatplotlibMissingError, require_matplotlib
from adadistill.bench.report.comparison import compare, comparison_text
from adadistill.bench.report.headlines import with_measured_text
from adadistill.bench.report.markdown import markdown_report
from adadistill.bench.report.marked_text import write_whole
from adadistill.bench.report.page import html_page
from adadistill.bench.report.row_sets import load_rows
from adadistill.bench.report.tables import machines
from adadistill.bench.report.targets import standings
from adadistill.bench.row_schema import RowError
from adadistill.loaders.command_text import quoted

_COMMITTED = Path(__file__).resolve().parent.parent / "results"

_ABOUT = """Tables, a page, a comparison or the README's figures, from rows of measurements (JSONL).

  report                                   the committed rows as Markdown, the newest of each kind and machine
  report mine.jsonl --html page.html       one self-contained page with charts (needs the extra `report`)
  report --compare before after            folders or files; B against A, with the noise of each ratio
  report --readme README.md [--check]      write the README's figures anew; or say whether they are stale

Exit codes: 0 done; 1 stale (--check) or slower (--fail-if-slower); 2 rows or files that cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adadistill.bench report",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, help="JSONL files, or folders of them (default: bench/results)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there (default: print them)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page there")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="set the rows of B against those of A"
    )
    parser.add_argument("--across-machines", action="store_true", help="with --compare: also rows of other machines")
    parser.add_argument(
        "--fail-if-slower", action="store_true", help="with --compare: exit code 1 if anything is slower"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="write the figures between the markers of this file"
    )
    parser.add_argument("--check", action="store_true", help="with --readme: write nothing, exit code 1 if it is stale")
    arguments = parser.parse_args(argv)
    _refuse_what_does_not_fit(arguments, parser)
    try:
        if arguments.compare is not None:
            return _compare(arguments)
        if arguments.readme is not None:
            return _readme(arguments)
        return _report(arguments)
    except BrokenPipeError:  # whoever reads the tables has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RowError, MatplotlibMissingError, ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2


def _refuse_what_does_not_fit(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if arguments.compare is None and (arguments.fail_if_slower or arguments.across_machines):
        parser.error("--fail-if-slower and --across-machines go with --compare A B")
    if arguments.compare is not None and (arguments.files or arguments.html or arguments.readme or arguments.markdown):
        parser.error("--compare A B names its rows itself and prints what it found")
    if arguments.check and arguments.readme is None:
        parser.error("--check goes with --readme FILE")


def _report(arguments: argparse.Namespace) -> int:
    if arguments.html is not None:
        require_matplotlib()
    rows = load_rows(arguments.files or [_COMMITTED])
    listed, standing = machines(rows), standings(rows)
    text = markdown_report(listed, standing)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.html is not None:
        arguments.html.write_text(html_page(listed, standing), encoding="utf-8")
    if arguments.markdown is None and arguments.html is None:
        print(text)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    a, b = (load_rows([path]) for path in arguments.compare)
    found = compare(a, b, across_machines=arguments.across_machines)
    print(comparison_text(found, (str(arguments.compare[0]), str(arguments.compare[1]))))
    return int(arguments.fail_if_slower and any(one.verdict == "slower" for one in found.compared))


def _readme(arguments: argparse.Namespace) -> int:
    path: Path = arguments.readme
    before = path.read_text(encoding="utf-8")
    after = with_measured_text(before, load_rows(arguments.files or [_COMMITTED]))
    if arguments.check:
        if before != after:
            print(
                f"report: the figures in {path} are not those of the rows; write them anew with "
                f"`python -m adadistill.bench report --readme {quoted(path)}`",
                file=sys.stderr,
            )
        return int(before != after)
    write_whole(path, after)
    return 0
