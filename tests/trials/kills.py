"""SIGKILL at random moments of a run that saves after every step; then the run goes on, and is killed again.

A killed run is resumed in the same folder and killed once more, until it gets to its end between two kills; then the
next one begins. What had been saved is seen from outside: the names in the folder the moment before the signal.

Moments are drawn uniformly over the run, start and resume included, or inside a save: the trial waits for the temporary
directory of one of the next saves, and then for a part of the time that a save takes. Of two ranks only the second is
killed; the first must find out by itself.
"""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from adadistill.core.checkpoints import CheckpointError, list_checkpoints, newest_valid_checkpoint
from adadistill.core.checkpoints.files import step_of
from adadistill.core.training.run_folder import RunFolder
from trials.small_run import Ending, SmallRun, difference, ending_of, lines_logged, write_small_run
from trials.tally import Tally
from trials.training_process import TrainingProcess

_LIMIT_S = 180.0
"""Seconds that a run may take that nobody kills, and something that is done within one on a quiet machine."""
_NOTICED_S = 60.0
"""Seconds within which a rank must have ended after another one was killed."""
_POLL_S = 0.0005
_ANY_MOMENT, _IN_A_SAVE, _ONE_OF_TWO = "SIGKILL at any moment", "SIGKILL during a save", "SIGKILL of one rank of two"
_RESUMES = "resumes, not older than the last completed save"
_SAME_END = "ends in the bits, and the log lines, of a run that was never killed"


@dataclass(slots=True)
class Victim:
    """A run that is killed again and again."""

    run: SmallRun
    folder: Path
    ranks: int
    kills: int = 0
    floor: int = 0
    """Step of the last completed save, as seen before the last kill."""
    goes_on_from: int = 0
    """Step of the newest valid checkpoint after the last kill."""
    resumes: int = 0
    """How often it has said from where it goes on."""
    broken_at_the_end: str = ""
    """What was wrong with how it went on for the last time, where it came to its end before the signal."""

    def completed(self) -> int:
        """Step of the newest save that has been completed, by its name alone; 0 if there is none."""
        return max((step_of(path) or 0 for path in list_checkpoints(self.folder)), default=0)

    def saving(self) -> bool:
        """Whether a save is under way, or was left half done."""
        folder = RunFolder(self.folder).checkpoints
        return folder.is_dir() and any(path.name.startswith(".tmp-") for path in folder.iterdir())

    def broken_promise(self) -> str:
        """Whether it went on, and would go on, from where it had been saved; empty if so."""
        metrics = RunFolder(self.folder).metrics
        try:
            rows = [json.loads(line) for line in metrics.read_bytes().splitlines()] if metrics.exists() else []
        except ValueError as error:
            return f"metrics.jsonl has a line that is no JSON: {error}"
        resumes = [row["step"] for row in rows if row["event"] == "resume"]
        if len(resumes) > self.resumes and resumes[-1] != self.goes_on_from:
            return f"went on from step {resumes[-1]}, the newest checkpoint was of step {self.goes_on_from}"
        saved, skipped = newest_valid_checkpoint(self.folder)
        self.resumes, self.goes_on_from = len(resumes), 0 if saved is None else saved.step
        if skipped:
            return f"{skipped[0][0].name} does not verify: {skipped[0][1]}"
        if self.goes_on_from < self.floor:
            return f"would go on from step {self.goes_on_from}, but step {self.floor} had been saved"
        return ""


@dataclass(frozen=True, slots=True)
class _Whole:
    """A run that nobody killed."""

    ranks: int
    ending: Ending
    seconds: float
    save_s: float
    """Seconds of one save, in the middle of them."""


def run(*, tiny: bool, seed: int, folder: Path) -> list[Tally]:
    """All trials of this family; `tiny` for seconds."""
    small = write_small_run(folder / "data", epochs=2 if tiny else 8, centres=4096 if tiny else 32768)
    TrainingProcess(["--help"], folder / "imports.log").wait(_LIMIT_S)  # the first one waits for imports
    tallies: list[Tally] = []
    for ranks, kinds in ((1, (_ANY_MOMENT, _IN_A_SAVE)), (2, (_ONE_OF_TWO,))):
        whole = _uninterrupted(Victim(small, folder / f"whole-on-{ranks}", ranks))
        for kind in kinds:
            count = 1 if tiny else 20 if kind is _ONE_OF_TWO else 50
            tallies += _kill_runs(kind, small, whole, count, Random(f"{seed} {kind}"), folder / kind.replace(" ", "-"))
    return tallies


def _uninterrupted(victim: Victim) -> _Whole:
    started = time.monotonic()
    processes = victim.run.start(victim.folder, victim.ranks)
    saves: list[float] = []
    while not all(process.ended for process in processes) and time.monotonic() < started + _LIMIT_S:
        if victim.saving():
            begun = time.monotonic()
            _wait(lambda: not victim.saving() or processes[0].ended, started + _LIMIT_S)
            saves.append(time.monotonic() - begun)
        time.sleep(_POLL_S)
    codes = [process.wait(1.0) for process in processes]
    if any(codes) or None in codes:
        raise RuntimeError(f"a run that nobody killed ended with {codes}:\n{processes[0].told()[-2000:]}")
    return _Whole(victim.ranks, ending_of(victim.folder), time.monotonic() - started, statistics.median(saves))


def _kill_runs(kind: str, run: SmallRun, whole: _Whole, count: int, random: Random, folder: Path) -> list[Tally]:
    folder.mkdir()
    killed = Tally("training run", kind, _RESUMES)
    finished = Tally("training run", f"{kind}, until the run is over", _SAME_END)
    number = 0
    while killed.trials < count:
        number += 1
        victim = Victim(run, folder / f"run-{number}", whole.ranks)
        while killed.trials < count and _kill_once(kind, victim, killed, random, whole):
            pass
        if victim.kills:
            finished.add(f"after {'1 kill' if victim.kills == 1 else 'several kills'}", _finish(victim, whole.ending))
    return [killed, finished]


def _kill_once(kind: str, victim: Victim, tally: Tally, random: Random, whole: _Whole) -> bool:
    """Let the run go on and kill it; False if it came to its end first."""
    logged = lines_logged(victim.folder)
    processes = victim.run.start(victim.folder, victim.ranks)
    target = processes[-1]
    deadline = time.monotonic() + _LIMIT_S
    if kind is _ANY_MOMENT:
        delay_s = random.uniform(0.0, whole.seconds)
    else:
        # Past the start: of the start of several ranks torchrun takes care, as no rank has met another yet.
        _wait(lambda: target.ended or lines_logged(victim.folder) > logged, deadline)
        for _ in range(random.randrange(6)):  # saves
            _wait(lambda: target.ended or not victim.saving(), deadline)
            _wait(lambda: target.ended or victim.saving(), deadline)
        delay_s = random.uniform(0.0, 1.2 * whole.save_s)
    _wait(lambda: target.ended, time.monotonic() + delay_s)
    completed = victim.completed()
    target.kill()
    others = [process.wait(_NOTICED_S) for process in processes[:-1]]
    over = 0 in others and victim.completed() == victim.run.steps
    if over or target.wait(0.0) == 0:  # it was faster than the signal
        victim.broken_at_the_end = victim.broken_promise()
        return False
    victim.kills += 1
    victim.floor = completed
    where = "while a save was under way" if victim.saving() else "between two saves"
    if completed == 0:
        where = "before the first save was complete"
    broken = victim.broken_promise()
    if None in others or 0 in others:
        broken = f"rank 0 ended with {others} within {_NOTICED_S:.0f} s after rank 1 was killed"
    if told := next((told for told in (process.told() for process in processes) if "Traceback" in told), ""):
        broken = f"no error of ours: {told[-300:]}"
    if target.wait(0.0) != -signal.SIGKILL:
        broken = f"ended by itself with {target.wait(0.0)}: {target.told()[-300:]}"
    tally.add(where, broken and f"kill {tally.trials} in {victim.folder.name}: {broken}")
    return True


def _wait(come: Callable[[], bool], deadline: float) -> None:
    """Until a condition holds, or a moment has come."""
    while not come() and time.monotonic() < deadline:
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _finish(victim: Victim, expected: Ending) -> str:
    """Let the run come to its end; what is wrong with that end."""
    processes = victim.run.start(victim.folder, victim.ranks)
    codes = [process.wait(_LIMIT_S) for process in processes]
    if any(codes) or None in codes:
        return f"{victim.folder.name} ended with {codes}: {processes[0].told()[-300:]}"
    try:
        found = victim.broken_at_the_end or victim.broken_promise() or difference(ending_of(victim.folder), expected)
    except CheckpointError as error:
        found = str(error)
    return found and f"{victim.folder.name} after {victim.kills} kills: {found}"
