"""A small face set of coloured noise, and a tiny backbone, for tests of probes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rayssl.backbones
from rayssl.data.faces import FaceSet, crops_path, member_name, write_crops, write_face_set

TINY = '''
"""A tiny network with all that can move: BatchNorm, dropout. Tells the mode of every call."""

import torch
from torch import nn

from rayssl.backbones.images import BackboneSpec, Preprocessing
from rayssl.backbones.weights import WeightsFile

MODES = []


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, layer):
        MODES.append((self.training, len(x)))
        return self.drop(self.bn(self.conv(x)).relu().flatten(1))


def spec(weights=None):
    return BackboneSpec(
        build=Tiny, weights=weights, layers={"map": 288}, layer="map",
        preprocessings={"standard": Preprocessing(28, 28), "paper-code": Preprocessing(32, 28)},
    )


def from_file():
    return spec(WeightsFile("tiny.pth", url=None, where="Save its state dict."))


IMAGE_BACKBONES = {"tiny": spec, "tiny-inference": spec, "tiny-file": from_file}
'''


def write_toy_faces(
    folder: Path, *, families: int = 10, frames: int = 3, size: int = 32
) -> FaceSet:
    """Writes families of one real and one fake video; fakes have a flat grey square, masked."""
    rng = np.random.default_rng(0)
    videos, rows = [], []
    for family in range(families):
        colour = rng.integers(60, 200, 3)
        for label in (0, 1):
            video = f"drawn_faces_part_0/v{family}{'ab'[label]}"
            crops = {}
            for frame in range(frames):
                face = np.clip(colour + rng.normal(0, 15, (size, size, 3)), 0, 255).astype(np.uint8)
                mask = np.zeros((size, size), np.uint8)
                if label:
                    mask[size // 4 : size // 2, size // 4 : size // 2] = 255
                    face[mask > 0] = 128
                crops[member_name(frame, 0, "face")] = face
                crops[member_name(frame, 0, "mask")] = mask
                rows.append({
                    "video": video, "frame": frame, "face": 0, "found": True, "left": 0, "top": 0,
                    "side": size,
                })  # fmt: skip
            videos.append({
                "video": video, "family": f"f{family}", "actor": f"a{family}",
                "other_actor": None, "part": "drawn_faces_part_0", "label": label,
                "method": "square" if label else "original", "num_frames": frames,
                "num_sampled": frames, "num_without_face": 0, "has_masks": bool(label),
                "sha256": write_crops(crops_path(folder, video), crops),
            })  # fmt: skip
    return write_face_set(folder, pd.DataFrame(videos), pd.DataFrame(rows), {"size": size}, {})


def add_tiny_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts `tiny`, `tiny-inference` and `tiny-file` beside the others, as a user's file would."""
    (folder / "tiny_probe_net.py").write_text(TINY)
    monkeypatch.setattr(rayssl.backbones, "__path__", [*rayssl.backbones.__path__, str(folder)])
