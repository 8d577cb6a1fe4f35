"""Training and test images of a data set, and a validation split taken from the training images."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor


class ImageSplits(NamedTuple):
    """Images and labels in memory.

    Attributes:
      name: of the data set.
      train_x: uint8 `[N, C, H, W]`, 0-255.
      train_y: int64 `[N]` in [0, num_classes).
      test_x: uint8 `[M, C, H, W]`.
      test_y: int64 `[M]`.
      num_classes: number of labels.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    def first(self, count: int | None) -> "ImageSplits":
        """Returns the first `count` training images and all test images; None: all of both.

        Raises:
          ValueError: if there are fewer.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.train_x):
            raise ValueError(
                f"{self.name} has {len(self.train_x):,} training images, got train_images {count}. "
                "Ask for at least 1 and at most all of them."
            )
        return self._replace(train_x=self.train_x[:count], train_y=self.train_y[:count])

    def normalization(self) -> tuple[float, float]:
        """Returns mean and standard deviation of the training pixels, scaled to [0, 1].

        For MNIST these are the 0.1307 and 0.3081 of the authors' code.
        """
        std, mean = torch.std_mean(self.train_x.float(), correction=0)
        return float(mean) / 255, float(std) / 255

    def fingerprint(self) -> str:
        """Returns a hash of all images and labels, in order."""
        digest = hashlib.blake2b(digest_size=8)
        for values in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(str(tuple(values.shape)).encode())
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()


def split_validation(labels: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of training and validation images, stratified by label.

    Args:
      labels: int64 `[N]`.
      share: of the images that go to validation, in (0, 1).
      seed: of the draw.
    Returns:
      int64 `[N - V]` and `[V]`, V = ceil(N * share); disjoint, together all of [0, N), sorted.
    Raises:
      ValueError: if a class has fewer than two images (scikit-learn's text).
    """
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=share, stratify=labels.numpy(), random_state=seed
    )
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(validation))


def fit_size(data: ImageSplits, size: int) -> ImageSplits:
    """Returns the data set with images of size x size pixels.

    A few pixels more are a black border (28 -> 32), everything else is resized (bilinear).

    Args:
      data: square images.
      size: side in pixels.
    """
    return data._replace(train_x=_resized(data.train_x, size), test_x=_resized(data.test_x, size))


def _resized(x: Tensor, size: int) -> Tensor:
    missing = size - x.shape[2]
    if missing == 0:
        return x
    if 0 < missing <= 4:
        return F.pad(x, [missing // 2, missing - missing // 2] * 2)
    # In parts: as float32 the whole set takes four times its memory.
    return torch.cat(
        [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
            .round().clamp(0, 255).byte()
            for part in x.split(1_000)
        ]
    )  # fmt: skip
