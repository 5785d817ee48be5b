"""Looks at a launch as the run would, part by part, and collects everything instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.core.config.strict_yaml import LoadedConfig
from adadistill.core.distributed import LaunchError, Ranks, announced_ranks
from adadistill.core.launch_check.checkpoint_space import CheckpointSpace, checkpoint_space
from adadistill.core.launch_check.findings import Findings
from adadistill.core.launch_check.memory_estimate import MemoryEstimate, estimate_memory
from adadistill.core.launch_check.other_files import (
    check_centres,
    check_compilers,
    check_copies,
    check_evaluation,
    check_optimiser,
    check_pixel_source,
)
from adadistill.core.launch_check.rate_table import RatePoint, rate_table
from adadistill.core.launch_check.records_summary import RecordsSummary, summarise_records
from adadistill.core.launch_check.resume_choice import ResumeChoice, choose_checkpoint
from adadistill.core.launch_check.teacher_files import check_teacher_files
from adadistill.core.launch_check.written_files import WrittenPath, check_run_folder, written_paths
from adadistill.core.recipe import Recipe, recipe_hash
from adadistill.core.seeding import derive_seed
from adadistill.core.training.resume import refuse_other_beginning
from adadistill.core.training.run_folder import RunFolder
from adadistill.loaders.pipelines.sample_order import SampleOrder


@dataclass(frozen=True, slots=True)
class Steps:
    """How the records are cut into steps."""

    world_size: int
    global_batch_size: int
    batch_per_device: int
    parts: int
    """In which a device's batch goes through the student; 1 where it goes whole."""
    per_epoch: int
    in_all: int
    dropped: int
    """Images of each epoch that fill no step; others every epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchCheck:
    """What a launch would do. A part is None where what it needs was not found; `findings` says why."""

    recipe: LoadedConfig[Recipe]
    recipe_hash: str
    folder: str
    device: str
    records: RecordsSummary | None
    steps: Steps | None
    rates: list[RatePoint]
    memory: MemoryEstimate | None
    space: CheckpointSpace | None
    resume: ResumeChoice
    writes: list[WrittenPath]
    findings: Findings

    @property
    def would_start(self) -> bool:
        """Whether nothing was found that would stop the run."""
        return not self.findings.problems


def check_launch(
    loaded: LoadedConfig[Recipe],
    folder: Path,
    *,
    device: str | None = None,
    kind: str | None = None,
    resume: str = "none",
    resume_allow: Sequence[str] = (),
    take_over: bool = False,
    profiles: bool = False,
    findings: Findings | None = None,
) -> LaunchCheck:
    """Look at the launch of a recipe into a run folder. Nothing is written, and no process group is made.

    Args:
        loaded: of `resolve_recipe`.
        device: as `--device`; kind: of device to estimate memory for, None for the launch's own.
        resume: as `run_training`, with `resume_allow` and `take_over`.
        profiles: whether steps are to be profiled.
        findings: of what was looked at before; problems of it count.
    """
    findings = Findings() if findings is None else findings
    recipe = loaded.config
    with findings.warnings_as_notes():
        _note_recipe_files(loaded, findings)
        ranks = _ranks(device, findings)
        opened = summarise_records(recipe.data, findings, needs_several=recipe.centres.kind != "none")
        records, summary = opened if opened is not None else (None, None)
        steps = None if summary is None else _steps(recipe, summary, ranks, findings)
        check_optimiser(recipe, ranks.device, findings)
        check_compilers(recipe, ranks.device, findings)
        check_copies(recipe, findings)
        check_pixel_source(recipe, records, ranks.device, findings)
        of_the_teacher = check_teacher_files(recipe, records, findings)
        check_centres(recipe, findings)
        check_evaluation(recipe, findings)
        check_run_folder(folder, resuming=resume != "none", take_over=take_over, findings=findings)
        choice = choose_checkpoint(
            recipe, folder, resume=resume, resume_allow=resume_allow, records=records, findings=findings
        )
        if resume != "none":
            found = None if choice.checkpoint is None else Path(choice.checkpoint)
            with findings.collected():
                refuse_other_beginning(recipe, RunFolder(folder), found, resume_allow)
        memory, space = None, None
        if summary is not None and steps is not None:
            memory = _memory(recipe, summary, ranks, kind, findings)
        if memory is not None and summary is not None and steps is not None:
            space = checkpoint_space(
                recipe, folder, identities=summary.identities, steps_per_epoch=steps.per_epoch, findings=findings
            )
    rates = []
    if steps is not None:
        rates = rate_table(recipe.optim, global_batch_size=steps.global_batch_size, steps_per_epoch=steps.per_epoch)
    return LaunchCheck(
        recipe=loaded,
        recipe_hash=recipe_hash(recipe),
        folder=str(folder),
        device=f"{ranks.world_size} x {ranks.device.type}",
        records=summary,
        steps=steps,
        rates=rates,
        memory=memory,
        space=space,
        resume=choice,
        writes=written_paths(recipe, folder, profiles=profiles, of_the_teacher=of_the_teacher),
        findings=findings,
    )


def _note_recipe_files(loaded: LoadedConfig[Recipe], findings: Findings) -> None:
    """The recipe and its base, as far as a value came from them."""
    named = {origin.rpartition(":")[0] for origin in loaded.provenance.values() if _is_line(origin)}
    for path in sorted(named):
        findings.will_read("recipe", path)


def _is_line(origin: str) -> bool:
    """Whether an origin is `FILE:LINE`, and neither `default` nor an override, `key=value`."""
    path, _, line = origin.rpartition(":")
    return bool(path) and line.isdecimal() and "=" not in path


def _ranks(device: str | None, findings: Findings) -> Ranks:
    try:
        return announced_ranks(device)
    except LaunchError as error:
        findings.problems.append(str(error))
    try:
        return announced_ranks("cpu")  # the device was wrong; the number of ranks may be right
    except LaunchError:
        return Ranks()


def _steps(recipe: Recipe, records: RecordsSummary, ranks: Ranks, findings: Findings) -> Steps | None:
    batch = recipe.data.global_batch_size
    with findings.collected():
        order = SampleOrder(records.images, batch, derive_seed(recipe.seed, "sample_order"))
        local = order.local_batch_size(ranks.world_size)
        if recipe.centres.placement == "sharded" and records.identities < ranks.world_size:
            findings.problems.append(
                f"centres.placement sharded cannot spread {records.identities} identities over {ranks.world_size} ranks"
            )
        return Steps(
            world_size=ranks.world_size,
            global_batch_size=batch,
            batch_per_device=local,
            parts=recipe.data.parts(local),
            per_epoch=order.steps_per_epoch,
            in_all=order.steps_per_epoch * recipe.optim.epochs,
            dropped=records.images - order.steps_per_epoch * batch,
        )
    return None


def _memory(
    recipe: Recipe, records: RecordsSummary, ranks: Ranks, kind: str | None, findings: Findings
) -> MemoryEstimate | None:
    try:
        estimate = estimate_memory(
            recipe,
            kind=kind,
            device=ranks.device,
            world_size=ranks.world_size,
            images=records.images,
            identities=records.identities,
        )
    except (ValueError, RuntimeError) as error:  # RuntimeError: a network that images of this size do not fit
        findings.notes.append(f"memory was not estimated: {error}")
        return None
    if not estimate.fits:
        findings.notes.append(
            f"memory is estimated at {estimate.needed_gb:.1f} GB a device, {estimate.usable_gb:.1f} GB can be used; "
            "`adadistill plan` says what would fit"
        )
    return estimate
