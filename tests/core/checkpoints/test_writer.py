"""Saving: bits survive, training goes on, and no kill, full disk, dead rank or leftover costs a checkpoint."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_python import forked_python

from adadistill.core.checkpoints import (
    CheckpointConfig,
    CheckpointError,
    CheckpointTimeoutError,
    CheckpointWriteError,
    CheckpointWriter,
    NonFiniteCheckpointError,
    OwnRows,
    Snapshot,
    list_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    verify_checkpoint,
)
from adadistill.core.checkpoints import attempt as checkpoint_attempt
from adadistill.core.checkpoints import files as checkpoint_files
from adadistill.core.checkpoints import writer as checkpoints
from adadistill.core.checkpoints.files import row_range

TESTS = Path(__file__).resolve().parents[2]


def snapshot_of(step: int, rank: int = 0) -> Snapshot:
    """Every tensor tells the step; 7 rows do not divide by 2 or 3 ranks."""
    return Snapshot(
        model={"weight": torch.full((8, 8), float(step))},
        optimiser={"momentum.weight": torch.full((8, 8), -float(step))},
        optimiser_json={"lr": 0.1},
        row_sharded={"centres": torch.arange(21.0).reshape(7, 3) + step},
        rank_state={"rank": rank},
        state={"step": step},
    )


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def save_one(folder: Path, step: int, **arguments: object) -> Path:
    with CheckpointWriter(folder, **({"keep": 3} | arguments)) as writer:
        writer.save(step, snapshot_of(step))
    return folder / f"step-{step:08d}"


# --- What is saved


def test_every_dtype_and_layout_survives_bit_for_bit(tmp_path):
    base = torch.randn(6, 4, dtype=torch.float64)
    nan_free_bits = torch.randint(-(2**15), 2**15, (64,), dtype=torch.int16)
    bfloat16 = nan_free_bits.view(torch.bfloat16)
    bfloat16 = torch.where(bfloat16.isfinite(), bfloat16, 0)
    model = {
        "float32": torch.randn(3, 5),
        "negative_zero_and_denormal": torch.tensor([-0.0, 1e-45, 3e38]),
        "float64": base,
        "shares_storage": base[2:4],
        "same_tensor_again": base,
        "bfloat16": bfloat16,
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "scalar_count": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(4, 7).T,
        "strided": torch.randn(10)[::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(5, Snapshot(model=model, row_sharded={"centres": base.T}))
    loaded = load_checkpoint(tmp_path / "step-00000005")

    assert set(loaded.model) == set(model)
    for name, tensor in model.items():
        found = loaded.model[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (found, tensor))), name
    assert torch.equal(loaded.row_sharded["centres"], base.T)
    storages = {tensor.untyped_storage().data_ptr() for tensor in loaded.model.values() if tensor.numel()}
    assert len(storages) == sum(tensor.numel() > 0 for tensor in model.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_the_device_are_copied_at_once(tmp_path):
    model = {
        str(dtype): torch.randn(2, 3, 64, 64, device="cuda").to(dtype, memory_format=torch.channels_last)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    }
    before = {name: tensor.cpu() for name, tensor in model.items()}
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, Snapshot(model=model, row_sharded={"centres": model["torch.bfloat16"]}))
        for tensor in model.values():
            tensor.zero_()
        model["torch.float16"][1, 2, 3, 4] = float("nan")
        with pytest.raises(NonFiniteCheckpointError, match=r"model `torch\.float16`"):
            writer.save(2, Snapshot(model=model))
    loaded = load_checkpoint(tmp_path / "step-00000001")
    assert all(torch.equal(loaded.model[name], tensor) for name, tensor in before.items())


def test_json_comes_back_as_it_was(tmp_path):
    state = {"float": 0.1 + 0.2, "tiny": 5e-324, "big": 2**80, "none": None, "text": "ε\n\ud800", "list": [1, [True]]}
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, Snapshot(model={}, state=state, optimiser_json={"t": (1, 2)}, rank_state={"rng": "ff"}))
    loaded = load_checkpoint(tmp_path / "step-00000001")
    assert loaded.state == state
    assert loaded.optimiser_json == {"t": [1, 2]}
    assert loaded.rank_states == [{"rng": "ff"}]


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Nothing is written before it is set."""
    gate, write = threading.Event(), checkpoint_attempt.write_bytes
    monkeypatch.setattr(checkpoint_attempt, "write_bytes", lambda *a: (gate.wait(10), write(*a))[1])
    return gate


def test_changes_after_save_do_not_reach_the_checkpoint(tmp_path, gate):
    snapshot = snapshot_of(1)
    state = {"nested": {"epoch": 1}}
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, Snapshot(model=snapshot.model, row_sharded=snapshot.row_sharded, state=state))
        for tensor in (*snapshot.model.values(), *snapshot.row_sharded.values()):
            tensor.fill_(99.0)
        state["nested"]["epoch"] = 99
        gate.set()
    loaded = load_checkpoint(tmp_path / "step-00000001")
    assert torch.equal(loaded.model["weight"], snapshot_of(1).model["weight"])
    assert torch.equal(loaded.row_sharded["centres"], snapshot_of(1).row_sharded["centres"])
    assert loaded.state == {"nested": {"epoch": 1}}


def test_a_second_save_waits_for_the_first(tmp_path, gate):
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(1, snapshot_of(1))
        assert saved_steps(tmp_path) == []
        threading.Timer(0.1, gate.set).start()
        writer.save(2, snapshot_of(2))
        assert 1 in saved_steps(tmp_path)
    assert saved_steps(tmp_path) == [1, 2]


def test_a_step_just_saved_is_not_written_again(tmp_path):
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(1, snapshot_of(1))
        writer.wait()
        before = (tmp_path / "step-00000001" / "MANIFEST.json").stat().st_ino
        writer.save(1, snapshot_of(1))
    assert (tmp_path / "step-00000001" / "MANIFEST.json").stat().st_ino == before


@pytest.mark.parametrize(
    ("kind", "value", "dtype"),
    [
        ("model", float("nan"), torch.float32),
        ("optimiser", float("inf"), torch.bfloat16),
        ("row_sharded", -float("inf"), torch.float64),
    ],
)
def test_a_non_finite_tensor_is_refused_by_name_and_nothing_is_written(tmp_path, kind, value, dtype):
    bad = torch.zeros(5, 3, dtype=dtype)
    bad[4, 2] = value
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(1, snapshot_of(1))
        with pytest.raises(NonFiniteCheckpointError, match=f"{kind} `bad` holds NaN or infinity"):
            writer.save(2, Snapshot(**({"model": {}} | {kind: {"bad": bad}})))
        writer.save(3, snapshot_of(3))
    assert saved_steps(tmp_path) == [1, 3]


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [
        (Snapshot(model={}, state={"epochs": {3: 1}}), "state.epochs has the key 3"),
        (Snapshot(model={}, state={"best": [1.0, float("nan")]}), r"state.best\[1\] is nan"),
        (Snapshot(model={}, rank_state={"rng": b"00"}), "rank_state.rng is a bytes"),
        (Snapshot(model={}, state={"loss": torch.tensor(1.0)}), "state.loss is a Tensor"),
        (Snapshot(model={"a": torch.zeros(2, dtype=torch.complex64)}), "model `a` cannot be stored"),
        (Snapshot(model={"a": torch.zeros(2, 2).to_sparse()}), "model `a` cannot be stored"),
        (Snapshot(model={"a": torch.zeros(2, device="meta")}), "model `a` cannot be stored"),
        (Snapshot(model={"__metadata__": torch.zeros(2)}), "safetensors keeps for itself"),
        (Snapshot(model={}, row_sharded={"../up": torch.zeros(2, 2)}), "must be named in"),
        (Snapshot(model={}, row_sharded={"centres": torch.tensor(1.0)}), "have rows"),
    ],
)
def test_what_cannot_be_stored_exactly_is_refused_at_the_door(tmp_path, snapshot, message):
    with (
        CheckpointWriter(tmp_path, keep=1) as writer,
        pytest.raises((ValueError, NonFiniteCheckpointError), match=message),
    ):
        writer.save(1, snapshot)
    assert list(tmp_path.iterdir()) == []


# --- Several ranks


def on_ranks(
    world_size: int, action: Callable[[CheckpointWriter, int], object], folder: Path, **more: Any
) -> list[Any]:
    """What an action with each rank's writer gives, or its error as text; the writers are closed by then."""

    def run(rank: int) -> Any:
        settings = {"keep": 3, "run_token": "run", "peer_timeout_s": 20} | more
        writer = CheckpointWriter(folder, rank=rank, world_size=world_size, **settings)
        try:
            given = action(writer, rank)
            writer.close()
            return given
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


def save_on_ranks(folder: Path, step: int, world_size: int, token: str = "run") -> None:
    on_ranks(world_size, lambda writer, rank: writer.save(step, snapshot_of(step, rank)), folder, run_token=token)


@pytest.mark.parametrize("world_size", [3, 9])
def test_shards_of_any_number_of_ranks_load_as_the_whole(tmp_path, world_size):
    save_on_ranks(tmp_path, 4, world_size)
    path = tmp_path / "step-00000004"

    loaded = load_checkpoint(path)

    assert torch.equal(loaded.row_sharded["centres"], snapshot_of(4).row_sharded["centres"])
    assert loaded.rank_states == [{"rank": rank} for rank in range(world_size)]
    assert len(list(path.glob(f"centres-*-of-{world_size:02d}.safetensors"))) == world_size
    assert not list(path.glob("done-*")), "notes between ranks are no part of a checkpoint"
    verify_checkpoint(path)


def test_leftovers_of_killed_runs_are_never_mixed_in_and_are_removed(tmp_path):
    source = tmp_path / "other"
    save_on_ranks(source, 4, 3, token="old")
    for name in (".tmp-step-00000004-old-1", ".tmp-step-00000004-older-2", ".trash-step-00000001-old-1"):
        shutil.copytree(source / "step-00000004", tmp_path / "run" / name)
        for rank in (1, 2):
            (tmp_path / "run" / name / f"done-{rank:02d}.json").write_text('{"shapes": {}, "files": []}')
            (tmp_path / "run" / name / f"failed-{rank:02d}.json").write_text('{"error": "old"}')
    (tmp_path / "run" / ".tmp-mine").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("keep me")

    save_on_ranks(tmp_path / "run", 4, 2, token="new")

    assert {path.name for path in (tmp_path / "run").iterdir()} == {"step-00000004", ".tmp-mine", "notes.txt"}
    loaded = load_checkpoint(tmp_path / "run" / "step-00000004")
    assert len(loaded.rank_states) == 2
    assert torch.equal(loaded.row_sharded["centres"], snapshot_of(4).row_sharded["centres"])


def test_leftovers_go_when_a_run_starts_again_even_if_it_never_saves(tmp_path):
    save_one(tmp_path, 1)
    for name in (".trash-step-00000000-old-1", ".tmp-step-00000002-old-2", ".tmp-step-00000002-run-1", "notes"):
        (tmp_path / name).mkdir()
    CheckpointWriter(tmp_path, keep=1, rank=1, world_size=2, run_token="run").close()
    assert len(list(tmp_path.iterdir())) == 5, "rank 0 alone removes"
    CheckpointWriter(tmp_path, keep=1, rank=0, world_size=2, run_token="run").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-step-00000002-run-1", "notes", "step-00000001"]


def test_one_rank_that_cannot_write_is_an_error_on_all_ranks_and_the_next_save_works(tmp_path, monkeypatch):
    write = checkpoint_attempt.write_tensors
    broken = threading.Event()

    def write_tensors(path, *arguments):
        if broken.is_set() and "-01-of-03" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments)

    monkeypatch.setattr(checkpoint_attempt, "write_tensors", write_tensors)
    meeting = threading.Barrier(3)

    def act(writer: CheckpointWriter, rank: int) -> str:
        writer.save(1, snapshot_of(1, rank))
        writer.wait()
        meeting.wait()
        broken.set()
        writer.save(2, snapshot_of(2, rank))
        with pytest.raises(CheckpointError) as error:
            writer.wait()
        meeting.wait()
        broken.clear()
        writer.save(3, snapshot_of(3, rank))
        return f"{type(error.value).__name__}: {error.value}"

    started = time.monotonic()
    errors = on_ranks(3, act, tmp_path)
    assert time.monotonic() - started < 10, "nobody may wait for the time-out"
    assert errors[1].startswith("CheckpointWriteError")
    for rank in (0, 2):
        assert "rank 1 failed with" in errors[rank] or "rank 0 failed with" in errors[rank]
    assert all("No space left on device" in error for error in errors)
    assert saved_steps(tmp_path) == [1, 3]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _state_of_nan(rank: int) -> Snapshot:
    return Snapshot(model={}, state={"loss": float("nan")} if rank == 0 else {})


def _rows_of_nan(rank: int) -> Snapshot:
    rows = torch.full((2, 2), float("nan") if rank else 1.0)
    return Snapshot(model={}, row_sharded={"centres": OwnRows(rows, 4)})


@pytest.mark.parametrize(
    ("snapshot", "rank", "told"),
    [(_state_of_nan, 0, "state.loss is nan; it is not saved"), (_rows_of_nan, 1, "row_sharded `centres` holds NaN")],
)
def test_a_rank_that_refuses_its_snapshot_is_an_error_on_all_ranks(tmp_path, snapshot, rank, told):
    errors = on_ranks(2, lambda writer, rank: writer.save(1, snapshot(rank)), tmp_path)
    assert errors[rank].startswith(f"NonFiniteCheckpointError: {told}")
    assert f"rank {rank} failed with NonFiniteCheckpointError: {told}" in errors[1 - rank]
    assert saved_steps(tmp_path) == []


def test_ranks_that_disagree_about_the_arrays_are_refused(tmp_path):
    def act(writer: CheckpointWriter, rank: int) -> None:
        writer.save(1, Snapshot(model={}, row_sharded={"centres": torch.zeros(4 + rank, 2)}))

    assert all("rank 1 has {'centres': 'torch.float32 (5, 2)'}" in error for error in on_ranks(2, act, tmp_path))


def save_own_rows(
    folder: Path, array: torch.Tensor, world_size: int, totals: dict[int, int] | None = None
) -> list[str | None]:
    """Every rank gives its own rows and nothing else."""

    def act(writer: CheckpointWriter, rank: int) -> None:
        rows = array[slice(*row_range(len(array), rank, world_size))].clone()
        total = (totals or {}).get(rank, len(array))
        writer.save(1, Snapshot(model={}, row_sharded={"centres": OwnRows(rows, total)}))

    return on_ranks(world_size, act, folder)


# 7 rows: no multiple of the ranks, and fewer than 9 of them, some of which then have none.
@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_own_rows_make_the_files_of_the_whole_array_and_are_read_on_any_number_of_ranks(tmp_path, world_size):
    array = torch.randn(7, 3)
    save_own_rows(tmp_path / "own", array, world_size)
    whole = Snapshot(model={}, row_sharded={"centres": array})
    on_ranks(world_size, lambda writer, rank: writer.save(1, whole), tmp_path / "whole")
    own, whole = (tmp_path / name / "step-00000001" for name in ("own", "whole"))
    assert own.joinpath("MANIFEST.json").read_bytes() == whole.joinpath("MANIFEST.json").read_bytes()

    assert torch.equal(load_checkpoint(own).row_sharded["centres"], array)
    for readers in (1, 2, 4, 9):
        for rank in range(readers):
            found = load_checkpoint(own, own_rows_of=(rank, readers)).row_sharded["centres"]
            assert found.total == 7
            assert torch.equal(found.rows, array[slice(*row_range(7, rank, readers))])
            newest, skipped = newest_valid_checkpoint(tmp_path / "own", own_rows_of=(rank, readers))
            assert torch.equal(newest.row_sharded["centres"].rows, found.rows)
            assert skipped == []


def test_own_rows_are_read_without_memory_for_the_whole(tmp_path, monkeypatch):
    save_own_rows(tmp_path, torch.randn(90, 4), 3)
    asked = []
    empty = checkpoint_files.empty_tensor
    monkeypatch.setattr(
        checkpoint_files, "empty_tensor", lambda shape, dtype: asked.append(shape) or empty(shape, dtype)
    )
    load_checkpoint(tmp_path / "step-00000001", own_rows_of=(1, 2))
    assert asked == [(45, 4)]


def test_damage_in_rows_that_a_rank_does_not_read_is_found_all_the_same(tmp_path):
    save_own_rows(tmp_path, torch.randn(90, 4), 3)
    path = tmp_path / "step-00000001" / "centres-02-of-03.safetensors"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    for rank in range(3):
        with pytest.raises(CheckpointError, match=r"centres-02-of-03\.safetensors has sha256"):
            load_checkpoint(tmp_path / "step-00000001", own_rows_of=(rank, 3))


def test_own_rows_that_are_not_the_rank_s_share_are_refused(tmp_path):
    with (
        CheckpointWriter(tmp_path, keep=1) as writer,
        pytest.raises(ValueError, match="gives 4 of 5 rows, but rows 0 to 5"),
    ):
        writer.save(1, Snapshot(model={}, row_sharded={"centres": OwnRows(torch.zeros(4, 2), 5)}))
    # 7 and 8 rows: the first of two ranks has 3 and 4, the second 4 in either case.
    errors = save_own_rows(tmp_path, torch.zeros(7, 2), 2, totals={1: 8})
    assert all("rank 1 has {'centres': 'torch.float32 (8, 2)'}" in error for error in errors)
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize(("rank", "missing"), [(0, "files of rank 1"), (1, "from rank 0")])
def test_waiting_for_a_dead_rank_ends_with_an_error_that_names_it(tmp_path, rank, missing):
    writer = CheckpointWriter(tmp_path, keep=3, rank=rank, world_size=2, run_token="t", peer_timeout_s=0.2)
    writer.save(1, snapshot_of(1))
    with pytest.raises(CheckpointTimeoutError, match=missing):
        writer.close()
    assert saved_steps(tmp_path) == []


def save_and_fail(writer: CheckpointWriter) -> None:
    with writer:
        writer.save(1, snapshot_of(1))
        raise ZeroDivisionError


def test_leaving_by_an_exception_does_not_wait_long_for_other_ranks(tmp_path, monkeypatch):
    shorten = checkpoint_attempt.Patience.shorten
    monkeypatch.setattr(checkpoint_attempt.Patience, "shorten", lambda self, limit_s: shorten(self, limit_s / 50))
    started = time.monotonic()
    writer = CheckpointWriter(tmp_path, keep=3, rank=0, world_size=2, run_token="t")
    with pytest.raises(ZeroDivisionError):
        save_and_fail(writer)
    assert time.monotonic() - started < 5


def test_leaving_by_an_exception_still_finishes_the_save_in_flight(tmp_path):
    with pytest.raises(ZeroDivisionError):
        save_and_fail(CheckpointWriter(tmp_path, keep=3))
    assert saved_steps(tmp_path) == [1]


# --- Failing disks


def test_a_background_error_surfaces_at_the_next_save_once_and_older_checkpoints_stay(tmp_path, monkeypatch):
    def no_space(path, *_):
        raise OSError(28, "No space left on device", str(path))

    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, snapshot_of(1))
        writer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_attempt, "write_tensors", no_space)
            writer.save(2, snapshot_of(2))
            while not writer.failed:  # soon known to who asks, long before the next save is due
                time.sleep(0.001)
            with pytest.raises(CheckpointWriteError, match=r"step 2 .*model\.safetensors: No space left on device"):
                writer.save(3, snapshot_of(3))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "the room is given back"
        writer.save(4, snapshot_of(4))
    assert saved_steps(tmp_path) == [4]


def test_a_background_error_surfaces_at_close(tmp_path):
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=1)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("a file in the place of the folder: nothing can be written, root or not")
    writer.save(1, snapshot_of(1))
    with pytest.raises(CheckpointWriteError, match="Not a directory"):
        writer.close()


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="cannot create the checkpoint folder"):
        CheckpointWriter(tmp_path / "file" / "checkpoints", keep=1)


FULL_DISK = """
import resource, sys
from pathlib import Path
import tests_support; tests_support.make_importable()
import torch
from adadistill.core.checkpoints import *
folder = Path(sys.argv[1])
snapshot = lambda size: Snapshot(model={"w": torch.zeros(size)})
writer = CheckpointWriter(folder, keep=1)
writer.save(1, snapshot(10)); writer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))    # no file may grow past 64 KiB
writer.save(2, snapshot(1 << 20))
try:
    writer.close()
except CheckpointWriteError as error:
    print(error)
"""


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [forked_python(), "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_write_cut_off_by_the_system_leaves_the_older_checkpoint(tmp_path):
    done = run_script(FULL_DISK, tmp_path)
    assert "model.safetensors: File too large. Older ones are untouched" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    verify_checkpoint(tmp_path / "step-00000001")


KILL_LOOP = """
import os, random, signal, sys, time
from pathlib import Path
import tests_support; tests_support.make_importable()
import torch
torch.set_num_threads(1)
from adadistill.core.checkpoints import *
folder = Path(sys.argv[1])
draw = random.Random(int(sys.argv[2]))
start = 0
for _ in range(int(sys.argv[3])):
    reader, writer_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with CheckpointWriter(folder, keep=2) as writer:
            for step in range(start, start + 100_000):         # first the step of the last checkpoint once more
                writer.save(step, Snapshot(model={"w": torch.full((20_000,), float(step))}, state={"step": step}))
                writer.wait()
                os.write(writer_end, step.to_bytes(8, "little"))
    os.close(writer_end)
    os.read(reader, 8)
    time.sleep(draw.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = b""
    while piece := os.read(reader, 1 << 16):
        rest += piece
    os.close(reader)
    completed = int.from_bytes(rest[-8:], "little") if rest else start
    checkpoint, skipped = newest_valid_checkpoint(folder)
    assert checkpoint is not None and checkpoint.step >= completed, (checkpoint, completed)
    assert not skipped, skipped
    assert checkpoint.state == {"step": checkpoint.step} and (checkpoint.model["w"] == checkpoint.step).all()
    print("killed after", completed, "newest", checkpoint.step, sorted(path.name for path in folder.iterdir()))
    start = checkpoint.step
"""


def test_kill_9_at_any_moment_leaves_the_last_completed_save_or_a_newer_one(tmp_path):
    done = run_script(KILL_LOOP, tmp_path, random.Random().randrange(10**6), 6)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed after") == 6


# --- Rotation


def test_a_damaged_checkpoint_neither_counts_nor_is_deleted(tmp_path, caplog):
    for step in (1, 2, 3):
        save_one(tmp_path, step, keep=9)
    with open(tmp_path / "step-00000003" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")

    save_one(tmp_path, 4, keep=2)

    assert saved_steps(tmp_path) == [2, 3, 4], "2 is the second newest valid one"
    assert "a damaged checkpoint does not count" in caplog.text


def test_what_is_not_ours_is_never_deleted(tmp_path):
    save_one(tmp_path, 1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "holiday.jpg").write_bytes(b"photo")
    (tmp_path / "elsewhere").mkdir()
    outside = save_one(tmp_path / "elsewhere", 3)
    (tmp_path / "step-00000003").symlink_to(outside)
    (tmp_path / "best").mkdir()

    save_one(tmp_path, 10, keep=1)

    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000002", "step-00000003", "step-00000010", "elsewhere", "best",
    }  # fmt: skip
    assert (tmp_path / "step-00000002" / "holiday.jpg").read_bytes() == b"photo"
    verify_checkpoint(outside)


def test_a_run_that_went_back_keeps_its_new_checkpoint_and_the_later_ones(tmp_path, caplog):
    for step in (10, 20, 30):
        save_one(tmp_path, step, keep=9)
    save_one(tmp_path, 15, keep=1)
    assert saved_steps(tmp_path) == [15, 20, 30]
    assert "is of a later step than the one just saved" in caplog.text


def test_between_the_two_renames_of_a_replacement_the_earlier_one_is_found(tmp_path, monkeypatch):
    save_one(tmp_path, 4)
    save_one(tmp_path, 5)
    rename = os.rename
    seen = []

    def rename_and_look(source, target):
        rename(source, target)
        if ".replaced-" in str(target):
            seen.append(newest_valid_checkpoint(tmp_path))

    monkeypatch.setattr(checkpoint_attempt.os, "rename", rename_and_look)
    save_one(tmp_path, 5)
    (checkpoint, skipped), *_ = seen
    assert (checkpoint.step, skipped) == (5, [])
    assert saved_steps(tmp_path) == [4, 5], "and nothing else"


def test_a_damaged_step_written_again_is_set_aside(tmp_path):
    path = save_one(tmp_path, 5)
    (path / "state.json").write_text("{}")
    save_one(tmp_path, 5)
    verify_checkpoint(path)
    checkpoint, skipped = newest_valid_checkpoint(tmp_path)
    assert checkpoint.path == path
    assert skipped == []
    assert len(list(tmp_path.glob("step-00000005.replaced-*"))) == 1


def test_a_failing_delete_is_a_warning_and_is_made_up_for_later(tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, snapshot_of(1))
        writer.wait()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(checkpoints.shutil, "rmtree", refuse)
            writer.save(2, snapshot_of(2))
            writer.wait()
        assert "could not delete the old checkpoint" in caplog.text
        assert saved_steps(tmp_path) == [2]
        writer.save(3, snapshot_of(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


# --- Arguments


def test_settings_are_checked():
    assert CheckpointConfig() == CheckpointConfig(every_steps=None, every_epochs=1, keep=3)
    for arguments in ({"every_steps": 0}, {"every_epochs": -1}, {"keep": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least 1"):
            CheckpointConfig(**arguments)


@pytest.mark.parametrize(
    ("config", "due"),
    [
        (CheckpointConfig(), [10, 20, 30]),
        (CheckpointConfig(every_epochs=2), [20]),
        (CheckpointConfig(every_epochs=None, every_steps=7), [7, 14, 21, 28]),
        (CheckpointConfig(every_epochs=None), []),
        (CheckpointConfig(every_steps=15), [10, 15, 20, 30]),
    ],
)
def test_saves_fall_due_by_steps_and_by_epochs(config, due):
    assert [step for step in range(31) if config.is_due(step, steps_per_epoch=10)] == due


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, "keep must be"),
        ({"rank": 1}, "rank must be in"),
        ({"world_size": 2}, "run_token must be given"),
        ({"run_token": "../x"}, "letters and digits"),
    ],
)
def test_writer_arguments_are_checked(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointWriter(tmp_path, **({"keep": 1} | arguments))


def test_a_rank_that_looks_for_failures_does_not_trip_over_the_rename_that_completes_the_save(tmp_path):
    attempt = checkpoint_attempt.Attempt(tmp_path, 4, "t", 1, 1, 2, checkpoint_attempt.Patience(20))
    attempt.temporary.mkdir()
    ends = threading.Event()

    def rename() -> None:
        while not ends.is_set():
            attempt.temporary.rename(attempt.final)
            attempt.final.rename(attempt.temporary)

    renaming = threading.Thread(target=rename)
    renaming.start()
    try:
        for _ in range(2_000):
            attempt._raise_if_another_failed()
    finally:
        ends.set()
        renaming.join()
    (attempt.temporary / "failed-00.json").write_text('{"error": "the disk is full"}')
    with pytest.raises(CheckpointError, match=r"step 4: rank 0 failed with the disk is full"):
        attempt._raise_if_another_failed()
