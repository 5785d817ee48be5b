"""The training loop: batches in order, one step each, and what happens between steps.

The position (epoch, step) is all the loop knows about where it is; order, flips and learning rates are functions of it.
Everything the loop is made of comes in from `core/training/run.py`, so that tests can run it with parts of their own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadistill.core.checkpoints import Checkpoint, CheckpointConfig, CheckpointWriter, OwnRows, RowArray, Snapshot
from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.profiling import NO_PROFILE, StepProfile
from adadistill.core.scoring.benchmark import Benchmark
from adadistill.core.scoring.embedding import Forward
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.core.seeding import random_state, restore_random_state
from adadistill.core.training.heartbeat import EVALUATION, FIRST_STEP, SAVING, TRAINING, beat, phase
from adadistill.core.training.metrics_log import MetricsFile, ProgressBar, StepMetrics, log_line
from adadistill.core.training.non_finite import LaggedReadback, NonFiniteError
from adadistill.core.training.optimiser import OPTIMISERS, learning_rate, load_state, state_tensors
from adadistill.core.training.rank_agreement import require_equal_replicas
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.core.training.training_step import TrainingStep
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import named_range
from adadistill.loaders.pipelines.pipeline import ImagePipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """Where training is: the next step to do."""

    epoch: int = 0
    step: int = 0
    """0-based step within the epoch."""
    evaluated: bool = True
    """False between the save at the end of an epoch and its evaluation, so that a resumed run evaluates first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """The numbers of the loop, out of a recipe."""

    epochs: int
    log_every: int
    evaluate_every_epochs: int
    evaluate_large_every_epochs: int
    evaluation_batch_size: int
    checkpoint: CheckpointConfig
    compiles: bool = False
    """Whether networks are compiled in the first step of a launch, which may then take minutes."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a finished run reached."""

    metrics: dict[str, float]
    """Values of the last log line."""
    evaluations: dict[str, BenchmarkResult]
    """Of the last evaluation on each benchmark, by its name."""
    images_per_s: float
    """Over the whole call, evaluation and saving excluded."""


class Trainer:
    """One run, from its position to its end.

    Args:
        step: student, objective, optimiser.
        checkpoints: None to save nothing.
        benchmarks: what the student is scored on; large ones, which take minutes, more rarely.
        metrics_file: writes on rank 0.
        folder: run folder, for the dump of a non-finite step; None writes none.
        state: JSON values every checkpoint carries (recipe hash, network description).
        profile: records some of the steps; closed when `run` ends.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        order: SampleOrder,
        pipeline: ImagePipeline,
        step: TrainingStep,
        precision: Precision,
        ranks: Ranks,
        metrics_file: MetricsFile,
        checkpoints: CheckpointWriter | None = None,
        benchmarks: tuple[Benchmark, ...] = (),
        folder: Path | None = None,
        state: dict[str, Any] | None = None,
        profile: StepProfile = NO_PROFILE,
    ) -> None:
        self.config = config
        self.position = Position()
        self.step = step
        self._order = order
        self._pipeline = pipeline
        self._precision = precision
        self._ranks = ranks
        self._metrics_file = metrics_file
        self._checkpoints = checkpoints
        self._benchmarks = benchmarks
        self._folder = folder
        self._state = state or {}
        self._profile = profile
        self._readback = LaggedReadback(ranks.device)
        self._skips_reported = 0
        self._last_metrics: dict[str, float] = {}
        self._last_evaluations: dict[str, BenchmarkResult] = {}
        self._total_steps = config.epochs * order.steps_per_epoch
        self._metrics = self._new_metrics()
        self._bar = ProgressBar(self._total_steps, ranks)
        self._trained_images, self._trained_s, self._excluded_s = 0, 0.0, 0.0
        self._first_step = self._saved_step = 0
        """Finished steps when this launch began, and at its last save."""

    @property
    def global_step(self) -> int:
        """Finished steps of the run."""
        return self.position.epoch * self._order.steps_per_epoch + self.position.step

    def run(self, stop: StopSignal) -> TrainingResult:
        """Train to the end of the last epoch.

        Raises:
            NonFiniteError: a step was not finite; nothing of it was kept.
            StopRequested: a signal arrived on some rank; what was not saved yet has been saved.
            CheckpointError: a save failed; training ended a step or two after it.
        """
        self._metrics = self._new_metrics()
        self._first_step = self._saved_step = self.global_step
        beat(self.global_step)
        if not self.position.evaluated:
            self._evaluate(stop)
        with closing(self._profile), phase(TRAINING):
            for epoch in range(self.position.epoch, self.config.epochs):
                self._train_epoch(epoch, stop)
                self._finish_epoch(epoch, stop)
        if self._checkpoints is not None:
            with phase(SAVING):
                self._checkpoints.wait()
        self._bar.clear()
        images_per_s = self._trained_images / self._trained_s if self._trained_s else 0.0
        return TrainingResult(self._last_metrics, self._last_evaluations, images_per_s)

    def save(self) -> None:
        """Save the position now, in the background; every rank must call it."""
        if self._checkpoints is None:
            return
        self._heed_all()  # a checkpoint must not hide a rejected step behind it
        started = time.perf_counter()
        objective = self.step.objective
        small: dict[str, Tensor] = {}
        arrays = objective.row_sharded()
        large = dict(arrays)
        state = state_tensors(self.step.optimiser, self.step.optim, self.step.parameter_names())
        for part, by_name in state.items():
            for name, tensor in by_name.items():
                if name in arrays and tensor.ndim:  # what is too large to be held whole has state just as large
                    large[f"{name}_{part}"] = _divided_as(arrays[name], tensor)
                else:
                    small[f"{part}.{name}"] = tensor
        model = self.step.student.state_dict()
        small |= objective.tensors()
        whole = {name: array for name, array in arrays.items() if isinstance(array, Tensor)}
        require_equal_replicas({**model, **small, **whole}, self._ranks)
        snapshot = Snapshot(
            model=model,
            optimiser=small,
            row_sharded=large,
            rank_state=random_state(self._ranks.device),
            state={
                **self._state,
                "position": {
                    "epoch": self.position.epoch,
                    "step": self.position.step,
                    "evaluated": self.position.evaluated,
                },
                "steps_per_epoch": self._order.steps_per_epoch,
            },
        )
        with phase(SAVING):
            self._checkpoints.save(self.global_step, snapshot)
        self._saved_step = self.global_step
        self._exclude_since(started)

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Take over a checkpoint; what could not be restored exactly is returned, a sentence each.

        Raises:
            ValueError: its tensors do not fit this run.
        """
        with torch.no_grad():
            self.step.student.load_state_dict(checkpoint.model, strict=True)
        small, large = dict(checkpoint.optimiser), dict(checkpoint.row_sharded)
        names = self.step.parameter_names()
        state: dict[str, dict[str, Tensor]] = {}
        for part in OPTIMISERS[self.step.optim.kind].state:
            lead = f"{part}."
            found = {key.removeprefix(lead): small.pop(key) for key in list(small) if key.startswith(lead)}
            for name in names.values():
                if (array := large.pop(f"{name}_{part}", None)) is not None:
                    found[name] = array.rows if isinstance(array, OwnRows) else array
            state[part] = found
        self.step.objective.load(row_sharded=large, tensors=small)
        load_state(self.step.optimiser, self.step.optim, names, state)
        self.step.running_statistics.remember()
        self.position = Position(**checkpoint.state["position"])
        if len(checkpoint.rank_states) == self._ranks.world_size:
            restore_random_state(checkpoint.rank_states[self._ranks.rank], self._ranks.device)
            return []
        return [
            f"random state (dropout) starts anew: it was saved by {len(checkpoint.rank_states)} ranks, "
            f"this run has {self._ranks.world_size}"
        ]

    def _train_epoch(self, epoch: int, stop: StopSignal) -> None:
        started, excluded_s = time.perf_counter(), self._excluded_s
        with closing(self._batches(epoch, stop)) as batches:
            for batch, wait_s in batches:
                asked = self._train_step(batch, stop, wait_s)
                beat(self.global_step)
                self._trained_images += self._order.global_batch_size
                if self.global_step % self.config.log_every == 0:
                    self._log()
                self._bar.update(self.global_step)
                if asked:
                    self._stop(stop)
                at_end = self.position.step == 0
                if not at_end and self.config.checkpoint.is_due(self.global_step, self._order.steps_per_epoch):
                    self.save()
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)  # the host is ahead; speed counts finished work
        self._trained_s += time.perf_counter() - started - (self._excluded_s - excluded_s)

    def _batches(self, epoch: int, stop: StopSignal) -> Generator[tuple[Batch, float], None, None]:
        """The rest of the epoch's batches, each with the seconds that the loop waited for it.

        What the loop does with one, until it asks for the next, belongs to that step of the profile.
        """
        batches = self._pipeline.epoch(epoch, self.position.step)
        for _ in range(self.position.step, self._order.steps_per_epoch):
            with self._profile.step(self.global_step):
                started = time.perf_counter()
                with named_range("load"), self._stopping(stop, when=self._ranks.world_size == 1):
                    batch = next(batches, None)
                assert batch is not None, "a pipeline hands out every step of its epoch"
                yield batch, time.perf_counter() - started
            started = time.perf_counter()
            if self._profile.finish_if_due():
                self._bar.clear()
                self._exclude_since(started)
        next(batches, None)  # exhausted, so that the pipeline can start another epoch

    def _train_step(self, batch: Batch, stop: StopSignal, wait_s: float) -> bool:
        """One step; advances the position. Whether all ranks have agreed to stop."""
        steps_per_epoch = self._order.steps_per_epoch
        lr = learning_rate(
            self.step.optim,
            global_batch_size=self._order.global_batch_size,
            epoch=batch.epoch,
            step=batch.step,
            steps_per_epoch=steps_per_epoch,
        )
        # Before its first step a launch has nothing to save, and that step may be minutes of compiling.
        first = self.global_step == self._first_step
        leaves = first and (self.config.compiles or self._ranks.world_size == 1)
        with stop.interruptible(when=leaves, keeps=False), phase(FIRST_STEP if first else TRAINING):
            outcome = self.step.run(
                batch,
                lr=lr,
                fractional_epoch=batch.epoch + batch.step / steps_per_epoch,
                global_step=self.global_step,
                # A save that failed in the background ends the run as a signal does: on all ranks, after the same step.
                stop=stop.requested or (self._checkpoints is not None and self._checkpoints.failed),
            )
        self._metrics.add(outcome.metrics, lr=lr, wait_s=wait_s)
        at_end = batch.step + 1 == steps_per_epoch
        if at_end:
            self.position = Position(batch.epoch + 1, 0, evaluated=not self._evaluation_is_due(batch.epoch))
        else:
            self.position = Position(batch.epoch, batch.step + 1)
        return self._heed(self._readback.push(outcome.signals))

    def _finish_epoch(self, epoch: int, stop: StopSignal) -> None:
        """Save and evaluate as due; the save comes first, so that a kill during evaluation costs no training."""
        last = epoch + 1 == self.config.epochs
        if last or self.config.checkpoint.is_due(self.global_step, self._order.steps_per_epoch):
            self.save()
        self._heed_all()
        if not self.position.evaluated:
            self._evaluate(stop)
        if last and self._metrics.pending:
            self._log()

    def _evaluation_is_due(self, epoch: int) -> bool:
        return bool(self._due_after(epoch))

    def _due_after(self, epoch: int) -> list[Benchmark]:
        """What is scored after an epoch; after the last one everything."""
        config, last = self.config, epoch + 1 == self.config.epochs
        every = {False: config.evaluate_every_epochs, True: config.evaluate_large_every_epochs}
        return [one for one in self._benchmarks if last or (epoch + 1) % every[one.kind.large] == 0]

    def _evaluate(self, stop: StopSignal) -> None:
        """Score the student on what is due after the epoch that has ended. All ranks share the work."""
        started = time.perf_counter()
        with phase(EVALUATION):
            for one in self._due_after(self.position.epoch - 1):
                self._score(one, stop)
        self._metrics.exclude(time.perf_counter() - started)
        self.position = replace(self.position, evaluated=True)

    def _score(self, benchmark: Benchmark, stop: StopSignal) -> None:
        started = time.perf_counter()
        forward = Forward(ranks=self._ranks, batch_size=self.config.evaluation_batch_size, precision=self._precision)
        with self._stopping(stop, when=self._ranks.world_size == 1):
            result = benchmark.score(self.step.student, forward)
        self._last_evaluations[benchmark.name] = result
        if self._ranks.is_main:
            self._bar.clear()
            logger.info("after epoch %d  %s  %s", self.position.epoch, benchmark.name, result.summary())
            self._metrics_file.write(
                "evaluation",
                step=self.global_step,
                epoch=self.position.epoch,
                set=benchmark.name,
                seconds=round(time.perf_counter() - started, 3),
                **result.log_fields(),
            )

    def _log(self) -> None:
        self._last_metrics = values = self._metrics.take(step=self.global_step)
        if len(self._pipeline.damaged):
            values["damaged_records"] = len(self._pipeline.damaged)  # distinct ones, of this rank
        if self._ranks.is_main:
            self._bar.clear()
            line = log_line(values, step=self.global_step, total_steps=self._total_steps, epoch=self.position.epoch)
            logger.info("%s", line)
            self._metrics_file.write("train", step=self.global_step, epoch=self.position.epoch, **values)

    def _heed(self, signals: list[int] | None) -> bool:
        """Act on what the device reported: raise on a rejected step, return whether a stop was agreed."""
        if signals is None:
            return False
        rejected, newest, stop = signals
        if rejected > self._skips_reported:
            self._report_rejection(rejected, newest)
        return bool(stop)

    def _heed_all(self) -> None:
        """Wait for what the device has yet to report, and act on all of it."""
        for signals in self._readback.drain():
            self._heed(signals)

    def _report_rejection(self, rejected: int, global_step: int) -> None:
        """A step was not finite: name its records, and stop unless the recipe tolerates it."""
        self._skips_reported = rejected
        guard = self.step.guard
        epoch, step = divmod(global_step, self._order.steps_per_epoch)
        ids = self._order.global_ids(epoch, step)
        blamed = ids[guard.bad_samples(global_step).cpu().numpy()]
        what = "the samples with" if len(blamed) else "the gradient, no single sample; its batch has"
        blamed = blamed if len(blamed) else ids
        shown = ", ".join(str(i) for i in blamed[:16]) + (f", ... ({len(blamed)} in all)" if len(blamed) > 16 else "")
        message = f"step {global_step} (epoch {epoch}, step {step}) is not finite: {what} record ids {shown}"
        values = {"step": global_step, "epoch": epoch, "step_of_epoch": step, "record_ids": blamed.tolist()}
        stops = guard.must_stop(rejected)
        if self._ranks.is_main:
            self._metrics_file.write("non_finite", stopped=stops, **values)
            if self._folder is not None:
                dump = self._folder / f"non_finite-step-{global_step:08d}.json"
                try:
                    dump.write_text(json.dumps(values, indent=1) + "\n")
                except OSError as error:  # a full disk must not hide the step that was not finite
                    logger.warning("%s was not written: %s", dump, error.strerror)
        if stops:
            raise NonFiniteError(
                f"{message}. Nothing of it was kept, and the last checkpoint is intact. Look at these records "
                "(a broken image or teacher embedding), lower optim.lr, or set guard.on_nonfinite=skip",
                blamed.tolist(),
            )
        logger.warning("%s; skipped (%d of at most %d)", message, rejected, guard.config.max_skips)

    @contextmanager
    def _stopping(self, stop: StopSignal, *, when: bool) -> Iterator[None]:
        """A stretch between two steps, which a stop ends: a signal's own `when`, else what all ranks agree on in it."""
        try:
            with stop.interruptible(when=when):
                yield
        except StopRequested:
            self._stop(stop)

    def _stop(self, stop: StopSignal) -> None:
        """Save what this launch has done since its last save, and leave; every rank is at the same position."""
        if self._metrics.pending:
            self._log()
        step = self.global_step
        told = f"step {step} has been saved"
        if step == self._first_step:
            told = "no step of this launch was finished, nothing had to be saved"
        elif self._checkpoints is None:
            told = f"step {step} was reached, and this run saves nothing"
        elif step != self._saved_step:
            self.save()  # raises where it was a failed save that ends the run, as `wait` does
        if self._checkpoints is not None:
            with phase(SAVING):
                self._checkpoints.wait()
        self._metrics_file.write("stop", step=step, epoch=self.position.epoch)
        raise StopRequested(stop.exit_code, told)

    def _exclude_since(self, started: float) -> None:
        """What was done since is no training: saving, writing a profile."""
        seconds = time.perf_counter() - started
        self._excluded_s += seconds
        self._metrics.exclude(seconds)

    def _new_metrics(self) -> StepMetrics:
        return StepMetrics(
            global_batch_size=self._order.global_batch_size, total_steps=self._total_steps, ranks=self._ranks
        )


def _divided_as(array: RowArray, rows: Tensor) -> RowArray:
    return OwnRows(rows, array.total) if isinstance(array, OwnRows) else rows
