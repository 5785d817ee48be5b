"""Which records make up which batch: a function of (seed, epoch, step), not a state.

Every epoch is one seeded permutation of all image records, cut into global batches of which rank r takes the r-th
contiguous slice. Nothing has to be saved to resume, another number of ranks sees the same global batches, and every
rank runs the same number of steps by construction. The last, partial batch of an epoch is dropped, so that every step
has the same shape and the same learning rate scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class SampleOrder:
    """The order in which record ids are visited.

    Args:
        num_records: image records in the file.
        global_batch_size: samples per step over all ranks; at least 1 and at most `num_records`.
        seed: of the stream of permutations; equal on all ranks.

    Raises:
        ValueError: there are fewer records than one global batch holds.
    """

    def __init__(self, num_records: int, global_batch_size: int, seed: int) -> None:
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be positive, got {global_batch_size}")
        if num_records < global_batch_size:
            raise ValueError(
                f"{num_records} image records do not fill one global batch of {global_batch_size}; "
                "use a smaller data.global_batch_size or more records"
            )
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.num_records = num_records
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._last: tuple[int, Ids] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one epoch; the remainder is dropped."""
        return self.num_records // self.global_batch_size

    def permutation(self, epoch: int) -> Ids:
        """(N,) int64, all record ids in the order of `epoch`. The last one asked for is kept; threads may share it."""
        last = self._last
        if last is None or last[0] != epoch:
            stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            last = self._last = (epoch, stream.permutation(self.num_records))
        return last[1]

    def global_ids(self, epoch: int, step: int) -> Ids:
        """(G,) int64, the record ids of one step over all ranks.

        Raises:
            ValueError: `epoch` or `step` outside the order.
        """
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"no step {step} of epoch {epoch}: an epoch has steps 0 ... {self.steps_per_epoch - 1}")
        start = step * self.global_batch_size
        return self.permutation(epoch)[start : start + self.global_batch_size]

    def local_batch_size(self, world_size: int) -> int:
        """Samples per rank and step.

        Raises:
            ValueError: the global batch does not divide by the number of ranks.
        """
        if world_size < 1 or self.global_batch_size % world_size:
            raise ValueError(
                f"data.global_batch_size {self.global_batch_size} does not divide by {world_size} ranks; "
                "launch another number of processes or change the batch size"
            )
        return self.global_batch_size // world_size
