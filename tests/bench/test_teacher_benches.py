"""The benches of teachers run tiny on the CPU, leave rows that can be read, and time nothing that is wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_rows import assert_made_here

from adadistill.bench import rows, teacher, teacher_cache
from adadistill.core.teachers.cached_teacher import CachedTeacher
from adadistill.core.teachers.network_teacher import NetworkTeacher

TEACHER = "--arch ir18 --width 0.125 --image-size 32 --batch-size 2 --rounds 2 --calls 1 --device cpu"
# 5000 records are two blocks, the second a short one.
CACHE = (
    "--records 5000 --embedding-dim 16 --batch-size 3 7 --teacher-arch ir18 --teacher-width 0.125 --image-size 32 "
    "--teacher-batch-size 2 --rounds 2 --calls 2 --device cpu"
)


def test_the_teacher_bench_measures_each_form_against_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "r.jsonl"
    assert teacher.main([*TEACHER.split(), "--forms", "float32-folded", "bfloat16", "--rows", str(path)]) == 0
    found = rows.read_rows(path)
    assert_made_here(found)
    assert [row["form"] for row in found] == ["float32", "float32-folded", "bfloat16"]
    for row in found:
        assert row["images_per_s"]["median"] > 0
        assert row["gflop_per_image"] > 0
        assert {"tf32_conv", "tf32_matmul"} <= row.keys()
        least = 0.999 if row["form"] == "bfloat16" else 1 - 1e-6
        assert least <= row["cosine"]["min"] <= row["cosine"]["mean"] <= 1 + 1e-12
        assert row["cosine"]["min"] <= row["cosine"]["p1"]
    assert found[0]["against_float32"] == 1.0
    assert capsys.readouterr().out.count("ir18") == 3


def test_the_teacher_bench_measures_compiled_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Traced as always, but run without the C++ compiler, which takes long and is not everywhere.
    monkeypatch.setattr(teacher, "NetworkTeacher", partial(NetworkTeacher, compile_backend="aot_eager"))
    path = tmp_path / "r.jsonl"
    arguments = ["--forms", "bfloat16-compiled", "--rows", str(path)]
    assert teacher.main([*TEACHER.split(), *arguments]) == 0
    eager, *compiled = rows.read_rows(path)
    assert [row["form"] for row in compiled] == ["bfloat16-compiled"]
    assert all(row["first_call_s"] > eager["first_call_s"] for row in compiled)


def test_the_teacher_bench_times_no_form_that_points_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build(name: str, *arguments: Any) -> teacher.Runner:
        runner = build_runner(name, *arguments)
        if name == "bfloat16":
            runner.images = runner.images.flip(1)  # a network given BGR for RGB
        return runner

    build_runner = teacher.build_runner
    monkeypatch.setattr(teacher, "build_runner", build)
    with pytest.raises(ValueError, match=r"bfloat16: .* nothing was timed"):
        teacher.main([*TEACHER.split(), "--forms", "bfloat16", "--rows", str(tmp_path / "r.jsonl")])
    assert not (tmp_path / "r.jsonl").exists()


def test_the_cache_bench_measures_each_way_to_rows_against_the_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "r.jsonl"
    assert teacher_cache.main([*CACHE.split(), "--folder", str(tmp_path), "--rows", str(path)]) == 0
    found = rows.read_rows(path)
    assert_made_here(found)
    ways = ["gather", "rows", "resident"]
    assert [(row["source"], row["batch_size"]) for row in found] == [
        *((way, size) for size in (3, 7) for way in ways),
        ("ir18 float32-folded", 2),
    ]
    for row in found:
        assert row["per_s"]["median"] > 0
        assert row["cpu_us_each"]["median"] >= 0
    assert found[-1]["against_teacher"] == 1.0
    assert len(capsys.readouterr().out.strip().splitlines()) == len(found)
    assert list(tmp_path.iterdir()) == [path]  # the cache is gone


def test_the_cache_bench_times_no_way_that_gives_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def rows_unmirrored(self: CachedTeacher, record_ids: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        return right_rows(self, record_ids, np.zeros_like(mirrored))

    right_rows = CachedTeacher.rows
    monkeypatch.setattr(CachedTeacher, "rows", rows_unmirrored)
    with pytest.raises(ValueError, match=r"rows: rows of block \d are .* nothing was timed"):
        teacher_cache.main([*CACHE.split(), "--folder", str(tmp_path)])
