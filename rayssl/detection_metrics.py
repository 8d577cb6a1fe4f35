"""How well scores tell two classes apart, with intervals that keep a video's frames together.

Every metric is computed for many weightings of the samples at once, as whole arrays: a bootstrap
resample of videos is a weighting in which each frame counts as often as its video was drawn.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

METRICS: Final = ("accuracy", "balanced_accuracy", "auc", "eer", "log_loss")
THRESHOLD = 0.5  # a score above it is called 1; on it 0, as argmax does with two equal logits
SMALLEST_PROBABILITY = 1e-7  # for log-loss: about float32's resolution beside 1
RESAMPLES = 2_000
CHUNK = 4_000_000  # weights held at once: 32 MB

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Scored(NamedTuple):
    """Scores of samples whose labels are known.

    Attributes:
      scores: probability of label 1, `[N]` in [0, 1].
      labels: `[N]` in {0, 1}.
      clusters: `[N]`, whole numbers from 0: samples of one cluster (frames of one video) are drawn
        together. Several `Scored` that are resampled together share the numbering.
    """

    scores: Floats
    labels: Ints
    clusters: Ints


class Interval(NamedTuple):
    """A value and the ends of its bootstrap interval; NaN ends where nothing can be resampled."""

    value: float
    low: float
    high: float


def detection_metrics(
    scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> dict[str, Floats]:
    """Returns each metric's value under every weighting: name -> `[R]`.

    accuracy, balanced_accuracy: share of samples on the right side of 0.5, and the mean of both
    classes' shares. auc: area under the ROC curve, ties by half. eer: the rate at which
    false-positive and false-negative rate are equal. log_loss: mean of -log p(label) in nats, p cut
    to [1e-7, 1 - 1e-7].

    The EER has no standard definition where no threshold makes both rates equal. Here: FPR - FNR
    grows from -1 to 1 along the ROC curve's points; between the two points where it changes sign
    both rates are interpolated linearly, which is where the curve, drawn with straight lines, cuts
    the diagonal TPR = 1 - FPR.

    Args:
      scores: probability of label 1, `[N]` in [0, 1].
      labels: `[N]` in {0, 1}.
      weights: `[R, N]`, 0 or more: how often each sample counts. None: each once, R = 1.
    Returns:
      float64 arrays; NaN where a class that the metric needs has no weight.
    Raises:
      ValueError: for shapes that do not fit, labels besides 0 and 1, scores outside [0, 1].
    """
    p, y = _checked(scores, labels)
    w = np.ones((1, p.size)) if weights is None else np.asarray(weights, np.float64)
    if w.ndim != 2 or w.shape[1] != p.size:
        raise ValueError(f"Expected weights [R, {p.size}], got shape {w.shape}.")
    with np.errstate(invalid="ignore", divide="ignore"):
        positive, negative = w * y, w * (1 - y)  # [R, N]
        num_positive, num_negative = positive.sum(1), negative.sum(1)  # [R]
        called = p > THRESHOLD
        hits_1, hits_0 = positive[:, called].sum(1), negative[:, ~called].sum(1)
        bounded = np.clip(p, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        losses = -np.log(np.where(y == 1, bounded, 1 - bounded))  # [N]
        false_rate, true_rate = _roc(p, positive, negative)  # [R, T]
        total = num_positive + num_negative
        area = (np.diff(false_rate) * (true_rate[:, 1:] + true_rate[:, :-1]) / 2).sum(1)
        return {
            "accuracy": (hits_1 + hits_0) / total,
            "balanced_accuracy": (hits_1 / num_positive + hits_0 / num_negative) / 2,
            "auc": area.round(12),  # a sum of 24 widths of 1/24 is below 1
            "eer": _equal_error_rate(false_rate, true_rate),
            "log_loss": w @ losses / total,
        }


def per_cluster(scored: Scored) -> Scored:
    """Returns one sample for each cluster: the mean of its scores (a video from its frames).

    Raises:
      ValueError: if samples of one cluster have different labels.
    """
    found, index = np.unique(scored.clusters, return_inverse=True)
    counts = np.bincount(index)
    scores = np.bincount(index, scored.scores) / counts
    shares = np.bincount(index, scored.labels) / counts
    mixed = np.flatnonzero((shares > 0) & (shares < 1))
    if mixed.size:
        raise ValueError(
            f"Expected one label for each cluster, got both in {mixed.size} of {found.size}, first "
            f"in number {found[mixed[0]]}. A video is real or fake as a whole."
        )
    return Scored(scores, shares.astype(np.int64), found)


def metric_intervals(
    runs: Sequence[Scored], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Returns each metric's mean over runs and its interval, by resampling clusters.

    The percentile bootstrap: each resample draws as many clusters as there are, with replacement,
    and a cluster's samples count together, in every run alike (runs of several seeds test on
    overlapping sets of one collection of videos). Resamples without one of the classes say nothing
    of AUC, EER and balanced accuracy and are left out there.

    Args:
      runs: at least one; of one seed, or of several whose clusters have the same numbering.
      confidence: share of the resampled means inside the interval, in (0, 1).
      resamples: how many.
      seed: of the resampling.
    Returns:
      name -> Interval; its ends are NaN for a single cluster.
    Raises:
      ValueError: if there is no run, or one that `detection_metrics` refuses.
    Source: cluster bootstrap: Davison and Hinkley 1997, section 3.8.
    """
    return _intervals(runs, None, confidence, resamples, seed)


def paired_differences(
    runs: Sequence[Scored],
    others: Sequence[Scored],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns each metric of `runs` minus that of `others`, both resampled with the same clusters.

    What both found hard on the same videos falls out of the difference, so that its interval is
    narrower than the two intervals side by side suggest.

    Args:
      runs, others: the same samples in the same order, scored by two classifiers.
    Raises:
      ValueError: if samples differ.
    """
    same = len(runs) == len(others) and all(
        np.array_equal(a.labels, b.labels) and np.array_equal(a.clusters, b.clusters)
        for a, b in zip(runs, others, strict=False)
    )
    if not same:
        raise ValueError(
            "Expected the same samples from both classifiers, got different ones. Compare runs of "
            "the same data, split and seeds."
        )
    return _intervals(runs, others, confidence, resamples, seed)


def _intervals(
    runs: Sequence[Scored],
    others: Sequence[Scored] | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    if not runs:
        raise ValueError("Expected at least one run, got none.")
    present, numbers = np.unique(np.concatenate([r.clusters for r in runs]), return_inverse=True)
    members = np.split(numbers, np.cumsum([len(r.clusters) for r in runs])[:-1])
    pairs = [
        (run, others[i] if others is not None else None, members[i]) for i, run in enumerate(runs)
    ]
    values = _mean_over_runs(pairs, None)
    ends = dict.fromkeys(METRICS, (np.nan, np.nan))
    if present.size > 1:
        rng = np.random.default_rng(seed)
        rows = max(1, CHUNK // max(len(r.scores) for r in runs))
        even = np.full(present.size, 1 / present.size)
        parts = [
            _mean_over_runs(pairs, rng.multinomial(present.size, even, size=min(rows, left)))
            for left in range(resamples, 0, -rows)
        ]
        tails = ((1 - confidence) / 2, (1 + confidence) / 2)
        for name in METRICS:
            drawn = np.concatenate([part[name] for part in parts])
            drawn = drawn[np.isfinite(drawn)]
            if drawn.size and np.isfinite(values[name][0]):
                low, high = np.quantile(drawn, tails)
                ends[name] = float(low), float(high)
    return {name: Interval(float(values[name][0]), *ends[name]) for name in METRICS}


def _mean_over_runs(
    pairs: Sequence[tuple[Scored, Scored | None, Ints]], drawn: Ints | None
) -> dict[str, Floats]:
    """Each metric (or difference) averaged over runs, for each row of counts a cluster."""
    found: dict[str, list[Floats]] = {name: [] for name in METRICS}
    for run, other, members in pairs:
        weights = None if drawn is None else drawn[:, members]  # [R, N]
        own = detection_metrics(run.scores, run.labels, weights)
        minus = detection_metrics(other.scores, other.labels, weights) if other else None
        for name in METRICS:
            found[name].append(own[name] - minus[name] if minus else own[name])
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Ints]:
    p, y = np.asarray(scores, np.float64), np.asarray(labels)
    if p.ndim != 1 or p.size == 0 or y.shape != p.shape:
        raise ValueError(
            f"Expected scores [N] and labels [N] with N of 1 or more, got shapes {p.shape} and "
            f"{y.shape}."
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"Expected labels 0 and 1, got {np.unique(y)[:5].tolist()}.")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            "Expected scores as probabilities in [0, 1], got others. Pass the softmax of logits."
        )
    return p, y.astype(np.int64)


def _roc(p: Floats, positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """False- and true-positive rates for falling thresholds, from (0, 0) to (1, 1): `[R, T]`.

    Samples of one score fall on one side together, so that their order plays no part.
    """
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(p[order])), p.size - 1)  # last sample of each score
    rates = []
    for weights in (negative, positive):
        passed = np.cumsum(weights[:, order], axis=1)[:, ends]
        rates.append(np.pad(passed / passed[:, -1:], ((0, 0), (1, 0))))
    return rates[0], rates[1]


def _equal_error_rate(false_rate: Floats, true_rate: Floats) -> Floats:
    gap = false_rate - (1 - true_rate)  # [R, T], rises from -1 to 1
    after = np.maximum(1, np.argmax(gap >= 0, axis=1))[:, None]
    g0, g1 = (np.take_along_axis(gap, i, 1)[:, 0] for i in (after - 1, after))
    f0, f1 = (np.take_along_axis(false_rate, i, 1)[:, 0] for i in (after - 1, after))
    rate = f0 - g0 / (g1 - g0) * (f1 - f0)
    return np.where(np.isfinite(gap[:, -1]), rate, np.nan)
