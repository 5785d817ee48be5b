"""What a run that goes on is held to: the recipe, records, centres and teacher that it began with.

A checkpoint of another recipe, or the same recipe over other files, would train on without an error and mean nothing.
Keys that change how a run is fed, watched or saved may differ; others only where the user allows them by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    list_checkpoints,
    peek_checkpoint,
    resolve_checkpoint,
    verify_checkpoint,
)
from adadistill.core.config.yaml_tree import YamlError
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.recipe import Recipe, stored_recipe_differences
from adadistill.core.teachers import BuiltTeacher
from adadistill.core.training.run_folder import RunFolder, redact_urls
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)

_HARMLESS = (
    "log.",
    "checkpoint.",
    "centres.placement:",
    "evaluation.",
    "data.micro_batch_size:",
    "guard.hang_timeout_s:",
    "data.workers:",
    "data.prefetch:",
    "data.decoder:",
    "data.decode_on:",
    "data.hw_decoder_load:",
    "data.packed:",
    "data.packed_in:",
    "data.seal:",
    "data.links:",
    "data.on_damaged:",
    "data.max_damaged:",
    "name:",
    "teacher.lock:",
    "teacher.cache_verify:",
    "teacher.check:",
)
"""Beginnings of keys that change how a run is fed, watched or saved. What it computes stays the same but
for rounding (another decoder on a GPU) and the samples that batch norm sees at once (micro-batches)."""


class ResumeError(ValueError):
    """A run cannot go on from where it was told to."""


def recipe_changes(stored: str | bytes, recipe: Recipe, *, source: str) -> list[str]:
    """What differs between the recipe that a run stored and the one of now, by dotted key: `optim.lr: 0.1 != 0.2`.

    Passwords in URLs are no part of the comparison, since run folders are written without them.

    Raises:
        YamlError: what was stored is no YAML; its text names the source.
    """
    return stored_recipe_differences(stored, recipe, source=source, clean=redact_urls)


def same_recipe(stored: str | bytes, recipe: Recipe) -> bool:
    """Whether what a run stored as its recipe means the recipe of now, key by key."""
    try:
        return not recipe_changes(stored, recipe, source="the stored recipe")
    except YamlError:
        return False


def refuse_at_the_door(recipe: Recipe, run_folder: RunFolder, resume: str, resume_allow: Sequence[str]) -> Path | None:
    """What little files tell of a resume that will be refused, before anything large is opened.

    Args:
        resume: `auto`, or the path of a checkpoint or a run folder.

    Returns:
        The checkpoint that a path means. None for `auto`, which takes the newest valid one when it is loaded.

    Raises:
        CheckpointError: the path leads to no checkpoint.
        ResumeError: the checkpoint, or the run in the folder, belongs to another recipe.
    """
    if resume != "auto":
        named = resolve_checkpoint(resume)
        refuse_other_run(recipe, None, peek_checkpoint(named), resume_allow)
        refuse_other_beginning(recipe, run_folder, named, resume_allow)
        return named
    saved = list_checkpoints(run_folder.path)
    for path in reversed(saved):
        with suppress(CheckpointError):  # a damaged one is passed over, and refuses nothing
            try:
                refuse_other_run(recipe, None, peek_checkpoint(path), resume_allow)
            except ResumeError:
                verify_checkpoint(path)
                raise
            return None
    if not saved:
        refuse_other_beginning(recipe, run_folder, None, resume_allow)
    return None


def refuse_other_beginning(
    recipe: Recipe, run_folder: RunFolder, checkpoint: Path | None, resume_allow: Sequence[str]
) -> None:
    """Hold a recipe to the run that a folder holds, where the checkpoint that is gone on from is none of that run.

    Raises:
        ResumeError: the folder holds the run of another recipe.
    """
    if checkpoint is not None and checkpoint.resolve().is_relative_to(run_folder.path.resolve()):
        return
    try:
        stored = run_folder.recipe.read_bytes()
    except FileNotFoundError:
        return
    try:
        changes = recipe_changes(stored, recipe, source=str(run_folder.recipe))
    except YamlError as error:  # kept beside the new one, see `RunFolder.start`
        logger.warning("%s cannot be read and is not compared with this run's recipe: %s", run_folder.recipe, error)
        return
    _refuse_changes(f"{run_folder.path} holds a run that was begun", changes, resume_allow)


def refuse_other_run(
    recipe: Recipe, records: ImageSource | None, checkpoint: Checkpoint, resume_allow: Sequence[str]
) -> None:
    """What of a checkpoint can be compared with a recipe, and with its records where they are there, before a run.

    Args:
        checkpoint: its `state` is looked at, no tensor.

    Raises:
        ResumeError: as `run_training`.
    """
    _refuse_other_recipe(recipe, checkpoint, resume_allow)
    if records is not None:
        _refuse_other_records(records, checkpoint)


def _refuse_other_recipe(recipe: Recipe, checkpoint: Checkpoint, resume_allow: Sequence[str]) -> None:
    saved = checkpoint.state.get("recipe")
    if not isinstance(saved, str):
        raise ResumeError(f"{checkpoint.path} is no training checkpoint: it holds no recipe")
    try:
        changes = recipe_changes(saved, recipe, source=str(checkpoint.path))
    except YamlError as error:
        raise ResumeError(f"{checkpoint.path} holds a recipe that cannot be read: {error}") from error
    _refuse_changes(f"{checkpoint.path} was saved", changes, resume_allow)


def _refuse_changes(what: str, changes: Sequence[str], resume_allow: Sequence[str]) -> None:
    allowed = (*_HARMLESS, *(f"{key}:" for key in resume_allow))
    differences = [line for line in changes if not line.startswith(allowed)]
    if differences:
        raise ResumeError(
            f"{what} by another recipe; differences (saved != now):\n  "
            + "\n  ".join(differences)
            + "\n  Use that recipe (recipe.resolved.yaml), or another --out, or allow keys with --resume-allow KEY"
        )


def _refuse_other_records(records: ImageSource, checkpoint: Checkpoint) -> None:
    """Centres and sample order belong to the very records they were made from."""
    if checkpoint.state.get("records") != records.fingerprint():
        raise ResumeError(
            f"{checkpoint.path} was saved while training on other records than {records.path} holds now; "
            "class centres and sample order do not carry over. Point data.records at those of that run"
        )


def refuse_other_centres(centres: FrozenCentres | None, checkpoint: Checkpoint) -> None:
    """Frozen centres are not in the checkpoint: they must be those that it was trained with."""
    if centres is None:
        return
    saved = checkpoint.state.get("frozen_centres")
    sha256 = saved.get("sha256") if isinstance(saved, dict) else None
    if sha256 != centres.sha256:
        trained_with = "no frozen class centres" if sha256 is None else f"frozen class centres of sha256 {sha256}"
        raise ResumeError(
            f"{checkpoint.path} was trained with {trained_with}, centres.path holds {centres.name} of sha256 "
            f"{centres.sha256}; point centres.path at the centres of that run (a run that trained on since has others)"
        )


def refuse_other_teacher(teacher: BuiltTeacher | None, checkpoint: Checkpoint) -> None:
    """The same recipe may find other weights under the same path; the centres are averages of the first ones' rows."""
    saved = checkpoint.state.get("teacher")
    sha256 = saved.get("sha256") if isinstance(saved, dict) else None
    if teacher is None or None in (sha256, teacher.sha256) or sha256 == teacher.sha256:
        return
    raise ResumeError(
        f"{checkpoint.path} was taught by weights of sha256 {sha256}, this run's teacher {teacher.name} has "
        f"{teacher.sha256}; class centres of two teachers must not mix. Give it the weights of that run"
    )
