"""A network's embeddings depend on its pixels alone: not on batches, ranks, mode, or what it was doing before."""

from __future__ import annotations

import pytest
import torch
from scored_networks import FLOAT64, TinyNetwork, pixels
from torch import nn

from adadistill.core.distributed import Ranks, rank_share
from adadistill.core.precision import resolve_precision
from adadistill.core.scoring.embedding import Forward, embed_images


# One image, one over a batch, a batch larger than everything.
@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (5, 4), (7, 100)])
def test_every_image_is_embedded_once_whatever_the_batch_size(count, batch_size):
    network = TinyNetwork().double()
    images_u8 = pixels(count)

    embeddings = embed_images(network, images_u8, Forward(batch_size=batch_size, precision=FLOAT64))

    assert sum(network.batch_sizes) == count
    assert max(network.batch_sizes) <= batch_size
    network.eval()
    with torch.no_grad():
        one_by_one = [network((image.permute(2, 0, 1)[None].double() - 127.5) / 127.5)[0] for image in images_u8]
    torch.testing.assert_close(embeddings, torch.stack(one_by_one), rtol=1e-12, atol=1e-12)
    assert embeddings.dtype == torch.float64


def test_mirrored_means_left_to_right():
    network, images_u8 = TinyNetwork(), pixels(5)
    mirrored = embed_images(network, images_u8, mirrored=True)
    assert torch.equal(mirrored, embed_images(network, images_u8.flip(2)))
    assert not torch.equal(mirrored, embed_images(network, images_u8.flip(1)))


@pytest.mark.parametrize("side", [8, 9], ids=["finished", "after an error"])
def test_every_submodule_gets_its_own_mode_back(side):
    network = TinyNetwork().train()
    network.frozen.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    if side == 8:
        embed_images(network, pixels(5))
    else:
        with pytest.raises(RuntimeError):
            embed_images(network, pixels(5, side=side))

    assert network.training
    assert network.body[1].training
    assert not network.frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_autocast_gives_float32_embeddings_close_to_those_without():
    network, images_u8 = TinyNetwork(), pixels(16)
    bfloat16 = resolve_precision("bfloat16", torch.device("cpu"))
    exact, rounded = embed_images(network, images_u8), embed_images(network, images_u8, Forward(precision=bfloat16))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.nn.functional.cosine_similarity(rounded, exact).min() > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_a_gpu_gives_what_the_cpu_gives(precision, close):
    device = torch.device("cuda", 0)
    forward = Forward(ranks=Ranks(device=device), batch_size=16, precision=resolve_precision(precision, device))
    on_gpu = embed_images(TinyNetwork().to(device), pixels(37), forward)
    on_cpu = embed_images(TinyNetwork(), pixels(37))
    assert on_gpu.device.type == "cpu"
    assert on_gpu.dtype == torch.float32
    assert (1 - torch.nn.functional.cosine_similarity(on_gpu, on_cpu)).max() < close


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        embed_images(TinyNetwork(), pixels(0))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_shares_are_contiguous_whole_and_even(world_size):
    for count in (0, 1, 2, 7, 100):
        shares = [rank_share(count, rank, world_size) for rank in range(world_size)]
        assert [index for start, stop in shares for index in range(start, stop)] == list(range(count))
        sizes = [stop - start for start, stop in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_wrapped_network_is_used_without_its_wrapper():
    # The wrapper's forward may speak to other ranks, whose shares can have another number of batches. Made without its
    # constructor, which wants a process group, this one can do nothing but hold the network.
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = TinyNetwork()
    assert torch.equal(embed_images(wrapped, pixels(3)), embed_images(TinyNetwork(), pixels(3)))
