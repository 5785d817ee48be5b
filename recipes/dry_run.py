"""`adadistill train --dry-run`: the opening of the very launch, stopped before anything is written or trained.

Every look of `core/training/opening.py` is taken, and what it refuses is collected. No folder is made or owned, nothing
is downloaded, no process group is formed. Under torchrun rank 0 looks and speaks for all; the others end at once.

Exit codes: 0 the run would start; 2 it would not, and every reason is listed.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
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
from adadistill.core.training.rate_table import rate_table
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.errors import Refused, WorkFailed
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.record_index import RecordIndex
from adadistill.recipes.dry_run_text import as_text
from adadistill.recipes.outputs import will_write_folder
from adadistill.recipes.profiled_launch import profile_request, refuse_without_cuda
from adadistill.recipes.resolved_recipe import recipe_files, resolved_values
from adadistill.recipes.run_files import read_files, written_paths

_REFUSALS = (Refused, WorkFailed, ValueError, OSError, ImportError)


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
        print(json.dumps(report, indent=1) if arguments.json else as_text(report))
        return 2
    folder = arguments.out or Path("runs") / loaded.config.name
    with found.warnings_as_notes():
        opening = _open(loaded.config, folder, ranks, arguments, found)
        report = _report(loaded, opening, arguments, found)
    print(json.dumps(report, indent=1) if arguments.json else as_text(report, loaded))
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
            self.problems.append(str(error) or type(error).__name__)

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
