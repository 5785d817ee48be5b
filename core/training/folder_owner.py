"""Who works in a run folder: one launch at a time, of all machines that share the file system.

`owner-N.json` names who took the folder as the N-th, and whoever left is `owner-N.released`; the highest number counts.
The next number is made exclusively, which one of many does, on NFS too. Numbers only grow, so nobody can take away a
file that was judged before somebody else moved. docs/reliability.md says who is taken for dead.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adadistill.core.report.text import one_line
from adadistill.core.training.restarts import process_fields, text_of
from adadistill.core.training.run_folder import RunFolderError
from adadistill.core.training.stop_signal import before_the_end
from adadistill.loaders.file_lock import try_lock

SILENT_S = 60.0
"""An owner on another machine that wrote within this time is alive, whatever is said; heartbeats come every 10 s."""

_NAME = re.compile(r"owner-([1-9][0-9]{0,17})\.(json|released)")
_MOST_BYTES = 64 << 10
_UNREADABLE_FOR_S = 2.0  # a file may be found half-written
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_ONE_KERNEL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})

_KINDS = {**dict.fromkeys(("host", "boot", "pid_namespace", "began", "since", "command"), str),
          "pid": int, "agents": list, "restarts": int, "locked": bool}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch as its main process's machine knows it: what another process needs to tell it dead."""

    host: str
    boot: str
    """Of the machine: process numbers begin anew with it. Containers number theirs in a `pid_namespace`."""
    pid_namespace: str
    pid: int
    began: str
    """Of the process, in ticks since boot: its number may be used again."""
    since: str
    command: str
    """For people; redacted."""
    agents: list[str]
    """Of torchrun, see `restarts.agent_token`, and how often they have started the launch again: `restarts`."""
    restarts: int
    locked: bool = False
    """Whether it holds the kernel's lock on its file as well."""


def this_launch(command: str, *, agents: Sequence[str] = (), restarts: int = 0) -> Launch:
    """This process as an owner; see `Launch`."""
    fields, namespace = process_fields(os.getpid()), ""
    with suppress(OSError):  # not on Linux
        namespace = os.readlink("/proc/self/ns/pid")
    since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Launch(
        host=socket.gethostname(), boot=text_of("/proc/sys/kernel/random/boot_id"), pid_namespace=namespace,
        pid=os.getpid(), began=fields[19] if fields else "", since=since, command=command, agents=list(agents),
        restarts=restarts,
    )  # fmt: skip


def refuse_owned(folder: Path, launch: Launch, *, take_over: bool = False) -> str:
    """See whether a launch may have the folder. Touches nothing.

    Args:
        take_over: the owner on another machine is said to be dead.

    Returns:
        Why an owner that did not give the folder back may be passed over; empty where there is none.

    Raises:
        RunFolderError: another launch works in there, or may.
    """
    number, held = _newest(folder)
    if not held:
        return ""
    owner = _read(folder / f"owner-{number}.json")
    if owner is None and _newest(folder) != (number, held):
        return refuse_owned(folder, launch, take_over=take_over)  # it was given back meanwhile
    if owner is None and not take_over:
        raise RunFolderError(
            f"{folder}/owner-{number}.json does not say whose the folder is: it is damaged. See that no launch works "
            "there, then start with --take-over"
        )
    if owner is None:
        return f"{folder}/owner-{number}.json is damaged and is passed over, as told"
    who = f"process {owner.pid} on {one_line(owner.host)}, since {one_line(owner.since)} ({one_line(owner.command)})"
    if owner.restarts < launch.restarts and any(agent in owner.agents for agent in launch.agents):
        return f"{folder} goes on from an earlier attempt of this launch: {who}"
    alive = _is_alive(owner, launch, folder, number)
    if alive is False:
        return f"{folder} was left by {who}, which is dead; it is taken over"
    quiet_s = _quiet_s(folder, number)
    last = f"It last wrote there {quiet_s:.0f} s ago"
    if alive:
        raise RunFolderError(
            f"{folder} belongs to a launch that is running: {who}. {last}. Wait for it or stop it, or give this run a "
            "folder of its own with --out"
        )
    if not take_over:
        raise RunFolderError(
            f"{folder} belongs to a launch elsewhere: {who}. {last}; whether it lives cannot be seen from here "
            f"({one_line(launch.host)}). Wait for it or stop it, or give this run a folder of its own with --out. "
            "If it is dead for certain, start with --take-over"
        )
    if quiet_s < SILENT_S:
        raise RunFolderError(
            f"{folder} is not taken over from {who}. {last}, so it seems to be alive: stop it, or try again once it "
            f"has been silent for {SILENT_S:.0f} s"
        )
    return f"{folder} is taken over from {who}, as told. {last}"


def owner_file(folder: Path) -> Path:
    """The file that says who works in the folder or left it last; the first one's where nobody has."""
    number, held = _newest(folder)
    return folder / f"owner-{number or 1}.{'json' if held or not number else 'released'}"


@contextmanager
def owned_folder(folder: Path, launch: Launch, *, take_over: bool = False) -> Iterator[None]:
    """Own a run folder, which is made where there is none, while the block lasts.

    It is given back however the block ends, and where this process ends itself on a signal or as hung.

    Raises:
        RunFolderError: as `refuse_owned`; or the folder cannot be written.
    """
    try:
        release = _take(folder, launch, take_over)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the run folder {folder}: {error}. Give another path, or make room"
        ) from error
    before_the_end.append(release)
    try:
        yield
    finally:
        before_the_end.remove(release)
        release()


def _take(folder: Path, launch: Launch, take_over: bool) -> Callable[[], None]:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        reason = refuse_owned(folder, launch, take_over=take_over)
        number = _newest(folder)[0] + 1
        own = folder / f"owner-{number}.json"
        try:
            handle = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            continue  # another was faster: see who
        try:
            launch = replace(launch, locked=try_lock(handle) is True)
            os.write(handle, json.dumps(asdict(launch), indent=1).encode())  # what is cut off is damaged for readers
            os.fsync(handle)
        except BaseException:
            own.unlink(missing_ok=True)
            os.close(handle)
            raise
        if _newest(folder)[0] == number:
            break
        own.unlink()  # judged before others had come and gone
        os.close(handle)
    if reason:
        _log.warning("%s", reason)
    for name in os.listdir(folder):
        if (match := _NAME.fullmatch(name)) and int(match[1]) < number:
            (folder / name).unlink(missing_ok=True)

    def release() -> None:
        if os.getpid() != launch.pid:
            return  # a fork has nothing to give back
        released = own.with_suffix(".released")
        with suppress(OSError):  # told dead and taken over, or no file system left
            os.rename(own, released)
            os.truncate(released, 0)  # a folder that is passed on names no host
        os.close(handle)

    return release


def _newest(folder: Path) -> tuple[int, bool]:
    """The highest number, 0 where nobody has had the folder; and whether it was not given back."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):  # that it is a file is said elsewhere
        return 0, False
    found = [(int(match[1]), match[2] == "json") for name in names if (match := _NAME.fullmatch(name))]
    return max(found, default=(0, False))


def _read(path: Path) -> Launch | None:
    """What an owner wrote; None where it is damaged, and stays so."""
    until = time.monotonic() + _UNREADABLE_FOR_S
    while True:
        try:
            with os.fdopen(os.open(path, _READ), "rb") as file:
                content: Any = json.loads(file.read(_MOST_BYTES))
            if all(type(content[name]) is kind for name, kind in _KINDS.items()) and 0 < content["pid"] < 2**31:
                return Launch(**{name: content[name] for name in Launch.__slots__})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            pass
        if time.monotonic() > until:
            return None
        time.sleep(0.1)


def _is_alive(owner: Launch, here: Launch, folder: Path, number: int) -> bool | None:
    """Whether the owner's process is there; None where that cannot be told from this one."""
    if owner.host != here.host or not owner.boot:
        return None
    if (owner.boot, owner.pid_namespace) == (here.boot, here.pid_namespace) and owner.pid_namespace:
        return _is_there(owner)
    # Another container, or this machine before it was started again: the kernel's lock tells where there is one kernel.
    if not owner.locked or not _is_of_one_kernel(folder):
        return None
    try:
        handle = os.open(folder / f"owner-{number}.json", _READ)
    except OSError:
        return None
    try:
        locked = try_lock(handle, shared=True)
    finally:
        os.close(handle)
    return None if locked is None else not locked


def _is_there(owner: Launch) -> bool:
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    fields = process_fields(owner.pid)  # none where the system hides other users' processes
    return not fields or (fields[0] not in "ZX" and fields[19] == owner.began)


def _is_of_one_kernel(folder: Path) -> bool:
    """Whether the file system is on a disk of this machine, which no other kernel writes."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = [line.split(" ") for line in text_of("/proc/self/mountinfo").splitlines()]
    kinds = {line[line.index("-") + 1] for line in lines if "-" in line and line[2] == number}
    return bool(kinds) and kinds <= _OF_ONE_KERNEL


def _quiet_s(folder: Path, number: int) -> float:
    """Since the owner last wrote: its file, its heartbeats, its metrics."""
    signs = [folder / f"owner-{number}.json", folder / "metrics.jsonl", *(folder / "heartbeat").glob("rank-*.json")]
    written = []
    for sign in signs:
        with suppress(OSError):
            written.append(sign.stat().st_mtime)
    return max(0.0, time.time() - max(written, default=0.0))
