"""The files below a folder, through symbolic links: disks joined by links hold large data sets."""

import os
from collections.abc import Callable
from pathlib import Path


def _stop(error: OSError) -> None:
    raise error


def files_below(root: Path, on_error: Callable[[OSError], None] = _stop) -> list[Path]:
    """Returns every file below a folder, sorted; linked folders are gone into, circles are not.

    Args:
      root: the folder.
      on_error: told of each folder that cannot be read (`error.filename`); default: raise it.
    Raises:
      OSError: if a folder cannot be read, unless `on_error` takes it.
    """
    found: list[Path] = []
    above = {str(root): {_identity(str(root))}}  # folder -> it and those it lies in
    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=True):
        seen = above.pop(folder)
        found += [Path(folder, name) for name in names]
        for name in list(folders):
            below = os.path.join(folder, name)
            identity = _identity(below)
            if identity in seen:  # a link to a folder that it lies in
                folders.remove(name)
            else:
                above[below] = seen | {identity}
    return sorted(path for path in found if path.is_file())


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
