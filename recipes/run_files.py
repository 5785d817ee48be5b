"""The files that a run would read and write, as a dry run lists them; whether they are right, the opening says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adadistill.core.recipe import Recipe
from adadistill.core.teachers.cvlface import SHORT_NAMES
from adadistill.core.training.folder_owner import owner_file
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.records.record_seal import seal_path

Presence = Literal["there", "missing", "optional", "download"]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file or folder that the run would read."""

    key: str
    """The recipe key that names it, or what it lies beside."""
    path: str
    presence: Presence
    """`optional`: not there, and not needed. `download`: on the Hub, or in the Hub's cache."""
    size_bytes: int | None
    """Size of a file that is there."""


@dataclass(frozen=True, slots=True)
class WrittenPath:
    """A file or folder that the run writes."""

    path: str
    what: str
    exists: bool
    """There already: added to or replaced, as a resume does."""


def read_files(recipe: Recipe, recipe_files: list[str], checkpoint: str | None) -> list[ReadFile]:
    """Everything that the run reads, in the order in which a recipe names it."""
    found = [_read("recipe", path) for path in recipe_files]
    found += [_read(key, path) for key, path in _named(recipe)]
    records = Path(recipe.data.records)
    found_records = _stat(records)
    if found_records is not None and stat.S_ISREG(found_records.st_mode):
        beside = {"property": records.with_name("property"), "seal": seal_path(records)}
        if recipe.data.index is None:
            beside = {"index": records.with_suffix(".idx"), **beside}
        found += [_read(f"{name} beside data.records", str(path), needed=False) for name, path in beside.items()]
    if recipe.teacher is not None and recipe.teacher.cvlface is not None:
        found += _of_cvlface(recipe.teacher.cvlface, recipe.teacher.revision, recipe.teacher.lock)
    return found if checkpoint is None else [*found, _read("--resume", checkpoint)]


def written_paths(recipe: Recipe, folder: Path, *, profiles: bool) -> list[WrittenPath]:
    """Everything that the run writes, the teacher's lock among it."""
    run = RunFolder(folder)
    evaluates = bool(recipe.evaluation.sets or recipe.evaluation.ijb or recipe.evaluation.tinyface)
    planned = [
        (run.recipe, "the resolved recipe"),
        (run.environment, "versions, devices, command"),
        (run.metrics, "a line every log.every steps" + (" and each evaluation" if evaluates else "")),
        (owner_file(folder), "who works here; renamed when it leaves, and numbered on"),
        (run.checkpoints, _when_saved(recipe)),
        (run.report, "results of the evaluations" if evaluates else "a folder for reports"),
        (run.path / "heartbeat", "where each process is, to notice one that hangs"),
        *(
            (run.path / name, "a copy of the metrics")
            for name, wanted in (("tensorboard", recipe.log.tensorboard), ("wandb", recipe.log.wandb is not None))
            if wanted
        ),
    ]
    if profiles:
        planned.append((run.profile, "profiles of some steps"))
    if recipe.teacher is not None and recipe.teacher.cvlface is not None:
        planned.append((Path(recipe.teacher.lock), "the teacher's commit and hashes, once it has loaded first"))
    return [WrittenPath(str(path), what, _stat(path) is not None) for path, what in planned]


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    data, teacher, evaluation = recipe.data, recipe.teacher, recipe.evaluation
    single = {"data.records": data.records, "data.index": data.index, "data.packed": data.packed}
    if teacher is not None:
        keys = ("embeddings", "cache", "color_set", *({teacher.source} - {"cvlface", None}))
        single |= {f"teacher.{key}": getattr(teacher, str(key)) for key in keys}
    single["centres.path"] = recipe.centres.path
    yield from ((key, path) for key, path in single.items() if path is not None)
    for key in ("sets", "ijb", "tinyface"):
        yield from ((f"evaluation.{key}", path) for path in getattr(evaluation, key))


def _of_cvlface(source: str, revision: str | None, lock: str) -> list[ReadFile]:
    if Path(source).is_dir():
        teacher = _read("teacher.cvlface", source)
    else:
        where = f"{SHORT_NAMES.get(source, source)} at {revision[:12] if revision else 'its newest commit'}"
        teacher = ReadFile("teacher.cvlface", where, "download", None)
    return [_read("teacher.lock", lock, needed=False), teacher]


def _read(key: str, path: str, *, needed: bool = True) -> ReadFile:
    found = _stat(path)
    presence: Presence = "there" if found is not None else "missing" if needed else "optional"
    return ReadFile(key, path, presence, found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None)


def _stat(path: str | Path) -> os.stat_result | None:
    """What a path leads to; None where it leads nowhere, may not be looked at, or is no possible name."""
    try:
        return os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL, or characters that the file system cannot encode
        return None


def _when_saved(recipe: Recipe) -> str:
    config = recipe.checkpoint
    pairs = ((config.every_steps, "step"), (config.every_epochs, "epoch"))
    when = [f"every {unit}" if count == 1 else f"every {count} {unit}s" for count, unit in pairs if count]
    return f"step-*/, saved {', '.join([*when, 'at the end'])}; the newest {config.keep} stay"
