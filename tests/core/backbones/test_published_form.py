"""Our networks leave as they came: the same names, the same bits, and IR networks as IResNets of the same function."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from golden_weights import golden_state_dict
from tests_support import golden_files

from adadistill.core.backbones import BackboneConfig, backbone_skeleton, build_backbone
from adadistill.core.backbones.public_weights import load_public_weights, public_names
from adadistill.core.backbones.published_form import check_published_file, published_tensors, save_published
from adadistill.core.backbones.weight_files import read_weight_file

PUBLISHERS = {"mobilefacenet": "adadistill", "mbf": "insightface", "iresnet18": "insightface", "ir18": "cvlface"}
CASES = [path for path in golden_files("backbone_*[!s].npz") if path.stem.removeprefix("backbone_") in PUBLISHERS]


def _trained_looking(arch: str, **fields: object) -> tuple[torch.nn.Module, BackboneConfig]:
    config = BackboneConfig(arch=arch, embedding_dim=8, **fields)
    network = build_backbone(config, 112, generator=3)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0.0, 0.3, generator=generator)
    return network.eval(), config


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_public_state_dict_comes_back_in_every_bit(case: Path):
    arch = case.stem.removeprefix("backbone_")
    public = golden_state_dict(case)
    config = BackboneConfig(arch=arch)
    network = backbone_skeleton(config, 112).double().to_empty(device="cpu")
    load_public_weights(network, public)
    back = published_tensors(network, config, 112, PUBLISHERS[arch])
    assert back.keys() == public.keys()
    assert all(torch.equal(back[name], public[name]) for name in public)


@pytest.fixture(scope="module")
def ir18() -> tuple[torch.nn.Module, BackboneConfig]:
    return _trained_looking("ir18")


def test_an_ir_network_is_an_iresnet_of_the_same_function(ir18: tuple[torch.nn.Module, BackboneConfig]):
    network, config = copy.deepcopy(ir18[0]).double(), ir18[1]
    tensors = published_tensors(network, config, 112, "insightface")
    assert tensors.keys() == published_tensors(network, config, 112, "adadistill").keys()
    skeleton = backbone_skeleton(BackboneConfig(arch="iresnet18", embedding_dim=8), 112)
    iresnet = skeleton.double().to_empty(device="cpu").eval()
    load_public_weights(iresnet, tensors)
    images = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(iresnet(images), network(images), rtol=1e-12, atol=1e-12)


def test_ir101_becomes_iresnet100():
    config = BackboneConfig(arch="ir101", embedding_dim=8)
    names = published_tensors(backbone_skeleton(config, 112).to_empty(device="cpu"), config, 112, "insightface").keys()
    assert names == set(public_names(backbone_skeleton(BackboneConfig(arch="iresnet100"), 112)).values())


@pytest.mark.parametrize(
    ("publisher", "file", "first"),
    [
        ("adaface", "adaface.ckpt", "model.input_layer.0.weight"),
        ("cvlface", "model.pt", "net.input_layer.0.weight"),
        ("cvlface", "model.safetensors", "model.net.input_layer.0.weight"),
        ("insightface", "backbone.pth", "conv1.weight"),
    ],
)
def test_files_hold_the_names_that_each_project_strips(tmp_path: Path, ir18, publisher: str, file: str, first: str):
    network, config = ir18
    check_published_file(tmp_path / file, config, 112, publisher)
    save_published(tmp_path / file, published_tensors(network, config, 112, publisher), publisher)
    read = read_weight_file(tmp_path / file)
    assert first in read
    stem = network.get_parameter("stem.conv.weight")
    # AdaFace feeds BGR: its first convolution takes the colours the other way round.
    assert torch.equal(read[first], stem.flip(1) if publisher == "adaface" else stem)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert all(tensor.is_contiguous() for tensor in read.values())


@pytest.mark.parametrize(
    ("config", "size", "publisher", "message"),
    [
        (BackboneConfig(arch="iresnet50"), 112, "adaface", "no exact form of iresnet50; choose adadistill or insight"),
        (BackboneConfig(arch="iresnet50", se=True), 112, "insightface", "iresnet50 with squeeze.*choose adadistill$"),
        (BackboneConfig(arch="iresnet200"), 112, "adadistill", "no exact form of iresnet200; choose insightface"),
        (BackboneConfig(arch="mbf", width=0.5), 112, "insightface", "width 0.5 and images of 112"),
        (BackboneConfig(arch="mbf"), 96, "insightface", "images of 96 pixels"),
        (BackboneConfig(arch="mbf"), 112, "insightface", "end in .pt, .pth, .safetensors"),
    ],
)
def test_what_has_no_exact_form_is_refused_before_anything_is_written(
    tmp_path: Path, config: BackboneConfig, size: int, publisher: str, message: str
):
    with pytest.raises(ValueError, match=message):
        check_published_file(tmp_path / "out.onnx", config, size, publisher)
    (tmp_path / "backbone.pth").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        check_published_file(tmp_path / "backbone.pth", BackboneConfig(arch="mbf"), 112, "insightface")
