"""Entry point: decode every image of a record file or folder once, into a packed store that is read by record id.

    adadistill data pack RECORDS.rec --out FOLDER     planes where all JPEGs are 4:2:0 (18,816 bytes a face), else RGB;
                                                      goes on where an earlier packing stopped
    adadistill data pack RECORDS.rec --out FOLDER --check   then read all of it against its checksums

In several processes:
    torchrun --standalone --nproc_per_node=8 -m adadistill.recipes.data_verbs.pack RECORDS.rec --out FOLDER

Exit codes: 0 done; 1 the work failed (a damaged record, an image of another size, a damaged store); 2 the command, a
file it names or the launch is wrong, or the folder holds another store; 143 stopped by SIGTERM (130 by SIGINT).
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.distributed import LaunchError, Ranks
from adadistill.core.teachers import record_binding
from adadistill.core.training.metrics_log import format_seconds
from adadistill.core.training.stop_signal import StopRequested, StopSignal, listen_for_stop
from adadistill.loaders.block_store.packed_images import PackedStore
from adadistill.loaders.block_store.packing import PackResult, pack_records
from adadistill.loaders.pixels import ImageLimits
from adadistill.loaders.records.open_images import open_images
from adadistill.recipes.block_report import BlockReport, check_blocks
from adadistill.recipes.entry_point import entry_point, log_to_stderr
from adadistill.recipes.outputs import add_out, parse_with_out, will_write_folder

logger = logging.getLogger("adadistill")


@entry_point("adadistill data pack", after_stop="the same command goes on from here")
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data pack`; returns the exit code."""
    arguments = parse_with_out(build_parser(), argv)
    ranks = _ranks()
    log_to_stderr(speaks=ranks.is_main, otherwise=logging.WARNING)
    will_write_folder(arguments.out)
    with listen_for_stop() as stop:
        _pack(arguments, ranks, stop)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `adadistill data pack`."""
    parser = argparse.ArgumentParser(
        prog="adadistill data pack",
        description="Decode every image of a record file once, into a folder that training reads by record id.",
    )
    parser.add_argument("records", type=Path, help=".rec file, or a folder of identities")
    add_out(parser, "FOLDER", "of the store: new, or of an earlier call, which is continued")
    parser.add_argument(
        "--index", type=Path, help="its .idx or .images.index (default: the one beside it, else a scan)"
    )
    parser.add_argument(
        "--links",
        choices=("inside", "anywhere"),
        default="inside",
        help="which links in a folder are followed: those that stay within it, or all (default: inside)",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="C", help="number of identities (default: read from the dataset)"
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "planes", "rgb"),
        default="auto",
        help="planes: Y, Cb, Cr as 4:2:0 JPEGs hold them, half the bytes of rgb and nothing lost "
        "(default: planes where every image allows it)",
    )
    parser.add_argument("--image-size", type=int, default=112, metavar="S", help="side in pixels (default: 112)")
    parser.add_argument(
        "--shard-records", type=int, default=65536, metavar="N", help="images in each file (default: 65536)"
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="decode threads per process (default: 4)")
    parser.add_argument(
        "--on-damaged",
        choices=("stop", "skip"),
        default="stop",
        help="skip: store damaged records in grey with label -1, which no loss counts, and list them in damaged.json "
        "(default: stop at the first)",
    )
    parser.add_argument(
        "--wrong-size",
        choices=("refuse", "resize"),
        default="refuse",
        help="resize: images of another size are made S x S, as data.wrong_size=resize does while training, and the "
        "layout is rgb (default: stop at the first)",
    )
    for option, default, text in (
        ("--max-image-side", ImageLimits().max_side, "images that claim more pixels a side are damaged"),
        ("--max-image-bytes", ImageLimits().max_bytes, "and so are those of more encoded bytes"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument(
        "--check", "--verify", action="store_true", help="read the finished store against its checksums"
    )
    return parser


def _pack(arguments: argparse.Namespace, ranks: Ranks, stop: StopSignal) -> None:
    limits = ImageLimits(max_side=arguments.max_image_side, max_bytes=arguments.max_image_bytes)
    records = open_images(
        arguments.records,
        arguments.index,
        num_classes=arguments.num_classes,
        limits=limits,
        links=arguments.links,
    )
    result = pack_records(
        records,
        arguments.out,
        binding=record_binding(records),
        layout=arguments.layout,
        image_size=arguments.image_size,
        shard_records=arguments.shard_records,
        workers=arguments.workers,
        on_damaged=arguments.on_damaged,
        wrong_size=arguments.wrong_size,
        limits=limits,
        rank=ranks.rank,
        world_size=ranks.world_size,
        stop=lambda: stop.requested,
        report=BlockReport(ranks) if ranks.is_main else lambda progress: None,
    )
    if result.stopped:
        raise StopRequested(stop.exit_code)
    if result.is_complete:
        _print_result(result)
        if arguments.check:
            print(check_blocks(PackedStore(result.folder), ranks, stop))
    else:  # whoever ends last says the rest
        logger.info("rank %d is done; %d blocks of other ranks are not", ranks.rank, result.missing_blocks)


def _print_result(result: PackResult) -> None:
    header = result.header
    assert header is not None, "of a complete store"
    size = f"{header.num_records} images as {header.layout}, {header.data_bytes / 1e9:.3f} GB"
    print(f"finished: {result.folder}  {size}, digest {result.digest}")
    if result.images:
        seconds = format_seconds(result.seconds)
        print(f"  {result.images} images by this process in {seconds}: {result.images_per_s:.0f} images/s")
    else:
        print("  this process found its part complete")
    if result.damaged:
        print(f"  {result.damaged} damaged records are stored in grey with label -1; damaged.json lists them")


def _ranks() -> Ranks:
    """Who this process is, from torchrun's variables. Ranks never speak to each other here: no process group."""
    try:
        rank, world_size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))
        )
    except ValueError:
        raise LaunchError("RANK and WORLD_SIZE must be whole numbers; launch with torchrun") from None
    if not 0 <= rank < world_size:
        raise LaunchError(f"RANK {rank} and WORLD_SIZE {world_size} do not fit together; launch with torchrun")
    return Ranks(rank=rank, world_size=world_size)


if __name__ == "__main__":
    sys.exit(run())
