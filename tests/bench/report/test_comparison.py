"""Two sets of rows are compared with their noise, whichever way is better, and only where they measured the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_rows import prelu_row

from adadistill.bench import report
from adadistill.bench.report.comparison import compare
from adadistill.bench.timing import spread


def row(ms: list[float], **changes: object) -> dict:
    return prelu_row(ms=spread(ms), share_of_copy_rate=None, **changes)


def rate(images_per_s: list[float]) -> dict:
    found = row([1.0], bench="loader", pipeline="cpu", stage="batch", augment="none", batch_size=2, workers=1)
    for name in ("form", "batch", "channels", "side", "ms", "gb_per_s", "share_of_copy_rate"):
        del found[name]
    return {**found, "images_per_s": spread(images_per_s), "batches": 1, "repeats": 1}


QUIET = [0.99, 1.0, 1.0, 1.0, 1.01]


def scaled(by: float) -> list[float]:
    return [by * value for value in QUIET]


@pytest.mark.parametrize(
    ("a", "b", "ratio", "verdict"),
    [
        (row(scaled(10)), row(scaled(8)), 1.25, "faster"),
        (row(scaled(8)), row(scaled(10)), 0.8, "slower"),
        (rate(scaled(8)), rate(scaled(10)), 1.25, "faster"),
        (rate(scaled(10)), rate(scaled(8)), 0.8, "slower"),
        (row(scaled(10)), row(scaled(10.05)), 0.995, "within noise"),
        (row([7.0, 8.0, 10.0, 12.0, 13.0]), row(scaled(8)), 1.25, "within noise"),
        (row([10.0]), row([8.0]), 1.25, "noise unknown"),
    ],
)
def test_the_verdict_weighs_the_ratio_against_the_noise(a: dict, b: dict, ratio: float, verdict: str):
    (found,) = compare([a], [b]).compared
    assert found.ratio == pytest.approx(ratio, rel=1e-2)
    assert found.verdict == verdict


def test_repeated_rows_count_as_noise_too():
    one = [row(scaled(10)), row(scaled(13)), row(scaled(16))]  # each quiet, the machine is not
    assert compare(one, [row(scaled(10))]).compared[0].verdict == "within noise"
    assert compare(one[:1], [row(scaled(13))]).compared[0].verdict == "slower"
    alone = [row([10.0]), row([10.2])]
    assert compare(alone, [row([5.0]), row([5.1])]).compared[0].verdict == "faster"


def test_equal_machines_are_rarely_called_faster_or_slower():
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        a, b = (row((10.0 + draw.normal(0.0, 0.3, 5)).tolist()) for _ in range(2))
        wrong += compare([a], [b]).compared[0].verdict != "within noise"
    assert wrong / 400 < 0.06


@pytest.mark.parametrize("change", [{"batch": 3}, {"threads": 2}, {"form": "torch"}, {"cpu": "B"}])
def test_only_rows_of_the_same_thing_are_compared(change: dict):
    found = compare([row(scaled(10))], [row(scaled(10), **change)])
    assert (found.compared, found.only_a, found.only_b) == ([], 1, 1)
    assert found.elsewhere == ("cpu" in change)


def test_machines_are_compared_where_that_is_asked_for():
    found = compare([row(scaled(10))], [row(scaled(5), cpu="B")], across_machines=True)
    assert found.compared[0].verdict == "faster"
    assert found.compared[0].what.startswith("A, 2 CPUs to B, 2 CPUs: ")


def test_the_exit_code_is_non_zero_only_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "prelu.jsonl").write_text(json.dumps(row(scaled(8))) + "\n")
    after = tmp_path / "after.jsonl"
    after.write_text(json.dumps(row(scaled(10))) + "\n")
    both = ["--compare", str(tmp_path / "before"), str(after)]
    assert report.main(both) == 0
    assert "| slower |" in capsys.readouterr().out
    assert report.main([*both, "--fail-if-slower"]) == 1
    assert report.main(["--compare", str(after), str(tmp_path / "before"), "--fail-if-slower"]) == 0
    with pytest.raises(SystemExit):
        report.main(["--fail-if-slower"])
