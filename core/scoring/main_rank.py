"""Work that one rank does for all: scoring takes memory and little time, so it is not shared out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from adadistill.core.distributed import Ranks

Shared = TypeVar("Shared")


def computed_on_main(compute: Callable[[], Shared], ranks: Ranks) -> Shared:
    """What the main rank computes, on all ranks; its error too, so that nobody waits for a rank that has left."""
    if ranks.world_size == 1:
        return compute()
    box: list[tuple[Shared | None, Exception | None]] = [(None, None)]
    if ranks.is_main:
        try:
            box = [(compute(), None)]
        except Exception as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0)
    value, failure = box[0]
    if failure is not None:
        raise failure
    assert value is not None, "a value or an error was sent"
    return value
