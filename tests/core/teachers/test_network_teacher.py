"""A network teaches constants: unit rows, the same for every way of running it, and compiled at most once."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from tiny_training import PlainStudent
from torch import Tensor, nn
from torch._dynamo.utils import counters

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.layers import ConvUnit, EmbeddingLayer
from adadistill.core.backbones.residual_trunk import ResidualBlock
from adadistill.core.teachers import ImageTeacher, NetworkTeacher
from adadistill.core.teachers.preprocessing import Preprocessing, TeacherNetwork

CPU = torch.device("cpu")
DIM = 16


class OneBlock(nn.Module):
    """Every kind of layer that a trunk has, once: compiles in a moment."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = ConvUnit(3, 8, 3)
            self.block = ResidualBlock(8, 16, stride=2, project=True)
            self.embed = EmbeddingLayer(16 * 8 * 8, DIM, bias=True, affine=False, dropout=0.4)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(self.block(self.stem(images)))


class Spy(nn.Module):
    """Notes what images it is given, and calls them embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images.flatten(1)[:, :DIM]


class ElsewhereNetwork(Spy):
    """Computes outside torch, as an ONNX file does, and must not be copied."""

    compilable = False

    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise AssertionError("a session of another runtime cannot be copied")


def small(arch: str = "ir18", image_size: int = 32) -> nn.Module:
    """A small network whose norms have seen images."""
    network = build_backbone(
        BackboneConfig(arch=arch, width=0.125, embedding_dim=DIM),  # type: ignore[arg-type]
        image_size,
        generator=0,
    )
    network.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for _ in range(3):
            network(images_of(16, image_size))
    return network


def images_of(count: int, image_size: int = 32, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, image_size, image_size, generator=generator) * 2 - 1


def teacher_of(network: nn.Module, **settings: object) -> NetworkTeacher:
    return NetworkTeacher(network, **{"embedding_dim": DIM, "device": CPU, **settings})  # type: ignore[arg-type]


def plain_embeddings(network: nn.Module, images: Tensor) -> Tensor:
    """What the teacher should say, in float64 and without any of its means."""
    reference = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        return F.normalize(reference(images.double()), dim=1)


@pytest.fixture
def count_graphs():
    """How many graphs were compiled since the test began."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arch", "fold", "dtype"),
    [("mobilefacenet", True, torch.float32), ("ir18", True, torch.float64), ("ir18", False, torch.float32)],
)
def test_embeds_as_the_network_does(arch: str, fold: bool, dtype: torch.dtype):
    network = small(arch)
    teacher = teacher_of(network, fold_batch_norm=fold, dtype=dtype)
    found, truth = teacher.embed(images_of(5)), plain_embeddings(network, images_of(5))
    assert isinstance(teacher, ImageTeacher)
    assert found.dtype == dtype
    # float64 holds to the last digits because norms are folded after the conversion.
    torch.testing.assert_close(found.double(), truth, rtol=0.0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_the_network_it_is_made_of_stays_as_it_is():
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    teacher = teacher_of(network, autocast_dtype=torch.bfloat16, channels_last=True)
    teacher.embed(images_of(2))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_embeddings_are_constants_of_a_graph_wherever_they_were_made():
    teacher = teacher_of(small(), batch_size=2)
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            embeddings = teacher.embed(images_of(3).requires_grad_())
        assert not embeddings.requires_grad
        assert not embeddings.is_inference()
        student = torch.ones(3, DIM, requires_grad=True)
        (student * embeddings).sum().backward()  # saves the embeddings for backward
        assert torch.equal(student.grad, embeddings)


def test_rows_have_length_one_and_a_zero_embedding_stays_zero():
    images = images_of(3)
    images[1] = 0.0
    norms = teacher_of(Spy()).embed(images).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.0, 1.0]))


def test_bfloat16_is_no_less_accurate_than_autocast_over_float32_weights():
    network = small()
    truth = plain_embeddings(network, images_of(32))
    found = teacher_of(network, autocast_dtype=torch.bfloat16).embed(images_of(32))
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        usual = network(images_of(32))
    errors = [1 - F.cosine_similarity(rows.double(), truth) for rows in (found, usual)]
    assert errors[0].mean() <= 1.2 * errors[1].mean()
    assert errors[0].max() <= 1e-3
    assert found.dtype == torch.float32


def test_bfloat16_weights_are_stored_once_and_the_last_layer_stays_float32():
    network = teacher_of(small(), autocast_dtype=torch.bfloat16, channels_last=True).network
    dtypes = {name.rsplit(".", 2)[-2]: parameter.dtype for name, parameter in network.named_parameters()}
    assert dtypes == {
        "conv": torch.bfloat16,
        "act": torch.bfloat16,
        "norm": torch.float32,
        "linear": torch.float32,
    }
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


# Fewer, exactly, one more, several times and a rest, none.
@pytest.mark.parametrize("count", [1, 4, 11, 0])
def test_a_batch_size_shows_the_network_one_shape_and_changes_no_row(count: int):
    teacher = teacher_of(Spy(), batch_size=4)
    found = teacher.embed(images_of(count))
    assert [len(images) for images in teacher.network.seen] == [4] * -(-count // 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, teacher_of(Spy()).embed(images_of(count)), rtol=0.0, atol=0.0)


def test_compiles_once_for_every_number_layout_and_origin_of_images(count_graphs):
    network = OneBlock()
    teacher = teacher_of(network, compile=True, batch_size=4, compile_backend="aot_eager")
    truth = plain_embeddings(network, images_of(11, 16))
    channels_last = images_of(11, 16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        made_in_inference_mode = images_of(11, 16)
    for images in (images_of(4, 16), images_of(11, 16), images_of(1, 16), channels_last, channels_last[::2].double(),
                   images_of(3, 16).requires_grad_(), made_in_inference_mode):  # fmt: skip
        rows = slice(None, None, 2) if images.dtype == torch.float64 else slice(len(images))
        torch.testing.assert_close(teacher.embed(images).double(), truth[rows], rtol=0.0, atol=1e-5)
    assert count_graphs() == 1


def test_two_compiled_teachers_of_one_architecture_live_beside_each_other(count_graphs):
    networks = [OneBlock(), OneBlock()]
    with torch.no_grad():
        networks[1].embed.linear.weight.mul_(-1.0)
    teachers = [teacher_of(n, compile=True, batch_size=2, compile_backend="eager") for n in networks]
    for _ in range(2):
        for teacher, network in zip(teachers, networks, strict=True):
            found, truth = teacher.embed(images_of(2, 16)), plain_embeddings(network, images_of(2, 16))
            torch.testing.assert_close(found.double(), truth, rtol=0.0, atol=1e-5)


def test_compiling_again_is_an_error_that_says_why(count_graphs):
    network = TeacherNetwork(nn.Flatten(), Preprocessing(color="bgr"))
    teacher = teacher_of(network, compile=True, batch_size=2, compile_backend="eager")
    first = teacher.embed(images_of(2))
    with pytest.raises(RuntimeError, match=r"compiled for images \(2, 3, 32, 32\).*again for images \(2, 3, 48, 48\)"):
        teacher.embed(images_of(2, 48))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(RuntimeError, match=r"(?s)changed settings of torch.*default_dtype"):
            teacher.embed(images_of(2).float())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(teacher.embed(images_of(2)), first)
    assert count_graphs() == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which torch.compile needs on the CPU")
def test_the_real_compiler_gives_the_same_embeddings(count_graphs):
    network = OneBlock()
    teacher = teacher_of(network, compile=True, batch_size=4, autocast_dtype=torch.bfloat16, channels_last=True)
    truth = plain_embeddings(network, images_of(6, 16))
    found = [teacher.embed(images_of(6, 16)) for _ in range(2)]
    assert torch.equal(*found)
    assert F.cosine_similarity(found[0].double(), truth).min() >= 0.999
    assert count_graphs() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_on_cuda_points_where_float32_does(count_graphs, compiled: bool):
    device = torch.device("cuda", torch.cuda.current_device())
    network = small("ir50")
    teacher = teacher_of(
        network, device=device, autocast_dtype=torch.bfloat16, channels_last=True, compile=compiled, batch_size=8
    )
    truth = plain_embeddings(network, images_of(20))
    for count in (8, 20, 3):
        found = teacher.embed(images_of(count).to(device))
        assert found.is_cuda
        assert F.cosine_similarity(found.cpu().double(), truth[:count]).min() >= 0.999
    assert count_graphs() == int(compiled)


def test_a_network_outside_torch_gets_plain_float32_images_and_is_not_copied():
    elsewhere = ElsewhereNetwork()
    network = TeacherNetwork(elsewhere, Preprocessing(color="bgr"))
    teacher = teacher_of(network, autocast_dtype=torch.bfloat16, channels_last=True, batch_size=2)
    images = images_of(3)
    found = teacher.embed(images.bfloat16().contiguous(memory_format=torch.channels_last))
    assert [tuple(seen.shape) for seen in elsewhere.seen] == [(2, 3, 32, 32), (2, 3, 32, 32)]
    assert all(seen.dtype == torch.float32 and seen.is_contiguous() for seen in elsewhere.seen)
    assert torch.equal(elsewhere.seen[0], images[:2].bfloat16().float().flip(1))
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (PlainStudent(), {"compile": True}, "needs a batch_size"),
        (PlainStudent(), {"batch_size": 0}, "batch_size must be positive, got 0"),
        (PlainStudent(), {"dtype": torch.bfloat16}, "float32 or float64, got torch.bfloat16"),
        (ElsewhereNetwork(), {"compile": True, "batch_size": 2}, r"cannot be compiled; set teacher\.compile to false"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(network: nn.Module, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        teacher_of(network, **settings)
