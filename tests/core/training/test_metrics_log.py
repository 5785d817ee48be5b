"""Lines say what happened since the last one, in stable keys, and a killed run leaves whole lines."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch

import adadistill.core.training.metrics_log as metrics_log
from adadistill.core.distributed import Ranks
from adadistill.core.training.metrics_log import (
    MetricsFile,
    MetricsFileError,
    ProgressBar,
    StepMetrics,
    format_seconds,
    log_line,
    read_metrics,
)

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
    import adadistill.core.training.metrics_log as module

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


def test_a_line_torn_off_by_a_dead_machine_does_not_swallow_the_next_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "tra')
    with MetricsFile(path) as metrics:
        metrics.write("train", step=2)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    assert path.read_text().startswith('{"event": "train", "step": 1}\n{"event": "tra\n{'), "nothing is taken away"


def test_lines_wait_for_a_full_disk_and_go_on_where_it_tore_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path, real = tmp_path / "metrics.jsonl", os.write
    room = [90]  # bytes: a line and a half

    def write(handle: int, body: bytes) -> int:
        taken = min(len(body), room[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= taken
        return real(handle, bytes(body[:taken]))

    with MetricsFile(path) as metrics:
        monkeypatch.setattr(metrics_log.os, "write", write)
        with caplog.at_level(logging.INFO):
            for step in range(5):
                metrics.write("train", step=step)
            assert [row["step"] for row in read_metrics(path)] == [0]
            assert len(path.read_bytes()) == 90
            room[0] = 10_000
            metrics.write("train", step=5)
    assert [row["step"] for row in read_metrics(path)] == list(range(6))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert f"{path}: No space left on device. Training goes on" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_lines_that_never_found_room_are_an_error_at_the_end_unless_another_is_under_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    metrics = MetricsFile(Path("/dev/full"))
    metrics.write("train", step=1)
    metrics.write("train", step=2)
    with pytest.raises(
        MetricsFileError, match=r"/dev/full: No space left on device: 2 line\(s\) could not be written and are lost"
    ):
        metrics.close()
    metrics.close()
    metrics = MetricsFile(Path("/dev/full"))
    metrics.write("train", step=1)
    with pytest.raises(KeyError), metrics:
        raise KeyError
    assert "1 line(s) could not be written" in caplog.text
    monkeypatch.setattr(metrics_log, "MAX_WAITING_BYTES", 100)
    metrics = MetricsFile(Path("/dev/full"))
    metrics.write("train", step=1)
    with pytest.raises(MetricsFileError, match="2 line"):
        metrics.write("train", step=2)


def test_what_a_resumed_run_did_again_stands_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        for step in (1, 2, 3):
            metrics.write("train", step=step, start=1)
        metrics.write("resume", step=1, evaluated=True)
        metrics.write("train", step=2, start=2)
        metrics.write("evaluation", step=2, start=2)
        metrics.write("train", step=3, start=2)
        metrics.write("resume", step=2, evaluated=False)
        metrics.write("evaluation", step=2, start=3)
        metrics.write("resume", step=2, evaluated=True)
        metrics.write("train", step=3, start=4)
    with path.open("a") as file:
        file.write('[1]\n{"event": "odd", "step": "many"}\n{"event": "resume", "step": null}\nnonsense\n')
    stands = [(row["event"], row["step"], row.get("start")) for row in read_metrics(path)]
    assert stands == [
        ("train", 1, 1), ("resume", 1, None), ("train", 2, 2), ("resume", 2, None), ("evaluation", 2, 3),
        ("resume", 2, None), ("train", 3, 4), ("odd", "many", None), ("resume", None, None),
    ]  # fmt: skip
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


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
