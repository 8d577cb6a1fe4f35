"""What all adversarial trainings have to be told."""

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AdversarialSettings:
    """Settings of every model; each model has its own defaults.

    Attributes:
      epochs: passes over the training images.
      batch_size: images, and drawn z, of an update.
      lr: Adam's learning rate.
      beta1: Adam's decay of the first moment; that of the second is 0.999.
      decay_share: share of the epochs, at their end, in which the learning rate falls
        exponentially to 1%; 0 keeps it constant.
      z_dim: numbers in a code z.
      size: side of an image in pixels.
      eval_every: epochs from one evaluation to the next; the first and the last are evaluated too.
      statistics_batches: batches whose BN statistics are averaged before an evaluation.
      seed: of initial weights, order of images and draws.
    """

    epochs: int
    batch_size: int
    lr: float
    beta1: float
    decay_share: float
    z_dim: int
    size: int
    eval_every: int = 25  # Donahue's --disp_interval
    statistics_batches: int = 1_000  # Donahue's --deploy_iters
    seed: int = 0

    @property
    def decay_epochs(self) -> int:
        """Epochs in which the learning rate falls."""
        return round(self.decay_share * self.epochs)

    def check(self) -> None:
        """Raises ValueError for a value that no training can have."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = _wanted(field.name, value)
            if wanted is not None:
                raise ValueError(f"{field.name} must be {wanted}, got {value}.")


def _wanted(name: str, value: float) -> str | None:
    """What a setting must be, or None if its value is that."""
    if name in ("beta1", "ema"):
        return None if 0 <= value < 1 else "in [0, 1)"
    if name == "decay_share":
        return None if 0 <= value <= 1 else "in [0, 1]"
    if name in ("weight_decay", "seed"):
        return None if math.isfinite(value) and value >= 0 else "0 or more"
    if name == "batch_size":
        return None if value >= 2 else "2 or more"  # one image has no variance
    if isinstance(value, int):
        return None if value >= 1 else "1 or more"
    return None if math.isfinite(value) and value > 0 else "a finite number above 0"
