"""A compiled student is the same network."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_training import PlainStudent

from adadistill.core.recipe import RecipeError, parse_recipe
from adadistill.core.student_compiler import compiled_forward


def test_off_is_the_network_itself():
    network = PlainStudent()
    assert compiled_forward(network, "off") is network


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_outputs_and_gradients_are_those_of_the_network(mode: str):
    network = PlainStudent()
    compiled_network = copy.deepcopy(network)
    forward = compiled_forward(compiled_network, mode)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # CUDA graphs replay from the second call on
        for net in (network, compiled_network):
            net.zero_grad()
        expected, found = network(images), forward(images)
        expected.square().sum().backward()
        found.square().sum().backward()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(compiled_network.parameters(), network.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max().item())


def test_an_unknown_mode_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match=r"compile.*reduce-overhead.*fastest|compile.*fastest.*reduce-overhead"):
        parse_recipe("compile: fastest\nname: x\ndata: {records: a.rec}\noptim: {epochs: 1}\n")
