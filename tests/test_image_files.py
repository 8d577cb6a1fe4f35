"""Image files of one's own: values of 16 bits are scaled, what has no known range is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.data import load_folder
from rayssl.data.class_folders import ClassFolders
from rayssl.data.image_files import read_rgb

RAMP = np.tile(np.linspace(0, 65_535, 32).astype(np.uint16), (32, 1))  # [32, 32]


@pytest.mark.parametrize("name", ["ramp.png", "ramp.pgm", "ramp.tiff"])
def test_grey_of_16_bits_keeps_its_higher_byte(name: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    found = np.asarray(read_rgb(tmp_path / name))
    assert (found == (RAMP >> 8)[..., None]).all()
    assert (found.min(), found.max()) == (0, 255)


def test_colour_of_8_bits_and_grey_of_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == colour).all()
    Image.fromarray(colour[..., 0]).save(tmp_path / "b.png")
    assert (np.asarray(read_rgb(tmp_path / "b.png")) == colour[..., :1]).all()


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_values_of_no_known_range_are_refused(dtype: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "a.tiff")
    text = r"a\.tiff cannot be read as an image \(expected 8 or 16 bits a value, got mode [FI]\)\."
    with pytest.raises(ValueError, match=text):
        read_rgb(tmp_path / "a.tiff")


def test_images_of_bigan_and_of_pretraining_are_scaled_alike(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(RAMP).save(tmp_path / name / f"{i}.png")
    whole = torch.from_numpy((RAMP >> 8).astype(np.uint8))
    assert torch.equal(load_folder(tmp_path, 32).train_x[0, 0], whole)
    assert len(ClassFolders(tmp_path, 28)[-1, 0][0].unique()) == 28, "clipped: two values"
