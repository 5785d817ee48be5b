"""What a run would write, and whether its folder can take it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adadistill.core.launch_check.checkpoint_space import existing_ancestor
from adadistill.core.launch_check.findings import Findings, stat_of
from adadistill.core.recipe import Recipe
from adadistill.core.training.folder_owner import owner_file, refuse_owned, this_launch
from adadistill.core.training.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class WrittenPath:
    """A file or folder that the run writes."""

    path: str
    what: str
    exists: bool
    """There already: added to or replaced, as a resume does."""


def check_run_folder(folder: Path, *, resuming: bool, take_over: bool, findings: Findings) -> None:
    """Refuse a run folder as the run would: its owner, another run in it, a file in its place, no right to write."""
    with findings.collected():
        if reason := refuse_owned(folder, this_launch(""), take_over=take_over):
            findings.notes.append(reason)
        RunFolder(folder).refuse_other_run(resuming=resuming)
    ancestor = existing_ancestor(folder)
    if not ancestor.is_dir():
        if ancestor != folder.absolute():  # of the folder itself, the line above speaks
            findings.problems.append(f"run folder {folder}: {ancestor} is a file; give --out another path")
    elif not os.access(ancestor, os.W_OK | os.X_OK):
        findings.problems.append(f"run folder {folder} cannot be written: {ancestor} is read-only for this user")


def written_paths(
    recipe: Recipe, folder: Path, *, profiles: bool, of_the_teacher: list[tuple[str, str]]
) -> list[WrittenPath]:
    """Everything that the run writes, the teacher's downloads among it."""
    run = RunFolder(folder)
    evaluates = bool(recipe.evaluation.sets or recipe.evaluation.ijb or recipe.evaluation.tinyface)
    planned = [
        (run.recipe, "the resolved recipe"),
        (run.environment, "versions, devices, command"),
        (run.metrics, "a line every log.every steps" + (" and each evaluation" if evaluates else "")),
        (owner_file(folder), "who works here; renamed when it leaves, and numbered on"),
        (run.checkpoints, _when_saved(recipe)),
        (run.report, "results of the evaluations" if evaluates else "a folder for reports"),
    ]
    planned.append((run.path / "heartbeat", "where each process is, to notice one that hangs"))
    planned += [(run.path / name, "a copy of the metrics") for name in recipe.log.copies.wanted]
    if profiles:
        planned.append((run.profile, "profiles of some steps"))
    planned += [(Path(path), what) for path, what in of_the_teacher]
    return [WrittenPath(str(path), what, stat_of(path) is not None) for path, what in planned]


def _when_saved(recipe: Recipe) -> str:
    config = recipe.checkpoint
    pairs = ((config.every_steps, "step"), (config.every_epochs, "epoch"))
    when = [f"every {unit}" if count == 1 else f"every {count} {unit}s" for count, unit in pairs if count]
    return f"step-*/, saved {', '.join([*when, 'at the end'])}; the newest {config.keep} stay"
