"""Entry point: make a verification set of a list of pairs and a folder of images; draw such a list from a folder.

    adadistill data pairs pairs.txt --images lfw_aligned --out lfw.bin --aligned
    adadistill data pairs pairs.txt --images lfw --out lfw.bin --landmarks lfw_landmarks.txt
    adadistill data pairs pairs.txt --images faces --out mine.bin --aligned --draw 3000 --seed 1

The list is LFW's pairs.txt, or has lines `path1 path2 same` (1 or 0). With --aligned, images are 112 x 112 already and
are copied byte for byte; with --landmarks, lines `path x1 y1 ... x5 y5`, they are aligned to ArcFace's template. With
--draw N, pairs.txt is written first: N same and N different pairs of a folder of identities, in turn. --check reads the
set back by the reader that refuses code, decodes every image, and compares it with the list and the files.

Exit codes: 0 written; 1 a list or an image is bad, and nothing is written; 2 the command is wrong, or a file that it
names is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.scoring.ten_fold import FOLDS, one_sided_fold
from adadistill.loaders.evaluation_sets.pair_drawing import check_verification_bin, draw_pairs, write_pair_list
from adadistill.loaders.evaluation_sets.pair_lists import make_verification_bin
from adadistill.loaders.evaluation_sets.verification_pairs import read_verification_bin
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write


@entry_point("adadistill data pairs", codes={"ImageFolderError": 1})
def run(argv: Sequence[str]) -> int:
    """Run `adadistill data pairs`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    will_write(arguments.out, remedy="give another --out")
    if arguments.draw is not None:
        will_write(arguments.pairs)
        if arguments.out.exists() and not arguments.overwrite:  # before the list is written
            raise FileExistsError(f"{arguments.out} exists; --overwrite replaces it")
        drawn = draw_pairs(arguments.images, arguments.draw, seed=arguments.seed)
        write_pair_list(arguments.pairs, drawn, overwrite=arguments.overwrite)
    made = make_verification_bin(
        arguments.pairs,
        arguments.images,
        arguments.out,
        landmarks=arguments.landmarks,
        overwrite=arguments.overwrite,
    )
    how = f"{made.aligned} aligned by landmarks" if made.aligned else "copied byte for byte"
    print(
        f"wrote {made.path}: {made.pairs} pairs, {made.same_pairs} of them same, of {made.images} images ({how}); "
        f"scored in {FOLDS} contiguous folds"
    )
    if made.turned:
        print(f"{made.turned} images are turned by their EXIF orientation; landmarks must be of the upright pictures")
    if arguments.check:
        try:
            check_verification_bin(made.path, arguments.pairs, arguments.images, aligned=arguments.aligned)
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print("checked: read back, every image decoded, all pairs and flags as in the list")
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
    parser.add_argument(
        "--draw", type=int, metavar="N", help="first write the list: N same and N different pairs of the folder"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --draw (default: 0)")
    parser.add_argument("--check", action="store_true", help="read the written set back and compare it")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that is there")
    return parser
