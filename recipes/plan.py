"""Predict what a recipe needs and how fast it runs before it is launched: `adadistill plan RECIPE --gpu h200 --gpus 8`.

    adadistill plan RECIPE [key.path=value ...] --gpu h200|h100|a100|cpu [--gpus N] [--nodes N] [--json]

Counts come from the recipe's network and records, rates from measured rows of that kind of device where there are any,
else from constants; every rate is marked `measured`, with its row, or `assumed`. A plan is no measurement. Nothing is
read but the recipe, the index of its records where they exist, and the rows.

Exit codes: 0 planned; 2 the recipe or a number is wrong, a count is missing, or the recipe does not fit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adadistill.core.communication import bytes_by_part, handed_bytes, wire_bytes
from adadistill.core.cost_model.devices import DEVICES, NETWORK_GBIT_PER_S, DeviceModel, memory_of_machine_gb
from adadistill.core.cost_model.measured_rows import MeasuredRows
from adadistill.core.cost_model.plan import make_plan
from adadistill.core.cost_model.step_model import Launch, Plan, PlanError
from adadistill.core.recipe import Recipe, load_recipe
from adadistill.loaders.pipelines.pipeline import named_records
from adadistill.loaders.usable_cpus import usable_cpus
from adadistill.recipes.entry_point import entry_point

SHIPPED_ROWS = Path(__file__).resolve().parent.parent / "bench" / "results"


@entry_point("adadistill plan", codes={"RecordError": 2})
def main(argv: Sequence[str]) -> int:
    """Parse, plan, print; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    device = DEVICES[arguments.gpu]
    launch = _launch(recipe, device, arguments)
    files = sorted(SHIPPED_ROWS.glob("*.jsonl")) if arguments.rows is None else arguments.rows
    plan = make_plan(recipe, launch, MeasuredRows(files, device))
    print(json.dumps(_as_json(recipe, launch, plan), indent=1) if arguments.json else _table(recipe, launch, plan))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships with the package")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of the recipe")
    parser.add_argument("--gpu", required=True, choices=sorted(DEVICES), help="kind of device")
    parser.add_argument("--gpus", type=int, default=1, help="devices in all, one process each (default: 1)")
    parser.add_argument("--nodes", type=int, help="machines they are spread over (default: as few as hold them)")
    parser.add_argument("--images", type=int, help="records (default: counted in the recipe's)")
    parser.add_argument("--identities", type=int, help="classes (default: data.num_classes, or counted)")
    parser.add_argument("--memory-gb", type=float, help="of a device (default: its kind's; cpu: this machine's)")
    parser.add_argument(
        "--cores", type=int, help="CPU cores for each device (default: its kind's; cpu: this machine's)"
    )
    parser.add_argument(
        "--network-gbit", type=float, default=NETWORK_GBIT_PER_S, help="of a node, Gbit/s (default: %(default)s)"
    )
    parser.add_argument("--packed-layout", choices=("planes", "rgb"), default="planes", help="of a packed store")
    parser.add_argument("--teacher-arch", metavar="ARCH", help="network of a teacher whose recipe does not say it")
    parser.add_argument(
        "--rows", type=Path, nargs="+", metavar="FILE", help="measured rows, JSONL (default: those of bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _launch(recipe: Recipe, device: DeviceModel, arguments: argparse.Namespace) -> Launch:
    """What the command line says, completed by the records and the device.

    Raises:
        PlanError: a count is nowhere to be found, or a number is out of range.
    """
    if arguments.gpus < 1:
        raise PlanError(f"--gpus must be positive, got {arguments.gpus}")
    images, identities = _counts(recipe, arguments.images, arguments.identities)
    nodes = arguments.nodes if arguments.nodes is not None else math.ceil(arguments.gpus / device.devices_per_node)
    if device.is_cpu and arguments.nodes is None:
        nodes = 1
    a_node = max(1, arguments.gpus // max(nodes, 1))
    memory_gb, cores = arguments.memory_gb, arguments.cores
    if memory_gb is None:
        memory_gb = device.memory_gb if device.memory_gb is not None else memory_of_machine_gb() / a_node
    if cores is None:
        cores = device.cores if device.cores is not None else max(1, usable_cpus() // a_node)
    return Launch(
        device=device, ranks=arguments.gpus, nodes=nodes, memory_gb=memory_gb, cores=cores,
        network_gbit_per_s=arguments.network_gbit, images=images, identities=identities,
        packed_layout=arguments.packed_layout, teacher_arch=arguments.teacher_arch,
    )  # fmt: skip


def _counts(recipe: Recipe, images: int | None, identities: int | None) -> tuple[int, int]:
    """Records and classes: as told, else from the recipe, else from its records."""
    identities = recipe.data.num_classes if identities is None else identities
    if images is not None and identities is not None:
        return images, identities
    if not Path(recipe.data.records).exists():
        missing = [name for name, count in (("--images", images), ("--identities", identities)) if count is None]
        raise PlanError(
            f"data.records {recipe.data.records} is not there, so nothing tells how much there is to train on; give "
            f"{' and '.join(missing)} (MS1MV2: --images 5822653 --identities 85742)"
        )
    records = named_records(recipe.data)
    return (
        len(records) if images is None else images,
        records.num_classes if identities is None else identities,
    )


def _as_json(recipe: Recipe, launch: Launch, plan: Plan) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "device": launch.device.name,
        "devices": launch.ranks,
        "nodes": launch.nodes,
        "images": launch.images,
        "identities": launch.identities,
        "global_batch_size": plan.batch_per_device * launch.ranks,
        **{name: value for name, value in asdict(plan).items() if name != "transfers"},
        "needed_memory_gb": plan.needed_memory_gb,
        "bytes_by_part": bytes_by_part(plan.transfers),
        "wire_bytes_per_step": wire_bytes(plan.transfers, launch.ranks),
        "is_measurement": False,
    }


def _table(recipe: Recipe, launch: Launch, plan: Plan) -> str:
    where = f"{launch.ranks} x {launch.device.name}" + (f" on {launch.nodes} nodes" if launch.nodes > 1 else "")
    low, high = plan.images_per_s_range
    lines = [
        f"{recipe.name} on {where}: {launch.images:,} images of {launch.identities:,} identities",
        *(f"  {reason}" for reason in plan.reasons),
        "",
        f"memory of a device          {plan.needed_memory_gb:>10.2f} GB of {plan.usable_memory_gb:.1f} to use",
        *(f"  {name:<24}  {size:>10.2f}" for name, size in plan.memory_gb.items()),
        "",
        f"step of {plan.batch_per_device} a device",
        *(f"  {name:<24}  {ms:>10.3f} ms" for name, ms in plan.step_ms.items()),
        f"  {'loader, beside it':<24}  {plan.loader_ms:>10.3f} ms",
        f"  bottleneck: {plan.bottleneck}",
        "",
    ]
    if plan.transfers:
        sent, handed = wire_bytes(plan.transfers, launch.ranks) / 1e6, handed_bytes(plan.transfers) / 1e6
        lines += [
            f"sent by a device in a step  {sent:>10.2f} MB on a ring ({handed:.2f} handed over)",
            *(
                f"  {part:<24}  {size / 1e6:>10.2f} MB handed over"
                for part, size in bytes_by_part(plan.transfers).items()
            ),
            "",
        ]
    lines += [
        f"images/s                    {plan.images_per_s:>10,.0f}"
        + (f" ({low:,.0f} with nothing of the student fused, {high:,.0f} with all)" if high > 1.01 * low else ""),
        f"epoch                       {_duration(plan.epoch_s):>10}",
        f"{recipe.optim.epochs} epochs".ljust(28)
        + f"{_duration(plan.total_s):>10}, evaluation and checkpoints not counted",
        "",
        "rests on",
        *(f"  {i.basis:<8}  {i.name}: {_value(i.value)} {i.unit}".rstrip() + f"  ({i.source})" for i in plan.inputs),
        "",
        "This is a prediction, not a measurement.",
    ]
    return "\n".join(lines)


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    """5.2 s, 12.3 min, 4.1 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
