"""A batch in parts: less is held at once, nothing waits, dropout falls alike, and what does not divide is refused.

That parts train as processes do is shown with real processes in test_elastic.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_watch import NoHostWait
from tiny_training import tiny_recipe, write_tiny_records
from torch import Tensor, nn

from adadistill.bench import step as bench_step
from adadistill.bench.rows import read_rows
from adadistill.bench.step import build_step
from adadistill.core.distributed import Ranks
from adadistill.core.training.batch_norm_sync import RunningStatistics
from adadistill.core.training.micro_batches import MicroBatches, WholeBatch
from adadistill.core.training.run import run_training
from adadistill.core.training.training_step import TrainingStep
from adadistill.loaders.named_ranges import show_ranges
from adadistill.loaders.pipelines.pipeline import DataConfig

CPU = torch.device("cpu")


def _step(parts: int, *, batch_size: int = 16, precision: str = "float32", **options: Any) -> tuple[TrainingStep, Any]:
    step, batch = build_step(
        arch="mobilefacenet", width=0.125, image_size=32, batch_size=batch_size, identities=20, precision=precision,
        parts=parts, **{"device": CPU, **options},
    )  # fmt: skip

    def run(number: int = 0) -> Any:
        return step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=number, stop=False)

    return step, run


def _passes(network: nn.Module, parts: int, autocast: torch.dtype | None = None) -> MicroBatches:
    return MicroBatches(
        network, network, parts=parts, statistics=RunningStatistics(network), device=CPU,
        autocast=lambda: torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
    )  # fmt: skip


class _HeldBytes:
    """The most bytes that graphs kept for backward at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> _HeldBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Packed:
        return _Packed(self, tensor)


class _Packed:
    def __init__(self, count: _HeldBytes, tensor: Tensor) -> None:
        self.count, self.tensor, self.size = count, tensor, tensor.nbytes
        count.now += self.size
        count.most = max(count.most, count.now)

    def __del__(self) -> None:
        self.count.now -= self.size


def test_a_step_holds_the_graph_of_one_part_at_once():
    held = {}
    for parts in (1, 4):
        _, run = _step(parts, batch_size=32)
        with _HeldBytes() as count:
            run()
        held[parts] = count.most
    # A quarter of the activations, and the weights, which are as large in either.
    assert held[4] < 0.35 * held[1], held


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_operator_of_a_step_in_parts_waits_for_the_device(precision: str):
    _, run = _step(4, precision=precision)
    for number in range(2):
        with NoHostWait():
            run(number)


def test_a_batch_that_goes_through_whole_takes_one_pass_in_the_same_bits():
    step, run = _step(1)
    assert isinstance(step._passes, WholeBatch)
    twin = copy.deepcopy(step.student).train()
    ours, theirs = [], []
    step.student.register_forward_hook(lambda _, inputs, output: ours.append((inputs[0], output.detach())))
    run()
    (images, embeddings), *more = ours
    assert not more
    theirs = twin(images)
    assert torch.equal(embeddings, theirs)
    assert all(torch.equal(*pair) for pair in zip(step.student.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_gradients_are_those_of_the_parts_alone_and_statistics_their_mean(autocast: torch.dtype | None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).train()
    images, direction = torch.randn(12, 3, 8, 8), torch.randn(12, 5)
    expected: list[list[Tensor]] = []
    norms = []
    for part, wanted in zip(images.split(4), direction.split(4), strict=True):
        alone = copy.deepcopy(network)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            made = alone(part)
        made.backward(wanted.to(made.dtype))
        expected.append([parameter.grad for parameter in alone.parameters()])
        norms.append(alone[1].running_var)

    passes = _passes(network, 3, autocast)
    embeddings = passes.embed(images)
    passes._statistics.start_average(Ranks())
    passes.backward((embeddings * direction.to(embeddings.dtype)).sum())
    passes._statistics.commit_(torch.tensor(True))
    for parameter, grads in zip(network.parameters(), zip(*expected, strict=True), strict=True):
        assert torch.allclose(parameter.grad, sum(grads), rtol=1e-5, atol=1e-5)
    assert torch.allclose(network[1].running_var, sum(norms) / 3)
    assert network[1].num_batches_tracked == 1


def test_both_passes_drop_the_same_values_and_parts_others():
    network = nn.Dropout(0.5)
    images = torch.ones(8, 3, 16, 16)
    weight = nn.Parameter(torch.ones(()))
    seen: list[Tensor] = []

    def forward(part: Tensor) -> Tensor:
        seen.append((network(part) * weight).flatten(1))
        return seen[-1]

    passes = MicroBatches(
        forward, forward, parts=2, statistics=RunningStatistics(network), device=CPU,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    torch.manual_seed(3)
    passes.backward(passes.embed(images).sum())
    after = torch.get_rng_state()
    first, second, first_again, second_again = seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    network(images[:4])
    network(images[4:])
    assert torch.equal(torch.get_rng_state(), after), "the next step draws on as if there had been one pass"


def test_what_does_not_divide_is_refused_with_the_sizes_that_do(tmp_path: Path):
    data = DataConfig(records="a.rec", global_batch_size=24, micro_batch_size=8)
    assert [data.parts(local) for local in (24, 8, 6, 4)] == [3, 1, 1, 1]
    with pytest.raises(ValueError, match=r"micro_batch_size 8 does not divide the 12 images .* do: 2, 3, 4, 6, 12$"):
        data.parts(12)
    assert replace(data, micro_batch_size=None).parts(24) == 1
    for size in (0, 1, -4):
        with pytest.raises(ValueError, match=f"at least 2.*got {size}"):
            replace(data, micro_batch_size=size)
    with pytest.raises(ValueError, match="7 images do not divide into 2"):
        _passes(nn.Flatten(), 2).embed(torch.zeros(7, 3, 2, 2))
    with pytest.raises(ValueError, match="at least 2"):
        _passes(nn.Flatten(), 1)

    write_tiny_records(tmp_path)
    with pytest.raises(ValueError, match=r"does not divide the 8 images .* sizes that do: 2, 4, 8"):
        run_training(tiny_recipe(tmp_path, data__micro_batch_size=3), tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run").exists(), "at the door"


def test_a_gradient_that_is_not_finite_in_one_part_rejects_the_whole_step():
    step, run = _step(4)
    run(0)
    before = {name: value.clone() for name, value in step.student.state_dict().items() if value.is_floating_point()}
    centres = step.objective.centres.class_centres.clone()
    calls = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(None)
        return gradient * torch.nan if len(calls) == 2 else gradient

    hook = next(step.student.parameters()).register_hook(spoil)
    assert run(1).signals.tolist()[:2] == [1, 1]
    hook.remove()
    assert len(calls) == 4
    after = step.student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(step.objective.centres.class_centres, centres)


def test_named_ranges_nest_and_show_the_second_pass_within_backward():
    _, run = _step(2)
    run()
    seen: list[str] = []
    under: list[str] = []

    @contextmanager
    def open_range(name: str) -> Iterator[None]:
        under.append(name)
        seen.append("/".join(under))
        yield
        assert under.pop() == name

    show_ranges(open_range)
    try:
        run(1)
    finally:
        show_ranges(None)
    twice = ["backward/student_fwd"] * 2
    assert seen == ["student_fwd", "head", "head/teacher", "head/centres", "backward", *twice, "optimiser", "centres"]


def test_the_step_bench_measures_parts_and_says_so(tmp_path: Path):
    arguments = (
        "--width 0.125 --image-size 32 --batch-size 8 --identities 20 --steps 1 --warmup 1 --rounds 1 --device cpu "
        "--ways replayed --micro-batch-size"
    )
    assert bench_step.main([*arguments.split(), "4", "--rows", str(tmp_path / "rows.jsonl")]) == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row["batch_size"], row["micro_batch_size"]) == (8, 4)
    with pytest.raises(ValueError, match="sizes that do: 2, 4, 8"):
        bench_step.main([*arguments.split(), "3"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_in_parts_does_not_make_the_host_wait():
    _, run = _step(4, precision="bfloat16", device=torch.device("cuda"))
    for number in range(2):
        run(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_student_takes_the_same_steps_in_parts(mode: str):
    losses = {}
    for compiled in ("off", mode):
        _, run = _step(2, compile_student=compiled, device=torch.device("cuda"))
        losses[compiled] = [run(number).metrics["loss"].item() for number in range(3)]
    assert losses[mode] == pytest.approx(losses["off"], rel=1e-4)
