"""Labelled images on a disk, one folder a class, each cut at random by its own number.

Which part of an image is seen in an epoch follows from (seed, epoch, image) alone: it does not
depend on how many processes read the images, nor on where a run was cut off and resumed.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from rayssl.data.file_tree import files_below, is_hidden
from rayssl.data.image_files import held_out_folder, read_rgb

MIN_AREA, MAX_ASPECT = 0.08, 4 / 3  # of RandomResizedCrop, as in torchvision and RotNet
RESIZE_FACTOR = 256 / 224  # evaluation: shorter side over side of the centre crop
ATTEMPTS = 10  # at a part that lies within the image; then the whole is taken

Key = tuple[int, int]  # epoch (-1: evaluation), number of the image


class ClassFolders(Dataset[tuple[Tensor, int]]):
    """The images of `root/<class>/**`; classes are sorted by name, as torchvision's ImageFolder.

    Without labels the images of `root/**`, of class folders in the same order. Names that begin
    with a dot are left out, and so are links to nothing and to a folder that they lie in.

    An item is asked for by (epoch, index) and is uint8 `[3, side, side]` with its label: for an
    epoch from 0 on a random part (8% to 100% of the area, 3/4 to 4/3 wide), scaled and mirrored or
    not; for epoch -1 the centre of the image.

    Args:
      root: folder with one folder a class.
      side: of the images that come out, pixels.
      seed: of the random parts.
      labelled: False takes every image below the root, in folders or not: all labels are 0, and
        there are no `classes`.
    Raises:
      ValueError: if there are fewer than two classes, a class without an image (without labels: no
        image), or the parts of a data set (`train` and the like) instead of classes.
      FileNotFoundError: if there is no such folder.
    """

    def __init__(self, root: Path, side: int, seed: int = 0, *, labelled: bool = True) -> None:
        if not root.is_dir():
            kind = "with one folder a class" if labelled else "of images"
            raise FileNotFoundError(f"Expected a folder {kind}, got {root}.")
        held_out = held_out_folder(root)
        if held_out is not None:
            raise ValueError(
                f"Expected {'one folder a class' if labelled else 'images of one part'} in {root}, "
                f"got the parts train and {held_out.name} of a data set. Pass {root / 'train'} and "
                f"{held_out} one by one."
            )
        self.root, self.side, self.seed = root, side, seed
        self.classes, samples = _labelled(root) if labelled else ([], _unlabelled(root))
        self.paths = [path for path, _ in samples]
        self.labels = [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        image = read_rgb(self.paths[index])
        if epoch < 0:
            image = _centre(image, self.side)
        else:
            rng = np.random.default_rng([self.seed, epoch, index])
            box = random_part(image.width, image.height, rng)
            image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.labels[index]

    def fingerprint(self) -> str:
        """Returns a hash of the names of all images below the root, in order."""
        names = "\n".join(str(Path(path).relative_to(self.root)) for path in self.paths)
        # Names need not be UTF-8: Linux takes any bytes.
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]


def _labelled(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Names of the classes; path and class of each image."""
    classes = sorted(path.name for path in root.iterdir() if _is_class(path, root))
    numbers = {name: i for i, name in enumerate(classes)}
    images, suffixes = _images(root)
    named = [(path, path.relative_to(root).parts[0]) for path in images if path.parent != root]
    empty = sorted(set(classes) - {name for _, name in named})
    if empty or not classes:
        what = f"none for {', '.join(empty)} ({', '.join(suffixes)})" if empty else "no folder"
        raise ValueError(f"{root} must hold one folder a class with images in it: got {what}.")
    if len(classes) < 2:
        raise ValueError(f"{root} must hold two classes or more, got {classes}.")
    return classes, [(str(path), numbers[name]) for path, name in named]


def _is_class(path: Path, root: Path) -> bool:
    """Whether a path in the root is a folder of images, and no link to one that it lies in."""
    if path.name.startswith(".") or not path.is_dir():
        return False
    return not root.resolve().is_relative_to(path.resolve())


def _unlabelled(root: Path) -> list[tuple[str, int]]:
    """Path and 0 of each image."""
    images, suffixes = _images(root)
    if not images:
        raise ValueError(f"{root} must hold images ({', '.join(suffixes)}), got none.")
    return [(str(path), 0) for path in images]


def _images(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The images by class folder, then folder, then name, as ImageFolder sorts; its suffixes."""
    from rayssl._torchvision import torchvision  # slow to import, so not before it is needed

    suffixes = torchvision.datasets.folder.IMG_EXTENSIONS
    found = [
        path for path in files_below(root)
        if path.suffix.lower() in suffixes and not is_hidden(path, root)
    ]  # fmt: skip
    found.sort(key=lambda path: (path.relative_to(root).parts[0], str(path.parent), path.name))
    return found, suffixes


def random_part(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a random part of an image, pixels.

    Its share of the area is uniform in [0.08, 1], the logarithm of its aspect uniform in
    [log 3/4, log 4/3]. If ten draws do not fit into the image, the whole image.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6, as torchvision's RandomResizedCrop.
    """
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(MIN_AREA, 1)
        aspect = math.exp(rng.uniform(-math.log(MAX_ASPECT), math.log(MAX_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The centre square of 224 / 256 of the shorter side, scaled to `side`."""
    part = min(image.size) / RESIZE_FACTOR
    left, top = (image.width - part) / 2, (image.height - part) / 2
    box = (left, top, left + part, top + part)
    return image.resize((side, side), Image.Resampling.BILINEAR, box)
