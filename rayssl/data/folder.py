"""Images of one's own: folders of files, cropped to squares of one size and read into memory."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rayssl.data.file_tree import files_below, is_hidden
from rayssl.data.image_files import held_out_folder, read_rgb
from rayssl.data.splits import ImageSplits, split_validation

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
TEST_SHARE = 0.1
SPLIT_SEED = 0  # a data set has one test split, whatever the seed of a run


def load_folder(root: Path, size: int) -> ImageSplits:
    """Returns the images below a folder as uint8 `[N, 3, size, size]`.

    The centre square of each is resized (bicubic). `root/train` and the first there is of
    `root/test`, `val`, `valid` and `validation` are taken as they are; otherwise a tenth of
    `root`'s images, stratified, are the test images.
    Subfolders, also linked ones, are classes, in the order of their names; without subfolders all
    are of one class. Names that begin with a dot are left out.

    Raises:
      FileNotFoundError: if there is no folder or no image in it.
      ValueError: if a file is no image, the test folder's classes are others, a class is too small
        to be split, or `root/train` holds classes and no folder for testing is beside it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Pass a folder of images as --dataset.")
    test_root = held_out_folder(root)
    if test_root is not None:
        train_files, train_y, classes = _files(root / "train")
        test_files, test_y, test_classes = _files(test_root)
        if test_classes != classes:
            raise ValueError(
                f"Expected in {test_root} the classes of {root / 'train'}, {', '.join(classes)}, "
                f"got {', '.join(test_classes)}."
            )
        train_x, test_x = _read(train_files, size), _read(test_files, size)
        return ImageSplits(root.name, train_x, train_y, test_x, test_y, len(classes))
    files, y, classes = _files(root)
    counts = torch.bincount(y, minlength=len(classes))
    if int(counts.min()) < 2 or len(y) * TEST_SHARE < len(classes):
        raise ValueError(
            f"Expected at least {round(len(classes) / TEST_SHARE)} images below {root}, two or "
            f"more of each class, to split a tenth off for testing; got {len(y)}. Add images, or "
            "make the folders train and test."
        )
    x = _read(files, size)
    train, test = split_validation(y, TEST_SHARE, seed=SPLIT_SEED)
    return ImageSplits(root.name, x[train], y[train], x[test], y[test], len(classes))


def _files(root: Path) -> tuple[list[Path], Tensor, list[str]]:
    """Every image below a folder, its class, and the classes' names."""
    found = [
        path for path in files_below(root)
        if path.suffix.lower() in SUFFIXES and not is_hidden(path, root)
    ]  # fmt: skip
    if not found:
        raise FileNotFoundError(
            f"Expected images ({', '.join(sorted(SUFFIXES))}) below {root}, found none."
        )
    names = [p.relative_to(root).parts[0] if p.parent != root else "" for p in found]
    classes = sorted(set(names))
    if "" in classes and len(classes) > 1:
        stray = found[names.index("")]
        raise ValueError(f"{stray} stands beside folders of classes. Move it into one of them.")
    labels = {name: i for i, name in enumerate(classes)}
    return found, torch.tensor([labels[name] for name in names]), classes


def _read(files: Sequence[Path], size: int) -> Tensor:
    """The files' centre squares, uint8 `[N, 3, size, size]`."""

    def read(path: Path) -> np.ndarray:
        return np.asarray(_square(read_rgb(path), size))

    with ThreadPoolExecutor() as pool:  # decoding and resizing leave Python's lock
        return torch.from_numpy(np.stack(list(pool.map(read, files)))).permute(0, 3, 1, 2)


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # crop, not resize(box=...): that one's filter looks beyond the box.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BICUBIC)
