"""The process that meets a full disk or a read-only folder: trains, again and again, and judges each ending.

Started by `disk.py` with what the damage needs: a mount namespace of its own, or permissions that bind. Prints its
outcome as JSON.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol

import torch

from adadistill.core.checkpoints import CheckpointError, list_checkpoints, newest_valid_checkpoint
from adadistill.core.training.run_folder import RunFolder
from adadistill.recipes import train
from trials.outcome import TrialOutcome
from trials.small_run import Ending, SmallRun, difference, ending_of, write_small_run
from trials.tally import Tally

_DISK_BYTES = 64 << 20
_POLL_S = 0.001
_PROMISE = "ends with an error that names the file; nothing saved is lost; goes on when the disk does, to the same end"
_LOST_LINES = "could not be written and are lost"


class _Damage(Protocol):
    """A way in which a disk refuses to be written."""

    what: str
    reason: str
    """What the error must say, in the system's words."""
    disk: Path
    """Where runs go."""

    def begin(self, random: Random, run_folder: Path, steps: int, save_bytes: int) -> None:
        """Before the run starts: do it now, or some time while it trains."""

    def relieve(self, run_folder: Path) -> None:
        """Make the disk as it was."""


class _FullDisk:
    """A small tmpfs: filled up to a random byte, or from a random moment on."""

    what, reason = "disk full, from the start or suddenly", "No space left on device|too little room"

    def __init__(self, folder: Path) -> None:
        self.disk = folder
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(self.disk)], check=True)
        self._ballast = self.disk / "ballast"
        self._stop = threading.Event()
        self._filler: threading.Thread | None = None

    def begin(self, random: Random, run_folder: Path, steps: int, save_bytes: int) -> None:
        if random.random() < 0.5:
            self._fill(leave=random.randrange(3 * save_bytes))
            return
        self._stop.clear()
        self._filler = threading.Thread(target=self._keep_full, args=(run_folder, random.randrange(steps)))
        self._filler.start()

    def relieve(self, run_folder: Path) -> None:
        self._stop.set()
        if self._filler is not None:
            self._filler.join()
            self._filler = None
        self._ballast.unlink(missing_ok=True)

    def _keep_full(self, run_folder: Path, lines: int) -> None:
        """Somebody else's file, which also takes the room that the run makes."""
        _await_lines(run_folder, lines, self._stop)
        while not self._stop.wait(_POLL_S):
            self._fill(leave=0)

    def _fill(self, leave: int) -> None:
        status = os.statvfs(self.disk)
        free = status.f_bavail * status.f_frsize - leave
        with self._ballast.open("ab") as file:
            if free > 0:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
                except OSError:  # the run was faster
                    return


class _ShortFiles:
    """No file may grow past a random length: what is left where no disk can be made for the purpose."""

    what, reason = "files cannot grow past a random length (RLIMIT_FSIZE)", "File too large"

    def __init__(self, folder: Path) -> None:
        self.disk = folder
        self.disk.mkdir()

    def begin(self, random: Random, run_folder: Path, steps: int, save_bytes: int) -> None:
        self._limit(random.randrange(4096, save_bytes // 2))

    def relieve(self, run_folder: Path) -> None:
        self._limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    def _limit(self, length: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class _ReadOnlyFolder:
    """The run folder, or its checkpoints alone, without write permission from a random moment on."""

    what, reason = "folder read-only from a random moment on", "Permission denied|not writable"

    def __init__(self, folder: Path) -> None:
        self.disk = folder
        self.disk.mkdir()
        self._stop = threading.Event()
        self._changer: threading.Thread | None = None

    def begin(self, random: Random, run_folder: Path, steps: int, save_bytes: int) -> None:
        names = ["checkpoints"] if random.random() < 0.5 else ["checkpoints", "report", "."]
        self._stop.clear()
        self._changer = threading.Thread(target=self._refuse, args=(run_folder, names, random.randrange(steps)))
        self._changer.start()

    def relieve(self, run_folder: Path) -> None:
        self._stop.set()
        if self._changer is not None:
            self._changer.join()
        self._set_mode(run_folder, [".", "checkpoints", "report"], 0o755)

    def _refuse(self, run_folder: Path, names: list[str], lines: int) -> None:
        _await_lines(run_folder, lines, self._stop)
        self._set_mode(run_folder, names, 0o555)

    def _set_mode(self, run_folder: Path, names: list[str], mode: int) -> None:
        for name in names:
            if (run_folder / name).is_dir():
                os.chmod(run_folder / name, mode)


def _await_lines(run_folder: Path, lines: int, stop: threading.Event) -> None:
    """Until the run has logged so many lines: its own clock, as a busy machine has no other."""
    metrics = RunFolder(run_folder).metrics
    while not stop.wait(_POLL_S):
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
            return


_WAYS: dict[str, Callable[[Path], _Damage]] = {"full": _FullDisk, "limited": _ShortFiles, "read-only": _ReadOnlyFolder}


def main(plan_text: str) -> None:
    """Do the trials of a plan (JSON: ways, count of each, seed, folder, epochs)."""
    plan = json.loads(plan_text)
    torch.set_num_threads(1)
    folder = Path(plan["folder"])
    small = write_small_run(folder / "data", epochs=plan["epochs"], identities=8192)
    with _output_in(folder / "output.log") as log:
        whole = _run_whole(small, folder, log)
        outcomes = [
            _try_way(_WAYS[way](folder / way), plan["count"], Random(f"{plan['seed']} {way}"), small, whole, log)
            for way in plan["ways"]
        ]
    print(json.dumps([asdict(outcome) for outcome in outcomes]))


@dataclass(frozen=True, slots=True)
class _Whole:
    """A run that met no damage."""

    ending: Ending
    save_bytes: int
    """Of one checkpoint."""


def _run_whole(small: SmallRun, folder: Path, log: Path) -> _Whole:
    """Run it twice: what later endings are compared with must be the same twice."""
    endings = []
    for name in ("first", "second"):
        ended = _train(small, folder / name, log)
        if ended.code != 0:
            raise RuntimeError(f"a run that met no damage failed: {ended.text[-2000:]}")
        endings.append(ending_of(folder / name))
    if different := difference(*endings):
        raise RuntimeError(f"two runs that met no damage differ: {different}")
    newest = list_checkpoints(folder / "second")[-1]
    return _Whole(endings[1], sum(path.stat().st_size for path in newest.iterdir()))


def _try_way(damage: _Damage, count: int, random: Random, small: SmallRun, whole: _Whole, log: Path) -> TrialOutcome:
    tally = Tally("disk of a training run", damage.what, _PROMISE)
    number = 0
    while tally.trials < count:
        number += 1
        if number > 20 * count:
            raise RuntimeError(f"{damage.what}: {number} runs, and only {tally.trials} of them met it")
        run_folder = damage.disk / f"run-{number}"
        damage.begin(random, run_folder, small.steps, whole.save_bytes)
        try:
            ended = _train(small, run_folder, log)
            kind, broken = ended.judged(damage.reason, run_folder)
            if kind and not broken:  # nothing has changed: once more it is refused at the door, or fails again
                broken = _train(small, run_folder, log).judged(damage.reason, run_folder)[1]
        finally:
            damage.relieve(run_folder)
        broken = broken or _goes_on(small, run_folder, log, whole.ending, lines_lost=ended.lost_lines)
        if kind or broken:  # a run that was faster than its damage is no trial
            tally.add(kind, broken and f"trial {number}: {broken}")
        shutil.rmtree(run_folder, ignore_errors=True)
    return tally.outcome()


class _Ended:
    """How one call of the command ended."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text

    @property
    def lost_lines(self) -> bool:
        """Whether it said that lines of the log are lost."""
        return _LOST_LINES in self.text

    def judged(self, reason: str, run_folder: Path) -> tuple[str, str]:
        """How it ended (empty if it met no damage), and what was wrong with that (empty if nothing was).

        Args:
            reason: pattern of what the error must say.
        """
        if self.code == 0:
            return "", ""
        error = next((line for line in reversed(self.text.splitlines()) if re.match(r"\w+Error: ", line)), "")
        if "Traceback" in self.text or self.code not in (1, 2):
            return "", f"exit code {self.code}: {self.text[-300:]}"
        if not re.search(reason, error) or str(run_folder) not in error:
            return "", f"does not name file and reason: {self.text[-300:]}"
        saved, skipped = newest_valid_checkpoint(run_folder)
        step = 0 if saved is None else saved.step
        if skipped:
            return "", f"{skipped[0][1]} after {error}"
        refused = re.search(r"checkpoint of step (\d+) was not written", error)
        if refused is None and self.lost_lines:
            return "finished, saying that log lines are lost", ""
        if refused is None:
            return ("stopped at the door" if "checkpoint folder" in error or "run folder" in error else "stopped"), ""
        if step != int(refused[1]) - 1:
            return "", f"step {step} is the newest saved, but {error}"
        return ("stopped at the first save" if step == 0 else "stopped at a later save"), ""


def _train(small: SmallRun, run_folder: Path, log: Path) -> _Ended:
    begin = log.stat().st_size
    code = train.main(small.arguments(run_folder))
    with log.open("rb") as file:
        file.seek(begin)
        return _Ended(code, file.read().decode(errors="replace"))


def _goes_on(small: SmallRun, run_folder: Path, log: Path, expected: Ending, *, lines_lost: bool) -> str:
    """Resume with room again; what is wrong with that."""
    ended = _train(small, run_folder, log)
    if ended.code != 0:
        return f"does not go on: {ended.text[-300:]}"
    try:
        found = ending_of(run_folder)
    except CheckpointError as error:
        return str(error)
    return difference(replace(found, lines=expected.lines) if lines_lost else found, expected)


@contextmanager
def _output_in(path: Path) -> Iterator[Path]:
    """Both streams of this process in a file; what is printed afterwards goes where it should."""
    before = [os.dup(1), os.dup(2)]
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for stream in (1, 2):
            os.dup2(handle, stream)
        yield path
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, original in zip((1, 2), before, strict=True):
            os.dup2(original, stream)


if __name__ == "__main__":
    main(sys.argv[1])
