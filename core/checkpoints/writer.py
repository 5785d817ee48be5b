"""Saving a run so that no kill, full disk or rotten bit costs more than the steps since the last save.

`CheckpointWriter.save` copies the state to the CPU at once, so that training goes on and may change it, and a
background thread writes it; at most one save is in flight. What is written, and how it is read again, is said in
`files`.

How several ranks write one checkpoint is said in `attempt`. The ranks must share the folder.

Deleting is timid: only what verified as a checkpoint of ours and is older than `keep` newer valid ones goes. A
checkpoint that failed verification is neither counted nor deleted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from adadistill.loaders.errors import WorkFailed
from adadistill.core.checkpoints.attempt import (
    Attempt,
    CheckpointWriteError,
    HostCopy,
    Patience,
)
from adadistill.core.checkpoints.checked_files import STORABLE_DTYPES
from adadistill.core.checkpoints.files import (
    MODEL_NAME,
    OPTIMISER_JSON_NAME,
    OPTIMISER_NAME,
    ROWS_KEY,
    STATE_NAME,
    CheckpointError,
    OwnRows,
    RowArray,
    list_checkpoints,
    rank_state_name,
    row_range,
    shard_name,
    step_of,
    verify_checkpoint,
)

_log = logging.getLogger(__name__)

_TOKEN = re.compile(r"[0-9A-Za-z]{1,64}")
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_LEFTOVER = re.compile(
    r"\.(tmp|trash)-step-\d{8,18}(\.replaced-[0-9A-Za-z]+-\d+)?-(?P<token>[0-9A-Za-z]+)-(?P<number>\d+)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the run is saved, and how many checkpoints stay. The end of the run and SIGTERM save in any case."""

    every_steps: int | None = None
    """Save after every so many steps. At least 1, or null for never: epochs are the natural unit of the recipes."""
    every_epochs: int | None = 1
    """Save after every so many epochs. At least 1, or null for never. One epoch of MS1MV2 is minutes to an hour."""
    keep: int = 3
    """Newest valid checkpoints that stay. At least 1; three, so that two rotten ones still leave a way back."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {value}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    def is_due(self, finished_steps: int, steps_per_epoch: int) -> bool:
        """Whether the state after so many finished steps of the run is to be saved."""
        by_steps = self.every_steps is not None and finished_steps % self.every_steps == 0
        by_epochs = self.every_epochs is not None and finished_steps % (self.every_epochs * steps_per_epoch) == 0
        return finished_steps > 0 and (by_steps or by_epochs)


class NonFiniteCheckpointError(WorkFailed, CheckpointError):
    """The state holds NaN or infinity, which must never replace a good checkpoint. Names the tensor or key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything a run needs to go on, by reference; `CheckpointWriter.save` makes the copies.

    JSON values are null, booleans, finite numbers, strings, lists, tuples (read back as lists), dicts with string keys.
    """

    model: Mapping[str, Tensor]
    """Parameters and buffers, the same on all ranks. Rank 0's are written; other ranks may leave it empty."""
    optimiser: Mapping[str, Tensor] = field(default_factory=dict)
    """Optimiser tensors under flat names such as `momentum.layer1.weight`. Written by rank 0, as the model."""
    optimiser_json: Mapping[str, Any] = field(default_factory=dict)
    """The rest of the optimiser's state. Written by rank 0."""
    row_sharded: Mapping[str, RowArray] = field(default_factory=dict)
    """Large (C, ...) arrays, of which each rank writes its rows: it gives the whole array, the same on all ranks, or
    its `OwnRows`, where no rank holds more. The files are the same. Names: [a-z0-9_]."""
    rank_state: Mapping[str, Any] = field(default_factory=dict)
    """What differs by rank, e.g. random state as hex."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What all ranks agree on: epoch, position, recipe hash, ... Rank 0's is written."""


class CheckpointWriter:
    """Writes the checkpoints of one run into one folder. All ranks make one and call `save` for the same steps.

    Use it as a context manager, or call `close`: it waits for the save in flight. When the block is left by an
    exception the save in flight is still finished, but other ranks (which may be gone) get only ten seconds more.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int,
        rank: int = 0,
        world_size: int = 1,
        run_token: str | None = None,
        peer_timeout_s: float = 600.0,
    ) -> None:
        """
        Args:
            folder: the `checkpoints` folder, shared by all ranks; created if need be.
            keep: newest valid checkpoints that stay, at least 1.
            rank: of this process, in [0, world_size).
            world_size: number of processes that write together.
            run_token: letters and digits, equal on all ranks and new at every start of the processes. One process alone
                may leave it out.
            peer_timeout_s: longest wait for other ranks, in seconds.

        Raises:
            ValueError: an argument is out of range.
            CheckpointWriteError: the folder cannot be created or written.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}")
        if run_token is None and world_size > 1:
            raise ValueError("run_token must be given when several ranks write together")
        token = secrets.token_hex(8) if run_token is None else run_token
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"run_token must be 1 to 64 letters and digits, got {token!r}")
        self._folder = Path(folder)
        self._keep = keep
        self._rank = rank
        self._world_size = world_size
        self._token = token
        self._patience = Patience(peer_timeout_s)
        self._saves = 0
        self._last_saved: int | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[int] | None = None
        self._known: dict[Path, bool] = {}  # verdicts on checkpoint directories, written or verified by this process
        self._left_alone: set[Path] = set()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointWriteError(
                f"cannot create the checkpoint folder {self._folder}: {error.strerror}"
            ) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise CheckpointWriteError(f"the checkpoint folder {self._folder} is not writable")
        if rank == 0:  # a run that was stopped after its last save may never save again
            _remove_leftovers(self._folder, token, 1)

    @property
    def last_saved(self) -> int | None:
        """The last step that this writer is known to have saved durably."""
        return self._last_saved

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed on this rank; `save`, `wait` and `close` raise its error."""
        future = self._in_flight
        return future is not None and future.done() and future.exception() is not None

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Copy the state now and write it in the background, after the save in flight if there is one.

        A step that this writer has just saved is not written again (SIGTERM right after a periodic save).

        Args:
            step: finished optimiser steps of the run, at least 0; names the checkpoint.
            snapshot: may be changed as soon as this returns. Tensors may be on any device and of any layout in memory.

        Raises:
            CheckpointError: the save before this one failed (mostly CheckpointWriteError or CheckpointTimeoutError).
                This step is then not saved either, on any rank.
            NonFiniteCheckpointError: names the tensor or key that holds NaN or infinity. Nothing is written.
            ValueError: a tensor or JSON value cannot be stored exactly.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        self._saves += 1
        attempt = Attempt(self._folder, step, self._token, self._saves, self._rank, self._world_size, self._patience)
        with attempt:
            self.wait()
            if self._last_saved == step:
                return
            copy = _copy_to_host(snapshot, self._rank, self._world_size)
        self._in_flight = self._executor.submit(self._write, attempt, copy)

    def wait(self) -> None:
        """Wait until the save in flight is durable, on all ranks. Raises its error, once."""
        future, self._in_flight = self._in_flight, None
        if future is not None:
            self._last_saved = future.result()

    def close(self) -> None:
        """Wait for the save in flight and stop the thread. Raises the error of that save."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        self._patience.shorten(10.0)
        try:
            self.close()
        except CheckpointError as background:  # the error under way matters more
            _log.error("the last checkpoint was not written: %s", background)

    def _write(self, attempt: Attempt, copy: HostCopy) -> int:
        """In the background thread: write this rank's files; rank 0 makes the checkpoint of them."""
        with attempt:
            if self._rank == 0:
                _remove_leftovers(self._folder, attempt.token, attempt.number)
            records = attempt.write_own_files(copy)
            if self._rank != 0:
                attempt.announce(records, copy.shapes)
                attempt.await_commit()
                return attempt.step
            records += attempt.collect(copy.shapes)
            attempt.commit(records)
        self._known[attempt.final] = True
        try:
            self._rotate(attempt)
        except OSError as error:  # the checkpoint stands; what may fail here is looking for old ones
            _log.warning("could not look for old checkpoints in %s: %s", self._folder, error)
        return attempt.step

    def _rotate(self, attempt: Attempt) -> None:
        """Delete what `keep` newer valid steps make superfluous, and valid twins of a step that was written again."""
        kept: set[int] = set()
        for path in reversed(list_checkpoints(self._folder)):
            step = step_of(path)
            if step is None or step > attempt.step:
                self._warn_of_later_step(path)
            elif self._is_valid(path):
                if step in kept or len(kept) == self._keep:
                    _delete(path, attempt)
                else:
                    kept.add(step)

    def _warn_of_later_step(self, path: Path) -> None:
        """A run that went back on purpose leaves checkpoints of another history; only its owner may judge them."""
        if path not in self._left_alone:
            self._left_alone.add(path)
            _log.warning(
                "%s is of a later step than the one just saved and is left alone; a resume would prefer it: "
                "delete it if this run went back on purpose",
                path,
            )

    def _is_valid(self, path: Path) -> bool:
        """Verified once per process; what this process wrote itself is known."""
        if path not in self._known:
            try:
                verify_checkpoint(path)
                self._known[path] = True
            except CheckpointError as error:
                _log.warning("a damaged checkpoint does not count and is not deleted: %s", error)
                self._known[path] = False
        return self._known[path]


def _copy_to_host(snapshot: Snapshot, rank: int, world_size: int) -> HostCopy:
    """Check all that this rank was given, so that ranks judge alike where they hold the same, and copy its part."""
    arrays = {name: _rows_of(array) for name, array in snapshot.row_sharded.items()}
    for kind, named in (("model", snapshot.model), ("optimiser", snapshot.optimiser), ("row_sharded", arrays)):
        for name, tensor in named.items():
            if name == "__metadata__":
                raise ValueError(f"{kind} `{name}` has a name that safetensors keeps for itself")
            _check_tensor(f"{kind} `{name}`", tensor)
    tensors: dict[str, dict[str, Tensor]] = {}
    metadata: dict[str, dict[str, str]] = {}
    shapes: dict[str, str] = {}
    texts = {rank_state_name(rank, world_size): _json_text(snapshot.rank_state, "rank_state")}
    if rank == 0:
        texts[STATE_NAME] = _json_text(snapshot.state, "state")
        texts[OPTIMISER_JSON_NAME] = _json_text(snapshot.optimiser_json, "optimiser_json")
        tensors[MODEL_NAME] = {name: _host(tensor) for name, tensor in snapshot.model.items()}
        tensors[OPTIMISER_NAME] = {name: _host(tensor) for name, tensor in snapshot.optimiser.items()}
    for array, given in sorted(snapshot.row_sharded.items()):
        tensor = arrays[array]
        if not _ARRAY_NAME.fullmatch(array) or tensor.dim() == 0:
            raise ValueError(
                f"row_sharded `{array}` must be named in [a-z0-9_] and have rows, got {tuple(tensor.shape)}"
            )
        total = given.total if isinstance(given, OwnRows) else len(tensor)
        first, end = row_range(total, rank, world_size)
        own = tensor if isinstance(given, OwnRows) else tensor[first:end]
        if len(own) != end - first:
            raise ValueError(
                f"row_sharded `{array}`: rank {rank} of {world_size} gives {len(own)} of {total} rows, but rows "
                f"{first} to {end} are its own"
            )
        name = shard_name(array, rank, world_size)
        tensors[name] = {ROWS_KEY: _host(own)}
        metadata[name] = {"first_row": str(first), "end_row": str(end), "rows": str(total)}
        shapes[array] = f"{tensor.dtype} {(total, *tensor.shape[1:])}"
    return HostCopy(tensors, texts, metadata, shapes)


def _rows_of(array: RowArray) -> Tensor:
    return array.rows if isinstance(array, OwnRows) else array


def _host(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy that shares memory with nothing."""
    return tensor.detach().resolve_neg().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()


def _check_tensor(what: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in STORABLE_DTYPES:
        raise ValueError(f"{what} cannot be stored: {tensor.dtype}, {tensor.layout}, on {tensor.device}")
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # One pass without the boolean copy that isfinite() makes, which for (C, D) centres can be gigabytes.
    low, high = (bound.item() for bound in tensor.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteCheckpointError(f"{what} holds NaN or infinity (range {low} to {high}); it is not saved")


def _json_text(value: Mapping[str, Any], what: str) -> bytes:
    _check_json(value, what)
    return (json.dumps(value, indent=1, allow_nan=False, default=dict) + "\n").encode()


def _check_json(value: Any, what: str) -> None:
    """Refuse what JSON would change without a word, such as integer keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{what} has the key {key!r}; JSON keys must be strings")
            _check_json(inner, f"{what}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_json(inner, f"{what}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise NonFiniteCheckpointError(f"{what} is {value}; it is not saved")
    elif not (value is None or type(value) in (bool, int, str)):
        raise ValueError(f"{what} is a {type(value).__name__}, which JSON cannot hold")


def _remove_leftovers(folder: Path, token: str, number: int) -> None:
    """Remove what killed processes and failed saves left, before it fills the disk.

    What save `number` of this launch (`token`), or a later one, has begun on any rank stays.
    """
    for path in folder.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        current = match and match["token"] == token and int(match["number"]) >= number
        if match and not current and path.is_dir() and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except OSError as error:
                _log.warning("could not remove the leftover %s: %s", path, error)


def _delete(path: Path, attempt: Attempt) -> None:
    """Delete a checkpoint. It loses its name first: a kill half-way leaves a leftover, not a damaged checkpoint."""
    trash = path.with_name(f".trash-{path.name}-{attempt.identity}")
    try:
        os.rename(path, trash)
        shutil.rmtree(trash)
    except OSError as error:
        _log.warning("could not delete the old checkpoint %s: %s", path, error)
