"""Entry point: records to an image folder and back, and other image sets to records. The input is only ever read.

    adadistill data convert train.rec --out faces          FOLDER/<identity>/<key>.jpg, and a list of the rest
    adadistill data convert faces --out again              the same images, labels and order; any folder to records
    adadistill data convert faces --list train.lst --out F keys, labels and order of an im2rec list
    adadistill data convert shards/*.tar --out F           WebDataset shards; *.parquet: Hugging Face image sets

Image bytes are never changed. A folder goes on where an earlier call was stopped or killed; a record file appears
whole or not at all.

Exit codes: 0 done; 1 the data is bad, or a folder is not what its list says; 2 the command is wrong, something is
in the way, or the disk is full; 143 stopped by SIGTERM (130 by SIGINT).
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.training.stop_signal import StopRequested, listen_for_stop
from adadistill.loaders.dataset_tools.foreign_sets import convert_to_records
from adadistill.loaders.dataset_tools.record_folder.folder_to_records import folder_to_records
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import records_to_folder
from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.recipes.data_verbs.progress import CountedProgress
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write_folder

_FOLDER_ONLY = ("lst", "ignore_manifest", "image_size", "follow_links", "restart")


@entry_point(
    "adadistill data convert",
    after_stop="the same command goes on: images that are there are skipped",
    codes={"ImageFolderError": 1},
)
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data convert`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    kind = _kind(arguments)
    will_write_folder(arguments.out, remedy="give another --out")
    try:
        with listen_for_stop() as stop, CountedProgress() as draw:

            def progress(done: int, total: int) -> None:
                draw(done, total)
                if stop.requested:
                    raise StopRequested(stop.exit_code, f"after {done} of {total} images")

            print(_CONVERSIONS.get(kind, _convert_foreign)(arguments, progress))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(f"{arguments.out}: the disk is full; make room, and the same command goes on") from error
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", help="a .rec, one folder of folders, tar shards, parquet files"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write: of images for a .rec, else of records"
    )
    parser.add_argument(
        "--from", dest="kind", choices=("records", "folder", "tar", "parquet"), help="default: by the names"
    )
    parser.add_argument("--limit", type=int, help="convert the first so many images only (not of a .rec)")
    parser.add_argument("--overwrite", action="store_true", help="replace records that are there")
    folder = parser.add_argument_group("a folder")
    folder.add_argument("--list", dest="lst", type=Path, metavar="FILE.lst", help="im2rec's: key, label(s), path")
    folder.add_argument("--image-size", type=int, metavar="S", help="refuse images of another side; none is resized")
    folder.add_argument(
        "--ignore-manifest", action="store_true", help="convert by names what was made of a record file"
    )
    folder.add_argument("--follow-links", action="store_true", help="also those that lead out of the folder")
    folder.add_argument("--restart", action="store_true", help=argparse.SUPPRESS)  # record files always begin anew
    tars = parser.add_argument_group("tar shards, parquet files")
    tars.add_argument("--label-key", help="key in a tar's .json members, or parquet column (default: .cls, label)")
    return parser


def _kind(arguments: argparse.Namespace) -> str:
    """What the sources are; empty leaves it to the reader of foreign sets."""
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be positive, got {arguments.limit}")
    sources: list[Path] = arguments.sources
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
    kind: str | None = arguments.kind
    if kind is None and len(sources) == 1:
        kind = "folder" if sources[0].is_dir() else "records" if sources[0].suffix == ".rec" else None
    if kind in ("records", "folder") and len(sources) != 1:
        raise ValueError(f"one record file or one folder is converted at a time, got {len(sources)}")
    given = [name for name in _FOLDER_ONLY if getattr(arguments, name)]
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ValueError(f"--image-size must be positive, got {arguments.image_size}")
    if given and kind != "folder":
        option = {"lst": "list"}.get(given[0], given[0]).replace("_", "-")
        raise ValueError(f"--{option} is for a folder; {sources[0]} is none")
    if arguments.label_key is not None and kind in ("records", "folder"):
        raise ValueError("--label-key is for tar shards and parquet files; a folder's labels are its sub-folders")
    if kind == "records" and (arguments.limit is not None or arguments.overwrite):
        raise ValueError("a record file is unpacked whole, and never over other files: no --limit, no --overwrite")
    return kind or ""


def _unpack(arguments: argparse.Namespace, progress: Progress) -> str:
    done = records_to_folder(arguments.sources[0], arguments.out, progress=progress)
    kept = f"; {done.kept_images} of them were there already" if done.kept_images else ""
    return f"wrote {done.folder}: {done.images} images of {done.identities} identities{kept}"


def _gather(arguments: argparse.Namespace, progress: Progress) -> str:
    done = folder_to_records(
        arguments.sources[0],
        arguments.out,
        lst=arguments.lst,
        ignore_manifest=arguments.ignore_manifest,
        limit=arguments.limit,
        image_side=arguments.image_size,
        follow_links=arguments.follow_links,
        overwrite=arguments.overwrite,
        progress=progress,
    )
    said = f"wrote {done.path}: {done.images} images of {done.identities} identities"
    if done.is_own:
        said += "; keys, labels and order of the records that they came from"
    if done.left_out:
        said += f"\nleft out: {done.left_out} files or folders that are no .jpg, .jpeg or .png by name"
    return said


def _convert_foreign(arguments: argparse.Namespace, progress: Progress) -> str:
    converted = convert_to_records(
        arguments.sources,
        arguments.out,
        kind=arguments.kind,
        label_key=arguments.label_key,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
        progress=progress,
    )
    return f"wrote {converted.path}: {converted.images} images of {converted.identities} identities"


_CONVERSIONS = {"records": _unpack, "folder": _gather}
