"""The fused kernels as torch.compile and CUDA graphs see them: operators that keep what they declare, in one graph.

The plain torch forms, which torch.compile traces, have the same tests beside those of their values.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("registered_ops_worker.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

OPERATORS = {
    "sweep_chunks", "sweep_fused", "sweep_chunks_gradients", "update_centres", "undo_centres", "planar_augment",
}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    done = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _named(cases: list[dict], kind: str) -> list[dict]:
    return [case for case in cases if case["case"][0] == kind]


def test_operators_write_alias_and_answer_what_they_declare(cases: list[dict]):
    """`torch.library.opcheck`, with samples and without, in both precisions."""
    checked = _named(cases, "op")
    assert {case["case"][1].split()[0] for case in checked} == OPERATORS
    assert [case for case in checked if case["against"]] == []


def test_fakes_on_cuda_are_like_real_results_in_shape_strides_and_dtype(cases: list[dict]):
    checked = _named(cases, "fake")
    assert {case["case"][1].split()[0] for case in checked} == OPERATORS
    assert [case for case in checked if case["differ"]] == []


def test_a_step_compiles_to_one_graph_that_gives_the_bits_of_eager(cases: list[dict]):
    """Centre update, loss, commit or undo, backward; trained centres. One graph for the first batch size, one for any
    other."""
    compiled = _named(cases, "compiled")
    names = [["step", "chunks"], ["step", "fused"], ["trained centres", "chunks"], ["trained centres", "fused"]]
    assert sorted(case["case"][1:] for case in compiled) == names
    for case in compiled:
        assert (case["equal"], case["graphs"], case["breaks"]) == (True, 2, {}), case
