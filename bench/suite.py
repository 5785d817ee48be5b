"""All benches by priority inside a time budget: what `bench all`, `bench kernels` and `make gpu-check` run.

Jobs run as processes of their own, so that one that fails or overruns costs itself alone, and one after the other, so
that none disturbs another. Rows go to $OUT where that is set, else to `bench/results`. There are two lists of the
sizes that matter, for CUDA and for a CPU; a bench that neither knows of runs last, with its own defaults.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.bench.catalogue import Bench, bench_named, benches

ROOT = Path(__file__).resolve().parent.parent
_SHORTEST_S = 20.0


@dataclass(frozen=True)
class Job:
    """One process."""

    name: str
    command: tuple[str, ...]
    """Arguments of Python."""
    limit_s: float
    """Longest it may take, whatever is left of the budget."""


def jobs(faces: Path | None, *, cuda: bool) -> list[Job]:
    """Jobs at the sizes that matter on such a machine, most important first, every bench at least once.

    Args:
        faces: folder of real faces; without one, benches that need them are left out and others use synthetic faces.
        cuda: whether a GPU is there; otherwise sizes are a CPU's.
    """
    listed = _cuda_jobs(faces) if cuda else _cpu_jobs(faces)
    known = {job.command[2] for job in listed}
    others = [bench for bench in benches() if bench.name not in known and (faces is not None or not bench.needs_faces)]
    return listed + [
        _job(bench.name, bench.name, shlex.quote(str(faces)) if bench.needs_faces else "", 120) for bench in others
    ]


def chosen_jobs(listed: Sequence[Job], only: Sequence[str] | None) -> list[Job]:
    """The jobs whose names hold one of some texts; all of them where there is none.

    Raises:
        ValueError: no name does.
    """
    chosen = [job for job in listed if only is None or any(text in job.name for text in only)]
    if not chosen:
        raise ValueError(f"no job's name holds any of {only}; there are {', '.join(job.name for job in listed)}")
    return chosen


def tiny_jobs(chosen: Sequence[Bench], arguments: Sequence[str] = ()) -> list[Job]:
    """Each bench in seconds on any CPU."""
    return default_jobs(chosen, ["--tiny", *arguments], limit_s=120)


def default_jobs(chosen: Sequence[Bench], arguments: Sequence[str] = (), *, limit_s: float = 600.0) -> list[Job]:
    """Each bench with its own defaults, and further arguments."""
    return [
        Job(bench.name, ("-m", "adadistill.bench", bench.name, "--rows", bench.rows_file, *arguments), limit_s)
        for bench in chosen
    ]


def run_jobs(listed: Sequence[Job], *, minutes: float) -> int:
    """Run jobs and print a table; 1 if one failed. Those for which no time was left are listed as skipped."""
    deadline = time.monotonic() + 60 * minutes
    table = [_run(job, deadline) for job in listed]
    width = max(24, *(len(name) for name, _, _ in table)) if table else 24
    rows = os.environ.get("OUT") or ROOT / "bench" / "results"
    print(f"\n{'job':<{width}} {'result':<10} {'seconds':>8}   rows in {rows}")
    for name, result, seconds in table:
        print(f"{name:<{width}} {result:<10} {seconds:>8.1f}")
    return int(any(result not in ("ok", "skipped") for _, result, _ in table))


def faces_folder(given: Path | None) -> Path | None:
    """The folder of real faces: the one given, else that of $ADADISTILL_DATA; None where there is none.

    Raises:
        ValueError: the one given is no folder with a train.rec.
    """
    if given is not None and not (given / "train.rec").is_file():
        raise ValueError(f"--faces {given}: no folder with a train.rec")
    found = given or Path(os.environ.get("ADADISTILL_DATA", ROOT.parent / "shared" / "data")) / "faces"
    return found if (found / "train.rec").is_file() else None


def _cuda_jobs(faces: Path | None) -> list[Job]:
    records = _records(faces)
    loader = f"{records} --tile 50000"
    return [
        _job(
            "step mobilefacenet",
            "step",
            "--ways replayed --precision bfloat16 --compile eager compiled reduce-overhead",
            200,
        ),
        _job("step iresnet50", "step", "--ways replayed --arch iresnet50 --precision bfloat16 --batch-size 512", 90),
        _job("teacher ir50, ir101", "teacher", "--arch ir50 ir101 --batch-size 1024", 240),
        _job("teacher cache", "teacher_cache", "", 120),
        _job("step float32", "step", "--ways replayed --precision float32 --steps 10", 60),
        _job("centre update", "kernels.bench_centre_update", "", 40),
        _job("head prologue", "kernels.bench_head_prologue", "", 120),
        _job("margin softmax", _SOFTMAX, "--classes 85742 --batch 384 1024 2048 4096", 120),
        _job("margin softmax, large C", _SOFTMAX, "--classes 360232 2059906 --batch 1024 4096", 150),
        _job("planar augment", "kernels.bench_planar_augment", "", 60),
        _job("prelu", "kernels.bench_prelu", "--batch 1024", 30),
        _job("loader, 5 KB JPEGs", "loader", f"{loader} --hw-decoder-load 0 0.35 0.65 1", 150),
        _job("loader, 8 KB JPEGs", "loader", f"{loader} --quality 95", 120),
        _job("loader, augmented", "loader", f"{loader} --augment adaface", 120),
        _job("input stall", "step", f"{_named(records)} --precision bfloat16 --records-at-least 50000", 150),
        *_beside_origin(faces, "", 180),
        _job("scaling, 2 processes on the CPU", "scaling", "--device cpu --width 0.25 --steps 5", 240),
        *_faces_jobs("real faces, 3 seeds", faces, "--kinds distilled --seeds 0 1 2"),
        *_faces_jobs("real faces, baseline", faces, "--kinds baseline --seeds 0 1 2"),
    ]


def _cpu_jobs(faces: Path | None) -> list[Job]:
    records = _records(faces)
    return [
        _job("step, three ways", "step", f"{_named(records)} --identities 816 --sources cpu packed_rgb", 240),
        _job("loader", "loader", f"{records} --tile 50000 --fit", 180),
        _job("loader, augmented", "loader", f"{records} --tile 50000 --augment adaface", 180),
        _job("margin softmax", _SOFTMAX, "--classes 10572 100000 --batch 128 512 --repeats 5", 300),
        _job(
            "teacher ir50", "teacher", "--batch-size 16 --calls 1 --forms float32-folded float32-compiled bfloat16", 300
        ),
        _job("teacher cache", "teacher_cache", "", 120),
        _job("centre update", "kernels.bench_centre_update", "--batch 512 1024", 60),
        _job("head prologue", "kernels.bench_head_prologue", "--batch 384 --repeats 20", 120),
        _job("planar augment", "kernels.bench_planar_augment", "--batch 256 --images 2000 --repeats 5", 120),
        _job("prelu", "kernels.bench_prelu", "", 120),
        *_beside_origin(faces, "--batch-size 64 --variants 'eager float32'", 240),
        _job("scaling, 2 processes", "scaling", "--width 0.25 --steps 5", 300),
        *_faces_jobs("real faces, 1 epoch", faces, _ONE_EPOCH),
    ]


_CPU_FORMS = "float32-folded float32-compiled bfloat16"

_SOFTMAX = "kernels.bench_margin_softmax"

_ONE_EPOCH = (
    "'optim={epochs: 1, milestones: []}' evaluation.sets=[] checkpoint.every_epochs=null log.every=8 --kinds distilled"
)
"""Twenty epochs take half an hour on two cores: here the speed alone."""


def _job(name: str, bench: str, arguments: str, limit_s: float) -> Job:
    words = ("-m", "adadistill.bench", bench, *shlex.split(arguments), "--rows", bench_named(bench).rows_file)
    return Job(name, words, limit_s)


def _records(faces: Path | None) -> str:
    """The .rec file as a word of a command, or nothing: benches then draw faces."""
    return "" if faces is None else shlex.quote(str(faces / "train.rec"))


def _named(records: str) -> str:
    return f"--records {records}" if records else ""


def _faces_jobs(name: str, faces: Path | None, arguments: str) -> list[Job]:
    if faces is None:
        return []
    return [_job(name, "real_faces", f"{shlex.quote(str(faces))} {arguments} --decoder {_decoder()}", 300)]


def _beside_origin(faces: Path | None, arguments: str, limit_s: float) -> list[Job]:
    if faces is None:
        return []
    return [_job("step beside the origin's", "beside_origin", f"{shlex.quote(str(faces))} {arguments}", limit_s)]


def _decoder() -> str:
    from adadistill.loaders.pipelines.dali_pipeline import DaliMissingError, require_dali

    try:
        require_dali()
    except DaliMissingError:
        print("DALI is not installed here; real faces are decoded on the CPU")
        return "cpu"
    return "dali"


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
