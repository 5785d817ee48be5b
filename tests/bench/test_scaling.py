"""The scaling bench runs tiny, its losses agree, and what it counts is what the formula says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from forked_python import forked_python
from tiny_rows import assert_made_here

from adadistill.bench import rows, scaling
from adadistill.bench.scaling import DisagreementError, _check_losses, _Outcome

TINY = scaling.TINY.replace("--ranks 1 ", "")


def test_one_and_two_processes_train_the_same_and_send_what_the_formula_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "executable", forked_python())
    monkeypatch.setenv("PYTHON_EXEC", forked_python())  # what torchrun starts
    monkeypatch.setattr(scaling, "_threads", lambda ranks: 1)
    arguments = [*TINY.split(), "--ranks", "1", "2", "--kinds", "stored"]
    assert scaling.main([*arguments, "--rows", str(tmp_path / "r.jsonl")]) == 0
    one, two = rows.read_rows(tmp_path / "r.jsonl")
    assert_made_here([one, two])
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["bytes_by_part"] == {} == one["bytes_by_formula"]
    assert two["bytes_by_part"] == two["bytes_by_formula"]
    assert two["bytes_per_rank_and_step"] == sum(two["bytes_by_part"].values()) > 0
    assert two["loss_off"] <= 1e-6
    assert one["against_first"] == 1.0
    assert all(row["images_per_s"]["median"] > 0 for row in (one, two))
    assert "student gradient" in two["bytes_by_part"]


def test_other_losses_are_not_reported():
    first, other = (_Outcome(ranks, [3.0, loss], [1.0], [], []) for ranks, loss in ((1, 2.0), (2, 2.00001)))
    assert _check_losses(first, first) == 0.0
    with pytest.raises(DisagreementError, match="2 processes have other losses than 1"):
        _check_losses(other, first)


@pytest.mark.parametrize("ranks", ["3", "0"])
def test_a_batch_that_the_processes_cannot_share_is_refused(ranks: str, capsys: pytest.CaptureFixture[str]):
    assert scaling.main([*TINY.split(), "--ranks", "1", ranks]) == 2
    assert "must divide" in capsys.readouterr().err
