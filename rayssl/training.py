"""Supervised training with a pretext head, epoch by epoch: eqs. (1)-(3). No Ray.

    for metrics in ClassifierTraining(data, settings).epochs(): ...

Images stay uint8 in memory; batches are cut, transformed and normalized as whole tensors.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rayssl.data.splits import ImageSplits, split_validation
from rayssl.losses import combined_loss, mean_of_usable, pretext_loss
from rayssl.metrics import per_class_accuracy
from rayssl.networks import MultiHeadNetwork, make_mnist_network
from rayssl.tasks import (
    Encoder,
    PretextTask,
    Sequences,
    SequenceTask,
    make_image_task,
)

EVAL_BATCH = 1_000  # images; the test set's order never changes, so it has no effect on results
DRAWS_SEED = 2**31  # added to a run's seed; see ClassifierTraining
ClassOn = Literal["upright", "copies"]
AuxCopies = Literal["one", "all"]
Selection = Literal["best-test", "last", "best-validation"]
ComputeDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained and which epoch counts.

    Attributes:
      class_on: the images of the class loss: the upright ones (eq. 1), or the transformed copies,
        each with the label of its original (the authors' code: a rotated six is a six).
      aux_copies: the pretext loss sees one drawn transform of each image, or each image under
        every label.
      mean_of_losses: halve L_s + aux_weight * L_ss, as the authors' code does.
      relu_after_conv2: as Table V has it.
      selection: the epoch that is reported: the best on the test set (section VI-A: "the maximum
        test accuracy"), the last, or the best on a validation split, test read once.
      validation_share: of the training images, kept out of training; only for best-validation.
    """

    class_on: ClassOn
    aux_copies: AuxCopies
    mean_of_losses: bool
    relu_after_conv2: bool
    selection: Selection
    validation_share: float = 0.0


PROTOCOLS: Final[dict[str, Protocol]] = {
    # The text: eqs. (1)-(3), Table V, "maximum test accuracy" (section VI-A).
    "paper": Protocol("upright", "one", False, True, "best-test"),
    # The authors' code, classification/mnist (github prabhat1081/self-supervision-cs221).
    "paper-code": Protocol("copies", "all", True, False, "last"),
    # What the field would ask for today: the test set chooses nothing.
    "strict": Protocol("upright", "one", False, True, "best-validation", 1 / 12),
}


@dataclass(frozen=True)
class ClassifierSettings:
    """One training. Where the paper is silent the values are those of the authors' code.

    Attributes:
      protocol: a name of PROTOCOLS.
      aux_task: a pretext task, or "none".
      aux_weight: lambda of eq. (3); the paper's is 1.
      aux_copies: overrides the protocol's: "one" or "all".
      epochs: passes over the training images.
      train_images: use the first so many training images only; None: all. The test set stays whole.
      batch_size: images an update; transformed copies come on top.
      lr: of Adadelta (rho 0.9, epsilon 1e-6: PyTorch's defaults).
      lr_decay: factor after each epoch.
      compute_dtype: of convolutions and dense layers; weights and last layers stay float32.
      seed: of initial weights, order of images, dropout, pretext draws and validation split.
    """

    protocol: str = "paper"
    aux_task: str = "rotation"
    aux_weight: float = 1.0
    aux_copies: AuxCopies | None = None
    epochs: int = 14
    train_images: int | None = None
    batch_size: int = 64
    lr: float = 1.0
    lr_decay: float = 0.7
    compute_dtype: ComputeDtype = "float32"
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for a value that no training can have."""
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"Unknown protocol {self.protocol!r}. Available: {', '.join(PROTOCOLS)}."
            )
        if self.aux_task != "none":
            self._check_task(self.aux_task)
        closed = {
            "aux_copies": (None, *get_args(AuxCopies)),
            "compute_dtype": get_args(ComputeDtype),
        }
        for name, choices in closed.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}, got "
                    f"{getattr(self, name)!r}."
                )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        for name in ("lr", "lr_decay", "aux_weight"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "aux_weight"):
                least = "0 or more" if name == "aux_weight" else "above 0"
                raise ValueError(f"{name} must be a finite number {least}, got {value}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError if the task cannot take these images, uint8 `[B, C, H, W]`."""
        if self.aux_task != "none":
            task = make_image_task(self.aux_task)
            if isinstance(task, PretextTask):
                task.every_class(images)

    def check_data(self, data: ImageSplits) -> None:
        """Raises ValueError for images that no training with these settings can have."""
        data = data.first(self.train_images)
        self.check_images(data.train_x[:1])
        if (data.train_x == data.train_x[0, 0, 0, 0]).all():
            raise ValueError(
                f"Expected images, got {len(data.train_x):,} with every pixel "
                f"{int(data.train_x[0, 0, 0, 0])}. Check the data set's files."
            )
        protocol = self.resolved_protocol()
        if protocol.selection == "best-validation":
            try:
                split_validation(data.train_y, protocol.validation_share, seed=self.seed)
            except ValueError as error:
                raise ValueError(
                    f"Protocol {self.protocol} keeps {protocol.validation_share:.1%} of the "
                    f"training images, some of each class, for validation: {len(data.train_y)} "
                    f"are too few ({error}). Use more images or another protocol."
                ) from error

    def _check_task(self, name: str) -> None:
        if isinstance(make_image_task(name), PretextTask):
            return
        protocol = self.resolved_protocol()
        if (protocol.class_on, protocol.aux_copies) != ("upright", "one"):
            raise ValueError(
                f"Task {name!r} has no labelled copies of an image, which protocol "
                f"{self.protocol} with aux_copies {protocol.aux_copies} trains on. Use protocol "
                "paper or strict, and aux_copies one."
            )
        if self.batch_size < 2:
            raise ValueError(
                f"Task {name!r} compares the images of a batch: use batch_size 2 or more, got "
                f"{self.batch_size}."
            )

    def resolved_protocol(self) -> Protocol:
        """Returns the protocol with this training's own choices in it."""
        protocol = PROTOCOLS[self.protocol]
        if self.aux_copies is None:
            return protocol
        return dataclasses.replace(protocol, aux_copies=self.aux_copies)


class ClassifierTraining:
    """The training of one classifier; its whole state can be saved after each epoch.

    Global random state is left alone: dropout draws from a state of this object's own.

    Args:
      data: uint8 images of 28x28.
      settings: checked here.
      device: where network and images live.
    Raises:
      ValueError: for settings that cannot work, or a task that does not take single images.
    """

    def __init__(
        self, data: ImageSplits, settings: ClassifierSettings, device: str = "cpu"
    ) -> None:
        settings.check()
        data = data.first(settings.train_images)
        self.settings, self.protocol = settings, settings.resolved_protocol()
        self.device = torch.device(device)
        self.num_classes = data.num_classes
        self._images = data.fingerprint()
        self.epoch = 0
        # With weight 0 there is no second loss, and the training is the plain one, bit for bit.
        self.task: PretextTask | None = None
        self.own_task: SequenceTask | None = None  # one with a head and a loss of its own
        if settings.aux_task != "none" and settings.aux_weight > 0:
            settings.check_images(data.train_x[:1])  # a clear error at once, not in an epoch
            task = make_image_task(settings.aux_task)
            if isinstance(task, PretextTask):
                self.task = task
            else:
                self.own_task = task
        self._split(data)
        mean, std = data.normalization()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = make_mnist_network(
                num_classes=data.num_classes, mean=mean, std=std,
                aux_classes=self.task.num_classes if self.task else 0, aux_task=self.own_task,
                relu_after_conv2=self.protocol.relu_after_conv2,
            )  # fmt: skip
            self._dropout_state = torch.get_rng_state()
        self.network: MultiHeadNetwork = network.to(
            self.device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        self.follower: MultiHeadNetwork | None = None
        if self.own_task and self.own_task.target_rate is not None:
            self.follower = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adadelta(self.network.parameters(), lr=settings.lr)
        self._order = torch.Generator().manual_seed(settings.seed)
        # Not the order's seed: both would draw the same numbers, and in the first epoch an image's
        # rotation would follow from its place in the data set.
        self._draws = torch.Generator(self.device).manual_seed(settings.seed + DRAWS_SEED)
        self._best_score = -1.0
        self._best_state: dict[str, Tensor] | None = None
        self.selected_epoch = 0

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""
        return self.epoch >= self.settings.epochs

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yields `run_epoch`'s metrics until the last epoch has run."""
        while not self.done:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, Any]:
        """Trains for one epoch and returns its metrics.

        Returns:
          epoch (from 1); lr; loss, class_loss, aux_loss: means over the epoch's updates;
          aux_train_accuracy; seconds: of the updates alone; images_per_s: originals;
          test_accuracy, test_confusion (rows: labels, columns: predictions), aux_accuracy and
          aux_accuracy_per_class of the test set, every image under every pretext label; of a task
          without labels, in whole batches of batch_size, beside the slow copy of the last epoch.
          With selection "best-validation": validation_accuracy in each epoch, and the test set's
          figures only in the last one, from the weights of the best epoch. Accuracies in [0, 1];
          keys without a value are absent. selected_epoch: the epoch that would be reported now.
        Raises:
          FloatingPointError: if the loss is not finite.
        """
        if self.done:
            raise ValueError(f"All {self.settings.epochs} epochs have run. Start a new training.")
        metrics = self._train()
        self.epoch += 1
        metrics["epoch"] = self.epoch
        if self.protocol.selection == "best-validation":
            metrics |= self._validate()
        else:
            metrics |= self._test()
            found = metrics["test_accuracy"]
            if self.protocol.selection == "last" or found > self._best_score:
                self._best_score, self.selected_epoch = found, self.epoch
        return metrics | {"selected_epoch": self.selected_epoch}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "images": self._images,
            "epoch": self.epoch,
            "selected_epoch": self.selected_epoch,
            "best_score": self._best_score,
            "best_state": self._best_state,
            "network": self.network.state_dict(),
            "follower": self.follower.state_dict() if self.follower else None,
            "optimizer": self.optimizer.state_dict(),
            "dropout": self._dropout_state,
            "order": self._order.get_state(),
            "draws": self._draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a training with the same settings.
          may_differ: settings that act from update to update and so may be others than the
            state's: `lr`, `aux_weight`.
        Raises:
          ValueError: if the state is of a training with other settings or images.
        """
        check_same_settings(state["settings"], dataclasses.asdict(self.settings), may_differ)
        check_same_images(state, self._images)
        self.epoch, self.selected_epoch = state["epoch"], state["selected_epoch"]
        self._best_score, self._best_state = state["best_score"], state["best_state"]
        self.network.load_state_dict(state["network"])
        if self.follower:
            self.follower.load_state_dict(state["follower"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._dropout_state = state["dropout"].cpu()
        self._order.set_state(state["order"].cpu())
        self._draws.set_state(state["draws"].cpu())

    def _split(self, data: ImageSplits) -> None:
        train_x, train_y = data.train_x, data.train_y
        self._validation: tuple[Tensor, Tensor] | None = None
        if self.protocol.selection == "best-validation":
            train, held_out = split_validation(
                train_y, self.protocol.validation_share, seed=self.settings.seed
            )
            self._validation = self._place(train_x[held_out], train_y[held_out])
            train_x, train_y = train_x[train], train_y[train]
        self._train_set = self._place(train_x, train_y)
        self._test_set = self._place(data.test_x, data.test_y)

    def _place(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.to(self.device), y.to(self.device)

    def _train(self) -> dict[str, Any]:
        """One pass over the training images, in a new order."""
        start = time.perf_counter()
        x, y = self._train_set
        lr = self.settings.lr * self.settings.lr_decay**self.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        order = torch.randperm(len(x), generator=self._order).to(self.device)
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.network.train()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._set_dropout_state()
            for rows in order.split(self.settings.batch_size):
                sums += self._update(x[rows], y[rows])
            self._get_dropout_state()
        updates = math.ceil(len(x) / self.settings.batch_size)
        loss, class_loss, aux_loss, aux_accuracy = (sums / updates).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss was {loss} in epoch {self.epoch + 1}. Lower lr or aux_weight."
            )
        seconds = time.perf_counter() - start
        metrics = {"lr": lr, "loss": loss, "class_loss": class_loss, "seconds": seconds,
                   "images_per_s": len(x) / seconds}  # fmt: skip
        if self.task or self.own_task:
            metrics |= {"aux_loss": aux_loss, "aux_train_accuracy": aux_accuracy}
        return metrics

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        """One update; returns loss, class loss, aux loss and aux accuracy: float64 [4]."""
        loss, parts = self.loss(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.follower:
            assert self.own_task is not None
            assert self.own_task.target_rate is not None
            with torch.no_grad():
                torch._foreach_lerp_(
                    [*self.follower.parameters()], [*self.network.parameters()],
                    self.own_task.target_rate,
                )  # fmt: skip
        return torch.stack([loss.detach(), *parts]).double()

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Returns the loss of a batch, and L_s, L_ss and the pretext accuracy without gradients.

        L = L_s + aux_weight * L_ss (eq. 3), halved where the protocol takes the mean.

        Args:
          x: uint8 `[B, 1, 28, 28]`.
          y: int64 `[B]`.
        """
        if self.own_task:
            class_loss = F.cross_entropy(self._logits(x, ("class",), len(x))[0], y)
            losses, correct, usable = self._own_loss(self.own_task, x, self._draws)
            aux_loss, hits = mean_of_usable(losses, usable), mean_of_usable(correct, usable)
            loss = combined_loss(class_loss, aux_loss, self.settings.aux_weight)
            return loss, (class_loss.detach(), aux_loss.detach(), hits.detach())
        if self.task is None:
            loss = F.cross_entropy(self._logits(x, ("class",), len(x))[0], y)
            zero = torch.zeros((), device=loss.device)
            return loss, (loss.detach(), zero, zero)
        usable = self.task.usable(x)
        if self.protocol.aux_copies == "all":
            x_hat, y_hat = self.task.every_class(x)
            usable, copies = usable.repeat(self.task.num_classes), self.task.num_classes
        else:
            (x_hat, y_hat), copies = self.task(x, generator=self._draws), 1
        if self.protocol.class_on == "copies":
            class_logits, aux_logits = self._logits(x_hat, ("class", "aux"), 0)
            class_loss = F.cross_entropy(class_logits, y.repeat(copies))
        else:  # one pass through the backbone for both
            class_logits, aux_logits = self._logits(torch.cat([x, x_hat]), ("class", "aux"), len(x))
            class_loss = F.cross_entropy(class_logits, y)
        aux_loss = pretext_loss(aux_logits, y_hat, usable)
        loss = combined_loss(class_loss, aux_loss, self.settings.aux_weight)
        hits = ((aux_logits.argmax(1) == y_hat) & usable).sum() / usable.sum().clamp(min=1)
        if self.protocol.mean_of_losses:
            loss = loss / 2
        return loss, (class_loss.detach(), aux_loss.detach(), hits.detach())

    def _own_loss(
        self, task: SequenceTask, x: Tensor, draws: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and success of each image in a task with a head of its own, and which count."""
        if len(x) < 2:  # the last batch of an epoch: nothing to compare with
            zero = torch.zeros(len(x), device=x.device)
            return zero, zero, zero.bool()
        data = Sequences.without_steps(x)
        drawn, usable = task.draw(data, generator=draws), task.usable(data)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.compute_dtype == "bfloat16"
        ):
            target = None if self.follower is None else _encoder(self.follower)
            found = task.loss(_encoder(self.network), target, drawn)
        return found.loss, found.correct, usable

    def _logits(self, x: Tensor, heads: tuple[str, ...], upright: int) -> list[Tensor]:
        """Each head's logits: of the first `upright` images and of the rest; of all, if 0."""
        features = self._features(x)
        if len(heads) == 1 or not upright:
            return [self.network.heads[head](features) for head in heads]
        parts = (features[:upright], features[upright:])
        return [self.network.heads[h](part) for h, part in zip(heads, parts, strict=True)]

    def _features(self, x: Tensor) -> Tensor:
        enabled = self.settings.compute_dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            features: Tensor = self.network.backbone(x)
        return features.float()

    def _validate(self) -> dict[str, Any]:
        """Validation accuracy; in the last epoch the test set's figures from the best weights."""
        assert self._validation is not None
        x, y = self._validation
        found = float((self._predict(x, "class") == y).double().mean())
        if found > self._best_score:
            self._best_score, self.selected_epoch = found, self.epoch
            self._best_state = copy.deepcopy(self.network.state_dict())
        metrics: dict[str, Any] = {"validation_accuracy": found}
        if self.done:
            last = copy.deepcopy(self.network.state_dict())
            assert self._best_state is not None
            self.network.load_state_dict(self._best_state)
            metrics |= self._test()
            self.network.load_state_dict(last)
        return metrics

    def _test(self) -> dict[str, Any]:
        """Accuracy and confusion on upright test images; pretext accuracy, in all and per class."""
        x, y = self._test_set
        predicted = self._predict(x, "class")
        counts = torch.bincount(y * self.num_classes + predicted, minlength=self.num_classes**2)
        confusion = counts.view(self.num_classes, self.num_classes)
        metrics: dict[str, Any] = {
            "test_accuracy": int(confusion.trace()) / len(y),
            "test_confusion": confusion.tolist(),
        }
        if self.own_task:
            metrics |= self._test_own(self.own_task)
        if self.task:
            task = self.task
            size = max(1, EVAL_BATCH // task.num_classes)  # 30 copies of 1,000 images are 8 GB
            told = self._predict(x, "aux", lambda part: task.every_class(part)[0], size)
            labels = torch.cat([task.every_class(part)[1] for part in x.split(size)])
            classes = torch.cat([part.repeat(task.num_classes) for part in y.split(size)])
            hits = told == labels
            per_class = per_class_accuracy(
                torch.where(hits, classes, -1), classes, self.num_classes
            )
            metrics["aux_accuracy"] = float(hits.double().mean())
            metrics["aux_accuracy_per_class"] = per_class.tolist()
        return metrics

    @torch.no_grad()
    def _test_own(self, task: SequenceTask) -> dict[str, Any]:
        """Success of a task with a head of its own on whole batches of test images."""
        self.network.eval()
        x, y = self._test_set
        size = self.settings.batch_size
        whole = max(size, len(x) // size * size)  # a smaller batch would be an easier task
        draws = torch.Generator(self.device).manual_seed(self.settings.seed + DRAWS_SEED)
        parts = [self._own_loss(task, part, draws)[1:] for part in x[:whole].split(size)]
        correct, usable = (torch.cat(each) for each in zip(*parts, strict=True))
        labels, hits = y[:whole][usable], correct[usable].bool()
        found = torch.where(hits, labels, -1)
        return {
            "aux_accuracy": float(hits.double().mean()),
            "aux_accuracy_per_class": per_class_accuracy(found, labels, self.num_classes).tolist(),
        }

    @torch.no_grad()
    def _predict(
        self,
        x: Tensor,
        head: str,
        transform: Callable[[Tensor], Tensor] | None = None,
        size: int = EVAL_BATCH,
    ) -> Tensor:
        """The index of the largest logit for each image, after a transform of each batch."""
        self.network.eval()
        parts = (transform(part) if transform else part for part in x.split(size))
        return torch.cat([self._logits(part, (head,), 0)[0].argmax(1) for part in parts])

    def _set_dropout_state(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.manual_seed(self.settings.seed + self.epoch)
        else:
            torch.set_rng_state(self._dropout_state)

    def _get_dropout_state(self) -> None:
        if self.device.type != "cuda":
            self._dropout_state = torch.get_rng_state()


def _encoder(network: MultiHeadNetwork) -> Encoder:
    return network.encoder(dict(network.named_parameters()), "aux")


def check_same_settings(
    saved: dict[str, Any], own: dict[str, Any], may_differ: Sequence[str] = ()
) -> None:
    """Raises ValueError if settings of a saved state are not a training's own, but `may_differ`."""
    for name, value in own.items():
        if name not in may_differ and saved.get(name) != value:
            raise ValueError(
                f"Expected the state of a training with {name} {value}, got {saved.get(name)}. "
                "Resume with the settings that it was made with."
            )


def check_same_images(state: dict[str, Any], own: str) -> None:
    """Raises ValueError if a state names other images than these; older states name none."""
    if state.get("images", own) != own:
        raise ValueError(
            f"Expected the state of a training on the images {own}, got {state['images']}: those "
            "of the data set are others now. Restore them, or start a new training."
        )
