"""`make gpu-check`: the GPU tests, then every bench by priority, inside a time budget; a short table last.

Jobs run as processes of their own, so that one that fails or overruns costs itself alone. Rows go to $OUT where that is
set, else to `bench/results`. Exit code 1 if a job failed; jobs for which no time was left are listed as skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.bench.rows import results_folder
from adadistill.loaders.dali_pipeline import DaliMissingError, require_dali

ROOT = Path(__file__).resolve().parent.parent
_SHORTEST_S = 20.0


@dataclass(frozen=True)
class Job:
    """One process of the check."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    """Longest it may take, whatever is left of the budget."""


def jobs(faces: Path | None) -> list[Job]:
    """All jobs, most important first.

    Args:
        faces: folder of real faces, or None where there is none.
    """
    margin = (*_bench("kernels.bench_margin_softmax"), "--rows", "margin_softmax.jsonl")
    step = (*_bench("step"), "--rows", "step.jsonl")
    listed = [
        Job("gpu tests", ("-m", "pytest", "-q", "-m", "gpu", "tests"), 240),
        Job("step mobilefacenet", (*step, "--precision", "bfloat16", "--compile", "eager", "compiled"), 150),
        Job("step iresnet50", (*step, "--arch", "iresnet50", "--precision", "bfloat16", "--batch-size", "512"), 90),
        Job(
            "teacher ir50, ir101",
            (*_bench("teacher"), "--arch", "ir50", "ir101", "--batch-size", "1024", "--rows", "teacher.jsonl"),
            240,
        ),
        Job("teacher cache", (*_bench("teacher_cache"), "--rows", "teacher_cache.jsonl"), 120),
        Job("step float32", (*step, "--precision", "float32", "--steps", "50"), 60),
        Job("centre update", (*_bench("kernels.bench_centre_update"), "--rows", "centre_update.jsonl"), 40),
        Job("head prologue", (*_bench("kernels.bench_head_prologue"), "--rows", "head_prologue.jsonl"), 120),
        Job("margin softmax", (*margin, "--classes", "85742", "--batch", "384", "1024", "2048", "4096"), 120),
        Job("margin softmax, large C", (*margin, "--classes", "360232", "2059906", "--batch", "1024", "4096"), 150),
        Job("planar augment", (*_bench("kernels.bench_planar_augment"), "--rows", "planar_augment.jsonl"), 60),
    ]
    if faces is not None:
        decoder = _decoder()
        run = ("-m", "adadistill.bench.real_faces", str(faces), "--decoder", decoder, "--rows", "real_faces.jsonl")
        loader = (*_bench("loader"), str(faces / "train.rec"), "--tile", "50000", "--rows", "loader.jsonl")
        loads = ("--hw-decoder-load", "0", "0.35", "0.65", "1")
        listed.append(Job("loader, 5 KB JPEGs", (*loader, "--repeats", "3", *loads), 150))
        listed.append(Job("loader, 8 KB JPEGs", (*loader, "--repeats", "3", "--quality", "95"), 120))
        listed.append(Job("loader, augmented", (*loader, "--repeats", "3", "--augment", "adaface"), 120))
        listed.append(Job("input stall", (*_bench("input_stall"), str(faces), "--rows", "input_stall.jsonl"), 120))
        listed.append(Job("real faces, 3 seeds", (*run, "--kinds", "distilled", "--seeds", "0", "1", "2"), 300))
        listed.append(Job("real faces, baseline", (*run, "--kinds", "baseline", "--seeds", "0", "1", "2"), 300))
    return listed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m adadistill.bench.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time budget of the whole check")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run the jobs whose names hold one of these")
    parser.add_argument("--faces", type=Path, help="folder of real faces (default: $ADADISTILL_DATA/faces)")
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes
    faces = arguments.faces or Path(os.environ.get("ADADISTILL_DATA", ROOT.parent / "shared" / "data")) / "faces"
    chosen = [
        job
        for job in jobs(faces if faces.is_dir() else None)
        if arguments.only is None or any(text in job.name for text in arguments.only)
    ]
    if not chosen:
        parser.error(f"no job's name holds any of {arguments.only}")
    table = [_run(job, deadline) for job in chosen]
    print(f"\n{'job':<24} {'result':<10} {'seconds':>8}   rows in {results_folder()}")
    for name, result, seconds in table:
        print(f"{name:<24} {result:<10} {seconds:>8.1f}")
    return int(any(result not in ("ok", "skipped") for _, result, _ in table))


def _decoder() -> str:
    try:
        require_dali()
    except DaliMissingError:
        print("DALI is not installed here; real faces are decoded on the CPU")
        return "cpu"
    return "dali"


def _bench(module: str) -> tuple[str, str]:
    return "-m", f"adadistill.bench.{module}"


def _run(job: Job, deadline: float) -> tuple[str, str, float]:
    left = deadline - time.monotonic()
    if left < _SHORTEST_S:
        return job.name, "skipped", 0.0
    print(f"\n== {job.name}: python {' '.join(job.command)}", flush=True)
    started = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *job.command], cwd=ROOT, timeout=min(left, job.limit_s), check=False)
        result = "ok" if done.returncode == 0 else f"exit {done.returncode}"
    except subprocess.TimeoutExpired:
        result = "too slow"
    return job.name, result, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
