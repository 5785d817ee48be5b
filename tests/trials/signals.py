"""SIGTERM in every phase of a run: does it leave in time, with the right code, and with what it had done?

Real processes of `adadistill train` and `adadistill cache build` on the demo's recipes, cut down to seconds, are asked
to end at a moment drawn at random inside a phase:

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

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.core.backbones import build_backbone
from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.recipe import load_recipe
from adadistill.core.training.metrics_log import read_metrics
from adadistill.loaders.block_store.slots import EMPTY_SLOT, SLOT_BYTES, SLOTS_NAME
from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)
from trials.outcome import TrialOutcome

LIMIT_S = 10.0
"""From the signal to the end of the process."""
PHASES = ("start-up", "compile", "training", "evaluation", "save", "cache build")
TRIALS = {"start-up": 8, "compile": 4, "training": 8, "evaluation": 7, "save": 7, "cache build": 6}

_FACES = SyntheticFacesConfig(image_size=32, seed=7, identities=32, images_per_identity=12)
_RECORDS = _FACES.identities * _FACES.images_per_identity
_BATCH = 16
_MARK = "ADADISTILL_SIGNAL_TRIAL"
_START_LIMIT_S = 120.0
_ORPHAN_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """One signalled process, as seen from outside."""

    code: int | None
    seconds: float
    """From the signal to its end."""
    error: str
    orphans: int
    reached: int
    """Steps, or blocks, that it had reported as done."""


def run(*, tiny: bool, seed: int, folder: Path, phases: Sequence[str] = PHASES) -> list[TrialOutcome]:
    """Send SIGTERM forty times, or once in each phase.

    Args:
        tiny: one trial of each phase.
        seed: of the moments; the machine's own timing is not repeatable.
        folder: for faces, runs and caches; some megabytes.
        phases: of `PHASES`.
    """
    faces = folder / "faces"
    write_synthetic_records(faces, _FACES)
    write_synthetic_pairs(faces / "pairs.bin", _FACES, pairs=400)
    _save_teacher(faces, folder / "teacher")
    generator = random.Random(seed)
    return [
        _phase(phase, 1 if tiny else TRIALS[phase], generator, faces, folder)
        for phase in phases
        if phase != "compile" or any(map(shutil.which, ("g++", "clang++", "c++")))
    ]


def _phase(phase: str, trials: int, generator: random.Random, faces: Path, folder: Path) -> TrialOutcome:
    own = folder / phase.replace(" ", "_")
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(trials):
        if phase == "cache build" and _reached(phase, own) > _RECORDS // 2:
            shutil.rmtree(own)  # else this build might be done before its signal
        command = _command(phase, faces, own, folder / "teacher")
        trial = _signalled(command, _moment(phase, own, generator), lambda: _reached(phase, own))
        problem = _problem(phase, own, trial)
        outcomes[problem.split(":")[0] if problem else _ending(phase, own)] += 1
        if problem:
            failures.append(f"trial {number}: {problem}")
    return TrialOutcome(
        group="signal",
        damage=f"SIGTERM during {phase}",
        promise=f"exits 143 within {LIMIT_S:g} s, keeps what was done, resumes, leaves no process",
        trials=trials,
        held=trials - len(failures),
        outcomes=dict(outcomes),
        failures=tuple(failures[:10]),
    )


def _save_teacher(faces: Path, folder: Path) -> None:
    """The demo's teacher as it is before training: what it says does not matter here."""
    recipe = load_recipe("demo_teacher", _data(faces))
    network = build_backbone(recipe.student, recipe.data.image_size, generator=0)
    save_network(folder, network.eval(), recipe.student, recipe.data.image_size)


def _data(faces: Path) -> list[str]:
    return [
        f"data.records={json.dumps(str(faces / 'train.rec'))}",
        f"data.global_batch_size={_BATCH}",
        "log.every=1",
    ]


def _command(phase: str, faces: Path, own: Path, teacher: Path) -> list[str]:
    taught = f"teacher.checkpoint={json.dumps(str(teacher))}", "teacher.check=false"
    if phase == "cache build":
        return [
            "adadistill.recipes.cache_teacher", "demo_distilled", *_data(faces), "evaluation.sets=[]", *taught,
            f"teacher.cache={json.dumps(str(own))}", "--device", "cpu", "--batch-size", "1",
        ]  # fmt: skip
    pairs = json.dumps([str(faces / "pairs.bin")])
    changes = {
        "compile": ["compile=default"],
        "evaluation": [f"evaluation.sets={pairs}", "evaluation.every_epochs=1", "evaluation.batch_size=4"],
        "save": ["checkpoint.every_steps=1"],
    }.get(phase, [])
    if phase != "evaluation":
        changes.append("evaluation.sets=[]")
    return [
        "adadistill.recipes.train", "demo_distilled", *_data(faces), *taught, "optim.epochs=10000", *changes,
        "--out", str(own), "--device", "cpu", "--resume", "auto",
    ]  # fmt: skip


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
    rows_before = _reached(phase, own)
    epoch = _RECORDS // _BATCH
    enough = {"training": 2, "evaluation": epoch - rows_before % epoch, "save": 2}.get(phase, 1)
    # A fast machine builds half of this cache in a second, and would be done before its signal.
    wait_s = generator.uniform(0.0, 0.3 if phase == "cache build" else 1.0)
    return _after(lambda: _reached(phase, own) >= rows_before + enough, wait_s)


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


def _signalled(command: list[str], moment: Callable[[], bool], reached: Callable[[], int]) -> _Trial:
    mark = os.urandom(8).hex()
    environment = {**os.environ, _MARK: mark, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
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
    orphans = _wait_for_none(mark)
    return _Trial(process.returncode, seconds, error, orphans, done)


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
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if wanted in environment.split(b"\0"):
            yield int(entry.name)


def _problem(phase: str, own: Path, trial: _Trial) -> str:
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
    if saved < trial.reached:
        return f"lost steps: {saved} saved, {trial.reached} were done"
    return ""


def _ending(phase: str, own: Path) -> str:
    if phase == "cache build":
        return "finished blocks kept"
    newest = newest_valid_checkpoint(own)[0] if own.is_dir() else None
    if newest is None:
        return "nothing to save"
    return "saved" if newest.state["position"]["evaluated"] else "saved before its evaluation"
