"""The training of a BiGAN or BigBiGAN, epoch by epoch, with its evaluations. No Ray.

    for metrics in make_training("bigan", load_dataset("digits"), epochs=10).epochs(): ...

Images stay uint8 in memory; batches are cut and scaled as whole tensors.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rayssl.bigan.evaluation import (
    image_grid,
    linear_probe_accuracy,
    nearest_neighbour_accuracy,
    reconstruction_error,
)
from rayssl.bigan.settings import AdversarialSettings
from rayssl.data import ImageSplits
from rayssl.schedules import constant_then_exponential
from rayssl.training import DRAWS_SEED, check_same_images, check_same_settings

EVAL_BATCH = 1_000  # images; outside of BN statistics, results do not depend on it
GRID = 10  # columns and rows of a grid of images


class Players(Protocol):
    """What a model brings: its networks, its update, and how it encodes and generates.

    Attributes:
      networks: all of them; their state is the checkpoint's.
      optimizers: made by `start`; each group's `lr` is its learning rate before any decay.
    """

    networks: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]

    def start(self) -> None:
        """Makes the optimizers, when the networks are where they stay."""

    def draw_z(self, count: int, draws: torch.Generator) -> Tensor:
        """Returns codes of the prior, float32 `[count, z_dim]`."""

    def update(self, x: Tensor, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Trains on the step-th batch of images in [0, 1]; returns scalars to average."""

    def batch_statistics(self, x: Tensor, draws: torch.Generator) -> None:
        """Runs what evaluation will run, in training mode, so that BN sees a batch."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the layer before the output, the code to compare, and the z to generate from."""

    def generate(self, z: Tensor) -> Tensor:
        """Returns images `[B, C, H, W]` in [0, 1]."""

    def evaluated(self) -> list[nn.Module]:
        """Returns the networks that `batch_statistics`, `encode` and `generate` run."""


class AdversarialTraining:
    """The training of one set of players; its whole state can be saved after each epoch.

    Global random state is left alone. Evaluations draw from generators of their own, so that how
    often they come has no effect on the training.

    Args:
      data: uint8 images of `settings.size` pixels a side.
      settings: checked before.
      players: built in a forked random state of the settings' seed: see `make_training`.
      device: where networks and images live.
    """

    def __init__(
        self, data: ImageSplits, settings: AdversarialSettings, players: Players, device: str
    ) -> None:
        self.settings, self.players = settings, players
        self.device = torch.device(device)
        self.epoch = 0
        self._train_x, self._test_x = data.train_x.to(self.device), data.test_x.to(self.device)
        self._train_y, self._test_y = data.train_y.to(self.device), data.test_y.to(self.device)
        self._images = data.fingerprint()
        self._has_labels = data.num_classes > 1
        players.networks.to(self.device)
        players.start()
        self._base_lr = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in players.optimizers.items()
        }
        self._order = torch.Generator().manual_seed(settings.seed)
        self._draws = torch.Generator(self.device).manual_seed(settings.seed + DRAWS_SEED)

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""
        return self.epoch >= self.settings.epochs

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yields `run_epoch`'s metrics until the last epoch has run."""
        while not self.done:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, Any]:
        """Trains for one epoch and returns its metrics, with those of `evaluate` where it is due.

        Returns:
          epoch (from 1); lr; means over the epoch's updates of what the players' `update` returns;
          seconds: of the updates alone; images_per_s.
        Raises:
          FloatingPointError: if a loss is not finite.
        """
        if self.done:
            raise ValueError(f"All {self.settings.epochs} epochs have run. Start a new training.")
        metrics = self._train()
        self.epoch += 1
        metrics["epoch"] = self.epoch
        if self.epoch == 1 or self.epoch % self.settings.eval_every == 0 or self.done:
            metrics |= self.evaluate()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "images": self._images,
            "epoch": self.epoch,
            "networks": self.players.networks.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.players.optimizers.items()},
            "order": self._order.get_state(),
            "draws": self._draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a training with the same settings.
          may_differ: settings that act from update to update and so may be others: `lr`.
        Raises:
          ValueError: if the state is of a training with other settings or images.
        """
        check_same_settings(state["settings"], dataclasses.asdict(self.settings), may_differ)
        check_same_images(state, self._images)
        self.epoch = state["epoch"]
        self.players.networks.load_state_dict(state["networks"])
        for name, optimizer in self.players.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._order.set_state(state["order"].cpu())
        self._draws.set_state(state["draws"].cpu())

    def _train(self) -> dict[str, Any]:
        """One pass over the training images, in a new order."""
        start = time.perf_counter()
        factor = self._set_lr()
        self.players.networks.train()
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        first = self.epoch * math.ceil(len(self._train_x) / self.settings.batch_size)
        for step, x in enumerate(self._batches(self._order), first):
            for key, value in self.players.update(x, step, self._draws).items():
                sums[key] = sums[key] + value.double() if key in sums else value.double()
                counts[key] = counts.get(key, 0) + 1
        means = {key: float(value) / counts[key] for key, value in sums.items()}
        for key, mean in means.items():
            if not math.isfinite(mean):
                raise FloatingPointError(f"{key} was {mean} in epoch {self.epoch + 1}. Lower lr.")
        seconds = time.perf_counter() - start
        return means | {
            "lr": self.settings.lr * factor,
            "seconds": seconds,
            "images_per_s": len(self._train_x) / seconds,
        }

    def _set_lr(self) -> float:
        """Sets every learning rate for this epoch; returns the factor to its first value."""
        decay = self.settings.decay_epochs
        factor = constant_then_exponential(
            self.epoch, constant=self.settings.epochs - decay, decay=decay
        )
        for name, optimizer in self.players.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self._base_lr[name], strict=True):
                group["lr"] = lr * factor
        return factor

    def _batches(self, order: torch.Generator) -> Iterator[Tensor]:
        """All training images in a new order, in batches of one size, scaled to [0, 1].

        The last batch is filled up from the first.
        """
        size = self.settings.batch_size
        rows = torch.randperm(len(self._train_x), generator=order)
        rows = torch.cat([rows, rows[: -len(rows) % size]]).to(self.device)
        return (scaled(self._train_x[part]) for part in rows.split(size))

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Returns the figures of encoder and generator, with BN statistics of many batches.

        Returns:
          with labels: nn_features, nn_code: accuracy on the test set of the nearest of all training
          images (euclidean), in the layer before the encoder's output and in its output;
          probe_features, probe_code: that of a linear classifier fitted to all training images;
          recon_l2: mean over the test images of |x - G(E(x))|, pixels in [0, 1];
          recon_l2_baseline: the same between G(E(x)) and another test image;
          images: `samples`, and `reconstructions` (rows of test images, each above its own), uint8
          `[H, W, C]`; eval_seconds.
        """
        start = time.perf_counter()
        self._average_statistics()
        for network in self.players.evaluated():
            network.eval()
        draws = self._own_generator(self.device)
        train_features, train_code, _ = self._encode(self._train_x)
        test_features, test_code, test_z = self._encode(self._test_x)
        metrics: dict[str, Any] = {}
        if self._has_labels:
            for name, train, test in (
                ("features", train_features, test_features),
                ("code", train_code, test_code),
            ):
                known = train, self._train_y, test, self._test_y
                metrics[f"nn_{name}"] = nearest_neighbour_accuracy(*known)
                metrics[f"probe_{name}"] = linear_probe_accuracy(*known)
        rebuilt = torch.cat([as_uint8(self.players.generate(z)) for z in test_z.split(EVAL_BATCH)])
        partners = torch.randperm(len(rebuilt), generator=self._own_generator("cpu"))
        error, baseline = reconstruction_error(self._test_x, rebuilt, partners.to(self.device))
        metrics |= {"recon_l2": error, "recon_l2_baseline": baseline}
        samples = as_uint8(self.players.generate(self.players.draw_z(GRID * GRID, draws)))
        # Rows of the data set's order would be of one class where a folder's images are sorted.
        shown = torch.linspace(0, len(rebuilt) - 1, GRID * GRID // 2).long().to(self.device)
        rows = zip(self._test_x[shown].split(GRID), rebuilt[shown].split(GRID), strict=True)
        metrics["images"] = {
            "samples": image_grid(samples, GRID),
            "reconstructions": image_grid(torch.cat([r for pair in rows for r in pair]), GRID),
        }
        return metrics | {"eval_seconds": time.perf_counter() - start}

    def _average_statistics(self) -> None:
        """Gives every BN of the evaluated networks the mean statistics of many batches."""
        for network in self.players.evaluated():
            network.train()
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_running_stats()
        order, draws = self._own_generator("cpu"), self._own_generator(self.device)
        left = self.settings.statistics_batches
        while left:
            for x in self._batches(order):
                self.players.batch_statistics(x, draws)
                left -= 1
                if not left:
                    break

    def _own_generator(self, device: torch.device | str) -> torch.Generator:
        """A generator of this seed alone: evaluations of all epochs draw the same."""
        return torch.Generator(device).manual_seed(self.settings.seed)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, codes and z of uint8 images."""
        parts = [self.players.encode(scaled(part)) for part in x.split(EVAL_BATCH)]
        features, code, z = (torch.cat(column) for column in zip(*parts, strict=True))
        return features, code, z


def scaled(x: Tensor) -> Tensor:
    """Returns uint8 pixels as float32 in [0, 1]."""
    return x.float() / 255


def as_uint8(x: Tensor) -> Tensor:
    """Returns pixels in [0, 1] as uint8, rounded."""
    return (x * 255).round().clamp(0, 255).byte()
