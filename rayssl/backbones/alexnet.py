"""AlexNet of torchvision, trained on ImageNet: Table III, row 3."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rayssl.backbones.images import BackboneSpec, Preprocessing, pooled
from rayssl.backbones.weights import WeightsFile

# Name -> index of the module after which it is taken: behind each ReLU.
CONVOLUTIONS = {"conv1": 1, "conv2": 4, "conv3": 7, "conv4": 9, "conv5": 11}
DENSE = {"fc6": 2, "fc7": 5}
# Gidaris et al. 2018, section 4.2: maps are pooled to about 9,600 features.
SIDES = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}
CHANNELS = {"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256}
MAP_FEATURES = {name: CHANNELS[name] * SIDES[name] ** 2 for name in SIDES}


class AlexNet(nn.Module):
    """torchvision's AlexNet without its last layer; names of weights are torchvision's.

    Args of the forward pass:
      x: float `[B, 3, 224, 224]` (any side from 63 on).
      layer: "conv1" to "conv5", after the ReLU and max-pooled to `SIDES`; "fc6", "fc7", after the
        ReLU.
    Returns:
      `[B, 4096]` for "fc6" and "fc7", else `[B, MAP_FEATURES[layer]]`.
    Source: Krizhevsky 2014, arXiv:1404.5997 ("one weird trick"), as torchvision has it.
    """

    def __init__(self) -> None:
        super().__init__()
        from rayssl._torchvision import torchvision  # slow to import, so not before it is needed

        network = torchvision.models.alexnet(weights=None)
        self.features, self.avgpool = network.features, network.avgpool
        self.classifier = network.classifier[:6]

    def forward(self, x: Tensor, layer: str = "fc7") -> Tensor:
        if layer in CONVOLUTIONS:
            x = self.features[: CONVOLUTIONS[layer] + 1](x)
            return pooled(x, SIDES[layer], "max")
        x = torch.flatten(self.avgpool(self.features(x)), 1)  # [B, 9216]
        features: Tensor = self.classifier[: DENSE[layer] + 1](x)
        return features


V1 = WeightsFile(
    name="alexnet-owt-7be5be79.pth",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    where="Download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth (233 MB) into one "
    "of these folders, or pass its path.",
)


def _imagenet() -> BackboneSpec:
    return BackboneSpec(
        build=AlexNet,
        layers=MAP_FEATURES | {"fc6": 4096, "fc7": 4096},
        layer="fc7",
        preprocessings={
            "standard": Preprocessing(resize=256, crop=224),
            "paper-code": Preprocessing(resize=257, crop=224),
        },
        weights=V1,
        head=("classifier.6.",),
    )


IMAGE_BACKBONES: dict[str, Callable[[], BackboneSpec]] = {"alexnet-imagenet": _imagenet}
