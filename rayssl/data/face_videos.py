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
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
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

    Every file with one of VIDEO_SUFFIXES is in one of the two, but masks and other compressions.

    Args:
      root: of one of the layouts above.
      compression: of FaceForensics++ and DFD; needed where there is more than one.
    Raises:
      FileNotFoundError: if the folder is not there.
      ValueError: if it has no known layout, no usable video, or several compressions; for a
        compression of another layout.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Pass the folder that holds the videos.")
    root = root.resolve()  # a part is called by its folder's name, and "." has none
    problems: list[Problem] = []
    files = files_below(root, lambda error: problems.append(_unreadable(root, error)))
    rows: dict[str, dict[str, Any]] = {}
    first_named: dict[str, str] = {}
    for entry in _entries(root, files, compression):
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        video, name, path = entry["video"], entry.pop("name"), entry["path"]
        # a.mp4 and a.avi have other names, and would share their crops.
        first = first_named.get(name) or rows.get(video, {}).get("path")
        if not _is_file(root / path):
            problems.append(Problem(video, "missing file", f"{path} is not there"))
        elif not _is_text(path):
            problems.append(Problem(video, "unusable name", "expected UTF-8 without control signs"))
        elif first is not None:
            detail = f"{first} has the same name and is kept"
            problems.append(Problem(video, "duplicate name", detail))
        else:
            first_named[name] = path
            rows[video] = {column: entry.get(column) for column in COLUMNS}
    problems = [Problem(*map(_as_utf8, problem)) for problem in problems]
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
Describe = Callable[[Path, Path, str, Mapping[str, Any]], Entry]  # root, file, name, description


def _entries(root: Path, files: list[Path], compression: Compression | None) -> Iterator[Entry]:
    """What each layout tells about each video; `name` must be unique."""
    if any((root / name).is_dir() for name in SEQUENCES):
        return _face_forensics(root, files, compression)
    if compression is not None:
        raise ValueError(
            f"--compression is of FaceForensics++ and DFD: expected {' or '.join(SEQUENCES)} in "
            f"{root} with {compression}, got neither. Pass the folder that holds them, or leave "
            "--compression out."
        )
    if (root / "dataset.json").is_file():
        return _preview(root, files)
    return _challenge(root, files)


def _challenge(root: Path, files: list[Path]) -> Iterator[Entry]:
    tables = {p.parent for p in files if p.name == "labels.csv"}
    named: set[Path] = set()
    for path in files:
        is_spare = path.name == "metadata.json" and path.parent in tables
        if path.name in ("metadata.json", "labels.csv") and not is_spare:
            yield from _listed(root, path, named, _challenge_entry)
    yield from _unnamed(root, files, named)


def _listed(root: Path, path: Path, named: set[Path], describe: Describe) -> Iterator[Entry]:
    """The videos of one list, which are added to `named`; what is odd is a problem of its own."""
    try:
        pairs = _read_labels(path) if path.suffix == ".csv" else _read_json(path)
    except (ValueError, OSError, csv.Error, RecursionError) as error:
        yield Problem(_below(root, path), "damaged list", str(error))
        return
    for name, about in pairs:
        if not _is_plain_name(name):
            detail = f"expected the name of a video below the list's folder, got {name!r:.200}"
            yield Problem(_below(root, path), "damaged list", detail)
            continue
        file = path.parent / name
        named.add(file)
        try:
            if not isinstance(about, Mapping):
                raise ValueError(f"expected label and split, got {about!r:.200}")
            yield describe(root, file, name, about)
        except ValueError as error:
            yield Problem(_video_id(root, file), "damaged list", str(error))


def _unnamed(root: Path, files: list[Path], named: set[Path]) -> Iterator[Problem]:
    """The videos that no list names, without the masks of those that one does."""
    masks = {root / "masks" / path.relative_to(root) for path in named}
    for path in files:
        if _is_video(path) and path not in named and path not in masks:
            yield Problem(_video_id(root, path), "no label", f"no list names {_below(root, path)}")


def _challenge_entry(root: Path, file: Path, name: str, about: Mapping[str, Any]) -> Entry:
    video = _video_id(root, file)
    label = LABELS.get(str(about.get("label")).upper())
    if label is None:
        detail = f"expected REAL or FAKE, got {about.get('label')!r:.200}"
        return Problem(video, "unknown label", detail)
    original = _text(about, "original", str) if label else name
    mask = Path("masks") / file.relative_to(root)
    return {
        "video": video,
        "name": name,
        "path": _below(root, file),
        "mask": mask.as_posix() if label and _is_file(root / mask) else None,
        "family": (Path(original).stem or None) if original else None,
        "actor": _text(about, "actor", str, int),
        "other_actor": _text(about, "other_actor", str, int) if label else None,
        "part": file.parent.name,
        "label": label,
        "method": "fake" if label else ORIGINAL,
    }


def _preview(root: Path, files: list[Path]) -> Iterator[Entry]:
    named: set[Path] = set()
    yield from _listed(root, root / "dataset.json", named, _preview_entry)
    yield from _unnamed(root, files, named)


def _preview_entry(root: Path, file: Path, name: str, about: Mapping[str, Any]) -> Entry:
    """Ids of people only where the list has `target_id` and `swapped_id`."""
    entry = _challenge_entry(root, file, name, about)
    if isinstance(entry, dict):
        entry |= {
            "actor": _text(about, "target_id", str, int),
            "other_actor": _text(about, "swapped_id", str, int) if entry["label"] else None,
            "part": _text(about, "set", str),
            "method": Path(name).parts[0] if entry["label"] else ORIGINAL,
        }
    return entry


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
    pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"expected an object of videos, got {type(pairs).__name__}")
    return [(n, dict(about) if isinstance(about, _Pairs) else about) for n, about in pairs]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all that it says, also where it says it twice."""


def _read_labels(path: Path) -> list[tuple[Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filename", "label"} <= set(rows[0]):
        raise ValueError("expected the columns filename and label and one row or more")
    # A test set tells no originals: the family of its fakes is unknown.
    return [(row["filename"], {"label": row["label"]}) for row in rows]


def _text(about: Mapping[str, Any], key: str, *kinds: type) -> str | None:
    """A value as text, None where there is none; ValueError for a value of another kind."""
    value = about.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, kinds) or isinstance(value, bool) or not _is_text(str(value)):
        raise ValueError(f"expected text as {key}, got {value!r:.200}")
    return str(value)


def _is_plain_name(name: Any) -> bool:
    """Whether a list's name for a video stays below the list's folder."""
    if not isinstance(name, str) or not _is_text(name):
        return False
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _is_text(text: str) -> bool:
    """Whether a table can hold it: no control signs (Cc), no halves of signs (Cs)."""
    return not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the disk's
        return False


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _unreadable(root: Path, error: OSError) -> Problem:
    folder = _below(root, Path(str(error.filename)))
    return Problem(folder, "unreadable folder", str(error.strerror))


def _video_id(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
