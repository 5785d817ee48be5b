"""Named ranges: nothing while nobody listens, and no trouble for compiled or captured code when somebody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from adadistill.loaders.named_ranges import OFF, in_range, named_range, show_ranges, step_range


class Listener:
    """Notes what opens and closes."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def open(self, name: str) -> Iterator[None]:
        self.seen.append(f"<{name}>")
        try:
            yield
        finally:
            self.seen.append(f"</{name}>")


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    show_ranges(listener.open)
    yield listener
    show_ranges(None)


@in_range("teacher")
def double(values: torch.Tensor) -> torch.Tensor:
    """Twice the values."""
    return values * 2


def work(values: torch.Tensor) -> torch.Tensor:
    with named_range("head"):
        return double(values) + 1


def test_off_every_range_is_the_same_object_without_state():
    assert named_range("load") is named_range("backward") is step_range(3) is OFF
    with OFF, OFF:
        pass


def test_ranges_nest_and_close_when_their_block_is_left_by_an_error(listener: Listener):
    with pytest.raises(ZeroDivisionError), step_range(7), named_range("load"):
        raise ZeroDivisionError
    with step_range(8):
        assert work(torch.tensor(3.0)) == 7.0
    assert listener.seen == [
        "<step 7>", "<load>", "</load>", "</step 7>",
        "<step 8>", "<head>", "<teacher>", "</teacher>", "</head>", "</step 8>",
    ]  # fmt: skip


def test_a_range_that_is_open_when_listening_ends_closes_as_it_began(listener: Listener):
    with named_range("optimiser"):
        show_ranges(None)
        with named_range("centres"):
            pass
    assert listener.seen == ["<optimiser>", "</optimiser>"]


def test_other_threads_are_heard_too(listener: Listener):
    thread = threading.Thread(target=work, args=(torch.ones(2),))
    thread.start()
    thread.join()
    assert listener.seen == ["<head>", "<teacher>", "</teacher>", "</head>"]


@pytest.mark.slow
def test_compiled_code_is_one_graph_that_listening_neither_breaks_nor_compiles_anew():
    graphs = []

    def counting_backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(work, backend=counting_backend, fullgraph=True)
    listener = Listener()
    try:
        assert compiled(torch.tensor(3.0)) == 7.0
        show_ranges(listener.open)
        assert compiled(torch.tensor(4.0)) == 9.0
    finally:
        show_ranges(None)
        torch._dynamo.reset()
    assert len(graphs) == 1
    assert listener.seen == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ranges_of_both_tools_can_be_open_while_a_cuda_graph_is_captured():
    from adadistill.core.profiling.recorders import both_ranges

    values = torch.ones(4, device="cuda")
    work(values)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    show_ranges(both_ranges)
    try:
        with torch.cuda.graph(graph):
            result = work(values)
    finally:
        show_ranges(None)
    values.fill_(5.0)
    graph.replay()
    assert result.tolist() == [11.0] * 4
