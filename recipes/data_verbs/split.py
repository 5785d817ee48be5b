"""Entry point: `adadistill data split RECORDS --out FOLDER`, a record file in random parts, of images or identities."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adadistill.loaders.dataset_tools.rewrite import split_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.data_verbs.progress import CountedProgress
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import add_out, parse_with_out, will_write_folder


@entry_point("adadistill data split")
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data split`; returns the exit code."""
    arguments = parse_with_out(build_parser(), argv)
    will_write_folder(arguments.out)
    with CountedProgress() as progress:
        parts = split_records(
            ImageRecords(arguments.source),
            arguments.out,
            names=arguments.names,
            fractions=arguments.fractions,
            by_identity=arguments.identities,
            seed=arguments.seed,
            relabel=arguments.relabel,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    for part in parts:
        print(part)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="adadistill data split", description="Cut a record file into random parts.")
    parser.add_argument("source", type=Path, help=".rec file")
    add_out(parser, "FOLDER", "each part becomes a folder in it")
    parser.add_argument("--names", nargs="+", default=["train", "val"], help="of the parts (default: train val)")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.9, 0.1], help="default: 0.9 0.1")
    parser.add_argument("--identities", action="store_true", help="no identity in two parts")
    parser.add_argument("--relabel", action="store_true", help="count identities of each part from 0 (labels.json)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace records that are there")
    return parser
