"""Hostile input: seeded mutations of every format that strangers write, each met by the reader that users meet.

For each format a thousand mutations of well-formed originals, in processes that are watched: what is not refused by an
error of ours that names the file, or read correctly, did not hold. Nor did what took a gigabyte or a minute, brought
the process down, ran what a file asked for, or wrote outside its folder.
"""

from __future__ import annotations

import collections
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trials.child_environment import child_environment
from trials.mutation_kinds.catalogue import KINDS
from trials.outcome import TrialOutcome

_TRIALS, _TINY_TRIALS = 1000, 20
_AT_ONCE = 500  # trials of one process: its start costs seconds, its end by a crash costs the rest of them
_SILENT_S = 300.0
_SHOWN = 10
_FEWER = {"command_lines": 4}
"""Kinds of which every so many trials is run: whole commands train and evaluate."""


def run(
    *, tiny: bool, seed: int, folder: Path, kinds: Sequence[str] = tuple(KINDS), trials: int | None = None
) -> list[TrialOutcome]:
    """Try mutations of the kinds named; an outcome for each kind.

    Args:
        tiny: a few of each, to see that they run.
        seed: with the number of a trial it decides everything that the trial does.
        folder: gets a folder for each kind, removed where all its trials held.
        kinds: names of `KINDS`.
        trials: of each kind, in place of a thousand.
    """
    count = trials or (_TINY_TRIALS if tiny else _TRIALS)
    return [_try_kind(name, seed, max(1, count // _FEWER.get(name, 1)), folder / name) for name in kinds]


def _try_kind(name: str, seed: int, count: int, folder: Path) -> TrialOutcome:
    kind = KINDS[name]()
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    peak_mib = 0.0
    for row in _rows(name, seed, count, folder):
        outcomes[row["outcome"]] += 1
        peak_mib = max(peak_mib, row["peak_mib"])
        if not row["held"]:
            failures.append(f"{name} {seed}/{row['number']}: {row['damage']}: {row['outcome']}: {row['note']}")
    shutil.rmtree(folder, ignore_errors=True)
    return TrialOutcome(
        group=kind.group,
        damage=kind.damage,
        promise=kind.promise,
        trials=count,
        held=count - len(failures),
        outcomes=dict(outcomes.most_common()),
        peak_mib=round(peak_mib, 1),
        failures=tuple(failures[:_SHOWN]),
    )


def _rows(name: str, seed: int, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each trial, those that brought their process down included."""
    first = 0
    while first < count:
        place = folder / f"from-{first}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        number = first - 1
        for row in _process_rows(name, seed, first, min(_AT_ONCE, count - first), place):
            number = row["number"]
            if "outcome" in row:
                yield row
        first = number + 1


def _process_rows(name: str, seed: int, first: int, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "trials.mutation_process",
        name,
        str(seed),
        str(first),
        str(count),
    ]
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
            yield row
    if process.returncode == 0:
        return
    last = errors.read_text(errors="replace").strip()[-300:]
    if begun is None:
        raise RuntimeError(f"the trials of {name} did not begin (exit code {process.returncode}): {last}")
    note = f"exit code {process.returncode}: {last}"
    yield {"number": begun, "outcome": "crashed", "held": False, "damage": "", "note": note, "peak_mib": 0.0}
