"""What a few seeds say about a difference: means, paired differences and Student's interval of them.

Two networks trained from one seed share their sample order and, as far as they have the same parts, their initial
weights, and are scored on the same pairs. Their accuracies are therefore compared seed by seed: the mean of the paired
differences d has the interval mean(d) +- t(1 - (1 - level) / 2, n - 1) std(d) / sqrt(n). With three seeds t is 4.30,
not 1.96: three seeds tell large differences only, which is the truth about three seeds.

Student's distribution has a closed form for whole degrees of freedom, a finite sum in the angle atan(t / sqrt(freedom))
(Abramowitz and Stegun 26.7.3 and 26.7.4), so nothing beyond the standard library is needed.
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
    count: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean difference between two sets of seeds, paired, with its interval."""

    differences: tuple[float, ...]
    """Ours minus theirs, by seed."""
    mean: float
    std: float | None
    """Sample standard deviation of the differences; None with one seed."""
    interval: tuple[float, float] | None
    """Student's interval of the mean at `level`; None with one seed, which has none."""
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.interval is not None and (self.interval[0] > 0.0 or self.interval[1] < 0.0)


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of at least one value."""
    if not values:
        raise ValueError("the spread of no values does not exist")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, level: float = LEVEL) -> PairedDifference:
    """Compare two sets of values, paired by position.

    Args:
        ours, theirs: values of the same seeds in the same order; at least one.
        level: of the interval, in (0, 1).

    Raises:
        ValueError: lengths differ, there is no pair, or the level is out of range.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired values must be as many on both sides, got {len(ours)} and {len(theirs)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    differences = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    of = spread(differences)
    interval = None
    if of.std is not None:
        reach = student_t_quantile((1.0 + level) / 2.0, of.count - 1) * of.std / math.sqrt(of.count)
        interval = (of.mean - reach, of.mean + reach)
    return PairedDifference(differences, of.mean, of.std, interval, level)


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
    if not difference > 0.0 or not std >= 0.0:
        raise ValueError(f"difference must be positive and std at least 0, got {difference} and {std}")

    def shows(count: int) -> bool:
        reach = student_t_quantile((1.0 + level) / 2.0, count - 1) + student_t_quantile(power, count - 1)
        return reach * std / math.sqrt(count) <= difference

    if not shows(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # low does not show it, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def student_t_quantile(probability: float, freedom: int) -> float:
    """The t below which Student's distribution of `freedom` degrees has `probability`, to 1e-12 of its value.

    Raises:
        ValueError: the probability is not in (0, 1), or there is no degree of freedom.
    """
    if not 0.0 < probability < 1.0 or freedom < 1:
        raise ValueError(f"probability must be in (0, 1) and freedom at least 1, got {probability} and {freedom}")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, freedom)
    low, high = 0.0, 1.0
    while student_t_distribution(high, freedom) < probability:
        low, high = high, 2.0 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2.0


def student_t_distribution(t: float, freedom: int) -> float:
    """Probability that Student's t of `freedom` degrees is below `t`."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine_squared = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2 == 1
    # Terms of the sum: 1, then times cos^2 by 2/3, 4/5, ... with odd freedom, by 1/2, 3/4, ... with even.
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine_squared * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    within = (2.0 / math.pi) * (angle + sine * total) if odd else sine * total
    return 0.5 + 0.5 * within
