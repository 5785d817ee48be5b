"""The margin softmax bench runs at a tiny size, so that it cannot rot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_rows import assert_made_here

from adadistill.bench.kernels import bench_margin_softmax as bench
from adadistill.bench.rows import read_rows


def test_the_forms_give_one_gradient():
    problem = bench.make_problem(6, 50, 16, torch.device("cpu"))
    dense = bench.seam_step(problem, bench.margin_softmax_reference)
    torch.testing.assert_close(bench.origin_step(problem), dense, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_row_per_form_is_written_and_printed(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    arguments = ["--batch", "4", "--classes", "30", "40", "--dim", "8", "--repeats", "2", "--device", "cpu"]
    assert bench.main([*arguments, "--rows", str(out)]) == 0
    rows = read_rows(out)
    assert_made_here(rows)
    forms = bench.possible_forms(torch.device("cpu"))
    assert {"origin", "dense", "torch"} <= set(forms)
    assert [(row["form"], row["classes"]) for row in rows] == [
        (form, classes) for classes in (30, 40) for form in forms
    ]
    assert all(row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"] for row in rows)
    assert all(row["loss_off"] < 1e-5 for row in rows if row["form"] == "torch")
    assert "share_of_gemm_rate" in capsys.readouterr().out


def test_a_form_that_cannot_run_here_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--forms", "fused", "--device", "cpu"])
    assert "here can run origin, dense, torch" in capsys.readouterr().err


def test_wrong_losses_are_not_timed(monkeypatch):
    real = bench.margin_softmax

    def wrong(*arguments, **options):
        result = real(*arguments, **options)
        return replace(result, loss=result.loss + (0.1 if result.loss.dtype == torch.float32 else 0.0))

    monkeypatch.setattr(bench, "margin_softmax", wrong)
    with pytest.raises(ValueError, match="nothing was timed"):
        bench.main(["--batch", "4", "--classes", "30", "--dim", "8", "--forms", "torch", "--device", "cpu"])
