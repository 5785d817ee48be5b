"""What every backbone promises: size, shapes, seeded weights, float32 at the end, either memory format, compilation."""

import subprocess

import pytest
import torch
from forked_python import forked_python
from tests_support import ROOT
from torch import nn

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig, backbone_skeleton, build_backbone
from adadistill.core.backbones.layers import EmbeddingLayer, scaled_channels
from adadistill.core.backbones.residual_trunk import SqueezeExcitation

# Counted from the public definitions at 112 x 112 and 512-d (method 5.2 and 5.3).
PARAMETERS = {
    "mobilefacenet": 1_199_488,
    "mbf": 2_059_520,
    "mbf_large": 6_314_880,
    "iresnet18": 24_025_600,
    "iresnet34": 34_139_328,
    "iresnet50": 43_590_848,
    "iresnet100": 65_156_160,
    "iresnet200": 118_833_920,
    "ir18": 24_020_352,
    "ir34": 34_134_080,
    "ir50": 43_585_600,
    "ir101": 65_150_912,
}

# The smallest of each family: every kind of layer, little time.
FAMILIES = ("mobilefacenet", "mbf", "mbf_large", "iresnet18", "ir18")


def small(arch, image_size=32, *, seed=0, **fields):
    config = BackboneConfig(arch=arch, **{"embedding_dim": 24, "width": 0.125, **fields})
    return build_backbone(config, image_size, generator=seed)


def images(count, image_size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(count, 3, image_size, image_size, generator=generator, dtype=dtype) * 2 - 1


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_the_published_ones():
    assert set(PARAMETERS) == set(BACKBONE_NAMES)
    for arch, count in PARAMETERS.items():
        assert count_parameters(backbone_skeleton(BackboneConfig(arch=arch), 112)) == count, arch
    small_student = BackboneConfig(arch="mobilefacenet", embedding_dim=128)
    assert count_parameters(backbone_skeleton(small_student, 112)) == 1_002_880


@pytest.mark.parametrize("arch", ["iresnet18", "iresnet50"])
def test_squeeze_and_excitation_adds_an_eighth_of_a_square_of_channels_to_every_block(arch):
    plain, gated = (backbone_skeleton(BackboneConfig(arch=arch, se=se), 112) for se in (False, True))
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3)}[int(arch.removeprefix("iresnet"))]
    added = sum(
        count * channels * (channels // 16) * 2 for count, channels in zip(blocks, (64, 128, 256, 512), strict=True)
    )
    assert count_parameters(gated) - count_parameters(plain) == added


def test_squeeze_and_excitation_gates_channels_by_the_means_of_all():
    block = SqueezeExcitation(32).double()
    features = torch.randn(2, 32, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = features.mean((2, 3))  # (B, C)
    hidden = (means @ block.reduce.weight[:, :, 0, 0].T).clamp_min(0.0)
    gates = 1.0 / (1.0 + torch.exp(-hidden @ block.expand.weight[:, :, 0, 0].T))
    torch.testing.assert_close(block(features), features * gates[:, :, None, None])


# One grid cell, several, and an odd number of them.
@pytest.mark.parametrize(
    ("arch", "image_size"), [*((arch, 16) for arch in FAMILIES), ("ir18", 32), ("mobilefacenet", 48)]
)
def test_maps_images_of_any_multiple_of_16_to_embeddings(arch, image_size):
    network = small(arch, image_size)
    embeddings = network(images(3, image_size))
    assert embeddings.shape == (3, 24)
    assert embeddings.dtype == torch.float32
    assert torch.isfinite(embeddings).all()
    embeddings.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.requires_grad)


def test_refuses_image_sizes_that_are_no_multiples_of_16():
    for arch in FAMILIES:
        for image_size in (0, 8, 100):
            with pytest.raises(ValueError, match=f"image_size must be a positive multiple of 16, got {image_size}"):
                small(arch, image_size)


def test_global_depthwise_kernel_of_mobilefacenet_spans_the_grid():
    assert small("mobilefacenet", 112).pool.conv.kernel_size == (7, 7)
    assert small("mobilefacenet", 48).pool.conv.kernel_size == (3, 3)


@pytest.mark.parametrize("arch", FAMILIES)
def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(arch):
    before = torch.get_rng_state()
    first, again, other = small(arch, seed=3), small(arch, seed=3), small(arch, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.embed.linear.weight, other.embed.linear.weight)


def test_a_generator_is_a_seed_and_none_draws_from_the_global_one():
    config = BackboneConfig(width=0.125)
    torch.manual_seed(11)
    first, *others = (build_backbone(config, 32, generator=g) for g in (11, torch.Generator().manual_seed(11), None))
    assert all(torch.equal(other.embed.linear.weight, first.embed.linear.weight) for other in others)


def test_weights_are_drawn_as_the_public_implementations_draw_them():
    # Wide enough that a standard deviation is known to some percent.
    ir, iresnet, mobile = (
        build_backbone(BackboneConfig(arch=a, width=0.5), 32, generator=0)
        for a in ("ir18", "iresnet18", "mobilefacenet")
    )
    kernel = ir.stages[3][1].first.conv.weight  # (256, 256, 3, 3): fan_out 2304
    assert kernel.std().item() == pytest.approx((2 / 2304) ** 0.5, rel=0.02)
    assert ir.embed.linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert (ir.embed.linear.bias == 0).all()
    assert iresnet.stages[3][1].first.conv.weight.std().item() == pytest.approx(0.1, rel=0.02)
    bound = (256 * 4) ** -0.5
    assert iresnet.embed.linear.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert 0 < iresnet.embed.linear.bias.abs().max().item() <= bound
    assert mobile.final.conv.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    for network in (ir, iresnet, mobile):
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                assert (module.weight == 0.25).all()
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()
                assert (module.running_var == 1).all()
                assert (module.running_mean == 0).all()
                assert module.num_batches_tracked == 0


def test_last_norm_is_affine_only_where_the_public_one_is():
    frozen = small("iresnet18").embed.norm
    assert not frozen.weight.requires_grad
    assert (frozen.weight == 1).all()
    assert frozen.bias.requires_grad
    assert small("mbf").embed.norm.weight.requires_grad
    assert small("ir18").embed.norm.weight is None
    assert small("mobilefacenet").embed.norm.weight is None


def test_width_multiplies_trunk_and_hidden_channels_in_multiples_of_8():
    assert [scaled_channels(64, width) for width in (0.01, 0.3, 0.5, 0.69, 1.0, 1.5)] == [8, 16, 32, 48, 64, 96]
    half = build_backbone(BackboneConfig(width=0.5), 48, generator=0)
    block = half.stages[1][1]
    assert (block.expand.conv.in_channels, block.expand.conv.out_channels) == (64, 128)
    assert half.pool.conv.groups == 256
    channels = {module.num_features for module in half.modules() if isinstance(module, nn.BatchNorm2d)}
    assert all(count % 8 == 0 for count in channels)


@pytest.mark.parametrize(("arch", "expected"), [("ir18", 0.4), ("iresnet18", 0.0), ("mobilefacenet", 0.0)])
def test_dropout_defaults_to_the_architectures_own(arch, expected):
    def probability(network):
        return getattr(network.embed.dropout, "p", 0.0)

    assert probability(small(arch)) == expected
    assert probability(small(arch, dropout=0.2)) == 0.2
    assert probability(small(arch, dropout=0.0)) == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "resnet50"}, "arch must be one of mobilefacenet, mbf"),
        ({"embedding_dim": 0}, r"embedding_dim must be in \[1, 16384\], got 0"),
        ({"width": 0.0}, r"width must be in \(0, 8\], got 0.0"),
        ({"arch": "mbf", "se": True}, "se is an option of the iresnet networks, arch is mbf"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\) or null, got 1.0"),
    ],
)
def test_config_refuses_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**fields)


@pytest.mark.parametrize("arch", FAMILIES)
def test_memory_format_does_not_change_the_embeddings(arch):
    network = small(arch, 48, dropout=0.0).double().train()
    x = images(4, 48, torch.float64)
    with torch.no_grad():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        actual = network(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_features_are_flattened_channel_major_from_either_memory_format():
    layer = EmbeddingLayer(2 * 9, 2 * 9, bias=False, affine=False, dropout=0.0).eval()
    nn.init.eye_(layer.linear.weight)
    layer.norm.eps = 0.0
    features = torch.arange(18.0).reshape(1, 2, 3, 3)
    expected = torch.arange(18.0).reshape(1, 18)
    with torch.no_grad():
        assert torch.equal(layer(features), expected)
        assert torch.equal(layer(features.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("arch", FAMILIES)
def test_last_linear_and_norm_stay_in_float32_under_autocast(arch):
    network = small(arch).train()
    seen = {}
    network.embed.linear.register_forward_hook(lambda _, inputs, output: seen.update(linear=output.dtype))
    network.embed.register_forward_hook(lambda _, inputs, output: seen.update(features=inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = network(images(4, 32))
    assert seen == {"features": torch.bfloat16, "linear": torch.float32}
    assert embeddings.dtype == torch.float32
    embeddings.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters() if p.requires_grad)


def test_traces_into_one_graph_for_training():
    network = small("mobilefacenet", 16).train()
    x = images(2, 16)
    with torch.no_grad():
        expected = network(x)
    # fullgraph makes a graph break an error; the backend runs the traced operations as they are, no compiler needed.
    actual = torch.compile(network, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()


def test_the_narrowest_networks_train_on_full_size_images():
    """In a process of its own: what this guards against is a crash inside torch, not an exception."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import tests_support
tests_support.make_importable()
import torch
from adadistill.core.backbones import BackboneConfig, build_backbone
for arch in ("ir18", "iresnet18", "mobilefacenet", "mbf"):
    network = build_backbone(BackboneConfig(arch=arch, width=0.125, embedding_dim=16), 112, generator=0)
    network.to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    network(images).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.requires_grad)
"""
    done = subprocess.run([forked_python(), "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or f"killed by signal {-done.returncode}"
