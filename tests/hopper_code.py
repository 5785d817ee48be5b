"""Compiles Triton kernels for compute capability 9.0 without a GPU, for tests of what the machine code needs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest


def compile_for_hopper(
    function: Any, types: dict[str, str], constants: dict[str, Any], *, capability: int = 90, **options: int
) -> Any:
    """The compiled kernel. Arguments in neither mapping are 32-bit numbers; pointers are taken to be aligned."""
    compiler = pytest.importorskip("triton.backends.compiler", reason="this Triton cannot compile ahead of time")
    import triton

    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    pointers = [name for name, kind in types.items() if kind.startswith("*")]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=compiler.GPUTarget("cuda", capability, 32), options=options)


def compiled_without_spill(
    function: Any, types: dict[str, str], constants: dict[str, Any], folder: Path, *, stack: int = 0, **options: int
) -> Any:
    """The kernel as `compile_for_hopper` gives it, anew: without local memory, and with so much stack at most."""
    with mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(folder)):
        compiled = compile_for_hopper(function, types, constants, **options)
    used = registers_of(compiled, folder)
    print(f"{used['REG']} registers, {compiled.metadata.shared} bytes of shared memory")
    assert used["LOCAL"] == 0, used
    assert used["STACK"] <= stack, used
    return compiled


def products_of(compiled: Any, warps: int) -> int:
    """Multiplications on tensor cores that all warps of a program make in one pass over its unrolled code."""
    ptx, total = compiled.asm["ptx"], 0
    for group, m, n, k in re.findall(r"\b(wgmma\.mma_async|mma)\.sync\.aligned\.m(\d+)n(\d+)k(\d+)", ptx):
        together = warps if group == "mma" else warps // 4  # four warps share one of the first kind
        total += together * int(m) * int(n) * int(k)
    return total


def registers_of(compiled: Any, folder: Path) -> dict[str, int]:
    """REG, STACK and LOCAL of a compiled kernel, as NVIDIA's own tool reads them. Skips where Triton brings none."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton brings no cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
