"""The files below a folder, through symbolic links: disks joined by links hold large data sets."""

import errno
import os
from collections.abc import Callable
from pathlib import Path


def _stop(error: OSError) -> None:
    raise error


def files_below(root: Path, on_error: Callable[[OSError], None] = _stop) -> list[Path]:
    """Returns every file below a folder, sorted; linked folders are gone into, circles are not.

    Args:
      root: the folder.
      on_error: told of each folder and link that cannot be read (`error.filename`); default: raise
        it.
    Raises:
      OSError: if a folder cannot be read, unless `on_error` takes it.
    """

    def is_file(path: Path) -> bool:
        try:
            return path.is_file()
        except OSError as error:  # a link into a folder that cannot be read
            on_error(error)
            return False

    found: list[Path] = []
    above = {str(root): {_identity(str(root))}}  # folder -> it and those it lies in
    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=True):
        seen = above.pop(folder)
        if not os.access(folder, os.X_OK):  # its names can be read, what they name cannot
            on_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder))
            folders.clear()
            continue
        found += [Path(folder, name) for name in names]
        for name in list(folders):
            below = os.path.join(folder, name)
            identity = _identity(below)
            if identity in seen:  # a link to a folder that it lies in
                folders.remove(name)
            else:
                above[below] = seen | {identity}
    return sorted(filter(is_file, found))


def is_hidden(path: Path, root: Path) -> bool:
    """Returns whether a part of a path below a folder begins with a dot: `.thumbs`, `._x.jpg`."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
