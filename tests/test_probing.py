"""Probes on classes whose best reader is known; nothing here is chosen on a test set."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rayssl.probing import (
    FIELD_HEAD,
    Fitted,
    HeadSettings,
    HeadTraining,
    LabelledFeatures,
    LinearProbe,
    fit_head,
    fit_logistic_regression,
    fit_nearest_neighbours,
    log_loss,
)

Fit = Callable[..., Fitted]
FITS: list[Fit] = [fit_logistic_regression, fit_nearest_neighbours, fit_head]
LINEAR: list[Fit] = [fit_logistic_regression, fit_head]


def clouds(n: int, seed: int, classes: int = 2, apart: float = 3.0) -> LabelledFeatures:
    """Classes in a row along the first axis, off the origin and with a constant feature."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, 5))
    x[:, 0] += apart * y
    x[:, 1:3] *= 50
    x[:, 3] = 7
    return LabelledFeatures((x + 10).astype(np.float32), y.astype(np.int64))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("classes", [2, 3])
def test_probe_reads_classes_that_lie_apart(fit: Fit, classes: int) -> None:
    found = fit(clouds(240, 0, classes), clouds(90, 1, classes))
    test = clouds(600, 2, classes)
    log_p = found.probe.log_probabilities(test.x)
    assert log_p.shape == (600, classes)
    assert np.exp(log_p).sum(1) == pytest.approx(1)
    assert (log_p.argmax(1) == test.y).mean() > 0.8
    assert found.validation_log_loss == min(row["validation_log_loss"] for row in found.tried)
    assert found.validation_log_loss == pytest.approx(log_loss(found.probe, clouds(90, 1, classes)))


@pytest.mark.parametrize("fit", FITS)
def test_same_data_and_seed_give_the_same_probe(fit: Fit) -> None:
    train, validation = clouds(60, 0), clouds(30, 1)
    first, second = fit(train, validation), fit(train, validation)
    x = clouds(20, 2).x
    assert np.array_equal(first.probe.log_probabilities(x), second.probe.log_probabilities(x))


def test_c_with_the_lowest_validation_loss_is_chosen_and_all_are_told() -> None:
    rng = np.random.default_rng(0)
    noise = LabelledFeatures(rng.normal(size=(40, 30)).astype(np.float32), np.arange(40) % 2)
    other = LabelledFeatures(rng.normal(size=(40, 30)).astype(np.float32), np.arange(40) % 2)
    found = fit_logistic_regression(noise, other, c_values=[1e-4, 100.0])
    assert found.chosen == {"C": 1e-4}  # nothing to learn: the strongest penalty loses least
    assert [row["C"] for row in found.tried] == [1e-4, 100.0]
    assert fit_logistic_regression(noise, noise, c_values=[1e-4, 100.0]).chosen == {"C": 100.0}


def test_neighbours_vote_by_laplaces_rule() -> None:
    train = LabelledFeatures(np.array([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]], np.float32),
                             np.array([0, 0, 1, 1]))  # fmt: skip
    found = fit_nearest_neighbours(train, train, k_values=[1])
    log_p = found.probe.log_probabilities(np.array([[1, 0.02]], np.float32))
    assert np.exp(log_p[0]) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("fit", LINEAR)
def test_linear_probe_as_a_layer_gives_the_same_over_raw_features(fit: Fit) -> None:
    probe = fit(clouds(60, 0), clouds(30, 1)).probe
    assert isinstance(probe, LinearProbe)
    x = clouds(50, 2).x
    logits = probe.module()(torch.from_numpy(x))
    expected = probe.log_probabilities(x)
    assert torch.log_softmax(logits, 1).detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_relu_on_logits_makes_both_classes_alike_where_both_are_below_zero() -> None:
    one = np.ones(1)
    probe = LinearProbe(np.array([[-1.0], [-2.0]]), np.zeros(2), 0 * one, one, relu_logits=True)
    log_p = probe.log_probabilities(np.array([[3.0], [-1.0]], np.float32))
    assert np.exp(log_p[0]) == pytest.approx([0.5, 0.5])
    assert np.exp(log_p[1, 1] - log_p[1, 0]) == pytest.approx(math.e)
    assert probe.module()(torch.tensor([[3.0]])).tolist() == [[0.0, 0.0]]


def test_learning_rate_scales_with_the_batch_and_falls_along_a_cosine() -> None:
    head = HeadTraining(3, 2, HeadSettings(lr=0.1, batch_size=64, epochs=4), seed=0)
    batch = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    rates = []
    for _ in range(4):
        head.run_epoch(batch)
        rates.append(head.optimizer.param_groups[0]["lr"])
    quarter = 0.1 * 64 / 256
    assert rates == pytest.approx([quarter * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)])
    assert FIELD_HEAD.lr == 0.1


def test_adam_keeps_its_learning_rate() -> None:
    settings = HeadSettings("adam", lr=1e-4, batch_size=32, epochs=10, schedule="constant")
    head = HeadTraining(3, 2, settings, seed=0)
    head.run_epoch([(torch.ones(2, 3), torch.tensor([0, 1]))])
    assert isinstance(head.optimizer, torch.optim.Adam)
    assert head.optimizer.param_groups[0]["lr"] == 1e-4


def test_resumed_head_goes_on_as_if_nothing_had_happened() -> None:
    settings = HeadSettings("adam", lr=0.01, epochs=4, batch_size=8)
    batches = [(torch.randn(8, 3, generator=torch.Generator().manual_seed(i)),
                torch.tensor([0, 1] * 4)) for i in range(3)]  # fmt: skip
    whole, first, second = (HeadTraining(3, 2, settings, seed=s) for s in (0, 0, 5))
    for _ in range(4):
        whole.run_epoch(batches)
    for _ in range(2):
        first.run_epoch(batches)
    second.load_state_dict(first.state_dict())
    first.run_epoch(batches)  # the saved state must not move with the head it came from
    for _ in range(2):
        second.run_epoch(batches)
    assert torch.equal(second.linear.weight, whole.linear.weight)
    assert second.epoch == 4


@pytest.mark.parametrize("fit", FITS)
def test_data_that_cannot_be_fitted_are_refused(fit: Fit) -> None:
    good = clouds(20, 0)
    with pytest.raises(ValueError, match="none of class 1"):
        fit(LabelledFeatures(good.x, np.zeros(20, np.int64)), good)
    with pytest.raises(ValueError, match="validation features"):
        fit(good, LabelledFeatures(good.x[:0], good.y[:0]))


@pytest.mark.parametrize("values", [[], [0.0], [-1.0], [float("nan")]])
def test_candidates_must_be_above_zero(values: list[float]) -> None:
    with pytest.raises(ValueError, match="C, each above 0"):
        fit_logistic_regression(clouds(20, 0), clouds(20, 1), c_values=values)


def test_loss_that_is_not_finite_is_an_error() -> None:
    head = HeadTraining(3, 2, HeadSettings(), seed=0)
    with pytest.raises(FloatingPointError, match="Lower lr"):
        head.run_epoch([(torch.full((2, 3), float("inf")), torch.tensor([0, 1]))])
