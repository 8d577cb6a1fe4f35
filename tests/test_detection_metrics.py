"""Binary metrics against numbers by hand and scikit-learn; bootstrap over videos."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from rayssl.detection_metrics import (
    METRICS,
    Scored,
    detection_metrics,
    metric_intervals,
    paired_differences,
    per_cluster,
)


def one(scores: list[float], labels: list[int]) -> dict[str, float]:
    return {name: float(found[0]) for name, found in detection_metrics(scores, labels).items()}


def noisy_run(num_videos: int, frames: int, seed: int = 0) -> Scored:
    """Frames of a video share most of their score, as they do in a clip."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_videos) % 2
    level = 0.5 + 0.15 * (2 * labels - 1) + 0.2 * rng.normal(size=num_videos)
    scores = np.repeat(level, frames) + 0.02 * rng.normal(size=num_videos * frames)
    clusters = np.repeat(np.arange(num_videos), frames)
    return Scored(np.clip(scores, 0, 1), np.repeat(labels, frames), clusters)


def test_metrics_of_five_samples_are_those_computed_by_hand() -> None:
    # Falling scores: 1 0 | 1 0 1 with labels .34:1 .26:0 .19:1 .13:0 .08:1. Of the six pairs a
    # positive beats a negative in three. FPR = FNR = 1/2 between the scores .26 and .19.
    found = one([0.13, 0.26, 0.08, 0.19, 0.34], [0, 0, 1, 1, 1])
    assert found["auc"] == pytest.approx(3 / 6)
    assert found["eer"] == pytest.approx(1 / 2)
    assert found["accuracy"] == pytest.approx(2 / 5)  # all are called 0
    assert found["balanced_accuracy"] == pytest.approx(1 / 2)
    p_of_label = [0.87, 0.74, 0.08, 0.19, 0.34]
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, p_of_label)) / 5)


def test_eer_is_interpolated_where_no_threshold_makes_both_rates_equal() -> None:
    # ROC points (FPR, TPR): (0, 0) (0, 1/2) (1, 1/2) (1, 1): one negative above one positive of
    # two. FPR - FNR goes -1, -1/2, 1/2: it crosses 0 half way, at FPR 1/2.
    assert one([0.9, 0.5, 0.1], [1, 0, 1])["eer"] == pytest.approx(1 / 2)
    # (0, 0) (0, 2/3) (1/2, 2/3) (1/2, 1) (1, 1): -1/3 to 1/6 between the second and the third.
    assert one([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 0])["eer"] == pytest.approx(1 / 3)
    assert one([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0])["eer"] == 0
    assert one([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0])["eer"] == 1


def test_auc_of_faces_told_apart_without_an_error_is_one_for_any_number_of_them() -> None:
    for count in range(1, 60):
        ordered = np.linspace(0, 1, 2 * count).tolist()
        assert one(ordered, [0] * count + [1] * count)["auc"] == 1


def test_score_of_one_half_is_called_real_as_argmax_of_equal_logits_is() -> None:
    assert one([0.5, 0.5], [0, 1])["accuracy"] == 0.5
    assert one([0.5], [0])["accuracy"] == 1


def test_balanced_accuracy_of_always_real_is_one_half_however_rare_fakes_are() -> None:
    found = one([0.1] * 100, [0] * 95 + [1] * 5)
    assert found["accuracy"] == pytest.approx(0.95)
    assert found["balanced_accuracy"] == pytest.approx(0.5)


def test_metrics_equal_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.random(300), 1)  # many ties
    y = (rng.random(300) < 0.7 * p + 0.1).astype(int)
    weights = rng.integers(0, 4, (5, 300)).astype(float)
    found = detection_metrics(p, y, weights)
    for row, w in enumerate(weights):
        expected = {
            "auc": reference.roc_auc_score(y, p, sample_weight=w),
            "accuracy": reference.accuracy_score(y, p > 0.5, sample_weight=w),
            "balanced_accuracy": reference.balanced_accuracy_score(y, p > 0.5, sample_weight=w),
            "log_loss": reference.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), sample_weight=w),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value), name


def test_whole_weights_equal_repeated_samples() -> None:
    p, y, w = np.array([0.2, 0.6, 0.4, 0.9]), np.array([0, 0, 1, 1]), np.array([3, 1, 2, 0])
    weighted = detection_metrics(p, y, w[None])
    repeated = detection_metrics(np.repeat(p, w), np.repeat(y, w))
    for name in METRICS:
        assert weighted[name] == pytest.approx(repeated[name])


def test_metric_that_needs_both_classes_is_nan_with_one() -> None:
    found = one([0.3, 0.8], [1, 1])
    assert found["accuracy"] == 0.5
    assert all(math.isnan(found[name]) for name in ("auc", "eer", "balanced_accuracy"))


@pytest.mark.parametrize(
    ("scores", "labels", "text"),
    [
        ([0.1, 1.2], [0, 1], "probabilities"),
        ([0.1, float("nan")], [0, 1], "probabilities"),
        ([0.1, 0.2], [0, 2], "labels 0 and 1"),
        ([0.1], [0, 1], "shapes"),
        ([], [], "1 or more"),
    ],
)
def test_scores_that_are_none_are_refused(
    scores: list[float], labels: list[int], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        detection_metrics(scores, labels)


def test_score_of_a_video_is_the_mean_of_its_frames() -> None:
    frames = Scored(np.array([0.2, 0.9, 0.4, 0.8]), np.array([0, 1, 0, 1]), np.array([7, 2, 7, 2]))
    videos = per_cluster(frames)
    assert videos.clusters.tolist() == [2, 7]
    assert videos.labels.tolist() == [1, 0]
    assert videos.scores == pytest.approx([0.85, 0.3])


def test_video_with_real_and_fake_frames_is_refused() -> None:
    mixed = Scored(np.array([0.2, 0.9]), np.array([0, 1]), np.array([5, 5]))
    with pytest.raises(ValueError, match="number 5"):
        per_cluster(mixed)


def test_bootstrap_over_videos_is_wider_than_over_frames_and_as_wide_as_without_copies() -> None:
    run = noisy_run(num_videos=40, frames=10)
    by_video = metric_intervals([run])["auc"]
    by_frame = metric_intervals([run._replace(clusters=np.arange(400))])["auc"]
    single = metric_intervals([per_cluster(run)])["auc"]
    assert by_video.high - by_video.low > 2 * (by_frame.high - by_frame.low)
    # Frames that repeat their video tell nothing new.
    assert by_video.high - by_video.low == pytest.approx(single.high - single.low, rel=0.2)
    assert by_video.low < by_video.value < by_video.high


def test_bootstrap_of_accuracy_agrees_with_a_slow_loop_over_videos() -> None:
    run = noisy_run(num_videos=12, frames=3)
    found = metric_intervals([run], resamples=4_000)["accuracy"]
    rng, means = np.random.default_rng(1), []
    hits = (run.scores > 0.5) == run.labels
    for _ in range(4_000):
        videos = rng.integers(0, 12, 12)
        means.append(np.concatenate([hits[run.clusters == v] for v in videos]).mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.04)


def test_bootstrap_is_the_same_with_the_same_seed_and_another_with_another() -> None:
    run = noisy_run(num_videos=20, frames=2)
    assert metric_intervals([run], seed=1) == metric_intervals([run], seed=1)
    assert metric_intervals([run], seed=1) != metric_intervals([run], seed=2)


def test_bootstrap_in_chunks_covers_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy_run(num_videos=20, frames=2)
    whole = metric_intervals([run], resamples=500)
    monkeypatch.setattr("rayssl.detection_metrics.CHUNK", 7 * len(run.scores))
    assert metric_intervals([run], resamples=500)["auc"] == pytest.approx(whole["auc"])


def test_one_video_has_a_value_and_no_interval() -> None:
    found = metric_intervals([Scored(np.array([0.9, 0.2]), np.array([1, 1]), np.array([3, 3]))])
    assert found["accuracy"].value == 0.5
    assert math.isnan(found["accuracy"].low)
    assert math.isnan(found["auc"].value)


def test_runs_of_several_seeds_are_resampled_with_the_same_videos() -> None:
    run = noisy_run(num_videos=30, frames=4)
    # The same test twice is no more evidence than once.
    assert metric_intervals([run, run])["auc"] == pytest.approx(metric_intervals([run])["auc"])


def test_paired_difference_is_narrower_than_two_intervals_side_by_side() -> None:
    run = noisy_run(num_videos=40, frames=5)
    rng = np.random.default_rng(9)
    worse = run._replace(scores=np.clip(run.scores + 0.03 * rng.normal(size=200), 0, 1))
    found = paired_differences([run], [worse])["auc"]
    alone = metric_intervals([run])["auc"]
    values = metric_intervals([run])["auc"].value - metric_intervals([worse])["auc"].value
    assert found.value == pytest.approx(values)
    assert found.high - found.low < (alone.high - alone.low) / 2
    assert paired_differences([run], [run])["auc"] == (0, 0, 0)


def test_paired_difference_of_other_samples_is_refused() -> None:
    run = noisy_run(num_videos=8, frames=2)
    with pytest.raises(ValueError, match="same samples"):
        paired_differences([run], [run._replace(labels=1 - run.labels)])
