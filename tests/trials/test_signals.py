"""The signal trials, one in each phase: each of them holds, and a process that breaks the promise is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests_support import ROOT

from trials import signals


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / '.typecheck'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    # An evaluation and a save are interrupted in core/training; all six phases by `make trials`.
    outcomes = signals.run(
        tiny=True, seed=0, folder=tmp_path, phases=("start-up", "compile", "training", "cache build")
    )
    tried = {outcome.damage.removeprefix("SIGTERM during ") for outcome in outcomes}
    assert tried >= {"start-up", "training", "cache build"}
    for outcome in outcomes:
        assert outcome.held == outcome.trials == 1, outcome


@pytest.mark.parametrize(
    ("trial", "problem"),
    [
        (signals._Trial(143, 1.0, "stopped", 0, 0), ""),
        (signals._Trial(143, 11.0, "stopped", 0, 0), "late"),
        (signals._Trial(-15, 1.0, "", 0, 0), "code -15"),
        (signals._Trial(143, 1.0, "Traceback (most recent call last)", 0, 0), "traceback"),
        (signals._Trial(143, 1.0, "stopped", 1, 0), "orphans"),
        (signals._Trial(143, 1.0, "stopped", 0, 3), "lost steps"),
    ],
)
def test_what_does_not_keep_the_promise_is_told(tmp_path: Path, trial: signals._Trial, problem: str):
    told = signals._problem("training", tmp_path, trial)
    assert told.startswith(problem)
    assert bool(told) == bool(problem)
