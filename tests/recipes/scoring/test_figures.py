"""Tables beside curves show no rate that the pairs cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from adadistill.core.scoring.result import Curve
from adadistill.recipes.scoring.figures import roc_and_det, tar_at


def curve(fars: list[float], tars: list[float]) -> Curve:
    return Curve(name="any", false_accept_rates=np.array(fars), true_accept_rates=np.array(tars))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("different", "heads"), [(3000, ["FAR 0.001", "FAR 0.01", "FAR 0.1"]), (99, ["FAR 0.1"]), (5, [])]
)
def test_rates_below_one_pair_are_left_out(different, heads):
    smooth = curve([0.0, 1 / 3000, 0.5, 1.0], [0.4, 0.8, 0.9, 1.0])
    for figure in roc_and_det("set", {"network": smooth}, different=different):
        assert figure.table.heads == ["Network", *heads]


def test_a_rate_that_ties_leap_over_is_left_out():
    tied = curve([0.0, 0.25, 1.0], [0.0, 0.9, 1.0])
    assert tar_at(tied, 0.01) is None
    assert tar_at(tied, 0.3) == 0.9
    perfect = curve([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    assert tar_at(perfect, 0.01) == 1.0
    (row,) = roc_and_det("set", {"network": tied}, different=1000)[0].table.rows
    assert row == ["network", None, None, None]
