"""Random shifts of images: pad by repeating the edge, then crop. Pure functions.

DrQ regularises Q-learning with them (Kostrikov, Yarats & Fergus 2021, arXiv:2004.13649), CURL and
ATC their views of an observation. All frames of a stack shift together.
"""

import torch
from torch import Tensor

PAD = 4  # pixels, for 84x84: Kostrikov et al. 2021, section 3.1; arXiv:2006.10803 (ATC) likewise


def draw_shifts(x: Tensor, *, generator: torch.Generator, pad: int = PAD) -> Tensor:
    """Returns one shift per image, down and right: int64 `[B, 2]`, uniform in [-pad, pad].

    Args:
      x: `[B, C, H, W]`; its device must be the generator's.
      pad: pixels.
    """
    size = (len(x), 2)
    return torch.randint(-pad, pad + 1, size, generator=generator, device=generator.device)


def shift(x: Tensor, shifts: Tensor) -> Tensor:
    """Returns each image moved by its own shift; its edge is repeated where nothing comes in.

    out[b, c, i, j] = x[b, c, clip(i - down_b), clip(j - right_b)]: the same as padding with
    replicated edges and cropping, but for any dtype, and without the padded copy.

    Args:
      x: `[B, C, H, W]`, any dtype. Not modified.
      shifts: int64 `[B, 2]`, pixels down and right, on x's device.
    """
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) - shifts[:, :1]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=x.device) - shifts[:, 1:]).clamp(0, width - 1)  # [B, W]
    batch = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return x[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]


def random_shift(x: Tensor, *, generator: torch.Generator, pad: int = PAD) -> Tensor:
    """Returns each image moved by up to `pad` pixels each way, one independent draw per image.

    Args:
      x: `[B, C, H, W]`, any dtype. Not modified.
      generator: source of all randomness; its device must be x's.
      pad: pixels.
    """
    return shift(x, draw_shifts(x, generator=generator, pad=pad))
