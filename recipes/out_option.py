"""`--out PLACE`: the one way in which a verb is told where its result goes.

Verbs took the place as a last word once; that is still understood, wherever it stands between options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_out(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Add the option, behind all positional arguments of the parser. `parse_with_out` reads it.

    Args:
        text: says what is written, for `--help`.
    """
    parser.add_argument("place", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar=metavar, help=text)


def parse_with_out(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `out` is the place, however it was named. Exits as argparse does with none or two."""
    arguments = parser.parse_intermixed_args(list(argv))
    if (arguments.out is None) == (arguments.place is None):
        parser.error("say once where the result goes: --out PLACE")
    arguments.out = arguments.out or arguments.place
    return arguments
