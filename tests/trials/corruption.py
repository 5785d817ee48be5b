"""Damage to saved checkpoints: any file, in every way that disks, copies and people do it.

A flipped bit, also where no reader would mind (the white space of a JSON file); a file cut off, longer, empty, full of
zeros from somewhere on, missing, swapped with another, taken from another checkpoint; something else in its place that
must not be followed or waited for. Each time the newest checkpoint must be passed over, by a text that names the file,
and the one before it loaded with the bits that were saved; also where two of them are damaged, and by `--resume auto`.
"""

from __future__ import annotations

from pathlib import Path

from trials import mutations
from trials.tally import Tally


def run(*, tiny: bool, seed: int, folder: Path) -> list[Tally]:
    """All trials of this family; `tiny` for seconds."""
    return mutations.run(tiny=tiny, seed=seed, folder=folder, targets=mutations.OF_CHECKPOINTS)
