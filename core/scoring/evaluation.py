"""Scores a network on verification sets, the work shared by all ranks.

Each rank embeds a contiguous share of a set's images; the embeddings are gathered, so that every rank holds the same
numbers and nobody waits for rank 0. Sets are decoded once and kept by whoever asked for them: a training run evaluates
the same pixels every few epochs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.scoring.pair_metrics import (
    VerificationResult,
    check_finite,
    flip_sum,
    mean_norm,
    pair_distances,
    verification_result,
)
from adadistill.core.training.agreed_stop import leave_together, stop_requested
from adadistill.core.training.heartbeat import beat
from adadistill.loaders.evaluation_sets.verification_pairs import (
    VerificationSetError,
    decode_pairs,
    read_verification_set,
    verification_set_name,
)
from adadistill.loaders.pixels import to_network_input

PUBLISHED_PAIRS: Mapping[str, int] = {
    "lfw": 6000,
    "cfp_fp": 7000,
    "cfp_ff": 7000,
    "agedb_30": 6000,
    "calfw": 6000,
    "cplfw": 6000,
    "vgg2_fp": 5000,
}
"""Pairs of the sets everybody reports; another count under such a name is another protocol."""

FLOAT32 = resolve_precision("float32", torch.device("cpu"))
"""What numbers to publish are computed in unless said otherwise."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and on what a training run is scored."""

    sets: tuple[str, ...] = ()
    """Paths of verification sets: `.bin` files (their stem names the set) or CVLface's Arrow folders (their name does).
    Empty: no evaluation."""
    every_epochs: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated. Positive; every epoch, as in the field."""
    ijb: tuple[str, ...] = ()
    """Folders of IJB-B or IJB-C, in the original or CVLface's prepared layout."""
    tinyface: tuple[str, ...] = ()
    """Folders of TinyFace's test set, in its own or CVLface's prepared layout."""
    large_every_epochs: int = 4
    """Epochs between two evaluations on `ijb` and `tinyface`, which take minutes; the last epoch is always evaluated.
    Positive; as the origin."""
    batch_size: int = 256
    """Images per forward pass and rank. Positive; changes memory and speed, not the protocol."""

    def __post_init__(self) -> None:
        if self.every_epochs <= 0:
            raise ValueError(f"every_epochs must be positive, got {self.every_epochs}")
        if self.large_every_epochs <= 0:
            raise ValueError(f"large_every_epochs must be positive, got {self.large_every_epochs}")
        if self.batch_size <= 0:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")
        repeated = _repeated_name(self.sets)
        if repeated is not None:
            raise ValueError(f"sets must have different file names, got {repeated!r} twice")


@dataclass(frozen=True, slots=True)
class DecodedSet:
    """A verification set as pixels, all of it or one rank's share."""

    name: str
    images_u8: Tensor
    """(n, H, W, 3) uint8 RGB: images [first, first + n) of the set."""
    same: npt.NDArray[np.bool_]
    """(P,) bool; the set has 2P images, pair i is images 2i and 2i + 1."""
    first: int = 0
    data_sha256: str = ""
    """Of the file or files that it was read from."""
    decode_s: float = 0.0
    """Seconds that reading and decoding took here."""

    def images(self, start: int, stop: int) -> Tensor:
        """Images [start, stop) of the set.

        Raises:
            ValueError: they were not decoded here.
        """
        if start < self.first or stop > self.first + len(self.images_u8):
            held = f"[{self.first}, {self.first + len(self.images_u8)})"
            raise ValueError(
                f"verification set {self.name} holds images {held}, this rank needs [{start}, {stop}); "
                "load it for the same rank and world size"
            )
        return self.images_u8[start - self.first : stop - self.first]


@dataclass(frozen=True, slots=True)
class VerificationSets:
    """Sets that a run scores, decoded once."""

    sets: tuple[DecodedSet, ...]

    @staticmethod
    def load(paths: Sequence[str | Path], image_size: int, *, rank: int = 0, world_size: int = 1) -> VerificationSets:
        """Read and decode sets; each is named by its file's stem, or its folder.

        Args:
            paths: `.bin` files, or CVLface's Arrow folders.
            image_size: side the network takes, in pixels; other images are scaled and cropped to it.
            rank, world_size: decode only this rank's share, which divides time and memory (a set of 6,000 pairs is
                450 MB of pixels). The default decodes everything, which serves any rank.

        Raises:
            OSError: a file cannot be read.
            VerificationSetError: one is no verification set, or two have one name.
            ImportError: a folder, and pyarrow is not installed.
            ImageDecodeError: an image is damaged.
        """
        repeated = _repeated_name(paths)
        if repeated is not None:
            raise VerificationSetError(f"two verification sets are named {repeated!r}; results are kept by file name")
        decoded = []
        for path in paths:
            started = time.perf_counter()
            pairs = read_verification_set(path)
            published = PUBLISHED_PAIRS.get(pairs.name, len(pairs.same))
            if published != len(pairs.same) and rank == 0:
                _log.warning(
                    "%s holds %d pairs, the published set %s has %d: its numbers do not compare with published ones",
                    path, len(pairs.same), pairs.name, published,
                )  # fmt: skip
            first, stop = rank_share(len(pairs.images), rank, world_size)
            pixels = decode_pairs(pairs, image_size, first=first, stop=stop)
            decoded.append(
                DecodedSet(
                    pairs.name,
                    torch.from_numpy(pixels),
                    pairs.same,
                    first,
                    data_sha256=pairs.sha256,
                    decode_s=time.perf_counter() - started,
                )
            )
        return VerificationSets(tuple(decoded))

    def __len__(self) -> int:
        return len(self.sets)

    def __iter__(self) -> Iterator[DecodedSet]:
        return iter(self.sets)


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """A set's numbers, and the distances they were made of."""

    result: VerificationResult
    distances: npt.NDArray[np.float64]
    """(P,) squared L2 of the unit embeddings of each pair."""


@dataclass(frozen=True, slots=True)
class _Forward:
    """How images go through the network."""

    ranks: Ranks
    batch_size: int
    precision: Precision


def rank_share(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of a rank's contiguous share of `count` things; shares differ by one at most."""
    return rank * count // world_size, (rank + 1) * count // world_size


def evaluate_sets(
    network: nn.Module,
    sets: VerificationSets,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    far: float = 1e-3,
) -> dict[str, VerificationResult]:
    """Score a network on every set. All ranks of a process group call this together and get equal results.

    Args:
        network: images (B, 3, H, W) in [-1, 1] RGB -> raw embeddings (B, D). Used in eval mode without gradients; the
            mode of every submodule is put back, also after an error.
        ranks: who this process is, and the device that the network is on.
        batch_size: images per forward pass and rank.
        precision: of the network and its input, with or without autocast.
        far: false-accept rate of the reported TARs.

    Returns:
        Set name -> result, in the order of the sets.

    Raises:
        NonFiniteEmbeddingsError: on every rank, naming set and image.
    """
    return {
        one.name: score_set(network, one, ranks=ranks, batch_size=batch_size, precision=precision, far=far).result
        for one in sets
    }


def score_set(
    network: nn.Module,
    one: DecodedSet,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    far: float = 1e-3,
) -> ScoredSet:
    """Score a network on one set; arguments, errors and ranks as for `evaluate_sets`."""
    forward = _Forward(ranks, batch_size, precision)
    plain = _embed_shared(network, one, 2 * len(one.same), forward, mirrored=False).numpy()  # (2P, D)
    mirrored = _embed_shared(network, one, 2 * len(one.same), forward, mirrored=True).numpy()
    check_finite(one.name, np.concatenate([plain, mirrored], axis=1))
    unit_embeddings = flip_sum(plain, mirrored)
    result = verification_result(one.name, unit_embeddings, one.same, xnorm=mean_norm(plain, mirrored), far=far)
    return ScoredSet(result, pair_distances(unit_embeddings))


def embed_images(
    network: nn.Module,
    images_u8: Tensor,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    mirrored: bool = False,
) -> Tensor:
    """Raw embeddings of images, each rank computing a contiguous share of them.

    Args:
        network, ranks, batch_size, precision: as for `evaluate_sets`.
        images_u8: (N, H, W, 3) uint8 RGB, N > 0, the same on every rank.
        mirrored: flip the images left to right first.

    Returns:
        (N, D) on the CPU, of the precision's dtype (float32 under autocast); equal on all ranks. Every image is
        embedded exactly once: the last batch of a share is as short as it is.

    Raises:
        ValueError: there are no images.
    """
    if len(images_u8) == 0:
        raise ValueError("there are no images to embed")
    whole = DecodedSet("images", images_u8, np.zeros(0, dtype=np.bool_))
    forward = _Forward(ranks, batch_size, precision)
    return _embed_shared(network, whole, len(images_u8), forward, mirrored=mirrored)


def _embed_shared(network: nn.Module, source: DecodedSet, total: int, forward: _Forward, *, mirrored: bool) -> Tensor:
    """(total, D) raw embeddings of all images of the source, on the CPU: this rank's share computed, all gathered."""
    ranks = forward.ranks
    shares = [rank_share(total, rank, ranks.world_size) for rank in range(ranks.world_size)]
    own = _embed_range(network, source.images(*shares[ranks.rank]), forward, mirrored)  # (n, D)
    leave_together(ranks)
    longest = max(stop - start for start, stop in shares)
    padded = F.pad(own, (0, 0, 0, longest - len(own)))  # (longest, D), as collectives want equal sizes
    gathered = gather_rows(padded, ranks).split(longest)
    return torch.cat([rows[: stop - start] for rows, (start, stop) in zip(gathered, shares, strict=True)]).cpu()


def _embed_range(network: nn.Module, images_u8: Tensor, forward: _Forward, mirrored: bool) -> Tensor:
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


def _repeated_name(paths: Sequence[str | Path]) -> str | None:
    for name, times in Counter(map(verification_set_name, paths)).items():
        if times > 1:
            return name
    return None
