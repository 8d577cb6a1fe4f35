"""Feature networks for colour images: crops of faces -> `[B, out_features]` of a named layer.

Adding one is one new file here, `rayssl/backbones/<name>.py`, that defines

    IMAGE_BACKBONES: dict[str, Callable[[], BackboneSpec]] = {"<name>": my_spec}

The keys are the names on the command line. Nothing else has to be edited: the registry reads the
folder and `tests/test_image_backbones.py` runs over every name in it.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rayssl.backbones
from rayssl.backbones.weights import (
    MissingWeights,
    WeightsFile,
    file_sha256,
    find_weights,
    load_strictly,
    load_weights,
)

__all__ = [
    "BackboneSpec",
    "ImageBackbone",
    "MissingWeights",
    "Preprocessing",
    "available_image_backbones",
    "load_weights",
    "make_image_backbone",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]: torchvision's published transforms
IMAGENET_STD = (0.229, 0.224, 0.225)
Normalization = Literal["imagenet", "pm1"]


@dataclass(frozen=True)
class Preprocessing:
    """From square uint8 crops to what a network takes.

    Attributes:
      resize: side to which a crop is scaled, pixels.
      crop: side of the part that is cut out of it: the centre, or a random place in training.
      normalization: "imagenet": (x / 255 - mean) / std; "pm1": x / 127.5 - 1, in [-1, 1].
      interpolation: of the scaling.
      antialias: low-pass before scaling down, as Pillow does and OpenCV does not.
      augment: cut out at random and mirror half of the images in training.
    """

    resize: int
    crop: int
    normalization: Normalization = "imagenet"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    augment: bool = True

    @property
    def id(self) -> str:
        """A short text that differs wherever the pixels that a network sees differ."""
        scaling = self.interpolation + ("" if self.antialias else "-aliased")
        return f"{scaling}{self.resize}-crop{self.crop}-{self.normalization}"

    def __call__(
        self, crops: Tensor, *, train: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns float32 `[B, 3, crop, crop]` on the device of the crops.

        Args:
          crops: uint8 `[B, 3, S, S]`, RGB, any S.
          train: cut out at random places and mirror half of the images, if `augment`.
          generator: source of that randomness, on the CPU; needed in training.
        Raises:
          ValueError: if crops are no uint8 `[B, 3, S, S]`, or training lacks a generator.
        """
        if crops.dtype != torch.uint8 or crops.dim() != 4 or crops.shape[1] != 3 or (
            crops.shape[2] != crops.shape[3]
        ):  # fmt: skip
            raise ValueError(
                "Expected uint8 crops [B, 3, S, S], got "
                f"{str(crops.dtype).removeprefix('torch.')} {tuple(crops.shape)}. Cut out squares."
            )
        x = crops.float()
        if x.shape[-1] != self.resize:
            size = (self.resize, self.resize)
            x = F.interpolate(x, size, mode=self.interpolation, antialias=self.antialias)
            x = x.round().clamp(0, 255)  # to whole values as in files; bicubic overshoots
        if train and self.augment:
            if generator is None:
                raise ValueError("Training needs a generator for random crops, got none.")
            x = random_crop_and_flip(x, self.crop, generator=generator)
        else:
            first = round((self.resize - self.crop) / 2)
            x = x[:, :, first : first + self.crop, first : first + self.crop]
        if self.normalization == "pm1":
            return x / 127.5 - 1
        mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(3, 1, 1)
        std = torch.tensor(IMAGENET_STD, device=x.device).view(3, 1, 1)
        return (x / 255 - mean) / std


def random_crop_and_flip(x: Tensor, side: int, *, generator: torch.Generator) -> Tensor:
    """Returns a square part of each image from a place of its own; half of them mirrored.

    Args:
      x: `[B, C, H, W]`, H and W at least `side`.
      side: of the parts, pixels.
      generator: on the CPU; three draws a sample, so sample i does not depend on the batch size.
    """
    draws = torch.rand(len(x), 3, generator=generator).tolist()
    parts = []
    for image, (y, left, flip) in zip(x, draws, strict=True):
        top, first = int(y * (x.shape[2] - side + 1)), int(left * (x.shape[3] - side + 1))
        part = image[:, top : top + side, first : first + side]
        parts.append(part.flip(2) if flip < 0.5 else part)
    return torch.stack(parts) if parts else x[:, :, :side, :side]


@dataclass(frozen=True)
class BackboneSpec:
    """What a file of this folder says of a backbone.

    Attributes:
      build: makes the network with random weights from torch's global random state. Its
        `forward(x, layer)` returns `[B, layers[layer]]`.
      layers: name -> number of features, from the image on.
      layer: the one that the authors' code takes.
      preprocessings: "standard" and "paper-code".
      weights: the file it needs; None: it keeps its random weights.
      head: beginnings of the names of the classification layer in weight files, which is left out.
      load: takes the tensors of a file into the network; default: `load_strictly`.
    """

    build: Callable[[], nn.Module]
    layers: Mapping[str, int]
    layer: str
    preprocessings: Mapping[str, Preprocessing]
    weights: WeightsFile | None = None
    head: tuple[str, ...] = ()
    load: Callable[[nn.Module, dict[str, Tensor], str], None] | None = None


class ImageBackbone(nn.Module):
    """A network up to a named layer, with the preprocessing it was made for.

    Attributes:
      name: as in `available_image_backbones`.
      layers: names of the layers it can give; layer: the one it gives; out_features: its size.
      preprocessing: a text that differs wherever the input pixels differ (for keys of caches).
      weights_id: beginning of the SHA-256 of the weight file, or `random-<seed>`.
    Args of the forward pass:
      x: float `[B, 3, H, W]`, as `preprocess` returns it.
    Returns:
      `[B, out_features]`.
    """

    def __init__(
        self, name: str, spec: BackboneSpec, layer: str, preprocessing: Preprocessing,
        weights_id: str, network: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.layers, self.layer = name, tuple(spec.layers), layer
        self.out_features = spec.layers[layer]
        self._preprocessing, self.preprocessing = preprocessing, preprocessing.id
        self.weights_id = weights_id
        self.network = network

    def preprocess(
        self, crops: Tensor, *, train: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns what the network takes; see `Preprocessing.__call__`."""
        return self._preprocessing(crops, train=train, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x, self.layer)
        return features


def available_image_backbones() -> tuple[str, ...]:
    """Returns the names that `make_image_backbone` takes, sorted."""
    return tuple(sorted(_constructors()))


def image_backbone_spec(name: str) -> BackboneSpec:
    """Returns what there is to know of a backbone without building it.

    Raises:
      ValueError: for an unknown name; the text lists the known ones.
    """
    constructors = _constructors()
    if name not in constructors:
        close = difflib.get_close_matches(name, constructors, n=1)
        raise ValueError(
            f"Unknown backbone {name!r}. Available: {', '.join(sorted(constructors))}. "
            "To add one, create rayssl/backbones/<name>.py."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return constructors[name]()


def make_image_backbone(
    name: str,
    *,
    layer: str | None = None,
    weights: Path | None = None,
    seed: int = 0,
    preprocessing: str = "standard",
) -> ImageBackbone:
    """Returns a backbone in evaluation mode, with its weights.

    Args:
      name: one of `available_image_backbones`.
      layer: one of its layers; None: the one of the authors' code.
      weights: a file; None: RAYSSL_WEIGHTS, TORCH_HOME or the network (see weights.py).
      seed: of random weights, where the backbone has no file; global random state is left alone.
      preprocessing: "standard" (as the weights were evaluated by their publisher) or "paper-code".
    Raises:
      ValueError: for an unknown name, layer or preprocessing, for weights given to a random
        network, and for a file that is damaged or does not fit.
      MissingWeights: if the file is nowhere; one line that says where to get it.
    """
    spec = image_backbone_spec(name)
    layer = spec.layer if layer is None else layer
    for what, value, known in (
        ("layer", layer, spec.layers),
        ("preprocessing", preprocessing, spec.preprocessings),
    ):
        if value not in known:
            raise ValueError(f"Unknown {what} {value!r} of {name}. Available: {', '.join(known)}.")
    if spec.weights is None and weights is not None:
        raise ValueError(f"{name} keeps its random weights, got the file {weights}. Leave it out.")
    path = find_weights(spec.weights, weights) if spec.weights else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build()
    weights_id = f"random-{seed}"
    if path is not None:
        state = load_weights(path)
        if spec.load is None:
            load_strictly(network, state, source=str(path), head=spec.head)
        else:
            spec.load(network, state, str(path))
        weights_id = file_sha256(path)[:16]
    made = ImageBackbone(name, spec, layer, spec.preprocessings[preprocessing], weights_id, network)
    return made.eval()


def pooled(x: Tensor, side: int, kind: Literal["avg", "max"]) -> Tensor:
    """Returns a map pooled to `side` x `side` and flattened: `[B, C * side * side]`."""
    pool = F.adaptive_avg_pool2d if kind == "avg" else F.adaptive_max_pool2d
    return pool(x, (side, side)).flatten(1)


def _constructors() -> dict[str, Callable[[], BackboneSpec]]:
    """Read the folder anew each time: a file added while Python runs is found, too."""
    found: dict[str, Callable[[], BackboneSpec]] = {}
    for module_info in pkgutil.iter_modules(rayssl.backbones.__path__):
        module: Any = importlib.import_module(f"rayssl.backbones.{module_info.name}")
        backbones = getattr(module, "IMAGE_BACKBONES", {})
        for name in backbones:
            if name in found:
                raise ValueError(
                    f"Expected one backbone for each name, got {name!r} again in "
                    f"rayssl/backbones/{module_info.name}.py. Rename one of the two."
                )
        found.update(backbones)
    return found
