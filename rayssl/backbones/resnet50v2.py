"""ResNet-50 v2: normalization and ReLU before each convolution, as the BigBiGAN encoder has it."""

import torch.nn.functional as F
from torch import Tensor, nn

UNITS = (3, 4, 6, 3)  # blocks of the four stages
TF_EPSILON = 1e-3  # tf.layers.batch_normalization; PyTorch's default is 1e-5
TF_MOMENTUM = 0.01  # TensorFlow's 0.99 is the share of the old value


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Returns BatchNorm with TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=TF_EPSILON, momentum=TF_MOMENTUM)


def stem(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns the first convolution's output, max-pooled 3x3 with stride 2.

    The pooling's border is zeros, as in the source, where PyTorch's own padding is minus infinity:
    no ReLU stands between, so an edge of negative values would differ.
    """
    return F.max_pool2d(F.pad(conv(x), (1, 1, 1, 1)), 3, 2)


class Bottleneck(nn.Module):
    """x -> x + F(x), or shortcut(a) + F(x) where shapes change, a = ReLU(BatchNorm(x)).

    F: 1x1, 3x3 (with the stride), 1x1 convolutions, each behind BatchNorm and ReLU; a quarter of
    the channels inside.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = channels // 4
        self.norm1 = batch_norm(in_channels)
        self.shortcut: nn.Conv2d | None = None
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2 = batch_norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm3, self.conv3 = batch_norm(inner), nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(a)
        y = self.conv1(a)
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        return shortcut + y


class ResNet50V2(nn.Module):
    """Maps images to `[B, 2048]`.

        7x7/2 convolution, 64 channels -> 3x3/2 max-pooling -> stages of 3, 4, 6, 3 blocks with
        256, 512, 1024, 2048 channels -> BatchNorm, ReLU -> global average

    Args of the constructor:
      factor: 4 for ResNet-50; the channels are proportional to it.
      units: blocks of each stage.
    Args of the forward pass:
      x: float `[B, 3, 256, 256]` (any side from 32 on).
    Source: He et al. 2016, arXiv:1603.05027; google/revisiting-self-supervised, models/resnet.py,
    `resnet` with mode v2 and its default `last_relu=True`.
    """

    def __init__(self, factor: int = 4, units: tuple[int, ...] = UNITS) -> None:
        super().__init__()
        channels = 16 * factor
        self.stem = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.stages = nn.Sequential()
        for i, count in enumerate(units):
            blocks = []
            for j in range(count):
                out = 64 * factor * 2**i
                blocks.append(Bottleneck(channels, out, 2 if i and not j else 1))
                channels = out
            self.stages.append(nn.Sequential(*blocks))
        self.norm = batch_norm(channels)
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(stem(self.stem, x))
        return F.relu(self.norm(x)).mean((2, 3))
