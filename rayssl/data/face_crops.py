"""One video -> square crops of the face in evenly spaced frames, and of the mask if there is one.

The square is the detector's box, its longer side times `margin`, centred on it, moved into the
frame where it reaches out of it, and no larger than the frame. Video codecs and detectors fail on
single videos of a large data set: `crop_video` answers with a Problem then, and raises only if it
cannot write.
"""

import errno
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import av
import numpy as np
from PIL import Image

from rayssl.data.face_detectors import (
    DETECTORS,
    Box,
    DetectorName,
    FaceDetector,
    make_detector,
)
from rayssl.data.face_videos import Problem
from rayssl.data.faces import crops_path, member_name, write_crops

NoFace = Literal["skip", "previous", "centre"]
Faces = Literal["largest", "first", "all"]
LEAST_SHARE = 0.9  # of the frames a file promises; below it the file was cut short


@dataclass(frozen=True)
class CropSettings:
    """What decides a crop.

    Attributes:
      frames: looked at in each video, evenly spaced; all of a shorter one.
      size: S, height and width of a crop in pixels.
      margin: side of the square by the longer side of the detector's box (1.3: the authors' code).
      detector: one of `rayssl.data.face_detectors.DETECTORS`.
      min_face: least side of a face's box, by the frame's shorter side.
      no_face: frames without a face are skipped, or cropped at the box of the last frame that had
        one (`previous`; skipped before the first), or in the middle (`centre`).
      faces: of several, the largest, the detector's first (the authors' code), or all.
      weights: SHA-256 of the detector's file.
    """

    frames: int = 32
    size: int = 256
    margin: float = 1.3
    detector: DetectorName = "lbp"
    min_face: float = 0.1
    no_face: NoFace = "skip"
    faces: Faces = "largest"
    weights: str | None = None

    def check(self) -> None:
        """Raises ValueError for a value that no crop can have."""
        for name, least in (("frames", 1), ("size", 8), ("margin", 0.1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name} must be {least} or more, got {getattr(self, name)}.")
        if not 0 < self.min_face <= 1:
            raise ValueError(f"--min-face must be over 0 and at most 1, got {self.min_face}.")
        closed = {"detector": DETECTORS, "no_face": get_args(NoFace), "faces": get_args(Faces)}
        for name, choices in closed.items():
            if getattr(self, name) not in choices:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} must be one of {', '.join(choices)}, got {getattr(self, name)!r}."
                )

    @property
    def digest(self) -> str:
        """Eight digits that change with any setting."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


class Square(NamedTuple):
    """A crop's place in a frame, pixels; `found` False if the policy for no face chose it."""

    left: float
    top: float
    side: float
    found: bool


class DamagedVideoError(ValueError):
    """A file that is no video, or not a whole one."""


def crop_video(
    root: Path, out: Path, row: Mapping[str, Any], settings: CropSettings, weights: Path | None
) -> dict[str, Any] | Problem:
    """Writes a video's crops below `out` and returns what is known of them, or what is wrong.

    Crops that are there already, of the same settings, are left untouched.

    Args:
      root: the data's folder.
      out: of the face set.
      row: of `rayssl.data.face_videos.FoundVideos.videos`.
      settings: what decides a crop.
      weights: the detector's file.
    Returns:
      the row's `num_sampled`, `num_without_face`, `has_masks`, `sha256`, and `crops`: `frame`,
      `face`, `found`, `left`, `top`, `side` of each; `mask_problem`: why a mask video that is there
      gave no masks, else None.
    Raises:
      OSError: if the crops cannot be written.
    """
    video, path = row["video"], crops_path(out, row["video"])
    done = read_about(path, settings)
    if done is not None:
        return done
    detect = _detector(settings.detector, weights, settings.min_face)
    try:
        about, pixels = _crops(root, row, settings, detect)
    except Exception as error:  # FFmpeg's, but what else a damaged file makes fail is not known
        return Problem(video, "damaged video", _one_line(error))
    if not pixels:
        return Problem(video, "no face", f"in none of {about['num_sampled']} frames looked at")
    about |= {"settings": settings.digest}
    try:
        return about | {"sha256": write_crops(path, pixels, about)}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Problem(video, "name too long", f"its crops cannot be written to {path.name}")


def read_about(path: Path, settings: CropSettings) -> dict[str, Any] | None:
    """Returns what `crop_video` told of these crops; None if there are none of these settings."""
    try:
        with zipfile.ZipFile(path) as file:
            about = dict(json.loads(file.read("about.json")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return about if about.get("settings") == settings.digest else None


def _crops(
    root: Path, row: Mapping[str, Any], settings: CropSettings, detect: FaceDetector
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    crops: list[dict[str, Any]] = []
    pixels: dict[str, np.ndarray] = {}
    sampled = without = 0
    squares: dict[int, list[Square]] = {}
    last: list[Box] = []
    for index, image in sample_frames(root / row["path"], settings.frames):
        boxes = choose_boxes(detect(image), settings.faces)
        sampled, without = sampled + 1, without + (not boxes)
        last = boxes or last
        shape = image.shape[:2]
        squares[index] = _squares(boxes, last, shape, settings)
        for face, square in enumerate(squares[index]):
            pixels[member_name(index, face, "face")] = cut(image, square, settings.size)
            crops.append({"frame": index, "face": face, **square._asdict()})
    masks: dict[str, np.ndarray] = {}
    mask_problem = None
    if isinstance(row["mask"], str) and pixels:
        try:
            masks = _masks(root / row["mask"], squares, shape, settings.size)
        except Exception as error:  # as in crop_video; the video itself is whole
            mask_problem = f"{row['mask']}: {_one_line(error)}"
    about = {
        "num_sampled": sampled, "num_without_face": without, "has_masks": bool(masks),
        "crops": crops, "mask_problem": mask_problem,
    }  # fmt: skip
    return about, pixels | masks


def _masks(
    path: Path, squares: Mapping[int, list[Square]], shape: tuple[int, ...], size: int
) -> dict[str, np.ndarray]:
    """The mask of each crop, cut at the crop's place: 255 where any colour is bright, else 0.

    `shape` is the height and width of the video's frames, which the mask's must be.
    """
    wanted = {index for index, found in squares.items() if found}
    masks = {}
    for index, image in _read(path, set(wanted)):
        if image is None:
            continue
        if image.shape[:2] != shape:
            raise DamagedVideoError(
                f"its frames are {image.shape[1]}x{image.shape[0]}, the video's "
                f"{shape[1]}x{shape[0]}"
            )
        wanted.remove(index)
        for face, square in enumerate(squares[index]):
            bright = cut(image, square, size).max(-1) >= 128
            masks[member_name(index, face, "mask")] = np.where(bright, 255, 0).astype(np.uint8)
    if wanted:
        raise DamagedVideoError(f"frame {min(wanted)} is missing")
    return masks


def sample_frames(path: Path, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields index and RGB image of evenly spaced frames, upright: all, if there are not more.

    Index k of count lies at round(k (n - 1) / (count - 1)) of n frames: first and last included.

    Raises:
      DamagedVideoError: if the file is no video, has no frame, or fewer than it promises.
      av.FFmpegError: what the decoder says of a damaged one.
    """
    total = _count_frames(path)
    wanted = set(np.rint(np.linspace(0, total - 1, min(count, total))).astype(int).tolist())
    decoded = 0
    for index, image in _read(path, wanted):
        decoded = index + 1
        if image is not None:
            yield index, image
    if decoded < LEAST_SHARE * total:
        raise DamagedVideoError(f"it promises {total} frames, {decoded} can be decoded")


def _read(path: Path, wanted: set[int] | None = None) -> Iterator[tuple[int, Any]]:
    """Index and image of each frame; None in place of an image that is not wanted."""
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.codec_context.thread_count = 1  # one video a task: tasks run side by side
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DamagedVideoError(f"frame {index} is damaged")
            if wanted is not None and index not in wanted:
                yield index, None
                continue
            image = frame.to_ndarray(format="rgb24")
            # The container's angle, counter-clockwise, that shows the frame upright.
            yield index, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def _count_frames(path: Path) -> int:
    """Number of frames by the container's word; of its packets, where it does not say."""
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        count = stream.frames or sum(p.size > 0 for p in container.demux(stream))
    if count < 1:
        raise DamagedVideoError("it has no frames")
    return int(count)


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise DamagedVideoError(f"{path.name} has no pictures in it")
    return container.streams.video[0]


def choose_boxes(boxes: list[Box], faces: Faces) -> list[Box]:
    """Returns the boxes that the policy for several faces takes."""
    if faces == "all" or len(boxes) < 2:
        return boxes
    return [max(boxes, key=lambda b: b.width * b.height) if faces == "largest" else boxes[0]]


def _squares(
    boxes: list[Box], last: list[Box], shape: tuple[int, int], settings: CropSettings
) -> list[Square]:
    found = bool(boxes)
    if not found and settings.no_face == "previous":
        boxes = last
    if not boxes and settings.no_face == "centre":
        side = min(shape)
        return [Square((shape[1] - side) / 2, (shape[0] - side) / 2, side, False)]
    return [Square(*square_around(box, shape, settings.margin), found) for box in boxes]


def square_around(box: Box, shape: tuple[int, int], margin: float) -> tuple[float, float, float]:
    """Returns left, top and side of the square crop of a face in a frame of this height and width.

    side = margin max(w, h), at most the frame's shorter side; centred on the box, then moved into
    the frame. FaceForensics++ and the authors shrink the square instead, which changes the scale of
    a face near the edge.
    """
    height, width = shape
    side = min(margin * max(box.width, box.height), height, width)
    left = min(max(box.left + box.width / 2 - side / 2, 0), width - side)
    top = min(max(box.top + box.height / 2 - side / 2, 0), height - side)
    return left, top, side


def cut(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """Returns the square of an image `[H, W, 3]`, resampled to `[size, size, 3]`, smoothed."""
    left, top, side, _ = square
    box = (left, top, left + side, top + side)
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(small)


@cache
def _detector(name: str, weights: Path | None, min_face: float) -> FaceDetector:
    """One for each process: loading takes longer than a frame."""
    return make_detector(name, weights, min_face)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
