"""What a trial does beside returning: memory, time, programs started, files written elsewhere, warnings."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trials.targets.target import Verdict

MAX_GROWTH_MIB = 500
MAX_SECONDS = 60
"""Generous: the machine may be busy. What should take milliseconds and takes this long has hung."""

_EXECUTING = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "pty.spawn")
_REACHING_OUT = ("socket.connect", "socket.bind", "urllib.Request", "pickle.find_class")
_WRITING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Watch:
    """Watches the trials of one process. An audit hook cannot be removed: make one, in a process of its own."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._seen: list[str] = []
        self.peak_mib = 0.0
        sys.addaudithook(self._hook)

    def run(self, folder: Path, canary: Path, trial: Callable[[], Verdict]) -> Verdict:
        """Run a trial that may write below `folder` only; what it should not have done makes it one that failed."""
        self._seen.clear()
        before = _start_peak()
        signal.alarm(MAX_SECONDS)  # ends the process, also where it hangs in C
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._folder = folder
            try:
                verdict = trial()
            except MemoryError:
                verdict = Verdict("another error", False, note="MemoryError")
            finally:
                self._folder = None
                signal.alarm(0)
        grown = _peak_mib() - before
        self.peak_mib = max(self.peak_mib, grown)
        if canary.exists():
            canary.unlink()
            return replace(verdict, outcome="executed", held=False, note="the canary was made")
        if self._seen:
            return replace(verdict, outcome="reached out of its folder", held=False, note=self._seen[0])
        if grown > MAX_GROWTH_MIB:
            return replace(verdict, outcome="too much memory", held=False, note=f"{grown:.0f} MiB, {verdict.outcome}")
        if verdict.held and (loud := [one for one in caught if not issubclass(one.category, DeprecationWarning)]):
            return replace(verdict, outcome="warned", held=False, note=str(loud[0].message)[:200])
        return verdict

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        folder = self._folder
        if folder is None:
            return
        if event == "subprocess.Popen" and Path(str(arguments[0])).name == "git":
            return  # a run folder records the commit
        if event in _EXECUTING or event in _REACHING_OUT:
            self._seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and isinstance(path, (str, bytes, os.PathLike)) and not _within(path, folder):
                self._seen.append(f"open {path!r} {mode!r}")
        elif event in _WRITING:
            made = arguments[1 if event in ("os.symlink", "os.link") else 0]
            if isinstance(made, (str, bytes, os.PathLike)) and not _within(_absolute(made, arguments[-1]), folder):
                self._seen.append(f"{event} {arguments!r:.200}")


def _absolute(path: str | bytes | os.PathLike[str], folder_handle: object) -> str:
    """A path that may be relative to an open folder, as `shutil.rmtree` removes files."""
    text = os.fsdecode(path)
    if os.path.isabs(text) or not isinstance(folder_handle, int) or folder_handle < 0:
        return text
    return os.path.join(os.readlink(f"/proc/self/fd/{folder_handle}"), text)


def _within(path: str | bytes | os.PathLike[str], folder: Path) -> bool:
    text = os.path.realpath(os.fsdecode(path))
    return text == os.devnull or text.startswith(f"{os.path.realpath(folder)}{os.sep}")


def _start_peak() -> float:
    """Begin a new peak of resident memory, where Linux lets us; gives the memory now, MiB."""
    with suppress(OSError):  # the peak is then that of the whole process, which may blame a later trial as well
        Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
