"""Accuracies and score summaries against numbers worked out by hand, and Table IV as printed."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.metrics import (
    TABLE_I,
    TABLE_II,
    TABLE_IV,
    accuracy,
    mean_interval,
    per_class_accuracy,
    summarize_scores,
)


def test_summary_of_eight_scores_by_hand() -> None:
    scores = [4, -1000, 3, 10**6, 2, 5, 1, 6]  # two of eight are cut at each end for the IQM
    summary = summarize_scores(scores)
    assert summary.num == 8
    assert summary.mean == pytest.approx((10**6 - 1000 + 21) / 8)
    assert summary.iqm == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert (summary.min, summary.max) == (-1000, 10**6)


def test_std_is_the_sample_deviation_with_divisor_n_minus_1() -> None:
    assert summarize_scores([1, 3]).std == pytest.approx(math.sqrt(2))


def test_iqm_of_three_scores_is_their_mean_because_none_is_cut() -> None:
    assert summarize_scores([0, 1, 8]).iqm == pytest.approx(3)


def test_interval_of_many_normal_scores_is_the_textbook_one() -> None:
    scores = np.random.default_rng(3).normal(100, 20, size=400)
    summary = summarize_scores(scores)
    half_width = 1.96 * scores.std(ddof=1) / math.sqrt(400)
    assert summary.ci_low == pytest.approx(scores.mean() - half_width, abs=0.1 * half_width)
    assert summary.ci_high == pytest.approx(scores.mean() + half_width, abs=0.1 * half_width)


def test_interval_equals_percentiles_of_a_slow_bootstrap() -> None:
    scores = [2.0, 3.0, 5.0, 9.0, 50.0]  # skewed, so that a symmetric interval would be wrong
    rng = np.random.default_rng(8)
    means = [rng.choice(scores, size=5).mean() for _ in range(4000)]
    summary = summarize_scores(scores)
    low, high = np.percentile(means, [2.5, 97.5])
    assert summary.ci_low == pytest.approx(low, abs=0.5)
    assert summary.ci_high == pytest.approx(high, abs=2)
    assert summary.mean - summary.ci_low < summary.ci_high - summary.mean


def test_less_confidence_gives_a_narrower_interval() -> None:
    wide, narrow = (summarize_scores(range(20), confidence=level) for level in (0.95, 0.5))
    assert wide.ci_low < narrow.ci_low < narrow.mean < narrow.ci_high < wide.ci_high


def test_interval_repeats_for_the_same_seed_only() -> None:
    scores = np.random.default_rng(0).normal(size=30)
    assert summarize_scores(scores, seed=1) == summarize_scores(scores, seed=1)
    assert summarize_scores(scores, seed=1) != summarize_scores(scores, seed=2)


def test_equal_scores_have_the_score_itself_as_interval() -> None:
    summary = summarize_scores([0.1] * 3)
    assert (summary.ci_low, summary.ci_high) == (0.1, 0.1)
    assert summary.std == pytest.approx(0)
    assert summary.iqm == pytest.approx(0.1)


def test_one_score_has_a_mean_but_no_spread() -> None:
    summary = summarize_scores([-21])
    assert (summary.num, summary.mean, summary.iqm) == (1, -21, -21)
    assert all(math.isnan(value) for value in (summary.std, summary.ci_low, summary.ci_high))


def test_five_agents_almost_at_pongs_ceiling_have_a_finite_interval() -> None:
    summary = summarize_scores([21, 21, 21, 21, 20.9])
    assert 20.9 <= summary.ci_low < summary.mean < summary.ci_high <= 21


def test_summary_as_a_dict_is_a_row_of_plain_numbers_in_order() -> None:
    row = summarize_scores(np.array([1, 2, 4], dtype=np.int32)).to_dict()
    assert list(row) == ["num", "mean", "std", "min", "max", "iqm", "ci_low", "ci_high"]
    assert json.loads(json.dumps(row)) == row
    assert [type(value) for value in row.values()] == [int] + [float] * 7


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([], r"Expected at least one score in one dimension, got shape \(0,\)\. Finish"),
        ([[1.0, 2.0]], r"got shape \(1, 2\)"),
        ([1.0, math.nan], r"Expected finite scores, got nan at index 1\. Leave"),
        ([math.inf], r"got inf at index 0"),
    ],
)
def test_scores_that_cannot_be_summarized_are_refused(scores: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        summarize_scores(scores)


def test_confidence_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inside \(0, 1\), got 95\. Write 95% as 0\.95"):
        summarize_scores([1, 2], confidence=95)


@pytest.fixture
def logits() -> Tensor:
    """Predictions 0, 0, 1, 2."""
    return torch.tensor([[9.0, 1, 2], [3, 1, 2], [0, 5, 4], [-9, -8, -7]])


def test_accuracy_counts_samples_whose_largest_logit_is_at_the_label(logits: Tensor) -> None:
    share = accuracy(logits, torch.tensor([0, 1, 1, 2]))
    assert share.item() == pytest.approx(3 / 4)
    assert (share.dtype, share.shape) == (torch.float32, ())


def test_accuracy_leaves_masked_samples_out_of_both_counts(logits: Tensor) -> None:
    labels = torch.tensor([0, 1, 1, 2])
    assert accuracy(logits, labels, torch.tensor([True, True, False, False])) == 0.5
    assert accuracy(logits, labels, torch.tensor([True, False, True, True])) == 1
    assert accuracy(logits, labels, torch.zeros(4, dtype=torch.bool)).isnan()


def test_accuracy_of_bfloat16_logits_is_not_rounded_to_bfloat16() -> None:
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1).bfloat16()
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[0] = 1
    assert accuracy(logits, labels).item() == pytest.approx(0.999)


def test_accuracy_refuses_shapes_that_would_broadcast(logits: Tensor) -> None:
    text = r"one of labels for each of 4 samples, got shape \(4, 1\)\. Flatten"
    with pytest.raises(ValueError, match=text):
        accuracy(logits, torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"one of mask for each of 4 samples, got shape \(3,\)"):
        accuracy(logits, torch.zeros(4, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Expected logits \[B, num_classes\], got shape \(4,\)"):
        accuracy(logits[:, 0], torch.zeros(4, dtype=torch.int64))


def test_per_class_accuracy_divides_by_the_samples_of_the_class(logits: Tensor) -> None:
    labels = torch.tensor([0, 1, 1, 0])  # predicted: 0, 0, 1, 2
    expected = torch.tensor([1 / 2, 1 / 2, math.nan], dtype=torch.float64)
    torch.testing.assert_close(per_class_accuracy(logits, labels, 3), expected, equal_nan=True)
    predicted = logits.argmax(1)
    torch.testing.assert_close(per_class_accuracy(predicted, labels, 3), expected, equal_nan=True)


def test_per_class_accuracies_weighted_by_class_size_give_the_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator)
    labels = torch.randint(10, (500,), generator=generator)
    weighted = per_class_accuracy(logits, labels, 10) @ labels.bincount(minlength=10).double()
    assert weighted.item() / 500 == pytest.approx(accuracy(logits, labels).item())


def test_per_class_accuracy_refuses_labels_out_of_range(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected labels in \[0, 3\), got 0 to 3\. Pass"):
        per_class_accuracy(logits, torch.tensor([0, 1, 2, 3]), 3)
    with pytest.raises(ValueError, match=r"got -1 to 2"):
        per_class_accuracy(logits, torch.tensor([0, 1, 2, -1]), 3)
    with pytest.raises(ValueError, match=r"one of labels for each of 4 samples"):
        per_class_accuracy(logits, torch.tensor([0, 1, 2]), 3)


def test_table_iv_is_the_papers() -> None:
    printed = """
        Random        -21    1.25
        DQN           20.0   9.9
        Human         -3     30.5
        World Record  21.0   864
        Rotation      -20.1  7.6
        Sequence      18.2   14.9
    """
    rows = [line.rsplit(maxsplit=2) for line in printed.strip().splitlines()]
    assert list(TABLE_IV.items()) == [
        (agent.strip(), {"Pong": float(pong), "Breakout": float(breakout)})
        for agent, pong, breakout in rows
    ]


def test_table_i_is_the_papers() -> None:
    # "MNIST 99.19", "MNIST with Self-Supervision 98.45"
    assert TABLE_I == {"none": 99.19, "rotation": 98.45}


def test_table_ii_is_the_papers() -> None:
    printed = """
        0  99.8   99.39
        1  99.65  99.56
        2  99.32  98.93
        3  99.6   98.61
        4  98.88  98.68
        5  98.99  97.98
        6  98.96  97.7
        7  99.12  97.67
        8  98.97  98.25
        9  98.51  97.52
    """
    rows = [line.split() for line in printed.strip().splitlines()]
    assert [int(digit) for digit, _, _ in rows] == list(range(10))
    assert list(TABLE_II) == ["none", "rotation"]
    assert TABLE_II["none"] == tuple(float(none) for _, none, _ in rows)
    assert TABLE_II["rotation"] == tuple(float(rotation) for _, _, rotation in rows)


# Mean and interval over seeds


def test_mean_interval_is_students_t_by_hand() -> None:
    # mean 2, sample deviation 1, t of 2 degrees of freedom at 97.5% is 4.302653 (any t table)
    half_width = 4.302653 / math.sqrt(3)
    found = mean_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2, 2 - half_width, 2 + half_width), rel=1e-6)


def test_mean_interval_of_two_values_at_50_percent_ends_at_the_values() -> None:
    # With 1 degree of freedom (Cauchy) t at 75% is 1, and std / sqrt(2) is half the distance.
    assert mean_interval([3.0, 7.0], confidence=0.5) == pytest.approx((5, 3, 7))


def test_mean_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(7, 3, size=5).tolist()) for _ in range(1000)]
    assert np.mean([low < 7 < high for _, low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_one_value_has_a_mean_and_no_interval() -> None:
    mean, low, high = mean_interval([98.5])
    assert mean == 98.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_values_have_the_interval_of_that_value() -> None:
    assert mean_interval([98.5, 98.5, 98.5]) == (98.5, 98.5, 98.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_mean_interval_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^Expected at least one finite value in one dimension"):
        mean_interval(values)
