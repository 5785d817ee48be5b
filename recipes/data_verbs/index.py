"""Entry point: an `.idx` of the images alone, or a complete one made anew; the index of a folder of identities.

    adadistill data index train.rec            train.images.idx: what DALI's own reader needs with insightface's files
    adadistill data index train.rec --all      train.idx from a walk through the records, when it is lost or damaged
    adadistill data index FOLDER               FOLDER.images.index: spares every rank the listing (docs/data.md)

Exit codes: 0 written; 1 the records are damaged; 2 the command is wrong, or something is in the way.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from adadistill.loaders.dataset_tools.index_files import IndexWritten, rebuild_index, write_image_index
from adadistill.loaders.records.folder_index import folder_index_path, read_folder_index, write_folder_index
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write

_REMEDY = "say with --out where it goes"

_KEYS = {
    "idx": "keys of the .idx",
    "scan": "keys from a walk through the records",
    "ids": "keys from the records' own headers",
    "header record": "keys by insightface's header record",
    "ordinals": "keys counted from 0: the records do not tell theirs",
}


@entry_point("adadistill data index")
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data index`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    records: Path = arguments.records
    if records.is_dir():
        return _index_folder(arguments)
    target = arguments.out or records.with_suffix(".idx" if arguments.all else ".images.idx")
    will_write(target, remedy=_REMEDY)
    if arguments.all:
        if arguments.index is not None:
            raise ValueError("--all walks through the records and reads no --index")
        written = rebuild_index(records, target, overwrite=arguments.overwrite)
    else:
        written = write_image_index(records, arguments.index, target, overwrite=arguments.overwrite)
    _say(written, records, complete=arguments.all)
    return 0


def _index_folder(arguments: argparse.Namespace) -> int:
    if arguments.all or arguments.index is not None:
        raise ValueError(f"{arguments.records} is a folder; --all and --index are for .rec files")
    target = arguments.out or folder_index_path(arguments.records)
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"{target} exists already; pass --overwrite to replace it (and checksums that it holds)")
    will_write(target, remedy=_REMEDY)
    path = write_folder_index(arguments.records, target)
    listing = read_folder_index(path).listing
    print(f"wrote {path}: {len(listing.images)} images of {len(listing.identities)} identities, without checksums")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, help=".rec file, or a folder of identities")
    parser.add_argument("--index", type=Path, help="its .idx (default: the one beside it, else a walk)")
    parser.add_argument("--all", action="store_true", help="list every record, and give each its key again")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: train.images.idx; with --all, train.idx")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    return parser


def _say(written: IndexWritten, records: Path, *, complete: bool) -> None:
    print(f"wrote {written.path}: {written.lines} records, {written.images} of them images; {_KEYS[written.keys_from]}")
    if not complete:
        print(f"  left out: {written.left_out} header and identity records")
        print(f"  fn.readers.mxnet(path=[{str(records)!r}], index_path=[{str(written.path)!r}])")
