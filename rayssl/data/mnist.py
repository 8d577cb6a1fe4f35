"""MNIST and Fashion-MNIST from their four IDX files, refused where a byte is wrong.

torchvision parses and downloads them, but trains on whatever it finds: a file that was cut short
is read as far as it goes (`read_image_file`, `strict=False`), and only downloads are verified.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from rayssl._torchvision import torchvision
from rayssl.data.splits import ImageSplits

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class IdxDataset:
    """A data set of four IDX files.

    Attributes:
      name: on the command line.
      folder: what torchvision calls it: files lie in `<data_dir>/<folder>/raw`.
      md5: of the unpacked files, in the order of FILES; None where only those of the .gz are known.
    """

    name: str
    folder: str
    md5: tuple[str, ...] | None


MNIST = IdxDataset(
    "mnist",
    "MNIST",
    (  # of the files unpacked from the archives whose MD5 torchvision lists
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = IdxDataset("fashion-mnist", "FashionMNIST", None)


def load_idx(dataset: IdxDataset, data_dir: Path | None = None, verify: bool = True) -> ImageSplits:
    """Returns the data set's 28x28 images and labels, read from four IDX files or their .gz.

    Args:
      dataset: which one.
      data_dir: holds the files, itself or in `<folder>/raw`; see `rayssl.data.load_dataset`.
      verify: compare with the published files' checksums, where these are known; MNIST's files,
        which have the same names, are refused for any other data set.
    Raises:
      FileNotFoundError: if a file is missing and the download fails; names the four files.
      ValueError: if a file is cut short, is not IDX, has another checksum, or if images and labels
        do not fit together.
    """
    root = data_dir or Path(os.environ.get("RAYSSL_DATA", "data"))
    folder = _folder_with_files(dataset, root) or _download(dataset, root)
    md5 = (dataset.md5 if verify else None) or (None,) * len(FILES)
    if verify and dataset.md5 is None:
        _check_not_mnist(dataset, root, folder)
    arrays = [_read(folder, name, expected) for name, expected in zip(FILES, md5, strict=True)]
    train_x, train_y, test_x, test_y = arrays
    for part, x, y in (("train", train_x, train_y), ("t10k", test_x, test_y)):
        _check_pair(folder, part, x, y)
    return ImageSplits(
        dataset.name, train_x[:, None], train_y.long(), test_x[:, None], test_y.long(), 10
    )


def _folder_with_files(dataset: IdxDataset, root: Path) -> Path | None:
    """The folder that holds all four files, packed or not."""
    for folder in (root / dataset.folder / "raw", root):
        if all(_find(folder, name) for name in FILES):
            return folder
    return None


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _download(dataset: IdxDataset, root: Path) -> Path:
    """Downloads the files through torchvision, which checks the archives' MD5."""
    try:
        getattr(torchvision.datasets, dataset.folder)(root, download=True)
    except (OSError, URLError, RuntimeError) as error:
        folder = root / dataset.folder / "raw"
        missing = [name for name in FILES if not _find(folder, name)]
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{dataset.name} file missing: {folder / missing[0] if missing else folder}, and the "
            f"download failed ({reason}). Put the four IDX files ({', '.join(FILES)}) there or "
            "pass --data-dir, or use --dataset digits, which needs no files."
        ) from error
    return root / dataset.folder / "raw"


def _check_not_mnist(dataset: IdxDataset, root: Path, folder: Path) -> None:
    assert MNIST.md5 is not None
    for name, mnists in zip(FILES, MNIST.md5, strict=True):
        path, raw = _bytes(folder, name)
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() == mnists:
            raise ValueError(
                f"{path} is MNIST's, expected that of {dataset.name}. Put the four files of "
                f"{dataset.name} into {root / dataset.folder / 'raw'}, or pass another --data-dir."
            )


def _bytes(folder: Path, name: str) -> tuple[Path, bytes]:
    """The path of a file and its bytes, unpacked."""
    path = _find(folder, name)
    assert path is not None
    try:
        packed = path.read_bytes()
        return path, gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise ValueError(_damaged(path, f"it cannot be unpacked ({error})")) from error


def _read(folder: Path, name: str, md5: str | None) -> Tensor:
    """One IDX file of unsigned bytes, its header checked against its length: uint8 [N] or [N,H,W].

    Header: two zero bytes, type 8 (unsigned byte), number of dimensions, each dimension as a
    big-endian 32-bit integer (the format's description on the MNIST page).
    """
    path, raw = _bytes(folder, name)
    dims = 3 if "images" in name else 1
    header = 4 * (1 + dims)
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(_damaged(path, f"expected an IDX file of bytes in {dims} dimension(s)"))
    shape = [int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, dims + 1)]
    size = header + torch.Size(shape).numel()
    if len(raw) != size:
        raise ValueError(_damaged(path, f"its header promises {size:,} bytes, it has {len(raw):,}"))
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise ValueError(
            _damaged(path, f"expected MD5 {md5}, got {found}")
            + " For a data set of your own in this format pass --no-verify."
        )
    # Not offset=header: PyTorch refuses a buffer that ends there, which one of no images does.
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)[header:].view(shape)


def _check_pair(folder: Path, part: str, x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{folder}: expected as many {part} images as labels, got {len(x):,} and {len(y):,}. "
            "Copy the four files of one data set there."
        )
    if tuple(x.shape[1:]) != (28, 28):
        raise ValueError(
            f"{folder}: expected {part} images of 28x28, got {x.shape[1]}x{x.shape[2]}. Copy the "
            "four files of MNIST or Fashion-MNIST there."
        )
    if int(y.max()) > 9:
        raise ValueError(
            f"{folder}: expected {part} labels from 0 to 9, got {int(y.max())}. The file "
            "is damaged or of another data set: copy it again."
        )


def _damaged(path: Path, what: str) -> str:
    return f"{path} is damaged: {what}. Delete it and copy or download it again."


LOADERS: dict[str, Callable[[Path | None, bool], ImageSplits]] = {
    dataset.name: partial(load_idx, dataset) for dataset in (MNIST, FASHION_MNIST)
}
