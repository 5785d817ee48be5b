"""The learning rate follows the published schedule, and a rejected step leaves parameters and momentum as they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adadistill.core.training.optimiser import (
    OptimConfig,
    build_optimiser,
    learning_rate,
    load_momentum,
    momentum_tensors,
    step_where_finite,
)


def _rate(config: OptimConfig, epoch: int, step: int = 0, *, batch: int = 512, steps: int = 100) -> float:
    return learning_rate(config, global_batch_size=batch, epoch=epoch, step=step, steps_per_epoch=steps)


def test_the_ms1mv2_schedule_drops_where_the_published_one_does():
    config = OptimConfig(epochs=26, milestones=(7, 13, 19, 24))
    expected = [1.0] * 7 + [0.1] * 6 + [0.01] * 6 + [1e-3] * 5 + [1e-4] * 2
    assert [_rate(config, epoch) / 0.1 for epoch in range(26)] == pytest.approx(expected)


def test_the_rate_scales_with_the_global_batch():
    config = OptimConfig(epochs=1)
    assert _rate(config, 0, batch=384) == pytest.approx(0.075)
    assert _rate(config, 0, batch=4096) == pytest.approx(0.8)


def test_warm_up_rises_per_step_from_a_quarter_as_the_square():
    config = OptimConfig(epochs=4, warmup_epochs=1.0)
    assert _rate(config, 0, 0) == pytest.approx(0.025)
    assert _rate(config, 0, 50) == pytest.approx(0.1 * (1.5 / 2) ** 2)
    assert _rate(config, 0, 99) < _rate(config, 1, 0) == pytest.approx(0.1)


def test_a_polynomial_rate_falls_on_a_line_to_nothing_after_the_last_step():
    config = OptimConfig(epochs=20, schedule="polynomial")
    assert _rate(config, 0) == pytest.approx(0.1)
    assert _rate(config, 10) == pytest.approx(0.05)
    assert _rate(config, 19, 99) == pytest.approx(0.1 / 2000)
    squared = OptimConfig(epochs=20, schedule="polynomial", power=2.0)
    assert _rate(squared, 10) == pytest.approx(0.025)


def test_a_linear_warm_up_reaches_the_rate_at_its_last_step_from_where_the_polynomial_starts():
    config = OptimConfig(epochs=20, schedule="polynomial", warmup_epochs=2.0, warmup="linear")
    assert _rate(config, 0, 0) == pytest.approx(0.1 / 200)
    assert _rate(config, 1, 0) == pytest.approx(0.1 * 101 / 200)
    assert _rate(config, 1, 99) == pytest.approx(0.1) == _rate(config, 2, 0)
    assert _rate(config, 11, 0) == pytest.approx(0.05)


def test_a_warm_up_of_a_fraction_of_a_step_ends_within_it():
    assert _rate(OptimConfig(epochs=2, warmup_epochs=1e-3, warmup="linear"), 0) == pytest.approx(0.1)


def test_a_warm_up_as_long_as_training_leaves_no_division_by_nothing():
    config = OptimConfig(epochs=2, schedule="polynomial", warmup_epochs=2.0)
    assert _rate(config, 1, 99) == pytest.approx(0.1 * (2.99 / 3) ** 2)


def test_only_matrices_decay_when_told_so():
    network = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.PReLU(3))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = build_optimiser(network.parameters(), OptimConfig(epochs=1, decay="matrices", weight_decay=0.1))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step_where_finite(optimiser, lr=0.5, finite=torch.tensor(True))
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert moved == ["0.weight"]
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert momentum_tensors(optimiser, names).keys() == before.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosine"}, "schedule must be step or polynomial"),
        ({"schedule": "polynomial", "milestones": (3,)}, "belong to schedule step"),
        ({"power": 0.0}, "power"),
        ({"warmup": "none"}, "warmup must be"),
        ({"decay": "some"}, "decay must be"),
        ({"epochs": 0}, "epochs"),
        ({"lr": -0.1}, "lr"),
        ({"milestones": (5, 3)}, "milestones"),
        ({"milestones": (10,)}, "milestones"),
        ({"gamma": 0.0}, "gamma"),
        ({"momentum": 1.0}, "momentum"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**{"epochs": 10, **values})


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def test_steps_equal_plain_sgd():
    ours, plain = _network(), _network()
    config = OptimConfig(epochs=1)
    optimiser = build_optimiser(ours.parameters(), config)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=False, foreach=False)
    for step in range(5):
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for network, update in ((ours, None), (plain, reference)):
            network.zero_grad()
            network(inputs).square().sum().backward()
            if update is None:
                step_where_finite(optimiser, lr=0.1, finite=torch.tensor(True))
            else:
                update.step()
    assert all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_rejected_step_changes_neither_parameters_nor_momentum(steps_before: int):
    network = _network()
    optimiser = build_optimiser(network.parameters(), OptimConfig(epochs=1))
    for _ in range(steps_before):
        network.zero_grad()
        network(torch.ones(2, 5)).sum().backward()
        step_where_finite(optimiser, lr=0.1, finite=torch.tensor(True))
    names = {parameter: name for name, parameter in network.named_parameters()}
    before = {k: v.clone() for k, v in {**network.state_dict(), **momentum_tensors(optimiser, names)}.items()}

    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    step_where_finite(optimiser, lr=0.1, finite=torch.tensor(False))

    after = {**network.state_dict(), **momentum_tensors(optimiser, names)}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_parameters_are_left_out():
    network = _network()
    network.bias.requires_grad_(False)
    optimiser = build_optimiser(network.parameters(), OptimConfig(epochs=1))
    assert [len(group["params"]) for group in optimiser.param_groups] == [1]


def test_momentum_of_another_network_is_refused():
    network = _network()
    optimiser = build_optimiser(network.parameters(), OptimConfig(epochs=1))
    names = {parameter: name for name, parameter in network.named_parameters()}
    saved = momentum_tensors(optimiser, names)
    with pytest.raises(ValueError, match="bias"):
        load_momentum(optimiser, names, {"weight": saved["weight"]})
    with pytest.raises(ValueError, match="weight"):
        load_momentum(optimiser, names, {**saved, "weight": torch.zeros(1)})
