"""A network's score depends on its pixels alone: not on batches, ranks, mode, or what it was doing before."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from forked_python import forked_python
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.scoring.evaluation import (
    PUBLISHED_PAIRS,
    DecodedSet,
    EvaluationConfig,
    VerificationSets,
    embed_images,
    evaluate_sets,
    rank_share,
)
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError, verification_result
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError, write_verification_bin

TESTS = Path(__file__).resolve().parent.parent
CPU = Ranks()
COUNTS = (1, 2, 9)  # of one image the first of two ranks gets none; 9 do not divide
FLOAT64 = resolve_precision("float64", torch.device("cpu"))


class TinyNetwork(nn.Module):
    """8 x 8 images to 6-d embeddings, with what behaves otherwise in training: batch norm and dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 6), nn.BatchNorm1d(6))
        self.batch_sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.batch_sizes.append(len(images))
        return self.body(self.frozen(images))


def pixels(count: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def write_set(path: Path, pairs: int, side: int = 8) -> Path:
    images = [simplejpeg.encode_jpeg(image.numpy(), quality=95) for image in pixels(2 * pairs, seed=pairs, side=side)]
    write_verification_bin(path, images, [index % 2 == 0 for index in range(pairs)])
    return path


# --- embedding ---------------------------------------------------------------------------------------------------


# One image, one batch exactly, one over, several and a rest, a batch larger than everything.
@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 4), (5, 4), (11, 4), (7, 100), (3, 1)])
def test_every_image_is_embedded_once_whatever_the_batch_size(count, batch_size):
    network = TinyNetwork().double()
    images_u8 = pixels(count)

    embeddings = embed_images(network, images_u8, ranks=CPU, batch_size=batch_size, precision=FLOAT64)

    assert sum(network.batch_sizes) == count
    assert max(network.batch_sizes) <= batch_size
    network.eval()
    with torch.no_grad():
        one_by_one = [network((image.permute(2, 0, 1)[None].double() - 127.5) / 127.5)[0] for image in images_u8]
    torch.testing.assert_close(embeddings, torch.stack(one_by_one), rtol=1e-12, atol=1e-12)
    assert embeddings.dtype == torch.float64


def test_mirrored_means_left_to_right():
    network, images_u8 = TinyNetwork(), pixels(5)
    mirrored = embed_images(network, images_u8, ranks=CPU, mirrored=True)
    assert torch.equal(mirrored, embed_images(network, images_u8.flip(2), ranks=CPU))
    assert not torch.equal(mirrored, embed_images(network, images_u8.flip(1), ranks=CPU))


def test_every_submodule_gets_its_own_mode_back():
    network = TinyNetwork().train()
    network.frozen.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    embed_images(network, pixels(5), ranks=CPU)

    assert network.training
    assert network.body[1].training
    assert not network.frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error_too():
    network = TinyNetwork().train()
    network.frozen.eval()
    with pytest.raises(RuntimeError):
        embed_images(network, pixels(5, side=9), ranks=CPU)
    assert network.training
    assert not network.frozen.training


def test_autocast_gives_float32_embeddings_close_to_those_without():
    network, images_u8 = TinyNetwork(), pixels(16)
    bfloat16 = resolve_precision("bfloat16", torch.device("cpu"))
    exact = embed_images(network, images_u8, ranks=CPU)
    rounded = embed_images(network, images_u8, ranks=CPU, precision=bfloat16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.nn.functional.cosine_similarity(rounded, exact).min() > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_a_gpu_gives_what_the_cpu_gives(precision, close):
    device = torch.device("cuda", 0)
    on_gpu = embed_images(
        TinyNetwork().to(device),
        pixels(37),
        ranks=Ranks(device=device),
        batch_size=16,
        precision=resolve_precision(precision, device),
    )
    on_cpu = embed_images(TinyNetwork(), pixels(37), ranks=CPU)
    assert on_gpu.device.type == "cpu"
    assert on_gpu.dtype == torch.float32
    assert (1 - torch.nn.functional.cosine_similarity(on_gpu, on_cpu)).max() < close


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        embed_images(TinyNetwork(), pixels(0), ranks=CPU)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 12, 100])
def test_shares_are_contiguous_whole_and_even(count, world_size):
    shares = [rank_share(count, rank, world_size) for rank in range(world_size)]
    assert [index for start, stop in shares for index in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


# --- sets --------------------------------------------------------------------------------------------------------


def test_sets_are_scored_by_the_flip_sum_of_raw_embeddings(tmp_path):
    sets = VerificationSets.load([write_set(tmp_path / "a.bin", 12), write_set(tmp_path / "b.bin", 30)], 8)
    network = TinyNetwork().double()

    results = evaluate_sets(network, sets, ranks=CPU, batch_size=7, precision=FLOAT64)

    assert list(results) == ["a", "b"]
    for one in sets:
        plain = embed_images(network, one.images_u8, ranks=CPU, precision=FLOAT64).numpy()
        mirrored = embed_images(network, one.images_u8, ranks=CPU, precision=FLOAT64, mirrored=True).numpy()
        fused = plain + mirrored
        expected = verification_result(one.name, fused / np.linalg.norm(fused, axis=1, keepdims=True), one.same)
        assert results[one.name].accuracy_per_fold == expected.accuracy_per_fold
        assert results[one.name].auc == expected.auc
        norms = np.linalg.norm(np.concatenate([plain, mirrored]), axis=1)
        assert results[one.name].xnorm == pytest.approx(norms.mean())
        assert results[one.name].pairs == len(one.same)


def test_embeddings_that_are_not_finite_name_set_and_image(tmp_path):
    sets = VerificationSets.load([write_set(tmp_path / "faces.bin", 12)], 8)
    network = TinyNetwork()
    with torch.no_grad():
        network.body[2].bias[3] = float("nan")
    with pytest.raises(NonFiniteEmbeddingsError, match=r"set faces: 24 of 24 .* first image 0 \(pair 0\)"):
        evaluate_sets(network, sets, ranks=CPU)


def test_images_of_another_size_are_fitted_to_the_network(tmp_path):
    sets = VerificationSets.load([write_set(tmp_path / "large.bin", 3, side=20)], 8)
    assert sets.sets[0].images_u8.shape == (6, 8, 8, 3)


def test_two_sets_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [write_set(tmp_path / "lfw.bin", 3), write_set(tmp_path / "other" / "lfw.bin", 3)]
    with pytest.raises(VerificationSetError, match="named 'lfw'"):
        VerificationSets.load(paths, 8)


def test_a_published_name_with_another_count_is_warned_about_once_over_the_ranks(tmp_path, caplog):
    path = write_set(tmp_path / "cfp_fp.bin", 3)
    with caplog.at_level(logging.WARNING):
        VerificationSets.load([path], 8)
        VerificationSets.load([path], 8, rank=1, world_size=2)
        VerificationSets.load([write_set(tmp_path / "mine.bin", 3)], 8)
    assert len(caplog.messages) == 1
    assert f"holds 3 pairs, the published set cfp_fp has {PUBLISHED_PAIRS['cfp_fp']}" in caplog.messages[0]


def test_a_rank_decodes_its_share_and_says_when_another_is_asked_for(tmp_path):
    path = write_set(tmp_path / "a.bin", 5)
    whole = VerificationSets.load([path], 8).sets[0]
    last = VerificationSets.load([path], 8, rank=2, world_size=3).sets[0]
    start, stop = rank_share(10, 2, 3)
    assert torch.equal(last.images_u8, whole.images(start, stop))
    assert torch.equal(last.images(start, stop), whole.images_u8[start:stop])
    with pytest.raises(ValueError, match=r"set a holds images \[6, 10\), this rank needs \[0, 10\)"):
        evaluate_sets(TinyNetwork(), VerificationSets((last,)), ranks=CPU)


@pytest.mark.realdata
def test_real_sets_are_scored_and_lopsided_ones_say_what_they_cannot_define(data_dir):
    paths = sorted((data_dir / "faces").glob("*.bin"))
    if not paths:
        pytest.skip(f"no .bin files in {data_dir / 'faces'}")
    sets = VerificationSets.load(paths, 16)
    blurred_pixels = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())

    results = evaluate_sets(blurred_pixels, sets, ranks=CPU, batch_size=512)

    for one in sets:
        result = results[one.name]
        assert result.pairs == len(one.same)
        if one.same.all() or not one.same.any():
            assert result.auc is None
            assert {"accuracy", "auc", "eer"} <= set(result.notes)
        else:
            assert 0.5 < result.auc < 0.95  # even blurred pixels know something, but no one


# --- ranks -------------------------------------------------------------------------------------------------------

WORKER = """
    import json, sys
    sys.path[:0] = [{tests!r}, {here!r}]
    import tests_support
    tests_support.make_importable()
    import test_evaluation
    import torch
    from adadistill.core.distributed import distributed_session

    torch.set_num_threads(1)
    with distributed_session("cpu") as ranks:
        network = test_evaluation.TinyNetwork().double()
        with open(f"{{sys.argv[1]}}-{{ranks.rank}}.json", "w") as file:
            json.dump(test_evaluation.scored(network, sys.argv[2:], ranks), file)
"""


def scored(network: nn.Module, paths: list[str], ranks: Ranks) -> list:
    """Embeddings and results as JSON, with sets loaded whole and by share."""
    embeddings = [
        embed_images(network, pixels(count), ranks=ranks, batch_size=2, precision=FLOAT64).tolist() for count in COUNTS
    ]
    share = {"rank": ranks.rank, "world_size": ranks.world_size}
    results = []
    for loaded in ({}, share):
        sets = VerificationSets.load(paths, 8, **loaded)
        by_name = evaluate_sets(network, sets, ranks=ranks, batch_size=5, precision=FLOAT64)
        results.append({name: result.to_json() for name, result in by_name.items()})
    return json.loads(json.dumps([embeddings, results]))


def run_ranks(folder: Path, world_size: int, paths: list[str]) -> list:
    """What each rank of a gloo group computes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = textwrap.dedent(WORKER).format(tests=str(TESTS), here=str(Path(__file__).parent))
    workers = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [forked_python(), "-c", code, str(folder / "rank"), *paths]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for worker in workers:
        _, stderr = worker.communicate(timeout=120)
        assert worker.returncode == 0, stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def test_two_ranks_give_what_one_gives(tmp_path):
    paths = [str(write_set(tmp_path / "a.bin", 11)), str(write_set(tmp_path / "b.bin", 20))]
    embeddings, results = scored(TinyNetwork().double(), paths, CPU)

    first, second = run_ranks(tmp_path, 2, paths)

    assert first == second  # equal bits on all ranks
    for ours, alone in zip(first[0], embeddings, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-12, atol=1e-12)
    for ours, alone in zip(first[1], results, strict=True):
        for name, result in alone.items():
            assert ours[name]["accuracy_per_fold"] == result["accuracy_per_fold"]
            assert ours[name]["xnorm"] == pytest.approx(result["xnorm"], rel=1e-12)


def test_a_wrapped_network_is_used_without_its_wrapper():
    # The wrapper's forward may speak to other ranks, whose shares can have another number of batches. Made without its
    # constructor, which wants a process group, this one can do nothing but hold the network.
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = TinyNetwork()
    images_u8 = pixels(3)
    assert torch.equal(embed_images(wrapped, images_u8, ranks=CPU), embed_images(TinyNetwork(), images_u8, ranks=CPU))


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every_epochs": 0}, "every_epochs must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"sets": ("a/lfw.bin", "b/lfw.bin")}, "different file names, got 'lfw' twice"),
    ],
)
def test_configuration_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**fields)


def test_a_decoded_set_without_images_is_an_empty_share():
    empty = DecodedSet("empty", pixels(0), np.zeros(4, bool), first=3)
    assert empty.images(3, 3).shape == (0, 8, 8, 3)
