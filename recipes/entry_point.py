"""What every entry point does alike: CPU threads, standard streams, `~` in arguments, errors and their exit codes.

`adadistill VERB`, `python -m adadistill.recipes.VERB` (torchrun's way) and the benches end here, in `entry_point`.
Output that nobody reads, or that a full disk does not take, must neither end a run nor change what its exit code says.
Nothing heavy is imported here, so that `adadistill --help` answers at once; errors of ours bring their exit codes.
"""

from __future__ import annotations

import codecs
import errno
import functools
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from adadistill.core.cpu_threads import before_torch_loads
from adadistill.core.training.stop_signal import StopRequested, leave_at_once_from_here_on
from adadistill.loaders.errors import Refused, WorkFailed

EXTRAS = {
    "onnx": "onnx", "onnxruntime": "onnx", "matplotlib": "report", "pyarrow": "arrow", "PIL": "png", "nvidia": "dali13",
    "tensorboard": "tensorboard", "wandb": "wandb", "torchvision": "vision",
}  # fmt: skip
"""Package that may be missing -> the extra of ours that installs it."""
NOBODY_READS = 128 + 13
"""Exit code of a verb whose result is what it prints, and whose reader went away: as of a process that SIGPIPE ends."""

Main = Callable[[Sequence[str]], "int | None"]


class Wrapped(Protocol):
    """A `main` of the arguments given, or of the command line."""

    def __call__(self, argv: Sequence[str] | None = None, /) -> int: ...


def entry_point(
    prog: str, *, after_stop: str = "", codes: Mapping[str, int] | None = None
) -> Callable[[Main], Wrapped]:
    """Make a function of the arguments an entry point: its errors become one sentence and an exit code.

    Args:
        prog: what messages begin with.
        after_stop: what to do after a stop on request, for people.
        codes: exit codes by name of error that differ from the rule, or are no error elsewhere.
    """

    def wrap(main: Main) -> Wrapped:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            words = [_TILDE.sub(_at_home, word) for word in (sys.argv[1:] if argv is None else argv)]
            outermost = _Call.depth == 0
            if outermost:
                guard_streams()
                if "torch" not in sys.modules:
                    before_torch_loads()
                _Call.result_in_files = False
            _Call.depth += 1
            try:
                code = _exit_code(main, words, prog, after_stop, codes or {})
            except SystemExit as leaving:  # of argparse: --help, or a wrong command
                if outermost and isinstance(leaving.code, int):
                    leaving.code = _after_output(leaving.code, prog)
                raise
            finally:
                _Call.depth -= 1
            return _after_output(code, prog) if outermost else code

        return run

    return wrap


def known_verb(prog: str, words: Sequence[str], verbs: Collection[str], usage: str) -> int | None:
    """None where a command begins with a verb; else the exit code, once the usage or what is wrong has been told."""
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return 0 if words else 2
    if words[0] in verbs:
        return None
    import difflib

    near = difflib.get_close_matches(words[0], verbs, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    print(f"{prog}: unknown verb {words[0]!r}{hint}\n\n{usage}", file=sys.stderr)
    return 2


def log_to_stderr(*, speaks: bool = True, otherwise: int = logging.ERROR) -> None:
    """Lines with the time of day: rank 0 says what happens, the others only what went wrong."""
    level = logging.INFO if speaks else otherwise
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", level=level)


def begin_program() -> None:
    """The first thing that a module run as a program does: torch takes seconds to import, and streams may be closed."""
    guard_streams()
    before_torch_loads()
    leave_at_once_from_here_on()


def result_lies_in_files() -> None:
    """Say that what the verb prints is not its result, so that losing it does not change its exit code."""
    _Call.result_in_files = True


def guard_streams() -> None:
    """Open what is closed of the standard streams, and let those of this process take any text and never raise.

    A file opened while descriptor 2 is closed would get that number, and with it whatever is logged. Streams that
    somebody has put in the place of the process's own are left alone.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(number, stream))
            setattr(sys, f"__{name}__", getattr(sys, name))


class _Call:
    """The entry point that runs; they call each other, and the outermost one looks after the streams."""

    depth = 0
    result_in_files = False


class _Output(io.FileIO):
    """A descriptor that takes everything: what cannot be written is lost, and the first reason is kept."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                self.lost = self.lost or error
                if error.errno == errno.EPIPE:  # for good, so for libraries and children too
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self.fileno())
                    os.close(null)
                return memoryview(data).nbytes
            if written is not None:
                return written
            select.select([], [self], [])  # somebody made the pipe non-blocking


class _Stream(io.TextIOWrapper):
    """Standard output or error over `_Output`, in the encoding and with the buffering that Python chose for it."""

    def __init__(self, number: int, was: Any) -> None:
        if was is not None:
            with suppress(OSError):
                was.flush()
        self.output = _Output(number, "w", closefd=False)
        unbuffered = number == 2 or getattr(was, "write_through", False)  # of whole lines, in both cases
        super().__init__(
            io.BufferedWriter(self.output),
            encoding=getattr(was, "encoding", "utf-8"),
            errors="adadistill" if getattr(was, "errors", "") == "surrogateescape" else "backslashreplace",
            line_buffering=unbuffered or getattr(was, "line_buffering", False),
        )


def _bytes_of_names_else_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """File names keep their bytes in a locale that cannot read them, other text that it lacks is escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("adadistill", _bytes_of_names_else_escapes)

_TILDE = re.compile(r"^(--[a-z-]+=)?(~.*)", re.DOTALL)


def _at_home(found: re.Match[str]) -> str:
    """An argument whose `~` no shell has replaced: in quotes, or after `--out=`."""
    return (found[1] or "") + os.path.expanduser(found[2])


def _exit_code(main: Main, words: Sequence[str], prog: str, after_stop: str, codes: Mapping[str, int]) -> int:
    try:
        return int(main(words) or 0)
    except StopRequested as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"{prog}: {stop}{after_stop and f'; {after_stop}'}", file=sys.stderr)
        return stop.exit_code
    except Exception as error:  # what is not ours to explain goes on with its traceback
        code = _code_of(error, codes)
        if code is None:
            raise
        print(_explained(error), file=sys.stderr)
        return code


def _code_of(error: Exception, codes: Mapping[str, int]) -> int | None:
    for kind in type(error).__mro__:
        if kind.__name__ in codes:
            return codes[kind.__name__]
    if isinstance(error, (Refused, WorkFailed)):
        return error.exit_code
    if isinstance(error, ImportError):
        return None if (error.name or "").startswith("adadistill") else 2
    if isinstance(error, (ValueError, OSError)):
        return 2
    return 1 if _is_out_of_memory(error) else None


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from adadistill.core.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _explained(error: Exception) -> str:
    told = "error" if type(error) in (Refused, WorkFailed) else type(error).__name__
    text = f"{told}: {error}"
    if isinstance(error, ImportError) and not type(error).__module__.startswith("adadistill."):
        package = (error.name or "").partition(".")[0]
        wanted = f"adadistill[{EXTRAS[package]}]" if package in EXTRAS else package
        remedy = f"pip install '{wanted}'" if wanted else "a package is missing or broken, install it anew"
        return f"{text}; this needs what is not installed here: {remedy}"
    if not isinstance(error, (ValueError, OSError)) and _is_out_of_memory(error):
        return (
            f"out of memory: {str(error).partition(chr(10))[0]}\n  this needs more than there is: "
            "`adadistill plan RECIPE` tells what takes it"
        )
    return text


def _after_output(code: int, prog: str) -> int:
    """Write what waits; the exit code once it is known whether everything that was printed arrived."""
    if not isinstance(sys.stdout, _Stream):
        return code
    sys.stdout.flush()
    lost, sys.stdout.output.lost = sys.stdout.output.lost, None
    if lost is None:
        return code
    if lost.errno != errno.EPIPE:
        print(f"{prog}: standard output cannot be written: {lost.strerror}; what was printed is lost", file=sys.stderr)
    if _Call.result_in_files:
        return code
    return code or (NOBODY_READS if lost.errno == errno.EPIPE else 1)
