"""Conversion of public state dicts: exact against the golden outputs, and strict."""

import numpy as np
import pytest
import torch
from golden_weights import golden_state_dict
from tests_support import golden_files
from torch import nn

from adadistill.core.backbones import BackboneConfig, backbone_skeleton, build_backbone
from adadistill.core.backbones.public_weights import (
    convert_public_weights,
    load_public_weights,
    public_names,
    swap_colour_order_,
)

GOLDEN_BACKBONES = [path for path in golden_files("backbone_*.npz") if path.stem != "backbone_images"]
FAMILIES = ("mobilefacenet", "mbf", "mbf_large", "iresnet18", "ir18")

# First and last tensor of each public implementation, and one inside a block of a later stage.
PUBLIC_KEYS = {
    "mobilefacenet": ("conv1.conv.weight", "conv_4.model.2.conv_dw.prelu.weight", "output_layer.bn.running_var"),
    "mbf": ("layers.0.layers.0.weight", "layers.5.layers.2.layers.1.layers.2.weight", "features.layers.3.weight"),
    "mbf_large": (
        "layers.0.layers.0.weight",
        "layers.1.layers.1.layers.1.layers.2.weight",
        "features.layers.3.weight",
    ),
    "iresnet18": ("conv1.weight", "layer3.0.downsample.1.running_mean", "features.bias"),
    "ir18": ("input_layer.0.weight", "body.5.res_layer.3.weight", "output_layer.4.running_var"),
}


def small(arch, **fields):
    return build_backbone(BackboneConfig(arch=arch, embedding_dim=16, width=0.125, **fields), 32, generator=1)


def public_state_dict(network):
    """The public state dict that converts into the weights of `network`: the conversion's names, read backwards."""
    own = network.state_dict()
    return {public: own[name].clone() for name, public in public_names(network).items()}


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN_BACKBONES, ids=lambda path: path.stem)
def test_converted_network_gives_the_public_output(case, golden_dir):
    with np.load(golden_dir / "backbone_images.npz") as arrays:
        images = torch.from_numpy(arrays["images_u8"]).double() / 127.5 - 1.0
    arch = case.stem.removeprefix("backbone_")
    with np.load(case) as arrays:
        expected = torch.from_numpy(arrays["output"])
        expected_norm = torch.from_numpy(arrays["norm"]) if "norm" in arrays else None
    public = golden_state_dict(case)
    config = BackboneConfig(arch=arch, embedding_dim=expected.shape[1])
    network = backbone_skeleton(config, images.shape[-1]).double().to_empty(device="cpu").eval()
    load_public_weights(network, public)
    with torch.inference_mode():
        embeddings = network(images)
    if expected_norm is not None:
        norm = embeddings.norm(dim=1, keepdim=True)
        torch.testing.assert_close(norm, expected_norm.reshape(norm.shape), rtol=1e-9, atol=0.0)
        embeddings = embeddings / norm
    scale = expected.abs().max().item()
    torch.testing.assert_close(embeddings, expected, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.golden
def test_golden_backbones_are_there(golden_dir):
    assert GOLDEN_BACKBONES, f"no backbone_*.npz in {golden_dir}"


def test_wrapper_prefixes_are_stripped():
    source = small("mobilefacenet")
    target = build_backbone(BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.125), 32, generator=2)
    for prefix in ("", "module.", "model.net.", "_orig_mod.module.", "a.b.c.", "student.encoder."):
        wrapped = {prefix + name: tensor for name, tensor in public_state_dict(source).items()}
        converted = convert_public_weights(wrapped, target)
        assert all(torch.equal(converted[name], tensor) for name, tensor in source.state_dict().items()), prefix


def test_prefix_that_only_some_names_of_the_network_have_is_an_error():
    network = small("ir18")
    mixed = dict(public_state_dict(network))
    mixed["module.input_layer.0.weight"] = mixed.pop("input_layer.0.weight")
    with pytest.raises(
        ValueError, match=r"missing input_layer\.0\.weight\n  not expected module\.input_layer\.0\.weight"
    ):
        convert_public_weights(mixed, network)


HEADS = {
    "AdaFace's": {
        "head.kernel": (16, 5), "head.t": (1,), "head.batch_mean": (1,), "head.batch_std": (1,),
    },
    "a margin": {"head.kernel": (16, 5), "head.margin": ()},
    "a classifier": {"classifier.weight": (7, 16), "classifier.bias": (7,)},
    "named as a layer of other networks": {"fc.weight": (5, 16)},
    "of weight averaging": {"n_averaged": ()},
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_beside_the_network_is_left_out_with_a_word(head, caplog):
    network = small("ir18")
    for prefix in ("model.", "backbone.", ""):
        caplog.clear()
        checkpoint = {f"{prefix}{name}": tensor for name, tensor in public_state_dict(network).items()}
        checkpoint |= {name: torch.zeros(shape) for name, shape in head.items()}
        assert convert_public_weights(checkpoint, network).keys() == network.state_dict().keys()
        (record,) = caplog.records
        assert all(name in record.getMessage() for name in head)


def test_what_is_no_head_is_reported():
    network = small("ir18")
    for name, shape in (("neck.conv.weight", (16, 16, 1, 1)), ("projection.weight", (16, 16)), ("fc.weight", (7, 24))):
        with pytest.raises(ValueError, match=f"1 problems:\n  not expected {name}"):
            convert_public_weights({**public_state_dict(network), name: torch.zeros(shape)}, network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_and_counters_that_were_cast_or_left_out_change_nothing(dtype):
    source = small("mobilefacenet")
    public = {name: tensor.to(dtype) for name, tensor in public_state_dict(source).items()}
    counters = [name for name in public if name.endswith("num_batches_tracked")]
    for name in counters[::2]:
        del public[name]
    target = build_backbone(BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.125), 32, generator=2)
    load_public_weights(target, public)
    for name, tensor in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(target.state_dict()[name], tensor.to(dtype).to(tensor.dtype)), name


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_problem_is_in_one_error(arch):
    network = small(arch)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    public = public_state_dict(network)
    missing, misshapen, poisoned = PUBLIC_KEYS[arch]
    shape = list(public[misshapen].shape)
    del public[missing]
    public[misshapen] = torch.zeros(3, 5)
    public[poisoned] = torch.full_like(public[poisoned], torch.nan)
    public["se_block.fc1.weight"] = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="4 problems") as error:
        load_public_weights(network, public)
    text = str(error.value)
    assert f"missing {missing}" in text
    assert "not expected se_block.fc1.weight [4, 8]" in text
    assert f"{misshapen} is [3, 5], this network needs {shape}" in text
    assert f"{poisoned} holds values that are not finite" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_tensors_of_another_type_architecture_or_image_size_do_not_load():
    public = public_state_dict(small("iresnet18"))
    integers = {**public, "bn1.weight": public["bn1.weight"].to(torch.int64)}
    larger = build_backbone(BackboneConfig(arch="iresnet18", embedding_dim=16, width=0.125), 48, generator=0)
    for network, given, message in (
        (small("iresnet18"), integers, r"bn1.weight is torch.int64, this network needs torch.float32"),
        (small("ir18"), public, r"and \d+ more$"),
        (larger, public, r"fc.weight is \[16, 256\], this network needs \[16, 576\]"),
        (small("mobilefacenet"), {}, "missing"),
    ):
        with pytest.raises(ValueError, match=message):
            load_public_weights(network, given)
    with pytest.raises(TypeError, match="no public names are known for Linear"):
        convert_public_weights({}, nn.Linear(2, 2))


def test_constant_weight_of_the_iresnet_output_stays_frozen_after_loading():
    network = small("iresnet18")
    load_public_weights(network, public_state_dict(network))
    assert not network.embed.norm.weight.requires_grad


def test_swapped_network_sees_bgr_images_as_the_original_sees_rgb():
    network = small("ir18").double().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        swap_colour_order_(network)
        torch.testing.assert_close(network(images.flip(1)), expected)
