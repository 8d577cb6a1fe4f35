"""Classifiers over frozen features: what a representation holds that a simple reader can find.

    found = fit_logistic_regression(train, validation)
    found.probe.log_probabilities(test.x)
    probe_state(features, values, games, split, class_width=16)    # F1 and R2 on held-out games

Whatever is chosen (C, k, the epoch) is chosen by log-loss on a validation set; no function here
takes a test set.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

C_VALUES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # inverse L2 penalty, per sample sum
K_VALUES: Final = (1, 5, 20, 50)
STATE_C_VALUES: Final = (1e-3, 1e-2, 1e-1)  # for features of 512 to 7,744 numbers, states by 1,000s
RIDGE_PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # a sample, in units of its squared error
RESAMPLES = 2_000  # of games
MAX_ITERATIONS = 2_000  # of L-BFGS; not reached but for large C on separable classes


class LabelledFeatures(NamedTuple):
    """Features and labels of one part of a data set.

    Attributes:
      x: float32 `[N, D]`.
      y: int64 `[N]` in [0, K).
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]


class Probe(Protocol):
    """A fitted classifier over features."""

    def log_probabilities(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns log p(class): `[N, K]` of features `[N, D]`."""


class Fitted(NamedTuple):
    """A probe and how it was chosen.

    Attributes:
      probe: the chosen one.
      chosen: what was chosen on the validation set, by name: `C`, `epoch` or `k`.
      validation_log_loss: of the chosen one, nats.
      tried: one row for each candidate, with its validation log-loss.
    """

    probe: Probe
    chosen: dict[str, float]
    validation_log_loss: float
    tried: list[dict[str, Any]]


@dataclass(frozen=True)
class LinearProbe:
    """logits = ((x - mean) / scale) weight^T + bias, and a ReLU on them where `relu_logits`.

    Attributes:
      weight: float64 `[K, D]`; bias: `[K]`.
      mean, scale: `[D]`, of the training features.
      relu_logits: as the authors' head over BigBiGAN has it.
    """

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    relu_logits: bool = False

    def log_probabilities(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns log p(class): `[N, K]`."""
        logits = (x - self.mean) / self.scale @ self.weight.T + self.bias
        logits = np.maximum(logits, 0) if self.relu_logits else logits
        top = logits.max(1, keepdims=True)
        found: npt.NDArray[np.float64] = logits - top
        return found - np.log(np.exp(found).sum(1, keepdims=True))

    def module(self) -> nn.Module:
        """Returns the same as a layer over raw features: float32 `[N, D]` -> logits `[N, K]`."""
        weight = self.weight / self.scale
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(self.bias - weight @ self.mean))
        return nn.Sequential(layer, nn.ReLU()) if self.relu_logits else layer


@dataclass(frozen=True)
class NearestNeighbours:
    """p(class) = (votes + 1) / (k + K): the shares among the k nearest, none of them zero."""

    model: Any
    num_classes: int
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def log_probabilities(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns log p(class): `[N, K]`."""
        k = self.model.n_neighbors
        votes = np.zeros((len(x), self.num_classes))
        votes[:, self.model.classes_] = self.model.predict_proba((x - self.mean) / self.scale) * k
        found: npt.NDArray[np.float64] = np.log((votes + 1) / (k + self.num_classes))
        return found


Candidate = tuple[Probe, dict[str, float], dict[str, Any]]  # what was chosen, what to note beside


def log_loss(probe: Probe, part: LabelledFeatures) -> float:
    """Returns the mean of -log p(label), in nats."""
    return float(-probe.log_probabilities(part.x)[np.arange(len(part.y)), part.y].mean())


def fit_logistic_regression(
    train: LabelledFeatures, validation: LabelledFeatures, *, c_values: Sequence[float] = C_VALUES
) -> Fitted:
    """Returns the logistic regression whose C has the lowest log-loss on the validation set.

    Features are standardized with the training set's mean and deviation; L2 penalty, L-BFGS
    (scikit-learn). A fit that has not converged counts as it is, and its row says so.

    Args:
      train, validation: features `[N, D]` and labels; every label must occur in train.
      c_values: inverse strengths of the penalty to try, each above 0.
    Raises:
      ValueError: for data or values that cannot be fitted.
    """
    num_classes = _check(train, validation)
    _check_candidates("C", c_values)
    mean, scale = _moments(train.x)
    x = (train.x - mean) / scale
    candidates: list[Candidate] = []
    for c in sorted(c_values):
        model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x, train.y)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        weight, bias = model.coef_, model.intercept_
        if num_classes == 2:  # one row: the log-odds of class 1
            weight, bias = (np.concatenate([np.zeros_like(v), v]) for v in (weight, bias))
        probe = LinearProbe(weight, bias, mean, scale)
        candidates.append((probe, {"C": float(c)}, {"converged": converged}))
    return _lowest_log_loss(candidates, validation)


@dataclass(frozen=True)
class LinearRegressor:
    """value = ((x - mean) / scale) weight + bias.

    Attributes:
      weight: float64 `[D]`; bias: a number.
      mean, scale: `[D]`, of the training features.
    """

    weight: npt.NDArray[np.float64]
    bias: float
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns the values of features `[N, D]`: `[N]`."""
        found: npt.NDArray[np.float64] = (x - self.mean) / self.scale @ self.weight + self.bias
        return found


def fit_ridge(
    train: tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]],
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]],
    *,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> LinearRegressor:
    """Returns the ridge regression whose penalty has the least squared error on the validation set.

    min_w |y - x w - b|^2 + penalty N |w|^2, features standardized on the training set.

    Args:
      train, validation: features `[N, D]` and values `[N]`.
      penalties: to try, each above 0.
    Raises:
      ValueError: for penalties that cannot be used.
    """
    _check_candidates("penalty", penalties)
    mean, scale = _moments(train[0])
    x = (train[0] - mean) / scale
    tried = []
    for penalty in penalties:
        model = Ridge(alpha=penalty * len(x)).fit(x, train[1])
        found = LinearRegressor(model.coef_, float(model.intercept_), mean, scale)
        error = float(((found.predict(validation[0]) - validation[1]) ** 2).mean())
        tried.append((error, found))
    return min(tried, key=lambda pair: pair[0])[1]


class GameSplit(NamedTuple):
    """Which games are for fitting, for choosing, and held out; no game is in two of them."""

    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]


class StateScores(NamedTuple):
    """How well a line reads one number of the state: the test games, and resamples of them.

    Attributes:
      f1, r2: float64 `[1 + RESAMPLES]`: of the test games as they are, then of each resample.
      states: of the test games.
    """

    f1: npt.NDArray[np.float64]
    r2: npt.NDArray[np.float64]
    states: int


def probe_state(
    x: npt.NDArray[np.float32],
    values: npt.NDArray[np.float64],
    games: npt.NDArray[np.int64],
    split: GameSplit,
    *,
    class_width: int = 1,
    c_values: Sequence[float] = STATE_C_VALUES,
    seed: int = 0,
) -> StateScores | None:
    """Returns F1 and R2 of linear probes of one number, fitted and judged on different games.

    F1: logistic regression over classes of `class_width` neighbouring values; the mean over classes
    weighted by their share, as AtariARI reports it. A class that training has not seen counts as
    missed; where validation has no other, training chooses the penalty. R2: ridge regression of the
    value. Games are resampled, not states: those of one game are no independent evidence. The same
    seed resamples the same games for all numbers and networks, so that differences can be taken
    resample by resample.

    Args:
      x: float32 `[N, D]`, features of a frozen network.
      values: `[N]`, whole numbers; NaN where the number is unknown: these states are left out.
      games: `[N]`, which game a state is from.
      split: the games.
      class_width: values in a class.
      c_values: inverse penalties of the logistic regression to try.
      seed: of the resampling.
    Returns:
      None for a number that does not change in the training or the test games.
    Source: Anand et al. 2019, arXiv:1906.08226, section 5.
    """
    known = np.isfinite(values)
    parts = [known & np.isin(games, part) for part in split]
    train, validation, test = ((x[rows], values[rows]) for rows in parts)
    classes = np.unique(train[1] // class_width)
    if len(classes) < 2 or not len(validation[1]) or len(np.unique(test[1])) < 2:
        return None

    def labels(part: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Number of the class; the last one, len(classes), for classes not seen in training."""
        place = np.searchsorted(classes, part // class_width).clip(max=len(classes) - 1)
        found: npt.NDArray[np.int64] = np.where(
            classes[place] == part // class_width, place, len(classes)
        )
        return found

    fitting = LabelledFeatures(train[0], labels(train[1]))
    choosing = LabelledFeatures(validation[0], labels(validation[1]))
    rows = choosing.y < len(classes)
    choosing = LabelledFeatures(choosing.x[rows], choosing.y[rows]) if rows.any() else fitting
    fitted = fit_logistic_regression(fitting, choosing, c_values=c_values)
    guessed = fitted.probe.log_probabilities(test[0]).argmax(1)
    error = (fit_ridge(train, validation).predict(test[0]) - test[1]) ** 2
    numbers = [games[parts[2]] == game for game in split.test]
    side = len(classes) + 1
    pairs = labels(test[1]) * side + guessed
    confusion = np.array([np.bincount(pairs[own], minlength=side * side) for own in numbers])
    sums = np.array([
        [own.sum(), test[1][own].sum(), (test[1][own] ** 2).sum(), error[own].sum()]
        for own in numbers
    ])  # fmt: skip
    draws = _resamples(len(split.test), seed)
    return StateScores(
        weighted_f1((draws @ confusion).reshape(-1, side, side)), r_squared(draws @ sums),
        len(test[1]),
    )  # fmt: skip


def weighted_f1(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns F1 averaged over classes with their shares as weights: `[...]`.

    sum_k n_k / N * 2 TP_k / (2 TP_k + FP_k + FN_k).

    Args:
      confusion: `[..., K, K]`, counts by true and by guessed class.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)  # [..., K]
    true, guessed = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    found: npt.NDArray[np.float64] = (f1 * true).sum(-1) / np.maximum(true.sum(-1), 1)
    return found


def r_squared(sums: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns 1 - sum of squared errors / sum of squares around the mean: `[...]`.

    NaN where the values do not differ.

    Args:
      sums: `[..., 4]`: number of values, their sum, the sum of their squares, of squared errors.
    """
    n, total, squares, errors = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    around = squares - total**2 / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(around > 1e-9 * np.maximum(squares, 1), 1 - errors / around, np.nan)


def _resamples(count: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each of `count` games is in: once in the first row, as drawn in the others."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count), np.int64), drawn])


def fit_nearest_neighbours(
    train: LabelledFeatures, validation: LabelledFeatures, *, k_values: Sequence[int] = K_VALUES
) -> Fitted:
    """Returns the k-nearest-neighbour classifier whose k has the lowest validation log-loss.

    Cosine distance between standardized features.

    Args:
      k_values: numbers of neighbours to try; those above the number of training samples are not.
    Raises:
      ValueError: for data or values that cannot be fitted.
    """
    num_classes = _check(train, validation)
    k_values = [k for k in k_values if k <= len(train.y)]
    _check_candidates("k", k_values)
    mean, scale = _moments(train.x)
    candidates: list[Candidate] = []
    for k in sorted(k_values):
        model = KNeighborsClassifier(k, metric="cosine").fit((train.x - mean) / scale, train.y)
        probe = NearestNeighbours(model, num_classes, mean, scale)
        candidates.append((probe, {"k": float(k)}, {}))
    return _lowest_log_loss(candidates, validation)


@dataclass(frozen=True)
class HeadSettings:
    """How a linear head is trained by gradient descent.

    Attributes:
      optimizer: sgd or adam.
      lr: for sgd at a batch of 256, scaled with the batch; for adam as it is.
      momentum: of sgd.
      epochs: passes over the training set.
      batch_size: samples an update.
      schedule: constant, or the cosine to zero, set for each epoch.
      relu_logits: a ReLU on the logits, as the authors' head over BigBiGAN has it.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    epochs: int = 90
    batch_size: int = 256
    schedule: Literal["cosine", "constant"] = "cosine"
    relu_logits: bool = False


# The usual linear evaluation of self-supervised features: SGD 0.1 at a batch of 256, momentum 0.9,
# no weight decay, 90 epochs, cosine (He et al. 2020, arXiv:1911.05722, with lightly's constants).
FIELD_HEAD: Final = HeadSettings()


class HeadTraining:
    """A linear head under training; its whole state can be saved after each epoch.

    Batches come from outside, so that their features may be cached, or computed from images that
    are cropped and flipped anew each time.

    Args:
      in_features: D.
      num_classes: K.
      settings: of the optimizer.
      seed: of the initial weights.
      device: where the head lives.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        settings: HeadSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.epoch = settings, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(in_features, num_classes)
        self.linear.to(device)
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.linear.parameters(), lr=self._lr(), momentum=settings.momentum
            )
        else:
            self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=self._lr())

    def run_epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Updates on each batch of features `[B, D]` and labels `[B]`; returns the mean loss.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        losses = []
        for x, y in batches:
            loss = F.cross_entropy(self.logits(x), y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        self.epoch += 1
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(f"The loss was {mean} in epoch {self.epoch}. Lower lr.")
        return mean

    def logits(self, x: Tensor) -> Tensor:
        """Returns the head's output for features `[B, D]`: `[B, K]`."""
        logits: Tensor = self.linear(x)
        return F.relu(logits) if self.settings.relu_logits else logits

    def probe(self, mean: npt.NDArray[Any], scale: npt.NDArray[Any]) -> LinearProbe:
        """Returns the head as it is now, over features that were standardized so."""
        weight, bias = (p.detach().cpu().numpy().astype(np.float64) for p in (
            self.linear.weight, self.linear.bias,
        ))  # fmt: skip
        return LinearProbe(weight, bias, mean, scale, self.settings.relu_logits)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "epoch": self.epoch,
            "linear": copy.deepcopy(self.linear.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.epoch = state["epoch"]
        self.linear.load_state_dict(state["linear"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _lr(self) -> float:
        s = self.settings
        lr = s.lr * s.batch_size / 256 if s.optimizer == "sgd" else s.lr
        if s.schedule == "cosine":
            lr *= (1 + math.cos(math.pi * self.epoch / s.epochs)) / 2
        return lr


def fit_head(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    *,
    settings: HeadSettings = FIELD_HEAD,
    seed: int = 0,
) -> Fitted:
    """Returns the head of the epoch with the lowest validation log-loss.

    Features are standardized with the training set's mean and deviation, so that one learning rate
    serves every backbone (VISSL puts a BatchNorm before the head for the same reason).

    Args:
      settings: of the optimizer; the default is the field's linear evaluation.
      seed: of initial weights and order.
    Raises:
      ValueError: for data that cannot be fitted. FloatingPointError: if the loss is not finite.
    """
    num_classes = _check(train, validation)
    mean, scale = _moments(train.x)
    x = torch.from_numpy(((train.x - mean) / scale).astype(np.float32))
    y = torch.from_numpy(train.y)
    head = HeadTraining(x.shape[1], num_classes, settings, seed=seed)
    order = torch.Generator().manual_seed(seed)
    best: tuple[float, LinearProbe, int] | None = None
    tried = []
    for epoch in range(1, settings.epochs + 1):
        shuffled = torch.randperm(len(x), generator=order).split(settings.batch_size)
        loss = head.run_epoch((x[rows], y[rows]) for rows in shuffled)
        probe = head.probe(mean, scale)
        found = log_loss(probe, validation)
        tried.append({"epoch": epoch, "loss": loss, "validation_log_loss": found})
        if best is None or found < best[0]:
            best = found, probe, epoch
    assert best is not None
    return Fitted(best[1], {"epoch": float(best[2])}, best[0], tried)


def _lowest_log_loss(
    candidates: Sequence[Candidate],
    validation: LabelledFeatures,
) -> Fitted:
    """The first of the best, with a row for each."""
    losses = [log_loss(probe, validation) for probe, _, _ in candidates]
    tried = [
        chosen | {"validation_log_loss": loss} | more
        for (_, chosen, more), loss in zip(candidates, losses, strict=True)
    ]
    best = int(np.argmin(losses))
    probe, chosen, _ = candidates[best]
    return Fitted(probe, chosen, losses[best], tried)


def _moments(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation `[D]`; 1 for a feature that never changes."""
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return mean, np.where(scale > 1e-8 * (1 + np.abs(mean)), scale, 1.0)


def _check(train: LabelledFeatures, validation: LabelledFeatures) -> int:
    """The number of classes; raises ValueError for parts that do not fit together."""
    for name, part in (("training", train), ("validation", validation)):
        if part.x.ndim != 2 or len(part.x) == 0 or part.y.shape != part.x.shape[:1]:
            raise ValueError(
                f"Expected {name} features [N, D] and labels [N] with N of 1 or more, got shapes "
                f"{part.x.shape} and {part.y.shape}."
            )
    num_classes = int(max(train.y.max(), validation.y.max())) + 1
    absent = sorted(set(range(max(2, num_classes))) - set(train.y.tolist()))
    if absent:
        raise ValueError(
            f"Expected every class among the training labels, got none of class {absent[0]}. Use "
            "more data or another split."
        )
    return num_classes


def _check_candidates(name: str, values: Sequence[float]) -> None:
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"Expected at least one {name}, each above 0, got {list(values)}.")
