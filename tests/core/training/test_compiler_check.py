"""What compiles is tried before a run: no compiler, broken ones, folders that cannot be written; one sentence each."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_recipe

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import TeacherConfig
from adadistill.core.training import compiler_check
from adadistill.core.training.compiler_check import (
    CompileError,
    compile_failures_told,
    require_compilers,
    try_compilers,
)
from adadistill.core.training.opening import training_switches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SWITCHES = ["compile=off"]


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cxx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sets the C++ compiler as CXX does, which Inductor reads once, and a folder of its own for what it makes."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))

    with ExitStack() as patched:

        def name(compiler: str) -> None:
            monkeypatch.setenv("CXX", compiler)
            patched.enter_context(config.patch({"cpp.cxx": (None, compiler)}))

        yield name


def test_a_working_compiler_passes_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "not" / "made"))
    try_compilers(SWITCHES, CPU)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(compiler_check.importlib.util, "find_spec", lambda name: name)
    try_compilers(SWITCHES, CUDA)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "torch makes its folder when it is imported"


@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        (None, r"the C\+\+ compiler .*nowhere cannot be run. Install"),
        ("exit 1", r"the C\+\+ compiler .* cannot be run. Install"),
        ('[ "$1" = --version ] && exec g++ --version; echo "x.cpp:1:10: fatal error: Python.h: No such file"; exit 1',
         r"fails: x.cpp:1:10: fatal error: Python.h: No such file. Install what it lacks \(g\+\+, Python's headers"),
        ('[ "$1" = --version ] && exec g++ --version; echo "ld: cannot find -lgomp" >&2; exit 1',
         "fails: ld: cannot find -lgomp"),
        ('[ "$1" = --version ] && exec g++ --version; exit 139', "fails: no word on why"),
    ],
)  # fmt: skip
def test_a_cpp_compiler_that_does_not_work_is_told_with_what_to_do(
    cxx, tmp_path: Path, compiler: str | None, told: str
):
    cxx(str(tmp_path / "nowhere") if compiler is None else _script(tmp_path / "c++", compiler))
    with pytest.raises(CompileError, match=told + r".*, or set compile=off$"):
        try_compilers(SWITCHES, CPU)


@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        (None, r"nowhere, which Triton needs, cannot be run\. Install gcc"),
        ("exit 1", r"fails: no word on why\. Install what it lacks \(gcc, Python's headers"),
        ('echo "trial.c:1:10: fatal error: Python.h: No such file" >&2; exit 1', "fails: trial.c:1:10: fatal error"),
    ],
)
def test_triton_needs_a_working_c_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, told: str
):
    monkeypatch.setattr(compiler_check.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "nowhere") if compiler is None else _script(tmp_path / "cc", compiler))
    with pytest.raises(CompileError, match=told + r".*, or set teacher.compile=false$"):
        try_compilers(["teacher.compile=false"], CUDA)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="the C compiler gcc, which Triton needs, cannot be run"):
        try_compilers(["teacher.compile=false"], CUDA)
    monkeypatch.setattr(compiler_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match=r"Triton is not installed\. pip install triton, or set"):
        try_compilers(["teacher.compile=false"], CUDA)


def test_a_folder_that_cannot_take_what_is_compiled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "inductor"))
    with pytest.raises(CompileError, match=r"cannot be kept and run: .*TORCHINDUCTOR_CACHE_DIR.*, or set compile"):
        try_compilers(SWITCHES, CPU)

    def no_exec(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler_check.ctypes, "CDLL", no_exec)
    with pytest.raises(CompileError, match=r"cannot be kept and run: .*failed to map segment.*noexec"):
        try_compilers(SWITCHES, CPU)


@pytest.mark.parametrize(
    ("device", "overrides", "teacher", "kernels", "switches"),
    [
        (CPU, {}, {"weights": "w"}, "auto", []),
        (CPU, {"compile": "default"}, {"weights": "w", "compile": True}, "auto", [*SWITCHES, "teacher.compile=false"]),
        (CUDA, {}, {"weights": "w"}, "torch", ["teacher.compile=false"]),
        (CUDA, {}, {"weights": "w", "compile": False}, "torch", []),
        (CUDA, {}, {"weights": "w", "cache": "c"}, "torch", []),
        (CUDA, {}, {"onnx": "o", "color": "rgb", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "torch", []),
        (CUDA, {}, {"embeddings": "e"}, "auto", ["ADADISTILL_KERNELS=torch in the environment"]),
    ],
)  # fmt: skip
def test_what_is_compiled_is_known_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device, overrides, teacher, kernels, switches
):
    monkeypatch.setenv("ADADISTILL_KERNELS", kernels)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    recipe = replace(tiny_recipe(tmp_path, **overrides), teacher=TeacherConfig(**teacher))
    assert training_switches(recipe, device) == switches


def test_nothing_to_compile_is_not_tried_and_one_rank_of_a_machine_tries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiler_check.tempfile, "TemporaryDirectory", lambda **_: pytest.fail("tried"))
    require_compilers([], Ranks())
    try_compilers([], CUDA)
    require_compilers(SWITCHES, Ranks(local_rank=1))


def test_a_failure_at_first_use_is_one_sentence(cxx, tmp_path: Path):
    cxx(str(tmp_path / "nowhere"))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x.sin() + 3.25)
    match = r"failed with InvalidCxxCompiler: .*, or set compile=off$"
    with pytest.raises(CompileError, match=match) as told, compile_failures_told(SWITCHES):
        compiled(torch.ones(7))
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (subprocess.CalledProcessError(1, ["gcc", "main.c", "-shared"]), "CalledProcessError"),
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "Failed to find C compiler"),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (ValueError("a record"), None),
        (subprocess.CalledProcessError(1, "git"), None),
    ],
)
def test_only_failures_of_compilers_are_told_as_such(error: Exception, told: str | None):
    with pytest.raises(CompileError if told else type(error), match=told), compile_failures_told([]):
        raise error
