"""What a few seeds say about a difference: means, paired differences and Student's interval of them.

Two networks trained from one seed share their sample order and, as far as they have the same parts, their initial
weights, and are scored on the same pairs. Their accuracies are therefore compared seed by seed. With three seeds t is
4.30, not 1.96: three seeds tell large differences only, which is the truth about three seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread of one number over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation, n - 1 in the denominator; None with one seed."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean difference between two sets of seeds, paired, with its interval."""

    differences: tuple[float, ...]
    """Ours minus theirs, by seed."""
    mean: float
    std: float | None
    """Sample standard deviation of the differences; None with one seed."""
    interval: tuple[float, float] | None
    """Student's interval of the mean; None with one seed, which has none."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.interval is not None and (self.interval[0] > 0.0 or self.interval[1] < 0.0)


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, level: float = LEVEL) -> PairedDifference:
    """Compare two sets of values, paired by position: mean(d) +- t(1 - (1 - level) / 2, n - 1) std(d) / sqrt(n).

    Args:
        ours, theirs: values of the same seeds in the same order; at least one.
        level: of the interval, in (0, 1).
    """
    from scipy.stats import t

    differences = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    of = spread(differences)
    if of.std is None:
        return PairedDifference(differences, of.mean, None, None)
    reach = float(t.ppf((1.0 + level) / 2.0, len(differences) - 1)) * of.std / math.sqrt(len(differences))
    return PairedDifference(differences, of.mean, of.std, (of.mean - reach, of.mean + reach))


def proportion_standard_error(proportion: float, count: int) -> float:
    """Standard error of a rate over `count` independent trials, such as an accuracy over pairs."""
    return math.sqrt(proportion * (1.0 - proportion) / count)


def seeds_to_tell(difference: float, std: float, *, level: float = LEVEL, power: float = 0.8) -> int | None:
    """How many paired seeds show a true difference with the given probability.

    The smallest n with (t(1 - (1 - level) / 2, n - 1) + t(power, n - 1)) std / sqrt(n) <= difference, the usual
    approximation of the power of a paired t test.

    Args:
        difference: the true one. Positive.
        std: standard deviation of the paired differences, as measured. At least 0.

    Returns:
        At least 2, or None beyond a thousand.
    """
    import numpy as np
    from scipy.stats import t

    counts = np.arange(2, MOST_SEEDS + 1)
    reach = (t.ppf((1.0 + level) / 2.0, counts - 1) + t.ppf(power, counts - 1)) * std / np.sqrt(counts)
    shows = np.flatnonzero(reach <= difference)
    return int(counts[shows[0]]) if shows.size else None
