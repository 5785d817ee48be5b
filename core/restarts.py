"""Being started again by torchrun: which launch this is, and whether a run folder is one that it began.

`torchrun --max-restarts=N` starts all processes again when one has died. Only its restart count tells them so, and a
restart may also follow a first attempt that was refused because the folder holds a run of somebody else. So a launch
has tokens, one for each agent of torchrun (the parent of a node's processes, which lives on through restarts), and
writes them into the folder where it begins or continues a run. A restart that finds one of its own there may go on.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch.distributed as dist

from adadistill.core.distributed import Ranks


def restart_count() -> int:
    """How often torchrun has started the processes of this launch again; 0 without torchrun."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def launch_tokens(ranks: Ranks) -> list[str]:
    """One token for each agent of this launch, sorted, equal on all ranks; none without torchrun.

    A token is a hash, of the launch's id and of the agent as a process of its machine: nothing can be read from it.
    """
    own = _own_token()
    if ranks.world_size == 1:
        return [own] if own else []
    found: list[str] = [""] * ranks.world_size
    dist.all_gather_object(found, own)
    return sorted(set(found) - {""})


def _own_token() -> str:
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return ""
    parent = os.getppid()
    facts = [launch, str(parent), _text_of("/proc/sys/kernel/random/boot_id"), _start_of(parent)]
    return hashlib.blake2b("\0".join(facts).encode(), digest_size=16).hexdigest()


def _start_of(process: int) -> str:
    """When a process began, in ticks since boot, as its number may be used again; empty where the system hides it."""
    _, _, fields = _text_of(f"/proc/{process}/stat").rpartition(")")  # a name before it may hold anything
    return fields.split()[19] if len(fields.split()) > 19 else ""


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no Linux
        return ""
