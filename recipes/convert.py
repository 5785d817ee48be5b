"""Entry point: turn published weights into a checkpoint that a recipe can name as its teacher.

    adadistill convert backbone.pth teachers/r50 --arch iresnet50
    adadistill convert adaface_ir50_ms1mv2.ckpt teachers/ir50 --arch ir50

Converts strictly: every tensor of the network must be there, in its shape, and no other. Networks of ours take RGB; for
weights trained on BGR the channels of the first convolution are swapped, which is exact.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import load_public_weights, swap_colour_order_
from adadistill.core.backbones.weight_files import read_weight_file
from adadistill.core.checkpoints import CheckpointError
from adadistill.core.network_checkpoint import save_network


@dataclass(frozen=True, kw_only=True, slots=True)
class _PublicFormat:
    """One project's way of publishing networks."""

    families: tuple[str, ...]
    """Our architectures, without the depth, whose weights it publishes."""
    colour: str
    """Channel order of the images that it feeds them."""


FORMATS: Final[dict[str, _PublicFormat]] = {
    "adadistill": _PublicFormat(families=("mobilefacenet", "iresnet"), colour="rgb"),
    "insightface": _PublicFormat(families=("mbf", "iresnet"), colour="rgb"),
    "adaface": _PublicFormat(families=("ir",), colour="bgr"),  # reads images with OpenCV and keeps its order
    "cvlface": _PublicFormat(families=("ir",), colour="rgb"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `adadistill convert`; 0 when the checkpoint was written, 2 when the weights cannot be read or do not fit."""
    options = _parser().parse_args(arguments)
    try:
        convert(
            options.source,
            options.out,
            BackboneConfig(arch=options.arch, embedding_dim=options.embedding_dim),
            image_size=options.image_size,
            weight_format=options.format,
            colour=options.colour,
        )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def convert(
    source: Path,
    out: Path,
    backbone: BackboneConfig,
    *,
    image_size: int = 112,
    weight_format: str = "auto",
    colour: str = "auto",
) -> Path:
    """Write the weights of `source` as a checkpoint under `out` and print what was done.

    Args:
        source: `.pth`, `.pt`, `.ckpt` or `.safetensors` of a public network.
        out: folder to make; must not exist or be empty.
        backbone: the network that `source` holds.
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
    public = read_weight_file(source)
    network = build_backbone(backbone, image_size, generator=0)
    load_public_weights(network, public)
    weight_format = _resolve_format(weight_format, backbone.arch, public)
    colour = _resolve_colour(colour, weight_format, backbone.arch)
    if colour == "bgr":
        swap_colour_order_(network)
    digest = _sha256(source)
    checkpoint = save_network(
        out, network, backbone, image_size, source=source.name, sha256=digest, format=weight_format, colour=colour
    )
    swapped = "bgr, first convolution swapped to take rgb" if colour == "bgr" else "rgb"
    print(f"{source}  sha256 {digest[:16]}  {backbone.arch} ({weight_format}, trained on {swapped})")
    print(f"wrote {checkpoint}")
    return checkpoint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill convert", description="Turn published weights into a checkpoint usable as a teacher."
    )
    parser.add_argument("source", type=Path, help=".pth, .pt, .ckpt or .safetensors file")
    parser.add_argument("out", type=Path, help="folder for the checkpoint; new or empty")
    parser.add_argument("--arch", required=True, choices=BACKBONE_NAMES, help="network that the file holds")
    parser.add_argument("--format", default="auto", choices=("auto", *FORMATS), help="who published it (default: auto)")
    parser.add_argument(
        "--colour",
        default="auto",
        choices=("auto", "rgb", "bgr"),
        help="channel order it was trained on (default: auto)",
    )
    parser.add_argument("--image-size", type=int, default=112, help="pixels it was trained on (default: 112)")
    parser.add_argument("--embedding-dim", type=int, default=512, help="length of its embeddings (default: 512)")
    return parser


def _resolve_format(weight_format: str, arch: str, names: Iterable[str]) -> str:
    family = arch.rstrip("0123456789")
    candidates = [name for name, public in FORMATS.items() if family in public.families]
    if weight_format != "auto":
        if weight_format not in candidates:
            raise ValueError(f"{weight_format} publishes no {arch}; its format must be one of {', '.join(candidates)}")
        return weight_format
    if family != "ir":
        # AdaDistill's iresnets are insightface's, name by name and colour by colour.
        return candidates[-1]
    return _ir_publisher(names)


def _ir_publisher(names: Iterable[str]) -> str:
    """AdaFace and CVLface name the layers alike; what stands around them differs. `unknown` where nothing does."""
    names = list(names)
    if any(name.startswith(("net.", "model.net.")) for name in names):
        return "cvlface"
    return "adaface" if "head.kernel" in names else "unknown"


def _resolve_colour(colour: str, weight_format: str, arch: str) -> str:
    if colour != "auto":
        return colour
    if weight_format == "unknown":
        raise ValueError(
            f"the names of these {arch} tensors do not tell whether AdaFace (bgr) or CVLface (rgb) trained them, "
            "and the wrong colour order costs accuracy silently; pass --format adaface|cvlface or --colour rgb|bgr"
        )
    return FORMATS[weight_format].colour


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
