"""`adadistill data VERB ...`: looks at record files and image folders, checks them, and makes one of another.

Each verb is an entry point of its own, `run` in `data_verbs/<verb>.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from adadistill.recipes.entry_point import entry_point, known_verb

VERBS = {
    "inspect": "say what a file or folder is, from its bytes, and what to do with it",
    "check": "report every bad record; seal a good file",
    "stats": "count identities, sizes, kinds of images and duplicates",
    "index": "write the .idx of the images alone, for DALI's reader, or a lost .idx anew",
    "convert": "records to a folder and back; folders, tars and parquet sets to records",
    "pack": "decode once, to 4:2:0 planes or RGB, and train from that",
    "split": "cut into random parts, of images or of whole identities",
    "merge": "join files into one of insightface's layout",
    "pairs": "make a verification .bin of a list of pairs and a folder",
}
OLD_NAMES = {"verify": "check"}
_GONE = {
    "shuffle": "training draws a true permutation of the records every epoch; for a reader that shuffles in a window, "
    "convert to a folder, shuffle its .records.lst, and convert back with --list"
}


@entry_point("adadistill data")
def main(argv: Sequence[str]) -> int:
    """Run a verb. Exit code 0: done; 1: the data is bad; 2: the command is wrong."""
    verb = OLD_NAMES.get(argv[0], argv[0]) if argv else ""
    if verb in _GONE:
        print(f"adadistill data {verb} is gone: {_GONE[verb]}", file=sys.stderr)
        return 2
    code = known_verb("adadistill data", [verb, *argv[1:]] if argv else [], VERBS, _usage())
    if code is not None:
        return code
    return int(importlib.import_module(f"adadistill.recipes.data_verbs.{verb}").run(argv[1:]))


def _usage() -> str:
    lines = [f"  {verb:<8} {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: adadistill data VERB ...", "", *lines, "", "`adadistill data VERB --help` tells more."])


if __name__ == "__main__":
    sys.exit(main())
