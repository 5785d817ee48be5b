"""`python -m adadistill.bench report`: what it is asked for, and where that goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench.report.comparison import compare, comparison_document
from adadistill.bench.report.headlines import with_measured_text
from adadistill.bench.report.row_sets import load_rows
from adadistill.bench.report.tables import bench_document
from adadistill.core.report.charts import NO_DRAWINGS
from adadistill.core.report.html_page import html_page
from adadistill.core.report.markdown_page import markdown_page
from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.command_text import quoted
from adadistill.recipes.entry_point import entry_point

_COMMITTED = Path(__file__).resolve().parent.parent / "results"

_ABOUT = """Tables, a page, a comparison or the README's figures, from rows of measurements (JSONL).

  report                                   the committed rows as Markdown, the newest of each kind and machine
  report mine.jsonl --html page.html       one self-contained page, with charts where the extra `report` is installed
  report --compare before after            folders or files; B against A, with the noise of each ratio
  report --readme README.md [--check]      write the README's figures anew; or say whether they are stale

Exit codes: 0 done; 1 stale (--check) or slower (--fail-if-slower); 2 rows or files that cannot be used."""


@entry_point("report")
def main(argv: Sequence[str]) -> int:
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
    if arguments.compare is None and (arguments.fail_if_slower or arguments.across_machines):
        parser.error("--fail-if-slower and --across-machines go with --compare A B")
    if arguments.compare is not None and (arguments.files or arguments.html or arguments.readme or arguments.markdown):
        parser.error("--compare A B names its rows itself and prints what it found")
    if arguments.check and arguments.readme is None:
        parser.error("--check goes with --readme FILE")
    if arguments.compare is not None:
        return _compare(arguments)
    if arguments.readme is not None:
        return _readme(arguments)
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:
    document = bench_document(load_rows(arguments.files or [_COMMITTED]))
    if arguments.markdown is not None:
        write_whole(arguments.markdown, markdown_page(document))
    if arguments.html is not None:
        write_whole(arguments.html, html_page(document))
        if document.misses_drawings:
            print(NO_DRAWINGS)
    if arguments.markdown is None and arguments.html is None:
        print(markdown_page(document))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    first, second = arguments.compare
    found = compare(load_rows([first]), load_rows([second]), across_machines=arguments.across_machines)
    print(markdown_page(comparison_document(found, (str(first), str(second)))))
    return int(arguments.fail_if_slower and any(one.verdict == "slower" for one in found.compared))


def _readme(arguments: argparse.Namespace) -> int:
    path: Path = arguments.readme
    before = path.read_text(encoding="utf-8")
    after = with_measured_text(before, load_rows(arguments.files or [_COMMITTED]))
    if not arguments.check:
        write_whole(path, after)
        return 0
    if before != after:
        print(
            f"report: the figures in {path} are not those of the rows; write them anew with "
            f"`python -m adadistill.bench report --readme {quoted(path)}`",
            file=sys.stderr,
        )
    return int(before != after)
