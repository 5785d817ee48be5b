"""A signal trial each in two phases; `make trials` does all six, and core/training tests what they rest on."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked_python import forked_python

from trials import signals


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "LIMIT_S", 60.0)  # beside other tests 10 s would be a statement about the machine
    phases = ("training", "cache build")
    tallies = signals.run(tiny=True, seed=0, folder=tmp_path, phases=phases, python=forked_python())
    assert [(tally.held, tally.trials) for tally in tallies] == [(1, 1)] * len(phases), tallies
