"""A file that is there under its name only when it is whole."""

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
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
