"""Entry point: what a record file holds, in numbers.

    adadistill data stats train.rec                       counts, images per identity, kinds of images, space they take
    adadistill data stats train.rec --recipe RECIPE       do identities and image size fit the recipe?
    adadistill data stats train.rec --below 10            which identities have fewer than 10 images
    adadistill data stats train.rec --histogram ids.csv   images of each identity, as label,images
    adadistill data stats train.rec --duplicates          images that are there twice; reads the whole file

Exit codes: 0 done; 1 a record is damaged; 2 the command is wrong, or a file that it names is not there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.dataset_tools.statistics import (
    Duplicates,
    RecordStatistics,
    bars,
    find_duplicates,
    histogram,
    record_statistics,
)
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.data_verbs.progress import CountedProgress
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write

_SHOWN = 20


@entry_point("adadistill data stats", codes={"LabelClaimError": 1})
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data stats`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    for name in ("sample", "below"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be positive, got {getattr(arguments, name)}")
    csv: Path | None = arguments.histogram
    if csv is not None and csv.exists() and not arguments.overwrite:
        raise FileExistsError(f"{csv} exists; --overwrite replaces it")
    if csv is not None:
        will_write(csv, is_result=False)
    num_classes = size = None
    if arguments.recipe is not None:
        from adadistill.core.recipe import load_recipe

        data = load_recipe(arguments.recipe, [f"data.records={json.dumps(str(arguments.source))}"]).data
        num_classes, size = data.num_classes, data.image_size
    records = ImageRecords(arguments.source, num_classes=num_classes)
    found = record_statistics(records, sample=arguments.sample, image_size=size)
    below = None if arguments.below is None else np.flatnonzero(found.counts < arguments.below).tolist()
    duplicates = None
    if arguments.duplicates:
        with CountedProgress() as progress:
            duplicates = find_duplicates(records, progress)
    if csv is not None:
        lines = (f"{label},{count}\n" for label, count in enumerate(found.counts.tolist()))
        write_whole(csv, "".join(["label,images\n", *lines]))
    if arguments.json:
        more = {"below": below, "duplicates": None if duplicates is None else duplicates.to_json()}
        given = {name: value for name, value in more.items() if value is not None}
        print(json.dumps({**found.to_json(), **given}, indent=2))
        return 0
    _print_statistics(found)
    if below is not None:
        print(f"below {arguments.below}      {len(below)} identities{_listed(below, found.counts.tolist())}")
    if duplicates is not None:
        _print_duplicates(duplicates, records)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help=".rec file")
    parser.add_argument("--sample", type=int, default=100_000, help="most image headers to read (default: 100000)")
    parser.add_argument("--recipe", help="compare number of identities and image size with this recipe")
    parser.add_argument("--below", type=int, metavar="N", help="list the identities of fewer than N images")
    parser.add_argument("--histogram", type=Path, metavar="FILE.csv", help="write images of each identity")
    parser.add_argument("--duplicates", action="store_true", help="find images of the same bytes")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.csv")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _print_statistics(found: RecordStatistics) -> None:
    per, size = found.images_per_identity, found.bytes_per_image
    print(f"images        {found.images}")
    print(
        f"identities    {found.identities}" + (f" ({found.empty_identities} empty)" if found.empty_identities else "")
    )
    quartiles = f"quartiles {per['lower_quartile']:g}, {per['median']:g}, {per['upper_quartile']:g}"
    print(f"  images each {per['min']} to {per['max']}, {quartiles}; {per['singletons']} have one alone")
    for line in bars(histogram(found.counts)):
        print(f"  {line}")
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


def _print_duplicates(duplicates: Duplicates, records: ImageRecords) -> None:
    print(
        f"duplicates    {duplicates.images} images are there again, in {len(duplicates.groups)} groups; "
        f"{duplicates.across_identities} groups under several identities"
    )
    for group in duplicates.groups[:_SHOWN]:
        labels = sorted({records.read(record_id).label for record_id in group})
        print(f"  records {', '.join(map(str, group[:8]))}{' ...' * (len(group) > 8)}  labels {labels}")
    if len(duplicates.groups) > _SHOWN:
        print(f"  ... and {len(duplicates.groups) - _SHOWN} more groups (--json has them all)")


def _listed(labels: list[int], counts: list[int]) -> str:
    if not labels:
        return ""
    shown = ", ".join(f"{label} ({counts[label]})" for label in labels[:_SHOWN])
    return f", label (images): {shown}" + (f" and {len(labels) - _SHOWN} more (--json)" * (len(labels) > _SHOWN))
