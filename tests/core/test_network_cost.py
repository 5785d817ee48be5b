"""Counted operations, parameters and traffic of the networks, against published counts of the same definitions."""

from __future__ import annotations

import pytest
import torch

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig, build_backbone
from adadistill.core.network_cost import network_cost

# Multiply-accumulates, parameters, and bfloat16 traffic of a fused and of an unfused forward pass, each counted apart
# from this code from the public definitions at 112 x 112 (insightface's networks and AdaDistill's MobileFaceNet).
PUBLISHED = {
    "mobilefacenet": (0.221e9, 1.20e6, 12.9e6, 36.8e6),
    "mbf": (0.438e9, 2.06e6, 16.3e6, 45.1e6),
    "iresnet18": (2.610e9, 24.0e6, 16.9e6, 49.2e6),
    "iresnet50": (6.309e9, 43.6e6, 25.1e6, 73.9e6),
    "iresnet100": (12.090e9, 65.2e6, 38.8e6, 114.8e6),
}


@pytest.mark.parametrize("arch", list(PUBLISHED))
def test_counts_are_the_published_ones(arch: str):
    macs, parameters, fused, unfused = PUBLISHED[arch]
    cost = network_cost(BackboneConfig(arch=arch), 112)
    assert cost.forward_flop / 2 == pytest.approx(macs, rel=0.003)
    assert cost.parameters == pytest.approx(parameters, rel=0.003)
    assert 2 * cost.fused_values == pytest.approx(fused, rel=0.005)
    # What counts as an operator differs a little.
    assert 2 * cost.unfused_values == pytest.approx(unfused, rel=0.2)


@pytest.mark.parametrize("arch", [name for name in BACKBONE_NAMES if not name.endswith(("34", "100", "101", "200"))])
def test_every_network_can_be_counted_without_memory_or_randomness(arch: str):
    before = torch.get_rng_state()
    cost = network_cost(BackboneConfig(arch=arch, width=0.25, embedding_dim=64), 48)
    assert torch.equal(before, torch.get_rng_state())
    assert 0 < cost.fused_values < cost.unfused_values
    assert 0 < cost.largest_values < cost.saved_values < cost.unfused_values
    assert cost.training_flop == 3 * cost.forward_flop
    assert cost.operators > 20


def test_what_backward_keeps_is_what_autograd_saves():
    config = BackboneConfig(width=0.25, embedding_dim=16)
    network = build_backbone(config, 32, generator=0).train()
    weights = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights and tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(4, 3, 32, 32))
    values = sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values()) / 4
    assert network_cost(config, 32).saved_values == pytest.approx(values, rel=0.02)


def test_pixels_multiply_the_cost_and_not_the_parameters():
    small, large = (network_cost(BackboneConfig(), side) for side in (48, 96))
    assert large.forward_flop == pytest.approx(4 * small.forward_flop, rel=0.02)
    assert large.saved_values == pytest.approx(4 * small.saved_values, rel=0.02)
