"""All benches by priority inside a time budget: what `bench all`, `bench kernels` and `make gpu-check` run.

Jobs run as processes of their own, so that one that fails or overruns costs itself alone, and one after the other, so
that none disturbs another. Rows go to $OUT where that is set, else to `bench/results`. Two lists hold the sizes that
matter, for CUDA and for a CPU; a bench that neither knows of runs last, with its own defaults.
"""

from __future__ import annotations

import os
import re
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
_SOFTMAX = "kernels.bench_margin_softmax"

# What to run on CUDA, most important first: name, bench, arguments, longest seconds. FACES is the folder of real faces,
# without which its job is left out; RECORDS their train.rec, without which its word is left out and faces are drawn.
_ON_CUDA = (
    ("step mobilefacenet", "step",
     "--ways replayed --precision bfloat16 --compile eager compiled reduce-overhead", 200),
    ("step iresnet50", "step", "--ways replayed --arch iresnet50 --precision bfloat16 --batch-size 512", 90),
    ("teacher ir50, ir101", "teacher", "--arch ir50 ir101 --batch-size 1024", 240),
    ("teacher cache", "teacher_cache", "", 120),
    ("step float32", "step", "--ways replayed --precision float32 --steps 10", 60),
    ("centre update", "kernels.bench_centre_update", "", 40),
    ("head prologue", "kernels.bench_head_prologue", "", 120),
    ("margin softmax", _SOFTMAX, "--classes 85742 --batch 384 1024 2048 4096", 120),
    ("margin softmax, large C", _SOFTMAX, "--classes 360232 2059906 --batch 1024 4096", 150),
    ("planar augment", "kernels.bench_planar_augment", "", 60),
    ("prelu", "kernels.bench_prelu", "--batch 1024", 30),
    ("loader, 5 KB JPEGs", "loader", "RECORDS --tile 50000 --hw-decoder-load 0 0.35 0.65 1", 150),
    ("loader, 8 KB JPEGs", "loader", "RECORDS --tile 50000 --quality 95", 120),
    ("loader, augmented", "loader", "RECORDS --tile 50000 --augment adaface", 120),
    ("input stall", "step", "--records=RECORDS --precision bfloat16 --records-at-least 50000", 150),
    ("step beside the origin's", "beside_origin", "FACES", 180),
    ("scaling, 2 processes on the CPU", "scaling", "--device cpu --width 0.25 --steps 5", 240),
    ("real faces, 3 seeds", "real_faces", "FACES --kinds distilled --seeds 0 1 2 --decoder DECODER", 300),
    ("real faces, baseline", "real_faces", "FACES --kinds baseline --seeds 0 1 2 --decoder DECODER", 300),
)  # fmt: skip
_ON_CPU = (
    ("step, three ways", "step", "--records=RECORDS --identities 816 --sources cpu packed_rgb", 240),
    ("loader", "loader", "RECORDS --tile 50000 --fit", 180),
    ("loader, augmented", "loader", "RECORDS --tile 50000 --augment adaface", 180),
    ("margin softmax", _SOFTMAX, "--classes 10572 100000 --batch 128 512 --repeats 5", 300),
    ("teacher ir50", "teacher", "--batch-size 16 --calls 1 --forms float32-folded float32-compiled bfloat16", 300),
    ("teacher cache", "teacher_cache", "", 120),
    ("centre update", "kernels.bench_centre_update", "--batch 512 1024", 60),
    ("head prologue", "kernels.bench_head_prologue", "--batch 384 --repeats 20", 120),
    ("planar augment", "kernels.bench_planar_augment", "--batch 256 --images 2000 --repeats 5", 120),
    ("prelu", "kernels.bench_prelu", "", 120),
    ("step beside the origin's", "beside_origin", "FACES --batch-size 64 --variants 'eager float32'", 240),
    ("scaling, 2 processes", "scaling", "--width 0.25 --steps 5", 300),
    # Twenty epochs take half an hour on two cores: here the speed alone.
    ("real faces, 1 epoch", "real_faces",
     "FACES 'optim={epochs: 1, milestones: []}' evaluation.sets=[] checkpoint.every_epochs=null log.every=8 "
     "--kinds distilled --decoder DECODER", 300),
)  # fmt: skip


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
    listed = list(_ON_CUDA if cuda else _ON_CPU)
    known = {bench for _, bench, _, _ in listed}
    listed += [(one.name, one.name, "FACES" * one.needs_faces, 120) for one in benches() if one.name not in known]
    return [
        _job(bench_named(bench), _words(arguments, faces), limit_s, name=name)
        for name, bench, arguments, limit_s in listed
        if faces is not None or "FACES" not in arguments
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
    return [_job(bench, ["--tiny", *arguments], 120) for bench in chosen]


def default_jobs(chosen: Sequence[Bench], arguments: Sequence[str] = ()) -> list[Job]:
    """Each bench with its own defaults, and further arguments."""
    return [_job(bench, arguments, 600) for bench in chosen]


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


def _job(bench: Bench, arguments: Sequence[str], limit_s: float, *, name: str = "") -> Job:
    command = ("-m", "adadistill.bench", bench.name, *arguments, "--rows", bench.rows_file)
    return Job(name or bench.name, command, limit_s)


def _words(arguments: str, faces: Path | None) -> list[str]:
    """Arguments with what stands for something replaced."""
    words = [word for word in shlex.split(arguments) if faces is not None or "RECORDS" not in word]

    def meant(found: re.Match[str]) -> str:
        if found[0] == "DECODER":
            return _decoder()
        return str(faces) if found[0] == "FACES" else f"{faces}/train.rec"

    return [re.sub("FACES|RECORDS|DECODER", meant, word) for word in words]


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
