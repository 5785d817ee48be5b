"""The learning rate follows the published schedule, and a rejected step leaves parameters and momentum as they are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from adadistill.core.config.text import canonical_json
from adadistill.core.training.optimiser import (
    OPTIMISERS,
    OptimConfig,
    Optimiser,
    build_optimiser,
    learning_rate,
    load_state,
    parts_like_parameters,
    rate_table,
    state_tensors,
    step_by_found_inf,
    step_or_undo,
    step_where_finite,
)

SGD = OptimConfig(epochs=1)


def _rate(config: OptimConfig, epoch: int, step: int = 0, *, batch: int = 512, steps: int = 100) -> float:
    return learning_rate(config, global_batch_size=batch, epoch=epoch, step=step, steps_per_epoch=steps)


POLY = OptimConfig(epochs=20, schedule="polynomial")
LINEAR = replace(POLY, warmup_epochs=2.0, warmup="linear")


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (OptimConfig(epochs=4, warmup_epochs=1.0), {(0, 0): 0.025, (0, 50): 0.1 * (1.5 / 2) ** 2, (1, 0): 0.1}),
        (POLY, {(0, 0): 0.1, (10, 0): 0.05, (19, 99): 0.1 / 2000}),
        (replace(POLY, power=2.0), {(10, 0): 0.025}),
        (LINEAR, {(0, 0): 0.1 / 200, (1, 0): 0.1 * 101 / 200, (1, 99): 0.1, (2, 0): 0.1, (11, 0): 0.05}),
        (OptimConfig(epochs=2, warmup_epochs=1e-3, warmup="linear"), {(0, 0): 0.1}),
        (replace(POLY, epochs=2, warmup_epochs=2.0), {(1, 99): 0.1 * (2.99 / 3) ** 2}),
    ],
    ids=["a quarter to one as the square", "polynomial", "power", "linear warm-up", "less than a step", "all warm-up"],
)
def test_the_rate_of_a_step_is_that_of_its_schedule(config: OptimConfig, rates: dict[tuple[int, int], float]):
    assert {at: _rate(config, *at) for at in rates} == pytest.approx(rates)


def test_the_ms1mv2_schedule_drops_where_the_published_one_does_and_scales_with_the_batch():
    config = OptimConfig(epochs=26, milestones=(7, 13, 19, 24))
    expected = [1.0] * 7 + [0.1] * 6 + [0.01] * 6 + [1e-3] * 5 + [1e-4] * 2
    assert [_rate(config, epoch) / 0.1 for epoch in range(26)] == pytest.approx(expected)
    assert [_rate(config, 0, batch=batch) for batch in (384, 4096)] == pytest.approx([0.075, 0.8])


STEP = OptimConfig(epochs=26, milestones=(7, 13, 19, 24), warmup_epochs=1.0)
POLYNOMIAL = OptimConfig(epochs=20, schedule="polynomial", warmup_epochs=2.5, warmup="linear", lr=0.4)
CONFIGS = [STEP, POLYNOMIAL, OptimConfig(epochs=1), OptimConfig(epochs=2, warmup_epochs=2.0)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 15163])
def test_every_change_of_the_rate_between_two_steps_is_at_a_listed_step(config: OptimConfig, steps_per_epoch: int):
    points = rate_table(config, global_batch_size=384, steps_per_epoch=steps_per_epoch)

    listed = {point.epoch * steps_per_epoch + point.step: point.rate for point in points}
    assert list(listed) == sorted(listed)
    total = config.epochs * steps_per_epoch
    assert {0, total - 1} <= listed.keys()

    def rate(step: int) -> float:
        return learning_rate(
            config,
            global_batch_size=384,
            epoch=step // steps_per_epoch,
            step=step % steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
        )

    assert all(listed[step] == rate(step) for step in listed)
    if config.schedule == "step":
        for milestone in config.milestones:
            step = milestone * steps_per_epoch
            assert rate(step) == pytest.approx(config.gamma * rate(step - 1))
            assert step in listed


def test_the_published_schedule_is_listed_as_published():
    points = rate_table(STEP, global_batch_size=384, steps_per_epoch=15163)

    assert [(point.epoch, point.step) for point in points] == [
        (0, 0), (0, 15162), (1, 0), (7, 0), (13, 0), (19, 0), (24, 0), (25, 15162),
    ]  # fmt: skip
    assert [point.rate for point in points] == pytest.approx(
        [0.01875, 0.075, 0.075, 7.5e-3, 7.5e-4, 7.5e-5, 7.5e-6, 7.5e-6], rel=1e-4
    )


def test_only_matrices_decay_when_told_so():
    network = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.PReLU(3))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = build_optimiser(network.parameters(), OptimConfig(epochs=1, decay="matrices", weight_decay=0.1))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step_where_finite(optimiser, SGD, lr=0.5, finite=torch.tensor(True))
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert moved == ["0.weight"]
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert state_tensors(optimiser, SGD, names)["momentum"].keys() == before.keys()


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
                step_where_finite(optimiser, SGD, lr=0.1, finite=torch.tensor(True))
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
        step_where_finite(optimiser, SGD, lr=0.1, finite=torch.tensor(True))
    names = {parameter: name for name, parameter in network.named_parameters()}
    before = {
        k: v.clone() for k, v in {**network.state_dict(), **state_tensors(optimiser, SGD, names)["momentum"]}.items()
    }

    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    step_where_finite(optimiser, SGD, lr=0.1, finite=torch.tensor(False))

    after = {**network.state_dict(), **state_tensors(optimiser, SGD, names)["momentum"]}
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
    saved = state_tensors(optimiser, SGD, names)["momentum"]
    with pytest.raises(ValueError, match="bias"):
        load_state(optimiser, SGD, names, {"momentum": {"weight": saved["weight"]}})
    with pytest.raises(ValueError, match="weight"):
        load_state(optimiser, SGD, names, {"momentum": {**saved, "weight": torch.zeros(1)}})


class Plain(torch.optim.Optimizer):
    """Heavy-ball, with what a kind can forget switched on by name."""

    def __init__(self, groups, forgets: str = "") -> None:
        super().__init__(groups, {"lr": 0.1})
        self.forgets = forgets
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["velocity"] = torch.zeros_like(parameter)
            if forgets == "a part":
                self.state[parameter]["square"] = torch.zeros_like(parameter)
            if forgets == "a number":
                self.state[parameter]["steps"] = 0

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            if self.forgets == "the groups":
                group["steps"] = group.get("steps", 0) + 1
            for p in group["params"]:
                velocity = self.state[p]["velocity"].mul(0.9).add(p.grad)
                if self.forgets == "a late part":
                    self.state[p]["late"] = velocity.clone()
                if self.forgets == "the tensor":
                    self.state[p]["velocity"] = velocity
                self.state[p]["velocity"].copy_(velocity)
                if self.forgets != "to move":
                    p.sub_(velocity, alpha=group["lr"])


def _register(monkeypatch: pytest.MonkeyPatch, **changed: object) -> OptimConfig:
    kind = {"make": lambda groups, config: Plain(groups), "state": {"speed": "velocity"}, **changed}
    monkeypatch.setitem(OPTIMISERS, "plain", Optimiser(**kind))
    return OptimConfig(epochs=1, kind="plain")


@pytest.mark.parametrize(
    ("forgets", "message"),
    [
        ("a part", r"plain declares the tensors \['velocity'\], it keeps .*square"),
        ("a late part", "it keeps .*late"),
        ("a number", "it keeps .*'steps': 'int'"),
        ("the tensor", "keeps something of a step that is not finite"),
        ("the groups", "numbers in param_groups|steps"),
        ("to move", "leaves a parameter with a gradient as it is"),
    ],
)
def test_a_kind_that_forgets_something_is_refused_before_it_trains(forgets: str, message: str, monkeypatch):
    config = _register(monkeypatch, make=lambda groups, config: Plain(groups, forgets))
    with pytest.raises(ValueError, match=message):
        build_optimiser(_network().parameters(), config)


def test_a_kind_that_does_not_leave_a_step_out_is_refused(monkeypatch):
    config = _register(monkeypatch, step=lambda optimiser, finite: optimiser.step())
    with pytest.raises(ValueError, match="keeps something of a step that is not finite"):
        build_optimiser(_network().parameters(), config)


def _adam(groups, config: OptimConfig) -> torch.optim.Optimizer:
    optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    for parameter in (p for group in optimiser.param_groups for p in group["params"]):
        zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] |= {"step": torch.zeros((), dtype=torch.float32), **zeros}
    return optimiser


@pytest.mark.parametrize("step", [step_by_found_inf, step_or_undo])
def test_fused_adam_leaves_out_what_is_not_finite_and_goes_on_from_its_state_bit_for_bit(step, monkeypatch):
    """A state of three parts, one of which is a single number, and a step that is not finite on either side."""
    state = {"steps": "step", "mean": "exp_avg", "square": "exp_avg_sq"}
    config = _register(monkeypatch, make=_adam, state=state, step=step)
    whole, part, rest = _network(), _network(), _network()
    assert parts_like_parameters(config) == ("mean", "square")

    def train(network: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:
            network.zero_grad()
            network(torch.randn(4, 5, generator=torch.Generator().manual_seed(number))).square().sum().backward()
            if number % 3 == 1:
                network.weight.grad.fill_(math.nan)
            step_where_finite(optimiser, config, lr=0.01, finite=torch.tensor(number % 3 != 1))

    optimisers = [build_optimiser(network.parameters(), config) for network in (whole, part, rest)]
    names = [{parameter: name for name, parameter in network.named_parameters()} for network in (whole, part, rest)]
    train(whole, optimisers[0], range(8))
    train(part, optimisers[1], range(4))
    rest.load_state_dict(part.state_dict())
    load_state(optimisers[2], config, names[2], state_tensors(optimisers[1], config, names[1]))
    train(rest, optimisers[2], range(4, 8))
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))
    ends = [state_tensors(optimisers[i], config, names[i]) for i in (0, 2)]
    assert float(ends[0]["steps"]["weight"]) == 5.0
    assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for part in state for name in ("weight", "bias"))


def test_the_kind_is_no_part_of_the_hash_where_it_is_the_default(monkeypatch):
    _register(monkeypatch)
    assert canonical_json(SGD) == canonical_json(OptimConfig(epochs=1, kind="sgd"))
    assert "kind" not in canonical_json(SGD)
    assert '"kind":"plain"' in canonical_json(OptimConfig(epochs=1, kind="plain"))
