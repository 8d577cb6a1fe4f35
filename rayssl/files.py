"""Files that are there under their names only when they are whole; folders of one process."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file in one go, so that a kill leaves the old one or the new one.

    Args:
      path: of the file; its folders are made.
      content: bytes, or text that is written as UTF-8 with its line ends as they are.
    Raises:
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, which the path's own may come near.
    part = path.with_name(f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder meanwhile; a kill gives it back.

    Where the file system has no locks, as some network folders, it keeps nobody out.

    Raises:
      BlockingIOError: if another process has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"Another process is at work in {folder}. Wait for its end, or stop it."
            ) from None
        except OSError:  # no locks here
            pass
        yield
    finally:
        os.close(handle)
