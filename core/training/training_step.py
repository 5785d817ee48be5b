"""One step of training: forward, loss, backward, update; committed only where it is finite.

Nothing here makes the host wait for the device. What the host has to know (was a step rejected, was a stop asked for)
leaves the step as a small device tensor.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adadistill.core.distributed import Ranks
from adadistill.core.method.objective import Objective
from adadistill.core.precision import Precision
from adadistill.core.training.batch_norm_sync import RunningStatistics
from adadistill.core.training.micro_batches import Forward, MicroBatches, StudentPasses, WholeBatch
from adadistill.core.training.non_finite import NonFiniteGuard
from adadistill.core.training.optimiser import OptimConfig, build_optimiser, step_where_finite
from adadistill.core.training.student_compiler import CompileMode, compiled_forward
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import named_range


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step reports; everything is on the device."""

    metrics: dict[str, Tensor]
    """0-dim values of this rank."""
    signals: Tensor
    """(3,) int64, equal on all ranks: rejected steps so far, newest rejected step (-1: none), stop requested (0, 1)."""


class TrainingStep:
    """Student, objective and optimiser, and the order in which a step uses them.

    Args:
        student: images -> raw embeddings; moved to the device here. Only it is wrapped in DDP.
        compile_student: mode of `torch.compile` for the student, or off.
        parts: equal parts in which the student takes a batch, to hold fewer activations; see `micro_batches.py`.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        objective: Objective,
        optim: OptimConfig,
        guard: NonFiniteGuard,
        precision: Precision,
        ranks: Ranks,
        compile_student: CompileMode = "off",
        parts: int = 1,
    ) -> None:
        memory_format = torch.channels_last if precision.channels_last else torch.preserve_format
        self.student = student.to(device=ranks.device, dtype=precision.dtype, memory_format=memory_format)  # type: ignore[call-overload]
        self.objective = objective
        self.guard = guard
        self.optim = optim
        self.running_statistics = RunningStatistics(self.student)
        self._precision = precision
        self._ranks = ranks
        self._parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimiser = build_optimiser([*self._parameters, *objective.parameters().values()], optim)
        self._passes = self._student_passes(compile_student, parts)

    def run(self, batch: Batch, *, lr: float, fractional_epoch: float, global_step: int, stop: bool) -> StepOutcome:
        """Train on one batch.

        Args:
            batch: this rank's slice, with what the loader knows of the global batch.
            lr: learning rate of this step.
            fractional_epoch: epoch + step / steps per epoch, for warm-ups.
            global_step: 0-based step of the run.
            stop: whether this process was asked to stop.
        """
        self.student.train()
        self.optimiser.zero_grad(set_to_none=True)
        with named_range("student_fwd"):
            embeddings = self._passes.embed(batch.images)
        with named_range("head"):
            step = self.objective.step(embeddings, batch, fractional_epoch=fractional_epoch, stop=stop)
        with named_range("backward"):
            # Behind the objective's small gathers, which the loss waits for; done before the last gradients are.
            self.running_statistics.start_average(self._ranks)
            self._passes.backward(step.loss)
            self.objective.reduce_gradients_(self._ranks)
        with named_range("optimiser"):
            gradient_norm = self._clip()
            finite = self.guard.admit(
                finite_samples=step.finite_samples, gradient_norm=gradient_norm, global_step=global_step
            )
            step_where_finite(self.optimiser, self.optim, lr=lr, finite=finite)
        self.objective.commit_(finite)
        self.running_statistics.commit_(finite)
        signals = torch.stack(
            [self.guard.rejected_steps, self.guard.last_rejected, step.stop_requested.to(torch.int64)]
        )
        return StepOutcome(metrics={**step.metrics, "gradient_norm": gradient_norm}, signals=signals)

    def parameter_names(self) -> dict[nn.Parameter, str]:
        """Names of all trained parameters, for the optimiser's part of a checkpoint; see `Objective.parameters`."""
        names = {parameter: f"student.{name}" for name, parameter in self.student.named_parameters()}
        names.update({parameter: name for name, parameter in self.objective.parameters().items()})
        return names

    def _student_passes(self, compile_student: CompileMode, parts: int) -> StudentPasses:
        if parts == 1:
            return WholeBatch(self._compiled(self._in_ddp(static_graph=True), compile_student), self._autocast)
        alone = self._compiled(self.student, compile_student)
        last = alone
        if self._ranks.world_size > 1:
            last = self._compiled(self._in_ddp(static_graph=False), compile_student)
        return MicroBatches(
            alone, last, parts=parts, statistics=self.running_statistics, autocast=self._autocast,
            device=self._ranks.device,
        )  # fmt: skip

    def _in_ddp(self, *, static_graph: bool) -> nn.Module:
        if self._ranks.world_size == 1:
            return self.student
        device = self._ranks.device
        # Buffers are averaged by RunningStatistics; a static graph lets DDP overlap without searching for leaves.
        return DistributedDataParallel(
            self.student,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
        )

    def _compiled(self, network: nn.Module, mode: CompileMode) -> Forward:
        return compiled_forward(network, mode, channels_last=self._precision.channels_last)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = self._precision.autocast_dtype
        return torch.autocast(self._ranks.device.type, dtype=dtype, enabled=dtype is not None)

    def _clip(self) -> Tensor:
        """Clip the student's gradient; its 0-dim norm before clipping."""
        if self.optim.clip_norm is None:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            return torch.nn.utils.get_total_norm(gradients)
        return torch.nn.utils.clip_grad_norm_(self._parameters, self.optim.clip_norm)
