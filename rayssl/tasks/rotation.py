"""Image-based self-supervision: which quarter turn was applied? (sections IV-A and IV-B)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayssl.tasks import PretextTask, draw_per_sample


@dataclass(frozen=True)
class Rotation:
    """Rotates each image by a random multiple of 90 degrees; the label is the angle's index.

    x_hat_i = rot90(x_i, k_i), y_hat_i = k_i, k_i ~ U{0, 1, 2, 3}; counter-clockwise, lossless.
    All channels of a sample (a colour image, a stack of frames) turn together.

    Source: section IV-A, eq. (2), and IV-B; Gidaris et al. 2018, arXiv:1803.07728. The authors'
    code draws one angle per sample, too.
    """

    name: str = field(default="rotation", init=False)
    num_classes: int = field(default=4, init=False)

    def __call__(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the turned images and, as labels, their angles in units of 90 degrees.

        Args:
          x: `[B, C, H, W]`, any dtype; H must equal W. Not modified.
          generator: source of all randomness; its device must be x's.
        Returns:
          x_hat, same shape and dtype as x; y_hat, int64 `[B]` in [0, 4).
        Raises:
          ValueError: if x is not 4-D or not square, or the generator is on another device.
        """
        _check_square(x)
        quarter_turns = draw_per_sample(x, self.num_classes, generator=generator)
        return rotate(x, quarter_turns), quarter_turns

    def every_class(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all four rotations of each image: `[4 * B, C, H, W]`, and their labels.

        Source: Gidaris et al. 2018, section 3; the authors' classification code does the same.
        """
        _check_square(x)
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(len(x))
        return torch.cat([x.rot90(k, (2, 3)) for k in range(self.num_classes)]), labels

    def usable(self, x: Tensor) -> Tensor:
        """Returns which samples tell their rotation: bool `[B]`.

        False where a half turn changes nothing (a constant image above all): then k and k + 2
        give the same x_hat. A quarter turn that changes nothing implies such a half turn, so all
        four x_hat differ wherever this is True.

        Args:
          x: `[B, C, H, W]`, any dtype; H must equal W.
        Raises:
          ValueError: if x is not 4-D or not square.
        """
        _check_square(x)
        half = (x.shape[2] + 1) // 2  # a half turn maps the upper rows to the lower ones and back
        upper, lower = x[:, :, :half], x[:, :, -half:]
        # A sum of bools, because on the CPU it takes a third of the time of any().
        return (upper != lower.flip(2, 3)).flatten(1).sum(1) > 0


def rotate(x: Tensor, quarter_turns: Tensor) -> Tensor:
    """Returns rot90(x_i, k_i) for each sample: counter-clockwise, a copy.

    One gather, so it needs neither a loop over samples nor a host sync, and it can be compiled.

    Args:
      x: `[B, C, N, N]`, any dtype.
      quarter_turns: k, int64 `[B]` in [0, 4), on x's device.
    """
    size = x.shape[-1]
    pixel = torch.arange(size * size, device=x.device).view(size, size)
    # source[k, p]: which pixel of the flattened image stands at p after k quarter turns
    source = torch.stack([pixel.rot90(k) for k in range(4)]).flatten(1)  # [4, N * N]
    index = source.index_select(0, quarter_turns)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view(x.shape)


def _check_square(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(
            f"Rotation needs square images [B, C, H, W] with H equal to W, got shape "
            f"{tuple(x.shape)}. Crop or resize them to a square first."
        )


TASKS: dict[str, Callable[[], PretextTask]] = {"rotation": Rotation}
