"""A public state dict says which network it is, and sometimes who published it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_weights import golden_shapes
from tests_support import golden_files

from adadistill.core.backbones import BACKBONES, BackboneConfig, backbone_skeleton, public_formats
from adadistill.core.backbones.public_formats import FORMATS, recognise_backbone, resolve_publisher
from adadistill.core.backbones.public_weights import public_names


def _public(arch: str, prefix: str = "") -> dict[str, torch.Tensor]:
    network = backbone_skeleton(BackboneConfig(arch=arch, embedding_dim=24), 16)
    own = network.state_dict()
    return {prefix + public: own[name] for name, public in public_names(network).items()}


def test_every_network_is_recognised_by_its_tensors():
    for arch in [arch for arch, known in BACKBONES.items() if known.names is not None]:
        assert recognise_backbone(_public(arch)) == BackboneConfig(arch=arch, embedding_dim=24)


def test_every_publisher_that_a_network_names_has_a_format():
    assert {publisher for known in BACKBONES.values() for publisher in known.publishers} == FORMATS.keys()
    assert not [arch for arch, known in BACKBONES.items() if known.publishers and known.names is None]


def test_squeeze_and_excitation_is_recognised_as_adadistills():
    config = BackboneConfig(arch="iresnet34", embedding_dim=24, se=True)
    names = public_names(backbone_skeleton(config, 112)).values()
    assert {"layer1.0.se_block.fc1.weight", "layer4.2.se_block.fc2.weight"} <= set(names)
    public = {name: torch.empty((24, 512 * 49) if name == "fc.weight" else (1,), device="meta") for name in names}
    assert recognise_backbone(public) == config
    assert resolve_publisher("auto", config, public) == "adadistill"
    with pytest.raises(ValueError, match="insightface publishes no iresnet34; its format must be one of adadistill"):
        resolve_publisher("insightface", config, public)


def test_wrappers_do_not_hide_a_network():
    for prefix in ("module.", "model.net.", "_orig_mod.module."):
        assert recognise_backbone(_public("ir18", prefix)).arch == "ir18"


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ("module.online.", "module.target.", "iresnet34"),
        ("", "ema.", "ir18"),
    ],
)
def test_two_networks_in_one_file_are_refused_and_both_named(first: str, second: str, other: str):
    both = _public("ir18", first) | _public(other, second)
    with pytest.raises(ValueError, match="two networks") as error:
        recognise_backbone(both)
    assert f"ir18 under `{first}`" in str(error.value)
    assert f"{other} under `{second}`" in str(error.value)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("backbone_*[!s].npz"), ids=lambda path: path.stem)
def test_public_implementations_are_recognised(path):
    public = {name: torch.empty(tuple(shape), device="meta") for name, shape in golden_shapes(path).items()}
    assert recognise_backbone(public).arch == path.stem.removeprefix("backbone_")


def test_a_missing_tensor_does_not_hide_a_network():
    public = _public("iresnet34")
    del public["fc.weight"], public["conv1.weight"]
    assert recognise_backbone(public).arch == "iresnet34"


@pytest.mark.parametrize("names", [["blocks.0.attn.qkv.weight", "pos_embed"], ["foo." + name for name in ("a", "b")]])
def test_other_networks_are_refused_with_a_way_out(names: list[str]):
    with pytest.raises(ValueError, match=r"no network we know.*ONNX"):
        recognise_backbone({name: torch.zeros(1) for name in names})


@pytest.mark.parametrize(
    ("wanted", "arch", "names", "publisher"),
    [
        ("auto", "iresnet50", ["conv1.weight"], "insightface"),
        ("auto", "mobilefacenet", ["conv1.conv.weight"], "adadistill"),
        ("auto", "ir50", ["model.input_layer.0.weight", "head.kernel"], "adaface"),
        ("auto", "ir50", ["model.net.input_layer.0.weight"], "cvlface"),
        ("auto", "ir50", ["input_layer.0.weight"], None),
        ("adaface", "ir50", ["input_layer.0.weight"], "adaface"),
    ],
)
def test_publishers(wanted: str, arch: str, names: list[str], publisher: str | None):
    assert resolve_publisher(wanted, BackboneConfig(arch=arch), names) == publisher
    with pytest.raises(ValueError, match="insightface publishes no ir50; its format must be one of adaface, cvlface"):
        resolve_publisher("insightface", BackboneConfig(arch="ir50"), [])


def test_a_network_without_public_names_hides_no_other_and_says_that_it_has_none(monkeypatch):
    """Recognition of every file died of one such network in the table."""
    monkeypatch.setitem(BACKBONES, "own", replace(BACKBONES["mbf"], names=None, publishers=()))
    monkeypatch.setattr(public_formats, "_KNOWN", public_formats.known_configs())  # gathered at import
    assert recognise_backbone(_public("ir18")).arch == "ir18"
    with pytest.raises(ValueError, match="no public names are known for own, so no public file holds it"):
        resolve_publisher("auto", BackboneConfig(arch="own"), [])
    with pytest.raises(TypeError, match="no public names are known for MobileFaceNet"):
        public_names(backbone_skeleton(BackboneConfig(arch="own"), 112))


def test_a_network_that_nobody_publishes_has_no_publisher(monkeypatch):
    monkeypatch.setitem(BACKBONES, "own", replace(BACKBONES["mbf"], publishers=()))
    assert resolve_publisher("auto", BackboneConfig(arch="own"), []) is None
    with pytest.raises(ValueError, match="insightface publishes no own; its format must be one of auto"):
        resolve_publisher("insightface", BackboneConfig(arch="own"), [])
