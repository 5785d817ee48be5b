"""What a run that goes on is held to: the recipe, records, centres and teacher that it began with.

A checkpoint of another recipe, or the same recipe over other files, would train on without an error and mean nothing.
Keys that change how a run is fed, watched or saved may differ; others only where the user allows them by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.checkpoints import Checkpoint
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.recipe import Recipe, dump_recipe, parse_recipe, recipe_differences, recipe_hash
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
"""Beginnings of keys that change how a run is fed, watched or saved, not what it computes."""


class ResumeError(ValueError):
    """A run cannot go on from where it was told to."""


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
        begun = parse_recipe(run_folder.recipe.read_text(encoding="utf-8"), source=str(run_folder.recipe))
    except FileNotFoundError:
        return
    except ValueError as error:  # kept beside the new one, see `RunFolder.start`
        logger.warning("%s cannot be read and is not compared with this run's recipe: %s", run_folder.recipe, error)
        return
    now = parse_recipe(redact_urls(dump_recipe(recipe)), source="the recipe")
    _refuse_differences(f"{run_folder.path} holds a run that was begun", begun, now, resume_allow)


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
    if checkpoint.state.get("recipe_hash") == recipe_hash(recipe):
        return
    saved = checkpoint.state.get("recipe")
    if not isinstance(saved, str):
        raise ResumeError(f"{checkpoint.path} is no training checkpoint: it holds no recipe")
    saved_recipe = parse_recipe(saved, source=str(checkpoint.path))
    _refuse_differences(f"{checkpoint.path} was saved", saved_recipe, recipe, resume_allow)


def _refuse_differences(what: str, saved: Recipe, now: Recipe, resume_allow: Sequence[str]) -> None:
    allowed = (*_HARMLESS, *(f"{key}:" for key in resume_allow))
    differences = [line for line in recipe_differences(saved, now) if not line.startswith(allowed)]
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
