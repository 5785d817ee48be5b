"""The guard admits what is finite, remembers the first rejected step, and with `stop` admits nothing after it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adadistill.core.training.non_finite import CUDA_LAG, GuardConfig, NonFiniteGuard

CPU = torch.device("cpu")


def _admit(guard: NonFiniteGuard, step: int, *, bad: tuple[int, ...] = (), norm: float = 1.0) -> bool:
    finite = torch.ones(4, dtype=torch.bool)
    finite[list(bad)] = False
    return bool(guard.admit(finite_samples=finite, gradient_norm=torch.tensor(norm), global_step=step))


def _state(guard: NonFiniteGuard) -> tuple[int, int, list[bool]]:
    def value(tensor: Tensor) -> int:
        return int(tensor.item())

    last = value(guard.last_rejected)
    return value(guard.rejected_steps), last, guard.bad_samples(last).tolist()


def test_stop_refuses_everything_after_the_first_bad_step():
    guard = NonFiniteGuard(GuardConfig(), 4, CPU)
    assert _admit(guard, 0)
    assert not _admit(guard, 1, bad=(2,))
    assert not _admit(guard, 2)
    assert not _admit(guard, 3, bad=(0, 1))
    assert _state(guard) == (1, 1, [False, False, True, False])
    assert guard.must_stop(1)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_bad_gradient_is_rejected_though_no_sample_stands_out(norm: float):
    guard = NonFiniteGuard(GuardConfig(), 4, CPU)
    assert not _admit(guard, 5, norm=norm)
    assert _state(guard) == (1, 5, [False] * 4)


def test_skip_goes_on_within_its_budget():
    guard = NonFiniteGuard(GuardConfig(on_nonfinite="skip", max_skips=1), 4, CPU)
    assert not _admit(guard, 0, bad=(1,))
    assert _admit(guard, 1)
    assert not guard.must_stop(1)
    assert not _admit(guard, 2, bad=(3,))
    assert _state(guard) == (2, 2, [False, False, False, True])
    assert guard.must_stop(2)


def test_a_step_keeps_its_own_mask_while_the_host_lags_behind():
    guard = NonFiniteGuard(GuardConfig(on_nonfinite="skip"), 4, CPU)
    for step, bad in enumerate([(0,), (1,), (2, 3)]):
        assert not _admit(guard, step, bad=bad)
    # The host hears of step 0 when the device has done step CUDA_LAG.
    assert [guard.bad_samples(step).nonzero().flatten().tolist() for step in range(1 + CUDA_LAG)] == [[0], [1], [2, 3]]


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="max_skips"):
        GuardConfig(max_skips=-1)


@pytest.mark.parametrize("seconds", [0.0, 0.5, -3.0, float("inf"), float("nan")])
def test_a_time_limit_that_no_rank_could_keep_or_miss_is_refused(seconds: float):
    with pytest.raises(ValueError, match="hang_timeout_s"):
        GuardConfig(hang_timeout_s=seconds)
    assert GuardConfig(hang_timeout_s=None).hang_timeout_s is None
