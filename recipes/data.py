"""`adadistill data VERB ...`: record files packed, verified, sealed, shuffled, split, merged, counted and converted;
verification sets made."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adadistill.core.distributed import Ranks
from adadistill.core.metrics_log import ProgressBar
from adadistill.loaders.image_records import ImageRecords
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.record_tools.foreign_sets import ArrowMissingError, ForeignSetError, convert_to_records
from adadistill.loaders.record_tools.rewrite import Progress, Written, merge_records, shuffle_records, split_records
from adadistill.loaders.record_tools.statistics import RecordStatistics, record_statistics
from adadistill.loaders.recordio import RecordError

_OWN_FILES = {
    "pack": "adadistill.recipes.data_pack",
    "verify": "adadistill.recipes.data_verify",
    "pairs": "adadistill.recipes.data_pairs",
}
"""Verbs with a file of their own, which has `run(argv)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Exit code 0: done; 1: the data is bad; 2: the command is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _OWN_FILES:
        return int(importlib.import_module(_OWN_FILES[arguments[0]]).run(arguments[1:]))
    parsed = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = parsed.run
    try:
        run(parsed)
    except (RecordError, ImageDecodeError, ForeignSetError) as error:
        return _fail(error, 1)
    except (ValueError, OSError, ArrowMissingError) as error:
        return _fail(error, 2)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="adadistill data", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("pack", help="decode once, to 4:2:0 planes or RGB, and train from that", add_help=False)
    verbs.add_parser("verify", help="report every bad record; seal a good file", add_help=False)
    _add_shuffle(verbs.add_parser("shuffle", help="write the images in a random order"))
    _add_split(verbs.add_parser("split", help="cut into random parts, of images or of whole identities"))
    _add_merge(verbs.add_parser("merge", help="join files into one of insightface's layout"))
    _add_stats(verbs.add_parser("stats", help="count identities, sizes and kinds of images"))
    verbs.add_parser("pairs", help="make a verification .bin of a list of pairs and a folder", add_help=False)
    _add_convert(verbs.add_parser("convert", help="WebDataset tars, parquet image sets or class folders to records"))
    return parser


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
    with _Bar() as progress:
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
    with _Bar() as progress:
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
    with _Bar() as progress:
        written = merge_records(
            [ImageRecords(source) for source in arguments.sources],
            arguments.folder,
            same_identities=arguments.same_identities,
            drop_duplicates=arguments.drop_duplicates,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    _say(written)


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=".rec file")
    parser.add_argument("--sample", type=int, default=100_000, help="most image headers to read (default: 100000)")
    parser.add_argument("--recipe", help="compare number of identities and image size with this recipe")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_stats)


def _stats(arguments: argparse.Namespace) -> None:
    if arguments.sample < 1:
        raise ValueError(f"--sample must be positive, got {arguments.sample}")
    num_classes = size = None
    if arguments.recipe is not None:
        from adadistill.core.recipe import load_recipe

        data = load_recipe(arguments.recipe, [f"data.records={json.dumps(str(arguments.source))}"]).data
        num_classes, size = data.num_classes, data.image_size
    records = ImageRecords(arguments.source)
    found = record_statistics(records, sample=arguments.sample, num_classes=num_classes, image_size=size)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print_statistics(found)


def _print_statistics(found: RecordStatistics) -> None:
    per, size = found.images_per_identity, found.bytes_per_image
    print(f"images        {found.images}")
    print(
        f"identities    {found.identities}" + (f" ({found.empty_identities} empty)" if found.empty_identities else "")
    )
    print(f"  images each {per['min']} to {per['max']}, median {per['median']:g}; {per['singletons']} have one alone")
    print(f"bytes each    {size['min']:.0f} to {size['max']:.0f}, median {size['median']:.0f}, mean {size['mean']:.0f}")
    print(f"order         {'sorted by identity' if found.sorted_by_identity else 'not sorted by identity'}")
    print(f"kinds         of {found.sampled} headers read")
    for kind, count in found.kinds.items():
        print(f"  {count:>10}  {kind}")
    print("would take")
    for name, count in found.stored_bytes().items():
        print(f"  {count / 1e9:>8.3f} GB  {name}")
    if all(" 420 " in f" {kind} " or "Gray" in kind for kind in found.kinds):
        print("all 4:2:0: packed planes lose nothing")
    for problem in found.problems:
        print(f"problem: {problem}")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", type=Path, nargs="+", help="tar shards, parquet files, or one folder of folders")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets train.rec, train.idx and property")
    parser.add_argument("--from", dest="kind", choices=("tar", "parquet", "folder"), help="default: by the names")
    parser.add_argument("--label-key", help="key in a tar's .json members, or parquet column (default: .cls, label)")
    parser.add_argument("--limit", type=int, help="convert the first so many images only")
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be positive, got {arguments.limit}")
    converted = convert_to_records(
        arguments.sources,
        arguments.out,
        kind=arguments.kind,
        label_key=arguments.label_key,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
    )
    print(f"wrote {converted.path}: {converted.images} images of {converted.identities} identities")


class _Bar:
    """A progress bar for work whose size is known when it begins."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Progress:
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.clear()

    def _update(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = ProgressBar(total, Ranks())
        if done % 1000 == 0 or done == total:
            self._bar.update(done)


def _say(written: Written) -> None:
    dropped = f", {written.dropped} duplicates left out" if written.dropped else ""
    print(f"wrote {written.path}: {written.images} images of {written.identities} identities{dropped}")


def _fail(error: Exception, code: int) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
