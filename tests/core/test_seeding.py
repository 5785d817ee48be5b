"""Streams are reproducible, independent of each other, and can be put back where they were."""

from __future__ import annotations

import torch

from adadistill.core.seeding import derive_seed, random_state, restore_random_state, seed_process, stream


def test_seeds_are_equal_on_every_machine():
    assert derive_seed(2048, "sample_order") == derive_seed(2048, "sample_order")
    assert derive_seed(0, "mirror", rank=3, epoch=9) == 1703896098801753487


def test_every_part_of_a_stream_name_changes_it():
    seeds = {
        derive_seed(seed, purpose, rank=rank, epoch=epoch)
        for seed in (0, 1)
        for purpose in ("mirror", "student")
        for rank in (0, 1)
        for epoch in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_give_the_same_draws_again_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.randn(4, generator=stream(5, "student"))
    assert torch.equal(first, torch.randn(4, generator=stream(5, "student")))
    assert not torch.equal(first, torch.randn(4, generator=stream(5, "class_centres")))
    assert torch.equal(before, torch.get_rng_state())


def test_random_state_survives_a_round_trip_through_text():
    device = torch.device("cpu")
    seed_process(3, rank=1)
    torch.rand(5)
    state = random_state(device)
    expected = torch.rand(8)
    seed_process(4, rank=0)
    restore_random_state(state, device)
    assert torch.equal(torch.rand(8), expected)
