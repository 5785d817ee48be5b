"""A `python` for tests that starts in a twentieth of a second instead of four to eight.

Importing torch, its compiler and scikit-learn is most of what a short process does, and the suite starts hundreds. One
server of a test run imports them once and forks; `forked_python()` is the path of a small client that stands in for
`sys.executable`. The process is real: its own pid, memory, files and exit status. Signals to the client are passed on,
and where it is killed the server kills. What must be known before the first import (PYTHONUTF8, TRITON_INTERPRET,
options like -OO, another copy of adadistill) makes the client start a Python of its own; so does a missing server.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests_support import ROOT, make_importable

_IMPORTED = ["torch", "torch._dynamo", "torch.distributed.run", "numpy", "scipy.stats", "sklearn.metrics", "yaml"]
_IMPORTED += ["safetensors.torch", "simplejpeg", "PIL.Image", "nvtx", "jinja2"]
_IMPORTED += ["adadistill.recipes.train", "adadistill.recipes.evaluate", "adadistill.recipes.cache_teacher"]

_Request = tuple[list[str], dict[str, str], str, int]
"""Arguments, environment, folder and umask of a client."""

_CLIENT = """#!{python} -SI
import os, sys
arguments, environment = sys.argv[1:], dict(os.environ)
while arguments[:1] == ["-u"]:
    arguments.pop(0)
harmless = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHON_EXEC", "PYTHON")
own = any(name.startswith(("PYTHON", "TRITON_", "LD_")) and name not in harmless for name in environment)
for entry in environment.get("PYTHONPATH", "").split(os.pathsep):
    own |= os.path.isdir(entry + "/adadistill") and os.path.realpath(entry + "/adadistill/core") != {core!r}
known = bool(arguments) and (not arguments[0].startswith("-") or arguments[0] in ("-c", "-m", "-"))
if own or not known or environment.get("OMP_NUM_THREADS", "1") != "1":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, signal, socket
server = socket.socket(socket.AF_UNIX)
try:
    server.connect({address!r})
except OSError:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
umask = os.umask(0)
request = json.dumps([arguments, environment, os.getcwd(), umask]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "little")], [0, 1, 2])
server.sendall(request)
status = int.from_bytes(server.recv(4), "little")
if os.WIFSIGNALED(status):
    number = os.WTERMSIG(status)
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)
os._exit(os.waitstatus_to_exitcode(status))
"""


@functools.cache
def forked_python(*, interpreted: bool = False) -> str:
    """Path to use where a test would write `sys.executable`. All workers of a test run share one server.

    Args:
        interpreted: Triton's kernels run in its interpreter, in every process that the path starts.
    """
    run = os.environ.setdefault("ADADISTILL_TEST_RUN", str(os.getpid()))  # conftest has set it for pytest's workers
    folder = Path(tempfile.gettempdir()) / f"forked-python-{run}-{'interpreted' if interpreted else 'plain'}"
    folder.mkdir(mode=0o700, exist_ok=True)
    client, address = folder / "python", str(folder / "server")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not client.exists():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1" if interpreted else "0"}
            server = subprocess.Popen(
                [sys.executable, __file__, address, run], env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            assert server.stdout is not None
            server.stdout.readline()  # it listens
            client.write_text(_CLIENT.format(python=sys.executable, address=address, core=str(ROOT / "core")))
            client.chmod(0o755)
    return str(client)


def _serve(address: str, run: int) -> _Request:
    """Fork for every request until the test run ends: returns in the forked process only, with what it is to run."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("listening", flush=True)
    run_ends = os.pidfd_open(run)
    waiting = selectors.DefaultSelector()
    waiting.register(run_ends, selectors.EVENT_READ)
    waiting.register(listening, selectors.EVENT_READ)
    running: dict[int, tuple[socket.socket, int]] = {}  # pid -> its client, and a file that tells its end
    while True:
        for key, _ in waiting.select():
            if key.fd == run_ends:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                shutil.rmtree(Path(address).parent, ignore_errors=True)
                os._exit(0)
            elif key.fileobj is listening:
                client, _ = listening.accept()
                request, files = _received(client)
                pid = os.fork()
                if pid == 0:
                    waiting.close()
                    for open_file in (run_ends, *(ended for _, ended in running.values())):
                        os.close(open_file)
                    for other in (listening, client, *(client for client, _ in running.values())):
                        other.close()
                    _take_streams(files)
                    return request
                for file in files:
                    os.close(file)
                running[pid] = client, os.pidfd_open(pid)
                for watched in running[pid]:
                    waiting.register(watched, selectors.EVENT_READ, pid)
            elif key.data in running:
                client, ended = running[key.data]
                if key.fd != ended and (number := _signal_from(client)):
                    os.kill(key.data, number)
                    continue
                if key.fd != ended:  # nobody waits any more: the client was killed
                    os.kill(key.data, signal.SIGKILL)
                _, status = os.waitpid(key.data, 0)
                for watched in running.pop(key.data):
                    waiting.unregister(watched)
                with suppress(OSError):
                    client.sendall(status.to_bytes(4, "little"))
                client.close()
                os.close(ended)


def _received(client: socket.socket) -> tuple[_Request, list[int]]:
    length, files, _, _ = socket.recv_fds(client, 8, 3)
    request = b""
    while len(request) < int.from_bytes(length, "little") and (more := client.recv(1 << 20)):
        request += more
    if not request:  # it ended at once
        return (["-c", ""], {}, "/", 0o22), files
    return tuple(json.loads(request)), files


def _signal_from(client: socket.socket) -> int:
    """The number of a signal to pass on; 0 where the client has ended."""
    with suppress(OSError):
        return int.from_bytes(client.recv(1), "little")
    return 0


def _take_streams(files: list[int]) -> None:
    os.setpgid(0, 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)


def _become(request: _Request, installed: list[str]) -> None:
    """Run in this forked process what `python ARGUMENTS` would run."""
    arguments, environment, folder, umask = request
    os.umask(umask)
    interpreted = os.environ["TRITON_INTERPRET"] == "1"
    os.environ.clear()
    os.environ.update(environment, **({"TRITON_INTERPRET": "1"} if interpreted else {}))
    os.chdir(folder)
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        by_line = number == 2 or os.isatty(number)
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw), "utf-8", "backslashreplace" if number == 2 else "strict",
            line_buffering=by_line, write_through=unbuffered,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    from_user = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["", *from_user, *installed]
    sys.modules.pop("__main__", None)
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec", dont_inherit=True), main.__dict__)
    elif arguments[0] == "-":
        sys.argv = arguments
        exec(compile(sys.stdin.read(), "<stdin>", "exec", dont_inherit=True), main.__dict__)
    elif arguments[0] == "-m":
        sys.path[0] = folder
        sys.argv = arguments[1:]
        sys.modules.pop(arguments[1], None)  # else runpy warns of it
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


_ended_with: list[int] = []
"""Exit status of a forked process, once what it ran has ended."""


def _leave() -> None:
    """The last of all exit functions: end at once, for taking down what was imported lasts a second."""
    with suppress(OSError, ValueError):  # where output cannot be written, Python itself says so
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if _ended_with:
            os._exit(_ended_with[0])


if __name__ == "__main__":
    atexit.register(_leave)
    own = {str(Path(__file__).resolve().parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    installed_ = [entry for entry in sys.path if entry not in own]
    make_importable()
    for name_ in _IMPORTED:
        try:
            importlib.import_module(name_)
        except ImportError:
            continue
    gc.collect()
    gc.freeze()  # or the first collection of every process would copy all memory that they share
    try:
        _become(_serve(sys.argv[1], int(sys.argv[2])), installed_)
        _ended_with.append(0)
    except SystemExit as leaving:
        code = leaving.code
        _ended_with.append(0 if code is None else code & 255 if isinstance(code, int) else 1)
        raise
    except Exception:
        _ended_with.append(1)
        raise
