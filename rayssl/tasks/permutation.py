"""Sequence-based self-supervision: in which order do the four frames stand? (section IV-B).

Two versions, because text and code of the paper differ:

* `permutation`, as the text says: 4 classes of two orders. An order alpha says where each frame
  goes, `x_hat[:, alpha[i]] = x[:, i]` (a scatter).
* `permutation-6`, as the authors' code does: 6 classes of two orders, applied as the gather
  `x_hat = x[:, order]`.

"Since rev(x) and x are both valid input sequences, and alpha(rev(x)) = (rev(alpha))(x), we group
alpha and rev(alpha) in the same class." What of this holds (each line is a test):

* In both tables a class is an order and its reversal.
* With the scatter, reversing the *input* has the effect of reversing alpha, so every class is kept:
  the paper's equation holds. That is why the text's table is read as a scatter.
* With the gather it does not hold. There, reversing alpha reverses the *output*, and reversing the
  input has the effect of the order 3 - alpha[j]: in the same class for classes 0, 1 and 3, but in
  no class of either table for class 2, nor for classes 4 and 5 of the 6-class version. So half of
  its six classes survive a reversed input.
* In both versions no output gets two labels, whether the input runs forwards or backwards.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.tasks import PretextTask, draw_per_sample

Order = tuple[int, int, int, int]

PAPER_CLASSES: tuple[tuple[Order, Order], ...] = (  # section IV-B, the list of classes
    ((0, 1, 2, 3), (3, 2, 1, 0)),
    ((0, 2, 1, 3), (3, 1, 2, 0)),
    ((0, 3, 2, 1), (1, 2, 3, 0)),
    ((1, 3, 0, 2), (2, 0, 3, 1)),
)
PAPER_CODE_CLASSES: tuple[tuple[Order, Order], ...] = (  # self-supervision-cs221, deepq fork
    *PAPER_CLASSES,
    ((2, 3, 1, 0), (0, 1, 3, 2)),
    ((1, 3, 2, 0), (0, 2, 3, 1)),
)


@dataclass(frozen=True)
class Permutation:
    """Reorders the four frames of each stack; the label is the class of the order.

    x_hat_i[j] = x_i[sources[y_i][v_i][j]], y_i ~ U{0 .. num_classes - 1}, v_i ~ U{0, 1}.

    Attributes:
      name: the name on the command line.
      sources: for each class its two orders, written as a gather: which frame of the input stands
        in each channel of the output.

    Source: section IV-B, "Sequence Based Self-Supervision", Fig. 6a.
    """

    name: str
    sources: tuple[tuple[Order, Order], ...]

    @property
    def num_classes(self) -> int:
        """The number of classes of orders, 4 or 6."""
        return len(self.sources)

    def __call__(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the reordered stacks and the class of each order.

        The class is drawn uniformly, then one of its two orders uniformly.

        Args:
          x: `[B, 4, H, W]`, any dtype; the channels are frames, oldest first. Not modified.
          generator: source of all randomness; its device must be x's.
        Returns:
          x_hat, same shape and dtype as x; y_hat, int64 `[B]` in [0, num_classes).
        Raises:
          ValueError: if x is not 4-D with 4 frames, or the generator is on another device.
        """
        _check_four_frames(x)
        # Classes are equally large, so one draw over all orders is both draws at once.
        drawn = draw_per_sample(x, 2 * self.num_classes, generator=generator)
        orders = _source_table(self.sources, x.device).index_select(0, drawn)
        return reorder(x, orders), drawn // 2

    def every_class(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each stack in the first order of every class: `[K * B, 4, H, W]`, and labels."""
        _check_four_frames(x)
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(len(x))
        orders = _source_table(self.sources, x.device).index_select(0, 2 * labels)
        return reorder(x.repeat(self.num_classes, 1, 1, 1), orders), labels

    def usable(self, x: Tensor) -> Tensor:
        """Returns which samples tell their order: bool `[B]`.

        False where any two of the four frames are equal (nothing moves: two orders give the same
        stack), and where a frame is blank, i.e. all zero (padding at a game's start: where it
        lands gives the label away).

        Args:
          x: `[B, 4, H, W]`, any dtype.
        Raises:
          ValueError: if x is not 4-D with 4 frames.
        """
        _check_four_frames(x)
        words = _as_words(x)  # [B, 4, n]
        # Sums of bools, because on the CPU they take half the time of any().
        told = (words != 0).sum(2).all(1)
        for lag in (1, 2, 3):  # all six pairs of frames
            told &= (words[:, lag:] != words[:, :-lag]).sum(2).all(1)
        return told


def reorder(x: Tensor, orders: Tensor) -> Tensor:
    """Returns x_hat_i[j] = x_i[orders_i[j]]: each sample's channels in its own order, a copy.

    One gather of whole frames, so it needs neither a loop over samples nor a host sync, and it
    can be compiled.

    Args:
      x: `[B, C, H, W]`, any dtype.
      orders: int64 `[B, C]` in [0, C), on x's device.
    """
    batch, channels = x.shape[:2]
    first = torch.arange(0, batch * channels, channels, device=x.device)  # [B]
    return x.flatten(0, 1).index_select(0, (first[:, None] + orders).flatten()).view(x.shape)


def inverse(order: Order) -> Order:
    """Returns the gather that does what `order` does as a scatter (and the other way round).

    `x_hat[order[i]] = x[i]` for all i is the same as `x_hat[j] = x[inverse(order)[j]]` for all j.
    """
    return order.index(0), order.index(1), order.index(2), order.index(3)


def permutation() -> Permutation:
    """Returns the task of the paper's text: 4 classes, orders applied as a scatter."""
    return Permutation("permutation", tuple((inverse(a), inverse(b)) for a, b in PAPER_CLASSES))


def permutation_6() -> Permutation:
    """Returns the task of the authors' code: 6 classes, orders applied as a gather."""
    return Permutation("permutation-6", PAPER_CODE_CLASSES)


@functools.cache  # a copy to the GPU on each call would wait for all work queued there
def _source_table(sources: tuple[tuple[Order, Order], ...], device: torch.device) -> Tensor:
    """The orders of all classes, one below the other: int64 [2 * num_classes, 4]."""
    return torch.tensor(sources, device=device).flatten(0, 1)


def _as_words(x: Tensor) -> Tensor:
    """Frames as rows, 8 bytes to a number where the layout allows: `[B, 4, n]`, for ==, != only.

    Eight uint8 pixels are compared at once. Not for floats, where equal is not equal bits
    (-0.0 == 0.0).
    """
    rows = x.flatten(2)
    if torch.compiler.is_compiling():  # it fuses the comparisons, and cannot see storage_offset
        return rows
    whole_words = all(
        count * x.element_size() % 8 == 0 for count in (rows.shape[2], rows.storage_offset())
    )
    if x.is_floating_point() or x.is_complex() or not rows.is_contiguous() or not whole_words:
        return rows
    return rows.view(torch.int64)


def _check_four_frames(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] != 4:
        raise ValueError(
            f"Permutation needs 4 stacked frames in dim 1, got shape {tuple(x.shape)}. "
            "For single images use the rotation task."
        )


TASKS: dict[str, Callable[[], PretextTask]] = {
    "permutation": permutation,
    "permutation-6": permutation_6,
}
