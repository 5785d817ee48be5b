"""How several ranks write one checkpoint together, and what remains when one of them fails or is killed.

There is no collective in the writing threads, only files. Every save has a directory of its own,
`.tmp-step-00001234-<run token>-<n>`: the token is equal on all ranks and new at each start of the processes, n counts
the calls of `save`, which all ranks make in the same order. So nothing that an earlier attempt left behind, with
whatever world size, can ever be taken for part of this one.

    each rank   creates the directory unless it is there, writes and fsyncs its files, then `done-RR.json` (atomically)
    rank 0      waits for every `done`, compares, removes them, writes MANIFEST.json, fsyncs, renames the directory to
                `step-00001234`, fsyncs its parent, deletes old checkpoints
    others      wait until the renamed directory shows this attempt's manifest
    on failure  a rank leaves `failed-RR.json`, upon which all give up

Hence `wait()` returns on every rank only once the checkpoint is durable, and one rank's full disk is an error on all of
them. All waiting is bounded. The ranks must share the folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from adadistill.loaders.errors import WorkFailed
from adadistill.core.checkpoints.checked_files import FileRecord, write_bytes, write_tensors
from adadistill.core.checkpoints.files import (
    MANIFEST_NAME,
    CheckpointError,
    Manifest,
    read_manifest,
    step_folder_name,
    write_manifest_text,
)
from adadistill.loaders.atomic_file import sync_folder

_FIRST_POLL_S = 0.002
_SLOWEST_POLL_S = 0.25


class CheckpointWriteError(WorkFailed, CheckpointError):
    """A file of a checkpoint could not be written: disk full, read-only, folder gone. Older ones are untouched."""


class CheckpointTimeoutError(WorkFailed, CheckpointError):
    """Another rank did not finish its part of a checkpoint in time."""


@dataclass(frozen=True, slots=True)
class HostCopy:
    """This rank's part of a snapshot, in memory of its own."""

    tensors: dict[str, dict[str, Tensor]]  # by file name, then tensor name
    texts: dict[str, bytes]  # by file name
    metadata: dict[str, dict[str, str]]  # of the files in `tensors`
    shapes: dict[str, str]  # dtype and whole shape of the row-sharded arrays, which ranks must agree on


class Patience:
    """How long to wait for other ranks; may be cut short from another thread."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._deadline = math.inf

    def shorten(self, limit_s: float) -> None:
        self._limit_s = min(self._limit_s, limit_s)
        self._deadline = time.monotonic() + limit_s

    def begin(self) -> Wait:
        return Wait(self, time.monotonic())

    def is_over(self, started: float) -> bool:
        now = time.monotonic()
        return now > min(self._deadline, started + self._limit_s)


class Wait:
    """One wait: `pause` sleeps a little longer each time and says when time is up."""

    def __init__(self, patience: Patience, started: float) -> None:
        self._patience = patience
        self._started = started
        self._pause_s = _FIRST_POLL_S

    def pause(self, what: str) -> None:
        if self._patience.is_over(self._started):
            waited_s = time.monotonic() - self._started
            raise CheckpointTimeoutError(
                f"{what}: not there after {waited_s:.0f} s. A rank hangs or died, or the ranks do not share the folder"
            )
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _SLOWEST_POLL_S)


class Attempt:
    """One save on one rank: its temporary directory and the notes through which ranks speak.

    As a context manager it removes what was written and tells the other ranks when this one fails, and names OSErrors.
    """

    def __init__(
        self, folder: Path, step: int, token: str, number: int, rank: int, world_size: int, patience: Patience
    ) -> None:
        self.step = step
        self.token = token
        self.number = number
        self.identity = f"{token}-{number}"
        self.temporary = folder / f".tmp-{step_folder_name(step)}-{self.identity}"
        self.final = folder / step_folder_name(step)
        self._rank = rank
        self._world_size = world_size
        self._patience = patience

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        # Best effort: on a dead disk the note cannot be written either, and the others find out when their time is up.
        with contextlib.suppress(OSError):
            self._give_up(error)
        if isinstance(error, OSError):
            where = error.filename or self.temporary
            raise CheckpointWriteError(
                f"checkpoint of step {self.step} was not written: {where}: {error.strerror}. Older ones are untouched"
            ) from error

    def write_own_files(self, copy: HostCopy) -> list[FileRecord]:
        self.temporary.mkdir(exist_ok=True)
        records = [write_bytes(self.temporary / name, body) for name, body in copy.texts.items()]
        for name, tensors in copy.tensors.items():
            records.append(write_tensors(self.temporary / name, tensors, copy.metadata.get(name, {})))
        return records

    def announce(self, records: list[FileRecord], shapes: dict[str, str]) -> None:
        """Tell rank 0 that this rank's files are on the disk."""
        files = [[record.name, record.size, record.sha256] for record in records]
        self._write_note(f"done-{self._rank:02d}.json", {"shapes": shapes, "files": files})

    def collect(self, shapes: dict[str, str]) -> list[FileRecord]:
        """On rank 0: the other ranks' files, once all are there."""
        wait = self._patience.begin()
        records: list[FileRecord] = []
        for rank in range(1, self._world_size):
            while (note := self._read_note(f"done-{rank:02d}.json")) is None:
                self._raise_if_another_failed()
                wait.pause(f"checkpoint of step {self.step}, files of rank {rank} in {self.temporary}")
            if note["shapes"] != shapes:
                raise CheckpointError(
                    f"checkpoint of step {self.step}: rank {rank} has {note['shapes']}, rank 0 has {shapes}"
                )
            records += [FileRecord(*entry) for entry in note["files"]]
        for record in records:  # a network file system may show another node's file late
            path = self.temporary / record.name
            while not path.is_file() or path.stat().st_size != record.size:
                wait.pause(f"checkpoint of step {self.step}, {record.size} bytes in {path}")
        return records

    def commit(self, records: list[FileRecord]) -> None:
        """On rank 0: make the directory a checkpoint. An earlier one of this step is set aside, still to be found."""
        for rank in range(1, self._world_size):
            (self.temporary / f"done-{rank:02d}.json").unlink()
        manifest = Manifest(
            step=self.step,
            world_size=self._world_size,
            attempt=self.identity,
            files=tuple(sorted(records, key=lambda record: record.name)),
        )
        write_bytes(self.temporary / MANIFEST_NAME, write_manifest_text(manifest))
        sync_folder(self.temporary)
        if os.path.lexists(self.final):
            os.rename(self.final, self.final.with_name(f"{self.final.name}.replaced-{self.identity}"))
        os.rename(self.temporary, self.final)
        sync_folder(self.final.parent)

    def await_commit(self) -> None:
        """On the other ranks: return once rank 0 has made the directory a checkpoint."""
        wait = self._patience.begin()
        while not self._is_committed():
            self._raise_if_another_failed()
            if not self.temporary.is_dir() and not self._is_committed():
                raise CheckpointError(
                    f"checkpoint of step {self.step}: {self.temporary} was removed before it was complete"
                )
            wait.pause(f"checkpoint of step {self.step}, {self.final} from rank 0")

    def _is_committed(self) -> bool:
        if not (self.final / MANIFEST_NAME).exists():
            return False
        try:
            return read_manifest(self.final).attempt == self.identity
        except CheckpointError:  # an earlier, damaged checkpoint of this step, about to be set aside
            return False

    def _give_up(self, error: BaseException) -> None:
        if self._world_size == 1:
            if self.temporary.exists():
                shutil.rmtree(self.temporary)
            return
        self.temporary.mkdir(exist_ok=True)
        for path in self.temporary.iterdir():
            mine = self._rank == 0 or f"-{self._rank:02d}-of-" in path.name
            if mine and not path.name.startswith("failed-"):
                path.unlink(missing_ok=True)  # first, as the note may need the room
        self._write_note(f"failed-{self._rank:02d}.json", {"error": f"{type(error).__name__}: {error}"})

    def _raise_if_another_failed(self) -> None:
        try:
            names = sorted(os.listdir(self.temporary))
        except FileNotFoundError:  # rank 0 may rename it at any moment
            return
        for name in names:
            if not (name.startswith("failed-") and name.endswith(".json")):
                continue
            note = self._read_note(name)
            if note is not None:
                rank = int(name.removeprefix("failed-").removesuffix(".json"))
                raise CheckpointError(f"checkpoint of step {self.step}: rank {rank} failed with {note['error']}")

    def _write_note(self, name: str, content: dict[str, Any]) -> None:
        partial = self.temporary / f".{name}.partial"
        partial.unlink(missing_ok=True)
        write_bytes(partial, json.dumps(content).encode())
        os.rename(partial, self.temporary / name)

    def _read_note(self, name: str) -> dict[str, Any] | None:
        try:
            body = (self.temporary / name).read_bytes()
        except FileNotFoundError:
            return None
        note: dict[str, Any] = json.loads(body)
        return note
