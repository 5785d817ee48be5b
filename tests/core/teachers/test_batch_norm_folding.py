"""Folding norms changes embeddings by rounding alone, on every backbone, and leaves the norms that cannot be folded."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state_dict
from tests_support import golden_files
from tiny_training import PlainStudent
from torch import Tensor, nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.layers import ConvUnit, EmbeddingLayer
from adadistill.core.backbones.public_weights import load_public_weights
from adadistill.core.backbones.residual_trunk import ResidualBlock
from adadistill.core.teachers.batch_norm_folding import fold_batch_norms_
from adadistill.core.teachers.preprocessing import Preprocessing, TeacherNetwork

FAMILIES = ("mobilefacenet", "mbf_large", "iresnet18", "ir18")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained_looking(arch: str, image_size: int = 32) -> nn.Module:
    """A small network whose norms are far from the identity."""
    config = BackboneConfig(arch=arch, width=0.125, embedding_dim=24)  # type: ignore[arg-type]
    network = build_backbone(config, image_size, generator=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(0.0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5, generator=generator)
                module.bias.data.normal_(0.0, 0.3, generator=generator)
    return network.eval()


def folded(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network)
    fold_batch_norms_(copied)
    return copied


def embeddings_of(network: nn.Module, image_size: int = 32, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, 3, image_size, image_size, generator=generator, dtype=torch.float64) * 2 - 1
    with torch.inference_mode():
        return network(images.to(next(network.parameters()).dtype))


# One of each family; one grid cell, where nothing tells channels from cells, and several.
@pytest.mark.parametrize(("arch", "image_size"), [*((arch, 16) for arch in FAMILIES), ("ir18", 32)])
def test_embeddings_change_by_rounding_alone(arch: str, image_size: int):
    network = trained_looking(arch, image_size).double()
    truth = embeddings_of(network, image_size)
    error = (embeddings_of(folded(network), image_size) - truth).abs().max() / truth.abs().max()
    assert error < 1e-12

    in_float32 = embeddings_of(folded(network.float()), image_size)
    assert in_float32.dtype == torch.float32
    assert F.cosine_similarity(in_float32.double(), truth).min() >= 1 - 1e-6


def test_only_norms_before_a_padded_convolution_stay():
    for arch in FAMILIES:
        network = folded(trained_looking(arch))
        left = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
        assert left == {f"{name}.norm" for name, module in network.named_modules() if isinstance(module, ResidualBlock)}
        units = [module for module in network.modules() if isinstance(module, ConvUnit | EmbeddingLayer)]
        assert all(isinstance(unit.norm, nn.Identity) for unit in units)


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_files("backbone_ir18.npz"), ids=lambda path: path.stem)
def test_a_folded_network_still_gives_the_public_output(case: Path, golden_dir: Path):
    with np.load(golden_dir / "backbone_images.npz") as arrays:
        images = torch.from_numpy(arrays["images_u8"]).double() / 127.5 - 1.0
    with np.load(case) as arrays:
        expected = torch.from_numpy(arrays["output"])
    config = BackboneConfig(arch="ir18", embedding_dim=expected.shape[1])
    network = build_backbone(config, images.shape[-1], generator=0).double().eval()
    load_public_weights(network, golden_state_dict(case))
    fold_batch_norms_(network)
    with torch.inference_mode():
        found = F.normalize(network(images), dim=1)
    torch.testing.assert_close(found, F.normalize(expected, dim=1), rtol=1e-9, atol=1e-9)


def test_backbones_are_found_inside_other_modules():
    body = trained_looking("ir18").double()
    network = TeacherNetwork(body, Preprocessing(color="bgr", mean=(0.4, 0.5, 0.6), std=(0.5, 0.4, 0.3))).eval()
    truth = embeddings_of(network)
    fold_batch_norms_(network)
    torch.testing.assert_close(embeddings_of(network), truth, rtol=1e-11, atol=1e-12)
    assert isinstance(body.norm, nn.Identity)


def test_folding_twice_is_folding_once_and_folded_maps_are_frozen():
    once = folded(trained_looking("ir18"))
    twice = folded(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(tensor, twice.state_dict()[name]) for name, tensor in once.state_dict().items())
    maps = [module for module in once.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert not any(parameter.requires_grad for module in maps for parameter in module.parameters())


def test_networks_of_other_layers_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), PlainStudent()).eval()
    before = copy.deepcopy(network.state_dict())
    fold_batch_norms_(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert isinstance(network[1], nn.BatchNorm2d)


def test_a_network_in_training_mode_is_refused():
    network = trained_looking("ir18").train()
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        fold_batch_norms_(network)
    assert isinstance(network.norm, nn.BatchNorm2d)
