"""The process in which mutations are tried: `python -m trials.mutation_process KIND SEED FIRST COUNT
FOLDER`, one line of JSON for each trial on standard output.

A process of its own, because the audit hook that watches cannot be taken away again, and because a decoder in C that is
brought down by a file takes its process with it.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from trials.mutation_kinds.catalogue import KINDS
from trials.mutation_kinds.watch import Watch

_MAX_DATA_BYTES = 6 << 30
"""Of the process. What asks for more gets a MemoryError instead of the machine's last page."""


def main(arguments: list[str]) -> None:
    """Prepare the originals, then run trials FIRST to FIRST + COUNT - 1 of a kind."""
    name, seed, first, count, where = arguments
    folder = Path(where).resolve()
    logging.disable(logging.WARNING)
    kind = KINDS[name]()
    originals = folder / "originals"
    originals.mkdir(parents=True)
    kind.prepare(originals)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, resource.RLIM_INFINITY))
    watch = Watch()
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"number": number}), flush=True)
        place = folder / "trial"
        place.mkdir()
        rng = np.random.default_rng((int(seed), number))
        ending = watch.run(place, folder / "canary", partial(kind.trial, rng, number, place))
        print(json.dumps({"number": number, **asdict(ending), "peak_mib": watch.peak_mib}), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1:])
