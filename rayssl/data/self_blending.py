"""Fakes made of real faces only: a face blended with a changed copy of itself.

A forgery leaves a border between two images of different statistics. Blending a face with its own
copy, after a change of colour or sharpness and a small warp, makes such a border, and no trait of a
person or of one method to learn. The idea is Shiohara and Yamasaki's (CVPR 2022, arXiv:2204.08376);
this is written anew from its description, and takes an ellipse where they take landmarks.

    source, target = change(x), x   or   x, change(x)
    fake = x_target + alpha (warp(x_source) - x_target),  alpha = ratio feather(ellipse)
"""

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # theirs: half of all are blended fully
LARGEST_SHIFT = 0.03  # of the crop's side
LARGEST_SCALE = 0.05


def self_blend(crops: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a fake of each real face and where it was blended.

    Args:
      crops: real faces in the middle of their squares, RGB uint8 `[N, S, S, 3]`. Not modified.
      rng: source of all randomness; drawn from in the same way whatever the pixels.
    Returns:
      fakes, uint8 `[N, S, S, 3]`; masks, uint8 `[N, S, S]`: 255 times the blending weight.
    Raises:
      ValueError: if crops are not squares of RGB bytes.
    """
    if crops.ndim != 4 or crops.shape[-1] != 3 or crops.dtype != np.uint8:
        raise ValueError(f"Expected uint8 crops [N, S, S, 3], got {crops.dtype} {crops.shape}.")
    if crops.shape[1] != crops.shape[2]:
        raise ValueError(f"Expected square crops [N, S, S, 3], got shape {crops.shape}.")
    fakes, masks = np.empty_like(crops), np.empty(crops.shape[:3], np.uint8)
    for i, crop in enumerate(crops):
        face = crop.astype(np.float32)
        changed = _change(face, rng)
        source, target = (changed, face) if rng.random() < 0.5 else (face, changed)
        alpha = _mask(len(face), rng)
        source, alpha = _warp(source, rng, alpha)
        mixed = target + alpha[..., None] * (source - target)
        fakes[i] = np.clip(np.rint(mixed), 0, 255)
        masks[i] = np.rint(alpha * 255)
    return fakes, masks


def _change(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The face with other colours, contrast, brightness and sharpness."""
    size = len(face)
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.94, 1.06, 3)
    mean = face.mean((0, 1))
    out = (face - mean) * gain + mean + rng.uniform(-14, 14) + rng.uniform(-8, 8, 3)
    soft = gaussian_filter(out, (size / 256 * rng.uniform(0.5, 2.0),) * 2 + (0,))
    # Softer than the face, or sharper by what a softer copy lacks.
    return soft if rng.random() < 0.5 else out + rng.uniform(0.2, 0.8) * (out - soft)


def _mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """A feathered inner face times the blending ratio, float `[S, S]` in [0, 1]."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    x0, y0 = rng.uniform(-0.06, 0.06, 2)
    width, height = rng.uniform(0.36, 0.60), rng.uniform(0.42, 0.70)
    bumps = 1 + 0.08 * np.cos(np.arctan2(y, x) * rng.integers(2, 6) + rng.uniform(0, 2 * np.pi))
    inside = (np.hypot((x - x0) / width, (y - y0) / height) < bumps).astype(np.float32)
    feathered = gaussian_filter(inside, size * rng.uniform(0.015, 0.05))
    return feathered * rng.choice(RATIOS)


def _warp(
    face: np.ndarray, rng: np.random.Generator, alpha: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The face slightly moved and scaled, and alpha with it."""
    size = len(face)
    scale = 1 + rng.uniform(-LARGEST_SCALE, LARGEST_SCALE, 2)
    middle = (size - 1) / 2
    offset = middle * (1 - scale) + rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 2) * size
    moved = [
        affine_transform(channel, scale, offset, order=1, mode="nearest")
        for channel in (*np.moveaxis(face, -1, 0), alpha)
    ]
    return np.stack(moved[:3], -1), moved[3]
