"""scikit-learn's digits: 1,797 images of 8x8, inside its package, brought to MNIST's 28x28."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from rayssl.data.splits import ImageSplits, split_validation

TEST_SHARE = 0.2
SPLIT_SEED = 0  # a data set has one test split, whatever the seed of a run


def digits(data_dir: Path | None = None, verify: bool = True) -> ImageSplits:
    """Returns the digits as uint8 `[N, 1, 28, 28]`: pixels tripled, a border of 2, 0-16 -> 0-255.

    A small stand-in for MNIST that needs no download: 1,437 training and 360 test images of a
    fixed stratified split. It is not MNIST, and no result on it is one on MNIST.

    Args:
      data_dir, verify: not used; the images come with scikit-learn.
    """
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    images = np.pad(np.kron(images, np.ones((3, 3), np.uint8)), ((0, 0), (2, 2), (2, 2)))
    x = torch.from_numpy(images)[:, None]
    y = torch.from_numpy(found.target.astype(np.int64))
    train, test = split_validation(y, TEST_SHARE, seed=SPLIT_SEED)
    return ImageSplits("digits", x[train], y[train], x[test], y[test], num_classes=10)


LOADERS: dict[str, Callable[[Path | None, bool], ImageSplits]] = {"digits": digits}
