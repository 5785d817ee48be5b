"""apex is used only if it is NVIDIA's, on CUDA, and skips a step by its flag. Stand-ins take its place here."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from tiny_training import tiny_recipe, write_tiny_records
from torch import Tensor, nn

from adadistill.core.distributed import LaunchError, Ranks
from adadistill.core.training.apex_sgd import apex_sgd, require_skipping, step_apex_where_finite
from adadistill.core.training.optimiser import OptimConfig, build_optimiser, step_where_finite
from adadistill.core.training.run import run_training

CPU = torch.device("cpu")


class StandInSGD(torch.optim.Optimizer):
    """What apex does: SGD with weight decay, which a raised overflow flag turns into nothing."""

    heeds_flag = True

    def __init__(self, params, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    @torch.no_grad()
    def step(self) -> None:
        keeps = (self._dummy_overflow_buf == 0) if self.heeds_flag else torch.ones(1, dtype=torch.bool)
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter]["momentum_buffer"]
                moved = group["momentum"] * buffer + parameter.grad + group["weight_decay"] * parameter
                buffer.copy_(torch.where(keeps, moved, buffer))
                parameter.copy_(torch.where(keeps, parameter - group["lr"] * moved, parameter))


class DeafSGD(StandInSGD):
    heeds_flag = False


class FlaglessSGD(StandInSGD):
    def __init__(self, params, **options) -> None:
        super().__init__(params, **options)
        del self._dummy_overflow_buf


def test_an_optimiser_that_skips_by_its_flag_passes_the_trial():
    require_skipping(StandInSGD, CPU)


@pytest.mark.parametrize(("other", "why"), [(DeafSGD, "does not skip"), (FlaglessSGD, "no overflow flag")])
def test_one_that_does_not_is_refused(other: type, why: str):
    with pytest.raises(LaunchError, match=why):
        require_skipping(other, CPU)


def test_steps_are_those_of_torch_and_a_rejected_one_keeps_every_bit():
    weights = [nn.Parameter(torch.tensor([1.0, 2.0, -3.0])) for _ in range(2)]
    ours = StandInSGD([weights[0]], lr=0.1, momentum=0.9, weight_decay=0.01)
    ours.state[weights[0]]["momentum_buffer"] = torch.zeros(3)
    plain = torch.optim.SGD([weights[1]], lr=0.1, momentum=0.9, weight_decay=0.01)
    for finite in (True, False, True, True):
        before = weights[0].detach().clone()
        for weight in weights:
            weight.grad = weight.detach().square() if finite else torch.full((3,), torch.nan)
        step_apex_where_finite(ours, torch.tensor(finite))
        if finite:
            plain.step()
        else:
            assert torch.equal(weights[0], before)
    assert torch.allclose(weights[0], weights[1], rtol=1e-6, atol=0.0)


def test_without_nvidias_apex_the_error_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))  # PyPI's has no optimisers
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(LaunchError, match=r"NVIDIA apex .*the apex of PyPI is another package.*optim.backend=torch"):
        build_optimiser(nn.Linear(2, 2).parameters(), OptimConfig(epochs=1, backend="apex"))


def _install(monkeypatch, fused_sgd: type) -> None:
    optimisers = types.ModuleType("apex.optimizers")
    optimisers.FusedSGD = fused_sgd
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimisers)


def test_parameters_on_the_cpu_are_refused(monkeypatch):
    _install(monkeypatch, StandInSGD)
    with pytest.raises(LaunchError, match="runs on CUDA, this is to run on cpu"):
        apex_sgd([{"params": [nn.Parameter(torch.zeros(2))]}], lr=0.1, momentum=0.9, weight_decay=0.0)


def test_a_run_without_it_is_refused_before_it_has_a_folder(tmp_path):
    write_tiny_records(tmp_path / "faces")
    recipe = tiny_recipe(tmp_path / "faces", optim__backend="apex")
    with pytest.raises(LaunchError, match="apex"):
        run_training(recipe, tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_real_apex_trains_as_torch_does():
    pytest.importorskip("apex.optimizers", reason="NVIDIA apex is not installed")
    ends: list[Tensor] = []
    for backend in ("torch", "apex"):
        torch.manual_seed(0)
        network = nn.Linear(64, 64, device="cuda")
        config = OptimConfig(epochs=1, backend=backend)
        optimiser = build_optimiser(network.parameters(), config)
        for _ in range(5):
            optimiser.zero_grad()
            network(torch.ones(2, 64, device="cuda")).square().mean().backward()
            step_where_finite(optimiser, config, lr=0.1, finite=torch.tensor(True, device="cuda"))
        ends.append(network.weight.detach())
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-7)
