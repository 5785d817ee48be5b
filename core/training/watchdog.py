"""Ends a run in which a rank has stopped answering, with the stacks of all ranks on disk (docs/reliability.md).

A thread of each rank copies its main thread's heartbeat into the run folder, `heartbeat/rank-RR.json`. Rank 0 reads all
notes and names who is behind once nobody moves; the others hear of it from rank 0's note, or name rank 0 where that is
not renewed. Then each rank writes its stacks to `hang/rank-RR.txt` and ends with `HANG_EXIT_CODE`.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from adadistill.core.distributed import Ranks
from adadistill.core.training.heartbeat import HEARTBEAT, TRAINING, beat
from adadistill.core.training.stop_signal import end_process
from adadistill.loaders.atomic_file import write_whole

HANG_EXIT_CODE = 75
"""Of a run in which a rank stopped answering: EX_TEMPFAIL of sysexits.h, "try again"."""
PATIENCE = 3.0
"""Times the limit, in phases that may go long without a beat."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a rank last said of itself. No clock of one machine is compared with another's: a note counts as renewed
    when it changes."""

    launch: str
    """Equal on all ranks of a launch; notes of earlier ones may lie in the folder."""
    rank: int
    phase: str
    step: int
    moves: int
    idle_s: float
    """Seconds since its main thread moved, when it wrote this."""
    verdict: str = ""
    """On rank 0: who stopped answering, once somebody has."""
    ended: bool = False
    """The rank no longer takes part: it is done, was stopped, or met an error that it reported."""
    written: float = 0.0
    """When, by its own clock."""

    def place(self) -> str:
        """For people."""
        return f"in {self.phase}, after {self.step} finished steps"


class Watchdog:
    """Watches this rank and, through the run folder, the others, while it is entered.

    Args:
        folder: of the run; shared by all ranks.
        timeout_s: longest time without a move in a step; None watches nothing.
        launch: a text that is new at each start of the processes, and equal on all ranks.
    """

    def __init__(self, folder: Path, ranks: Ranks, timeout_s: float | None, *, launch: str) -> None:
        self._notes, self._stacks = folder / "heartbeat", folder / "hang"
        self._ranks, self._limit_s, self._launch = ranks, timeout_s, launch
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._limit_s is None:
            return self
        self._notes.mkdir(parents=True, exist_ok=True)
        self._stacks.mkdir(exist_ok=True)
        beat(0)
        self._write(self._note())
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
            self._write(replace(self._note(), ended=True))
            if (path := Path(self._stack_file.name)).stat().st_size == 0:
                path.unlink()
            with suppress(OSError):  # others' stacks are in it
                self._stacks.rmdir()
        except OSError as problem:
            _log.warning("could not tidy up %s: %s", self._notes, problem)

    def _watch(self, limit_s: float) -> None:
        pause_s = min(limit_s / 8, 10.0)
        looked = time.monotonic()
        judge = Judge(limit_s, since=looked)
        while not self._ended.wait(pause_s):
            now = time.monotonic()
            if now - looked > pause_s + limit_s / 2:  # not this rank's main thread stood still, but all of the process
                beat()
                judge = Judge(limit_s, since=now)
                if os.fstat(self._stack_file.fileno()).st_size:  # the timer may have gone off on waking
                    print("this process was suspended and goes on", file=self._stack_file, flush=True)
            looked = now
            # Renewed at each look: it goes off where this thread cannot run, since C holds the interpreter's lock.
            faulthandler.dump_traceback_later(limit_s, file=self._stack_file)
            own, others = self._note(), {}
            try:
                self._write(own)
                others = self._read()
            except OSError as problem:
                _log.warning("heartbeats in %s cannot be exchanged: %s", self._notes, problem)
            verdict = judge.verdict(own, others, now)
            if verdict and not self._ended.is_set():
                self._give_up(own, verdict, pause_s)

    def _give_up(self, own: Note, verdict: str, pause_s: float) -> None:
        tells = self._ranks.is_main and self._ranks.world_size > 1
        if tells:
            try:
                self._write(replace(own, verdict=verdict))
            except OSError as problem:
                _log.error("could not tell the other ranks: %s", problem)
        faulthandler.cancel_dump_traceback_later()
        self._stack_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {verdict}\nrank {own.rank}, {own.place()}:\n\n")
        self._stack_file.flush()
        faulthandler.dump_traceback(self._stack_file, all_threads=True)
        text = f"{verdict}. Stacks of all ranks that could write them are in {self._stacks}; go on with --resume auto"
        with suppress(OSError):  # nobody may read it
            os.write(2, f"rank {own.rank}: HangError: {text}\n".encode())
        if tells:
            time.sleep(2 * pause_s)  # a launcher ends the other ranks when the first one leaves: let them write theirs
        end_process(HANG_EXIT_CODE)

    def _note(self) -> Note:
        pulse = HEARTBEAT
        return Note(
            launch=self._launch, rank=self._ranks.rank, phase=pulse.phase, step=pulse.step, moves=pulse.moves,
            idle_s=round(time.monotonic() - pulse.at, 3), written=time.time(),
        )  # fmt: skip

    def _write(self, note: Note) -> None:
        text = json.dumps({**asdict(note), "pid": os.getpid()}) + "\n"
        write_whole(self._notes / f"rank-{note.rank:02d}.json", text, durable=False)

    def _read(self) -> dict[int, Note | None]:
        """Notes of the ranks that this one looks after, by rank: of all on rank 0, of rank 0 on the others."""
        ranks = range(1, self._ranks.world_size) if self._ranks.is_main else (0,)
        return {rank: read_note(self._notes / f"rank-{rank:02d}.json", self._launch) for rank in ranks}


class Judge:
    """Decides who has stopped answering, from notes alone; without files, threads or a clock of its own.

    Args:
        limit_s: longest time without a move, and without a new note.
        since: when watching began, on the clock of `verdict`'s `now`.
    """

    def __init__(self, limit_s: float, *, since: float) -> None:
        self._limit_s, self._since = limit_s, since
        self._seen: dict[int, tuple[Note | None, float]] = {}

    def verdict(self, own: Note, others: Mapping[int, Note | None], now: float) -> str:
        """Who stopped answering, or nothing.

        Args:
            others: newest notes of the ranks that this one looks after; None for a rank that has none.
        """
        notes, silent, left = [own], [], []
        for rank, note in others.items():
            last, renewed = self._seen.get(rank, (None, self._since))
            renewed = renewed if note == last else now
            self._seen[rank] = (note, renewed)
            if note is not None and note.verdict:
                return note.verdict
            if note is not None and note.ended:
                left.append(f"rank {rank} has left {note.place()}, and others wait for it")
            # Rank 0 has the first word, since it hears of all.
            elif now - renewed > self._limit_s * (1.5 if rank == 0 else 1.0):
                where = "" if note is None else f"; it was {note.place()}"
                silent.append(f"rank {rank} has stopped answering: no sign of life for {now - renewed:.0f} s{where}")
            elif note is not None:
                notes.append(note)
        if silent:
            return "; ".join(silent)
        if any(note.idle_s <= self._allowed_s(note, own) for note in notes):
            return ""  # who moves may be slow; who waits for it is not stuck
        if left:
            return "; ".join(left)
        behind = min((note.step, note.moves) for note in notes)
        return "; ".join(
            f"rank {note.rank} has stopped answering: it has not moved for {note.idle_s:.0f} s, {note.place()}"
            for note in notes
            if (note.step, note.moves) == behind
        )

    def _allowed_s(self, note: Note, own: Note) -> float:
        """Ranks beside rank 0 leave naming to it for as long again."""
        return self._limit_s * (1.0 if note.phase == TRAINING else PATIENCE) * (1.0 if own.rank == 0 else 2.0)


def read_note(path: Path, launch: str) -> Note | None:
    """The note of a rank in this launch; None where there is none, such as a file of another version."""
    try:
        fields = json.loads(path.read_text())
        note = Note(**{name: fields[name] for name in Note.__slots__})
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return note if note.launch == launch else None
