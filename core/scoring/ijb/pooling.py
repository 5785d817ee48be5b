"""From embeddings of images to one unit vector for each template, in every published way.

x_i is the sum of an image's raw embedding and that of its mirror image. `Norm:False` divides it by its norm, so that
every image counts alike; `Norm:True` keeps the norm, which is the network's own sense of quality. `Det:True` multiplies
by the detector's score. A medium's vector is the mean of its images, a template's the sum of its media, then of unit
length. All of that is one weighted sum over the images of a template, with the weights

    w_i = [1 / |x_i|] [detector_i] / (number of images of i's medium)

so that one pass over the embeddings, sorted by template, pools every mode.

Source: the protocol of insightface and CVLface. insightface's newer script calls the opposite of Norm `use_norm_score`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.pair_metrics import ALIKE, NonFiniteEmbeddingsError, alike
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations
from adadistill.loaders.usable_cpus import usable_cpus

_ROWS_AT_ONCE = 128
"""Embeddings widened to float64 at once: half a MB of 512 columns, which stays in a core's cache for all modes. 64 to
512 measured within a third of each other."""


@dataclass(frozen=True, slots=True)
class PoolingMode:
    """How images are weighed in their template. The embeddings are always the sum of both mirror images'."""

    norm: bool
    """Keep the embedding's norm; false: every image has length one."""
    det: bool
    """Multiply by the detector's score."""

    @property
    def name(self) -> str:
        """As in the field's result files."""
        return f"Norm:{self.norm}_Det:{self.det}"


ALL_MODES = tuple(PoolingMode(norm, det) for norm, det in ((True, True), (True, False), (False, True), (False, False)))
"""The first three are CVLface's, and insightface reports the first. CVLface's headline is Norm:False, Det:True."""


def pool_templates(
    embeddings: npt.NDArray[np.floating[Any]],
    annotations: IjbAnnotations,
    modes: Sequence[PoolingMode] = ALL_MODES,
    *,
    threads: int | None = None,
) -> dict[PoolingMode, npt.NDArray[np.float64]]:
    """Unit vectors of all templates in each mode.

    Args:
        embeddings: (N, D) float32 or float64, flip sums, in the order of the annotations' images. May be mapped.
        threads: None takes as many as there are cores. Results are the same bits.

    Returns:
        Mode -> (T, D) float64, unit rows. Summed in float64, in an order that the annotations alone decide. A template
        that sums to zero stays zero, of which `why_withheld` speaks.

    Raises:
        NonFiniteEmbeddingsError: an embedding is NaN, infinite or zero; names image and template.
        ValueError: counts disagree.

    Memory: 8 T D bytes for each mode, beside the embeddings.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(annotations.templates):
        raise ValueError(
            f"embeddings are {embeddings.shape}, {annotations.name} has {len(annotations.templates)} images"
        )
    count = len(annotations.template_ids)
    order = np.lexsort((annotations.medias, annotations.templates))
    templates, share = annotations.templates[order], _share_of_medium(annotations, order)
    detector = annotations.detector_scores[order]
    begins = np.searchsorted(templates, np.arange(count + 1))  # (T + 1,); every template has images
    pooled = {mode: np.empty((count, embeddings.shape[1])) for mode in modes}
    spans = list(_spans(begins))
    longest = max(begins[last] - begins[first] for first, last in spans)

    def pool(own: Sequence[tuple[int, int]]) -> None:
        held, weighted = (np.empty((longest, embeddings.shape[1])) for _ in range(2))  # once: fresh memory faults
        for first, last in own:
            start, stop = begins[first], begins[last]
            images = order[start:stop]
            rows, products = held[: stop - start], weighted[: stop - start]
            rows[:] = embeddings[images]  # (n, D), widened
            norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            _check_norms(norms, images, annotations)
            for mode in modes:
                weights = share[start:stop].copy()
                if mode.det:
                    weights *= detector[start:stop]
                if not mode.norm:
                    weights /= norms
                np.multiply(rows, weights[:, None], out=products)
                np.add.reduceat(products, begins[first:last] - start, axis=0, out=pooled[mode][first:last])

    workers = threads or usable_cpus()
    with ThreadPoolExecutor(workers) as executor:
        list(executor.map(pool, [spans[worker::workers] for worker in range(workers)]))
    for vectors in pooled.values():
        lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))
        vectors /= np.where(lengths == 0.0, 1.0, lengths)[:, None]
    return pooled


def why_withheld(mode: PoolingMode, pooled: npt.NDArray[np.float64], annotations: IjbAnnotations) -> str | None:
    """Why no number of a mode means anything; None where they do."""
    if mode.det and annotations.detector_problem is not None:
        return annotations.detector_problem
    empty = np.flatnonzero(~pooled.any(axis=1))
    if empty.size:
        number = annotations.template_ids[empty[0]]
        return f"{empty.size} templates sum to zero and have no direction, the first is template {number}"
    return ALIKE if alike(pooled) else None


def _share_of_medium(annotations: IjbAnnotations, order: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,) one over the number of images of each image's medium, in sorted order."""
    templates, medias = annotations.templates[order], annotations.medias[order]
    begins = np.flatnonzero(np.append(True, (np.diff(templates) != 0) | (np.diff(medias) != 0)))
    sizes = np.diff(np.append(begins, len(order)))
    return np.repeat(1.0 / sizes, sizes)


def _spans(begins: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of whole templates with about `_ROWS_AT_ONCE` images, or one template with more."""
    first, count = 0, len(begins) - 1
    while first < count:
        last = int(np.searchsorted(begins, begins[first] + _ROWS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def _check_norms(norms: npt.NDArray[np.float64], images: npt.NDArray[np.int64], annotations: IjbAnnotations) -> None:
    if np.isfinite(norms).all() and norms.all():
        return
    image = int(images[np.flatnonzero(~np.isfinite(norms) | (norms == 0.0))[0]])
    raise NonFiniteEmbeddingsError(
        f"{annotations.name}: the embedding of image {image} (template "
        f"{annotations.template_ids[annotations.templates[image]]}) is NaN, infinite or zero; no score can be trusted"
    )
