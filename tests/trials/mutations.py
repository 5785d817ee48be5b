"""Hostile input: seeded mutations of every format that strangers write, each met by the reader that users meet.

For each target a thousand mutants of well-formed originals, in processes that are watched: what is not refused by an
error of ours that names the file, or read correctly, did not hold. Nor did what took half a gigabyte or a minute,
brought the process down, ran what a file asked for, or wrote outside its folder. One trial is tried again, in a folder
that is kept, by `python -m trials.mutations TARGET SEED NUMBER 1 FOLDER` with tests/ on PYTHONPATH.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from trials.tally import Tally
from trials.targets.table import TARGETS
from trials.targets.target import Verdict, try_one
from trials.training_process import child_environment
from trials.watch import Watch

OF_CHECKPOINTS = ("checkpoints", "resumed_runs")
"""Targets of the family `corruption`."""
_OTHERS = tuple(name for name in TARGETS if name not in OF_CHECKPOINTS)
_TINY_SHARE = 50  # of the trials, one in so many
_AT_ONCE = 500  # trials of one process: its start costs seconds, its end by a crash costs the rest of them
_MAX_DATA_BYTES = 6 << 30
"""Bytes that the process may hold. What asks for more gets a MemoryError instead of the machine's last page."""


def run(
    *, tiny: bool, seed: int, folder: Path, targets: Sequence[str] = _OTHERS, python: str = sys.executable
) -> list[Tally]:
    """Try mutations of the targets named.

    Args:
        tiny: a few of each, to see that they run.
        seed: with the number of a trial it decides everything that the trial does.
        folder: gets a folder for each target, removed at its end.
        targets: names of `TARGETS`.
        python: starts the processes.
    """
    tallies: list[Tally] = []
    for name in targets:
        count = TARGETS[name].trials
        command = [python, "-m", "trials.mutations", name, str(seed)]
        tallies += _try_target(name, command, max(1, count // _TINY_SHARE) if tiny else count, folder / name)
    return tallies


def _try_target(name: str, command: list[str], count: int, folder: Path) -> list[Tally]:
    """One tally, or one for each kind of damage where the target does not describe them all."""
    target, tallies, first = TARGETS[name], dict[str, Tally](), 0
    while first < count:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for row in _process_rows([*command, str(first), str(min(_AT_ONCE, count - first))], folder):
            damage = target.damage or row["damage"]
            tally = tallies.setdefault(damage, Tally(target.group, damage, target.promise))
            broken = f"{name} {command[-1]} {row['number']}: {row['damage']}: {row['outcome']}: {row['note']}"
            tally.add(row["outcome"], "" if row["held"] else broken, peak_mib=row["peak_mib"])
            first = row["number"] + 1
    shutil.rmtree(folder, ignore_errors=True)
    return list(tallies.values())


def _process_rows(command: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each trial of a process; one that brought it down is the last."""
    errors = folder / "stderr.txt"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, str(folder)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=child_environment(),
            cwd=folder,
        )
    begun: int | None = None
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            begun = None if "outcome" in row else row["number"]
            if begun is None:
                yield row
    if process.returncode == 0:
        return
    note = f"exit code {process.returncode}: {errors.read_text(errors='replace').strip()[-300:]}"
    if begun is None:
        raise RuntimeError(f"the trials did not begin: {note}")
    outcome = "hung" if process.returncode == -signal.SIGALRM else "crashed"
    yield {"number": begun, **asdict(Verdict(outcome, False, "unknown", note)), "peak_mib": 0.0}


def main(arguments: list[str]) -> None:
    """In a process of its own, as an audit hook stays and a decoder in C that falls takes its process with it."""
    name, seed, first, count, where = arguments
    folder, target = Path(where).resolve(), TARGETS[name]
    logging.disable(logging.WARNING)
    (folder / "originals").mkdir(parents=True)
    material = target.make(folder / "originals")
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, resource.RLIM_INFINITY))
    watch = Watch()
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"number": number}), flush=True)
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        verdict = watch.run(place, folder / "canary", partial(try_one, target, material, int(seed), number, place))
        print(json.dumps({"number": number, **asdict(verdict), "peak_mib": watch.peak_mib}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
