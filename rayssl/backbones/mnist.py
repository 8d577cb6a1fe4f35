"""The backbone of Table V, for images of 28x28.

Table V contradicts itself: padding 'SAME' beside sizes that shrink, and 64 filters beside 32
channels. The printed sizes 26, 24, 12, 9216, 128 are those of the authors' code: 3x3 convolutions
without padding, 32 then 64 filters. One difference remains: the table has a ReLU after the second
convolution, the code has none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MnistBackbone(nn.Module):
    """Maps grey images to 128 features: two convolutions, a max-pooling and a dense layer.

        28x28 -> conv 3x3, 32 -> 26x26 -> conv 3x3, 64 -> 24x24 -> max-pool 2 -> 12x12
              -> dropout of channels 0.25 -> 9216 -> dense 128, ReLU -> dropout 0.5

    Args of the constructor:
      mean, std: of the training pixels in [0, 1]; images are normalized with them, nowhere else.
      relu_after_conv2: as Table V has it; False: as the authors' code.
    Args of the forward pass:
      x: uint8 `[B, 1, 28, 28]`, 0-255.
      as_map: stop before the dense layer.
      from_map: x is what `as_map` returns: start there.
    Returns:
      `[B, 128]`; with `as_map` `[B, 64, 12, 12]`.
    Source: Table V; section V-B; dropout rates: the authors' code, classification/mnist.
    """

    out_features = 128
    map_shape = 64, 12, 12

    def __init__(self, mean: float, std: float, *, relu_after_conv2: bool = True) -> None:
        super().__init__()
        self.mean, self.std, self.relu_after_conv2 = mean, std, relu_after_conv2
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout_channels = nn.Dropout2d(0.25)
        self.fc = nn.Linear(9216, self.out_features)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, as_map: bool = False, from_map: bool = False) -> Tensor:
        if not from_map:
            x = self._map(x)
        if as_map:
            return x
        x = F.relu(self.fc(x.flatten(1)))  # [B, 128]
        return self.dropout(x)

    def _map(self, x: Tensor) -> Tensor:
        x = (x.to(torch.float32, memory_format=torch.channels_last) * (1 / 255) - self.mean) / (
            self.std
        )
        x = self.conv2(F.relu(self.conv1(x)))  # [B, 64, 24, 24]
        if self.relu_after_conv2:
            x = F.relu(x)
        return self.dropout_channels(F.max_pool2d(x, 2))  # [B, 64, 12, 12]
