"""The three trunks for Atari frames: the paper's code, the paper's text, and Nature DQN.

They differ in what an auxiliary head shares with the Q-values, and that is the experiment:

| name         | shared with the aux head          | hidden layer of each head | padding      |
| ------------ | --------------------------------- | ------------------------- | ------------ |
| `paper-code` | 3 convolutions                    | one of 256 units          | as TF 'SAME' |
| `paper-text` | 3 convolutions, 3 layers of 256   | none                      | none         |
| `nature`     | 3 convolutions, 1 layer of 512    | none                      | none         |
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TrunkSpec:
    """What a trunk is made of.

    Attributes:
      same_padding: pad convolutions as TensorFlow's 'SAME' does (84 -> 21 -> 11 -> 11), else not at
        all (84 -> 20 -> 9 -> 7).
      fc: units of the shared fully connected layers.
      branch_hidden: units of the hidden layer that every head has for itself; None: no layer.
    """

    same_padding: bool
    fc: tuple[int, ...]
    branch_hidden: int | None


CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # filters, kernel, stride: Mnih et al. 2015
TRUNKS: dict[str, TrunkSpec] = {
    # The authors' fork of OpenAI Baselines: `conv_only`, whose tf.contrib convolutions pad 'SAME',
    # then branches of hiddens=[256] (baselines/common/models.py, deepq/models.py).
    "paper-code": TrunkSpec(same_padding=True, fc=(), branch_hidden=256),
    # Section V-B: "3 CNN layers, followed by 3 fully connected layers in the shared backbone".
    # The text gives no sizes: 256 units each, as the code's branches have.
    "paper-text": TrunkSpec(same_padding=False, fc=(256, 256, 256), branch_hidden=None),
    # Mnih et al. 2015, Methods, "Model architecture".
    "nature": TrunkSpec(same_padding=False, fc=(512,), branch_hidden=None),
}


class AtariTrunk(nn.Module):
    """Maps stacked grey frames to features through three convolutions and shared layers.

    Args of the forward pass:
      x: uint8 `[B, stack, size, size]`, 0-255. Scaled to [0, 1] here, nowhere else. With `from_map`
        what `as_map` returns, `[B, *map_shape]`.
      as_map: stop after the last convolution.
      from_map: start after it.
    Returns:
      `[B, out_features]` after a ReLU, in the dtype of the weights; with `as_map` the output of the
      last convolution, `[B, *map_shape]`, likewise.
    Raises:
      ValueError: (constructor) if the frames are too small for the convolutions.
    Source: `TRUNKS`.
    """

    def __init__(self, spec: TrunkSpec, *, stack: int = 4, size: int = 84) -> None:
        super().__init__()
        self.same_padding = spec.same_padding
        self.convs = nn.ModuleList()
        self.pads: list[tuple[int, int, int, int]] = []
        channels, side = stack, size
        for filters, kernel, stride in CONVOLUTIONS:
            if spec.same_padding:
                pad, side = _padding(side, kernel, stride)
            else:
                pad, side = 0, (side - kernel) // stride + 1
            if side < 1:
                raise ValueError(
                    f"Frames of {size}x{size} are too small for the three convolutions. "
                    "Use frame_size 36 or more (84 is the paper's)."
                )
            self.pads.append((pad // 2, pad - pad // 2) * 2)  # TF puts the odd pixel last
            self.convs.append(nn.Conv2d(channels, filters, kernel, stride))
            channels = filters
        self.map_shape = channels, side, side
        features = channels * side * side
        self.fc = nn.ModuleList()
        for units in spec.fc:
            self.fc.append(nn.Linear(features, units))
            features = units
        self.out_features = features
        if spec.branch_hidden is not None:  # tf.contrib's default initializer
            xavier_(self)
        else:
            orthogonal_(self)

    def forward(self, x: Tensor, as_map: bool = False, from_map: bool = False) -> Tensor:
        dtype = cast(nn.Conv2d, self.convs[0]).weight.dtype
        if not from_map:
            x = _channels_last(x, dtype) * (1 / 255)
            for conv, pad in zip(self.convs, self.pads, strict=True):
                x = F.relu(conv(F.pad(x, pad) if self.same_padding else x))
        if as_map:
            return x
        x = x.to(dtype).flatten(1)  # [B, channels * side * side]
        for layer in self.fc:
            x = F.relu(layer(x))
        return x


def make_trunk(name: str, *, stack: int = 4, size: int = 84) -> tuple[AtariTrunk, TrunkSpec]:
    """Returns the trunk of that name and its spec.

    Raises:
      ValueError: for an unknown name; the text lists the known ones.
    """
    if name not in TRUNKS:
        raise ValueError(f"Unknown network '{name}'. Available: {', '.join(sorted(TRUNKS))}.")
    return AtariTrunk(TRUNKS[name], stack=stack, size=size), TRUNKS[name]


def orthogonal_(module: nn.Module) -> None:
    """Sets every weight to a random orthogonal matrix times sqrt(2), and every bias to 0.

    The scale keeps the size of activations through ReLU layers (Saxe et al. 2014, arXiv:1312.6120;
    He et al. 2015, arXiv:1502.01852). PyTorch's default shrinks them in every layer, and then the
    permutation task, whose first-order gradient is zero by symmetry, stays at chance for longer.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def xavier_(module: nn.Module) -> None:
    """Sets weights by Glorot's uniform rule and biases to 0 (the default of tf.contrib.layers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, channels last in memory.

    Four uint8 frames of a pixel are first packed into one 32-bit word: bit-equal to the plain cast
    and, compiled, five times as fast on the CPU, whose strided byte loads are slow.
    """
    if x.dtype != torch.uint8 or x.shape[1] != 4 or x.is_cuda or sys.byteorder != "little":
        return x.to(dtype, memory_format=torch.channels_last)
    frames = x.to(torch.int32)
    pixels = frames[:, 0] | (frames[:, 1] << 8) | (frames[:, 2] << 16) | (frames[:, 3] << 24)
    pixels = pixels.contiguous()  # a rotated view has other strides
    return pixels.view(torch.uint8).view(*pixels.shape, 4).permute(0, 3, 1, 2).to(dtype)


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Total padding and output side of a TF 'SAME' convolution."""
    out = math.ceil(side / stride)
    return max((out - 1) * stride + kernel - side, 0), out


def available_networks() -> Sequence[str]:
    """Returns the names that `make_trunk` takes, sorted."""
    return sorted(TRUNKS)
