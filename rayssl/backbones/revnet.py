"""RevNet-50: residual blocks that can be undone, so that training keeps no activations of them.

    x -> (x1, x2), half of the channels each; one block: (x1, x2) -> (x2, x1 + F(x2))
    undone: (a, b) -> (b - F(a), a)

One residual function a block and a swap, as Kolesnikov et al. have it; Gomez et al. (the paper's
[15], arXiv:1707.04585) put two, F and G, into a block without a swap. The backward pass starts from
the output of a stage, rebuilds the input of each block, and computes F a second time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.backbones.resnet50v2 import UNITS, batch_norm, stem

Halves = tuple[Tensor, Tensor]


class ReversibleBlock(nn.Module):
    """One block on halves of the channels: (x1, x2) -> (x2, x1 + F(x2)).

    F is a bottleneck of `width` channels, `width / 4` inside: three times BatchNorm, ReLU and a
    convolution, 1x1, 3x3, 1x1. Nothing shrinks in it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 4
        self.norm1, self.conv1 = batch_norm(width), nn.Conv2d(width, inner, 1, bias=False)
        self.norm2 = batch_norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm3, self.conv3 = batch_norm(inner), nn.Conv2d(inner, width, 1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        """Returns F(x): `[B, width, H, W]` -> the same shape."""
        x = self.conv1(F.relu(self.norm1(x)))
        x = self.conv2(F.relu(self.norm2(x)))
        x = self.conv3(F.relu(self.norm3(x)))
        return x

    def forward(self, x1: Tensor, x2: Tensor) -> Halves:
        return x2, x1 + self.residual(x2)

    def inverse(self, y1: Tensor, y2: Tensor) -> Halves:
        """Returns (x1, x2) of which `forward` makes (y1, y2), up to the rounding of one sum.

        In training mode BatchNorm uses the statistics of this batch, so the pair must be whole.
        """
        return y2 - self.residual(y1), y1


class RevNet50(nn.Module):
    """Maps images to `[B, 8192]` (factor 16: "x4") by four reversible stages.

        7x7/2 convolution -> 64 * factor channels -> 3x3/2 max-pooling
        -> stages of 3, 4, 6, 3 blocks; between two of them 2x2 average-pooling and twice the
           channels, of zeros on both sides
        -> BatchNorm -> global average

    Args of the constructor:
      factor: 4 for RevNet-50, 16 for RevNet-50x4, whose 85,765,632 parameters a test counts.
      units: blocks of each stage.
      reversible: rebuild activations in the backward pass; False: keep them, as autograd does.
    Args of the forward pass:
      x: float `[B, 3, 256, 256]` (any side from 32 on).
    Returns:
      `[B, 512 * factor]`.
    Source: Kolesnikov et al. 2019, arXiv:1901.09005; google/revisiting-self-supervised,
    models/resnet.py, `revnet` with its default `last_relu=False`.
    """

    def __init__(
        self, factor: int = 16, units: tuple[int, ...] = UNITS, *, reversible: bool = True
    ) -> None:
        super().__init__()
        self.reversible = reversible
        channels = 64 * factor
        self.stem = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.stages = nn.ModuleList()
        for i, count in enumerate(units):
            channels *= 2 if i else 1
            self.stages.append(nn.ModuleList(ReversibleBlock(channels // 2) for _ in range(count)))
        self.norm = batch_norm(channels)
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        x = stem(self.stem, x)
        for i, stage in enumerate(self.stages):
            if i:
                x = pool_and_double_channels(x)
            x1, x2 = x.chunk(2, dim=1)
            x = torch.cat(self._stage(cast(nn.ModuleList, stage), x1, x2), dim=1)
        return self.norm(x).mean((2, 3))

    def _stage(self, blocks: nn.ModuleList, x1: Tensor, x2: Tensor) -> Halves:
        if self.reversible:
            parameters = [p for p in blocks.parameters() if p.requires_grad]
            return _ReversibleStage.apply(blocks, x1, x2, *parameters)
        for block in blocks:
            x1, x2 = block(x1, x2)
        return x1, x2


class _ReversibleStage(torch.autograd.Function):
    """The blocks of a stage in a row. Keeps the output alone, and rebuilds all before it."""

    @staticmethod
    def forward(
        ctx: Any, blocks: nn.ModuleList, x1: Tensor, x2: Tensor, *parameters: Tensor
    ) -> Halves:
        for block in blocks:
            x1, x2 = block(x1, x2)
        ctx.blocks = blocks
        ctx.device_type = x1.device.type
        ctx.autocast = {
            "enabled": torch.is_autocast_enabled(ctx.device_type),
            "dtype": torch.get_autocast_dtype(ctx.device_type),
        }
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad1, grad2 = grads
        y1, y2 = ctx.saved_tensors
        of_parameters: list[Tensor] = []
        for block in reversed(ctx.blocks):
            # Forward was (x1, x2) -> (y1, y2) = (x2, x1 + F(x2)), and y1 is x2 again.
            x2 = y1.detach().requires_grad_()
            with torch.enable_grad(), _statistics_untouched(block), torch.autocast(
                ctx.device_type, **ctx.autocast
            ):  # fmt: skip
                residual = block.residual(x2)
            own = [p for p in block.parameters() if p.requires_grad]
            found = torch.autograd.grad(residual, [x2, *own], grad2)
            of_parameters = [*found[1:], *of_parameters]
            y1, y2 = y2 - residual.detach(), y1
            grad1, grad2 = grad2, grad1 + found[0]
        return None, grad1, grad2, *of_parameters


@contextmanager
def _statistics_untouched(block: nn.Module) -> Iterator[None]:
    """Lets BatchNorm compute as in the first pass without counting the batch a second time."""
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm  # the second is no kind of the first
    norms = [m for m in block.modules() if isinstance(m, kinds) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def pool_and_double_channels(x: Tensor) -> Tensor:
    """Returns `[B, 2C, H/2, W/2]`: 2x2 averages, with C/2 channels of zeros before and after them.

    An odd side is rounded up; its last averages are of what is there (TensorFlow's 'SAME').
    """
    x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    half = x.shape[1] // 2
    return F.pad(x, (0, 0, 0, 0, half, half))
