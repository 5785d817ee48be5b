"""Ranks are those of sorting the whole score matrix, ties and all, and no more than a block of it is ever held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.core.scoring.tinyface.mate_ranks import mate_ranks


def slow_ranks(embeddings, probes, probe_labels, gallery, gallery_labels):
    """The definition: sort every probe's scores ascending and stably, reverse, and look for the first mate."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms == 0, 1, norms)
    scores = units[probes] @ units[gallery].T
    ranks = []
    for row, label in zip(scores, probe_labels, strict=True):
        order = np.argsort(row, kind="stable")[::-1]
        hits = np.flatnonzero(gallery_labels[order] == label)
        ranks.append(hits[0] + 1 if hits.size else 0)
    return np.array(ranks)


def random_search(seed: int, *, levels: int = 0, probes: int = 30, matched: int = 25, distractors: int = 60):
    """Arguments of `mate_ranks`; with levels, embeddings of few small integers, whose cosines tie exactly often."""
    draw = np.random.default_rng(seed)
    count = probes + matched + distractors
    if levels:
        # One non-zero coordinate each: every cosine is exactly -1, 0 or 1.
        embeddings = np.zeros((count, levels))
        embeddings[np.arange(count), draw.integers(0, levels, count)] = draw.choice([-2.0, 0.0, 1.0, 4.0], count)
    else:
        embeddings = draw.normal(size=(count, 8))
    rows = draw.permutation(count)
    labels = np.concatenate([draw.integers(0, 15, matched), np.full(distractors, -100)])
    return embeddings, rows[:probes], draw.integers(0, 20, probes), rows[probes:], labels


# Everything in one block, a score at a time, blocks that do not divide; without and with exact ties.
@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("block_scores", [1, 333])
def test_ranks_are_those_of_sorting_all_scores(levels, block_scores):
    for seed in range(4):
        search = random_search(seed, levels=levels)
        assert mate_ranks(*search, block_scores=block_scores).tolist() == slow_ranks(*search).tolist()


def test_of_equal_scores_the_later_one_comes_first():
    embeddings = np.ones((6, 4))  # a dead network: everything is everyone
    probes, gallery = np.array([0]), np.array([1, 2, 3, 4, 5])
    assert mate_ranks(embeddings, probes, np.array([7]), gallery, np.array([7, 8, 7, -100, -100])).tolist() == [3]
    assert mate_ranks(np.zeros((6, 4)), probes, np.array([7]), gallery, np.array([7, 8, 7, -100, -100])).tolist() == [3]


def test_a_probe_without_a_mate_has_no_rank():
    embeddings = np.eye(3)
    ranks = mate_ranks(embeddings, np.array([0, 1]), np.array([5, 6]), np.array([1, 2]), np.array([6, -100]))
    assert ranks.tolist() == [0, 1]
    assert mate_ranks(embeddings, np.array([0]), np.array([5]), np.array([1, 2]), np.array([6, -100])).tolist() == [0]


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2]))
def test_permuting_the_probes_permutes_their_ranks(seed, levels):
    embeddings, probes, labels, gallery, gallery_labels = random_search(seed, levels=levels)
    order = np.random.default_rng(seed).permutation(len(probes))
    ranks = mate_ranks(embeddings, probes, labels, gallery, gallery_labels, block_scores=200)
    permuted = mate_ranks(embeddings, probes[order], labels[order], gallery, gallery_labels, block_scores=90)
    assert permuted.tolist() == ranks[order].tolist()


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 20))
def test_far_distractors_change_no_rank_and_near_ones_never_improve_one(seed, count):
    embeddings, probes, labels, gallery, gallery_labels = random_search(seed)
    ranks = mate_ranks(embeddings, probes, labels, gallery, gallery_labels)
    draw = np.random.default_rng(seed)
    added = len(embeddings) + np.arange(count)
    wider = np.concatenate([gallery, added]), np.concatenate([gallery_labels, np.full(count, -100)])

    # A coordinate of their own, in which probes lean the other way a little: no cosine is lower than theirs.
    lean = np.append(np.zeros(len(embeddings)), np.full(count, 1.0))[:, None]
    lean[probes] = -1e3
    far = np.hstack([np.vstack([embeddings, np.zeros((count, 8))]), lean])
    base = mate_ranks(far[: len(embeddings)], probes, labels, gallery, gallery_labels)
    assert mate_ranks(far, probes, labels, *wider).tolist() == base.tolist()

    near = np.vstack([embeddings, draw.normal(size=(count, 8))])
    worse = mate_ranks(near, probes, labels, *wider)
    assert (worse >= ranks).all()
    assert (worse <= ranks + count).all()


def test_scale_and_precision_of_embeddings_do_not_matter_to_the_ranks():
    embeddings, *rest = random_search(0)
    ranks = mate_ranks(embeddings, *rest)
    scales = np.random.default_rng(1).uniform(0.01, 100, (len(embeddings), 1))
    assert mate_ranks(embeddings * scales, *rest).tolist() == ranks.tolist()
    assert mate_ranks(embeddings.astype(np.float32), *rest).tolist() == ranks.tolist()


def test_the_score_matrix_is_never_whole(monkeypatch):
    held = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: held.append(out := real(a, b)) or out)
    search = random_search(0, probes=300, matched=40, distractors=5000)

    mate_ranks(*search, block_scores=20_000)

    assert max(scores.numel() for scores in held) <= 20_000
    assert sum(scores.numel() for scores in held) == 300 * 5040
