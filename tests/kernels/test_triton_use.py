"""The switch between Triton and plain torch."""

from __future__ import annotations

import pytest
import torch

from adadistill.kernels import triton_use
from adadistill.kernels.triton_use import SWITCH, runs_triton


def test_triton_runs_in_its_interpreter_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch):
    tensor = torch.zeros(1)
    monkeypatch.setattr(triton_use, "_IS_INSTALLED", True)
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not runs_triton(tensor)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert runs_triton(tensor)
    monkeypatch.setenv(SWITCH, "torch")
    assert not runs_triton(tensor)
    monkeypatch.setenv(SWITCH, "auto")
    monkeypatch.setattr(triton_use, "_IS_INSTALLED", False)
    with pytest.raises(ImportError, match="pip install triton, or set ADADISTILL_KERNELS=torch"):
        runs_triton(tensor)
    monkeypatch.setenv(SWITCH, "cuda")
    with pytest.raises(ValueError, match="ADADISTILL_KERNELS must be auto or torch, got 'cuda'"):
        runs_triton(tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_triton_runs_on_cuda_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch):
    tensor = torch.zeros(1, device="cuda")
    monkeypatch.delenv(SWITCH, raising=False)
    assert runs_triton(tensor)
    monkeypatch.setenv(SWITCH, "torch")
    assert not runs_triton(tensor)
