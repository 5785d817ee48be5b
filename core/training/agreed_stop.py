"""Leaving together: many ranks stop in an evaluation where all of them are at the same place.

A rank that left alone would keep the others waiting in their next collective. In a training step the request travels
with the step's values; an evaluation has no steps, so it is asked between its rounds, before ranks gather.
"""

from __future__ import annotations

import torch

from adadistill.core.distributed import Ranks, all_reduced
from adadistill.core.training.stop_signal import StopRequested, current_stop


def stop_requested(ranks: Ranks) -> bool:
    """Whether this rank, one of several, has been asked to stop: it may skip work up to the next `leave_together`."""
    stop = current_stop()
    return ranks.world_size > 1 and stop is not None and stop.requested


def leave_together(ranks: Ranks) -> None:
    """A place where every rank leaves if one of them was asked to; all ranks call it together.

    Nothing is asked where nobody listens: a rank alone is interrupted wherever it is, and an entry point that has
    nothing to keep leaves at once, as its launcher signals every rank.

    Raises:
        StopRequested: on every rank.
    """
    stop = current_stop()
    if ranks.world_size == 1 or stop is None or stop.leaves_at_once:
        return
    if int(all_reduced(torch.tensor(int(stop.requested), device=ranks.device), "max", ranks)):
        raise StopRequested(stop.exit_code)
