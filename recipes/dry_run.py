"""`adadistill train --dry-run`: the opening of the very launch, stopped before anything is written or trained.

Every look of `core/training/opening.py` is taken, and what it refuses is collected. No folder is made or owned, nothing
is downloaded, no process group is formed. Under torchrun rank 0 looks and speaks for all; the others end at once.

Exit codes: 0 the run would start; 2 it would not, and every reason is listed.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adadistill.core.config.strict_yaml import LoadedConfig, RecipeError
from adadistill.core.device_kinds import DEVICES
from adadistill.core.distributed import LaunchError, Ranks, announced_ranks
from adadistill.core.memory import Setting, checkpoint_space, device_memory, device_of_launch
from adadistill.core.profiling import open_profile, under_nsys
from adadistill.core.recipe import Recipe, recipe_hash, resolve_recipe
from adadistill.core.training.folder_owner import this_launch
from adadistill.core.training.opening import Opening
from adadistill.core.training.optimiser import rate_table
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.errors import Refused, WorkFailed
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.record_index import RecordIndex
from adadistill.recipes.outputs import will_write_folder
from adadistill.recipes.profiled_launch import profile_request, refuse_without_cuda
from adadistill.recipes.resolved_recipe import recipe_files, resolved_text, resolved_values
from adadistill.recipes.run_files import read_files, written_paths

_REFUSALS = (Refused, WorkFailed, ValueError, OSError, ImportError)
_PRESENCE = {"there": "", "missing": "MISSING", "optional": "not there", "download": "from the Hub"}


def add_dry_run_options(parser: argparse.ArgumentParser) -> None:
    """`--dry-run`, `--gpu` and `--json`."""
    group = parser.add_argument_group("dry run", "what the launch would do, without doing it; docs/performance.md")
    group.add_argument("--dry-run", action="store_true", help="open, check and estimate; exit 0 or 2")
    group.add_argument(
        "--gpu", choices=sorted(DEVICES), help="with --dry-run: kind of device to estimate memory for (default: here)"
    )
    group.add_argument("--json", action="store_true", help="with --dry-run: print JSON")


def refuse_without_dry_run(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options of a dry run on a launch that is none."""
    given = [name for name, value in (("--gpu", arguments.gpu), ("--json", arguments.json)) if value]
    if given:
        raise ValueError(f"{' and '.join(given)} go with --dry-run; this launch trains")


def dry_run(arguments: argparse.Namespace) -> int:
    """Open the launch that `adadistill train` was asked for, print what was found; returns the exit code."""
    found = _Findings()
    ranks = _announced(arguments.device, found)
    if not ranks.is_main:
        return 0
    try:
        loaded = resolve_recipe(arguments.recipe, arguments.overrides)
    except RecipeError as error:
        found.problems += [f"{error.source}: {problem}" for problem in error.problems]
        report: dict[str, Any] = {"would_start": False, "problems": found.problems}
        print(json.dumps(report, indent=1) if arguments.json else _as_text(report))
        return 2
    folder = arguments.out or Path("runs") / loaded.config.name
    with found.warnings_as_notes():
        opening = _open(loaded.config, folder, ranks, arguments, found)
        report = _report(loaded, opening, arguments, found)
    print(json.dumps(report, indent=1) if arguments.json else _as_text(report, loaded))
    return 2 if found.problems else 0


class _Findings:
    """Problems would keep the run from starting; notes are worth knowing and stop nothing."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Turn what a launch would refuse, raised inside, into a problem."""
        try:
            yield
        except _REFUSALS as error:
            text = str(error) or type(error).__name__
            self.problems += [] if text in self.problems else [text]  # a resume is looked at twice

    @contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        """Take the package's logged warnings as notes, instead of printing them."""
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.note(record.getMessage())  # type: ignore[method-assign]
        package = logging.getLogger("adadistill")
        propagates, package.propagate = package.propagate, False
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.propagate = propagates

    def note(self, text: str) -> None:
        """Keep what was said, once."""
        if text not in self.notes:
            self.notes.append(text)


def _announced(device: str | None, found: _Findings) -> Ranks:
    try:
        return announced_ranks(device)
    except LaunchError as error:
        found.problems.append(str(error))
    try:
        return announced_ranks("cpu")  # the device was wrong; the number of ranks may be right
    except LaunchError:
        return Ranks()


def _open(recipe: Recipe, folder: Path, ranks: Ranks, arguments: argparse.Namespace, found: _Findings) -> Opening:
    """The looks that a launch takes, in its order; this process alone takes them."""
    alone = Ranks(device=ranks.device)
    with found.noted():
        profile = profile_request(arguments)
        if profile is not None and profile.tool == "nsys" and not under_nsys():
            refuse_without_cuda(arguments.device)
        else:
            open_profile(profile, folder, alone)
    opening = Opening(
        recipe, RunFolder(folder), alone, world_size=ranks.world_size, noted=found.noted, leaves_no_trace=True
    )
    before = len(found.problems)
    with found.noted():
        will_write_folder(folder, remedy="give another --out")
    if len(found.problems) == before:
        opening.look_at_folder(this_launch(""), resume=arguments.resume, take_over=arguments.take_over)
    opening.look_at_resume(resume=arguments.resume, resume_allow=arguments.resume_allow)
    opening.look_at_machine()
    opening.look_at_files()
    opening.choose_checkpoint(resume=arguments.resume, resume_allow=arguments.resume_allow)
    return opening


def _report(
    loaded: LoadedConfig[Recipe], opening: Opening, arguments: argparse.Namespace, found: _Findings
) -> dict[str, Any]:
    """What the launch would do, as JSON values; a part is None where what it needs was not found."""
    recipe, folder = loaded.config, opening.run_folder.path
    records, order = opening.records, opening.order
    memory = space = None
    if records is not None and order is not None:
        memory = _memory(opening, records, arguments.gpu, found)
        space = asdict(
            checkpoint_space(recipe, folder, identities=records.num_classes, steps_per_epoch=order.steps_per_epoch)
        )
    resume = _resume(opening, arguments.resume)
    return {
        "would_start": not found.problems,
        "problems": found.problems,
        "notes": found.notes,
        "name": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "recipe": resolved_values(loaded),
        "folder": str(folder),
        "device": f"{opening.world_size} x {opening.ranks.device.type}",
        "records": None if records is None else _records(records),
        "steps": None if records is None or order is None else _steps(opening, records, order),
        "memory": memory,
        "space": space,
        "resume": resume,
        "learning_rate": [] if order is None else [asdict(point) for point in _rates(recipe, order)],
        "reads": [asdict(file) for file in read_files(recipe, recipe_files(loaded), resume["checkpoint"])],
        "writes": [asdict(w) for w in written_paths(recipe, folder, profiles=arguments.profile is not None)],
    }


def _records(records: ImageSource) -> dict[str, Any]:
    index = getattr(records, "index", None)
    header, origin = "none: no record file", "none"
    if isinstance(index, RecordIndex):
        others = index.num_records - len(index)
        header = f"no header record; {others:,} records without image left out" if others else "no header record"
        if index.num_identities is not None:
            header = f"insightface's header record, {index.num_identities:,} identity records"
        origin = index.reason if index.source == "idx" else f"a scan of the records, because {index.reason}"
    return {
        "path": str(records.path),
        "images": len(records),
        "identities": records.num_classes,
        "header": header,
        "index": origin,
        "sealed": bool(getattr(records, "sealed", False)),
    }


def _steps(opening: Opening, records: ImageSource, order: SampleOrder) -> dict[str, Any]:
    local = order.local_batch_size(opening.world_size)
    return {
        "world_size": opening.world_size,
        "global_batch_size": order.global_batch_size,
        "batch_per_device": local,
        "parts": opening.recipe.data.parts(local),
        "per_epoch": order.steps_per_epoch,
        "in_all": order.steps_per_epoch * opening.recipe.optim.epochs,
        "dropped": len(records) - order.steps_per_epoch * order.global_batch_size,
    }


def _rates(recipe: Recipe, order: SampleOrder) -> list[Any]:
    return rate_table(
        recipe.optim, global_batch_size=order.global_batch_size, steps_per_epoch=order.steps_per_epoch
    )  # fmt: skip


def _memory(opening: Opening, records: ImageSource, asked: str | None, found: _Findings) -> dict[str, Any] | None:
    kind, memory_gb, assumption = device_of_launch(asked, opening.ranks.device, opening.world_size)
    setting = Setting(
        kind=kind, memory_gb=memory_gb, ranks=opening.world_size, images=len(records), identities=records.num_classes
    )
    try:
        memory = device_memory(opening.recipe, setting)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a network that images of this size do not fit
        found.note(f"memory was not estimated: {error}")
        return None
    if not memory.fits:
        found.note(
            f"memory is estimated at {memory.needed_gb:.1f} GB a device, {memory.usable_gb:.1f} GB can be used; "
            "`adadistill plan` says what would fit"
        )
    parts = {"parts_gb": memory.parts_gb, "needed_gb": memory.needed_gb, "usable_gb": memory.usable_gb}
    return {"kind": kind.name, "assumption": assumption, **parts}


def _resume(opening: Opening, asked: str) -> dict[str, Any]:
    found = opening.checkpoint
    position = None if found is None else found.state.get("position")
    epoch = position.get("epoch") if isinstance(position, dict) else None
    return {
        "asked": asked,
        "checkpoint": None if found is None else str(found.path),
        "step": None if found is None else found.step,
        "epoch": epoch if isinstance(epoch, int) else None,
    }


def _as_text(report: dict[str, Any], loaded: LoadedConfig[Recipe] | None = None) -> str:
    """The report of `dry_run`; without a recipe, its problems alone."""
    lines: list[str] = []
    if loaded is not None:
        lines = [f"recipe {report['name']}, hash {report['recipe_hash'][:12]}", *_indented(resolved_text(loaded)), ""]
        lines += [*_records_text(report), *_steps_text(report, loaded.config.optim.epochs)]
        lines += [*_rates_text(report), *_memory_text(report)]
        lines += ["reads", *_indented(_reads_text(report["reads"])), ""]
        lines += [*_writes_text(report), _resume_text(report["resume"]), ""]
        if report["notes"]:
            lines += ["notes", *_bulleted(report["notes"]), ""]
    if report["would_start"]:
        return "\n".join([*lines, "would start: nothing was found against it. Nothing was written."])
    problems = report["problems"]
    return "\n".join([*lines, f"would not start, {len(problems)} problem(s):", *_bulleted(problems)])


def _records_text(report: dict[str, Any]) -> list[str]:
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


def _steps_text(report: dict[str, Any], epochs: int) -> list[str]:
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


def _rates_text(report: dict[str, Any]) -> list[str]:
    points = report["learning_rate"]
    rows = [f"{one['epoch']:>5} {one['step']:>9,}  {one['rate']:<12.6g} {one['what']}" for one in points]
    return ["learning rate", *_indented(["epoch      step  rate", *rows]), ""] if rows else []


def _memory_text(report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    if memory is None:
        return []
    return [
        f"memory of a device, an estimate for {memory['assumption']}",
        *_indented(f"{name:<22} {size:>9.3f} GB" for name, size in memory["parts_gb"].items()),
        f"  {'in all':<22} {memory['needed_gb']:>9.3f} GB of {memory['usable_gb']:.3f} to use",
        "",
    ]


def _reads_text(files: list[dict[str, Any]]) -> list[str]:
    width = max(len(file["key"]) for file in files)
    found = [
        _PRESENCE[file["presence"]] or ("folder" if file["size_bytes"] is None else _size(file["size_bytes"]))
        for file in files
    ]
    return [f"{file['key']:<{width}}  {file['path']}  {what}" for file, what in zip(files, found, strict=True)]


def _writes_text(report: dict[str, Any]) -> list[str]:
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


def _resume_text(resume: dict[str, Any]) -> str:
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
