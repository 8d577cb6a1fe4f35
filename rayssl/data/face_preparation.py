"""From a folder of videos to a face set: plan, gather what the crop tasks return, report.

Tasks themselves run elsewhere (`rayssl.face_jobs`); nothing here needs Ray. A preparation that was
cut short goes on with the same settings: a video's crops are there whole, or not at all.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from rayssl.data.face_crops import CropSettings
from rayssl.data.face_videos import Compression, Problem, draw_videos, find_videos
from rayssl.data.faces import FACES_FILE, PROBLEMS_FILE, FaceSet, write_face_set
from rayssl.files import write_whole

PLAN_FILE, REPORT_FILE, SHEET_FILE = "preparation.json", "report.md", "contact.png"
SHEET_FAMILIES = 12


@dataclass(frozen=True)
class PreparationSettings:
    """What is prepared.

    Attributes:
      root: folder of the videos.
      crops: what decides a crop.
      compression: of FaceForensics++.
      real, fake: number of videos drawn; None: all.
      seed: of the draw.
    """

    root: Path
    crops: CropSettings
    compression: Compression | None = None
    real: int | None = None
    fake: int | None = None
    seed: int = 0


class Plan(NamedTuple):
    """The videos of a preparation.

    Attributes:
      found: all usable videos below the root.
      drawn: those to prepare, as in `rayssl.data.face_videos.FoundVideos.videos`.
      problems: what was skipped so far.
    """

    found: pd.DataFrame
    drawn: pd.DataFrame
    problems: list[Problem]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dictionary a video to prepare."""
        return self.drawn.to_dict("records")


def plan_preparation(settings: PreparationSettings, out: Path) -> Plan:
    """Returns what there is to do; writes nothing.

    Raises:
      FileNotFoundError, ValueError: if the settings are wrong, or the folder has no usable video.
      FileExistsError: if `out` holds something else, also a preparation of other settings.
    """
    settings.crops.check()
    if settings.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {settings.seed}.")
    found = find_videos(settings.root, settings.compression)
    drawn = draw_videos(found.videos, real=settings.real, fake=settings.fake, seed=settings.seed)
    if drawn.empty:
        raise ValueError("No video to prepare: --real and --fake are 0.")
    _check_folder(out, settings)
    return Plan(found.videos, drawn, found.problems)


def start_preparation(settings: PreparationSettings, out: Path) -> None:
    """Notes in `out` what is prepared there, so that only the same is gone on with."""
    if not (out / PLAN_FILE).exists():
        write_whole(out / PLAN_FILE, json.dumps(_as_json(settings), indent=1).encode())


def finish_preparation(
    settings: PreparationSettings,
    out: Path,
    plan: Plan,
    results: Iterable[tuple[Mapping[str, Any], dict[str, Any] | Problem]],
    about: Mapping[str, Any],
) -> FaceSet:
    """Gathers the tasks' results, writes tables, report and contact sheet, returns the face set.

    Args:
      settings, out, plan: of the preparation.
      results: rows of the plan with what `crop_video` returned, in any order.
      about: what faces.json also tells.
    Raises:
      ValueError: if no video gave a crop; PROBLEMS_FILE tells why.
    """
    problems, videos, frames = list(plan.problems), [], []
    for row, result in results:
        if isinstance(result, Problem):
            problems.append(result)
            continue
        if result["mask_problem"]:
            problems.append(Problem(row["video"], "damaged mask", result["mask_problem"]))
        crops = result["crops"]
        videos.append(
            {k: v for k, v in row.items() if k not in ("path", "mask")}
            | {"num_frames": len(crops)}
            | {k: result[k] for k in ("num_sampled", "num_without_face", "has_masks", "sha256")}
        )
        frames += [{"video": row["video"], **crop} for crop in crops]
    table = pd.DataFrame(sorted(problems), columns=list(Problem._fields))
    write_whole(out / PROBLEMS_FILE, table.to_csv(index=False, lineterminator="\n").encode())
    if not videos:
        (out / FACES_FILE).unlink(missing_ok=True)  # of an earlier run, whose videos are gone
        raise ValueError(
            f"None of {len(plan.drawn)} videos gave a face. {out / PROBLEMS_FILE} tells why, e.g. "
            f"{problems[-1].video}: {problems[-1].problem}, {problems[-1].detail}."
        )
    faces = write_face_set(
        out, pd.DataFrame(videos), pd.DataFrame(frames), asdict(settings.crops), about
    )
    report = preparation_report(faces, plan, problems)
    write_whole(out / REPORT_FILE, f"{report}\n".encode())
    contact_sheet(faces).save(out / SHEET_FILE)
    return faces


def preparation_report(faces: FaceSet, plan: Plan, problems: list[Problem]) -> str:
    """Returns counts of videos, frames and crops by label, and of everything that was skipped."""
    fake = faces.videos["label"] == 1
    lines = ["| | real | fake |", "| --- | --- | --- |"]
    for name, table in (("videos found", plan.found), ("videos drawn", plan.drawn)):
        lines.append(_row(name, [(table["label"] == label).sum() for label in (0, 1)]))
    prepared = [faces.videos[~fake], faces.videos[fake]]
    lines.append(_row("videos prepared", map(len, prepared)))
    for name, column in (
        ("frames looked at", "num_sampled"),
        ("of them without a face", "num_without_face"),
        ("crops", "num_frames"),
    ):
        lines.append(_row(name, [part[column].sum() for part in prepared]))
    groups = []
    for column, plural in (("family", "families"), ("actor", "actors"), ("part", "parts")):
        values = faces.videos[column]
        unknown = f" (of {values.isna().sum()} videos unknown)" if values.isna().any() else ""
        groups.append(f"{values.nunique()} {plural}{unknown}")
    lines += ["", f"{', '.join(groups)}; fingerprint {faces.fingerprint}"]
    counts = Counter(problem.problem for problem in problems)
    if counts:
        named = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        lines.append(f"Not in order: {named}; each of them is a line of {PROBLEMS_FILE}.")
    else:
        lines.append("Not in order: nothing.")
    return "\n".join(lines)


def contact_sheet(faces: FaceSet) -> Image.Image:
    """Returns one crop of each of some families: originals above, their fakes below, then masks.

    For eyes only: whether the squares hold faces.
    """
    middle = faces.frames.groupby("video").cumcount() == (
        faces.column("num_frames").astype(np.int64) // 2
    )
    chosen = pd.DataFrame(
        {
            "row": np.flatnonzero(middle),
            "label": faces.labels[middle],
            "family": pd.Series(faces.column("family")[middle]).fillna("").to_numpy(str),
            "has_masks": faces.column("has_masks")[middle].astype(bool),
        }
    ).drop_duplicates(["family", "label"])
    reals, fakes = (chosen[chosen["label"] == label].set_index("family") for label in (0, 1))
    both = fakes.index.intersection(reals.index)
    if len(both):
        reals, fakes = reals.loc[both], fakes.loc[both]
    reals, fakes = reals.head(SHEET_FAMILIES), fakes.head(SHEET_FAMILIES)
    strips = [faces.crops(part["row"]) for part in (reals, fakes) if len(part)]
    if len(fakes) and fakes["has_masks"].all():
        strips.append(np.repeat(faces.masks(fakes["row"])[..., None], 3, -1))
    size = faces.size
    sheet = Image.new("RGB", (size * max(map(len, strips)), size * len(strips)))
    for y, strip in enumerate(strips):
        for x, crop in enumerate(strip):
            sheet.paste(Image.fromarray(crop), (x * size, y * size))
    return sheet


def _check_folder(out: Path, settings: PreparationSettings) -> None:
    plan = out / PLAN_FILE
    if not plan.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(
                f"{out} is not empty, and holds no preparation to go on with. Choose another --out."
            )
        return
    try:
        found = dict(json.loads(plan.read_text(encoding="utf-8")))
    except ValueError as error:
        raise FileExistsError(f"{plan} is damaged ({error}). Choose another --out.") from error
    expected = _as_json(settings)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise FileExistsError(
                f"{out} was started with {name} {found.get(name)}, got {expected.get(name)}. Go on "
                "with the same settings, or choose another --out."
            )


def _as_json(settings: PreparationSettings) -> dict[str, Any]:
    values = asdict(settings)
    return {"root": str(settings.root.resolve()), **values.pop("crops"), **{
        k: v for k, v in values.items() if k != "root"
    }}  # fmt: skip


def _row(name: str, counts: Iterable[int]) -> str:
    return f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |"
