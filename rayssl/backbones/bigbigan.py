"""BigBiGAN's two encoders, ResNet-50v2 and RevNet-50x4: Table III, rows 5 and 6.

Their weights exist as TensorFlow modules only; `experiments/convert_bigbigan.py` makes a `.npz` of
one. The graph behind them is not published. It is taken to be that of Kolesnikov et al., whose
sizes of features agree with the modules' signatures. What settles it is the golden vector: the
module's own features of two drawn images stand in the file, and `load_encoder` refuses weights that
do not give the same.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.backbones.images import BackboneSpec, Preprocessing
from rayssl.backbones.resnet50v2 import TF_EPSILON, TF_MOMENTUM, ResNet50V2
from rayssl.backbones.revnet import RevNet50
from rayssl.backbones.weights import WeightsFile, load_strictly

LATENTS = 120
HIDDEN = 4096
GOLDEN = "golden."  # names of what is no weight in a file
GOLDEN_SEED = f"{GOLDEN}seed"
GOLDEN_TOLERANCE = 1e-3  # of the features' length; TensorFlow and PyTorch round differently
EPSILON = "batch_norm_epsilon"  # in a file: another one than tf.layers' default


class LatentHead(nn.Module):
    """Maps average-pooled features to the latents' mean and, before a softplus, deviation.

    Four layers of 4096 with ReLU, skips around the last three, then two linear layers. This
    structure is from memory of the BigBiGAN paper's appendix, not confirmed against the module.
    """

    def __init__(self, in_features: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        sizes = (in_features, hidden, hidden, hidden)
        self.layers = nn.ModuleList(nn.Linear(size, hidden) for size in sizes)
        self.mean, self.deviation = nn.Linear(hidden, LATENTS), nn.Linear(hidden, LATENTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        for layer in self.layers[1:]:
            x = x + F.relu(layer(x))
        mean: Tensor = self.mean(x)
        return mean


class BigBiGANEncoder(nn.Module):
    """A trunk and the three outputs of the module's signature `encode`.

    Args of the forward pass:
      x: float `[B, 3, 256, 256]` in [-1, 1].
      layer:
        "avepool_feat": a, the trunk's average-pooled map, `[B, D]`;
        "bn_crelu_feat": [ReLU(BN(a)), ReLU(-BN(a))], `[B, 2D]`, BN without scale and offset;
        "z_mean": mean of q(z | x), `[B, 120]`.
    Source: Donahue and Simonyan 2019, arXiv:1907.02544, section 3.2 (BN+CReLU); signatures of
    tfhub.dev/deepmind/bigbigan-resnet50/1 and bigbigan-revnet50x4/1.
    """

    def __init__(self, trunk: ResNet50V2 | RevNet50, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.trunk = trunk
        features = trunk.out_features
        self.crelu_norm = nn.BatchNorm1d(features, TF_EPSILON, TF_MOMENTUM, affine=False)
        self.latent: LatentHead | None = LatentHead(features, hidden)

    def forward(self, x: Tensor, layer: str = "avepool_feat") -> Tensor:
        a: Tensor = self.trunk(x)
        if layer == "z_mean":
            if self.latent is None:
                raise ValueError(
                    "This weight file holds no latent head, so there is no z_mean. Use avepool_feat"
                    " or bn_crelu_feat."
                )
            features: Tensor = self.latent(a)
            return features
        if layer == "bn_crelu_feat":
            normed = self.crelu_norm(a)
            return torch.cat([F.relu(normed), F.relu(-normed)], dim=1)
        return a


def golden_images(seed: int) -> Tensor:
    """Returns the two images of the golden vector: float32 `[2, 3, 256, 256]` in [-1, 1).

    8x8 coloured tiles each, drawn in TensorFlow's layout, `[2, 8, 8, 3]`, by numpy's default
    generator. Noise of single pixels would average to nearly the same features in every image.
    """
    tiles = np.random.default_rng(seed).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    return torch.from_numpy(tiles.repeat(32, 1).repeat(32, 2)).permute(0, 3, 1, 2)


def load_encoder(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads a converted file and compares the network's features with the golden vector in it.

    Raises:
      ValueError: if weights are missing, unexpected or of another shape, if there is no golden
        vector, or if a feature differs from it.
    """
    assert isinstance(network, BigBiGANEncoder)
    golden = {k: v for k, v in state.items() if k.startswith(GOLDEN)}
    weights = {k: v for k, v in state.items() if k not in golden}
    epsilon = weights.pop(EPSILON, None)
    if epsilon is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.eps = float(epsilon)
    if not any(name.startswith("latent.") for name in weights):
        network.latent = None
    load_strictly(network, weights, source=source)
    layers = ["avepool_feat", "bn_crelu_feat"]
    if network.latent is not None:
        layers.append("z_mean")
    missing = [name for name in (GOLDEN_SEED, *(GOLDEN + k for k in layers)) if name not in golden]
    if missing:
        raise ValueError(
            f"{source} holds no golden vector (missing: {', '.join(missing)}), got "
            f"{sorted(golden)}. Convert the module again with experiments/convert_bigbigan.py."
        )
    network.eval()
    x = golden_images(int(golden[GOLDEN_SEED]))
    for layer in layers:
        expected = golden[GOLDEN + layer]
        with torch.no_grad():
            found = network(x, layer)
        error = float("nan")
        if found.shape == expected.shape:
            error = float((found - expected).norm() / expected.norm())
        if not error <= GOLDEN_TOLERANCE:  # NaN is not
            raise ValueError(
                f"{source}: {layer} of the golden images differs from the module's own by "
                f"{error:.2g} of its length, {GOLDEN_TOLERANCE:g} is allowed. The graph or the "
                "mapping of weights is not the module's: do not use these features."
            )


def _spec(name: str, build: Callable[[], nn.Module], features: int) -> BackboneSpec:
    return BackboneSpec(
        build=build,
        layers={"avepool_feat": features, "bn_crelu_feat": 2 * features, "z_mean": LATENTS},
        layer="avepool_feat",
        preprocessings={
            # DeepMind's notebook bigbigan_with_tf_hub: Pillow's bicubic, x / 127.5 - 1.
            "standard": Preprocessing(256, 256, "pm1", "bicubic", augment=False),
            # The authors' code: cv2.resize with its defaults; no augmentation in training.
            "paper-code": Preprocessing(256, 256, "pm1", antialias=False, augment=False),
        },
        weights=WeightsFile(
            name=f"{name}.npz",
            url=None,
            where="Where TensorFlow is installed, run: python experiments/convert_bigbigan.py "
            f"--architecture {name.removeprefix('bigbigan-')} --out {name}.npz. Put the file into "
            "one of these folders, or pass its path.",
        ),
        load=load_encoder,
    )


IMAGE_BACKBONES: dict[str, Callable[[], BackboneSpec]] = {
    "bigbigan-resnet50": lambda: _spec(
        "bigbigan-resnet50", lambda: BigBiGANEncoder(ResNet50V2()), 2048
    ),
    "bigbigan-revnet50x4": lambda: _spec(
        "bigbigan-revnet50x4", lambda: BigBiGANEncoder(RevNet50()), 8192
    ),
}
