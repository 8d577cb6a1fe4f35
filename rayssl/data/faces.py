"""Face crops of real and manipulated videos: the folder that `deepfake.py prepare` writes, read.

FOLDER/
  faces.json            settings of the preparation, fingerprint, command, commit
  videos.csv            one row a video (the manifest)
  frames.csv            one row a crop
  crops/<video>.zip     its crops as PNG files, and with masks what was manipulated in each
  problems.csv          videos that gave no crop, and why
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from rayssl.files import write_whole

FACES_FILE, VIDEOS_FILE, FRAMES_FILE, PROBLEMS_FILE = (
    "faces.json", "videos.csv", "frames.csv", "problems.csv",
)  # fmt: skip
TEXT_COLUMNS = ("video", "family", "actor", "other_actor", "part", "method", "sha256")
# What reading a crop raises: KeyError if it is not in the archive, RuntimeError if a flag says that
# it has a password, SyntaxError for a broken PNG.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, RuntimeError, SyntaxError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class FaceSet:
    """Faces of videos, cropped to squares of one size.

    Attributes:
      folder: where the crops lie.
      videos: one row a video: `video` (unique: path below the data's root without suffix), `family`
        (`video` or name of the original; missing where the data do not say), `actor` (whose body is
        seen) and `other_actor` (whose face was put in), both missing where the data do not say,
        `part`, `label` (0 real, 1 fake), `method`, `num_frames` (crops), `num_sampled` (frames
        looked at), `num_without_face` (of those), `has_masks`, `sha256` (of the crops' pixels).
      frames: one row a crop: `video`, `frame` (index in the video), `face` (number within the
        frame), `found` (False: a box filled in by the policy for frames without a face), `left`,
        `top`, `side` (of the square in the video's frame, in pixels).
      settings: of the preparation, as far as they change a crop.
      fingerprint: hash of settings, manifest and pixels. Results of two face sets mix only where
        it is the same.
    """

    folder: Path
    videos: pd.DataFrame
    frames: pd.DataFrame
    settings: Mapping[str, Any]
    fingerprint: str

    def crops(self, rows: Iterable[int]) -> np.ndarray:
        """Returns the crops of these rows of `frames`, RGB uint8 `[N, S, S, 3]`, in their order.

        Raises:
          FileNotFoundError, ValueError: if a video's file of crops is gone or damaged.
        """
        return self._read(rows, "face", (self.size, self.size, 3))

    def masks(self, rows: Iterable[int]) -> np.ndarray:
        """Returns what was manipulated in each crop, uint8 `[N, S, S]`: 255 manipulated, 0 not.

        Real videos are 0 everywhere.

        Raises:
          ValueError: if a row is of a fake whose mask video was not there, or as in `crops`.
        """
        return self._read(rows, "mask", (self.size, self.size))

    @property
    def size(self) -> int:
        """S: height and width of a crop in pixels."""
        return int(self.settings["size"])

    def column(self, name: str) -> np.ndarray:
        """Returns a column of `videos` for each row of `frames`, e.g. `column("label")`: `[N]`."""
        return self.videos[name].to_numpy()[self._video_of_frame]

    @property
    def labels(self) -> np.ndarray:
        """0 real, 1 fake, for each row of `frames`: int64 `[N]`."""
        return self.column("label").astype(np.int64)

    @cached_property
    def _video_of_frame(self) -> np.ndarray:
        return pd.Index(self.videos["video"]).get_indexer(self.frames["video"])

    def _read(self, rows: Iterable[int], kind: str, shape: tuple[int, ...]) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.int64)
        out = np.zeros((len(rows), *shape), np.uint8)
        video = self._video_of_frame[rows]
        for v in np.unique(video):
            info = self.videos.iloc[v]
            if kind == "mask" and not info["has_masks"]:
                if info["label"] == 0:
                    continue
                raise ValueError(
                    f"{info['video']} has no mask video. Expected one of what was manipulated: "
                    "the stand-in and FaceForensics++ have them, DFDC does not."
                )
            wanted = np.flatnonzero(video == v)
            crops = self.frames.iloc[rows[wanted]]
            names = [
                member_name(int(frame), int(face), kind)
                for frame, face in zip(crops["frame"], crops["face"], strict=True)
            ]
            out[wanted] = _read_crops(crops_path(self.folder, info["video"]), names)
        return out


def load_face_set(folder: Path) -> FaceSet:
    """Returns the faces that `prepare` wrote; tables are read now, crops when they are asked for.

    Raises:
      FileNotFoundError: if the folder holds no finished preparation.
      ValueError: if its tables were changed since: they no longer have their fingerprint.
    """
    path = folder / FACES_FILE
    missing = [n for n in (FACES_FILE, VIDEOS_FILE, FRAMES_FILE) if not (folder / n).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no prepared faces: {missing[0]} is missing. Prepare videos with "
            f"`python experiments/deepfake.py prepare ROOT --out {folder}`, or go on with a "
            "preparation that was cut short by the same command."
        )
    try:
        about = dict(json.loads(path.read_text(encoding="utf-8")))
        settings, expected = dict(about["crops"]), str(about["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Run prepare again.") from error
    videos_csv, frames_csv = ((folder / n).read_bytes() for n in (VIDEOS_FILE, FRAMES_FILE))
    found = fingerprint_of(settings, videos_csv, frames_csv)
    if found != expected:
        raise ValueError(
            f"{folder}: {VIDEOS_FILE} or {FRAMES_FILE} do not belong to {FACES_FILE}: expected "
            f"fingerprint {expected}, got {found}. Run the same prepare again: it writes them anew."
        )
    # keep_default_na: a video may be called "NA"; only the empty field is missing.
    read = {
        "dtype": dict.fromkeys(TEXT_COLUMNS, "str"),
        "keep_default_na": False,
        "na_values": [""],
    }
    videos = pd.read_csv(io.BytesIO(videos_csv), **read)
    frames = pd.read_csv(io.BytesIO(frames_csv), **read)
    return FaceSet(folder, videos, frames, settings, found)


def write_face_set(
    folder: Path,
    videos: pd.DataFrame,
    frames: pd.DataFrame,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
) -> FaceSet:
    """Writes the tables of crops that already lie in their places, and returns the face set.

    Args:
      folder: of the face set.
      videos, frames: as in FaceSet, rows in any order; written sorted.
      settings: of the preparation, as far as they change a crop.
      about: what else faces.json tells: command, commit, counts.
    """
    videos = videos.sort_values("video")
    frames = frames.sort_values(["video", "frame", "face"])
    tables = [t.to_csv(index=False, lineterminator="\n").encode() for t in (videos, frames)]
    fingerprint = fingerprint_of(settings, *tables)
    for name, data in zip((VIDEOS_FILE, FRAMES_FILE), tables, strict=True):
        write_whole(folder / name, data)
    about = {"fingerprint": fingerprint, "crops": dict(settings), **about}
    write_whole(folder / FACES_FILE, json.dumps(about, indent=1).encode())
    return load_face_set(folder)


def fingerprint_of(settings: Mapping[str, Any], videos_csv: bytes, frames_csv: bytes) -> str:
    """Returns 16 hexadecimal digits that change with any setting, video, box or pixel."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for table in (videos_csv, frames_csv):
        digest.update(hashlib.sha256(table).digest())
    return digest.hexdigest()[:16]


def crops_path(folder: Path, video: str) -> Path:
    """Returns where the crops of a video lie."""
    return folder / "crops" / f"{video}.zip"


def member_name(frame: int, face: int, kind: str) -> str:
    """Returns the name of a crop within its video's file: `000012-0-face.png`."""
    return f"{frame:06d}-{face}-{kind}.png"


def write_crops(
    path: Path, crops: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None
) -> str:
    """Writes a video's crops as PNG files of one archive and returns the SHA-256 of their pixels.

    Args:
      path: see `crops_path`; appears under its name only when it is whole.
      crops: `member_name` -> uint8 `[S, S, 3]` or `[S, S]`.
      about: kept beside them, as `about.json`.
    """
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, pixels in crops.items():
            digest.update(name.encode() + np.ascontiguousarray(pixels).tobytes())
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "png", compress_level=3)
            file.writestr(zipfile.ZipInfo(name), png.getvalue())  # ZipInfo: no time of writing
        if about is not None:
            text = json.dumps(dict(about) | {"sha256": digest.hexdigest()})
            file.writestr(zipfile.ZipInfo("about.json"), text)
    write_whole(path, buffer.getvalue())
    return digest.hexdigest()


def _read_crops(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """These crops of a video; ValueError if its file is damaged."""
    try:
        handle = path.open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Crops missing: {path}. Run the same prepare again: it makes them anew."
        ) from error
    with handle:
        try:
            with zipfile.ZipFile(handle) as file:
                return [read_png(file.read(name)) for name in names]
        except DAMAGED as error:
            raise ValueError(
                f"{path} is damaged ({error}). Delete it and run the same prepare again: it makes "
                "the crops anew."
            ) from error


def read_png(data: bytes) -> np.ndarray:
    """Returns a PNG file's pixels, uint8 `[H, W, 3]` or `[H, W]`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
