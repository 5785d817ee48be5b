"""Entry point: `adadistill data merge RECORDS ... --out FOLDER`, files joined into one of insightface's layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adadistill.loaders.dataset_tools.rewrite import merge_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.data_verbs.progress import CountedProgress
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write_folder


@entry_point("adadistill data merge")
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data merge`; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(list(argv))
    sources: list[Path] = arguments.sources
    if arguments.out is None:  # as it was written before: FOLDER RECORDS ...
        arguments.out, *sources = sources
        if not sources:
            parser.error("name record files, and --out FOLDER")
    will_write_folder(arguments.out)
    with CountedProgress() as progress:
        written = merge_records(
            [ImageRecords(source) for source in sources],
            arguments.out,
            same_identities=arguments.same_identities,
            drop_duplicates=arguments.drop_duplicates,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    print(written)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="adadistill data merge", description="Join record files into one.")
    parser.add_argument("sources", type=Path, nargs="+", help=".rec files")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="gets train.rec, train.idx and property")
    parser.add_argument(
        "--same-identities", action="store_true", help="a label means the same person in all files (default: no)"
    )
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out images whose bytes were seen before")
    parser.add_argument("--overwrite", action="store_true", help="replace records that are there")
    return parser
