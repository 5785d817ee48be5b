"""How many CPU threads a process computes with, and how they wait for one another.

torch splits every operation over as many threads as the host has cores, and each waits at the end of every operation,
spinning, for the slowest. That is fastest on a machine of one's own, and up to ten times slower than one thread where
other work takes a core, or where a container may use fewer cores than it sees. So the count starts from what this
process may really use, ranks of a host share it, and a run on the CPU tries it out before its first step.

The bits of a result depend on the count. It is fixed when a run starts, written to `environment.json`, kept on resume,
and `OMP_NUM_THREADS` overrides it.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from adadistill.loaders.usable_cpus import usable_cpus

if TYPE_CHECKING:
    from adadistill.core.distributed import Ranks

_log = logging.getLogger(__name__)

_OURS = "ADADISTILL_OMP_NUM_THREADS"
"""Environment: the OMP_NUM_THREADS that `before_torch_loads` set, so that children do not take it for the user's."""
_SPINS = "1000"
"""Turns that a waiting thread of GNU OpenMP spins before it sleeps. The default, 300,000, long holds a core that
the thread waited for may be in need of. How long a turn is differs by processor, and was not measured."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_TRIAL_S = 3.0
_ROUNDS = 5
_WORTH = 1.03
"""More threads must be this much faster than fewer: whatever else comes to the machine later hurts many more."""


def before_torch_loads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the number of threads and their waiting policy for this process, where the user has said nothing about them.

    An entry point calls it first: OpenMP reads its environment when it is loaded, which torch does.
    """
    if not any(name in environment for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = _SPINS
        environment["KMP_BLOCKTIME"] = "1"  # milliseconds; of LLVM's and Intel's OpenMP, 200 by default
    if stated_threads(environment) is None:
        environment["OMP_NUM_THREADS"] = environment[_OURS] = str(host_share(environment))


def stated_threads(environment: MutableMapping[str, str] = os.environ) -> int | None:
    """Threads that the user asked for by OMP_NUM_THREADS; None where nobody did: torchrun and we set it too."""
    stated = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not stated.isdigit() or int(stated) < 1 or environment.get(_OURS) == stated or _set_by_torchrun(environment):
        return None
    return int(stated)


def host_share(environment: MutableMapping[str, str] = os.environ) -> int:
    """This process's part of the processors that it and its host's other ranks may use, at least 1."""
    processes = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, usable_cpus() // max(1, int(processes) if processes.isdigit() else 1))


def recorded_threads(environment_file: Path) -> int | None:
    """Threads that the last start noted in a run's `environment.json` had; None where it does not say."""
    try:
        content = json.loads(environment_file.read_text(encoding="utf-8"))
        found = [content, *content["resumed"]][-1]["threads"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return found if isinstance(found, int) and 1 <= found <= 4096 else None


def settle_threads(recorded: int | None, trial: Callable[[], object] | None, ranks: Ranks) -> int:
    """Fix the number of threads of a run, and say why where it is worth a line. All ranks call it together.

    The user's word comes first; then what an earlier start of the run had; then, on the CPU, what is fastest now. All
    ranks take the least count of any, so that one number describes the run.

    Args:
        recorded: by the start that this one continues, None for a new run.
        trial: does a part of a training step, to be timed; None keeps this process's share without trying.

    Returns:
        The count, which torch now computes with.
    """
    import torch

    from adadistill.core.distributed import gather_texts

    stated, share = stated_threads(), host_share()
    if stated is not None:
        chosen = stated
    elif recorded is not None and recorded <= share:
        chosen = recorded
    elif recorded is None and trial is not None and share > 1:
        chosen = fastest_count(trial, share)
    else:
        chosen = share
    chosen = min(int(count) for count in gather_texts(str(chosen), ranks))
    if recorded is not None and chosen != recorded and ranks.is_main:
        _log.warning(
            "%d CPU threads, %d before: results continue within rounding, not to the same bits. OMP_NUM_THREADS=%d "
            "keeps the count",
            chosen,
            recorded,
            recorded,
        )
    torch.set_num_threads(chosen)
    return chosen


def fastest_count(work: Callable[[], object], most: int) -> int:
    """The number of threads, of `most` and its halves down to 1, with which `work` takes the least time here and now.

    Counts take turns, so that whatever else the machine does meets all of them. It takes about three seconds, or two
    turns where these take longer.
    """
    import torch

    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    took: dict[int, list[float]] = {count: [] for count in counts}
    ends = time.monotonic() + _TRIAL_S
    for turn in range(_ROUNDS + 1):
        for count in counts:
            torch.set_num_threads(count)
            started = time.perf_counter()
            work()
            if turn > 0:  # the first one allocates, and chooses algorithms
                took[count].append(time.perf_counter() - started)
        if turn > 0 and time.monotonic() > ends:
            break
    means = {count: statistics.fmean(times) for count, times in took.items()}
    best = min(means.values())
    chosen = min(count for count, mean in means.items() if mean <= best * _WORTH)
    _log.info(
        "%d CPU thread(s): tried %s",
        chosen,
        ", ".join(f"{count} ({1e3 * mean:.0f} ms)" for count, mean in means.items()),
    )
    return chosen


def _set_by_torchrun(environment: MutableMapping[str, str]) -> bool:
    """Whether torchrun set OMP_NUM_THREADS, as it does to 1 for several processes: its own environment had none."""
    if "TORCHELASTIC_RUN_ID" not in environment or environment.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")}
    except OSError:  # not on Linux, or not ours to see
        return False
    return b"OMP_NUM_THREADS" not in names
