"""From a recipe to a finished run: builds every part, in the order in which mistakes are cheapest to find.

Files first (records, teacher, verification sets, the run folder), then networks, then the loop takes over.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adadistill.core.backbones import build_backbone
from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    load_checkpoint,
    newest_valid_checkpoint,
    resolve_checkpoint,
)
from adadistill.core.checkpoints.files import row_range
from adadistill.core.checkpoints.network_checkpoint import describe_network
from adadistill.core.cpu_threads import recorded_threads, settle_threads
from adadistill.core.distributed import Ranks, broadcast_text, exchange_rows, gather_texts, run_on_main
from adadistill.core.method.class_centres import (
    AdaptiveCentres,
    TrainableCentres,
    initial_centres,
    trained_product_dtype,
)
from adadistill.core.method.classification import ClassificationObjective
from adadistill.core.method.distillation import DistillationObjective
from adadistill.core.method.frozen_centres import FrozenCentres, load_frozen_centres
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.objective import Objective
from adadistill.core.method.regression_alone import RegressionObjective
from adadistill.core.method.sharded_centres import ShardedCentres
from adadistill.core.method.slow_centres import SlowCentres, slow_centres_dtype
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.profiling import ProfileRequest, StepProfile, open_profile
from adadistill.core.recipe import (
    Recipe,
    dump_recipe,
    recipe_augmentation,
    recipe_hash,
)
from adadistill.core.scoring.evaluation import VerificationSets
from adadistill.core.scoring.suite import Benchmark, BenchmarkPaths, open_benchmarks
from adadistill.core.seeding import derive_seed, seed_process, stream
from adadistill.core.teachers import BuiltTeacher, build_teacher
from adadistill.core.training.apex_sgd import require_apex
from adadistill.core.training.compiler_check import compile_failures_told, require_compilers, training_switches
from adadistill.core.training.folder_owner import Launch, owned_folder, refuse_owned, this_launch
from adadistill.core.training.heartbeat import HEARTBEAT
from adadistill.core.training.metrics_log import MetricsFile
from adadistill.core.training.metrics_sinks import FINISHED_GRACE_S, STOPPED_GRACE_S, MetricsSinks, require_sinks
from adadistill.core.training.non_finite import NonFiniteGuard
from adadistill.core.training.record_agreement import require_same_records, require_sound_labels
from adadistill.core.training.restarts import agent_token, restart_count
from adadistill.core.training.resume import (
    ResumeError,
    refuse_other_beginning,
    refuse_other_centres,
    refuse_other_run,
    refuse_other_teacher,
)
from adadistill.core.training.run_folder import RunFolder, describe_environment, redact_arguments
from adadistill.core.training.stop_signal import listen_for_stop
from adadistill.core.training.trainer import LoopConfig, Trainer, TrainingResult
from adadistill.core.training.training_step import TrainingStep
from adadistill.core.training.watchdog import Watchdog
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.pipeline import ImagePipeline, build_pipeline, named_records
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)


_TRIAL_PIXELS = 32 * 112 * 112
"""Of the images that threads are tried on: half a second of MobileFaceNet's passes on two cores."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a run is made of once its files have been found good."""

    records: ImageSource
    order: SampleOrder
    augmentation: Augmentation
    precision: Precision
    teacher: BuiltTeacher | None
    frozen_centres: FrozenCentres | None
    sets: VerificationSets | None
    large: tuple[Benchmark, ...]


def run_training(
    recipe: Recipe,
    folder: str | Path,
    *,
    ranks: Ranks,
    resume: str = "none",
    resume_allow: Sequence[str] = (),
    take_over: bool = False,
    student: nn.Module | None = None,
    profile: ProfileRequest | None = None,
) -> TrainingResult:
    """Train what a recipe describes into a run folder, which is this launch's alone meanwhile.

    Started again by torchrun (`--max-restarts`), it goes on from the newest checkpoint in the folder if this launch has
    worked there before; where there is none, it begins as it was told to.

    Args:
        resume: `none` starts a new run; `auto` goes on from the folder's newest checkpoint that verifies, or starts
            one where the folder holds no checkpoint; a path goes on from that checkpoint, or from the newest valid one
            of that run folder.
        resume_allow: dotted recipe keys that may differ from the checkpoint's recipe.
        take_over: an owner of the folder on another machine is dead; see `folder_owner.refuse_owned`.
        student: a network to train instead of the recipe's, images -> (B, embedding_dim); for tests and experiments.
        profile: steps of this call to be profiled into the folder; results do not change.

    Raises:
        RunFolderError: another launch works in the folder, it holds another run, or it cannot be written.
        CompileError: what the recipe compiles cannot be compiled on one of the machines; nothing was trained.
        ResumeError: checkpoint or folder belong to another recipe, or the checkpoint fits this run in no way.
        CheckpointError: there are checkpoints, but none verifies; or one cannot be written.
        MetricsFileError: the run is over, but the disk took not all of its lines.
        NonFiniteError, StopRequested: see `Trainer.run`.
    """
    run_folder = RunFolder(folder)
    launch = _this_launch(ranks)
    run_on_main(lambda: refuse_owned(run_folder.path, launch, take_over=take_over), ranks)
    switches = training_switches(recipe, ranks.device)
    require_compilers(switches, ranks)
    step_profile = open_profile(profile, run_folder.profile, ranks)
    parts = _open_parts(recipe, ranks)
    restarted = _is_restart(run_folder, launch, ranks)
    resuming = resume != "none" or restarted
    run_on_main(lambda: run_folder.refuse_other_run(resuming=resuming), ranks)
    with ExitStack() as owned:
        run_on_main(lambda: owned.enter_context(owned_folder(run_folder.path, launch, take_over=take_over)), ranks)
        goes_on_from = _fitting_checkpoint(
            recipe, run_folder, parts, ranks, resume=resume, resume_allow=resume_allow, restarted=restarted
        )
        started = goes_on_from[0].path.parents[1] if goes_on_from else run_folder.path
        recorded = recorded_threads(started / "environment.json")
        trial = _thread_trial(recipe, parts, ranks) if recorded is None and student is None else None
        settle_threads(recorded, trial, ranks)
        first = HEARTBEAT.step = goes_on_from[0].step if goes_on_from else 0
        environment = {
            **describe_environment(world_size=ranks.world_size),
            "device": str(ranks.device),
            **({"launch": launch.agents} if launch.agents else {}),
        }
        is_new = run_on_main(
            lambda: run_folder.start(recipe_yaml=dump_recipe(recipe), environment=environment, resuming=resuming), ranks
        )
        try:
            with compile_failures_told(switches):
                return _train(recipe, run_folder, parts, ranks, goes_on_from, student=student, profile=step_profile)
        except Exception:
            # What a mistake or an unfit machine ended before its first step is no run that the next start must go on.
            if is_new and ranks.is_main and HEARTBEAT.step <= first:
                run_folder.withdraw()
            raise


def _fitting_checkpoint(
    recipe: Recipe,
    run_folder: RunFolder,
    parts: _Parts,
    ranks: Ranks,
    *,
    resume: str,
    resume_allow: Sequence[str],
    restarted: bool,
) -> list[Checkpoint]:
    """The checkpoint to go on from, or none, found to be of this recipe and these files, as is a folder without any."""
    checkpoint = _find_checkpoint(recipe, run_folder, resume, ranks, restarted=restarted)
    if checkpoint is not None:
        refuse_other_run(recipe, parts.records, checkpoint, resume_allow)
        refuse_other_centres(parts.frozen_centres, checkpoint)
        refuse_other_teacher(parts.teacher, checkpoint)
    path = None if checkpoint is None else checkpoint.path
    run_on_main(lambda: refuse_other_beginning(recipe, run_folder, path, resume_allow), ranks)
    return [] if checkpoint is None else [checkpoint]


def _train(
    recipe: Recipe,
    run_folder: RunFolder,
    parts: _Parts,
    ranks: Ranks,
    goes_on_from: list[Checkpoint],
    *,
    student: nn.Module | None,
    profile: StepProfile,
) -> TrainingResult:
    """Build the networks and train them in a folder that has been begun; takes the checkpoint out of its list."""
    checkpoint = goes_on_from.pop() if goes_on_from else None
    seed_process(recipe.seed, rank=ranks.rank)
    step = _build_step(recipe, parts, ranks, student)
    pipeline = _build_pipeline(recipe, parts, ranks)
    going_on = checkpoint is not None or run_folder.metrics.exists()
    sinks = MetricsSinks(run_folder.path)
    if ranks.is_main:
        sinks = MetricsSinks(run_folder.path, tensorboard=recipe.log.tensorboard, wandb=recipe.log.wandb)
    metrics_file = MetricsFile(run_folder.metrics if ranks.is_main else None, after_write=sinks.write)
    token = broadcast_text(secrets.token_hex(8), ranks)
    writer = CheckpointWriter(
        run_folder.checkpoints,
        keep=recipe.checkpoint.keep,
        rank=ranks.rank,
        world_size=ranks.world_size,
        run_token=token,
    )
    finished = False
    try:
        watchdog = Watchdog(run_folder.path, ranks, recipe.guard.hang_timeout_s, launch=token)
        with metrics_file, listen_for_stop() as stop, watchdog, writer:
            trainer = Trainer(
                _loop_config(recipe, parts, ranks.device),
                order=parts.order,
                pipeline=pipeline,
                step=step,
                precision=parts.precision,
                ranks=ranks,
                metrics_file=metrics_file,
                checkpoints=writer,
                sets=parts.sets,
                large=parts.large,
                folder=run_folder.path,
                state=_identity(recipe, parts),
                profile=profile,
            )
            if checkpoint is not None:
                _restore(trainer, checkpoint, ranks)
                checkpoint = None  # its tensors are as large as those of the run
            if going_on:
                position = trainer.position
                metrics_file.write(
                    "resume", step=trainer.global_step, epoch=position.epoch, evaluated=position.evaluated
                )
            result = trainer.run(stop)
            finished = True
            return result
    finally:
        pipeline.close()
        sinks.close(within_s=FINISHED_GRACE_S if finished else STOPPED_GRACE_S)


def _open_parts(recipe: Recipe, ranks: Ranks) -> _Parts:
    """Open every file the run reads; whatever is wrong with one is said here."""
    require_sinks(tensorboard=recipe.log.tensorboard, wandb=recipe.log.wandb)
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif ranks.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if recipe.optim.backend == "apex":
        require_apex(ranks.device)
    precision = resolve_precision(recipe.precision, ranks.device)
    records = named_records(recipe.data)
    require_same_records(records, ranks)
    require_sound_labels(recipe.data, records, ranks, needs_several=recipe.centres.kind != "none")
    order = SampleOrder(len(records), recipe.data.global_batch_size, derive_seed(recipe.seed, "sample_order"))
    recipe.data.parts(order.local_batch_size(ranks.world_size))
    if recipe.centres.placement == "sharded" and records.num_classes < ranks.world_size:
        raise ValueError(
            f"centres.placement sharded cannot spread {records.num_classes} identities over {ranks.world_size} ranks; "
            "start fewer processes, or set centres.placement=replicated"
        )
    augmentation = recipe_augmentation(recipe)
    teacher = None
    if recipe.teacher is not None:
        teacher = build_teacher(
            recipe.teacher,
            records=records,
            data=recipe.data,
            augmentation=augmentation,
            embedding_dim=recipe.student.embedding_dim,
            precision=precision,
            ranks=ranks,
            sets=recipe.evaluation.sets,
        )
    frozen_centres = None
    if recipe.centres.path is not None:
        frozen_centres = load_frozen_centres(
            recipe.centres.path,
            records=records,
            embedding_dim=recipe.student.embedding_dim,
            precision=precision,
            ranks=ranks,
        )
    sets = None
    if recipe.evaluation.sets:
        sets = VerificationSets.load(
            recipe.evaluation.sets, recipe.data.image_size, rank=ranks.rank, world_size=ranks.world_size
        )
    large = BenchmarkPaths(
        ijb=tuple(map(Path, recipe.evaluation.ijb)), tinyface=tuple(map(Path, recipe.evaluation.tinyface))
    )
    opened = open_benchmarks(large, recipe.data.image_size, ranks)
    if ranks.is_main:
        logger.info(
            "%s: %d images of %d identities, %d steps per epoch of %d images over %d rank(s) on %s",
            recipe.data.records,
            len(records),
            records.num_classes,
            order.steps_per_epoch,
            order.global_batch_size,
            ranks.world_size,
            ranks.device,
        )
    return _Parts(
        records=records,
        order=order,
        augmentation=augmentation,
        precision=precision,
        teacher=teacher,
        frozen_centres=frozen_centres,
        sets=sets,
        large=opened,
    )


def _thread_trial(recipe: Recipe, parts: _Parts, ranks: Ranks) -> Callable[[], object] | None:
    """What is timed to choose the number of CPU threads: the student's passes over a part of a batch.

    None on CUDA, where the CPU only hands out work, and for a deterministic run, whose bits must not depend on what
    else the machine does.
    """
    if ranks.device.type != "cpu" or recipe.deterministic:
        return None
    side, precision = recipe.data.image_size, parts.precision
    network = build_backbone(recipe.student, side, generator=0).to(dtype=precision.dtype).train()
    largest = max(2, _TRIAL_PIXELS // side**2)
    batch = min(parts.order.local_batch_size(ranks.world_size), largest)
    images = torch.rand(batch, 3, side, side, dtype=precision.dtype, generator=torch.Generator().manual_seed(0))
    if precision.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)

    def work() -> None:
        with torch.autocast("cpu", precision.autocast_dtype, enabled=precision.autocast_dtype is not None):
            embeddings = network(images)
        embeddings.float().square().mean().backward()

    return work


def _build_step(recipe: Recipe, parts: _Parts, ranks: Ranks, student: nn.Module | None) -> TrainingStep:
    if student is None:
        student = build_backbone(recipe.student, recipe.data.image_size, generator=derive_seed(recipe.seed, "student"))
    return TrainingStep(
        student=student,
        objective=_build_objective(recipe, parts, ranks),
        optim=recipe.optim,
        guard=NonFiniteGuard(recipe.guard, recipe.data.global_batch_size, ranks.device),
        precision=parts.precision,
        ranks=ranks,
        compile_student=recipe.compile,
        parts=recipe.data.parts(parts.order.local_batch_size(ranks.world_size)),
    )


def _build_pipeline(recipe: Recipe, parts: _Parts, ranks: Ranks) -> ImagePipeline:
    return build_pipeline(
        recipe.data,
        parts.records,
        parts.order,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        augmentation=parts.augmentation,
        dtype=parts.precision.image_dtype,
        channels_last=parts.precision.channels_last,
        exchange=exchange_rows if ranks.world_size > 1 else None,
    )


def _build_objective(recipe: Recipe, parts: _Parts, ranks: Ranks) -> Objective:
    kind, teacher = recipe.centres.kind, None if parts.teacher is None else parts.teacher.teacher
    if kind == "none":
        assert teacher is not None, "a recipe without centres has a teacher"
        return RegressionObjective(regression=recipe.regression, teacher=teacher, ranks=ranks)
    dtype = parts.precision.dtype
    statistics = NormStatistics.start(dtype=dtype, device=ranks.device)
    if kind == "adaptive":
        assert teacher is not None, "a recipe with adaptive centres has a teacher"
        # Under bfloat16 autocast the softmax reads a bfloat16 copy of the centres; exact precisions read exact centres.
        unit_dtype = None if parts.precision.autocast_dtype is not None else dtype
        return DistillationObjective(
            head=recipe.head,
            geometry=recipe.geometry_margin,
            centres=AdaptiveCentres(recipe.centres, _random_centres(recipe, parts, ranks), unit_dtype=unit_dtype),
            slow_centres=_slow_centres(recipe, parts, ranks),
            teacher=teacher,
            statistics=statistics,
            ranks=ranks,
            regression=recipe.regression,
        )
    return ClassificationObjective(
        head=recipe.head,
        centres=parts.frozen_centres or _trained_centres(recipe, parts, ranks),
        statistics=statistics,
        ranks=ranks,
        teacher=teacher,
        geometry=recipe.geometry_margin,
        regression=recipe.regression,
    )


def _trained_centres(recipe: Recipe, parts: _Parts, ranks: Ranks) -> TrainableCentres | ShardedCentres:
    product_dtype = trained_product_dtype(parts.precision.autocast_dtype, ranks.device)
    if recipe.centres.placement == "replicated":
        return TrainableCentres(recipe.centres, _random_centres(recipe, parts, ranks), product_dtype=product_dtype)
    count = parts.records.num_classes
    own = row_range(count, ranks.rank, ranks.world_size)
    rows = _random_centres(recipe, parts, ranks, own)
    return ShardedCentres(recipe.centres, count, rows, ranks, product_dtype=product_dtype)


def _random_centres(recipe: Recipe, parts: _Parts, ranks: Ranks, rows: tuple[int, int] | None = None) -> torch.Tensor:
    return initial_centres(
        parts.records.num_classes,
        recipe.student.embedding_dim,
        generator=stream(recipe.seed, "class_centres"),
        dtype=parts.precision.dtype if recipe.centres.half is None else getattr(torch, recipe.centres.half),
        rows=rows,
    ).to(ranks.device)


def _slow_centres(recipe: Recipe, parts: _Parts, ranks: Ranks) -> SlowCentres | None:
    if recipe.geometry_margin.mode != "headroom":
        return None
    return SlowCentres(
        parts.records.num_classes,
        recipe.student.embedding_dim,
        momentum=recipe.geometry_margin.headroom_momentum,
        dtype=slow_centres_dtype(recipe.centres.half, parts.precision.dtype),
        device=ranks.device,
    )


def _identity(recipe: Recipe, parts: _Parts) -> dict[str, Any]:
    """What every checkpoint says of the run it belongs to."""
    frozen, teacher = parts.frozen_centres, parts.teacher
    return {
        "recipe_hash": recipe_hash(recipe),
        "recipe": dump_recipe(recipe),
        "records": parts.records.fingerprint(),
        "network": describe_network(recipe.student, recipe.data.image_size),
        **({} if frozen is None else {"frozen_centres": {"source": frozen.name, "sha256": frozen.sha256}}),
        **({} if teacher is None else {"teacher": {"source": teacher.name, "sha256": teacher.sha256}}),
    }


def _loop_config(recipe: Recipe, parts: _Parts, device: torch.device) -> LoopConfig:
    return LoopConfig(
        epochs=recipe.optim.epochs,
        log_every=recipe.log.every,
        evaluate_every_epochs=recipe.evaluation.every_epochs,
        evaluate_large_every_epochs=recipe.evaluation.large_every_epochs,
        evaluation_batch_size=recipe.evaluation.batch_size,
        checkpoint=recipe.checkpoint,
        compiles=recipe.compile != "off" or device.type == "cuda",  # where a teacher is compiled unasked
    )


def _this_launch(ranks: Ranks) -> Launch:
    agents = sorted(set(gather_texts(agent_token(), ranks)) - {""})
    restarts = sum(map(int, gather_texts(str(restart_count()), ranks)))
    return this_launch(shlex.join(redact_arguments(sys.argv)), agents=agents, restarts=restarts)


def _is_restart(run_folder: RunFolder, launch: Launch, ranks: Ranks) -> bool:
    """Whether torchrun has started this launch again, after it had begun or continued the run in this folder.

    Where it had not, because it was refused or died before, the restart is told nothing new and begins as the first.
    """
    if launch.restarts == 0:
        return False
    own = run_on_main(lambda: run_folder.belongs_to(launch.agents), ranks)
    if own and ranks.is_main:
        count = restart_count() or launch.restarts
        logger.info("torchrun has started this launch again (restart %d); %s is its own", count, run_folder.path)
    return own


def _find_checkpoint(
    recipe: Recipe, run_folder: RunFolder, resume: str, ranks: Ranks, *, restarted: bool
) -> Checkpoint | None:
    """The checkpoint to go on from; all ranks take the one that rank 0 found."""
    own_rows_of = (ranks.rank, ranks.world_size) if recipe.centres.placement == "sharded" else None
    if restarted:
        found = _newest_checkpoint(run_folder, own_rows_of, ranks)
        if found is not None or resume == "auto":
            return found
    if resume == "none":
        return None
    if resume != "auto":
        return load_checkpoint(resolve_checkpoint(resume), own_rows_of=own_rows_of)
    return _newest_checkpoint(run_folder, own_rows_of, ranks)


def _newest_checkpoint(run_folder: RunFolder, own_rows_of: tuple[int, int] | None, ranks: Ranks) -> Checkpoint | None:
    found: list[Checkpoint] = []

    def find() -> str:
        newest, skipped = newest_valid_checkpoint(run_folder.path, own_rows_of=own_rows_of)
        for bad, reason in skipped:
            logger.warning("checkpoint %s is passed over: %s", bad, reason)
        if newest is None and skipped:
            raise CheckpointError(
                f"{run_folder.path} holds {len(skipped)} checkpoint(s) and none is valid:\n  "
                + "\n  ".join(reason for _, reason in skipped)
                + "\n  Restore one of them, or move them away to start the run anew"
            )
        found.extend([] if newest is None else [newest])
        return "" if newest is None else str(newest.path)

    path = run_on_main(find, ranks)
    if ranks.is_main or not path:
        return found[0] if found else None
    return load_checkpoint(path, own_rows_of=own_rows_of)


def _restore(trainer: Trainer, checkpoint: Checkpoint, ranks: Ranks) -> None:
    try:
        notes = trainer.restore(checkpoint)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ResumeError(f"{checkpoint.path} does not fit this run: {error}") from error
    if ranks.is_main:
        position = trainer.position
        logger.info("resumed from %s at epoch %d, step %d", checkpoint.path, position.epoch, position.step)
        for note in notes:
            logger.warning("%s", note)
