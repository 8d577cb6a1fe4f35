"""Which real and manipulated videos lie below a folder: a manifest, and all that is not in order.

Three layouts are read:

- DFDC: folders of videos with a `metadata.json` (training parts, once more nested or not, the
  sample set) or a `labels.csv` (the test set).
- DFDC preview: `dataset.json` beside `original_videos`, `method_A`, `method_B`.
- FaceForensics++ and DFD: `original_sequences` and `manipulated_sequences`.

Folders may be symbolic links. A damaged entry never stops the others: it is a row of the problems,
as is every video that no list names.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from rayssl.data.file_tree import files_below

VIDEO_SUFFIXES = frozenset({
    ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv",
})  # fmt: skip  # in any case
LABELS = {"REAL": 0, "FAKE": 1, "0": 0, "1": 1}
COLUMNS = (
    "video", "path", "mask", "family", "actor", "other_actor", "part", "label", "method",
)  # fmt: skip
ORIGINAL = "original"  # method of a real video
Compression = Literal["raw", "c23", "c40"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
SEQUENCES = ("original_sequences", "manipulated_sequences")  # of FaceForensics++
FAKE_NAME = re.compile(r"(?P<actor>\d+)_(?P<other>\d+)(__(?P<scene>.+)__\w+)?")
REAL_NAME = re.compile(r"(?P<actor>\d+)(__(?P<scene>.+))?")


class Problem(NamedTuple):
    """Something that was skipped: the video or file, what it is, and the details."""

    video: str
    problem: str
    detail: str


class FoundVideos(NamedTuple):
    """The videos below a folder.

    Attributes:
      videos: one row a video, sorted: `video` (path below the root without suffix), `path` and
        `mask` (below the root; `mask` missing where there is none), and `family`, `actor`,
        `other_actor`, `part`, `label`, `method` as in `rayssl.data.faces.FaceSet`.
      problems: what was skipped.
    """

    videos: pd.DataFrame
    problems: list[Problem]


def find_videos(root: Path, compression: Compression | None = None) -> FoundVideos:
    """Returns the labelled videos below a folder, and what is wrong with the others.

    Every file with one of VIDEO_SUFFIXES is in one of the two, masks excepted.

    Args:
      root: of one of the layouts above.
      compression: of FaceForensics++; needed where there is more than one.
    Raises:
      FileNotFoundError: if the folder is not there.
      ValueError: if it has no known layout, no usable video, or several compressions.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Pass the folder that holds the videos.")
    problems: list[Problem] = []
    files = files_below(root, lambda error: problems.append(_unreadable(root, error)))
    rows: dict[str, dict[str, Any]] = {}
    first_named: dict[str, str] = {}
    for entry in _entries(root, files, compression):
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        video, name = entry["video"], entry.pop("name")
        if not (root / entry["path"]).is_file():
            problems.append(Problem(video, "missing file", f"{entry['path']} is not there"))
        elif name in first_named:
            detail = f"{first_named[name]} has the same name and is kept"
            problems.append(Problem(video, "duplicate name", detail))
        else:
            first_named[name] = video
            rows[video] = {column: entry.get(column) for column in COLUMNS}
    if not rows:
        why = f", e.g. {problems[0].video}: {problems[0].detail}" if problems else ""
        raise ValueError(
            f"{root} holds no usable video{why}. Expected DFDC (folders with metadata.json or "
            "labels.csv), its preview (dataset.json), or FaceForensics++ (original_sequences, "
            "manipulated_sequences)."
        )
    # Columns of objects: a column without any value would else become numbers.
    videos = pd.DataFrame([rows[video] for video in sorted(rows)], columns=list(COLUMNS))
    return FoundVideos(videos.astype({"label": "int64"}), problems)


def draw_videos(
    videos: pd.DataFrame, *, real: int | None, fake: int | None, seed: int
) -> pd.DataFrame:
    """Returns this many real and fake videos, drawn by seed; None: all of them.

    The paper draws 368 and 400 (section V-B).

    Raises:
      ValueError: if there are fewer.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label, name, count in ((0, "real", real), (1, "fake", fake)):
        rows = np.flatnonzero(videos["label"] == label)
        if count is not None and not 0 <= count <= len(rows):
            raise ValueError(
                f"Expected --{name} of 0 to {len(rows)}, the {name} videos that there are, "
                f"got {count}."
            )
        chosen.append(rows if count is None else rng.choice(rows, count, replace=False))
    return videos.iloc[np.sort(np.concatenate(chosen))].reset_index(drop=True)


Entry = dict[str, Any] | Problem


def _entries(root: Path, files: list[Path], compression: Compression | None) -> Iterator[Entry]:
    """What each layout tells about each video; `name` must be unique."""
    if any((root / name).is_dir() for name in SEQUENCES):
        return _face_forensics(root, files, compression)
    if (root / "dataset.json").is_file():
        return _preview(root, files)
    return _challenge(root, files)


def _challenge(root: Path, files: list[Path]) -> Iterator[Entry]:
    tables = {p.parent for p in files if p.name == "labels.csv"}
    named: set[Path] = set()
    for path in files:
        if path.name not in ("metadata.json", "labels.csv"):
            continue
        if path.name == "metadata.json" and path.parent in tables:
            continue
        try:
            pairs = _read_labels(path) if path.name == "labels.csv" else _read_json(path)
        except (ValueError, OSError, csv.Error) as error:
            yield Problem(_below(root, path), "damaged list", str(error))
            continue
        for name, about in pairs:
            named.add(path.parent / name)
            yield _challenge_entry(root, path.parent, name, about)
    yield from _unnamed(root, files, named)


def _unnamed(root: Path, files: list[Path], named: set[Path]) -> Iterator[Problem]:
    """The videos that no list names, without the masks of those that one does."""
    masks = {root / "masks" / path.relative_to(root) for path in named}
    for path in files:
        if _is_video(path) and path not in named and path not in masks:
            yield Problem(_video_id(root, path), "no label", f"no list names {_below(root, path)}")


def _challenge_entry(root: Path, folder: Path, name: str, about: Any) -> Entry:
    path = folder / name
    video = _video_id(root, path)
    if not isinstance(about, Mapping):
        return Problem(video, "damaged list", f"expected label and split, got {about!r}")
    label = LABELS.get(str(about.get("label")).upper())
    if label is None:
        detail = f"expected REAL or FAKE, got {about.get('label')!r}"
        return Problem(video, "unknown label", detail)
    original = about.get("original") if label else name
    mask = Path("masks") / path.relative_to(root)
    return {
        "video": video,
        "name": name,
        "path": _below(root, path),
        "mask": mask.as_posix() if label and (root / mask).is_file() else None,
        "family": Path(original).stem if original else None,
        "actor": about.get("actor"),
        "other_actor": about.get("other_actor") if label else None,
        "part": folder.name,
        "label": label,
        "method": "fake" if label else ORIGINAL,
    }


def _preview(root: Path, files: list[Path]) -> Iterator[Entry]:
    """The preview's list; ids of people only where it has `target_id` and `swapped_id`."""
    path = root / "dataset.json"
    try:
        pairs = _read_json(path)
    except (ValueError, OSError) as error:
        yield Problem(_below(root, path), "damaged list", str(error))
        pairs = []
    named: set[Path] = set()
    for name, about in pairs:
        file = root / name
        named.add(file)
        entry = _challenge_entry(root, file.parent, file.name, about)
        if isinstance(entry, dict):
            person, other = about.get("target_id"), about.get("swapped_id")
            entry |= {
                "name": name,
                "actor": None if person is None else str(person),
                "other_actor": None if other is None or not entry["label"] else str(other),
                "part": str(about.get("set", "")) or None,
                "method": Path(name).parts[0] if entry["label"] else ORIGINAL,
            }
        yield entry
    yield from _unnamed(root, files, named)


def _face_forensics(
    root: Path, files: list[Path], compression: Compression | None
) -> Iterator[Entry]:
    there = [c for c in COMPRESSIONS if any(root.glob(f"*_sequences/*/{c}/videos"))]
    if compression is None and len(there) > 1:
        raise ValueError(
            f"{root} holds videos of compressions {', '.join(there)}. Choose with --compression."
        )
    compression = compression or (there[0] if there else None)
    if compression not in there:
        raise ValueError(
            f"{root} holds no videos of compression {compression}. There: {', '.join(there)}."
        )
    for path in filter(_is_video, files):
        folders = path.relative_to(root).parts[:-1]  # original_sequences, youtube, c23, videos
        is_placed = len(folders) == 4 and folders[0] in SEQUENCES and folders[3] == "videos"
        if is_placed and folders[2] == compression:
            yield _face_forensics_entry(root, path, folders[1], folders[0] == SEQUENCES[1])
        elif not (is_placed and folders[2] in COMPRESSIONS) and "masks" not in folders[2:3]:
            detail = f"expected in {' or '.join(SEQUENCES)}, */{compression}/videos"
            yield Problem(_video_id(root, path), "no label", detail)


def _face_forensics_entry(root: Path, path: Path, source: str, is_fake: bool) -> Entry:
    video = _video_id(root, path)
    match = (FAKE_NAME if is_fake else REAL_NAME).fullmatch(path.stem)
    if not match:
        detail = f"expected a name like {'000_003' if is_fake else '000'}, got {path.stem}"
        return Problem(video, "unknown name", detail)
    found = match.groupdict()
    is_dfd = found["scene"] is not None
    people = "actor" if is_dfd else "youtube"  # both count from 1: 003 is not actor 03
    mask = path.parents[2] / "masks" / "videos" / path.name
    return {
        "video": video,
        "name": video,
        "path": _below(root, path),
        "mask": _below(root, mask) if is_fake and mask.is_file() else None,
        "family": found["actor"] + (f"__{found['scene']}" if is_dfd else ""),
        "actor": f"{people}-{found['actor']}",
        "other_actor": f"{people}-{found['other']}" if is_fake else None,
        "part": "actors" if is_dfd else "youtube",
        "label": int(is_fake),
        "method": source if is_fake else ORIGINAL,
    }


def _read_json(path: Path) -> list[tuple[str, Any]]:
    """Name and description of each video; also of names that the file has twice."""
    pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"expected an object of videos, got {type(pairs).__name__}")
    return [(n, dict(about) if isinstance(about, _Pairs) else about) for n, about in pairs]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all that it says, also where it says it twice."""


def _read_labels(path: Path) -> list[tuple[str, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filename", "label"} <= set(rows[0]):
        raise ValueError("expected the columns filename and label and one row or more")
    # A test set tells no originals: the family of its fakes is unknown.
    return [(row["filename"], {"label": row["label"]}) for row in rows]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _unreadable(root: Path, error: OSError) -> Problem:
    folder = _below(root, Path(str(error.filename)))
    return Problem(folder, "unreadable folder", str(error.strerror))


def _video_id(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
