"""Entry points: record files made of record files: `adadistill data shuffle`, `split` and `merge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from adadistill.loaders.dataset_tools.rewrite import Written, merge_records, shuffle_records, split_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.data_verbs.progress import CountedProgress
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write, will_write_folder


@entry_point("adadistill data shuffle")
def run_shuffle(argv: Sequence[str]) -> int:
    """Run `adadistill data shuffle`; returns the exit code."""
    return _run("shuffle", _add_shuffle, argv)


@entry_point("adadistill data split")
def run_split(argv: Sequence[str]) -> int:
    """Run `adadistill data split`; returns the exit code."""
    return _run("split", _add_split, argv)


@entry_point("adadistill data merge")
def run_merge(argv: Sequence[str]) -> int:
    """Run `adadistill data merge`; returns the exit code."""
    return _run("merge", _add_merge, argv)


def _run(verb: str, add: Callable[[argparse.ArgumentParser], None], argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"adadistill data {verb}")
    add(parser)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    run(arguments)
    return 0


def _add_shuffle(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the images in a random order, for readers that shuffle within a window only (DALI's and MXNet's own). "
        "Training here draws a true permutation every epoch and gains nothing from it."
    )
    parser.add_argument("source", type=Path, help=".rec file")
    parser.add_argument("target", type=Path, help=".rec file to write, in a folder of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=_shuffle)


def _shuffle(arguments: argparse.Namespace) -> None:
    will_write(arguments.target, makes_parents=True)
    with CountedProgress() as progress:
        written = shuffle_records(
            ImageRecords(arguments.source),
            arguments.target,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    _say(written)


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=".rec file")
    parser.add_argument("folder", type=Path, help="each part becomes a folder in it")
    parser.add_argument("--names", nargs="+", default=["train", "val"], help="of the parts (default: train val)")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.9, 0.1], help="default: 0.9 0.1")
    parser.add_argument("--identities", action="store_true", help="no identity in two parts")
    parser.add_argument("--relabel", action="store_true", help="count identities of each part from 0 (labels.json)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=_split)


def _split(arguments: argparse.Namespace) -> None:
    will_write_folder(arguments.folder)
    with CountedProgress() as progress:
        parts = split_records(
            ImageRecords(arguments.source),
            arguments.folder,
            names=arguments.names,
            fractions=arguments.fractions,
            by_identity=arguments.identities,
            seed=arguments.seed,
            relabel=arguments.relabel,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    for part in parts:
        _say(part)


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="gets train.rec, train.idx and property")
    parser.add_argument("sources", type=Path, nargs="+", help=".rec files")
    parser.add_argument(
        "--same-identities", action="store_true", help="a label means the same person in all files (default: no)"
    )
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out images whose bytes were seen before")
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    will_write_folder(arguments.folder)
    with CountedProgress() as progress:
        written = merge_records(
            [ImageRecords(source) for source in arguments.sources],
            arguments.folder,
            same_identities=arguments.same_identities,
            drop_duplicates=arguments.drop_duplicates,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    _say(written)


def _say(written: Written) -> None:
    dropped = f", {written.dropped} duplicates left out" if written.dropped else ""
    print(f"wrote {written.path}: {written.images} images of {written.identities} identities{dropped}")
