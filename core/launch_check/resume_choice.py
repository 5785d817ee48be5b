"""From which checkpoint a launch would go on, and whether it is one of this recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.core.checkpoints import Checkpoint, CheckpointError, list_checkpoints
from adadistill.core.checkpoints.files import MANIFEST_NAME, step_of
from adadistill.core.checkpoints.peek import peek_checkpoint
from adadistill.core.launch_check.findings import Findings, stat_of
from adadistill.core.recipe import Recipe
from adadistill.core.training.resume import refuse_other_run
from adadistill.loaders.records.image_source import ImageSource


@dataclass(frozen=True, slots=True)
class ResumeChoice:
    """Where the run begins."""

    asked: str
    """`--resume`."""
    checkpoint: str | None
    """The directory; None for a new run."""
    step: int | None
    """Finished steps of the run that it goes on from."""
    epoch: int | None
    """0-based epoch that it goes on in; None where the checkpoint does not say."""


def choose_checkpoint(
    recipe: Recipe,
    folder: Path,
    *,
    resume: str,
    resume_allow: Sequence[str],
    records: ImageSource | None,
    findings: Findings,
) -> ResumeChoice:
    """The newest checkpoint whose manifest, state and sizes are right, held to recipe and records; see `run_training`.

    Hashes of tensors are left to the run, which passes over a checkpoint that fails them.
    """
    if resume == "none":
        return ResumeChoice(resume, None, None, None)
    place = folder if resume == "auto" else Path(resume)
    found, damaged = _newest(place, findings)
    if found is None:
        if resume == "auto" and damaged:
            findings.problems.append(
                f"{place} holds {damaged} checkpoint(s) and none is valid; restore one of them, or move them away to "
                "start the run anew"
            )
        elif resume != "auto":
            what = "is no checkpoint and holds no valid one" if stat_of(place) is not None else "is not there"
            findings.problems.append(f"--resume: {place} {what}")
        return ResumeChoice(resume, None, None, None)
    with findings.collected():
        refuse_other_run(recipe, records, found, resume_allow)
    position = found.state.get("position")
    epoch = position.get("epoch") if isinstance(position, dict) else None
    findings.will_read("--resume", found.path, a_folder=True)
    return ResumeChoice(resume, str(found.path), found.step, epoch if isinstance(epoch, int) else None)


def _newest(place: Path, findings: Findings) -> tuple[Checkpoint | None, int]:
    """The newest good checkpoint, and how many damaged ones are newer."""
    is_checkpoint = stat_of(place / MANIFEST_NAME) is not None or step_of(place) is not None
    try:
        candidates = [place] if is_checkpoint else list_checkpoints(place)[::-1]
    except OSError as error:
        findings.problems.append(f"--resume: {place} cannot be listed: {error.strerror}")
        return None, 0
    for damaged, candidate in enumerate(candidates):
        try:
            return peek_checkpoint(candidate), damaged
        except CheckpointError as error:
            findings.notes.append(f"checkpoint {candidate} would be passed over: {error}")
    return None, len(candidates)
