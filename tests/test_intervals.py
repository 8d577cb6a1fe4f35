"""Intervals over seeds, by hand; IQM, probability of improvement and profiles as rliable's."""

import itertools
import math

import numpy as np
import pytest

from rayssl.claims import verdict
from rayssl.intervals import (
    curve_band,
    difference,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)


def test_difference_is_paired_by_seed_and_has_students_interval() -> None:
    # Differences 1, 2, 3; t(0.975, 2) = 4.30265; deviation 1; half width 4.30265 / sqrt(3).
    # Unpaired, the two arms' spread of 100 points would drown them.
    found = difference({0: 101, 1: 2, 2: -97, 9: 0}, {2: -100, 0: 100, 1: 0})
    assert found is not None
    assert (found.mean, found.num_seeds, found.paired) == (2.0, 3, True)
    assert found.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert found.high == pytest.approx(2 + 2.48414, abs=1e-5)


def test_scale_multiplies_the_second_arm() -> None:
    found = difference({0: 15, 1: 15}, {0: 10, 1: 10}, scale=1.5)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_without_three_shared_seeds_two_independent_means_are_compared() -> None:
    # Means 3 and 0, deviations 1 and 1: standard error sqrt(2/3), 4 degrees of freedom, t 2.77645.
    found = difference({0: 2, 1: 3, 2: 4}, {2: -1, 3: 0, 4: 1})
    assert found is not None
    assert (found.mean, found.num_seeds, found.paired) == (3.0, 3, False)
    assert found.high - found.mean == pytest.approx(2.77645 * math.sqrt(2 / 3), abs=1e-4)


def test_single_pair_has_no_interval_and_no_pair_no_difference() -> None:
    found = difference({0: 2, 1: 5}, {0: 1})
    assert found is not None
    assert (found.mean, found.num_seeds) == (1.0, 1)
    assert math.isnan(found.low)
    assert difference({0: 2}, {1: 2}) is None


def test_equal_arms_without_shared_seeds_have_an_interval_without_width() -> None:
    found = difference({0: -21, 1: -21, 2: -21}, {3: -21, 4: -21, 5: -21})
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_interquartile_mean_leaves_the_outer_quarters_of_all_tasks_out() -> None:
    # 8 scores of two tasks together: 0 0 | 1 2 3 4 | 99 99
    found = interquartile_mean([np.array([99.0, 0, 1, 2]), np.array([3.0, 4, 0, 99])])
    assert found.value == 2.5
    assert found.low <= 2.5 <= found.high


def test_bootstrap_draws_within_each_task() -> None:
    # Each task's runs are equal, so no resample within tasks can differ; across tasks all would.
    found = interquartile_mean([np.array([0.0, 0, 0]), np.array([9.0, 9, 9])])
    assert found == (4.5, 4.5, 4.5)


def test_single_run_in_some_task_leaves_no_interval() -> None:
    found = interquartile_mean([np.array([1.0, 2.0]), np.array([3.0])])
    assert found.value == 2.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    # Task 1: pairs (2>1) (2=2) (3>1) (3>2): 3.5 of 4. Task 2: 0 of 1. Mean 0.4375.
    a, b = [np.array([2.0, 3]), np.array([0.0, 0])], [np.array([1.0, 2]), np.array([5.0, 5])]
    assert probability_of_improvement(a, b).value == 0.4375
    assert probability_of_improvement(b, a).value == 1 - 0.4375


def test_probability_of_improvement_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="same tasks in both arms, got 1 and 2"):
        probability_of_improvement([np.zeros(2)], [np.zeros(2)] * 2)


def test_bootstrap_interval_is_that_of_all_resamples() -> None:
    scores = np.array([0.0, 1.0, 2.0, 4.0, 8.0])  # of 5, the lowest and the highest are trimmed
    every = [sorted(draw)[1:4] for draw in itertools.product(scores, repeat=5)]  # all 3,125
    low, high = np.percentile(np.mean(every, 1), [2.5, 97.5])
    found = interquartile_mean([scores])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1)


def test_profile_is_the_share_of_runs_above_each_threshold() -> None:
    share, low, high = performance_profile(
        [np.array([0.0, 1.0]), np.array([2.0, 3.0])], np.array([-1.0, 0.0, 1.5, 3.0])
    )
    assert share.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert low[[0, 2, 3]].tolist() == high[[0, 2, 3]].tolist() == [1.0, 0.5, 0.0]
    assert (low[1], high[1]) == (0.5, 1.0)


def test_band_covers_what_all_curves_cover_and_draws_straight_lines() -> None:
    curves = [
        (np.array([0.0, 10]), np.array([0.0, 10])),
        (np.array([5.0, 10, 20]), np.array([6.0, 11, 99])),
        (np.array([0.0, 20]), np.array([2.0, 22])),
    ]
    band = curve_band(curves)
    assert band.x.tolist() == [5, 10]
    assert band.mean.tolist() == [6, 11]
    assert band.low is not None
    assert band.low.tolist() == pytest.approx([6 - 2.48414, 11 - 2.48414], abs=1e-5)


def test_two_curves_have_a_mean_and_no_band_and_strangers_nothing() -> None:
    line = np.array([0.0, 1.0])
    assert curve_band([(line, line), (line, line + 1)]).low is None
    apart = curve_band([(line, line), (line + 5, line)])
    assert apart.x.size == 0


def test_band_keeps_its_ends_when_it_is_thinned() -> None:
    x = np.arange(1000.0)
    band = curve_band([(x, x)], points=10)
    assert (band.x.size, band.x[0], band.x[-1]) == (10, 0, 999)


@pytest.mark.parametrize("seeds", [(0, 1, 2), (3, 4, 5)], ids=["paired", "independent"])
def test_differences_that_differ_by_rounding_alone_have_an_interval_without_width(
    seeds: tuple[int, ...],
) -> None:
    tenths = dict(zip(seeds, (7.6, 7.5, 7.4), strict=True))
    if seeds[0] == 0:  # each is 2.3 but for the last binary digit
        found = difference(tenths, {0: 9.9, 1: 9.8, 2: 9.7})
    else:
        found = difference(dict.fromkeys(seeds, 0.1 + 0.2), dict.fromkeys((0, 1, 2), 0.3 + 2.3))
    assert found is not None
    assert found.mean == pytest.approx(-2.3)
    assert found.low == found.high
    assert verdict(found, "below") == "undecided"
