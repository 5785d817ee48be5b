"""Being started again by torchrun: how often, by which agent, and over which store the processes find each other.

`torchrun --max-restarts=N` starts all processes again when one has died. A restart may also follow a first attempt that
was refused because the folder holds a run of somebody else. So a launch has tokens, one for each agent of torchrun (the
parent of a node's processes, which lives on through restarts), and writes them into the folder where it begins or
continues a run. A restart that finds one of its own there may go on.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path

import torch.distributed as dist


def restart_count() -> int:
    """How often this node's agent has started its processes again after one had died; 0 without torchrun.

    Agents count for themselves: what restarts because another node's process has died is not told so.
    """
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def agent_token() -> str:
    """Names the agent of torchrun that started this process, the same through its restarts; empty without torchrun.

    A hash of the launch's id and of the agent as a process of its machine: nothing can be read from it.
    """
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return ""
    parent = os.getppid()
    fields = process_fields(parent)
    facts = [launch, str(parent), text_of("/proc/sys/kernel/random/boot_id"), fields[19] if fields else ""]
    return hashlib.blake2b("\0".join(facts).encode(), digest_size=16).hexdigest()


def store_of_restart(timeout: datetime.timedelta) -> dist.Store | None:
    """Where restarted processes of one node tell each other their addresses; None where torch's own place will do.

    torchrun lends its store to the processes and keeps it over restarts, and torch does not tell one attempt's entries
    from the next's (pytorch/pytorch#135712): processes now and then took addresses of the dead for each other's, and
    waited. Here each attempt has a part of its own. On several nodes there is no count that all agents share;
    `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` in torchrun's environment makes a new store for each attempt.
    """
    restarts = restart_count()
    lent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if restarts == 0 or not lent or os.environ.get("GROUP_WORLD_SIZE") != "1" or not (address and port.isdecimal()):
        return None
    store = dist.TCPStore(address, int(port), is_master=False, timeout=timeout)
    return dist.PrefixStore(f"adadistill/restart-{restarts}", store)


def process_fields(process: int) -> list[str]:
    """What `/proc/PID/stat` says after the name: [0] is the state, [19] when it began, in ticks since boot, which tells
    it from an earlier process of its number. Empty where the system hides it.
    """
    _, _, fields = text_of(f"/proc/{process}/stat").rpartition(")")  # a name before it may hold anything
    return fields.split() if len(fields.split()) > 19 else []


def text_of(path: str) -> str:
    """A file of the system, stripped; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no Linux
        return ""
