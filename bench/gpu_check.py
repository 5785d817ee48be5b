"""`make gpu-check`: the GPU tests, then every bench by priority, inside a time budget; a short table last.

What runs after the tests, and how, is `bench all` (`suite.py`). Exit code 1 if a job failed; jobs for which no time was
left are listed as skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench import suite

TESTS = suite.Job("gpu tests", ("-m", "pytest", "-q", "-m", "gpu", "tests"), 240)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adadistill.bench.gpu_check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time budget of the whole check")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run the jobs whose names hold one of these")
    parser.add_argument("--faces", type=Path, help="folder of real faces (default: $ADADISTILL_DATA/faces)")
    arguments = parser.parse_args(argv)
    try:
        faces = suite.faces_folder(arguments.faces)
        chosen = suite.chosen_jobs([TESTS, *suite.jobs(faces, cuda=True)], arguments.only)
    except ValueError as error:
        parser.error(str(error))
    return suite.run_jobs(chosen, minutes=arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
