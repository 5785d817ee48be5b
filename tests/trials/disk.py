"""A disk that takes no more, and a folder that became read-only, while a run saves after every step.

The full disk is a real one: a small tmpfs in a mount namespace of the trials' own, filled up to a random byte before
the run starts, or suddenly while it trains. The read-only folder is one without write permission, from a random moment
on, for processes that root's privilege of ignoring permissions was taken from. So all of it happens below `python -m
trials.disk PLAN`, started with what the damage needs. Where one rank of two can no longer write, its files may not grow
past some length (`RLIMIT_FSIZE`).

Each time the run must end with an error that names the file and what is wrong with it, and no traceback; what had been
saved must be there, and nothing half written be taken for it; when there is room again, `--resume auto` must go on and
end in the bits of a run that met no damage.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

from adadistill.core.checkpoints import CheckpointError, list_checkpoints, newest_valid_checkpoint
from trials.small_run import Ending, SmallRun, difference, ending_of, lines_logged, write_small_run
from trials.tally import Tally
from trials.training_process import TrainingProcess, child_environment

_ALL_TRIALS_S, _RUN_S, _POLL_S = 1800.0, 120.0, 0.001
_DISK_BYTES = 64 << 20
_GROUP = "disk of a training run"
_PROMISE = "ends with an error that names the file; nothing saved is lost; goes on when the disk does, to the same end"
_LOST_LINES = "could not be written and are lost"
_MOUNTING: tuple[list[str], ...] = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
_OBEYING: tuple[list[str], ...] = (
    [],
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"],
)


class _FullDisk:
    """A small tmpfs: filled up to a random byte, or from a random moment on."""

    what = "disk full, from the start or suddenly"
    reason = "No space left on device|too little room"
    """Pattern of what the error must say, in the system's words."""

    def __init__(self, disk: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(disk)], check=True)
        self._ballast = disk / "ballast"
        self._suddenly = False

    def begin(self, random: Random, save_bytes: int) -> None:
        """Draw the damage of a run, and do now what is done before it starts."""
        self._suddenly = random.random() < 0.5
        if not self._suddenly:
            self._fill(leave=random.randrange(3 * save_bytes))

    def meet(self, process: TrainingProcess, run_folder: Path) -> None:
        """Called again and again from a random moment of the run on; it also takes the room that the run makes."""
        if self._suddenly:
            self._fill(leave=0)

    def relieve(self, run_folder: Path) -> None:
        """Make the disk as it was."""
        self._ballast.unlink(missing_ok=True)

    def _fill(self, leave: int) -> None:
        status = os.statvfs(self._ballast.parent)
        free = status.f_bavail * status.f_frsize - leave
        with self._ballast.open("ab") as file, suppress(OSError):  # the run was faster
            if free > 0:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)


class _ReadOnlyFolder:
    """The run folder, or its checkpoints alone, without write permission from a random moment on."""

    what, reason = "folder read-only from a random moment on", "Permission denied|not writable"

    def __init__(self, disk: Path) -> None:
        self._names: tuple[str, ...] = ()

    def begin(self, random: Random, save_bytes: int) -> None:
        """Draw which folder."""
        self._names = random.choice((("checkpoints",), ("checkpoints", "report", ".")))

    def meet(self, process: TrainingProcess, run_folder: Path) -> None:
        """Take the permission away."""
        self._set_mode(run_folder, 0o555)

    def relieve(self, run_folder: Path) -> None:
        """Give it back."""
        self._set_mode(run_folder, 0o755)

    def _set_mode(self, run_folder: Path, mode: int) -> None:
        for name in self._names:
            if (run_folder / name).is_dir():
                os.chmod(run_folder / name, mode)


_WAYS = (
    (_FullDisk, _MOUNTING, 'mount -t tmpfs none "$0"'),
    (_ReadOnlyFolder, _OBEYING, 'chmod 555 "$0" && ! mkdir "$0/new"'),
)
"""What is done, how a process could be started that it can be done to, and a script that succeeds in one."""


def run(*, tiny: bool, seed: int, folder: Path) -> list[Tally]:
    """All trials of this family; `tiny` for seconds."""
    prefixes = {way.what: _first_that_works(starts, script) for way, starts, script in _WAYS}
    plan = {"ways": [what for what, prefix in prefixes.items() if prefix is not None]}
    plan |= {"tiny": tiny, "seed": seed, "folder": str(folder)}
    done = subprocess.run(
        [*(word for prefix in prefixes.values() for word in prefix or ()),
         sys.executable, "-m", "trials.disk", json.dumps(plan)],
        capture_output=True, text=True, timeout=_ALL_TRIALS_S, env=child_environment(), check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the process of the trials ended with {done.returncode}:\n{done.stderr[-2000:]}")
    why = "not tried: this system gives no way to"
    missing = [Tally(_GROUP, what, _PROMISE, outcomes={why: 0}) for what, prefix in prefixes.items() if prefix is None]
    return [Tally(**one) for one in json.loads(done.stdout)] + missing


def _first_that_works(prefixes: Sequence[list[str]], script: str) -> list[str] | None:
    """The first way to start a process in which a shell script, given an empty folder, succeeds."""
    for prefix in prefixes:
        if prefix and shutil.which(prefix[0]) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            tried = subprocess.run([*prefix, "sh", "-c", script, folder], capture_output=True, check=False)
            os.chmod(folder, 0o700)
        if tried.returncode == 0:
            return prefix
    return None


def main(plan_text: str) -> None:
    """Do the trials of a plan (JSON: ways, tiny, seed, folder) and print their tallies as JSON."""
    plan = json.loads(plan_text)
    folder, seed, tiny = Path(plan["folder"]), plan["seed"], plan["tiny"]
    small = write_small_run(folder / "data", epochs=1 if tiny else 3, centres=8192)
    expected = _whole(small, folder / "whole")
    save_bytes = sum(path.stat().st_size for path in list_checkpoints(folder / "whole")[-1].iterdir())
    tallies = []
    for number, (way, _, _) in enumerate(_WAYS):
        if way.what in plan["ways"]:
            disk = folder / f"disk-{number}"
            disk.mkdir()
            draws = Random(f"{seed} {way.what}")
            tallies.append(_try_way(way(disk), disk, 1 if tiny else 20, draws, small, expected, save_bytes))
    if not tiny:
        tallies.append(_fail_one_rank(folder / "two-ranks", 10, Random(f"{seed} two ranks"), small))
    print(json.dumps([asdict(tally) for tally in tallies]))


def _whole(small: SmallRun, folder: Path, ranks: int = 1) -> Ending:
    """What a run that met no damage leaves."""
    for code, told in _train(small, folder, ranks):
        if code != 0:
            raise RuntimeError(f"a run that met no damage ended with {code}: {told[-2000:]}")
    return ending_of(folder)


def _try_way(
    damage: _FullDisk | _ReadOnlyFolder,
    disk: Path,
    count: int,
    random: Random,
    small: SmallRun,
    expected: Ending,
    save_bytes: int,
) -> Tally:
    tally = Tally(_GROUP, damage.what, _PROMISE)
    for number in range(20 * count):
        run_folder = disk / f"run-{number}"
        damage.begin(random, save_bytes)
        try:
            ((code, told),) = _train(small, run_folder, meet=damage.meet, moment=random.randrange(small.steps))
            kind, broken = judged(code, told, damage.reason, run_folder)
            if kind and not broken:  # nothing has changed: once more it is refused at the door, or fails again
                again = _train(small, run_folder, meet=damage.meet)[0]
                broken = judged(*again, damage.reason, run_folder)[1]
        finally:
            damage.relieve(run_folder)
        broken = broken or _goes_on(small, run_folder, expected, lines_lost=_LOST_LINES in told)
        if kind or broken:  # a run that was faster than its damage is no trial
            tally.add(kind, broken and f"trial {number}: {broken}")
        shutil.rmtree(run_folder, ignore_errors=True)
        if tally.trials == count:
            return tally
    raise RuntimeError(f"{damage.what}: {20 * count} runs, and only {tally.trials} of them met it")


def _fail_one_rank(folder: Path, count: int, random: Random, small: SmallRun) -> Tally:
    what, promise = "one rank can no longer write", "both end with an error that names it; goes on"
    tally = Tally("training run on two ranks", what, promise)
    folder.mkdir()
    expected = _whole(small, folder / "whole", ranks=2)
    for number in range(10 * count):
        run_folder, moment = folder / f"run-{number}", random.randrange(1, small.steps - 2)
        ended = _train(small, run_folder, 2, lambda process, _: process.limit_files(4096), moment)
        if all(code == 0 for code, _ in ended):
            continue  # its last save was complete
        wrong = [
            f"rank {rank} ended with {code}: {told[-300:]}"
            for rank, (code, told) in enumerate(ended)
            if code != 1 or "Traceback" in told or "File too large" not in told
        ]
        saved, skipped = newest_valid_checkpoint(run_folder)
        wrong += [reason for _, reason in skipped]
        broken = wrong[0] if wrong else _goes_on(small, run_folder, expected, ranks=2)
        tally.add(f"both ended{'' if saved else ' at the first save'}", broken and f"trial {number}: {broken}")
        if tally.trials == count:
            break
    return tally


def _train(
    small: SmallRun,
    run_folder: Path,
    ranks: int = 1,
    meet: Callable[[TrainingProcess, Path], None] | None = None,
    moment: int = 0,
) -> list[tuple[int | None, str]]:
    """Exit code and output of each rank; the last one meets its damage from so many log lines on."""
    processes = small.start(run_folder, ranks)
    deadline = time.monotonic() + _RUN_S
    while meet is not None and not processes[-1].ended and time.monotonic() < deadline:
        if lines_logged(run_folder) >= moment:
            meet(processes[-1], run_folder)
        time.sleep(_POLL_S)
    return [(process.wait(_RUN_S), process.told()) for process in processes]


def judged(code: int | None, text: str, reason: str, run_folder: Path) -> tuple[str, str]:
    """How a run ended (empty if it met no damage), and what was wrong with that (empty if nothing was).

    Args:
        reason: pattern of what the error must say.
    """
    if code == 0:
        return "", ""
    error = next((line for line in reversed(text.splitlines()) if re.match(r"\w+Error: ", line)), "")
    if "Traceback" in text or code not in (1, 2):
        return "", f"exit code {code}: {text[-300:]}"
    if not re.search(reason, error) or str(run_folder) not in error:
        return "", f"does not name file and reason: {text[-300:]}"
    saved, skipped = newest_valid_checkpoint(run_folder)
    step = 0 if saved is None else saved.step
    if skipped:
        return "", f"{skipped[0][1]} after {error}"
    refused = re.search(r"checkpoint of step (\d+) was not written", error)
    if refused is None and _LOST_LINES in text:
        return "finished, saying that log lines are lost", ""
    if refused is None:
        return ("stopped at the door" if "checkpoint folder" in error or "run folder" in error else "stopped"), ""
    if step != int(refused[1]) - 1:
        return "", f"step {step} is the newest saved, but {error}"
    return ("stopped at the first save" if step == 0 else "stopped at a later save"), ""


def _goes_on(small: SmallRun, run_folder: Path, expected: Ending, *, ranks: int = 1, lines_lost: bool = False) -> str:
    """Resume with room again; what is wrong with that."""
    for code, told in _train(small, run_folder, ranks):
        if code != 0:
            return f"does not go on: {told[-300:]}"
    try:
        found = ending_of(run_folder)
    except CheckpointError as error:
        return str(error)
    return difference(replace(found, lines=expected.lines) if lines_lost else found, expected)


if __name__ == "__main__":
    main(sys.argv[1])
