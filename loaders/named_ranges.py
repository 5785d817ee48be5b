"""Names for what a training step does, on the timeline of whatever tool draws one; nothing where none does.

Loaders and core open ranges, `core/profiling` decides who sees them. The module lies here because core may import
loaders and not the other way round. Which tool is listening is state of the process, like the timeline itself; no
result depends on it.

    step N                     one step of the loop, from asking for its batch to having logged and saved
      load                     waiting for the batch, taking it
      student_fwd              the student's embeddings
      head                     everything between embeddings and loss, and in it
        teacher                the teacher's embeddings: its network, or rows of a store
        centres                the update of adaptive centres
      backward                 gradients, and their averaging over ranks; where a batch goes in parts, in it
        student_fwd            the embeddings of each part again
      optimiser                clipping, the finiteness test, the update
      centres                  keeping the update where the step was finite
    h2d                        on the loader's thread: pixels to the device, augmented and normalised there; on the CPU,
                               where nothing is copied, the making of the batch from decoded images

Off, a range costs a few calls and no memory. Code that `torch.compile` traces has none, whoever listens: they would
break its graph, and switching them on would compile it anew. In a CUDA graph they mark the capture, not the replays.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from torch.compiler import is_dynamo_compiling

RangeName: TypeAlias = Literal["load", "h2d", "teacher", "student_fwd", "head", "backward", "optimiser", "centres"]
OpenRange: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Makes the range of a name, for one use."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


OFF: AbstractContextManager[object] = nullcontext()
"""The range that nobody sees: shared, without state."""

_open_range: OpenRange | None = None


def named_range(name: RangeName) -> AbstractContextManager[object]:
    """The range of that name, to be entered at once: `with named_range("head"): ...`."""
    if is_dynamo_compiling():
        return nullcontext()  # one made inside is all that the compiler can see through
    return OFF if _open_range is None else _open_range(name)


def step_range(step: int) -> AbstractContextManager[object]:
    """The range `step N` of the run's step N, from 0."""
    return OFF if _open_range is None else _open_range(f"step {step}")


def in_range(name: RangeName) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Decorator: every call runs in the range of that name."""

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @wraps(function)
        def ranged(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            with named_range(name):
                return function(*args, **kwargs)

        return ranged

    return decorate


def show_ranges(open_range: OpenRange | None) -> None:
    """From now on ranges of all threads are made by `open_range`; None makes none. Those already open end as begun."""
    global _open_range
    _open_range = open_range
