"""How a rank's batch goes through the student and its gradient comes back: whole, or in equal parts to save memory.

Accumulating gradients of part losses, as is common, would train something else here: centres, norm statistics and
margins belong to the global batch. So a batch in parts goes through twice. The first pass embeds all parts without a
graph; the objective sees all embeddings at once, as ever, and gives their gradient; the second pass embeds each part
again, with a graph, and sends its rows of that gradient back. What is held at once is the graph of one part. What it
costs is one more forward pass of the student, about a third of its time.

Equality    k parts in a process train as k processes with a part each, whose batch norm normalises by its own samples
            too: losses, gradients, centres and running statistics agree up to the order of sums. Dropout draws other
            numbers, since ranks have streams of their own. A batch that goes through whole takes one pass, as ever
Randomness  the second pass sees the random state of the first, so that both drop the same values; reading and setting
            it copies a few bytes of the host, and by torch's source waits for no device on CUDA either, where it has
            not run yet. Compiled, the passes are two graphs that draw alike (Inductor, seen on the CPU)
Source      the two passes are those of GradCache, arXiv:2101.06983
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from adadistill.core.seeding import generator_states, restore_generator_states
from adadistill.core.training.batch_norm_sync import RunningStatistics
from adadistill.loaders.named_ranges import named_range

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""Images (n, 3, H, W) -> raw embeddings (n, D)."""
Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes the context that the student's forward pass runs in, for one use."""


class StudentPasses(Protocol):
    """The student's part of a step. `embed` and then `backward`, once each."""

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) raw embeddings, to make a loss of; running statistics are final after it."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` (0-dim) to all that it depends on; the student's are averaged over ranks."""
        ...


class WholeBatch:
    """One pass with a graph over the whole batch."""

    def __init__(self, forward: Forward, autocast: Autocast) -> None:
        self._forward, self._autocast = forward, autocast

    def embed(self, images: Tensor) -> Tensor:
        """See `StudentPasses.embed`."""
        with self._autocast():
            return self._forward(images)

    def backward(self, loss: Tensor) -> None:
        """See `StudentPasses.backward`."""
        loss.backward()


class MicroBatches:
    """Two passes over `parts` equal parts of the batch; see the module.

    Args:
        forward: the student itself. Its backward passes are averaged over no ranks, which is what `no_sync` is for:
            DDP's hooks let pass what none of its own forward passes has announced.
        last: the student in DDP, whose backward pass averages all that has come together; `forward` without ranks. Not
            of a static graph, which DDP learns from the first backward pass that it sees, and here that is none of
            its own: gradients then came out wrong, without a word (torch 2.13, gloo).
        parts: at least 2; must divide every batch.
        statistics: of the student; each part moves them from where the step found them.
        autocast: entered anew for each part, as weights that autocast has copied without a graph would stay copied.
        device: of the student.
    """

    def __init__(
        self,
        forward: Forward,
        last: Forward,
        *,
        parts: int,
        statistics: RunningStatistics,
        autocast: Autocast,
        device: torch.device,
    ) -> None:
        if parts < 2:
            raise ValueError(f"parts must be at least 2, got {parts}; a batch in one part is a WholeBatch")
        self._forward, self._last, self._parts = forward, last, parts
        self._statistics, self._autocast, self._device = statistics, autocast, device
        self._images: tuple[Tensor, ...] = ()
        self._states: list[tuple[Tensor, ...]] = []
        self._embeddings: Tensor | None = None

    def embed(self, images: Tensor) -> Tensor:
        """See `StudentPasses.embed`: a leaf here, whose gradient `backward` takes.

        Raises:
            ValueError: the batch does not divide into the parts.
        """
        if len(images) % self._parts:
            raise ValueError(f"{len(images)} images do not divide into {self._parts} equal parts")
        size = len(images) // self._parts
        self._images, self._states = images.split(size), []
        embeddings: Tensor | None = None
        for number, part in enumerate(self._images):
            self._states.append(generator_states(self._device))
            with torch.no_grad(), self._statistics.part(number), self._autocast():
                made = self._forward(part)
            if embeddings is None:
                embeddings = made.new_empty(len(images), *made.shape[1:])
            # Copied at once: the output of a CUDA graph is overwritten by its next run.
            embeddings[number * size : (number + 1) * size] = made  # (B / parts, D)
        assert embeddings is not None, "there are parts"
        self._embeddings = embeddings.requires_grad_()
        return self._embeddings

    def backward(self, loss: Tensor) -> None:
        """See `StudentPasses.backward`."""
        assert self._embeddings is not None, "backward follows embed"
        loss.backward()
        assert self._embeddings.grad is not None, "the loss is one of the embeddings"
        gradients = self._embeddings.grad.split(len(self._images[0]))
        for number, (part, gradient) in enumerate(zip(self._images, gradients, strict=True)):
            restore_generator_states(self._states[number], self._device)
            forward = self._last if number == self._parts - 1 else self._forward
            with named_range("student_fwd"), self._autocast():
                again = forward(part)
            again.backward(gradient)
        self._images, self._states, self._embeddings = (), [], None
