"""The steps at which the learning rate changes, with the rate that training uses there."""

from __future__ import annotations

import pytest

from adadistill.core.training.optimiser import OptimConfig, learning_rate
from adadistill.core.training.rate_table import rate_table

STEP = OptimConfig(epochs=26, milestones=(7, 13, 19, 24), warmup_epochs=1.0)
POLYNOMIAL = OptimConfig(epochs=20, schedule="polynomial", warmup_epochs=2.5, warmup="linear", lr=0.4)
CONFIGS = [STEP, POLYNOMIAL, OptimConfig(epochs=1), OptimConfig(epochs=2, warmup_epochs=2.0)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 15163])
def test_every_change_of_the_rate_between_two_steps_is_at_a_listed_step(
    config: OptimConfig, steps_per_epoch: int
) -> None:
    points = rate_table(config, global_batch_size=384, steps_per_epoch=steps_per_epoch)

    listed = {point.epoch * steps_per_epoch + point.step: point.rate for point in points}
    assert list(listed) == sorted(listed)
    total = config.epochs * steps_per_epoch
    assert {0, total - 1} <= listed.keys()

    def rate(step: int) -> float:
        return learning_rate(
            config,
            global_batch_size=384,
            epoch=step // steps_per_epoch,
            step=step % steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
        )

    assert all(listed[step] == rate(step) for step in listed)
    if config.schedule == "step":
        for milestone in config.milestones:
            step = milestone * steps_per_epoch
            assert rate(step) == pytest.approx(config.gamma * rate(step - 1))
            assert step in listed


def test_the_published_schedule_is_listed_as_published() -> None:
    points = rate_table(STEP, global_batch_size=384, steps_per_epoch=15163)

    assert [(point.epoch, point.step) for point in points] == [
        (0, 0), (0, 15162), (1, 0), (7, 0), (13, 0), (19, 0), (24, 0), (25, 15162),
    ]  # fmt: skip
    assert [point.rate for point in points] == pytest.approx(
        [0.01875, 0.075, 0.075, 7.5e-3, 7.5e-4, 7.5e-5, 7.5e-6, 7.5e-6], rel=1e-4
    )
