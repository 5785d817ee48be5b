"""A compiled student is the same network."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_training import PlainStudent

from adadistill.core.backbones.layers import ConvUnit
from adadistill.core.recipe import RecipeError, parse_recipe
from adadistill.core.training.student_compiler import compiled_forward


def test_off_is_the_network_itself():
    network = PlainStudent()
    assert compiled_forward(network, "off", channels_last=True) is network


def test_outputs_and_gradients_are_those_of_the_network():
    network = PlainStudent()
    compiled_network = copy.deepcopy(network)
    forward = compiled_forward(compiled_network, "reduce-overhead", channels_last=False)
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


def test_depthwise_convolutions_stay_channels_last_in_backward():
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch._dynamo.reset()  # else what another test compiled is not compiled again, and no code is seen
    network = torch.nn.Sequential(ConvUnit(3, 16, 3), ConvUnit(16, 16, 3, groups=16)).to(
        memory_format=torch.channels_last
    )
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    forward = compiled_forward(network, "default", channels_last=True)
    _, codes = run_fw_bw_and_get_code(lambda: forward(images))
    assert any("convolution_backward" in code for code in codes)
    assert not any("transpose_mxn" in code for code in codes)


def test_an_unknown_mode_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match=r"compile.*reduce-overhead.*fastest|compile.*fastest.*reduce-overhead"):
        parse_recipe("compile: fastest\nname: x\ndata: {records: a.rec}\noptim: {epochs: 1}\n")
