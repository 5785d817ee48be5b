"""Embeds all images of a set, the blocks shared out to the ranks, decoding beside the network.

In each round every rank embeds one block, and the blocks are gathered; the main rank keeps them, in memory and on disk
where it was asked to. So a killed run goes on where it was, on another number of ranks too, and no rank but the main
one holds more than a round.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.distributed import Ranks, broadcast_text, gather_rows
from adadistill.core.precision import Precision
from adadistill.core.scoring.embedding_cache import StoredBlocks
from adadistill.core.scoring.evaluation import embed_images
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.training.agreed_stop import leave_together
from adadistill.loaders.evaluation_sets.ijb import IjbImages
from adadistill.loaders.evaluation_sets.ijb.images import pixel_blocks

BLOCK_ROWS = 2048
"""Images of a block: 77 MB of pixels of 112 a side, 4 MB of embeddings."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedder:
    """How images go through the network."""

    network: nn.Module
    """Images (B, 3, H, W), RGB in [-1, 1] -> raw embeddings (B, D)."""
    ranks: Ranks
    batch_size: int
    precision: Precision
    image_size: int
    block_rows: int = BLOCK_ROWS
    """Images that a rank embeds in one round."""

    def flip_sums(self, images_u8: npt.NDArray[np.uint8]) -> Tensor:
        """(n, H, W, 3), n > 0 -> (n, D) float32 on the CPU, by this rank alone."""
        alone = replace(self.ranks, rank=0, world_size=1)
        images = torch.from_numpy(images_u8)
        plain, mirrored = (
            embed_images(
                self.network, images, ranks=alone, batch_size=self.batch_size, precision=self.precision, mirrored=flip
            ).float()
            for flip in (False, True)
        )
        return plain + mirrored


def embed_set(
    name: str, images: IjbImages, embedder: Embedder, *, stored: StoredBlocks | None, threads: int | None = None
) -> npt.NDArray[np.float32] | None:
    """(N, D) float32 flip sums of all images on the main rank, None on the others. All ranks call it together.

    Args:
        name: of the set, in logs and errors.
        stored: where the main rank keeps blocks; None elsewhere, and where nothing is kept.
        threads: that decode on each rank; default one per CPU, at most 8.

    Raises:
        NonFiniteEmbeddingsError: on every rank, naming the image.
        ImageDecodeError, IjbError, OSError: an image is damaged, of another size, or gone.
    """
    ranks, rows_of_block = embedder.ranks, embedder.block_rows
    blocks = [(start, min(start + rows_of_block, len(images))) for start in range(0, len(images), rows_of_block)]
    held = {number: rows for number in range(len(blocks)) if stored and (rows := stored.read(number)) is not None}
    missing: list[int] = json.loads(broadcast_text(json.dumps(sorted(set(range(len(blocks))) - set(held))), ranks))
    if held and missing:
        _log.info("%s: %d of %d blocks of embeddings are there", name, len(held), len(blocks))
    own = missing[ranks.rank :: ranks.world_size]
    pixels = pixel_blocks(images, [blocks[number] for number in own], image_size=embedder.image_size, threads=threads)
    done: dict[int, npt.NDArray[np.float32]] = dict(held)
    for first in range(0, len(missing), ranks.world_size):
        leave_together(ranks)
        round_blocks = missing[first : first + ranks.world_size]
        part = _one_block(embedder, next(pixels) if ranks.rank < len(round_blocks) else None)
        for number, rows in _gathered(part, round_blocks, blocks, ranks):
            _check_finite(name, rows, blocks[number][0])
            if not ranks.is_main:
                continue
            done[number] = rows
            if stored is not None:
                stored.write(number, rows)
        if ranks.is_main and (first // ranks.world_size) % 16 == 15:
            _log.info("%s: %d of %d images embedded", name, blocks[round_blocks[-1]][1], len(images))
    pixels.close()
    if not ranks.is_main:
        return None
    widths = {rows.shape[1] for rows in done.values()}
    assert len(widths) == 1, "a cache is bound to one network"
    embeddings = np.empty((len(images), widths.pop()), dtype=np.float32)
    for number, (start, stop) in enumerate(blocks):
        embeddings[start:stop] = done.pop(number)
    return embeddings


def _one_block(embedder: Embedder, pixels: npt.NDArray[np.uint8] | None) -> Tensor:
    """(n, D); without a block, none of it: the width is still needed."""
    if pixels is not None:
        return embedder.flip_sums(pixels)
    side = embedder.image_size
    return embedder.flip_sums(np.zeros((1, side, side, 3), dtype=np.uint8))[:0]


def _gathered(
    part: Tensor, round_blocks: Sequence[int], blocks: Sequence[tuple[int, int]], ranks: Ranks
) -> list[tuple[int, npt.NDArray[np.float32]]]:
    """(number, rows) of every block of a round, on all ranks."""
    if ranks.world_size == 1:
        return [(round_blocks[0], part.numpy())]
    sizes = [blocks[number][1] - blocks[number][0] for number in round_blocks]
    longest = max(sizes)
    padded = F.pad(part, (0, 0, 0, longest - len(part))).to(ranks.device)  # (longest, D)
    gathered = gather_rows(padded, ranks).cpu().split(longest)
    return [
        (number, rows[:size].numpy().copy())
        for number, rows, size in zip(round_blocks, gathered[: len(round_blocks)], sizes, strict=True)
    ]


def _check_finite(name: str, rows: npt.NDArray[np.float32], first: int) -> None:
    damaged = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if damaged.size:
        raise NonFiniteEmbeddingsError(
            f"{name}: the embedding of image {first + int(damaged[0])} is NaN or infinite; the network's weights are "
            "the place to look"
        )
