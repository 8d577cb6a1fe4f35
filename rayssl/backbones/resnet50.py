"""ResNet-50 of torchvision, with random weights or those of ImageNet: Table III, rows 1 and 2."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from rayssl.backbones.images import BackboneSpec, Preprocessing, pooled
from rayssl.backbones.weights import WeightsFile

STAGES = {"layer1": 5, "layer2": 4, "layer3": 2, "layer4": 2}  # -> side to which it is pooled
FEATURES = {"layer1": 256 * 25, "layer2": 512 * 16, "layer3": 1024 * 4, "layer4": 2048 * 4}


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its last layer; names of weights are torchvision's.

    Args of the forward pass:
      x: float `[B, 3, 224, 224]` (any side from 32 on).
      layer: "avgpool", the global average, or the end of a stage, "layer1" to "layer4",
        average-pooled to at most 9,000 features (Kolesnikov et al. 2019, arXiv:1901.09005).
    Returns:
      `[B, 2048]` for "avgpool", else `[B, FEATURES[layer]]`.
    Source: He et al. 2016, arXiv:1512.03385; stride on the 3x3 convolution, as torchvision has it.
    """

    def __init__(self) -> None:
        super().__init__()
        from rayssl._torchvision import torchvision  # slow to import, so not before it is needed

        network = torchvision.models.resnet50(weights=None)
        for name, child in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, x: Tensor, layer: str = "avgpool") -> Tensor:
        for name, child in self.named_children():
            x = child(x)
            if name == layer:
                return pooled(x, STAGES[layer], "avg")
        return x.mean((2, 3))  # [B, 2048]


# torchvision's transform of IMAGENET1K_V1; the authors' code resizes to 257.
STANDARD = Preprocessing(resize=256, crop=224)
PAPER_CODE = replace(STANDARD, resize=257)
V1 = WeightsFile(
    name="resnet50-0676ba61.pth",
    url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    where="Download https://download.pytorch.org/models/resnet50-0676ba61.pth (98 MB) into one of "
    "these folders, or pass its path.",
)


def _random() -> BackboneSpec:
    return BackboneSpec(
        build=ResNet50,
        layers=FEATURES | {"avgpool": 2048},
        layer="avgpool",
        preprocessings={"standard": STANDARD, "paper-code": PAPER_CODE},
    )


def _imagenet() -> BackboneSpec:
    # IMAGENET1K_V1, 76.1% top-1: V2's recipe is younger than the paper.
    return replace(_random(), weights=V1, head=("fc.",))


IMAGE_BACKBONES: dict[str, Callable[[], BackboneSpec]] = {
    "resnet50-random": _random,
    "resnet50-imagenet": _imagenet,
}
