"""What a dry run found, for people: its report as text, problems last, where they are seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adadistill.core.config.strict_yaml import LoadedConfig
from adadistill.core.recipe import Recipe
from adadistill.recipes.resolved_recipe import resolved_text

_PRESENCE = {"there": "", "missing": "MISSING", "optional": "not there", "download": "from the Hub"}


def as_text(report: dict[str, Any], loaded: LoadedConfig[Recipe] | None = None) -> str:
    """The report of `dry_run`; without a recipe, its problems alone."""
    lines: list[str] = []
    if loaded is not None:
        lines = [f"recipe {report['name']}, hash {report['recipe_hash'][:12]}", *_indented(resolved_text(loaded)), ""]
        lines += [*_records(report), *_steps(report, loaded.config.optim.epochs), *_rates(report), *_memory(report)]
        lines += ["reads", *_indented(_reads(report["reads"])), "", *_writes(report), _resume(report["resume"]), ""]
        if report["notes"]:
            lines += ["notes", *_bulleted(report["notes"]), ""]
    if report["would_start"]:
        return "\n".join([*lines, "would start: nothing was found against it. Nothing was written."])
    problems = report["problems"]
    return "\n".join([*lines, f"would not start, {len(problems)} problem(s):", *_bulleted(problems)])


def _records(report: dict[str, Any]) -> list[str]:
    records = report["records"]
    if records is None:
        return []
    sealed = "there: every record is checked as it is read" if records["sealed"] else "none"
    lines = [
        f"{records['path']}: {records['images']:,} images of {records['identities']:,} identities",
        f"header    {records['header']}",
        f"index     {records['index']}",
        f"seal      {sealed}",
    ]
    return ["records", *_indented(lines), ""]


def _steps(report: dict[str, Any], epochs: int) -> list[str]:
    steps = report["steps"]
    if steps is None:
        return []
    in_parts = f", in {steps['parts']} parts" if steps["parts"] > 1 else ""
    lines = [
        f"batch     {steps['global_batch_size']} = {steps['world_size']} x {steps['batch_per_device']} a device"
        + in_parts,
        f"an epoch  {steps['per_epoch']:,} steps; {steps['dropped']} images fill no step, others every epoch",
        f"in all    {steps['in_all']:,} steps, {epochs} epochs",
    ]
    return [f"steps on {report['device']}", *_indented(lines), ""]


def _rates(report: dict[str, Any]) -> list[str]:
    points = report["learning_rate"]
    rows = [f"{one['epoch']:>5} {one['step']:>9,}  {one['rate']:<12.6g} {one['what']}" for one in points]
    return ["learning rate", *_indented(["epoch      step  rate", *rows]), ""] if rows else []


def _memory(report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    if memory is None:
        return []
    return [
        f"memory of a device, an estimate for {memory['assumption']}",
        *_indented(f"{name:<22} {size:>9.3f} GB" for name, size in memory["parts_gb"].items()),
        f"  {'in all':<22} {memory['needed_gb']:>9.3f} GB of {memory['usable_gb']:.3f} to use",
        "",
    ]


def _reads(files: list[dict[str, Any]]) -> list[str]:
    width = max(len(file["key"]) for file in files)
    found = [
        _PRESENCE[file["presence"]] or ("folder" if file["size_bytes"] is None else _size(file["size_bytes"]))
        for file in files
    ]
    return [f"{file['key']:<{width}}  {file['path']}  {what}" for file, what in zip(files, found, strict=True)]


def _writes(report: dict[str, Any]) -> list[str]:
    folder, writes, space = report["folder"], report["writes"], report["space"]
    width = max(len(one["path"]) for one in writes)
    lines = [f"{one['path']:<{width}}  {one['what']}{' (there already)' if one['exists'] else ''}" for one in writes]
    if space is not None:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in space["parts_bytes"].items())
        free = "unknown" if space["free_bytes"] is None else _size(space["free_bytes"])
        lines += [
            f"a checkpoint has about {_size(space['one_bytes'])} ({parts})",
            f"{space['kept']} stay, {space['most_at_once']} at once while one is written: "
            f"{_size(space['needed_bytes'])} more needed, {free} free",
        ]
    return [f"writes, in {folder}" + ("" if Path(folder).is_absolute() else f" of {Path.cwd()}"), *_indented(lines)]


def _resume(resume: dict[str, Any]) -> str:
    if resume["checkpoint"] is not None:
        where = f", in epoch {resume['epoch']}" if resume["epoch"] is not None else ""
        return f"  goes on from {resume['checkpoint']}, after step {resume['step']}{where}"
    return "  begins a new run" + (", as --resume auto finds no checkpoint" if resume["asked"] == "auto" else "")


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
