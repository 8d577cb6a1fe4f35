"""RotNet's AlexNet: BatchNorm everywhere, trained to tell rotations apart: Table III, row 4.

The paper calls the row "backbone trained with ImageNet & Rotation"; the authors' code loads the
checkpoint of Gidaris et al., which saw no labels. Weights trained with both come from
`experiments/pretrain.py`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from rayssl.backbones.alexnet import CHANNELS, MAP_FEATURES, SIDES
from rayssl.backbones.images import BackboneSpec, Preprocessing, pooled
from rayssl.backbones.weights import WeightsFile

# Input channels, kernel, stride, padding of each convolution; None: max-pooling 3x3, stride 2.
BLOCKS = {
    "conv1": (3, 11, 4, 2), "pool1": None, "conv2": (64, 5, 1, 2), "pool2": None,
    "conv3": (192, 3, 1, 1), "conv4": (384, 3, 1, 1), "conv5": (256, 3, 1, 1), "pool5": None,
}  # fmt: skip


class RotNetAlexNet(nn.Module):
    """AlexNet with BatchNorm after every layer and no dropout, without its last layer.

    Names of weights are those of the published checkpoint: `_feature_blocks.N.*`.

    Args of the forward pass:
      x: float `[B, 3, 224, 224]`, which leaves maps of 6x6; no other size fits the dense layers.
      layer: "conv1" to "conv5", after the ReLU and max-pooled to `SIDES`; "fc_block", the second
        dense layer.
    Returns:
      `[B, 4096]` for "fc_block", else `[B, MAP_FEATURES[layer]]`.
    Source: Gidaris et al. 2018, arXiv:1803.07728, section 4.2; FeatureLearningRotNet,
    architectures/AlexNet.py.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for name, shape in BLOCKS.items():
            if shape is None:
                blocks.append(nn.MaxPool2d(3, 2))
                continue
            channels, kernel, stride, padding = shape
            conv = nn.Conv2d(channels, CHANNELS[name], kernel, stride, padding)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(CHANNELS[name]), nn.ReLU()))
        dense: list[nn.Module] = [nn.Flatten()]
        for features in (256 * 6 * 6, 4096):
            linear = nn.Linear(features, 4096, bias=False)
            dense += [linear, nn.BatchNorm1d(4096), nn.ReLU()]
        self._feature_blocks = nn.ModuleList([*blocks, nn.Sequential(*dense)])

    def forward(self, x: Tensor, layer: str = "fc_block") -> Tensor:
        for name, block in zip([*BLOCKS, "fc_block"], self._feature_blocks, strict=True):
            x = block(x)
            if name == layer and name != "fc_block":
                return pooled(x, SIDES[layer], "max")
        return x  # [B, 4096]


RELEASED = WeightsFile(
    name="alexnet-rotnet.pth",
    url=None,
    where="Get ImageNet_RotNet_AlexNet_pytorch from the README of "
    "github.com/gidariss/FeatureLearningRotNet, or train one with experiments/pretrain.py --arch "
    "alexnet-rotnet. Put it into one of these folders as alexnet-rotnet.pth, or pass its path.",
)


def _rotnet() -> BackboneSpec:
    return BackboneSpec(
        build=RotNetAlexNet,
        layers=MAP_FEATURES | {"fc_block": 4096},
        layer="fc_block",
        preprocessings={
            "standard": Preprocessing(resize=256, crop=224),
            "paper-code": Preprocessing(resize=257, crop=224),
        },
        weights=RELEASED,
        head=("_feature_blocks.9.",),
    )


IMAGE_BACKBONES: dict[str, Callable[[], BackboneSpec]] = {"alexnet-rotnet": _rotnet}
