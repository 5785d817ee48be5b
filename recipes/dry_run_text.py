"""A launch check as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adadistill.core.config.strict_yaml import LoadedConfig
from adadistill.core.config.text import dump_value, leaf_keys, plain_values
from adadistill.core.launch_check.check import LaunchCheck
from adadistill.core.recipe import Recipe


def resolved_values(loaded: LoadedConfig[Recipe]) -> list[tuple[str, Any, str]]:
    """Every value of a recipe: dotted key, plain value, origin."""
    plain = plain_values(loaded.config)
    rows = []
    for key in leaf_keys(loaded.config):
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        rows.append((key, value, loaded.provenance[key]))
    return rows


def resolved_text(loaded: LoadedConfig[Recipe]) -> list[str]:
    """Key, value and origin of every value in columns; a file is shown by its name."""
    rows = [(key, dump_value(value), _short_origin(origin)) for key, value, origin in resolved_values(loaded)]
    names = max(len(key) for key, _, _ in rows)
    values = min(36, max(len(value) for _, value, _ in rows))  # longer ones push their origin to the right
    return [f"{key:<{names}}  {value:<{values}}  {origin}" for key, value, origin in rows]


def as_json(check: LaunchCheck) -> dict[str, Any]:
    """Everything that the text says, as JSON values."""
    parts = ("records", "steps", "memory", "space", "resume")
    return {
        "would_start": check.would_start,
        "problems": check.findings.problems,
        "notes": check.findings.notes,
        "name": check.recipe.config.name,
        "recipe_hash": check.recipe_hash,
        "recipe": {key: {"value": value, "origin": origin} for key, value, origin in resolved_values(check.recipe)},
        "folder": check.folder,
        "device": check.device,
        **{part: None if (value := getattr(check, part)) is None else asdict(value) for part in parts},
        "learning_rate": [asdict(point) for point in check.rates],
        "reads": [asdict(file) for file in check.findings.reads],
        "writes": [asdict(path) for path in check.writes],
    }


def as_text(check: LaunchCheck) -> str:
    """For people; problems come last, where they are seen."""
    lines = [
        f"recipe {check.recipe.config.name}, hash {check.recipe_hash[:12]}",
        *_indented(resolved_text(check.recipe)),
        "",
        *_records(check),
        *_steps(check),
        *_rates(check),
        *_memory(check),
        "reads",
        *_indented(_reads(check)),
        "",
        *_writes(check),
        _resume(check),
        "",
    ]
    if check.findings.notes:
        lines += ["notes", *_bulleted(check.findings.notes), ""]
    if check.would_start:
        return "\n".join([*lines, "would start: nothing was found against it. Nothing was written."])
    problems = check.findings.problems
    return "\n".join([*lines, f"would not start, {len(problems)} problem(s):", *_bulleted(problems)])


def _records(check: LaunchCheck) -> list[str]:
    records = check.records
    if records is None:
        return []
    return [
        "records",
        *_indented(
            [
                f"{records.path}: {records.images:,} images of {records.identities:,} identities",
                f"header    {records.header}",
                f"index     {records.index}",
                f"seal      {'there: every record is checked as it is read' if records.sealed else 'none'}",
            ]
        ),
        "",
    ]


def _steps(check: LaunchCheck) -> list[str]:
    steps = check.steps
    if steps is None:
        return []
    epochs = check.recipe.config.optim.epochs
    return [
        f"steps on {check.device}",
        *_indented(
            [
                f"batch     {steps.global_batch_size} = {steps.world_size} x {steps.batch_per_device} a device"
                + (f", in {steps.parts} parts" if steps.parts > 1 else ""),
                f"an epoch  {steps.per_epoch:,} steps; {steps.dropped} images fill no step, others every epoch",
                f"in all    {steps.in_all:,} steps, {epochs} epochs",
            ]
        ),
        "",
    ]


def _rates(check: LaunchCheck) -> list[str]:
    if not check.rates:
        return []
    rows = [f"{point.epoch:>5} {point.step:>9,}  {point.rate:<12.6g} {point.what}" for point in check.rates]
    return ["learning rate", *_indented(["epoch      step  rate", *rows]), ""]


def _memory(check: LaunchCheck) -> list[str]:
    memory = check.memory
    if memory is None:
        return []
    return [
        f"memory of a device, an estimate for {memory.assumption}",
        *_indented(f"{name:<22} {size:>9.3f} GB" for name, size in memory.parts_gb.items()),
        f"  {'in all':<22} {memory.needed_gb:>9.3f} GB of {memory.usable_gb:.3f} to use",
        "",
    ]


def _reads(check: LaunchCheck) -> list[str]:
    words = {"there": "", "missing": "MISSING", "optional": "not there", "download": "from the Hub"}
    width = max((len(file.key) for file in check.findings.reads), default=0)
    return [
        f"{file.key:<{width}}  {file.path}  "
        + (words[file.presence] or (_size(file.size_bytes) if file.size_bytes is not None else "folder"))
        for file in check.findings.reads
    ]


def _writes(check: LaunchCheck) -> list[str]:
    width = max(len(path.path) for path in check.writes)
    lines = [
        f"writes, in {check.folder}" + ("" if Path(check.folder).is_absolute() else f" of {Path.cwd()}"),
        *_indented(f"{w.path:<{width}}  {w.what}{' (there already)' if w.exists else ''}" for w in check.writes),
    ]
    space = check.space
    if space is not None:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in space.parts_bytes.items())
        free = "unknown" if space.free_bytes is None else _size(space.free_bytes)
        lines += _indented(
            [
                f"a checkpoint has about {_size(space.one_bytes)} ({parts})",
                f"{space.kept} stay, {space.most_at_once} at once while one is written: "
                f"{_size(space.needed_bytes)} more needed, {free} free",
            ]
        )
    return lines


def _resume(check: LaunchCheck) -> str:
    resume = check.resume
    if resume.checkpoint is not None:
        where = f", in epoch {resume.epoch}" if resume.epoch is not None else ""
        return f"  goes on from {resume.checkpoint}, after step {resume.step}{where}"
    return "  begins a new run" + (", as --resume auto finds no checkpoint" if resume.asked == "auto" else "")


def _short_origin(origin: str) -> str:
    path, _, line = origin.rpartition(":")
    return f"{Path(path).name}:{line}" if path and line.isdecimal() and "=" not in path else origin


def _size(size: int) -> str:
    """3.1 GB, 12.5 MB, 4 kB; powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _bulleted(lines: Iterable[str]) -> list[str]:
    return ["  - " + line.replace("\n", "\n    ") for line in lines]
