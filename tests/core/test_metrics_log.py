"""Lines say what happened since the last one, in stable keys, and a killed run leaves whole lines."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch

from adadistill.core.distributed import Ranks
from adadistill.core.metrics_log import MetricsFile, ProgressBar, StepMetrics, format_seconds, log_line

RANKS = Ranks()


def test_a_line_holds_means_over_its_steps_only():
    metrics = StepMetrics(global_batch_size=8, total_steps=100, ranks=RANKS)
    for value in (1.0, 3.0):
        metrics.add({"loss": torch.tensor(value), "confidence": torch.tensor(2 * value)}, lr=0.1, wait_s=0.0)
    first = metrics.take(step=2)
    metrics.add({"loss": torch.tensor(10.0), "confidence": torch.tensor(0.0)}, lr=0.05, wait_s=0.0)
    second = metrics.take(step=3)

    assert (first["loss"], first["confidence"], first["lr"]) == (2.0, 4.0, 0.1)
    assert (second["loss"], second["confidence"], second["lr"]) == (10.0, 0.0, 0.05)
    assert not metrics.pending


def test_speed_leaves_out_what_is_no_training(monkeypatch: pytest.MonkeyPatch):
    import adadistill.core.metrics_log as module

    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    metrics = StepMetrics(global_batch_size=8, total_steps=100, ranks=RANKS)
    metrics.add({"loss": torch.tensor(0.0)}, lr=0.1, wait_s=0.5)
    now[0] += 12.0
    metrics.exclude(10.0)
    values = metrics.take(step=10)
    assert values["images_per_s"] == pytest.approx(4.0)
    assert values["wait_share"] == pytest.approx(0.25)
    assert values["eta_s"] == pytest.approx(90 * 2.0)


def test_every_line_of_the_file_is_json_with_event_step_and_time(tmp_path: Path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write("train", step=1, loss=2.5)
    metrics.write("train", step=2, loss=math.nan)
    metrics.close()
    again = MetricsFile(tmp_path / "metrics.jsonl")
    again.write("stop", step=2)
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("stop", 2)]
    assert rows[1]["loss"] is None
    assert all(row["time"] > 0 for row in rows)


def test_ranks_without_a_file_write_nothing(tmp_path: Path):
    MetricsFile(None).write("train", step=1)
    assert not list(tmp_path.iterdir())


def test_a_log_line_shows_what_the_run_has():
    line = log_line({"loss": 3.4123, "lr": 0.1, "wait_share": 0.004, "eta_s": 3725.0}, step=5, total_steps=10, epoch=1)
    assert line == "step 5/10  epoch 1  loss 3.412  lr 0.1  wait 0.4%  ETA 1:02:05"
    assert format_seconds(math.inf) == "?"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_of_rank_0_only():
    drawn = _Terminal()
    bar = ProgressBar(10, RANKS, drawn)
    bar.update(5)
    bar.update(10)
    bar.clear()
    assert "5/10" in drawn.getvalue()
    assert "\n" not in drawn.getvalue()
    for stream, ranks in ((io.StringIO(), RANKS), (_Terminal(), Ranks(rank=1, world_size=2))):
        ProgressBar(10, ranks, stream).update(5)
        assert stream.getvalue() == ""
