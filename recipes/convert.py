"""Entry point: turn published weights into a checkpoint that a recipe can name as its teacher, and networks of ours
into files that the public implementations load.

    adadistill convert backbone.pth --out teachers/r50
    adadistill convert adaface_ir50_ms1mv2.ckpt --out teachers/ir50 --arch ir50
    adadistill convert runs/ms1mv2_ir50_to_mobilefacenet --out backbone.pth --to adadistill

A recipe can name such a file directly (`teacher: {weights: backbone.pth}`); a checkpoint of ours is what `adadistill
evaluate` and another machine can use without knowing where it came from.

Converts strictly: every tensor of the network must be there, in its shape, and no other. Networks of ours take RGB; for
weights trained on BGR the channels of the first convolution are swapped, which is exact. With `--to` it goes the other
way: renaming is exact, AdaFace gets its BGR back, and an IR network also fits insightface's IResNet. What was written
is read again, and must be the network that it came from.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from adadistill.core.backbones import BACKBONE_NAMES, BackboneName
from adadistill.core.backbones.public_formats import FORMATS, Publisher
from adadistill.core.backbones.public_weights import strip_wrappers, swap_colour_order_
from adadistill.core.backbones.published_form import check_published_file, published_tensors, save_published
from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file
from adadistill.core.checkpoints.network_checkpoint import load_network, save_network
from adadistill.core.teachers.interface import file_sha256
from adadistill.core.teachers.weight_source import read_public_network
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import add_out, parse_with_out, will_write, will_write_folder


@entry_point("adadistill convert")
def main(arguments: Sequence[str]) -> int:
    """Run `adadistill convert`; 0 when the checkpoint was written, 2 when the weights cannot be read or do not fit."""
    options = parse_with_out(_parser(), arguments)
    if options.to is not None:
        will_write(options.out)
        publish(options.source, options.out, publisher=options.to)
        return 0
    if options.source.is_dir():
        raise ValueError(f"{options.source} is a folder; to write its network for public code, say whose with --to")
    will_write_folder(options.out)
    convert(
        options.source,
        options.out,
        arch=options.arch,
        image_size=options.image_size,
        weight_format=options.format,
        colour=options.colour,
    )
    return 0


def convert(
    source: Path,
    out: Path,
    *,
    arch: BackboneName | None = None,
    image_size: int = 112,
    weight_format: str = "auto",
    colour: str = "auto",
) -> Path:
    """Write the weights of `source` as a checkpoint under `out` and print what was done.

    Args:
        source: `.pth`, `.pt`, `.ckpt` or `.safetensors` of a public network.
        out: folder to make; must not exist or be empty.
        arch: the network that `source` holds; None to recognise it by the names of the tensors.
        image_size: pixels it was trained on.
        weight_format: a key of `FORMATS`, or `auto` to tell it from the names of the tensors.
        colour: `rgb` or `bgr` as in training, or `auto` for what the format implies.

    Returns:
        The checkpoint directory.

    Raises:
        ValueError: weights that do not fit, an unreadable file, or a colour order that nothing tells.
        FileExistsError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already and is not an empty folder; choose another or remove it")
    try:
        found = read_public_network(source, arch=arch, weight_format=weight_format, image_size=image_size)
    except WeightFileError:
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    network, backbone, publisher = found.network, found.backbone, found.publisher
    colour = _resolve_colour(colour, publisher, backbone.arch)
    if colour == "bgr":
        swap_colour_order_(network)
    digest = file_sha256(source)
    checkpoint = save_network(
        out, network, backbone, image_size, source=source.name, sha256=digest, format=publisher, colour=colour
    )
    swapped = "bgr, first convolution swapped to take rgb" if colour == "bgr" else "rgb"
    print(f"{source}  sha256 {digest[:16]}  {backbone.arch} ({publisher or 'publisher unknown'}, trained on {swapped})")
    print(f"wrote {checkpoint}")
    return checkpoint


def publish(source: Path, out: Path, *, publisher: Publisher) -> None:
    """Write the network of a checkpoint of ours as a file that `publisher`'s code loads, and print what was done.

    Args:
        source: a checkpoint, or a run folder, whose newest valid checkpoint is taken.
        out: file to make, with a suffix that the publisher's code opens.

    Raises:
        CheckpointError: there is no valid network.
        ValueError: it has no exact form there.
        FileExistsError: `out` exists.
    """
    loaded = load_network(source, device=torch.device("cpu"))
    check_published_file(out, loaded.backbone, loaded.image_size, publisher)
    tensors = published_tensors(loaded.network, loaded.backbone, loaded.image_size, publisher)
    save_published(out, tensors, publisher)
    written = strip_wrappers(read_weight_file(out), tensors)[0]
    if written.keys() != tensors.keys() or any(not torch.equal(written[name], tensors[name]) for name in tensors):
        raise OSError(f"{out} does not hold what was written to it; the disk or its memory is at fault")
    order = FORMATS[publisher].color
    print(f"{loaded.path}  {loaded.backbone.arch}, step {loaded.step}")
    print(f"wrote {out}  {len(tensors)} tensors for {publisher}, images {order}  sha256 {file_sha256(out)[:16]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill convert",
        description="Turn published weights into a checkpoint usable as a teacher, or the other way.",
    )
    parser.add_argument("source", type=Path, help=".pth, .pt, .ckpt or .safetensors file; with --to, a run")
    add_out(parser, "PLACE", "folder for the checkpoint; new or empty. With --to, a file")
    parser.add_argument("--to", choices=tuple(FORMATS), help="write the network of a run for the code of this project")
    parser.add_argument("--arch", choices=BACKBONE_NAMES, help="network that the file holds (default: recognised)")
    parser.add_argument("--format", default="auto", choices=("auto", *FORMATS), help="who published it (default: auto)")
    parser.add_argument(
        "--colour",
        "--color",
        default="auto",
        choices=("auto", "rgb", "bgr"),
        help="channel order it was trained on (default: auto)",
    )
    parser.add_argument("--image-size", type=int, default=112, help="pixels it was trained on (default: 112)")
    return parser


def _resolve_colour(colour: str, publisher: str | None, arch: str) -> str:
    if colour != "auto":
        return colour
    if publisher is None:
        raise ValueError(
            f"the names of these {arch} tensors do not tell whether AdaFace (bgr) or CVLface (rgb) trained them, "
            "and the wrong colour order costs accuracy silently; pass --format adaface|cvlface or --colour rgb|bgr"
        )
    return FORMATS[publisher].color  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
