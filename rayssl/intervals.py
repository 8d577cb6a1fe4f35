"""Intervals over seeds: differences between arms, bands of curves, and rliable's three measures.

IQM, probability of improvement and performance profiles are those of Agarwal et al. 2021
(arXiv:2108.13264). Runs are seeds, tasks are games or data sets; the bootstrap is stratified: each
resample draws every task's runs anew, with replacement, within that task. That is what
`scipy.stats.bootstrap` does with one sample per task. The package `rliable` 1.2.0 asks for
arch < 8, and arch 7.2 does not import beside pandas 3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from rayssl.metrics import BOOTSTRAP_RESAMPLES, all_equal, mean_interval

MIN_SEEDS: Final = 3  # with 2, Student's t interval is 12.7 standard errors wide to either side
CONFIDENCE: Final = 0.95
PROFILE_RESAMPLES: Final = 2_000  # rliable's default for profiles
Scores = Sequence[npt.NDArray[np.float64]]  # one array of runs for each task
Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and the ends of its 95% interval; NaN ends where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of a - scale * b over seeds, with Student's t interval.

    Attributes:
      mean, low, high: in the scores' unit; NaN ends for a single seed.
      num_seeds: pairs if paired, else the seeds of the smaller arm.
      paired: seed by seed; False: Welch's interval of two independent means.
    """

    mean: float
    low: float
    high: float
    num_seeds: int
    paired: bool


def difference(
    a: Mapping[int, float], b: Mapping[int, float], *, scale: float = 1.0
) -> Difference | None:
    """Returns the mean of a - scale * b and its interval, paired by seed where that is possible.

    Pairs are the seeds that both arms have. If they are fewer than MIN_SEEDS, and both arms have
    that many seeds, Welch's interval for independent samples is taken; None if no seed is shared
    and one arm has fewer.

    Args:
      a, b: seed -> score, finite.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) < MIN_SEEDS <= min(len(a), len(b)):
        first, second = np.array(list(a.values())), scale * np.array(list(b.values()))
        mean = float(first.mean() - second.mean())
        low = high = mean
        if not (all_equal(first) and all_equal(second)):
            found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
            low, high = float(found.low), float(found.high)
        return Difference(mean, low, high, min(len(a), len(b)), False)
    if not shared:
        return None
    found = mean_interval([a[seed] - scale * b[seed] for seed in shared], confidence=CONFIDENCE)
    return Difference(found.mean, found.low, found.high, len(shared), True)


class Band(NamedTuple):
    """Mean of several curves with its interval, where all of them have values.

    Attributes:
      x, mean: `[P]`.
      low, high: `[P]`, Student's t interval; None with fewer than MIN_SEEDS curves.
    """

    x: Floats
    mean: Floats
    low: Floats | None
    high: Floats | None


def curve_band(curves: Sequence[tuple[Floats, Floats]], *, points: int = 300) -> Band:
    """Returns the mean of curves over the stretch of x that all of them cover.

    Between its own points a curve is a straight line. No stretch in common: empty arrays.

    Args:
      curves: (x, y) each, x growing, no NaN, at least one point.
      points: no more than so many are returned.
    """
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= stop)]
    if grid.size > points:
        grid = grid[np.unique(np.linspace(0, grid.size - 1, points).round().astype(int))]
    if not grid.size:
        return Band(grid, grid, None, None)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # [S, P]
    mean, num = values.mean(0), len(curves)
    if num < MIN_SEEDS:
        return Band(grid, mean, None, None)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, num - 1) * values.std(0, ddof=1) / math.sqrt(num)
    return Band(grid, mean, mean - half, mean + half)


def interquartile_mean(tasks: Scores) -> Interval:
    """Returns the IQM over all runs of all tasks: the mean without the lowest and highest quarter.

    Args:
      tasks: the runs of each task, in a unit that the tasks share.
    """
    return _bootstrap(tasks, lambda *samples: _trimmed(np.concatenate(samples, axis=-1)))


def probability_of_improvement(a: Scores, b: Scores) -> Interval:
    """Returns P(a run of a beats a run of b), a tie counting half, averaged over tasks.

    Args:
      a, b: the runs of each task; same tasks in the same order.
    """
    if len(a) != len(b):
        raise ValueError(f"Expected the same tasks in both arms, got {len(a)} and {len(b)}.")

    def statistic(*samples: Floats) -> Floats:
        chances = []
        for x, y in zip(samples[: len(a)], samples[len(a) :], strict=True):
            gap = x[..., :, None] - y[..., None, :]  # [..., runs of a, runs of b]
            chances.append(((gap > 0) + 0.5 * (gap == 0)).mean((-2, -1)))
        return np.mean(chances, axis=0)

    return _bootstrap([*a, *b], statistic)


def performance_profile(tasks: Scores, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the share of runs above each threshold, with pointwise interval: three `[T]` arrays.

    Score distributions (not averages per task): all runs of all tasks count the same.
    """

    def statistic(*samples: Floats) -> Floats:
        pooled = np.concatenate(samples, axis=-1)
        return np.stack([(pooled > threshold).mean(-1) for threshold in thresholds])

    found = _bootstrap(tasks, statistic, num_resamples=PROFILE_RESAMPLES)
    return found.value, found.low, found.high


def _trimmed(scores: Floats) -> Any:
    return stats.trim_mean(scores, 0.25, axis=-1)


def _bootstrap(
    samples: Scores, statistic: Callable[..., Any], num_resamples: int = BOOTSTRAP_RESAMPLES
) -> Any:
    """Value and stratified percentile bootstrap; NaN ends if a task has a single run."""
    value = statistic(*samples)
    value = float(value) if np.ndim(value) == 0 else value
    if min(len(sample) for sample in samples) < 2:
        nothing = value * math.nan
        return Interval(value, nothing, nothing)
    interval = stats.bootstrap(
        tuple(samples),
        lambda *resampled, axis: statistic(*resampled),  # scipy resamples along the last axis
        n_resamples=num_resamples,
        batch=1_000,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    if np.ndim(interval.low) == 0:
        return Interval(value, float(interval.low), float(interval.high))
    return Interval(value, interval.low, interval.high)
