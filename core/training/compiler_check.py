"""What `torch.compile` and Triton need of a machine, tried before a run begins, and their failures in one sentence.

A missing compiler, headers or a folder that cannot be written show otherwise in the first step, as a hundred lines.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adadistill.core.distributed import LaunchError, Ranks, gather_texts
from adadistill.core.out_of_memory import is_out_of_memory

if TYPE_CHECKING:  # both may use what is in here
    from adadistill.core.teachers.config import TeacherConfig

_SOURCE = "#include <Python.h>\n#include <stdint.h>\n"
_CPP_SOURCE = f"{_SOURCE}#include <cmath>\n#include <omp.h>\n#include <vector>\n" + (
    'extern "C" int trial() { return static_cast<int>(std::vector<int>(omp_get_max_threads()).size()); }\n'
)
_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


class CompileError(LaunchError):
    """A network cannot be compiled on this machine; the text says what to install, or what to switch off."""


def teacher_switches(config: TeacherConfig | None, device: torch.device) -> list[str]:
    """What switches off the compilation of a teacher that runs; empty where it is not compiled."""
    if config is None or config.source in (None, "onnx"):
        return []
    compiles = device.type == "cuda" if config.compile is None else config.compile
    return ["teacher.compile=false"] if compiles else []


def require_compilers(switches: Sequence[str], ranks: Ranks) -> None:
    """Try on each machine of a launch what will be compiled there. Every rank raises what one of them found.

    Args:
        switches: what would make it unnecessary; nothing is tried where there is nothing.

    Raises:
        CompileError: no compiler, one that fails, or no place for what it makes.
    """
    reason = ""
    if ranks.local_rank == 0:
        try:
            try_compilers(switches, ranks.device)
        except CompileError as error:
            reason = str(error)
    if reason := max(gather_texts(reason, ranks)):
        raise CompileError(reason)


def try_compilers(switches: Sequence[str], device: torch.device) -> None:
    """Build and load a few lines as Inductor (CPU) or Triton's launcher (CUDA) would, where they keep what they make.

    Raises:
        CompileError: as `require_compilers`.
    """
    reason = ""
    for place in _places(switches, device):
        try:
            with tempfile.TemporaryDirectory(prefix="adadistill-trial-", dir=_existing(place)) as folder:
                reason = (_fault_of_triton if device.type == "cuda" else _fault_of_inductor)(Path(folder))
        except OSError as error:
            reason = (
                f"what is compiled cannot be kept and run: {error}. Name a folder that can be written and is not "
                "mounted noexec in TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR"
            )
        if reason:
            raise CompileError(f"networks cannot be compiled: {reason}, or set {' and '.join(switches)}")


@contextmanager
def compile_failures_told(switches: Sequence[str]) -> Iterator[None]:
    """Turn what the compilers raise inside, at the first use of a network, into a sentence.

    Raises:
        CompileError: compilation failed.
    """
    try:
        yield
    except Exception as error:
        command = error.cmd if isinstance(error, subprocess.CalledProcessError) else ""
        of_triton = "-shared" in command or "Failed to find C" in str(error)
        if is_out_of_memory(error) or not (of_triton or type(error).__module__.startswith(_COMPILERS)):
            raise
        inner = getattr(error, "inner_exception", error)
        line = _telling_line(getattr(inner, "output", None) or str(inner))
        off = " and ".join(switches) or "compile=off"
        raise CompileError(
            f"torch.compile failed with {type(inner).__name__}: {line}. Mend that, or set {off}"
        ) from error


def _places(switches: Sequence[str], device: torch.device) -> list[Path]:
    """Where what is compiled is kept: by Triton for kernels of ours, by Inductor for networks."""
    places = []
    if switches and device.type == "cuda":
        home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
        places.append(Path(os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")))
    if any("compile" in switch for switch in switches):
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        places.append(Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()))
    return places


def _existing(place: Path) -> Path:
    """The folder, or the nearest one above it that is there, in which it would be made."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if os.path.lexists(folder))


def _fault_of_inductor(folder: Path) -> str:
    from torch._inductor import cpp_builder, exc

    source = folder / "trial.cpp"
    source.write_text(_CPP_SOURCE)
    try:
        options = cpp_builder.CppTorchOptions(warning_all=False)
        builder = cpp_builder.CppBuilder("trial", str(source), options, output_dir=str(folder))
        builder.build()
    except exc.CppCompileError as error:
        lacks = "Install what it lacks (g++, Python's headers as in python3-dev, libgomp)"
        return f"{error.cmd[0]} fails: {_telling_line(error.output)}. {lacks}"
    except (exc.InvalidCxxCompiler, OSError):
        return f"the C++ compiler {os.environ.get('CXX', 'g++')} cannot be run. Install g++, or name one in CXX"
    ctypes.CDLL(builder.get_target_file_path())
    return ""


def _fault_of_triton(folder: Path) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed. pip install triton"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        return f"the C compiler {compiler or 'gcc'}, which Triton needs, cannot be run. Install gcc, or name one in CC"
    # Debian's own scheme names no headers; Triton reads them from this one, too.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    source, library = folder / "trial.c", str(folder / "trial.so")
    source.write_text(_SOURCE)
    headers = f"-I{sysconfig.get_paths(scheme=scheme)['include']}"
    command = [compiler, str(source), "-O3", "-shared", "-fPIC", "-o", library, headers]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        lacks = "Install what it lacks (gcc, Python's headers as in python3-dev)"
        return f"{compiler} fails: {_telling_line(done.stdout + done.stderr)}. {lacks}"
    ctypes.CDLL(library)
    return ""


def _telling_line(output: str) -> str:
    """The first line that speaks of an error, else the first one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no word on why")[:300]
