"""Images through a network, the work shared by all ranks: at once, or a large set in blocks that are kept on disk.

In both ways every image is embedded exactly once and decoding goes on beside the network. Blocks are gathered round by
round and only the main rank keeps them, so that a killed run goes on where it was, on another number of ranks too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.distributed import (
    Ranks,
    broadcast_text,
    gather_rows,
    leave_together,
    rank_share,
    run_on_main,
    stop_requested,
)
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache, StoredBlocks
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.training.heartbeat import beat
from adadistill.loaders.evaluation_sets.image_sets import ImageSet, pixel_blocks
from adadistill.loaders.pixels import to_network_input

FLOAT32 = resolve_precision("float32", torch.device("cpu"))
"""What numbers to publish are computed in unless said otherwise."""

BLOCK_ROWS = 2048
"""Images of a block: 77 MB of pixels of 112 a side, 4 MB of embeddings."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """How images go through a network."""

    ranks: Ranks = Ranks()
    """Who this process is, and the device that the network is on."""
    batch_size: int = 256
    """Images per forward pass and rank; the last batch of a share is as short as it is."""
    precision: Precision = FLOAT32
    """Of the network and its input, with or without autocast."""


def embed_images(
    network: nn.Module, images_u8: Tensor, forward: Forward | None = None, *, mirrored: bool = False
) -> Tensor:
    """Raw embeddings of images, each rank computing its share of them.

    Args:
        network: images (B, 3, H, W) in [-1, 1] RGB -> raw embeddings (B, D). It runs in eval mode without gradients;
            the mode of every submodule is put back, also after an error.
        images_u8: (N, H, W, 3) uint8 RGB, N > 0, the same on every rank.
        forward: by default on this process alone, on the CPU, in float32.
        mirrored: flip the images left to right first.

    Returns:
        (N, D) on the CPU, of the precision's dtype (float32 under autocast); equal on all ranks.

    Raises:
        ValueError: there are no images.
    """
    if len(images_u8) == 0:
        raise ValueError("there are no images to embed")
    forward = forward or Forward()
    start, stop = rank_share(len(images_u8), forward.ranks.rank, forward.ranks.world_size)
    return embed_share(network, images_u8[start:stop], len(images_u8), forward, mirrored=mirrored)


def embed_share(network: nn.Module, share_u8: Tensor, total: int, forward: Forward, *, mirrored: bool) -> Tensor:
    """(total, D), as `embed_images`, where each rank gives only the images of its own share."""
    ranks = forward.ranks
    own = _embed_range(network, share_u8, forward, mirrored)  # (n, D)
    leave_together(ranks)
    shares = [rank_share(total, rank, ranks.world_size) for rank in range(ranks.world_size)]
    return torch.cat(_gathered(own, [stop - start for start, stop in shares], ranks))


def embed_set(
    name: str,
    images: ImageSet,
    network: nn.Module,
    forward: Forward,
    *,
    image_size: int,
    data_sha256: str,
    cache: EmbeddingCache | None = None,
    threads: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> npt.NDArray[np.float32] | None:
    """(N, D) sums of the raw embeddings of both mirror images, on the main rank; None on the others.

    All ranks call it together, and no rank but the main one holds more than a round of blocks.

    Args:
        name: of the set, in logs and errors.
        image_size: side of the network's images.
        data_sha256: of the set, which binds the cache.
        cache: keeps the embeddings on disk, and reads what is there. None keeps nothing.
        threads: that decode on each rank; default one per CPU, at most 8.
        block_rows: images that a rank embeds between two gatherings, which is also what a cache stores as one file.

    Raises:
        EmbeddingCacheError: the cache is of another network, other data, or another precision; on every rank.
        NonFiniteEmbeddingsError: on every rank, naming the image.
        ImageDecodeError, ValueError, OSError: an image is damaged, of another size, or gone.
    """
    ranks = forward.ranks
    stored: StoredBlocks | None = None
    if cache is not None:
        stored = run_on_main(
            lambda: cache.open(
                data_sha256=data_sha256,
                precision=str(forward.precision.image_dtype).removeprefix("torch."),
                image_size=image_size,
                images=len(images),
                block_rows=block_rows,
            ),
            ranks,
        )
    blocks = [(start, min(start + block_rows, len(images))) for start in range(0, len(images), block_rows)]
    done = {number: rows for number in range(len(blocks)) if (rows := _kept(stored, number, ranks)) is not None}
    missing: list[int] = json.loads(broadcast_text(json.dumps(sorted(set(range(len(blocks))) - set(done))), ranks))
    if done and missing:
        _log.info("%s: %d of %d blocks of embeddings are there", name, len(done), len(blocks))
    own = [blocks[number] for number in missing[ranks.rank :: ranks.world_size]]
    pixels = pixel_blocks(images, own, image_size=image_size, threads=threads)
    for first in range(0, len(missing), ranks.world_size):
        leave_together(ranks)
        numbers = missing[first : first + ranks.world_size]
        part = _flip_sums(network, next(pixels) if ranks.rank < len(numbers) else None, image_size, forward)
        sizes = [blocks[number][1] - blocks[number][0] for number in numbers]
        for number, block in zip(numbers, _gathered(part, sizes, ranks), strict=True):
            _check_finite(name, block, blocks[number][0])
            if ranks.is_main:
                done[number] = block.numpy()
                if stored is not None:
                    stored.write(number, done[number])
        if ranks.is_main and (first // ranks.world_size) % 16 == 15:
            _log.info("%s: %d of %d images embedded", name, blocks[numbers[-1]][1], len(images))
    pixels.close()
    return _in_order(done, blocks) if ranks.is_main else None


def _kept(stored: StoredBlocks | None, number: int, ranks: Ranks) -> npt.NDArray[np.float32] | None:
    return stored.read(number) if stored is not None and ranks.is_main else None


def _in_order(done: dict[int, npt.NDArray[np.float32]], blocks: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
    """All blocks as one array, each let go once it is copied."""
    embeddings = np.empty((blocks[-1][1], done[0].shape[1]), dtype=np.float32)
    for number, (start, stop) in enumerate(blocks):
        embeddings[start:stop] = done.pop(number)
    return embeddings


def _flip_sums(
    network: nn.Module, pixels_u8: npt.NDArray[np.uint8] | None, image_size: int, forward: Forward
) -> Tensor:
    """(n, D) float32 of a block on the device; without a block none of it, with the width that it would have."""
    shape = (0, image_size, image_size, 3)
    # As if alone: a batch left out on a stop would be kept as zeros; ranks leave between rounds instead.
    forward = replace(forward, ranks=replace(forward.ranks, rank=0, world_size=1))
    images = torch.from_numpy(np.zeros(shape, dtype=np.uint8) if pixels_u8 is None else pixels_u8)
    plain, mirrored = (_embed_range(network, images, forward, flip).float() for flip in (False, True))
    return plain + mirrored


def _embed_range(network: nn.Module, images_u8: Tensor, forward: Forward, mirrored: bool) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, D) raw embeddings on the device, on this rank alone."""
    if len(images_u8) == 0:  # more ranks than images: the width of an embedding is still needed
        black = images_u8.new_zeros((1, *images_u8.shape[1:]))
        return _embed_range(network, black, forward, mirrored)[:0]
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module  # its forward may synchronise buffers, and ranks may have unequal numbers of batches
    device, precision = forward.ranks.device, forward.precision
    autocast = torch.autocast(
        device.type, dtype=precision.autocast_dtype or torch.bfloat16, enabled=precision.autocast_dtype is not None
    )
    embeddings = []
    with _evaluation_mode(network), torch.no_grad(), autocast:
        for batch_u8 in images_u8.split(forward.batch_size):
            images = to_network_input(
                batch_u8, device=device, dtype=precision.dtype, channels_last=precision.channels_last
            )
            embeddings.append(network(images.flip(3) if mirrored else images).to(precision.dtype))
            beat()
            if stop_requested(forward.ranks):
                break
    return torch.cat(embeddings)


def _gathered(own: Tensor, sizes: Sequence[int], ranks: Ranks) -> list[Tensor]:
    """The rows of the first ranks, one for each size, on the CPU of all ranks."""
    if ranks.world_size == 1:
        return [own.cpu()]
    longest = max(sizes)
    padded = F.pad(own, (0, 0, 0, longest - len(own)))  # (longest, D), as collectives want equal sizes
    parts = gather_rows(padded, ranks).cpu().split(longest)
    return [rows[:size].clone() for rows, size in zip(parts, sizes, strict=False)]


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode for every submodule, then each one's own mode again: some may be frozen in eval mode on purpose."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_finite(name: str, rows: Tensor, first: int) -> None:
    damaged = (~rows.isfinite().all(dim=1)).nonzero()
    if len(damaged):
        raise NonFiniteEmbeddingsError(
            f"{name}: the embedding of image {first + int(damaged[0])} is NaN or infinite; the network's weights are "
            "the place to look"
        )
