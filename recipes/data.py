"""`adadistill data VERB ...`: looks at record files and image folders, checks them, and makes one of another.

Each verb is an entry point of its own, in `data_verbs/<verb>.py` (shuffle, split and merge in rewrite.py).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from adadistill.recipes.entry_point import entry_point, known_verb

VERBS = {
    "inspect": ("inspect", "run", "say what a file or folder is, from its bytes, and what to do with it"),
    "verify": ("verify", "run", "report every bad record; seal a good file"),
    "stats": ("stats", "run", "count identities, sizes, kinds of images and duplicates"),
    "index": ("index", "run", "write the .idx of the images alone, for DALI's reader, or a lost .idx anew"),
    "convert": ("convert", "run", "records to a folder and back; folders, tars and parquet sets to records"),
    "pack": ("pack", "run", "decode once, to 4:2:0 planes or RGB, and train from that"),
    "shuffle": ("rewrite", "run_shuffle", "write the images in a random order"),
    "split": ("rewrite", "run_split", "cut into random parts, of images or of whole identities"),
    "merge": ("rewrite", "run_merge", "join files into one of insightface's layout"),
    "pairs": ("pairs", "run", "make a verification .bin of a list of pairs and a folder"),
}
"""(module, function that takes the rest of the line, what it does)."""


@entry_point("adadistill data")
def main(argv: Sequence[str]) -> int:
    """Run a verb. Exit code 0: done; 1: the data is bad; 2: the command is wrong."""
    code = known_verb("adadistill data", argv, VERBS, _usage())
    if code is not None:
        return code
    verb, *rest = argv
    module, function, _ = VERBS[verb]
    return int(getattr(importlib.import_module(f"adadistill.recipes.data_verbs.{module}"), function)(rest))


def _usage() -> str:
    lines = [f"  {verb:<8} {what}" for verb, (_, _, what) in VERBS.items()]
    return "\n".join(["usage: adadistill data VERB ...", "", *lines, "", "`adadistill data VERB --help` tells more."])


if __name__ == "__main__":
    sys.exit(main())
