"""Ranks, their process group, and the few collectives that training needs.

torchrun says who we are through the environment (RANK, WORLD_SIZE, LOCAL_RANK); without it a run is one process and no
group is made. Collectives keep global batch order: rank 0's rows first.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adadistill.core.checkpoints.files import row_range
from adadistill.core.training.heartbeat import beat
from adadistill.core.training.restarts import store_of_restart
from adadistill.core.training.stop_signal import StopRequested, current_stop
from adadistill.kernels.margin_softmax import ClassShard
from adadistill.loaders.errors import Refused, WorkFailed

T = TypeVar("T")

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=20)
"""Longer than any evaluation or checkpoint between two collectives, short enough that a dead rank ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Who this process is among all processes of the run, and the device it computes on."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """True on the one rank that speaks and writes shared files."""
        return self.rank == 0


class LaunchError(Refused, RuntimeError):
    """The environment or the device does not fit a launch."""


class LostRankError(WorkFailed, RuntimeError):
    """Another rank of the run is gone: killed, out of memory, or its machine cannot be reached."""


_LOST = re.compile(r"(closed|reset) by peer|broken pipe|remote process exited", re.IGNORECASE)
"""What gloo and NCCL write; there is no type of error for it."""


@contextmanager
def distributed_session(device: str | None = None) -> Iterator[Ranks]:
    """Read the ranks from the environment, choose the device, and hold a process group for as long as needed.

    Args:
        device: `cpu`, `cuda` (the local rank's), `cuda:N` (for all ranks), or None: CUDA where there is one.

    Raises:
        LaunchError: torchrun's variables are incomplete or out of range, or there is no such device.
        LostRankError: inside the block a collective failed because another rank is gone.
    """
    rank, world_size, local_rank = _ranks_from_environment()
    chosen = _device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ranks = Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=chosen)
    if world_size == 1:
        yield ranks
        return
    # NCCL refuses two ranks on one device; gloo carries CUDA tensors too, so shared-GPU tests still run.
    shared_gpu = chosen.type == "cuda" and (device or "").startswith("cuda:")
    backend = "nccl" if chosen.type == "cuda" and not shared_gpu else "gloo"
    dist.init_process_group(
        backend,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=chosen if backend == "nccl" else None,
        store=store_of_restart(COLLECTIVE_TIMEOUT),
        rank=rank,
        world_size=world_size,
    )
    try:
        yield ranks
    except RuntimeError as error:
        of_the_transport = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if not of_the_transport or _LOST.search(str(error)) is None:
            raise
        raise LostRankError(
            f"rank {rank} of {world_size} lost another rank, which was killed or ran out of memory: see what that one "
            "wrote last. The last checkpoint is intact; start all ranks again with --resume auto"
        ) from error
    finally:
        dist.destroy_process_group()


def announced_ranks(device: str | None = None) -> Ranks:
    """The ranks that `distributed_session` would hold, without making a process group.

    Raises:
        LaunchError: as `distributed_session`.
    """
    rank, world_size, local_rank = _ranks_from_environment()
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=_device(device, local_rank))


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """(B, ...) of every rank -> (R * B, ...) in rank order, equal on all ranks. No gradient flows through."""
    rows = rows.detach()
    if ranks.world_size == 1:
        return rows
    beat()  # each rank moves before it waits, so that the one that does not come is behind; also below
    gathered = rows.new_empty((ranks.world_size * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


def all_reduced(values: Tensor, how: Literal["sum", "max"], ranks: Ranks) -> Tensor:
    """The sum or the largest of every rank's tensor, a new one, equal in every bit on all ranks. Without gradient."""
    values = values.detach().clone()
    if ranks.world_size > 1:
        beat()
        dist.all_reduce(values, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return values


def class_shard(num_classes: int, ranks: Ranks) -> ClassShard:
    """This rank's part of the classes: contiguous, of sizes that differ by one at most, as its rows in checkpoints.

    Raises:
        ValueError: there are fewer classes than ranks.
    """
    if num_classes < ranks.world_size:
        raise ValueError(f"{num_classes} classes cannot be spread over {ranks.world_size} ranks")
    first, _ = row_range(num_classes, ranks.rank, ranks.world_size)
    return ClassShard(first, num_classes, lambda values, how: all_reduced(values, how, ranks))


def exchange_rows(send: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
    """Send each rank its own rows; every rank calls it with counts that fit together.

    Args:
        send: (sum of send_counts, ...) rows for rank 0 first.
        send_counts: rows for each rank; `receive_counts`: rows that each rank has for this one.

    Returns:
        (sum of receive_counts, ...) rows from rank 0 first.
    """
    received = send.new_empty((sum(receive_counts), *send.shape[1:]))
    dist.all_to_all_single(received, send.contiguous(), list(receive_counts), list(send_counts))
    return received


def average_(tensor: Tensor, ranks: Ranks) -> Tensor:
    """Replace a floating tensor by its mean over ranks, in place; equal bits on all ranks."""
    return start_average_(tensor, ranks)()


def start_average_(tensor: Tensor, ranks: Ranks) -> Callable[[], Tensor]:
    """Begin `average_` beside what is computed meanwhile; the call that it returns waits and gives the mean.

    Same bits as `average_`. The tensor must not be touched in between, and every rank must begin at the same place
    among its other collectives. Under NCCL the wait is one of the device, not of the host.
    """
    if ranks.world_size == 1:
        return lambda: tensor
    beat()
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None, "an asynchronous collective has a handle on every rank of the group"

    def finish() -> Tensor:
        work.wait()
        return tensor.div_(ranks.world_size)

    return finish


def barrier(ranks: Ranks) -> None:
    """Wait for every rank."""
    if ranks.world_size > 1:
        dist.barrier()


def broadcast_text(text: str, ranks: Ranks) -> str:
    """Rank 0's text on every rank."""
    if ranks.world_size == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def stop_requested(ranks: Ranks) -> bool:
    """Whether this rank, one of several, has been asked to stop: it may skip work up to the next `leave_together`."""
    stop = current_stop()
    return ranks.world_size > 1 and stop is not None and stop.requested


def leave_together(ranks: Ranks) -> None:
    """A place in an evaluation where every rank leaves if one of them was asked to; all ranks call it together.

    A rank that left alone would keep the others waiting in their next collective; in a training step the request
    travels with the step's values. Nothing is asked where nobody listens: a rank alone is interrupted wherever it is,
    and an entry point that has nothing to keep leaves at once, as its launcher signals every rank.

    Raises:
        StopRequested: on every rank.
    """
    stop = current_stop()
    if ranks.world_size == 1 or stop is None or stop.leaves_at_once:
        return
    if int(all_reduced(torch.tensor(int(stop.requested), device=ranks.device), "max", ranks)):
        raise StopRequested(stop.exit_code)


def run_on_main(action: Callable[[], T], ranks: Ranks) -> T:
    """What rank 0's call gives, or raises, on every rank: nobody waits for a rank that was refused."""
    if ranks.world_size == 1:
        return action()
    box: list[Any] = [None, None]
    if ranks.is_main:
        try:
            box[0] = action()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def rank_share(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of a rank's contiguous share of `count` things; shares differ by one at most."""
    return rank * count // world_size, (rank + 1) * count // world_size


def gather_texts(text: str, ranks: Ranks) -> list[str]:
    """Every rank's text, in rank order, on every rank."""
    if ranks.world_size == 1:
        return [text]
    found = [""] * ranks.world_size
    dist.all_gather_object(found, text)
    return found


def local_slice(global_rows: Tensor, ranks: Ranks) -> Tensor:
    """This rank's rows of something that `gather_rows` made, as a view."""
    local = global_rows.shape[0] // ranks.world_size
    return global_rows[ranks.rank * local : (ranks.rank + 1) * local]


def _ranks_from_environment() -> tuple[int, int, int]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    present = [name for name in names if name in os.environ]
    if not present or ("WORLD_SIZE" not in present and "RANK" not in present):
        return 0, 1, 0
    if os.environ.get("WORLD_SIZE") == "1" and os.environ.get("RANK", "0") == "0" and "LOCAL_RANK" not in present:
        return 0, 1, 0  # as notebooks and job systems set them for one process: nothing is left to be told
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in present)
        raise LaunchError(f"{missing} missing from the environment beside {', '.join(present)}; launch with torchrun")
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    except ValueError:
        raise LaunchError("RANK, WORLD_SIZE and LOCAL_RANK must be integers; launch with torchrun") from None
    if not 0 <= rank < world_size or local_rank < 0:
        raise LaunchError(f"RANK {rank}, WORLD_SIZE {world_size}, LOCAL_RANK {local_rank} do not fit together")
    return rank, world_size, local_rank


def _device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LaunchError(f"unknown device {name!r}; use cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise LaunchError(f"device {name!r} is not supported; use cpu, cuda or cuda:N")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} wants CUDA device {index}, this machine has {torch.cuda.device_count()}; "
            "start fewer processes per node or use --device cpu"
        )
    return torch.device("cuda", index)
