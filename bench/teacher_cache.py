"""Stored teacher embeddings against the teacher itself: rows, or images, a second, and the processor time of each.

Three ways to the stored ones: `gather` copies float16 rows out of the memory-mapped file into host memory; `rows` is
what a step does, float32 unit rows on the device; `resident` is the same from a cache that lies in the memory of the
device. Beside them runs the teacher network in its fastest form (bench/teacher.py has the others) on a batch that is
already on the device. Random ids, each batch its own, from a synthetic cache of N records in two views.

Isolates fetching; leaves out the student and loading, which the teacher in the loop needs and a cache does not change.
Leaves out cold disks too: the file was just written, so the system's page cache holds it where memory allows, and only
the first round has to map its pages. A cold row of 512 float16 costs a page of 4 KiB from the disk. Before timing, all
three ways must give the rows that were written. Processor time is that of all threads of the process.

    python -m adadistill.bench teacher_cache --records 200000 --batch-size 512 2048
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.probes import copy_gb_per_s
from adadistill.bench.rows import append_row
from adadistill.bench.teacher import build_runner, noise, random_teacher
from adadistill.bench.timing import drain, spread
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.teachers.cached_teacher import CachedTeacher
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheHeader, CacheWriter, TeacherCache

TINY = (
    "--records 5000 --embedding-dim 16 --batch-size 3 7 --teacher-arch ir18 --teacher-width 0.125 --image-size 32 "
    "--teacher-batch-size 2 --rounds 2 --calls 2 --device cpu"
)

_BLOCK_RECORDS = 4096
_NOBODY = "0" * 64
_CHECKED = 512
_CYCLED = 1 << 18
"""Random ids that are fetched, batch by batch, before any comes again: their rows fill no processor's own caches."""

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Source:
    """One way to embeddings."""

    name: str
    batch_size: int
    calls: int
    """Batches in a round."""
    fetch: Callable[[int], object]
    """Gets the batch of that number."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Each with median, p20 and p80 over the rounds."""

    per_s: dict[str, float]
    cpu_us_each: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and append rows."""
    arguments = _parser().parse_args(argv)
    device = torch.device(arguments.device)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cache = write_synthetic_cache(Path(folder) / "cache", arguments.records, arguments.embedding_dim)
        sources = [
            *cache_sources(cache, arguments.batch_size, arguments.calls, device),
            teacher_source(arguments, device),
        ]
        measured = alternating(sources, rounds=arguments.rounds, device=device)
    _report(sources, measured, arguments, device)
    return 0


def write_synthetic_cache(folder: Path, records: int, embedding_dim: int) -> TeacherCache:
    """A cache of noise, through the real writer."""
    header = CacheHeader(
        num_records=records,
        embedding_dim=embedding_dim,
        views=(PLAIN, MIRRORED),
        block_records=_BLOCK_RECORDS,
        teacher={"sha256": _NOBODY, "name": "noise"},
        records={"fingerprint": _NOBODY, "num_records": records, "name": "none"},
        built={},
    )
    with CacheWriter(folder, header, main=True) as writer:
        for block in range(header.num_blocks):
            writer.write_block(block, block_rows(header, block))
    return TeacherCache(folder)


def block_rows(header: CacheHeader, block: int) -> npt.NDArray[np.float16]:
    """(n, V, D) unit rows of a block; a function of its number."""
    shape = (len(header.block_record_range(block)), header.num_views, header.embedding_dim)
    rows = np.random.default_rng(block).standard_normal(shape, dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16)


def cache_sources(cache: TeacherCache, batch_sizes: Sequence[int], calls: int, device: torch.device) -> list[Source]:
    """The three ways to stored rows, for each batch size, after each gave the rows that were written.

    Raises:
        ValueError: one did not.
    """
    mirroring = Augmentation(AugmentConfig(), mirror_probability=0.5, seed=0, image_size=112)
    fetches: dict[str, Callable[[Ids, Flags], Any]] = {
        "gather": lambda ids, mirrored: cache.gather(ids, mirrored.astype(np.int64)),
        "rows": CachedTeacher(cache, augmentation=mirroring, device=device).rows,
        "resident": CachedTeacher(cache, augmentation=mirroring, device=device, on_device=True).rows,
    }
    for name, fetch in fetches.items():
        _check(name, fetch, cache)
    return [
        Source(name, batch_size, calls, _cycling(fetch, len(cache), batch_size))
        for batch_size in batch_sizes
        for name, fetch in fetches.items()
    ]


def teacher_source(arguments: argparse.Namespace, device: torch.device) -> Source:
    """The teacher in the loop, in the form that training runs on such a device."""
    form = "bfloat16-compiled" if device.type == "cuda" else "float32-folded"
    network = random_teacher(arguments.teacher_arch, arguments.teacher_width, arguments.image_size, device)
    on_cuda = device.type == "cuda"
    count = arguments.teacher_batch_size or (1024 if on_cuda else 8)
    calls = arguments.teacher_calls or (10 if on_cuda else 1)
    runner = build_runner(form, network, noise(count, arguments.image_size, device, seed=1))
    return Source(f"{arguments.teacher_arch} {form}", count, calls, lambda call: runner.embed())


def alternating(sources: Sequence[Source], *, rounds: int, device: torch.device) -> list[Measured]:
    """Rounds of all sources in turn, so that a busy machine slows all; each begins with one more batch to warm up."""
    per_s: list[list[float]] = [[] for _ in sources]
    cpu_us: list[list[float]] = [[] for _ in sources]
    for number in range(rounds):
        for index, source in enumerate(sources):
            source.fetch(-1)
            drain(device)
            started, cpu_started = time.perf_counter(), time.process_time()
            for call in range(number * source.calls, (number + 1) * source.calls):
                source.fetch(call)
            drain(device)
            fetched = source.calls * source.batch_size
            per_s[index].append(fetched / (time.perf_counter() - started))
            cpu_us[index].append(1e6 * (time.process_time() - cpu_started) / fetched)
    return [Measured(spread(rates), spread(costs)) for rates, costs in zip(per_s, cpu_us, strict=True)]


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("teacher_cache", __doc__)
    parser.add_argument("--records", type=int, default=200_000, help="2 x 2 bytes x dim of disk each (410 MB)")
    parser.add_argument("--embedding-dim", type=int, default=512)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--folder", help="where the cache is written for the time being (default: the system's)")
    parser.add_argument("--teacher-arch", default="ir50")
    parser.add_argument("--teacher-width", type=float, default=1.0)
    parser.add_argument("--teacher-batch-size", type=int, help="default: 1024 on CUDA, 8 elsewhere")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="batches a round, of each way to stored rows")
    parser.add_argument(
        "--teacher-calls", type=int, help="batches a round, of the teacher (default: 10 on CUDA, 1 elsewhere)"
    )
    return parser


def _cycling(fetch: Callable[[Ids, Flags], Any], records: int, batch_size: int) -> Callable[[int], Any]:
    """Fetches random rows, those of a call decided by its number."""
    draw = np.random.default_rng(0)
    batches = -(-_CYCLED // batch_size)
    ids = draw.integers(records, size=(batches, batch_size))
    mirrored = draw.integers(2, size=(batches, batch_size)).astype(bool)
    return lambda call: fetch(ids[call % batches], mirrored[call % batches])


def _check(name: str, fetch: Callable[[Ids, Flags], Any], cache: TeacherCache) -> None:
    """Compare with the rows of the first and the last block, made anew."""
    draw = np.random.default_rng(1)
    for block in {0, cache.header.num_blocks - 1}:
        ids = cache.header.block_record_range(block)
        chosen, mirrored = draw.integers(len(ids), size=_CHECKED), draw.integers(2, size=_CHECKED).astype(bool)
        wanted = torch.from_numpy(block_rows(cache.header, block)[chosen, mirrored.astype(np.int64)]).double()
        found = torch.as_tensor(fetch(chosen + ids.start, mirrored)).cpu()
        if found.dtype != torch.float16:
            wanted = torch.nn.functional.normalize(wanted, dim=1)
        error = (found.double() - wanted).abs().max().item()
        if not error <= (0.0 if found.dtype == torch.float16 else 1e-6):
            raise ValueError(f"{name}: rows of block {block} are {error:.1e} off what was written; nothing was timed")


def _share_of_copy_rate(source: str, rows_per_s: float, dim: int, device: torch.device) -> float | None:
    """Of a way to stored rows: float16 read and float16 or, as unit rows, float32 written. None for a teacher.

    Rows that cross to a GPU do not run under the roof of its own memory.
    """
    written = {"gather": 2, "rows": 4, "resident": 4}.get(source)
    if written is None or (device.type == "cuda" and source != "resident"):
        return None
    return rows_per_s * dim * (2 + written) / 1e9 / copy_gb_per_s(device)


def _report(
    sources: Sequence[Source], measured: Sequence[Measured], arguments: argparse.Namespace, device: torch.device
) -> None:
    teacher = measured[-1]
    for source, found in zip(sources, measured, strict=True):
        rate, cpu_us = found.per_s, found.cpu_us_each
        faster = rate["median"] / teacher.per_s["median"]
        less_cpu = teacher.cpu_us_each["median"] / cpu_us["median"] if cpu_us["median"] > 0.0 else None
        append_row(
            arguments.rows, bench="teacher_cache", source=source.name, batch_size=source.batch_size,
            records=arguments.records, embedding_dim=arguments.embedding_dim, image_size=arguments.image_size,
            teacher_width=arguments.teacher_width, rounds=arguments.rounds, device=device, page_cache="warm",
            per_s=rate, cpu_us_each=cpu_us, against_teacher=faster, cpu_against_teacher=less_cpu,
            share_of_copy_rate=_share_of_copy_rate(source.name, rate["median"], arguments.embedding_dim, device),
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
