"""Image files of one's own, read as 8-bit colour, and the folders that part them for testing."""

from pathlib import Path

import numpy as np
from PIL import Image

HELD_OUT = ("test", "val", "valid", "validation")  # folders beside `train`


def held_out_folder(root: Path) -> Path | None:
    """Returns the folder beside `root/train` with images for testing; None without `train`.

    The first of HELD_OUT that is there.

    Raises:
      ValueError: if `root/train` holds folders and none of HELD_OUT is there: taken as a class, it
        would hide the classes in it.
    """
    train = root / "train"
    if not train.is_dir():
        return None
    for name in HELD_OUT:
        if (root / name).is_dir():
            return root / name
    if any(path.is_dir() and path.name[0] != "." for path in train.iterdir()):
        raise ValueError(
            f"Expected beside {train}, which holds folders, one of {', '.join(HELD_OUT)}, found "
            f"none. Pass {train} itself, or name the images for testing so."
        )
    return None


def read_rgb(path: Path | str) -> Image.Image:
    """Returns an image file's pixels as RGB, 8 bits each.

    Grey of 16 bits keeps its higher byte, as Pillow does with colour of 16 bits; its own
    `convert("RGB")` would clip grey at 255.

    Raises:
      ValueError: if the file is no whole image, or its values (Pillow's modes I and F) may be in
        any range.
    """
    try:
        with Image.open(path) as image:
            # A PGM of up to 16 bits comes as I, scaled to 16.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"expected 8 or 16 bits a value, got mode {image.mode}")
            return image.convert("RGB")
    # PIL raises SyntaxError for a broken PNG
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}). Put a whole one in its "
            "place: without it, it is another data set, which no run is resumed on."
        ) from error
