"""SIGTERM in every phase of a run: does it leave in time, with the right code, and with what it had done?

Real processes of `adadistill train` and `adadistill cache build` are asked to end at a moment drawn at random inside a
phase:

    start-up     from the first moment of the interpreter to the first line of the run
    compile      the first step, in which `torch.compile` builds the student; needs a C++ compiler
    training     a step, or waiting for its images
    evaluation   every epoch is evaluated on many pairs, so that most of the time goes there
    save         a save after every step, so that most of the time goes there
    cache build  blocks of the teacher's embeddings

Each trial goes on where the one before it in its phase was stopped, so that resuming is tried as often. It holds where
the process ends within 10 s with code 143 and no traceback, leaves no process behind, and where the newest checkpoint
verifies and is not older than the last step that the run had reported; a cache keeps its finished blocks. Before the
interpreter has come to our first line the kernel itself ends a process on SIGTERM, which a shell calls 143 too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.training.metrics_log import read_metrics
from adadistill.loaders.block_store.slots import EMPTY_SLOT, SLOT_BYTES, SLOTS_NAME
from trials.small_run import BATCH, EMBEDDING_DIM, IMAGE_SIZE, SmallRun, write_small_run
from trials.tally import Tally
from trials.training_process import child_environment

TRIALS = {"start-up": 8, "compile": 4, "training": 8, "evaluation": 7, "save": 7, "cache build": 6}
LIMIT_S = 10.0
"""Seconds from the signal to the end of the process."""

_IMAGES_EACH, _RECORDS = 48, 384
_START_LIMIT_S, _ORPHAN_LIMIT_S = 120.0, 10.0
_MARK = "ADADISTILL_SIGNAL_TRIAL"
_RARE_SAVES = ["checkpoint.every_steps=null", "checkpoint.every_epochs=1"]
_CHANGES = {
    "compile": ["compile=default", "evaluation.sets=[]", *_RARE_SAVES],
    "evaluation": ["evaluation.every_epochs=1", "evaluation.batch_size=4", *_RARE_SAVES],
    "save": ["evaluation.sets=[]"],
}


@dataclass(frozen=True, slots=True)
class Signalled:
    """One signalled process, as seen from outside."""

    code: int | None
    seconds: float
    """Seconds from the signal to its end."""
    error: str
    orphans: int
    reached: int
    """Steps, or blocks, that it had reported as done."""


def run(
    *, tiny: bool, seed: int, folder: Path, phases: Sequence[str] = tuple(TRIALS), python: str = sys.executable
) -> list[Tally]:
    """Send SIGTERM forty times, or once in each phase.

    Args:
        tiny: one trial of each phase.
        seed: of the moments; the machine's own timing is not repeatable.
        folder: for faces, runs and caches; some megabytes.
        phases: of `TRIALS`.
        python: starts the processes.
    """
    small = write_small_run(folder / "data", epochs=10_000, centres=1024, images_each=_IMAGES_EACH, pairs=400)
    backbone = BackboneConfig(arch="mobilefacenet", embedding_dim=EMBEDDING_DIM, width=0.125)
    network = build_backbone(backbone, IMAGE_SIZE, generator=0)  # what it says does not matter here
    save_network(folder / "teacher", network.eval(), backbone, IMAGE_SIZE)
    generator = random.Random(seed)
    return [
        _phase(phase, 1 if tiny else TRIALS[phase], generator, small, folder, python)
        for phase in phases
        if phase != "compile" or any(map(shutil.which, ("g++", "clang++", "c++")))
    ]


def _phase(phase: str, trials: int, generator: random.Random, small: SmallRun, folder: Path, python: str) -> Tally:
    tally = Tally(
        "signal",
        f"SIGTERM during {phase}",
        f"exits 143 within {LIMIT_S:g} s, keeps what was done, resumes, leaves no process",
    )
    own = folder / phase.replace(" ", "_")
    for number in range(trials):
        if phase == "cache build" and _reached(phase, own) > _RECORDS // 2:
            shutil.rmtree(own)  # else this build might be done before its signal
        command = [python, "-m", *_command(phase, small, own, folder / "teacher")]
        trial = _signalled(command, _moment(phase, own, generator), lambda: _reached(phase, own))
        problem = problem_of(phase, own, trial)
        tally.add(_ending(phase, own), problem and f"trial {number}: {problem}")
    return tally


def _command(phase: str, small: SmallRun, own: Path, teacher: Path) -> list[str]:
    if phase == "cache build":
        return [
            "adadistill.recipes.cache_teacher", str(small.recipe), "evaluation.sets=[]", "teacher.embeddings=null",
            f"teacher.checkpoint='{teacher}'", "teacher.check=false", f"teacher.cache='{own}'",
            "--device", "cpu", "--batch-size", "1",
        ]  # fmt: skip
    changes = _CHANGES.get(phase, ["evaluation.sets=[]", *_RARE_SAVES])
    return ["adadistill.recipes.train", *small.arguments(own, *changes)]


def _moment(phase: str, own: Path, generator: random.Random) -> Callable[[], bool]:
    """Whether the moment has come; asked again and again from the start of the process."""
    started = time.monotonic()
    if phase == "start-up":
        wait_s = generator.uniform(0.3, 4.0)
        return lambda: time.monotonic() - started > wait_s
    if phase == "compile":
        note = own / "heartbeat" / "rank-00.json"  # written just before the first step
        before = note.stat().st_mtime_ns if note.exists() else 0
        return _after(lambda: note.exists() and note.stat().st_mtime_ns > before, generator.uniform(0.5, 4.0))
    before = _reached(phase, own)
    epoch = _RECORDS // BATCH
    enough = {"training": 2, "evaluation": epoch - before % epoch, "save": 2}.get(phase, 1)
    # A fast machine builds half of this cache in a second, and would be done before its signal.
    wait_s = generator.uniform(0.0, 0.3 if phase == "cache build" else 1.0)
    return _after(lambda: _reached(phase, own) >= before + enough, wait_s)


def _after(begun: Callable[[], bool], wait_s: float) -> Callable[[], bool]:
    since: list[float] = []

    def come() -> bool:
        if not since and begun():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > wait_s

    return come


def _reached(phase: str, own: Path) -> int:
    """Finished steps that the run has reported, or finished blocks of the cache."""
    if phase == "cache build":
        slots = own / SLOTS_NAME
        content = slots.read_bytes() if slots.exists() else b""
        return sum(content[at : at + SLOT_BYTES] != EMPTY_SLOT for at in range(0, len(content), SLOT_BYTES))
    return max((row["step"] for row in read_metrics(own / "metrics.jsonl") if row.get("event") == "train"), default=0)


def _signalled(command: list[str], moment: Callable[[], bool], reached: Callable[[], int]) -> Signalled:
    mark = os.urandom(8).hex()
    process = subprocess.Popen(
        command, env={**child_environment(), _MARK: mark}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and not moment() and time.monotonic() < deadline:
        time.sleep(0.01)
    done, started = reached(), time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        _, error = process.communicate(timeout=3 * LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, error = process.communicate()
    seconds = time.monotonic() - started
    return Signalled(process.returncode, seconds, error, _wait_for_none(mark), done)


def _wait_for_none(mark: str) -> int:
    """How many processes of a trial are still there, after they had their time to notice."""
    deadline = time.monotonic() + _ORPHAN_LIMIT_S
    while (left := list(_marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def _marked(mark: str) -> Iterator[int]:
    """Processes that have a trial's mark in their environment; zombies have none."""
    wanted = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if wanted in environment.split(b"\0"):
            yield int(path.parent.name)


def problem_of(phase: str, own: Path, trial: Signalled) -> str:
    """What a trial did not keep; nothing where it held."""
    last = trial.error.strip().splitlines()[-1][:200] if trial.error.strip() else "no message"
    if trial.seconds > LIMIT_S:
        return f"late: {trial.seconds:.1f} s, {last}"
    if trial.code != 143 and not (phase == "start-up" and trial.code == -signal.SIGTERM and not trial.error):
        return f"code {trial.code}: {last}"
    if "Traceback" in trial.error:
        return f"traceback: {last}"
    if trial.orphans:
        return f"orphans: {trial.orphans}"
    if phase == "cache build":
        kept = _reached(phase, own)
        return f"lost blocks: {kept} kept, {trial.reached} were done" if kept < trial.reached else ""
    newest, skipped = newest_valid_checkpoint(own) if own.is_dir() else (None, [])
    if skipped:
        return f"damaged checkpoint: {skipped[0][1]}"
    saved = 0 if newest is None else newest.step
    return f"lost steps: {saved} saved, {trial.reached} were done" if saved < trial.reached else ""


def _ending(phase: str, own: Path) -> str:
    if phase == "cache build":
        return "finished blocks kept"
    newest = newest_valid_checkpoint(own)[0] if own.is_dir() else None
    if newest is None:
        return "nothing to save"
    return "saved" if newest.state["position"]["evaluated"] else "saved before its evaluation"
