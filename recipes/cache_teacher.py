"""Entry point for several devices: `adadistill cache build`, launched by torchrun.

    torchrun --standalone --nproc_per_node=8 -m adadistill.recipes.cache_teacher RECIPE teacher.cache=FOLDER

Takes the arguments of `adadistill cache build` and makes the same files, byte for byte, on any number of ranks of one
kind of device.
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import sys
from collections.abc import Sequence

from adadistill.recipes import cache


def main(argv: Sequence[str] | None = None) -> int:
    """Build the cache of a recipe; returns the exit code of `adadistill cache`."""
    return cache.main(["build", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
