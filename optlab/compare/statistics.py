"""Statistics of a few repetitions: intervals, tests, orderings. NumPy and SciPy alone; nothing here is random.

A sample is one number a repetition, such as the test accuracy of each study's winner. Five repetitions are few:
Student's t holds its 95 % there, a percentile bootstrap covers 84 %. Repetitions that are all alike, as accuracies of a
few images are, don't show how they spread: then there is no interval, and of a difference no p.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

CONFIDENCE = 0.95
ROUNDING = 1e-12  # relative


@dataclass(frozen=True)
class Estimate:
    """A value and its interval of confidence; NaN bounds where the data give none.

    Attributes:
        value: the estimate.
        low: the interval's lower end.
        high: the interval's upper end.
        p: of the test that the value is what no difference would give, NaN without one.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def mean(sample: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The mean with Student's interval, x̄ ± t(n − 1)·s/√n; of one value, or of equal ones, there is no interval."""
    x = _sample("sample", sample)
    return _student(float(x.mean()), math.sqrt(_variance(x) / len(x)), len(x) - 1, confidence)


def paired(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """mean(a − b) where a[i] and b[i] belong together, with Student's interval and the two-sided p of no difference.

    Raises:
        ValueError: for samples of different lengths.
    """
    x, y = _sample("a", a), _sample("b", b)
    if len(x) != len(y):
        raise ValueError(f"paired samples must be equally long, got {len(x)} and {len(y)}")
    size = max(np.abs(x).max(), np.abs(y).max())
    return _student(float((x - y).mean()), math.sqrt(_variance(x - y, size) / len(x)), len(x) - 1, confidence)


def welch(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """mean(a) − mean(b) of independent samples, their variances not taken to be equal. Welch 1947.

    Samples of one value, or both without spread, have no interval.
    """
    x, y = _sample("a", a), _sample("b", b)
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Estimate(difference)
    parts = [_variance(s) / len(s) for s in (x, y)]
    total = sum(parts)
    freedom = total**2 / sum(v**2 / (len(s) - 1) for v, s in zip(parts, (x, y), strict=True)) if total else 1.0
    return _student(difference, math.sqrt(total), freedom, confidence)


def _student(value: float, error: float, freedom: float, confidence: float) -> Estimate:
    """value ± t·error, and the p of zero; without spread no interval, and p = 1 if the value is 0."""
    if not freedom > 0:
        return Estimate(value)
    if error == 0:
        return Estimate(value, p=1.0 if value == 0 else math.nan)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Estimate(value, value - reach, value + reach, float(2 * stats.t.sf(abs(value) / error, freedom)))


def holm(p: ArrayLike) -> np.ndarray:
    """The p-values of several comparisons, adjusted so that together they err as seldom as one. Holm 1979.

    Args:
        p: of each comparison; NaN is one that couldn't be tested, and counts as one all the same.
    """
    values = np.asarray(p, float)
    order = np.argsort(np.where(np.isnan(values), 1, values), kind="stable")
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.fmax.accumulate(steps), 1) if len(values) else steps
    return np.where(np.isnan(values), np.nan, adjusted)


def probability_above(a: ArrayLike, b: ArrayLike) -> Estimate:
    """P(A > B) + ½P(A = B) with the interval of Brunner and Munzel 2000, cut to [0, 1]; ±inf are allowed.

    Where every value of one is above every value of the other the data show no spread, and there is no interval.
    """
    x, y = (np.asarray(s, float) for s in (a, b))
    n, m = len(x), len(y)
    both = stats.rankdata(np.concatenate([x, y]))
    value = float((both[:n].mean() - (n + 1) / 2) / m)
    if min(n, m) < 2:
        return Estimate(value)
    # The placements of each value among the other sample: their variances make up that of the estimate.
    places = [both[:n] - stats.rankdata(x), both[n:] - stats.rankdata(y)]
    parts = [places[0].var(ddof=1) / (n * m**2), places[1].var(ddof=1) / (m * n**2)]
    if not sum(parts):
        return Estimate(value)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    found = _student(value - 0.5, math.sqrt(sum(parts)), freedom, CONFIDENCE)
    return Estimate(value, max(found.low + 0.5, 0.0), min(found.high + 0.5, 1.0), found.p)


# Times to a target. A run that doesn't reach it is censored: its time is its length, and `reached` is false.


def survival(times: ArrayLike, reached: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The share of runs that haven't reached the target after each time at which one did. Kaplan and Meier 1958.

    Returns:
        (times, shares), both ascending in time.
    """
    t, is_reached = np.asarray(times, float), np.asarray(reached, bool)
    at = np.unique(t[is_reached])
    left = np.array([1 - np.sum(is_reached & (t == s)) / np.sum(t >= s) for s in at])
    return at, np.cumprod(left)


def median_time(times: ArrayLike, reached: ArrayLike) -> float:
    """The first time by which half of the runs have reached the target; inf if fewer ever do."""
    at, shares = survival(times, reached)
    below = np.flatnonzero(shares <= 0.5 + 1e-12)
    return float(at[below[0]]) if len(below) else math.inf


def restricted_mean(times: ArrayLike, reached: ArrayLike, horizon: float) -> float:
    """The mean time until the target or the horizon, whichever comes first: the area under `survival` up to there."""
    at, shares = survival(times, reached)
    steps = np.concatenate([[0.0], at[at < horizon], [horizon]])
    return float(np.sum(np.diff(steps) * np.concatenate([[1.0], shares[at < horizon]])))


def time_ratio(
    a: ArrayLike, reached_a: ArrayLike, b: ArrayLike, reached_b: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate:
    """Ratio of a's time to the target to b's; samples censored at one common length.

    Where all runs reach the target it is the ratio of geometric means, by Welch's interval of the logarithms. Else it
    is the ratio of medians (0 or inf where one isn't reached), and the interval holds the factors r for which a rank
    test (Mann and Whitney, exact) can't tell a from r·b. A censored run is only known to be later than its length, so
    that the interval may be open (inf) or, with fewer than 4 runs a side, not there.
    """
    times, reached = [np.asarray(t, float) for t in (a, b)], [np.asarray(r, bool) for r in (reached_a, reached_b)]
    if reached[0].all() and reached[1].all():
        logs = welch(np.log(times[0]), np.log(times[1]), confidence)
        return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.p)
    medians = [median_time(t, r) for t, r in zip(times, reached, strict=True)]
    value = medians[0] / medians[1] if np.isfinite(medians).any() else math.nan
    latest = [np.where(r, t, np.inf) for t, r in zip(times, reached, strict=True)]
    with np.errstate(invalid="ignore"):
        least, most = times[0][:, None] / latest[1], latest[0][:, None] / times[1]
    low, high = _rank_interval(least, most, confidence)
    return Estimate(value, low, high)


def _rank_interval(least: np.ndarray, most: np.ndarray, confidence: float) -> tuple[float, float]:
    """The order statistics of all pairs' ratios between which the exact rank test of level 1 − confidence is silent.

    Args:
        least: what each pair's ratio is at least, (n, m).
        most: and at most.
        confidence: the interval's.
    """
    counts = _rank_counts(*least.shape)
    rejected = int(np.sum(np.cumsum(counts) / counts.sum() <= (1 - confidence) / 2))  # numbers of pairs, from 0 on
    if not rejected:
        return math.nan, math.nan
    return float(np.sort(least, axis=None)[rejected - 1]), float(np.sort(most, axis=None)[-rejected])


def _rank_counts(n: int, m: int) -> np.ndarray:
    """Counts the orders of n and m values by their number of pairs the one way round: the Gaussian binomial."""
    counts = np.zeros(n * m + 1)
    counts[0] = 1
    for i in range(1, n + 1):
        for at in range(n * m, m + i - 1, -1):  # times 1 − q^(m + i)
            counts[at] -= counts[at - m - i]
        for at in range(i, n * m + 1):  # divided by 1 − q^i
            counts[at] += counts[at - i]
    return counts


# What a budget of trials buys, and how much depends on the choice.


def best_of(scores: ArrayLike) -> np.ndarray:
    """The expected best of k trials for k = 1 … n: the mean over all choices of k of the n. Higher scores are better.

    Without replacement, so that it is unbiased (Tang et al. 2020). A trial that diverged scores −inf, and so do the
    means that it is part of.

    Returns:
        an array of shape (n,).
    """
    x = np.sort(np.asarray(scores, float))
    n, k = len(x), np.arange(1, len(x) + 1)[:, None]
    weights = special.comb(np.arange(n), k - 1) / special.comb(n, k)  # the i-th smallest is the best of so many choices
    return np.sum(np.where(weights > 0, weights * np.where(weights > 0, x, 0), 0), axis=1)


def order_flip(a: ArrayLike, b: ArrayLike) -> int | None:
    """The number of trials from which on two best-of-k curves have the order of their ends; None if they always do."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    signs = (x > y).astype(int) - (x < y)
    other = np.flatnonzero(signs == -signs[-1]) if signs[-1] else np.array([], int)
    return int(other[-1]) + 2 if len(other) else None


def sensitivity(values: ArrayLike, losses: ArrayLike, tolerance: float) -> float:
    """Decades of a hyperparameter in which the loss is at most (1 + tolerance) times the best one.

    Between the trials the loss is taken to be linear in log₁₀ of the hyperparameter.

    Args:
        values: of the hyperparameter, positive.
        losses: of those trials, positive; inf for one that diverged.
        tolerance: such as 0.1.
    """
    order = np.argsort(np.asarray(values, float))
    x, y = np.log10(np.asarray(values, float)[order]), np.asarray(losses, float)[order]
    bound = (1 + tolerance) * y.min()
    decades = 0.0
    for (x0, x1), (y0, y1) in zip(itertools.pairwise(x), itertools.pairwise(y), strict=True):
        if max(y0, y1) <= bound:
            decades += x1 - x0
        elif min(y0, y1) <= bound and np.isfinite(y0 + y1):
            decades += (x1 - x0) * (bound - min(y0, y1)) / abs(y1 - y0)
    return float(decades)


def performance_profiles(costs: Mapping[str, Sequence[float]], factors: ArrayLike) -> dict[str, np.ndarray]:
    """The share of workloads that each contender solves within a factor of the best one's cost. Dolan and Moré 2002.

    Args:
        costs: by contender, such as steps to the target, one a workload; inf where it never got there.
        factors: from 1 on.

    Returns:
        by contender an array of the factors' shape.
    """
    table = np.array([np.asarray(c, float) for c in costs.values()])
    best = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(table), table / best, np.inf)
    return {name: np.mean(row[None] <= np.asarray(factors, float)[:, None], axis=1)
            for name, row in zip(costs, ratios, strict=True)}  # fmt: skip


# What a study can find.


def power(difference: float, repetitions: int, *, is_paired: bool = False, level: float = 1 - CONFIDENCE) -> float:
    """The chance that a two-sided test finds a difference of normal scores: Student's if paired, else Welch's.

    Welch's t of equally many scores is the pooled one, with 2(n − 1) degrees of freedom for its spread, but its bound
    has those of the two variances as they came out: ν(w) = (n − 1) / (w² + (1 − w)²), where w, the one's share of their
    sum, has the distribution Beta((n − 1)/2, (n − 1)/2) and doesn't depend on the sum. At n = 5 and 2 standard
    deviations that costs 2 % of power, 77 % beside the pooled test's 79 %.

    Args:
        difference: in standard deviations of the scores, of a − b if paired.
        repetitions: scores on each side.
        is_paired: whether they belong together.
        level: of the test.
    """
    n = repetitions
    if n < 2:
        return 0.0
    if is_paired:
        return float(_power(difference * math.sqrt(n), n - 1, stats.t.ppf(1 - level / 2, n - 1))[0])
    x, weights = special.roots_jacobi(16, (n - 3) / 2, (n - 3) / 2)
    x, weights = x[x > 0], weights[x > 0]  # w = (1 + x)/2, and 1 − w gives the same
    bounds = stats.t.ppf(1 - level / 2, (n - 1) / ((1 + x**2) / 2))
    found = _power(difference * math.sqrt(n / 2), 2 * (n - 1), bounds)
    return float(weights @ found / weights.sum())


def _power(shift: float, freedom: int, bounds: ArrayLike) -> np.ndarray:
    """P(|t| > bound) of the noncentral t, for each bound. SciPy's is NaN where it has few degrees of freedom."""
    b = np.atleast_1d(np.asarray(bounds, float))[:, None]
    end = float(stats.chi.ppf(1 - 1e-12, freedom))
    turn = np.minimum(abs(shift) * math.sqrt(freedom) / b, end)
    x, weights = special.roots_legendre(200)
    total = np.zeros(len(b))
    for low, high in ((0.0, turn), (turn, end)):  # the mean over s² ~ χ²(ν) of the normal's, which falls at `turn`
        s = low + (high - low) * (1 + x) / 2
        scaled = b * s / math.sqrt(freedom)
        found = (special.ndtr(shift - scaled) + special.ndtr(-shift - scaled)) * stats.chi.pdf(s, freedom)
        total += ((high - low) / 2 * found) @ weights
    return total


@functools.cache
def detectable(repetitions: int, *, comparisons: int = 1, is_paired: bool = False, chance: float = 0.8) -> float:
    """The difference that is found with that chance, in standard deviations as in `power`; inf for one repetition.

    Args:
        repetitions: studies a contender.
        comparisons: that are corrected for; the level of each is 0.05 / comparisons, as Holm's first one.
        is_paired: whether the contenders are compared study by study.
        chance: of finding it.
    """
    if repetitions < 2:
        return math.inf
    level = (1 - CONFIDENCE) / comparisons
    found = lambda d: power(d, repetitions, is_paired=is_paired, level=level) - chance
    high = 1.0
    while found(high) < 0:
        high *= 2
    return float(optimize.brentq(found, 0, high))


def _variance(x: np.ndarray, size: float | None = None) -> float:
    """Of a sample, 0 where its values are alike but for the rounding of numbers of that size; NaN of one value."""
    if len(x) < 2:
        return math.nan
    size = np.abs(x).max() if size is None else size
    return float(x.var(ddof=1)) if np.ptp(x) > ROUNDING * size else 0.0


def _sample(name: str, values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite numbers, one a repetition, got {values!r}")
    return x
