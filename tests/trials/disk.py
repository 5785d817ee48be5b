"""A disk that takes no more, and a folder that became read-only, while a run saves after every step.

The full disk is a real one: a small tmpfs in a mount namespace of the trial's own, filled up to a random byte before
the run starts, or suddenly while it trains. Where the system allows no such mount, files may not grow past a random
length instead (`RLIMIT_FSIZE`). The read-only folder is one without write permission, from a random moment on, for a
process that root's privilege of ignoring permissions was taken from.

Each time the run must end with an error that names the file and what is wrong with it, and no traceback; what had been
saved must be there, and nothing half written be taken for it; when there is room again, `--resume auto` must go on and
end in the bits of a run that met no damage. What happens in the process is in `disk_process.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.training.run_folder import RunFolder
from trials.child_environment import child_environment
from trials.outcome import TrialOutcome
from trials.small_run import SmallRun, difference, ending_of, write_small_run
from trials.tally import Tally
from trials.training_process import TrainingProcess, rank_environments

_ALL_TRIALS_S = 1800.0
_RUN_S = 120.0
_POLL_S = 0.001
_MOUNTING: tuple[list[str], ...] = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
_OBEYING: tuple[list[str], ...] = (
    [],
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"],
)


def run(*, tiny: bool, seed: int, folder: Path) -> list[TrialOutcome]:
    """All trials of this family; `tiny` for seconds."""
    mounting = _first_that_works(_MOUNTING, 'mount -t tmpfs none "$0"')
    obeying = _first_that_works(_OBEYING, 'chmod 555 "$0" && ! mkdir "$0/new"')
    plan = {
        "ways": ["limited" if mounting is None else "full", *(() if obeying is None else ["read-only"])],
        "count": 1 if tiny else 20,
        "seed": seed,
        "folder": str(folder),
        "epochs": 1 if tiny else 3,
    }
    done = subprocess.run(
        [
            *(mounting or []), *(obeying or []),
            sys.executable, "-m", "trials.disk_process", json.dumps(plan),
        ],
        capture_output=True,
        text=True,
        timeout=_ALL_TRIALS_S,
        env=child_environment(),
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the process of the trials ended with {done.returncode}:\n{done.stderr[-2000:]}")
    outcomes = [TrialOutcome(**{**one, "failures": tuple(one["failures"])}) for one in json.loads(done.stdout)]
    if obeying is None:
        why = "not tried: no process here obeys permissions (root, and no setpriv)"
        outcomes.append(
            TrialOutcome(
                group=outcomes[0].group, damage="folder read-only from a random moment on",
                promise=outcomes[0].promise, trials=0, held=0, outcomes={why: 0},
            )
        )  # fmt: skip
    if not tiny:
        outcomes.append(_fail_one_rank(folder / "two-ranks", Random(f"{seed} two ranks"), count=10))
    return outcomes


def _fail_one_rank(folder: Path, random: Random, *, count: int) -> TrialOutcome:
    tally = Tally(
        "training run on two ranks", "one rank can no longer write", "both end with an error that names it; goes on"
    )
    small = write_small_run(folder / "data", epochs=3, identities=8192)
    if any(code for code, _ in _train_on_two(small, folder / "whole")):
        raise RuntimeError("a run on two ranks that met no damage failed")
    expected = ending_of(folder / "whole")
    number = 0
    while tally.trials < count and number < 10 * count:
        number += 1
        run_folder = folder / f"run-{number}"
        ended = _train_on_two(small, run_folder, fails_after=random.randrange(1, small.steps - 2))
        if all(code == 0 for code, _ in ended):
            continue  # its last save was complete
        broken = ""
        for rank, (code, told) in enumerate(ended):
            if code != 1 or "Traceback" in told or "File too large" not in told:
                broken = broken or f"rank {rank} ended with {code}: {told[-300:]}"
        saved, skipped = newest_valid_checkpoint(run_folder)
        if skipped:
            broken = broken or skipped[0][1]
        if any(code for code, _ in _train_on_two(small, run_folder)):
            broken = broken or "does not go on"
        broken = broken or difference(ending_of(run_folder), expected)
        tally.add(f"both ended{'' if saved else ' at the first save'}", broken and f"trial {number}: {broken}")
    return tally.outcome()


def _train_on_two(small: SmallRun, run_folder: Path, fails_after: int | None = None) -> list[tuple[int | None, str]]:
    """Exit code and output of each rank; after so many log lines the second one can write no long file any more."""
    metrics = RunFolder(run_folder).metrics
    processes = []
    for rank, environment in enumerate(rank_environments(2)):
        log = run_folder.with_name(f"{run_folder.name}-{time.monotonic_ns()}-{rank}.log")
        processes.append(TrainingProcess(small.arguments(run_folder), log, environment))
    deadline = time.monotonic() + _RUN_S
    while fails_after is not None and not processes[1].ended and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= fails_after:
            processes[1].limit_files(4096)
            break
        time.sleep(_POLL_S)
    return [(process.wait(_RUN_S), process.told()) for process in processes]


def _first_that_works(prefixes: tuple[list[str], ...], script: str) -> list[str] | None:
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
