"""Image files of one's own: 16 bits are scaled, parts of a data set are no classes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl._torchvision import torchvision
from rayssl.data import load_folder
from rayssl.data.class_folders import ClassFolders
from rayssl.data.file_tree import files_below
from rayssl.data.image_files import HELD_OUT, read_rgb

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


def write_greys(*folders: Path) -> None:
    """Writes into each folder ten images of one grey, that of its number."""
    for grey, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), grey).save(folder / f"{i}.png")


@pytest.mark.parametrize("name", HELD_OUT)
def test_folder_beside_train_is_for_testing_and_no_class(name: str, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train", tmp_path / name
    write_greys(train / "a", train / "b", held_out / "a", held_out / "b")
    data = load_folder(tmp_path, 8)
    assert (data.num_classes, data.test_x.unique().tolist()) == (2, [2, 3])
    text = f"Expected one folder a class in .*, got the parts train and {name} of a data set"
    with pytest.raises(ValueError, match=text):
        ClassFolders(tmp_path, 8)
    assert ClassFolders(train, 8).classes == ["a", "b"]


def test_folder_train_that_holds_classes_with_no_known_one_beside_it_is_refused(
    tmp_path: Path,
) -> None:
    write_greys(tmp_path / "train" / "a", tmp_path / "train" / "b", tmp_path / "holdout" / "a")
    text = "Expected beside .*train, which holds folders, one of test, val, valid, validation"
    for read in (load_folder, ClassFolders):
        with pytest.raises(ValueError, match=text):
            read(tmp_path, 8)


def test_class_of_trains_is_a_class(tmp_path: Path) -> None:
    write_greys(tmp_path / "bus", tmp_path / "train")
    assert load_folder(tmp_path, 8).num_classes == 2
    assert ClassFolders(tmp_path, 8).classes == ["bus", "train"]


def test_circular_and_dangling_links_and_hidden_names_are_no_images_and_no_classes(
    tmp_path: Path,
) -> None:
    write_greys(*(tmp_path / "d" / name for name in ("bus", "car", ".thumbs", "car/.more")))
    (tmp_path / "d" / "bus" / "._0.jpg").write_bytes(b"a resource fork")
    (tmp_path / "d" / "bus" / "gone.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    write_greys(tmp_path / "elsewhere")
    (tmp_path / "d" / "van").symlink_to(tmp_path / "elsewhere")
    found = ClassFolders(tmp_path / "d", 8)
    assert found.classes == ["bus", "car", "van"]
    assert found.labels == [0] * 10 + [1] * 10 + [2] * 10
    assert len(ClassFolders(tmp_path / "d", 8, labelled=False)) == 30
    shutil.rmtree(tmp_path / "d" / "bus")
    (tmp_path / "d" / "loop").unlink()
    data = load_folder(tmp_path / "d", 8)
    assert (data.num_classes, len(data.train_x) + len(data.test_x)) == (2, 20)


def test_classes_and_images_are_in_the_order_of_torchvisions_image_folder(tmp_path: Path) -> None:
    write_greys(*(tmp_path / name for name in ("b", "b/deep", "B", "b-c", "a/x/y", "a/x!")))
    expected = torchvision.datasets.ImageFolder(str(tmp_path))
    found = ClassFolders(tmp_path, 8)
    assert found.classes == expected.classes
    assert list(zip(found.paths, found.labels, strict=True)) == expected.samples


def test_images_whose_names_are_not_utf_8_have_a_fingerprint(tmp_path: Path) -> None:
    write_greys(tmp_path / "a", tmp_path / "b")
    before = ClassFolders(tmp_path, 8).fingerprint()
    (tmp_path / "a" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xe9.png"))
    assert ClassFolders(tmp_path, 8).fingerprint() != before


def test_folder_whose_files_cannot_be_opened_is_told_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_greys(tmp_path / "a", tmp_path / "b" / "below")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "b" not in Path(path).name[:1]
                        and access(path, mode))  # fmt: skip  # as `chmod a-x`, for root too
    told: list[OSError] = []
    found = files_below(tmp_path, told.append)
    assert {path.parent.name for path in found} == {"a"}
    assert [(error.filename, error.strerror) for error in told] == [
        (str(tmp_path / "b"), "Permission denied")
    ]
    with pytest.raises(PermissionError):
        files_below(tmp_path)
