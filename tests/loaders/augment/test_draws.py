"""Mirror flags depend on (seed, epoch, record id) alone and are fair coins."""

from __future__ import annotations

import numpy as np
import pytest

from adadistill.loaders.augment.draws import mirror_flags, uniform_draws

IDS = np.arange(200_000, dtype=np.int64)


def test_a_flag_does_not_depend_on_the_batch_it_is_drawn_in():
    together = mirror_flags(9, 4, IDS[:1000], 0.5)
    shuffled = np.random.RandomState(0).permutation(1000)
    alone = np.concatenate([mirror_flags(9, 4, IDS[i : i + 1], 0.5) for i in shuffled[:100]])
    assert np.array_equal(alone, together[shuffled[:100]])


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_mirrored_images_is_the_probability(probability: float):
    share = mirror_flags(1, 0, IDS, probability).mean()
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / len(IDS))


def test_flags_of_epochs_seeds_and_neighbouring_records_are_independent():
    base = mirror_flags(5, 3, IDS, 0.5)
    others = [mirror_flags(5, 4, IDS, 0.5), mirror_flags(6, 3, IDS, 0.5), np.roll(base, 1)]
    for other in others:
        assert abs((base == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))


def test_draws_are_uniform():
    draws = uniform_draws(0, 0, IDS, stream=7)
    counts, _ = np.histogram(draws, bins=64, range=(0.0, 1.0))
    expected = len(IDS) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 5 * np.sqrt(2 * 63)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0


def test_streams_differ():
    assert abs(np.corrcoef(uniform_draws(0, 0, IDS, stream=1), uniform_draws(0, 0, IDS, stream=2))[0, 1]) < 0.02
