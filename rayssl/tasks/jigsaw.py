"""Image-based self-supervision: how were the nine tiles of an image shuffled?

What differs from the source: there nine networks with shared weights see one tile each; here one
backbone sees the shuffled image whole, so that the same f serves the main job. The source crops
each tile at random (64 of 75 pixels) so that edges cannot be matched; here tiles are whole, and
matching edges is part of the task. The permutations are chosen by their least Hamming distance
first (there by the sum, which for 30 leaves pairs that differ in two tiles alone; in Pong these two
are often equal). 30 permutations, not the source's 64 to 1,000: nine tiles of an
Atari frame say less than those of a photograph.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayssl.tasks import PretextTask, draw_per_sample

SIDE = 3  # tiles a side
NUM_PERMUTATIONS = 30  # as Carlucci et al. 2019, arXiv:1903.06864, section 3
Order = tuple[int, ...]


@dataclass(frozen=True)
class Jigsaw:
    """Shuffles the 3x3 tiles of each image; the label is the index of the permutation.

    Place j of x_hat_i shows tile permutations[y_i][j] of x_i; places and tiles count row by row
    from the top left. All channels of a sample shuffle together. A tile has H // 3 x W // 3 pixels
    (28x28 of 84x84; 9x9 of 28x28); what is left over at the bottom and the right, less than 3
    pixels, becomes 0 in every x_hat: left in place it would tell which tile belongs beside it.

    Attributes:
      name: the name on the command line.
      permutations: of range(9), all different; the first is the identity.

    Source: Noroozi & Favaro 2016, arXiv:1603.09246, section 3 and algorithm 1.
    """

    name: str
    permutations: tuple[Order, ...]

    @property
    def num_classes(self) -> int:
        """The number of permutations."""
        return len(self.permutations)

    def __call__(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the shuffled images and the index of each permutation.

        Args:
          x: `[B, C, H, W]`, any dtype; H and W at least 3. Not modified.
          generator: source of all randomness; its device must be x's.
        Returns:
          x_hat, same shape and dtype as x; y_hat, int64 `[B]` in [0, num_classes).
        Raises:
          ValueError: if x is not 4-D or too small, or the generator is on another device.
        """
        _check_size(x)
        labels = draw_per_sample(x, self.num_classes, generator=generator)
        return shuffle(x, _table(self.permutations, x.device)[labels]), labels

    def every_class(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each image under every permutation: `[K * B, C, H, W]`, and their labels."""
        _check_size(x)
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(len(x))
        orders = _table(self.permutations, x.device)[labels]
        return shuffle(x.repeat(self.num_classes, 1, 1, 1), orders), labels

    def usable(self, x: Tensor) -> Tensor:
        """Returns which samples tell their permutation: bool `[B]`.

        False where two permutations give the same x_hat, because tiles are equal.

        Args:
          x: `[B, C, H, W]`, any dtype; H and W at least 3.
        Raises:
          ValueError: if x is not 4-D or too small.
        """
        _check_size(x)
        tiles = to_tiles(x).flatten(2)  # [B, 9, n]
        same = torch.stack(
            [(tiles == tiles.roll(-lag, 1)).all(2) for lag in range(1, SIDE**2 // 2 + 1)], 1
        )  # [B, 4, 9]: tile i and tile i + lag; all 36 pairs
        first, second = _pairs(self.permutations, x.device)  # tiles in one place: [pairs, 9] each
        ahead = (second - first) % SIDE**2
        lag = torch.minimum(ahead, SIDE**2 - ahead)
        start = torch.where(ahead == lag, first, second)
        alike = same[:, (lag - 1).clamp(min=0), start] | (lag == 0)  # [B, pairs, 9]
        return ~alike.all(2).any(1)


def shuffle(x: Tensor, orders: Tensor) -> Tensor:
    """Returns x with tile orders[i, j] in place j of sample i, a copy; what is left over is 0.

    Args:
      x: `[B, C, H, W]`, any dtype.
      orders: int64 `[B, 9]`, on x's device.
    """
    batch, channels, height, width = x.shape
    tiles = to_tiles(x)  # [B, 9, C, h, w]
    shuffled = tiles[torch.arange(batch, device=x.device)[:, None], orders]
    h, w = tiles.shape[3:]
    image = shuffled.view(batch, SIDE, SIDE, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    out = torch.zeros_like(x)
    out[:, :, : SIDE * h, : SIDE * w] = image.reshape(batch, channels, SIDE * h, SIDE * w)
    return out


def to_tiles(x: Tensor) -> Tensor:
    """Returns the nine tiles of each image, row by row: `[B, 9, C, H // 3, W // 3]`."""
    batch, channels = x.shape[:2]
    h, w = x.shape[2] // SIDE, x.shape[3] // SIDE
    grid = x[:, :, : SIDE * h, : SIDE * w].reshape(batch, channels, SIDE, h, SIDE, w)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, SIDE**2, channels, h, w)


@functools.cache  # about a second
def distant_permutations(tiles: int, count: int) -> tuple[Order, ...]:
    """Returns `count` permutations of range(tiles) that are far apart, the identity first.

    Greedy: next comes the permutation whose least Hamming distance to those chosen so far is
    largest; of equal ones that with the largest sum, then the first in lexicographic order.

    Source: Noroozi & Favaro 2016, algorithm 1, which starts from a random one and goes by the sum.
    """
    every = np.array(list(itertools.permutations(range(tiles))), np.uint8)  # [tiles!, tiles]
    least, total = np.full(len(every), tiles, np.int64), np.zeros(len(every), np.int64)
    chosen = [0]
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1)  # 0 for itself: never chosen again
        least, total = np.minimum(least, distance), total + distance
        chosen.append(int((least * (tiles * count) + total).argmax()))
    return tuple(tuple(order) for order in every[chosen].tolist())


def jigsaw() -> Jigsaw:
    """Returns the task with 30 permutations."""
    return Jigsaw("jigsaw", distant_permutations(SIDE**2, NUM_PERMUTATIONS))


@functools.cache  # a copy to the GPU on each call would wait for all work queued there
def _table(permutations: tuple[Order, ...], device: torch.device) -> Tensor:
    return torch.tensor(permutations, device=device)


@functools.cache
def _pairs(permutations: tuple[Order, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Each pair of permutations once."""
    pairs = torch.tensor(list(itertools.combinations(permutations, 2)), device=device)
    return pairs[:, 0], pairs[:, 1]


def _check_size(x: Tensor) -> None:
    if x.dim() != 4 or min(x.shape[2:]) < SIDE:
        raise ValueError(
            f"Jigsaw needs images [B, C, H, W] of 3x3 pixels or more, got shape {tuple(x.shape)}. "
            "Add a batch dimension, or resize them."
        )


TASKS: dict[str, Callable[[], PretextTask]] = {"jigsaw": jigsaw}
