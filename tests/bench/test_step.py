"""The step bench: three ways over every source, and what they say together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_rows import assert_made_here
from tiny_training import write_tiny_records

from adadistill.bench import step
from adadistill.bench.rows import read_rows
from adadistill.loaders.batch import Batch

SMALL = "--width 0.125 --image-size 32 --batch-size 4 --identities 20 --steps 1 --warmup 1 --workers 1 --device cpu"


def test_each_variant_and_source_is_measured_three_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "r.jsonl"
    more = "--rounds 2 --records-at-least 12 --precision float32 bfloat16 --sources cpu packed_rgb --rows"
    assert step.main([*SMALL.split(), *more.split(), str(path)]) == 0
    found = read_rows(path)
    assert_made_here(found)
    formats, sources = ("float32", "bfloat16"), ("cpu", "packed rgb, page_cache")
    assert [(row["way"], row["precision"], row["source"]) for row in found] == [
        *(("replayed", precision, "none") for precision in formats),
        *(("loader", precision, source) for precision in formats for source in sources),
        *(("fed", precision, source) for precision in formats for source in sources),
    ]
    replayed = {row["precision"]: row["images_per_s"]["median"] for row in found if row["way"] == "replayed"}
    for row in found:
        assert ("input_stall" in row) == ("bottleneck" in row) == (row["way"] == "fed")
        assert ("share_of_gemm_rate" in row) == (row["way"] != "loader")
        if row["way"] == "fed":
            stall = 1 - row["images_per_s"]["median"] / replayed[row["precision"]]
            assert row["input_stall"] == pytest.approx(stall)
            assert row["bottleneck"] in ("loader", "model", "shared processor")
    assert capsys.readouterr().out.count("input_stall") == 4


def test_a_records_file_brings_its_own_images_and_identities(tmp_path: Path):
    write_tiny_records(tmp_path, identities=30, images=1)
    path = tmp_path / "r.jsonl"
    more = f"--ways loader --rounds 1 --records-at-least 100 --sources cpu --records {tmp_path} --rows {path}"
    assert step.main([*SMALL.replace("--image-size 32", "--image-size 64").split(), *more.split()]) == 0
    (row,) = read_rows(path)
    assert (row["image_size"], row["identities"], row["records"]) == (32, 30, 100)
    assert row["way"] == "loader"


def test_batches_that_lay_ready_do_not_make_a_loader_look_fast():
    def slow_after_a_full_queue() -> Iterator[Batch]:
        for number in itertools.count():
            if number >= 5:
                time.sleep(0.002)
            yield batch

    labels = torch.zeros(4, dtype=torch.int64)
    batch = Batch(torch.zeros(4, 3, 2, 2), labels, labels, labels.bool(), 0, 0, labels.numpy(), labels.bool().numpy())
    assert step.loader_images_per_s(slow_after_a_full_queue(), 4, batches=3) < 4 / 0.002


def test_the_bottleneck_is_the_slower_one_unless_both_together_are_slower_still():
    fast, slow = [100.0, 101.0, 102.0], [10.0, 10.1, 10.2]
    assert step.bottleneck(loader=fast, replayed=slow, fed=[10.0, 10.0, 10.1]) == "model"
    assert step.bottleneck(loader=slow, replayed=fast, fed=[10.0, 10.1, 10.2]) == "loader"
    assert step.bottleneck(loader=fast, replayed=slow, fed=[7.0, 7.1, 7.2]) == "shared processor"
    assert step.input_stall([8.0, 8.0], [10.0, 10.0]) == pytest.approx(0.2)
    assert step.input_stall([11.0], [10.0]) < 0


def test_steps_that_were_not_committed_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build_poisoned(**options):
        built, batch = build(**options)
        batch.images[0, 0, 0, 0] = float("nan")
        return built, batch

    build = step.build_step
    monkeypatch.setattr(step, "build_step", build_poisoned)
    with pytest.raises(ValueError, match="a step was not finite"):
        step.main([*SMALL.split(), "--ways", "replayed", "--rounds", "1", "--rows", str(tmp_path / "r.jsonl")])
    assert not (tmp_path / "r.jsonl").exists()


def test_operations_of_a_step_follow_from_its_shapes():
    options = step._parser().parse_args(["--image-size", "112", "--identities", "85742"])
    gflop = step._gflop_per_image(options)
    backbone = 3 * 2 * 0.221  # MobileFaceNet: 0.221 G multiply-adds, forward and both gradients
    assert gflop == pytest.approx(backbone + 4 * 85_742 * 512 / 1e9, rel=0.02)
