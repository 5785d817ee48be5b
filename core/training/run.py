"""From a recipe to a finished run: the opening, which may refuse it, then the networks, then the loop takes over."""

from __future__ import annotations

import functools
import logging
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adadistill.core.backbones import build_backbone
from adadistill.core.checkpoints import Checkpoint, CheckpointWriter
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
from adadistill.core.method.class_sample import ClassSampler
from adadistill.core.method.classification import ClassificationObjective
from adadistill.core.method.distillation import DistillationObjective
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.objective import Objective
from adadistill.core.method.sharded_centres import ShardedCentres
from adadistill.core.method.slow_centres import SlowCentres, slow_centres_dtype
from adadistill.core.method.terms.sum import build_terms
from adadistill.core.method.terms_alone import TermsObjective
from adadistill.core.profiling import ProfileRequest, StepProfile, open_profile
from adadistill.core.recipe import Recipe, dump_recipe, recipe_hash
from adadistill.core.seeding import derive_seed, seed_process, stream
from adadistill.core.training.compiler_check import compile_failures_told
from adadistill.core.training.folder_owner import Launch, owned_folder, this_launch
from adadistill.core.training.heartbeat import HEARTBEAT
from adadistill.core.training.metrics_log import MetricsFile
from adadistill.core.training.metrics_sinks import FINISHED_GRACE_S, STOPPED_GRACE_S, MetricsSinks
from adadistill.core.training.non_finite import NonFiniteGuard
from adadistill.core.training.opening import Opening, RunParts
from adadistill.core.training.restarts import agent_token, restart_count
from adadistill.core.training.resume_check import ResumeError
from adadistill.core.training.run_folder import RunFolder, describe_environment, redact_arguments
from adadistill.core.training.stop_signal import listen_for_stop
from adadistill.core.training.trainer import LoopConfig, Trainer, TrainingResult
from adadistill.core.training.training_step import TrainingStep
from adadistill.core.training.watchdog import Watchdog
from adadistill.loaders.pipelines.pipeline import ImagePipeline, build_pipeline

logger = logging.getLogger(__name__)


_TRIAL_PIXELS = 32 * 112 * 112
"""Of the images that threads are tried on: half a second of MobileFaceNet's passes on two cores."""


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
    _settle_numerics(recipe, ranks.device)
    opening = Opening(recipe, run_folder, ranks)
    opening.look_at_folder(launch, resume=resume, take_over=take_over)
    opening.look_at_resume(resume=resume, resume_allow=resume_allow)
    step_profile = open_profile(profile, run_folder.profile, ranks)
    opening.look_at_machine()
    opening.look_at_files()
    _tell(recipe, opening.parts(), ranks)
    with ExitStack() as owned:
        run_on_main(lambda: owned.enter_context(owned_folder(run_folder.path, launch, take_over=take_over)), ranks)
        opening.choose_checkpoint(resume=resume, resume_allow=resume_allow)
        _settle_threads(recipe, opening, trains_another=student is not None)
        first = HEARTBEAT.step = 0 if opening.checkpoint is None else opening.checkpoint.step
        is_new = _begin(recipe, opening, launch, resuming=resume != "none" or opening.restarted)
        try:
            with compile_failures_told(opening.switches):
                return _train(opening, student=student, profile=step_profile)
        except Exception:
            # What a mistake or an unfit machine ended before its first step is no run that the next start must go on.
            if is_new and ranks.is_main and HEARTBEAT.step <= first:
                run_folder.withdraw()
            raise


def _settle_numerics(recipe: Recipe, device: torch.device) -> None:
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def _tell(recipe: Recipe, parts: RunParts, ranks: Ranks) -> None:
    if ranks.is_main:
        logger.info(
            "%s: %d images of %d identities, %d steps per epoch of %d images over %d rank(s) on %s",
            recipe.data.records,
            len(parts.records),
            parts.records.num_classes,
            parts.order.steps_per_epoch,
            parts.order.global_batch_size,
            ranks.world_size,
            ranks.device,
        )


def _settle_threads(recipe: Recipe, opening: Opening, *, trains_another: bool) -> None:
    """Choose the CPU threads of a new run; one that goes on keeps those that it recorded."""
    found, ranks = opening.checkpoint, opening.ranks
    started = opening.run_folder.path if found is None else found.path.parents[1]
    recorded = recorded_threads(started / "environment.json")
    trial = None if recorded is not None or trains_another else _thread_trial(recipe, opening.parts(), ranks)
    settle_threads(recorded, trial, ranks)


def _begin(recipe: Recipe, opening: Opening, launch: Launch, *, resuming: bool) -> bool:
    """Write what is known at the start of a run; whether it is a new one."""
    ranks = opening.ranks
    environment = {
        **describe_environment(world_size=ranks.world_size),
        "device": str(ranks.device),
        **({"launch": launch.agents} if launch.agents else {}),
    }
    text = dump_recipe(recipe)
    return run_on_main(
        lambda: opening.run_folder.start(recipe_yaml=text, environment=environment, resuming=resuming), ranks
    )


def _train(opening: Opening, *, student: nn.Module | None, profile: StepProfile) -> TrainingResult:
    """Build the networks and train them in a folder that has been begun; takes the checkpoint out of the opening."""
    recipe, run_folder, ranks, parts = opening.recipe, opening.run_folder, opening.ranks, opening.parts()
    checkpoint, opening.checkpoint = opening.checkpoint, None
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
                benchmarks=parts.benchmarks,
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


def _thread_trial(recipe: Recipe, parts: RunParts, ranks: Ranks) -> Callable[[], object] | None:
    """What is timed to choose the number of CPU threads: the student's passes over a part of a batch.

    None on CUDA, where the CPU only hands out work, and for a deterministic run, whose bits must not depend on what
    else the machine does.
    """
    if ranks.device.type != "cpu" or recipe.deterministic:
        return None
    side, precision = recipe.data.image_size, parts.precision

    @functools.cache
    def what_is_tried() -> tuple[nn.Module, torch.Tensor]:  # made where something is tried
        network = build_backbone(recipe.student, side, generator=0).to(dtype=precision.dtype).train()
        largest = max(2, _TRIAL_PIXELS // side**2)
        batch = min(parts.order.local_batch_size(ranks.world_size), largest)
        images = torch.rand(batch, 3, side, side, dtype=precision.dtype, generator=torch.Generator().manual_seed(0))
        if precision.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = images.to(memory_format=torch.channels_last)
        return network, images

    def work() -> None:
        network, images = what_is_tried()
        with torch.autocast("cpu", precision.autocast_dtype, enabled=precision.autocast_dtype is not None):
            embeddings = network(images)
        embeddings.float().square().mean().backward()

    return work


def _build_step(recipe: Recipe, parts: RunParts, ranks: Ranks, student: nn.Module | None) -> TrainingStep:
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


def _build_pipeline(recipe: Recipe, parts: RunParts, ranks: Ranks) -> ImagePipeline:
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


def _build_objective(recipe: Recipe, parts: RunParts, ranks: Ranks) -> Objective:
    kind, teacher = recipe.centres.kind, None if parts.teacher is None else parts.teacher.teacher
    dtype = parts.precision.dtype
    terms = build_terms(
        recipe.regression, recipe.terms, dim=recipe.student.embedding_dim, dtype=dtype, device=ranks.device
    )
    if kind == "none":
        assert teacher is not None, "a recipe without centres has a teacher"
        return TermsObjective(terms=terms, teacher=teacher, ranks=ranks)
    statistics = NormStatistics.start(dtype=dtype, device=ranks.device)
    sampler = _class_sampler(recipe, parts, ranks)
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
            terms=terms,
            sampler=sampler,
        )
    return ClassificationObjective(
        head=recipe.head,
        centres=parts.frozen_centres or _trained_centres(recipe, parts, ranks),
        statistics=statistics,
        ranks=ranks,
        teacher=teacher,
        geometry=recipe.geometry_margin,
        terms=terms,
        sampler=sampler,
    )


def _class_sampler(recipe: Recipe, parts: RunParts, ranks: Ranks) -> ClassSampler | None:
    if recipe.centres.sample_rate == 1.0:
        return None
    count = parts.records.num_classes
    rows = (0, count)
    if recipe.centres.placement == "sharded":
        rows = row_range(count, ranks.rank, ranks.world_size)
    return ClassSampler(recipe.centres.sample_rate, recipe.seed, count, rows, ranks.device)


def _trained_centres(recipe: Recipe, parts: RunParts, ranks: Ranks) -> TrainableCentres | ShardedCentres:
    product_dtype = trained_product_dtype(parts.precision.autocast_dtype, ranks.device)
    if recipe.centres.placement == "replicated":
        return TrainableCentres(recipe.centres, _random_centres(recipe, parts, ranks), product_dtype=product_dtype)
    count = parts.records.num_classes
    own = row_range(count, ranks.rank, ranks.world_size)
    rows = _random_centres(recipe, parts, ranks, own)
    return ShardedCentres(recipe.centres, count, rows, ranks, product_dtype=product_dtype)


def _random_centres(recipe: Recipe, parts: RunParts, ranks: Ranks, rows: tuple[int, int] | None = None) -> torch.Tensor:
    return initial_centres(
        parts.records.num_classes,
        recipe.student.embedding_dim,
        generator=stream(recipe.seed, "class_centres"),
        dtype=parts.precision.dtype if recipe.centres.half is None else getattr(torch, recipe.centres.half),
        rows=rows,
    ).to(ranks.device)


def _slow_centres(recipe: Recipe, parts: RunParts, ranks: Ranks) -> SlowCentres | None:
    if recipe.geometry_margin.mode != "headroom":
        return None
    return SlowCentres(
        parts.records.num_classes,
        recipe.student.embedding_dim,
        momentum=recipe.geometry_margin.headroom_momentum,
        dtype=slow_centres_dtype(recipe.centres.half, parts.precision.dtype),
        device=ranks.device,
    )


def _identity(recipe: Recipe, parts: RunParts) -> dict[str, Any]:
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


def _loop_config(recipe: Recipe, parts: RunParts, device: torch.device) -> LoopConfig:
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
