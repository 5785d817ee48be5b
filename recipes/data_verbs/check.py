"""`adadistill data check RECORDS`: read a whole record file or folder, report every bad image, and seal a good one."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.dataset_tools.record_check import BadRecord, Checked, check_images
from adadistill.loaders.records.folder_index import folder_index_path, write_folder_index
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_seal import seal_path, write_seal
from adadistill.loaders.records.recordio import RecordFile
from adadistill.loaders.usable_cpus import usable_cpus
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write

_SHOWN = 20


@entry_point("adadistill data check")
def run(argv: Sequence[str]) -> int:
    """Check, report, seal. Exit code 0: all is good; 1: something is not; 2: the command is wrong."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    image_size, num_classes = _wanted(arguments)
    is_folder = Path(arguments.records).is_dir()
    if arguments.report is not None:
        will_write(arguments.report, is_result=False)
    if arguments.seal:
        of_folder = Path(arguments.index or folder_index_path(Path(arguments.records)))
        seal = of_folder if is_folder else seal_path(Path(arguments.records))
        will_write(seal, is_result=False, remedy="check without --seal, or seal a copy")
    started = time.perf_counter()
    found = check_images(
        arguments.records,
        arguments.index,
        decode=arguments.decode,
        image_size=image_size,
        num_classes=num_classes,
        workers=arguments.workers,
        use_seal=not arguments.reseal,
    )
    _report(found, time.perf_counter() - started, arguments)
    if found.bad:
        return 1
    if arguments.seal and not found.sealed and is_folder:
        path = write_folder_index(arguments.records, arguments.index, checksums=True)
        print(f"sealed: {path}, {found.records} images")
    elif arguments.seal and not found.sealed:
        file = RecordFile(arguments.records)
        records = ImageRecords(arguments.records, arguments.index, seal="ignore")
        made = write_seal(file, records.index)
        print(f"sealed: {made.path}, {made.num_images} records and {made.num_spans - made.num_images} other spans")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data check",
        description="Read a whole record file, or a folder of identities, and report every bad image. What is sealed "
        "is compared with its checksums; anything else is checked for frames, labels and image headers.",
    )
    parser.add_argument("records", help=".rec file, or a folder of identities")
    parser.add_argument("--index", help="its .idx or .images.index (default: the one beside it, else a scan)")
    parser.add_argument("--decode", action="store_true", help="also decode every image")
    parser.add_argument("--image-size", type=int, help="side in pixels that every image must have")
    parser.add_argument("--recipe", help="take image size and number of identities from this recipe")
    parser.add_argument(
        "--seal",
        action="store_true",
        help="write RECORDS.seal (FOLDER.images.index) if all is good: later reads check it",
    )
    parser.add_argument("--reseal", action="store_true", help="with --seal: replace a seal that there is, unread")
    parser.add_argument("--report", type=Path, help="JSONL file for the bad records, one a line")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="threads (default: all cores)")
    return parser


def _wanted(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    """(image size, number of identities) that the command line or its recipe asks for."""
    if arguments.workers < 1:
        raise ValueError(f"--workers must be positive, got {arguments.workers}")
    if arguments.reseal and not arguments.seal:
        raise ValueError("--reseal says how --seal treats an old seal; give both")
    if arguments.recipe is None:
        return arguments.image_size, None
    from adadistill.core.recipe import load_recipe

    data = load_recipe(arguments.recipe, [f"data.records={json.dumps(arguments.records)}"]).data
    return arguments.image_size or data.image_size, data.num_classes


def _report(found: Checked, seconds: float, arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.report
    if path is not None:
        write_whole(path, "".join(json.dumps(asdict(bad)) + "\n" for bad in found.bad))
    for bad in found.bad[:_SHOWN]:
        print(f"{_named(bad)}  {bad.kind}  {bad.reason}")
    if len(found.bad) > _SHOWN:
        print(f"... and {len(found.bad) - _SHOWN} more" + ("" if path else " (--report FILE lists them)"))
    how = "checksums compared" if found.sealed else "not sealed: frames, labels and headers checked"
    how += ", every image decoded" if arguments.decode else ""
    gigabytes = found.bytes / 1e9
    print(
        f"{found.records} images, {gigabytes:.3f} GB in {seconds:.1f} s ({gigabytes / seconds:.2f} GB/s), {how}, "
        f"{len(found.bad)} bad"
    )


def _named(bad: BadRecord) -> str:
    if bad.record_id is not None:
        return f"record {bad.record_id}"
    return "file" if bad.offset is None else f"byte {bad.offset}"
