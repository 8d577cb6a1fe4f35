"""Image data sets in memory: uint8 images and integer labels, with their splits."""

from collections.abc import Callable
from pathlib import Path

from rayssl.data import digits, mnist
from rayssl.data.folder import load_folder
from rayssl.data.splits import ImageSplits, fit_size

__all__ = ["ImageSplits", "available_datasets", "fit_size", "load_dataset", "load_folder"]

Loader = Callable[[Path | None, bool], ImageSplits]
_LOADERS: dict[str, Loader] = {**mnist.LOADERS, **digits.LOADERS}


def available_datasets() -> tuple[str, ...]:
    """Returns the names that `load_dataset` takes, sorted."""
    return tuple(sorted(_LOADERS))


def load_dataset(name: str, data_dir: Path | None = None, *, verify: bool = True) -> ImageSplits:
    """Returns a data set's training and test images, read into memory.

    Args:
      name: one of `available_datasets()`.
      data_dir: folder with the data set's files; None: the environment's RAYSSL_DATA, else `data`.
        Missing files are downloaded there where there is a network. `digits` needs no folder.
      verify: refuse files that are not the published ones, byte by byte. Off for a data set of
        one's own in the same format; its shapes and labels are checked all the same.
    Raises:
      ValueError: for an unknown name, or files that are damaged or do not fit together.
      FileNotFoundError: if files are missing and cannot be downloaded.
    """
    if name not in _LOADERS:
        raise ValueError(
            f"Unknown data set {name!r}. Available: {', '.join(available_datasets())}."
        )
    return _LOADERS[name](data_dir, verify)
