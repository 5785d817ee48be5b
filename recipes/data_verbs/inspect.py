"""Entry point: what a file or folder is, from its bytes, and what to do with it.

    adadistill data inspect train.rec                     style, counts, labels, kinds of images, index, seal
    adadistill data inspect train.rec --record 17         one record: key, place, labels, image, sha256
    adadistill data inspect train.rec --record 17 --save face.jpg
    adadistill data inspect lfw.bin                       pairs, pickle protocol, image sizes; nothing of it is run
    adadistill data inspect FOLDER                        images by identity, a run, a checkpoint, a cache ...

Exit codes: 0 nothing is wrong with it; 1 something is, and is told; 2 the command is wrong, or there is nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from adadistill.loaders.dataset_tools.inspection import Finding, inspect_path
from adadistill.loaders.dataset_tools.inspection.finding import printable
from adadistill.loaders.dataset_tools.inspection.record_files import show_record
from adadistill.loaders.json_text import JSON
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write


@entry_point("adadistill data inspect", codes={"IndexError": 2})
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data inspect`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logger = logging.getLogger("adadistill")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what the readers warn of is in the finding
    try:
        if arguments.sample < 1:
            raise ValueError(f"--sample must be positive, got {arguments.sample}")
        if arguments.save is not None and arguments.record is None:
            raise ValueError("--save writes the image of one --record")
        if arguments.record is not None:
            _show_record(arguments)
            return 0
        finding = inspect_path(arguments.path, index=arguments.index, sample=arguments.sample)
    finally:
        logger.setLevel(level)
    if arguments.json:
        print(json.dumps(finding.to_json(), indent=2))
    else:
        _print(finding)
    return 1 if finding.problems else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="file or folder")
    parser.add_argument("--index", type=Path, help="of a .rec: its .idx (default: the one beside it, else a walk)")
    parser.add_argument("--sample", type=int, default=2000, help="most images to look at (default: 2000)")
    parser.add_argument("--record", type=int, metavar="ID", help="show this record of a .rec")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --record: write its image's bytes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _show_record(arguments: argparse.Namespace) -> None:
    if arguments.save is not None:
        will_write(arguments.save, is_result=False)
    shown = show_record(arguments.path, arguments.index, arguments.record)
    if arguments.json:
        print(json.dumps(shown.facts, indent=2))
    else:
        _print_facts(shown.facts)
    if arguments.save is not None:
        with arguments.save.open("xb") as file:  # never over another file
            file.write(shown.body)


def _print(finding: Finding) -> None:
    print(f"{printable(str(finding.path))}: {finding.title}")
    _print_facts(finding.facts)
    for problem in finding.problems:
        print(f"problem: {printable(problem, 2000)}")
    for step in finding.next_steps:
        print(f"next: {printable(step, 2000)}")


def _print_facts(facts: dict[str, JSON]) -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {count}" for key, count in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"  {name:<{width}}  {'not stated' if value is None else value}")
