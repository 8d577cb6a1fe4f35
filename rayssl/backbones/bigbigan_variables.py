"""Which variable of a BigBiGAN TensorFlow module is which weight of our encoder. No TensorFlow.

What is known and what is not. **From source**: the graph and its order of layers
(google/revisiting-self-supervised, models/resnet.py); the names that tf.layers gives there
(`conv2d_7/kernel`, `batch_normalization_7/gamma`, `beta`, `moving_mean`, `moving_variance`); in the
module's *generator*, as a public port of it reads them (anvoynov/BigGANsAreWatching, tf_tools): the
beginning `module/`, weights `w` and `b`, averaged copies `w/ema_b999900`, spectral-norm vectors
`u0`, and `CrossReplicaBN*/accumulated_mean`, `accumulated_var`, `accumulation_counter`. **To be
confirmed** when a module is first converted: the scope of the encoder, which of the two ways of
naming it uses, whether it has averaged copies, and the layers of the latent head. So layers are
matched by kind and order, every shape is checked, a variable that finds no place is an error that
lists it, and the golden vector has the last word (`rayssl.backbones.bigbigan.load_encoder`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from rayssl.backbones.bigbigan import BigBiGANEncoder

ROLES = {
    "w": "weight", "kernel": "weight", "weights": "weight",
    "b": "bias", "bias": "bias", "biases": "bias",
    "gamma": "scale", "scale": "scale", "beta": "offset", "offset": "offset",
    "moving_mean": "running_mean", "accumulated_mean": "running_mean",
    "moving_variance": "running_var", "accumulated_var": "running_var",
}  # fmt: skip
NOT_WEIGHTS = re.compile(r"/(u\d+|accumulation_counter|update_accumulators)$")
AVERAGED = re.compile(r"/ema_b\d+$")
CONV_AXES, LINEAR_AXES = (3, 2, 0, 1), (1, 0)  # HWIO -> OIHW; [in, out] -> [out, in]


class Source(NamedTuple):
    """Where a weight comes from: a variable's name, and the order of its axes in PyTorch."""

    variable: str
    axes: tuple[int, ...]


def map_variables(
    shapes: Mapping[str, Sequence[int]],
    encoder: BigBiGANEncoder,
    *,
    scope: str = "encoder",
    averaged: bool = True,
) -> dict[str, Source]:
    """Returns name of a weight of our encoder -> the variable that it comes from.

    Convolutions, normalizations and dense layers are each matched in order: theirs by name, with
    numbers as numbers (`conv2d_2` before `conv2d_10`), ours by construction, which is the order of
    the source. The normalization without scale and offset is that of BN+CReLU.

    Args:
      shapes: of all variables of the module, by name; `:0` at the end is taken off.
      encoder: ours; without its latent head (None), dense layers are left out.
      scope: a part of the path of each of the encoder's variables, in any case of letters.
      averaged: take a variable's moving average (`ema_b...`) where there is one.
    Raises:
      ValueError: listing the variables that find no place, or the layers whose shape or number
        differs.
    """
    inside = _variables_inside(shapes, scope, averaged)
    theirs: dict[str, list[dict[str, str]]] = {
        "conv": [],
        "norm": [],
        "plain_norm": [],
        "dense": [],
    }
    unmatched = [name for name, variable in inside.items() if _role(name) is None]
    for layer in _layers(name for name in inside if _role(name) is not None):
        kind = _kind(layer, {name: shapes[inside[name]] for name in layer.values()})
        if kind is None:
            unmatched += layer.values()
        elif not (kind == "dense" and encoder.latent is None):
            theirs[kind].append(layer)
    if unmatched:
        raise ValueError(
            f"These variables of the encoder find no place: {', '.join(sorted(unmatched))}. Their "
            "names are new to rayssl/backbones/bigbigan_variables.py: add them there."
        )
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for kind, modules in _our_layers(encoder).items():
        if len(modules) != len(theirs[kind]):
            raise ValueError(
                f"Expected {len(modules)} layers of kind {kind}, got {len(theirs[kind])}: "
                f"{', '.join(_folder(layer) for layer in theirs[kind]) or 'none'}."
            )
        for (prefix, module), layer in zip(modules, theirs[kind], strict=True):
            found |= _match(prefix, module, layer, {n: shapes[v] for n, v in inside.items()})
    return {ours: Source(inside[name], axes) for ours, (name, axes) in found.items()}


def _variables_inside(
    shapes: Mapping[str, Sequence[int]], scope: str, averaged: bool
) -> dict[str, str]:
    """Plain name of each weight of the encoder -> the variable to read for it."""
    inside: dict[str, str] = {}
    copies: dict[str, str] = {}
    for variable in shapes:
        name = variable.removesuffix(":0")
        if scope.lower() not in name.lower() or NOT_WEIGHTS.search(name):
            continue
        plain = AVERAGED.sub("", name)
        (copies if plain != name else inside)[plain] = variable
    if not inside and not copies:
        scopes = sorted({"/".join(name.split("/")[:2]) for name in shapes})
        raise ValueError(
            f"No variable has '{scope}' in its name; there are {', '.join(scopes[:20])}. Choose "
            "--scope among them."
        )
    return {**copies, **inside, **(copies if averaged else {})}


def _role(name: str) -> str | None:
    return ROLES.get(name.rpartition("/")[2])


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers as numbers, and a name before its own `_1`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _layers(names: Iterable[str]) -> list[dict[str, str]]:
    """Role -> name, for each folder of names, in order."""
    layers: dict[str, dict[str, str]] = {}
    for name in sorted(names, key=_natural):
        layers.setdefault(name.rpartition("/")[0], {})[str(_role(name))] = name
    return list(layers.values())


def _folder(layer: Mapping[str, str]) -> str:
    return next(iter(layer.values())).rpartition("/")[0]


def _kind(layer: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """What a layer is by the roles in it; None if it is nothing known."""
    roles = set(layer)
    if roles == {"scale", "offset", "running_mean", "running_var"}:
        return "norm"
    if roles == {"running_mean", "running_var"}:
        return "plain_norm"
    rank = len(shapes[layer["weight"]]) if "weight" in layer else 0
    if roles == {"weight"} and rank == 4:
        return "conv"
    if roles == {"weight", "bias"} and rank == 2:
        return "dense"
    return None


def _our_layers(encoder: BigBiGANEncoder) -> dict[str, list[tuple[str, nn.Module]]]:
    """Kind -> our layers with their names, in the order of the source's graph."""
    ours: dict[str, list[tuple[str, nn.Module]]] = {}
    for kind, of_kind in (
        ("conv", nn.Conv2d), ("norm", nn.BatchNorm2d), ("plain_norm", nn.BatchNorm1d),
        ("dense", nn.Linear),
    ):  # fmt: skip
        ours[kind] = [(n, m) for n, m in encoder.named_modules() if isinstance(m, of_kind)]
    return ours


def _match(
    prefix: str, module: nn.Module, layer: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our names of one layer -> variable and axes, with every shape checked."""
    found = {}
    for role, name in layer.items():
        norm = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
        own = {"scale": "weight", "offset": "bias"}[role] if role in ("scale", "offset") else role
        axes: tuple[int, ...] = (0,)
        if own == "weight" and not norm:
            axes = CONV_AXES if isinstance(module, nn.Conv2d) else LINEAR_AXES
        shape = tuple(shapes[name][axis] for axis in axes)
        expected = tuple(module.state_dict()[own].shape)
        if shape != expected:
            raise ValueError(
                f"Expected {expected} for {prefix}.{own}, got {shape} from {name}: layers are in "
                "another order than the source's, or of another network."
            )
        found[f"{prefix}.{own}"] = (name, axes)
    return found
