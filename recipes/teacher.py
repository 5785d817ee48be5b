"""Entry point: look at a recipe's teacher before days are spent on learning from it.

    adadistill teacher check RECIPE [key.path=value ...] [--images 256] [--batch-size 64] [--device D] [--json FILE]

Loads the teacher as training would, embeds a sample of the training records with it, and says

    teacher  what it is, and how it wants its images
    agrees   how far the network that training runs (in the recipe's precision, folded, compiled) is from the one that
             was loaded, in float32 and untouched
    speed    images per second of both
    mirror   how alike an image and its mirror image are to it
    norms    how long its embeddings are
    people   how alike two images of one person are to it, and two of different people
    colour   which channel order tells people apart better, whatever the recipe says

and warns where these do not look like a teacher that is used as it should be. One process, one device.

Exit codes: 0 checked, warnings or not; 1 the network that training runs is another one than was loaded (mean cosine
under 0.999), gives NaN or infinity, or a record is damaged; 2 the recipe, a file it names or the launch is wrong, or
the recipe has no network for a teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.loaders.atomic_file import write_whole
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.evaluate import positive
from adadistill.recipes.outputs import will_write


@entry_point("adadistill teacher")
def main(argv: Sequence[str]) -> int:
    """Run `adadistill teacher check`; exit codes as the module says."""
    options = _parser().parse_intermixed_args(argv)
    from adadistill.core.recipe import load_recipe
    from adadistill.recipes.teacher_check import check_teacher

    recipe = load_recipe(options.recipe, options.overrides)
    if options.json is not None:
        will_write(options.json, is_result=False)
    report = check_teacher(recipe, images=options.images, batch_size=options.batch_size, device=options.device)
    print(report.summary())
    if options.json is not None:
        write_whole(options.json, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
        print(f"written to {options.json}")
    if report.failure is not None:
        print(f"FAILED: {report.failure}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill teacher", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("check",), help="what to do with the teacher")
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships with the package")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of the recipe")
    parser.add_argument("--images", type=positive, default=256, help="training records to embed (default: 256)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass (default: 64)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
