"""Which real and manipulated videos lie below a folder: a manifest, and all that is not in order.

Three layouts are read:

- DFDC: folders of videos with a `metadata.json` (training parts, once more nested or not, the
  sample set) or a `labels.csv` (the test set).
- DFDC preview: `dataset.json` beside `original_videos`, `method_A`, `method_B`.
- FaceForensics++ and DFD: `original_sequences` and `manipulated_sequences`.

A damaged entry never stops the others: it is a row of the problems.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

LABELS = {"REAL": 0, "FAKE": 1, "0": 0, "1": 1}
COLUMNS = (
    "video", "path", "mask", "family", "actor", "other_actor", "part", "label", "method",
)  # fmt: skip
ORIGINAL = "original"  # method of a real video
Compression = Literal["raw", "c23", "c40"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
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

    Args:
      root: of one of the layouts above.
      compression: of FaceForensics++; needed where there is more than one.
    Raises:
      FileNotFoundError: if the folder is not there.
      ValueError: if it has no known layout, no usable video, or several compressions.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}. Pass the folder that holds the videos.")
    entries = _entries(root, compression)
    rows: dict[str, dict[str, Any]] = {}
    first_named: dict[str, str] = {}
    problems: list[Problem] = []
    for entry in entries:
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


def _entries(root: Path, compression: Compression | None) -> Iterator[Entry]:
    """What each layout tells about each video; `name` must be unique."""
    if (root / "original_sequences").is_dir() or (root / "manipulated_sequences").is_dir():
        return _face_forensics(root, compression)
    if (root / "dataset.json").is_file():
        return _preview(root)
    return _challenge(root)


def _challenge(root: Path) -> Iterator[Entry]:
    files = [p for name in ("metadata.json", "labels.csv") for p in sorted(root.rglob(name))]
    tables = [p for p in files if p.name == "labels.csv"]
    for path in files:
        if path.name == "metadata.json" and path.with_name("labels.csv") in tables:
            continue
        folder = path.parent
        try:
            if path.name == "labels.csv":
                pairs = _read_labels(path)
            else:
                pairs = _read_json(path)
        except (ValueError, OSError, csv.Error) as error:
            yield Problem(_below(root, path), "damaged list", str(error))
            continue
        listed = set()
        for name, about in pairs:
            listed.add(name)
            yield _challenge_entry(root, folder, name, about)
        for video in sorted(folder.glob("*.mp4")):
            if video.name not in listed:
                detail = f"{path.name} beside it does not list it"
                yield Problem(_video_id(root, video), "no label", detail)


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


def _preview(root: Path) -> Iterator[Entry]:
    """The preview's list; ids of people only where it has `target_id` and `swapped_id`."""
    path = root / "dataset.json"
    try:
        pairs = _read_json(path)
    except (ValueError, OSError) as error:
        yield Problem(_below(root, path), "damaged list", str(error))
        return
    for name, about in pairs:
        file = root / name
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


def _face_forensics(root: Path, compression: Compression | None) -> Iterator[Entry]:
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
    for label, folder in enumerate(("original_sequences", "manipulated_sequences")):
        pattern = FAKE_NAME if label else REAL_NAME
        for path in sorted((root / folder).glob(f"*/{compression}/videos/*.mp4")):
            video, source = _video_id(root, path), path.parts[-4]
            match = pattern.fullmatch(path.stem)
            if not match:
                detail = f"expected a name like {'000_003' if label else '000'}, got {path.stem}"
                yield Problem(video, "unknown name", detail)
                continue
            found = match.groupdict()
            is_dfd = found["scene"] is not None
            people = "actor" if is_dfd else "youtube"  # both count from 1: 003 is not actor 03
            mask = path.parents[2] / "masks" / "videos" / path.name
            yield {
                "video": video,
                "name": video,
                "path": _below(root, path),
                "mask": _below(root, mask) if label and mask.is_file() else None,
                "family": found["actor"] + (f"__{found['scene']}" if is_dfd else ""),
                "actor": f"{people}-{found['actor']}",
                "other_actor": f"{people}-{found['other']}" if label else None,
                "part": "actors" if is_dfd else "youtube",
                "label": label,
                "method": source if label else ORIGINAL,
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


def _video_id(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
