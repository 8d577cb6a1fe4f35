"""What an encoder and a generator are worth: neighbours, linear probe, reconstruction, pictures."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

DISTANCES = 30_000_000  # at once: 120 MB


def nearest_neighbour_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> float:
    """Returns the share of test rows whose nearest training row (euclidean) has their label.

    |a - b|^2 = |a|^2 - 2 a b + |b|^2 by matrix products, a part of the test rows at a time. Of
    rows at the same distance the first counts.

    Args:
      train_x: float32 `[N, F]`.
      train_y: int64 `[N]`.
      test_x: float32 `[M, F]`.
      test_y: int64 `[M]`.
    """
    # Around the mean: far from the origin the difference of large squares would lose its digits.
    mean = train_x.mean(0)
    train_x, test_x = train_x - mean, test_x - mean
    squares = train_x.square().sum(1)  # [N]; |a|^2 is the same for all of a test row's distances
    nearest = [
        torch.addmm(squares, part, train_x.T, alpha=-2).argmin(1)  # [m, N] -> [m]
        for part in test_x.split(max(1, DISTANCES // len(train_x)))
    ]
    return float((train_y[torch.cat(nearest)] == test_y).double().mean())


def linear_probe_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> float:
    """Returns the test accuracy of logistic regression on standardized rows, of at most 100 steps.

    scikit-learn's, C = 1. Arguments as in `nearest_neighbour_accuracy`.
    """
    std, mean = torch.std_mean(train_x, 0, correction=0)
    train, test = ((x - mean) / std.clamp(min=1e-6) for x in (train_x, test_x))
    model = LogisticRegression(max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digit costs minutes
        model.fit(train.cpu().numpy(), train_y.cpu().numpy())
    return float(model.score(test.cpu().numpy(), test_y.cpu().numpy()))


def reconstruction_error(x: Tensor, rebuilt: Tensor, order: Tensor) -> tuple[float, float]:
    """Returns the mean euclidean distance of images to their own and to others' reconstructions.

    mean_i |x_i - r_i| and mean_i |x_{o(i+1)} - r_{o(i)}|, pixels in [0, 1]. The second says what
    the first would be if a reconstruction were any image of the data set.

    Args:
      x: uint8 `[N, C, H, W]`.
      rebuilt: uint8, same shape.
      order: o, a permutation of the N images.
    Source: EGr and EGr_b of jeffdonahue/bigan, train_gan.py.
    """

    def distance(a: Tensor, b: Tensor) -> float:
        parts = zip(a.flatten(1).split(1_000), b.flatten(1).split(1_000), strict=True)
        total = sum(((p.float() - q.float()) / 255).norm(dim=1).double().sum() for p, q in parts)
        return float(total) / len(a)

    return distance(x, rebuilt), distance(x[order.roll(-1)], rebuilt[order])


def image_grid(images: Tensor, columns: int) -> npt.NDArray[np.uint8]:
    """Returns images side by side, row after row, with a grey line between them.

    Args:
      images: uint8 `[N, C, H, W]`, N a multiple of columns.
      columns: images in a row.
    Returns:
      uint8 `[rows * (H + 1) - 1, columns * (W + 1) - 1, C]`.
    """
    count, channels, height, width = images.shape
    cells = torch.full((count, channels, height + 1, width + 1), 128, dtype=torch.uint8)
    cells[:, :, :height, :width] = images.cpu()
    cells = cells.view(count // columns, columns, channels, height + 1, width + 1)
    grid = cells.permute(0, 3, 1, 4, 2).reshape(
        count // columns * (height + 1), columns * (width + 1), channels
    )
    return grid[:-1, :-1].numpy().copy()
