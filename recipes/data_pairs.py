"""Entry point: make a verification set of a list of pairs and a folder of images.

    adadistill data pairs pairs.txt --images lfw_aligned --out lfw.bin --aligned
    adadistill data pairs pairs.txt --images lfw --out lfw.bin --landmarks lfw_landmarks.txt

The list is LFW's pairs.txt, or has lines `path1 path2 same` (1 or 0). With --aligned, images are 112 x 112 already and
are copied byte for byte; with --landmarks, lines `path x1 y1 ... x5 y5`, they are aligned to ArcFace's template.

Exit codes: 0 written; 1 a list or an image is bad, and nothing is written; 2 the command is wrong, or a file that it
names is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.verification import FOLDS, one_sided_fold
from adadistill.loaders.pair_lists import PairListError, make_verification_bin
from adadistill.loaders.verification_pairs import read_verification_bin


def run(argv: Sequence[str]) -> int:
    """Run `adadistill data pairs`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        made = make_verification_bin(
            arguments.pairs,
            arguments.images,
            arguments.out,
            landmarks=arguments.landmarks,
            overwrite=arguments.overwrite,
        )
    except PairListError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    how = f"{made.aligned} aligned by landmarks" if made.aligned else "copied byte for byte"
    print(
        f"wrote {made.path}: {made.pairs} pairs, {made.same_pairs} of them same, of {made.images} images ({how}); "
        f"scored in {FOLDS} contiguous folds"
    )
    obstacle = one_sided_fold(read_verification_bin(made.path).same)
    if obstacle is not None:
        print(f"note: {obstacle}: the published ten-fold numbers need both kinds in each, so order the list by folds")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adadistill data pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="LFW's pairs.txt, or lines `path1 path2 same`")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="that the list's images lie in")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME.bin", help="set to write")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--aligned", action="store_true", help="images are aligned, 112 x 112")
    how.add_argument("--landmarks", type=Path, metavar="FILE", help="align by lines `path x1 y1 ... x5 y5`")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that is there")
    return parser
