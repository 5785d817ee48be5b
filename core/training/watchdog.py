"""Ends a run in which a rank has stopped answering, with the stacks of all ranks on disk.

A collective waits for its slowest rank, so one rank that sleeps, spins, or is stopped leaves all of them waiting
without a word. A thread of each rank looks after its main thread's heartbeat (`heartbeat.py`) and leaves a note of it
in the run folder, `heartbeat/rank-RR.json`. Rank 0 reads all notes, the others read rank 0's:

    a main thread that has not moved for `guard.hang_timeout_s`    the rank that is furthest behind is named
    a note that is not renewed for as long                         that process is stopped, gone, or in C with the GIL
    rank 0 has said so in its note, or does not renew it           the others hear of it

Then every rank that still can writes the stacks of its threads to `hang/rank-RR.txt`, says who stopped answering, and
ends with `HANG_EXIT_CODE`, so that a launcher's restart can take over. A rank that waits for another has not moved
either: a run hangs when nobody moves, and whoever is behind, by finished steps and then within the step, is named.

Notes are files, since ranks share the run folder already (they write checkpoints together), and since a file needs no
rank, no agent and no device to answer. No clock is compared between machines: a note counts as renewed when its content
changes. Start-up, the first step (which may compile), evaluation and saving get `PATIENCE` times as long. A thread that
finds that it was itself not running, since the whole process or machine was suspended, begins anew.

A main thread that holds the GIL in C keeps this thread from running, too. A timer of `faulthandler`, which needs no
GIL, then writes the stacks; the other ranks find the note unrenewed, and end. A process alone stays as it is.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from adadistill.core.distributed import Ranks
from adadistill.core.training.heartbeat import HEARTBEAT, TRAINING, beat
from adadistill.core.training.stop_signal import end_process

HANG_EXIT_CODE = 75
"""Of a run in which a rank stopped answering: EX_TEMPFAIL of sysexits.h, "try again"."""
PATIENCE = 3.0
"""Times the limit, in phases that may go long without a beat."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a rank last said of itself."""

    launch: str
    """Equal on all ranks of a launch; notes of earlier ones may lie in the folder."""
    rank: int
    phase: str
    step: int
    moves: int
    idle_s: float
    """Since its main thread moved, when it wrote this."""
    verdict: str = ""
    """On rank 0: who stopped answering, once somebody has."""
    ended: bool = False
    """The rank no longer takes part: it is done, was stopped, or met an error that it reported."""

    def place(self) -> str:
        """For people."""
        return f"in {self.phase}, after {self.step} finished steps"


_KINDS: Mapping[str, type] = {
    "launch": str, "rank": int, "phase": str, "step": int, "moves": int, "idle_s": float, "verdict": str, "ended": bool
}  # fmt: skip


class Watchdog:
    """Watches this rank and, through the run folder, the others, while it is entered.

    Args:
        folder: of the run; shared by all ranks.
        timeout_s: longest time without a move in a step; None watches nothing.
        launch: a text that is new at each start of the processes, and equal on all ranks.
    """

    def __init__(self, folder: Path, ranks: Ranks, timeout_s: float | None, *, launch: str) -> None:
        self._notes, self._stacks = folder / "heartbeat", folder / "hang"
        self._ranks = ranks
        self._limit_s = timeout_s
        self._launch = launch
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._limit_s is None:
            return self
        self._notes.mkdir(parents=True, exist_ok=True)
        self._stacks.mkdir(exist_ok=True)
        beat(0)
        self._write_note(self._note())
        # Opened now: when it is needed, there may be no way to open it.
        self._stack_file = open(self._stacks / f"rank-{self._ranks.rank:02d}.txt", "a")
        faulthandler.dump_traceback_later(self._limit_s, file=self._stack_file)
        self._thread = threading.Thread(target=self._watch, args=(self._limit_s,), name="adadistill-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(timeout=5.0)
        if self._thread.is_alive():  # it waits for the file system, and will end with the process
            return
        faulthandler.cancel_dump_traceback_later()
        self._stack_file.close()
        try:
            self._write_note(replace(self._note(), ended=True))
            self._remove_empty_stacks()
        except OSError as problem:
            _log.warning("could not tidy up %s: %s", self._notes, problem)

    def _watch(self, limit_s: float) -> None:
        pause_s = min(limit_s / 8, 10.0)
        judge = Judge(limit_s, since=time.monotonic())
        looked = time.monotonic()
        while not self._ended.wait(pause_s):
            now = time.monotonic()
            if now - looked > pause_s + limit_s / 2:  # not this rank's main thread stood still, but all of the process
                beat()
                judge = Judge(limit_s, since=now)
                if os.fstat(self._stack_file.fileno()).st_size:  # the timer may have gone off on waking
                    print("this process was suspended and goes on", file=self._stack_file, flush=True)
            looked = now
            # Renewed at each look: it goes off where this thread cannot run.
            faulthandler.dump_traceback_later(limit_s, file=self._stack_file)
            own = self._note()
            try:
                self._write_note(own)
                others = self._read_notes()
            except OSError as problem:
                _log.warning("heartbeats in %s cannot be exchanged: %s", self._notes, problem)
                others = []
            verdict = judge.verdict(own, others, now)
            if verdict and not self._ended.is_set():
                self._give_up(own, verdict, pause_s)

    def _give_up(self, own: Note, verdict: str, pause_s: float) -> None:
        if self._ranks.is_main and self._ranks.world_size > 1:
            self._tell_others(own, verdict)
        faulthandler.cancel_dump_traceback_later()
        self._stack_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {verdict}\nrank {own.rank}, {own.place()}:\n\n")
        self._stack_file.flush()
        faulthandler.dump_traceback(self._stack_file, all_threads=True)
        self._stack_file.flush()
        text = f"{verdict}. Stacks of all ranks that could write them are in {self._stacks}; go on with --resume auto"
        with suppress(OSError):  # nobody may read it
            os.write(2, f"rank {own.rank}: HangError: {text}\n".encode())
        if self._ranks.is_main and self._ranks.world_size > 1:
            time.sleep(2 * pause_s)  # a launcher ends the other ranks when the first one leaves: let them write theirs
        end_process(HANG_EXIT_CODE)

    def _tell_others(self, own: Note, verdict: str) -> None:
        try:
            self._write_note(replace(own, verdict=verdict))
        except OSError as problem:
            _log.error("could not tell the other ranks: %s", problem)

    def _note(self) -> Note:
        pulse = HEARTBEAT
        return Note(
            launch=self._launch,
            rank=self._ranks.rank,
            phase=pulse.phase,
            step=pulse.step,
            moves=pulse.moves,
            idle_s=round(time.monotonic() - pulse.at, 3),
        )

    def _write_note(self, note: Note) -> None:
        path = self._notes / f"rank-{note.rank:02d}.json"
        partial = path.with_name(f".{path.name}.partial")
        fields = {name: getattr(note, name) for name in Note.__slots__}
        partial.write_text(json.dumps({**fields, "pid": os.getpid(), "written": time.time()}) + "\n")
        os.replace(partial, path)

    def _read_notes(self) -> list[tuple[int, str]]:
        """(rank, content) of the ranks that this one looks after; what cannot be read yet is left out."""
        found = []
        for rank in range(1, self._ranks.world_size) if self._ranks.is_main else (0,):
            if rank == self._ranks.rank:
                continue
            try:
                found.append((rank, (self._notes / f"rank-{rank:02d}.json").read_text()))
            except FileNotFoundError:
                found.append((rank, ""))
        return found

    def _remove_empty_stacks(self) -> None:
        path = Path(self._stack_file.name)
        if path.stat().st_size == 0:
            path.unlink()
        with suppress(OSError):  # others' stacks are in it
            self._stacks.rmdir()


class Judge:
    """Decides who has stopped answering, from notes alone; without files, threads or a clock of its own.

    Args:
        limit_s: longest time without a move, and without a new note.
        since: when watching began, on the clock of `verdict`'s `now`.
    """

    def __init__(self, limit_s: float, *, since: float) -> None:
        self._limit_s = limit_s
        self._since = since
        self._seen: dict[int, tuple[str, float]] = {}

    def verdict(self, own: Note, others: list[tuple[int, str]], now: float) -> str:
        """Who stopped answering, or nothing.

        Args:
            others: (rank, content) of the notes of the ranks that this one looks after.
        """
        notes, silent, left = [own], [], []
        for rank, text in others:
            last, renewed = self._seen.get(rank, ("", self._since))
            if text != last:
                renewed = now
                self._seen[rank] = (text, renewed)
            note = parsed_note(text)
            if note is not None and note.launch != own.launch:
                note = None
            if note is not None and note.verdict:
                return note.verdict
            if note is not None and note.ended:
                left.append(f"rank {rank} has left {note.place()}, and others wait for it")
                continue
            # Rank 0 has the first word, since it hears of all.
            if now - renewed > self._limit_s * (1.5 if rank == 0 else 1.0):
                where = "" if note is None else f"; it was {note.place()}"
                silent.append(f"rank {rank} has stopped answering: no sign of life for {now - renewed:.0f} s{where}")
            elif note is not None:
                notes.append(note)
        if silent:
            return "; ".join(silent)
        # The others leave naming to rank 0, which reads of their main threads in their notes.
        patience = 1.0 if own.rank == 0 else 2.0
        if not all(note.idle_s > patience * self._allowed_s(note) for note in notes):
            return ""  # who moves may be slow; who waits for it is not stuck
        if left:
            return "; ".join(left)
        behind = min((note.step, note.moves) for note in notes)
        named = [note for note in notes if (note.step, note.moves) == behind]
        return "; ".join(
            f"rank {note.rank} has stopped answering: it has not moved for {note.idle_s:.0f} s, {note.place()}"
            for note in named
        )

    def _allowed_s(self, note: Note) -> float:
        return self._limit_s * (1.0 if note.phase == TRAINING else PATIENCE)


def parsed_note(text: str) -> Note | None:
    """A note as it was written; None for what is none, such as a file of another version."""
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, Mapping) or not all(name in fields for name in Note.__slots__):
        return None
    if not all(isinstance(fields[name], kind) for name, kind in _KINDS.items()):
        return None
    return Note(**{name: fields[name] for name in _KINDS})
