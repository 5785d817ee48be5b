"""No host memory goes to a device by a copy that makes the host wait: one of them undoes all that was queued ahead.

Nothing on a CPU shows it, so the sources are read: in everything that a step runs through, `x.to(device)` of host
memory is `copied_to(device, x)`, or says `non_blocking`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OF_A_STEP = [
    *sorted((ROOT / "kernels").glob("*.py")),
    *sorted((ROOT / "loaders").rglob("*.py")),
    *sorted((ROOT / "core" / "method").glob("*.py")),
    *sorted((ROOT / "core" / "training").glob("*.py")),
    *(ROOT / "core" / "teachers" / f"{name}.py" for name in ("cached_teacher", "stored_embeddings", "network_teacher")),
]
NOT_IN_A_STEP = {
    ("core/method/frozen_centres.py", "__init__"),  # once, at the start
    ("core/method/norm_statistics.py", "from_state_dict"),  # of a checkpoint
    ("core/training/rank_agreement.py", "require_equal_replicas"),  # at a save
    ("core/training/run.py", "_random_centres"),  # once, at the start
    ("core/training/training_step.py", "__init__"),  # the student, once
    ("core/teachers/network_teacher.py", "__init__"),  # the teacher, once
    ("core/teachers/network_teacher.py", "_run"),  # of images that are on the device already
    ("kernels/planar_augment.py", "planar_augment_reference"),  # what the kernel is compared with
}


def _waiting_copies(source: str) -> list[tuple[str, int]]:
    """(function, line) of every `.to` that names a device and does not say `non_blocking`, and of every `.cuda()`."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            keywords = {keyword.arg for keyword in call.keywords}
            named = any("device" in ast.unparse(argument) for argument in call.args) or "device" in keywords
            if call.func.attr == "cuda" or (call.func.attr == "to" and named and "non_blocking" not in keywords):
                found.append((function.name, call.lineno))
    return found


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("rows.to(self._device)", True),
        ("rows.to(device=where, dtype=torch.float32)", True),
        ("rows.cuda()", True),
        ("rows.to(device, non_blocking=True)", False),
        ("rows.to(torch.float32)", False),
        ("copied_to(device, rows)", False),
    ],
)
def test_the_reader_of_sources_knows_a_waiting_copy(line, waits):
    assert bool(_waiting_copies(f"def step(rows, device):\n    return {line}\n")) == waits


def test_no_copy_of_a_step_makes_the_host_wait():
    assert len(OF_A_STEP) > 80
    waiting = {
        (str(path.relative_to(ROOT)), function)
        for path in OF_A_STEP
        for function, _ in _waiting_copies(path.read_text(encoding="utf-8"))
    }
    assert waiting - NOT_IN_A_STEP == set()
    assert NOT_IN_A_STEP - waiting == set(), "exceptions that nothing needs any more"
