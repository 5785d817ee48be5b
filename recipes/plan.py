"""What a recipe needs on some devices, before it is launched: `adadistill plan RECIPE --gpu h200 --gpus 8`.

    adadistill plan RECIPE [key.path=value ...] --gpu h200|h100|a100|cpu [--gpus N] [--json]

Memory is counted from the recipe's networks, what travels between devices from its shapes; of speed it tells the rows
that were measured on that kind of device. Nothing is read but the recipe, its records' index and the rows.

Exit codes: 0 it fits; 2 the recipe or a number is wrong, a count is missing, or the recipe does not fit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adadistill.core.communication import Transfer, bytes_by_part, handed_bytes, step_transfers, wire_bytes
from adadistill.core.device_kinds import DEVICES, USABLE_MEMORY, DeviceKind, memory_of_machine_gb
from adadistill.core.measured_rows import MeasuredRows
from adadistill.core.memory import (
    DeviceMemory,
    Setting,
    device_memory,
    precision_on,
    runs_teacher,
    stored_image_bytes,
    teacher_network,
    ways_to_fit,
)
from adadistill.core.network_cost import network_cost
from adadistill.core.recipe import Recipe, load_recipe
from adadistill.loaders.pipelines.pipeline import named_records
from adadistill.loaders.usable_cpus import usable_cpus
from adadistill.recipes.entry_point import entry_point

SHIPPED_ROWS = Path(__file__).resolve().parent.parent / "bench" / "results"
NO_TIMES = "Times are not predicted; `adadistill bench step` measures them."


@entry_point("adadistill plan", codes={"RecordError": 2})
def main(argv: Sequence[str]) -> int:
    """Parse, plan, print; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.network_gbit is not None:
        raise ValueError(f"--network-gbit is gone. {NO_TIMES}")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    setting = _setting(recipe, DEVICES[arguments.gpu], arguments)
    plan = make_plan(recipe, setting)
    files = sorted(SHIPPED_ROWS.glob("*.jsonl")) if arguments.rows is None else arguments.rows
    inputs = [*_assumed(recipe, setting), *_measured(recipe, setting, MeasuredRows(files, setting.kind), arguments)]
    report = _as_json(recipe, setting, _nodes(setting.kind, arguments), plan, inputs)
    print(json.dumps(report, indent=1) if arguments.json else _table(report, plan))
    return 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a recipe is spread over devices, what that takes, and why it is spread so."""

    memory: DeviceMemory
    transfers: list[Transfer]
    reasons: list[str]


def make_plan(recipe: Recipe, setting: Setting) -> Plan:
    """A device's share of the batch, and centres where the recipe places them; trainable ones sharded where they only
    fit so.

    Raises:
        ValueError: it does not fit, and what would; an epoch has no step; `data.micro_batch_size` divides no share.
    """
    ranks, asked = setting.ranks, recipe.data.global_batch_size
    batch = asked // ranks
    if not 0 < batch * ranks <= setting.images:
        raise ValueError(
            f"a global batch of {asked} cannot be cut from {setting.images} images for {ranks} devices: it is larger "
            f"than the {setting.images} images, or smaller than the devices are many; an epoch has no step"
        )
    parts = recipe.data.parts(batch)
    reasons = [f"batch: {batch} a device is the recipe's data.global_batch_size {asked}"]
    if ranks > 1:
        reasons[0] += f" over {ranks}"
    if asked % ranks:
        reasons = [
            f"batch: data.global_batch_size {asked} does not divide by {ranks} devices; planned at {batch * ranks}, "
            "the largest below it that does"
        ]
    if parts > 1:
        size = recipe.data.micro_batch_size
        reasons.append(
            f"micro-batches: {parts} of data.micro_batch_size {size}, for a third more of the student's time"
        )
    memory = device_memory(recipe, setting)
    trainable = recipe.centres.kind == "trainable" and recipe.centres.placement == "replicated"
    if not memory.fits and trainable and ranks > 1:
        held = f"{memory.parts_gb['centres']:.2f} GB"
        memory = device_memory(recipe, setting, placement="sharded")
        reasons.append(
            f"centres: sharded over {ranks} devices (centres.placement=sharded), since {held} a device do not fit"
        )
    elif "centres" in memory.parts_gb:
        held = f"{memory.parts_gb['centres']:.2f} GB a device"
        told = f"sharded, as the recipe says, {held}" if memory.placement == "sharded" else f"replicated, {held} fit"
        reasons.append(f"centres: {told}")
    if not memory.fits:
        raise ValueError(_refusal(recipe, setting, memory))
    return Plan(memory, _transfers(recipe, setting, memory), reasons)


def _refusal(recipe: Recipe, setting: Setting, memory: DeviceMemory) -> str:
    """Why this does not fit, and what would."""
    largest = sorted(memory.parts_gb.items(), key=lambda part: -part[1])[:3]
    listed = ", ".join(f"{name} {size:.1f}" for name, size in largest)
    return (
        f"{memory.batch_per_device} images a device need {memory.needed_gb:.1f} GB, {setting.kind.name} has "
        f"{memory.usable_gb:.1f} of {setting.memory_gb:.0f} GB to use. Largest parts, in GB: {listed}. "
        f"What may help: {'; '.join(ways_to_fit(recipe, setting, memory))}"
    )


def _transfers(recipe: Recipe, setting: Setting, memory: DeviceMemory) -> list[Transfer]:
    """What a step hands over, in the batch that was planned."""
    student = network_cost(recipe.student, recipe.data.image_size)
    spread = recipe.data.packed is not None and recipe.data.packed_in == "device_share"
    batch = max(2, memory.batch_per_device * setting.ranks)
    return step_transfers(
        replace(recipe, data=replace(recipe.data, global_batch_size=batch)),
        parameters=student.parameters,
        running_statistics=student.running_statistics,
        num_classes=setting.identities,
        ranks=setting.ranks,
        placement=memory.placement,
        store_image_bytes=stored_image_bytes(recipe, setting.packed_layout) if spread else None,
        value_bytes=8 if recipe.precision == "float64" else 4,
    )


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
    parser.add_argument("--cores", type=int, help="CPU cores that rows of a CPU are told for (default: this machine's)")
    parser.add_argument("--packed-layout", choices=("planes", "rgb"), default="planes", help="of a packed store")
    parser.add_argument("--teacher-arch", metavar="ARCH", help="network of a teacher whose recipe does not say it")
    parser.add_argument(
        "--rows", type=Path, nargs="+", metavar="FILE", help="measured rows, JSONL (default: those of bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--network-gbit", type=float, help=argparse.SUPPRESS)  # gone, which is said
    return parser


def _setting(recipe: Recipe, kind: DeviceKind, arguments: argparse.Namespace) -> Setting:
    """What the command line says, completed by the records and the device.

    Raises:
        ValueError: a count is nowhere to be found, or a number is out of range.
    """
    if arguments.gpus < 1:
        raise ValueError(f"--gpus must be positive, got {arguments.gpus}")
    nodes = _nodes(kind, arguments)
    if nodes < 1 or arguments.gpus % nodes:
        raise ValueError(f"{arguments.gpus} devices cannot be spread evenly over {nodes} nodes")
    images, identities = _counts(recipe, arguments.images, arguments.identities)
    memory_gb = arguments.memory_gb
    if memory_gb is None:
        shared = arguments.gpus // nodes
        memory_gb = kind.memory_gb if kind.memory_gb is not None else memory_of_machine_gb() / shared
    return Setting(
        kind=kind, memory_gb=memory_gb, ranks=arguments.gpus, images=images, identities=identities,
        packed_layout=arguments.packed_layout, teacher_arch=arguments.teacher_arch,
    )  # fmt: skip


def _nodes(kind: DeviceKind, arguments: argparse.Namespace) -> int:
    if arguments.nodes is not None:
        return int(arguments.nodes)
    return 1 if kind.is_cpu else math.ceil(arguments.gpus / kind.devices_per_node)


def _counts(recipe: Recipe, images: int | None, identities: int | None) -> tuple[int, int]:
    """Records and classes: as told, else from the recipe, else from its records."""
    identities = recipe.data.num_classes if identities is None else identities
    if images is not None and identities is not None:
        return images, identities
    if not Path(recipe.data.records).exists():
        missing = [name for name, count in (("--images", images), ("--identities", identities)) if count is None]
        raise ValueError(
            f"data.records {recipe.data.records} is not there, so nothing tells how much there is to train on; give "
            f"{' and '.join(missing)} (MS1MV2: --images 5822653 --identities 85742)"
        )
    records = named_records(recipe.data)
    return (
        len(records) if images is None else images,
        records.num_classes if identities is None else identities,
    )


def _assumed(recipe: Recipe, setting: Setting) -> list[dict[str, Any]]:
    """The numbers of the estimate that were not counted."""
    found: list[tuple[str, float | str, str, str]] = [
        ("memory", setting.memory_gb, "GB", "given, or the device's"),
        ("reserved memory", setting.kind.reserved_gb, "GB", "context, workspaces, communication buffers"),
        ("usable share of memory", USABLE_MEMORY, "", "what blocks of the allocator leave"),
    ]
    if runs_teacher(recipe):
        found.append(("teacher's network", *_swap(teacher_network(recipe, setting.teacher_arch))))
    if recipe.data.packed is not None:
        found.append(("layout of the packed store", setting.packed_layout, "", "given, or that of 4:2:0 JPEGs"))
    return [_input(name, value, unit, "assumed", source) for name, value, unit, source in found]


def _swap(known: tuple[str, str]) -> tuple[str, str, str]:
    return known[0], "", known[1]


def _measured(
    recipe: Recipe, setting: Setting, rows: MeasuredRows, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """What rows say of this kind of device and this recipe's networks."""
    cores = arguments.cores if arguments.cores is not None else max(1, usable_cpus() // setting.ranks)
    size, dim = recipe.data.image_size, recipe.student.embedding_dim
    precision, compiled = precision_on(recipe, setting.kind), recipe.compile != "off"
    found = []
    step = rows.student_s_per_image(recipe.student, size, precision=precision, compiled=compiled, cores=cores)
    if step is not None:
        found.append(_input("student", 1 / step[0].value, "images/s of a step", "measured", step[0].source))
    if recipe.centres.kind != "none" and (softmax := rows.softmax_flop_per_s(dim, cores=cores)) is not None:
        found.append(_input("softmax", softmax.value / 1e12, "TFLOP/s", "measured", softmax.source))
    if runs_teacher(recipe):
        forms = tuple(f"{precision}{form}" for form in ("-compiled", "-folded", ""))
        arch, _ = teacher_network(recipe, setting.teacher_arch)
        if (teacher := rows.teacher_images_per_s(arch, size, forms=forms, cores=cores)) is not None:
            found.append(_input("teacher", teacher.value, "images/s", "measured", teacher.source))
    layout = f"packed {setting.packed_layout}, {recipe.data.packed_in}"
    named = (recipe.data.decoder,) if recipe.data.packed is None else (layout,)
    if (loader := rows.loaded_per_worker(named, recipe.augment.policy)) is not None:
        found.append(_input("loader", loader.value, "images/s and worker", "measured", loader.source))
    return found


def _input(name: str, value: float | str, unit: str, basis: str, source: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "basis": basis, "source": source}


def _as_json(recipe: Recipe, setting: Setting, nodes: int, plan: Plan, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    memory = plan.memory
    return {
        "recipe": recipe.name,
        "device": setting.kind.name,
        "devices": setting.ranks,
        "nodes": nodes,
        "images": setting.images,
        "identities": setting.identities,
        "global_batch_size": memory.batch_per_device * setting.ranks,
        "batch_per_device": memory.batch_per_device,
        "placement": memory.placement,
        "memory_gb": memory.parts_gb,
        "needed_memory_gb": memory.needed_gb,
        "usable_memory_gb": memory.usable_gb,
        "bytes_by_part": bytes_by_part(plan.transfers),
        "wire_bytes_per_step": wire_bytes(plan.transfers, setting.ranks),
        "inputs": inputs,
        "reasons": plan.reasons,
        "times": NO_TIMES,
        "is_measurement": False,
    }


def _table(report: dict[str, Any], plan: Plan) -> str:
    spread = f" on {report['nodes']} nodes" if report["nodes"] > 1 else ""
    lines = [
        f"{report['recipe']} on {report['devices']} x {report['device']}{spread}: {report['images']:,} images of "
        f"{report['identities']:,} identities",
        *(f"  {reason}" for reason in plan.reasons),
        "",
        f"memory of a device          {plan.memory.needed_gb:>10.2f} GB of {plan.memory.usable_gb:.1f} to use",
        *(f"  {name:<24}  {size:>10.2f}" for name, size in report["memory_gb"].items()),
        "",
    ]
    if plan.transfers:
        sent, handed = report["wire_bytes_per_step"] / 1e6, handed_bytes(plan.transfers) / 1e6
        lines += [
            f"sent by a device in a step  {sent:>10.2f} MB on a ring ({handed:.2f} handed over)",
            *(f"  {part:<24}  {size / 1e6:>10.2f} MB handed over" for part, size in report["bytes_by_part"].items()),
            "",
        ]
    for basis, title in (("measured", f"measured on {report['device']}"), ("assumed", "the memory rests on")):
        told = [entry for entry in report["inputs"] if entry["basis"] == basis]
        rows = [f"  {basis:<8}  {e['name']}: {_value(e['value'])} {e['unit']}".rstrip() for e in told]
        lines += [title, *(f"{row}  ({e['source']})" for row, e in zip(rows, told, strict=True))]
        lines += [*([] if told else ["  nothing of this recipe"]), ""]
    return "\n".join([*lines, f"Memory is an estimate, not a measurement. {NO_TIMES}"])


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


if __name__ == "__main__":
    sys.exit(main())
