"""Training on one process and on several over the same global batch: images/s, bytes of each part, and equal losses.

Every number of processes trains the same recipe on the same synthetic faces, three times. First in float64, with a
student without batch norm (whose batch statistics are those of a rank's own images): the losses of all numbers of
processes must be the same ones, else nothing is reported. Then with its collectives counted, to be set against the
formula of `core/communication.py`. Then as the recipe says, timed. The whole loop is measured, its loader and one log
line a step included; evaluation and checkpoints are left out. Processes on one machine share its cores: there, the
ratio to one process tells what communication and smaller batches cost, not what more machines would gain.

    python -m adadistill.bench scaling --ranks 1 2 --kinds stored network trainable
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row
from adadistill.bench.timing import spread
from adadistill.core.backbones import backbone_skeleton, build_backbone
from adadistill.core.communication import (
    CollectiveCounter,
    Transfer,
    by_step,
    bytes_by_part,
    handed_bytes,
    step_transfers,
    wire_bytes,
)
from adadistill.core.distributed import Ranks, distributed_session
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.recipe import Recipe, parse_recipe
from adadistill.core.training.run import run_training
from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.loaders.synthetic.synthetic_faces import SyntheticFacesConfig, render_faces
from adadistill.loaders.usable_cpus import usable_cpus

# The first steps settle DDP's buckets, and what is cached and compiled.
_SETTLING_STEPS = 4
# Losses are averaged over ranks in float32.
_LOSS_TOLERANCE = 1e-6
TINY = (
    "--ranks 1 --width 0.125 --embedding-dim 16 --image-size 32 --global-batch-size 8 --identities 10 --steps 2 "
    "--device cpu"
)
_KINDS = ("stored", "network", "trainable")


class DisagreementError(WorkFailed, ValueError):
    """Another number of processes trains something else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    arguments = _parser().parse_args(argv)
    if arguments.plan is not None:
        _train_as_one_rank(json.loads(arguments.plan.read_text(encoding="utf-8")))
        return 0
    if any(ranks < 1 or arguments.global_batch_size % ranks for ranks in arguments.ranks):
        print(f"--global-batch-size {arguments.global_batch_size} must divide by {arguments.ranks}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="adadistill-scaling-") as folder:
        _write_faces(Path(folder), arguments)
        if "network" in arguments.kinds:
            _train_a_teacher(Path(folder), arguments)
        try:
            for kind in arguments.kinds:
                _measure(kind, Path(folder), arguments)
        except DisagreementError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("scaling", __doc__)
    parser.set_defaults(device=None if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes; the first is compared with")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=["stored"], help="teacher or centres")
    parser.add_argument("--arch", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--embedding-dim", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--global-batch-size", type=int, default=64)
    parser.add_argument("--identities", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)  # what one rank is told
    return parser


def _write_faces(folder: Path, arguments: argparse.Namespace) -> None:
    """`long.rec` for the timed run and `short.rec` for the others, an epoch each; random teacher rows beside them."""
    import simplejpeg

    people = np.arange(min(arguments.identities, 1000))
    config = SyntheticFacesConfig(image_size=arguments.image_size)
    faces = render_faces(config, people, np.zeros_like(people))
    bodies = [simplejpeg.encode_jpeg(image) for image in faces.images_u8]
    for name, steps in (("long", _SETTLING_STEPS + arguments.steps), ("short", _SETTLING_STEPS + 1)):
        count = arguments.global_batch_size * steps
        with RecordWriter(folder / f"{name}.rec") as writer:
            for key in range(count):
                writer.write(key, bodies[key % len(bodies)], labels=float(key % arguments.identities))
        rows = np.random.default_rng(0).normal(size=(count, 2, arguments.embedding_dim))
        np.save(folder / f"{name}.npy", (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16))


def _recipe(kind: str, records: str, folder: Path, arguments: argparse.Namespace) -> str:
    """YAML text of a kind's recipe on records of that name."""
    teacher, method = {
        "stored": (f"{{embeddings: {folder}/{records}.npy, check: false}}", "geometry_margin: {mode: adaptive}"),
        "network": (f"{{checkpoint: {folder}/teacher, check: false}}", "geometry_margin: {mode: adaptive}"),
        "trainable": ("null", "geometry_margin: {mode: off}\ncentres: {kind: trainable}"),
    }[kind]
    return f"""
name: scaling
data:
  records: {folder}/{records}.rec
  num_classes: {arguments.identities}
  image_size: {arguments.image_size}
  global_batch_size: {arguments.global_batch_size}
  decoder: cpu
  workers: 1
teacher: {teacher}
student: {{arch: {arguments.arch}, width: {arguments.width}, embedding_dim: {arguments.embedding_dim}}}
{method}
optim: {{epochs: 1}}
precision: {arguments.precision}
checkpoint: {{every_epochs: null}}
log: {{every: 1}}
"""


def _train_a_teacher(folder: Path, arguments: argparse.Namespace) -> None:
    """A network of the student's own shape that has seen a few steps, for the loop's teacher."""
    device = torch.device("cpu" if arguments.device == "cpu" else "cuda:0")
    recipe = parse_recipe(_recipe("trainable", "short", folder, arguments))
    run_training(recipe, folder / "teacher", ranks=Ranks(device=device))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one number of processes ended with."""

    ranks: int
    losses: list[float]
    """Of the student without batch norm."""
    images_per_s: list[float]
    counted: list[Transfer]
    formula: list[Transfer]


def _measure(kind: str, folder: Path, arguments: argparse.Namespace) -> None:
    recipes = {name: _recipe(kind, name, folder, arguments) for name in ("short", "long")}
    base: _Outcome | None = None
    for ranks in arguments.ranks:
        outcome = _launch(recipes, folder / f"{kind}-{ranks}", ranks, arguments.device)
        base = base or outcome
        loss_off = _check_losses(outcome, base)
        rate = spread(outcome.images_per_s)
        base_rate = statistics.median(base.images_per_s)
        append_row(
            arguments.rows, bench="scaling", arch=arguments.arch, width=arguments.width,
            image_size=arguments.image_size, embedding_dim=arguments.embedding_dim,
            global_batch_size=arguments.global_batch_size, identities=arguments.identities,
            precision=arguments.precision, steps=arguments.steps, device=arguments.device or "cuda", kind=kind,
            ranks=ranks, threads_per_rank=_threads(ranks), images_per_s=rate,
            against_first=rate["median"] / base_rate, bytes_per_rank_and_step=handed_bytes(outcome.counted),
            bytes_by_part=bytes_by_part(outcome.counted), bytes_by_formula=bytes_by_part(outcome.formula),
            wire_bytes_per_rank_and_step=wire_bytes(outcome.counted, ranks), loss_off=loss_off,
        )  # fmt: skip


def _launch(recipes: dict[str, str], folder: Path, ranks: int, device: str | None) -> _Outcome:
    """Train with so many processes; their cores are shared out evenly."""
    folder.mkdir()
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"recipes": recipes, "folder": str(folder), "device": device}))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "adadistill.bench.scaling", "--plan", str(plan)],
        env={**os.environ, "OMP_NUM_THREADS": str(_threads(ranks))}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"training on {ranks} processes failed:\n{done.stderr}")
    found = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return _Outcome(
        ranks,
        found["losses"],
        found["images_per_s"],
        [Transfer(*transfer) for transfer in found["counted"]],
        [Transfer(*transfer) for transfer in found["formula"]],
    )


def _threads(ranks: int) -> int:
    return max(1, usable_cpus() // ranks)


def _check_losses(outcome: _Outcome, base: _Outcome) -> float:
    """Largest relative difference to the losses of the first number of processes.

    Raises:
        DisagreementError: it is more than rounding.
    """
    pairs = zip(outcome.losses, base.losses, strict=True)
    off = max(abs(loss - first) / abs(first) for loss, first in pairs)
    if not off <= _LOSS_TOLERANCE:
        raise DisagreementError(
            f"{outcome.ranks} processes have other losses than {base.ranks}: {outcome.losses} against "
            f"{base.losses}; nothing of them is reported"
        )
    return off


def _train_as_one_rank(plan: dict[str, Any]) -> None:
    """What each process of `_launch` does; rank 0 leaves `outcome.json`."""
    keep_freed_memory()
    folder, short = Path(plan["folder"]), plan["recipes"]["short"]
    with distributed_session(plan["device"]) as ranks:
        exact = parse_recipe(short, overrides=["precision=float64"])
        run_training(exact, folder / "exact", ranks=ranks, student=_without_batch_norm(exact))
        recipe = parse_recipe(short)
        with CollectiveCounter() as counter:
            run_training(recipe, folder / "counted", ranks=ranks)
            *_, counted = by_step(counter.take()) if ranks.world_size > 1 else [[]]
        run_training(parse_recipe(plan["recipes"]["long"]), folder / "timed", ranks=ranks)
        if ranks.is_main:
            outcome = {
                "losses": _logged(folder / "exact", "loss"),
                "images_per_s": _logged(folder / "timed", "images_per_s")[_SETTLING_STEPS:],
                "counted": [[t.part, t.collective, t.bytes] for t in counted],
                "formula": [[t.part, t.collective, t.bytes] for t in _formula(recipe, ranks)],
            }
            (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def _without_batch_norm(recipe: Recipe) -> nn.Module:
    """The recipe's student, whose norms do nothing: an image's embedding does not depend on the others."""
    student = build_backbone(recipe.student, recipe.data.image_size, generator=0)
    for module in list(student.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return student


def _formula(recipe: Recipe, ranks: Ranks) -> list[Transfer]:
    student = backbone_skeleton(recipe.student, recipe.data.image_size)
    assert recipe.data.num_classes is not None, "the recipe of this bench says how many"
    return step_transfers(
        recipe,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        running_statistics=sum(buffer.numel() for buffer in student.buffers() if buffer.is_floating_point()),
        num_classes=recipe.data.num_classes,
        ranks=ranks.world_size,
        value_bytes=8 if recipe.precision == "float64" else 4,
    )


def _logged(run: Path, key: str) -> list[float]:
    """A value of every log line of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if line["event"] == "train"]


if __name__ == "__main__":
    sys.exit(main())
