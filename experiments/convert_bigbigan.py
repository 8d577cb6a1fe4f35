"""Converts the encoder of a BigBiGAN TF-Hub module to a file that rayssl loads.

    pip install tensorflow tensorflow_hub 'setuptools<81'   # beside rayssl; any machine, no GPU
    python experiments/convert_bigbigan.py --architecture revnet50x4 --out bigbigan-revnet50x4.npz
    python experiments/convert_bigbigan.py --architecture resnet50 --list-variables

tfhub.dev sends its visitors to Kaggle Models; a module that was downloaded and unpacked is given as
a folder (`--module DIR`). The file also holds the module's own features of two drawn images, and is
written only if our encoder gives the same. This script has been run on modules of the same graphs
that TensorFlow 2.21 wrote with drawn weights (tests/bigbigan_module.py), not on DeepMind's own:
none was at hand. rayssl/backbones/bigbigan_variables.py says what is known of their variables; if
they do not fit, the error lists them, and `--scope`, `--averaged`, `--epsilon` and `--latent` are
what to vary.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro
from safetensors.numpy import save_file
from torch import Tensor

from rayssl.backbones.bigbigan import (
    EPSILON,
    GOLDEN,
    GOLDEN_SEED,
    BigBiGANEncoder,
    golden_images,
    load_encoder,
)
from rayssl.backbones.bigbigan_variables import map_variables
from rayssl.backbones.images import image_backbone_spec
from rayssl.backbones.resnet50v2 import TF_EPSILON
from rayssl.cli import refuse

Arrays = Mapping[str, npt.NDArray[Any]]
Encode = Callable[[npt.NDArray[np.float32]], Arrays]  # images [N, 256, 256, 3] -> its outputs


@dataclass(frozen=True)
class Conversion:
    """Settings of one conversion."""

    architecture: Literal["resnet50", "revnet50x4"]
    """Of the encoder."""
    out: Path | None = None
    """File to write: .npz or .safetensors; default: bigbigan-ARCHITECTURE.npz here."""
    module: str | None = None
    """Address or folder of the module; default: DeepMind's at tfhub.dev."""
    scope: str = "encoder"
    """Part of the names of the encoder's variables."""
    averaged: bool = True
    """Take the moving average of a weight where the module holds one."""
    epsilon: float = TF_EPSILON
    """Of BatchNorm; the default is tf.layers'."""
    latent: bool = True
    """Convert the latent head, too (z_mean); its layers are not confirmed."""
    seed: int = 0
    """Of the images of the golden vector."""
    list_variables: bool = False
    """Print name and shape of every variable of the module, and stop."""


def load_module(address: str) -> tuple[Arrays, Encode]:
    """Returns the variables of a module by name, and its signature `encode`.

    Raises:
      ValueError: if TensorFlow is not installed or the module cannot be loaded.
    """
    try:
        tf: Any = importlib.import_module("tensorflow")
        hub: Any = importlib.import_module("tensorflow_hub")
    except ImportError as error:
        raise ValueError(
            f"TensorFlow is needed to read a module ({error}). pip install tensorflow "
            "tensorflow_hub 'setuptools<81', here or on another machine, and copy the file that "
            "comes out."
        ) from error
    try:
        module = hub.load(address, tags=[])
        encode = module.signatures["encode"]
        variables = {variable.name: variable.numpy() for variable in module.variables}
    except Exception as error:  # TensorFlow raises classes of its own for each file system
        raise ValueError(f"{address} cannot be loaded as a BigBiGAN module: {error}") from error

    def features(images: npt.NDArray[np.float32]) -> Arrays:
        return {name: value.numpy() for name, value in encode(x=tf.constant(images)).items()}

    return variables, features


def convert(variables: Arrays, encode: Encode, run: Conversion) -> dict[str, Tensor]:
    """Returns all that the file holds: weights under our names, epsilon and golden vector.

    Raises:
      ValueError: if a variable finds no place, or if our encoder's features are not the module's.
    """
    name = f"bigbigan-{run.architecture}"
    encoder = image_backbone_spec(name).build()
    assert isinstance(encoder, BigBiGANEncoder)
    if not run.latent:
        encoder.latent = None
    shapes = {key: value.shape for key, value in variables.items()}
    sources = map_variables(shapes, encoder, scope=run.scope, averaged=run.averaged)
    state = {
        ours: torch.from_numpy(np.ascontiguousarray(variables[source].transpose(axes)))
        for ours, (source, axes) in sources.items()
    }
    state[EPSILON] = torch.tensor(run.epsilon)
    state[GOLDEN_SEED] = torch.tensor(run.seed)
    images = golden_images(run.seed).permute(0, 2, 3, 1).contiguous().numpy()
    for layer, features in encode(images).items():
        if layer in ("avepool_feat", "bn_crelu_feat", "z_mean"):
            state[GOLDEN + layer] = torch.from_numpy(np.ascontiguousarray(features))
    load_encoder(encoder, state, f"the conversion of {name}")
    return state


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes a file of arrays in one step."""
    arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez(part, **arrays)
        else:
            save_file(arrays, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Converts what a command line asks for and returns the file."""
    run = tyro.cli(Conversion, args=argv)
    out = run.out or Path(f"bigbigan-{run.architecture}.npz")
    try:
        if out.suffix not in (".npz", ".safetensors"):
            raise ValueError(f"--out must end in .npz or .safetensors, got {out}.")
        if out.exists() and not run.list_variables:
            raise ValueError(f"{out} is there already. Choose another --out, or move it away.")
        if not out.resolve().parent.is_dir():
            raise ValueError(f"--out: the folder of {out} is not there.")
        if run.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {run.seed}.")
        if not 0 < run.epsilon < 1:
            raise ValueError(f"--epsilon must lie between 0 and 1, got {run.epsilon}.")
        address = run.module or f"https://tfhub.dev/deepmind/bigbigan-{run.architecture}/1"
        variables, encode = load_module(address)
        if run.list_variables:
            for name, value in sorted(variables.items()):
                print(name, tuple(value.shape))
            return None
        write(convert(variables, encode, run), out)
    except (ValueError, OSError) as error:
        refuse(error)
    print(f"{out}: the encoder's features equal the module's. Use it with --weights {out}, or put")
    print("it into the folder RAYSSL_WEIGHTS.")
    return out


if __name__ == "__main__":
    main()
