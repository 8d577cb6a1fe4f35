"""SmoothGrad: which pixels move a score. For any score of any network, and marked against a mask.

    maps = smoothgrad(lambda x: network(x)[:, 1], images, seed=0)     # like images
    panel(images, pixel_maps(maps), "maps.png")

Gradients are captum's. The noise is not: captum's NoiseTunnel draws it from the global generator,
so that its maps change with its batch size, and takes its deviation as an absolute number.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import Saliency
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

Kind = Literal["smoothgrad_sq", "smoothgrad"]
Score = Callable[[Tensor], Tensor]

SAMPLES = 20  # noisy copies; the authors' code
NOISE = 0.05  # share of the input's range; the authors' code. Smilkov et al. suggest 0.1 to 0.2
SHOWN_PERCENTILE = 99.0  # brighter pixels are drawn alike; Smilkov et al. 2017, section 3.1


def smoothgrad(
    score: Score,
    x: Tensor,
    *,
    kind: Kind = "smoothgrad_sq",
    samples: int = SAMPLES,
    noise: float = NOISE,
    value_range: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Returns the gradient of a score with respect to its input, averaged over noisy inputs.

    smoothgrad_sq: 1/n sum_j (d score / dx (x + sigma e_j))^2, the paper's "squared average of the
    gradients"; smoothgrad: 1/n sum_j d score / dx (x + sigma e_j), with its sign. e_j ~ N(0, 1),
    sigma = noise (max - min).

    Every input sees the same e_j, drawn on the CPU from a generator of this function's own: a map
    depends on its input and the seed, not on the batch size, the device or what else is in x.

    Args:
      score: differentiable; takes `[B, ...]`, returns `[B]`, each entry of its own input only: put
        the network in evaluation mode.
      x: float `[N, ...]`; not modified.
      kind: mean of squares or of gradients.
      samples: n, noisy copies of an input.
      noise: sigma as a share of the range; 0 for the plain gradient.
      value_range: min and max that noise is a share of; None: those of each input. The authors'
        code takes those of the batch.
      seed: of the noise.
      batch_size: noisy copies of one input a call of score, at most.
    Returns:
      float32, the shape and device of x.
    Raises:
      ValueError: for values that cannot work, or a score that is not `[B]`.
    Source: Fig. 9 and section VI; Smilkov et al. 2017, arXiv:1706.03825.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if samples < 1 or batch_size < 1:
        raise ValueError(
            f"samples and batch_size must be 1 or more, got {samples} and {batch_size}."
        )
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite share of the range, 0 or more, got {noise}.")
    if not x.is_floating_point() or x.dim() < 2 or len(x) == 0:
        raise ValueError(f"Expected float inputs [N, ...], got {x.dtype} {tuple(x.shape)}.")
    x = x.detach().float()
    sigma = noise * _ranges(x, value_range)  # [N, 1, ...]
    draws = _noise((samples, *x.shape[1:]), seed, x.device)
    _check_score(score, x[:1])
    method = Saliency(score)
    total = torch.zeros_like(x)
    for i, one in enumerate(x):
        for part in draws.split(batch_size):
            noisy = (one + sigma[i] * part).requires_grad_()
            with torch.enable_grad():
                gradient = method.attribute(noisy, abs=False).detach()
            total[i] += (gradient**2 if kind == "smoothgrad_sq" else gradient).sum(0)
    return total / samples


def pixel_maps(maps: Tensor) -> npt.NDArray[np.float64]:
    """Returns one number a pixel, 0 or more: the sum of a map's absolute values over channels.

    Args:
      maps: `[N, C, H, W]`, from `smoothgrad`.
    Returns:
      `[N, H, W]`.
    """
    found: npt.NDArray[np.float64] = maps.detach().cpu().double().abs().sum(1).numpy()
    return found


class MaskScores(NamedTuple):
    """How much of a map lies where it should, for each image: `[N]` each.

    Attributes:
      energy_inside: share of the map's sum that lies in the mask.
      pointing: 1 where the map's largest pixel lies in the mask, else 0.
      chance: share of the pixels that the mask has: what a map that knows nothing gets in both.
    """

    energy_inside: npt.NDArray[np.float64]
    pointing: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]


def score_against_masks(maps: npt.NDArray[np.float64], masks: npt.NDArray[np.bool_]) -> MaskScores:
    """Returns energy inside, pointing game and chance level of each map.

    Args:
      maps: `[N, H, W]`, 0 or more, as `pixel_maps` returns them.
      masks: bool `[N, H, W]`, neither empty nor full.
    Raises:
      ValueError: for shapes that do not fit, a map of zeros, or a mask that has no inside or
        outside.
    Source: pointing game: Zhang et al. 2016, arXiv:1608.00507, without its tolerance; energy:
      Wang et al. 2020, arXiv:1910.01279, section 4.3.
    """
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(
            f"Expected maps and masks [N, H, W], got shapes {maps.shape} and {masks.shape}."
        )
    flat, inside = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
    chance = inside.mean(1)
    if not ((chance > 0) & (chance < 1)).all():
        raise ValueError(
            "Expected masks with an inside and an outside, got an empty or a full one. Score "
            "manipulated images only."
        )
    total = flat.sum(1)
    if not (np.isfinite(total) & (total > 0)).all():
        bad = int((~(np.isfinite(total) & (total > 0))).sum())
        raise ValueError(
            f"Expected maps with a finite sum above 0, got {bad} of {len(total)} without. Does the "
            "score use its input, or is a ReLU on it dead?"
        )
    pointing = np.take_along_axis(inside, flat.argmax(1)[:, None], 1)[:, 0]
    return MaskScores((flat * inside).sum(1) / total, pointing.astype(np.float64), chance)


def reinitialized(network: nn.Module, *, seed: int) -> nn.Module:
    """Returns a copy of a network that has learnt nothing: every layer drawn anew.

    A map that looks the same for both shows the image, not what the network learnt.

    Raises:
      ValueError: if no layer can be drawn anew.
    Source: Adebayo et al. 2018, arXiv:1810.03292.
    """
    fresh = copy.deepcopy(network)
    layers: list[Any] = [part for part in fresh.modules() if hasattr(part, "reset_parameters")]
    if not layers:
        raise ValueError("Expected a network with layers that know reset_parameters(), got none.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
    return fresh


def panel(
    images: npt.NDArray[np.float64],
    maps: npt.NDArray[np.float64],
    path: str | Path,
    *,
    frames: npt.NDArray[np.float64] | None = None,
    masks: npt.NDArray[np.bool_] | None = None,
    captions: Sequence[str] = (),
    notes: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draws image, map and overlay of each input as a column (Fig. 9) and returns the PNG's path.

    Each map is scaled to its own 99th percentile. Masks, where given, are outlined.

    Args:
      images: `[N, H, W, 3]` or `[N, H, W]`, in [0, 1].
      maps: `[N, H, W]`, 0 or more.
      path: where to write.
      frames: `[N, F, H, W]`, in [0, 1]: all frames of an input of several, drawn in place of the
        image, one below the other; the overlay is on the image.
      captions: one for each column.
      notes: one below each map.
    """
    count, above = len(images), 1 if frames is None else frames.shape[1]
    size = (2.0 * count + 0.4, 2.0 * (above + 2) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(above + 2, count, squeeze=False)
    bright = shown_map(maps)
    for i, column in enumerate(axes.T):
        for k in range(above):
            _show(column[k], images[i] if frames is None else frames[i, k])
        _show(column[-2], bright[i], "inferno")
        _show(column[-1], images[i])
        column[-1].imshow(bright[i], cmap="inferno", alpha=bright[i], vmin=0, vmax=1)
        if masks is not None and masks[i].any():
            for axis in column:
                axis.contour(masks[i], levels=[0.5], colors="#33ddff", linewidths=0.8)
        if captions:
            column[0].set_title(captions[i], fontsize=7)
        if notes:
            column[-2].set_xlabel(notes[i], fontsize=7)
    inputs = ["input"] if frames is None else [f"frame {k + 1}" for k in range(above)]
    for axis, label in zip(axes[:, 0], [*inputs, "attribution", "overlay"], strict=True):
        axis.set_ylabel(label, fontsize=8)
    figure.suptitle(title, fontsize=9)
    path = Path(path)
    figure.savefig(path, dpi=130, format="png")
    return path


def shown_map(maps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns maps as they are drawn, in [0, 1]: each as a share of its own 99th percentile.

    Args:
      maps: `[N, H, W]`, 0 or more.
    """
    top = np.percentile(maps, SHOWN_PERCENTILE, axis=(1, 2), keepdims=True)
    bright: npt.NDArray[np.float64] = np.clip(maps / np.where(top > 0, top, 1), 0, 1)
    return bright


class Condition(NamedTuple):
    """A row of `condition_grid`: a network's maps of the same inputs.

    Attributes:
      name: which network.
      maps: `[N, H, W]`, 0 or more.
      notes: one below each map, or none.
    """

    name: str
    maps: npt.NDArray[np.float64]
    notes: Sequence[str] = ()


def condition_grid(
    images: npt.NDArray[np.float64],
    conditions: Sequence[Condition],
    path: str | Path,
    *,
    captions: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draws inputs on top and one row of maps for each network (Fig. 11); returns the PNG's path.

    Args:
      images: `[N, H, W, 3]` or `[N, H, W]`, in [0, 1].
      conditions: the rows.
      path: where to write.
      captions: one for each column.
    """
    rows = 1 + len(conditions)
    figure = Figure(figsize=(2.0 * len(images) + 0.6, 2.15 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(images), squeeze=False)
    for i, axis in enumerate(axes[0]):
        _show(axis, images[i])
        if captions:
            axis.set_title(captions[i], fontsize=7)
    axes[0, 0].set_ylabel("input", fontsize=8)
    for row, condition in zip(axes[1:], conditions, strict=True):
        bright = shown_map(condition.maps)
        for i, axis in enumerate(row):
            _show(axis, bright[i], "inferno")
            if condition.notes:
                axis.set_xlabel(condition.notes[i], fontsize=7)
        row[0].set_ylabel(condition.name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    path = Path(path)
    figure.savefig(path, dpi=130, format="png")
    return path


def _show(axis: Axes, picture: npt.NDArray[np.float64], colours: str = "gray") -> None:
    axis.imshow(picture, cmap=colours if picture.ndim == 2 else None, vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def _ranges(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """max - min for each input: `[N, 1, ...]`."""
    ones = (1,) * (x.dim() - 1)
    if value_range is None:
        flat = x.flatten(1)
        return (flat.amax(1) - flat.amin(1)).view(-1, *ones)
    low, high = value_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"Expected a value range of two numbers, low < high, got {value_range}.")
    return torch.full((len(x), *ones), high - low, device=x.device)


@lru_cache(maxsize=1)  # map after map asks for the same: 60 ms for 50 copies of a photograph
def _noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Draws of a standard normal, float32, on the device; nobody may write to them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def _check_score(score: Score, x: Tensor) -> None:
    with torch.no_grad():
        found = score(x)
    if found.shape != x.shape[:1]:
        raise ValueError(
            f"Expected a score [B], one number an input, got shape {tuple(found.shape)} for "
            f"{len(x)} inputs. Choose one output, e.g. lambda x: network(x)[:, 1]."
        )
