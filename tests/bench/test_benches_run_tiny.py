"""Every bench runs tiny on the CPU and leaves rows that can be read again, so that none rots until a GPU is at hand."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_records

from adadistill.bench import gpu_check, real_faces, rows, step
from adadistill.bench.kernels import bench_centre_update, bench_head_prologue, bench_planar_augment, bench_prelu


def test_the_step_bench(tmp_path: Path):
    arguments = "--width 0.125 --image-size 32 --batch-size 8 --identities 20 --steps 2 --warmup 1 --device cpu"
    assert (
        step.main([*arguments.split(), "--precision", "float32", "bfloat16", "--rows", str(tmp_path / "r.jsonl")]) == 0
    )
    found = rows.read_rows(tmp_path / "r.jsonl")
    assert [row["precision"] for row in found] == ["float32", "bfloat16"]
    assert all(row["images_per_s"]["median"] > 0 for row in found)


def test_the_prelu_bench(tmp_path: Path):
    assert (
        bench_prelu.main(["--batch", "2", "--repeats", "2", "--device", "cpu", "--rows", str(tmp_path / "r.jsonl")])
        == 0
    )
    assert {row["form"] for row in rows.read_rows(tmp_path / "r.jsonl")} == {"torch", "ours"}


def test_the_centre_update_bench(tmp_path: Path):
    arguments = ["--batch", "7", "16", "--classes", "50", "--dim", "8", "--repeats", "2", "--device", "cpu"]
    assert bench_centre_update.main([*arguments, "--rows", str(tmp_path / "r.jsonl")]) == 0
    assert {row["form"] for row in rows.read_rows(tmp_path / "r.jsonl")} == {"merge", "step", "sequential"}


def test_the_drift_of_half_precision_centres(tmp_path: Path):
    rows_path = str(tmp_path / "r.jsonl")
    bench_centre_update.measure_drift(torch.device("cpu"), rows_path, classes=6, dim=16, batch=4, steps=8)
    found = rows.read_rows(rows_path)
    assert [(row["half"], row["updates_each"]) for row in found[:2]] == [("bfloat16", 8 / 6), ("float16", 8 / 6)]
    assert len(found) == 8
    assert all(0.0 <= row["one_minus_cosine"]["mean"] < 1e-4 for row in found)


def test_the_head_prologue_bench(tmp_path: Path):
    """Without Inductor, whose compiler takes half a minute here."""
    arguments = ["--batch", "5", "9", "--classes", "20", "--dim", "16", "--repeats", "2", "--device", "cpu"]
    assert bench_head_prologue.main([*arguments, "--forms", "eager", "--rows", str(tmp_path / "r.jsonl")]) == 0
    found = rows.read_rows(tmp_path / "r.jsonl")
    assert [(row["form"], row["batch"]) for row in found] == [("eager", 5), ("eager", 9)]
    assert all(row["off"] < 1e-5 and row["ms"]["median"] > 0 for row in found)
    assert all(80 < row["launches"] < 180 for row in found)  # docs/kernels.md has 126 of them; torch decides


def test_the_head_prologue_bench_times_nothing_that_is_wrong():
    problem = bench_head_prologue.make_problem(5, 20, 16, torch.device("cpu"))
    made, gradient = bench_head_prologue.step(problem, *bench_head_prologue.forms_on(torch.device("cpu"))["eager"])
    assert bench_head_prologue.check(problem, (made, gradient)) < 1e-5
    with pytest.raises(ValueError, match="nothing was timed"):
        bench_head_prologue.check(problem, (made, 1.001 * gradient))


def test_the_planar_augment_bench(tmp_path: Path):
    arguments = ["--batch", "5", "--images", "9", "--image-size", "32", "--repeats", "1", "--device", "cpu"]
    assert bench_planar_augment.main([*arguments, "--rows", str(tmp_path / "r.jsonl")]) == 0
    found = rows.read_rows(tmp_path / "r.jsonl")
    assert len(found) == 2 * 3 * 2
    assert {(row["form"], row["layout"]) for row in found} == {
        (form, layout) for form in ("torch", "threads") for layout in ("planes", "rgb")
    }
    assert all(row["images_per_s"] > 0 and row["share_of_copy_rate"] > 0 for row in found)


class _Parsed(BaseException):
    """The arguments were understood."""


def _stopping(parse: Callable[..., object]) -> Callable[..., None]:
    def parse_and_stop(*arguments: object) -> None:
        parse(*arguments)
        raise _Parsed

    return parse_and_stop


def test_every_job_of_the_gpu_check_is_a_command_that_its_bench_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("parse_args", "parse_intermixed_args"):  # they end the process where they do not understand
        monkeypatch.setattr(argparse.ArgumentParser, name, _stopping(getattr(argparse.ArgumentParser, name)))
    listed = [job for job in gpu_check.jobs(tmp_path) if job.name != "gpu tests"]
    assert len(listed) > 8
    for job in listed:
        flag, module, *arguments = job.command
        assert flag == "-m"
        with pytest.raises(_Parsed):
            importlib.import_module(module).main(arguments)


def test_the_gpu_check_runs_what_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    listed = [gpu_check.Job(name, ("-c", ""), 60) for name in ("loader, a", "loader, b", "step")]
    monkeypatch.setattr(gpu_check, "jobs", lambda faces: listed)
    assert gpu_check.main(["--minutes", "2", "--only", "loader"]) == 0
    said = capsys.readouterr().out
    assert "loader, a" in said
    assert "step" not in said
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "nothing"])


@pytest.mark.parametrize("kind", ["distilled", "baseline"])
def test_the_real_faces_bench(tmp_path: Path, kind: str):
    write_tiny_records(tmp_path)
    (tmp_path / "teacher.npy").rename(tmp_path / "teacher_embeddings.npy")
    (tmp_path / "pairs.bin").rename(tmp_path / "faces_holdout.bin")
    small = ["data.image_size=32", "data.global_batch_size=8", "student={width: 0.125, embedding_dim: 16}",
             "optim={epochs: 1, milestones: [], warmup_epochs: 0}"]  # fmt: skip
    assert real_faces.main(
        [str(tmp_path), *small, "--kinds", kind, "--seeds", "3", "--device", "cpu", "--rows", str(tmp_path / "r.jsonl")]
    ) == 0  # fmt: skip
    (row,) = rows.read_rows(tmp_path / "r.jsonl")
    assert (row["kind"], row["seed"], row["set"]) == (kind, 3, "faces_holdout")
    assert 0.0 <= row["accuracy"] <= 1.0


def test_the_gpu_check_runs_jobs_by_priority_within_its_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    listed = [
        gpu_check.Job("good", ("-c", "print('ran')"), 60),
        gpu_check.Job("bad", ("-c", "raise SystemExit(3)"), 60),
        gpu_check.Job("endless", ("-c", "import time; time.sleep(60)"), 1),
    ]
    monkeypatch.setattr(gpu_check, "jobs", lambda faces: listed)
    assert gpu_check.main(["--minutes", "2"]) == 1
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[1:3] for line in table] == [["ok", table[0].split()[2]], ["exit", "3"], ["too", "slow"]]
    assert gpu_check.main(["--minutes", "0.1"]) == 0
    assert capsys.readouterr().out.count("skipped") == 3


def test_the_gpu_check_starts_with_the_gpu_tests_and_knows_the_real_faces(tmp_path: Path):
    names = [job.name for job in gpu_check.jobs(tmp_path)]
    assert names[0] == "gpu tests"
    assert {"loader, 5 KB JPEGs", "input stall", "real faces, 3 seeds"} <= set(names)
    for job in gpu_check.jobs(tmp_path):
        if job.command[1].startswith("adadistill."):
            assert (
                Path(gpu_check.ROOT) / (job.command[1].removeprefix("adadistill.").replace(".", "/") + ".py")
            ).is_file()


def test_committed_rows_can_be_read():
    for path in sorted(rows.RESULTS.glob("*.jsonl")):
        assert rows.read_rows(path), f"{path} is empty"


def test_a_row_that_says_too_little_is_refused(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text('{"bench": "x"}\n')
    with pytest.raises(ValueError, match="line 1"):
        rows.read_rows(tmp_path / "r.jsonl")
