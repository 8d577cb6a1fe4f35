"""Faces of real and manipulated videos: prepared from a data set, or drawn.

    python experiments/deepfake.py demo
    python experiments/deepfake.py prepare /data/dfdc --real 368 --fake 400

`demo` draws a stand-in of faces that are nobody's, with fakes and masks, and prepares it: the whole
way without any download. `prepare` finds the videos of the Deepfake Detection Challenge, its
preview, FaceForensics++ or DFD below a folder, and crops the faces of evenly spaced frames. Both
can be killed, and the same command goes on.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
import tyro
from tqdm import tqdm

from rayssl.cli import check_writable, provenance, refuse, remove_empty
from rayssl.data.face_crops import CropSettings, Faces, NoFace
from rayssl.data.face_detectors import DetectorName, make_detector, weights_digest
from rayssl.data.face_preparation import (
    REPORT_FILE,
    SHEET_FILE,
    PreparationSettings,
    finish_preparation,
    plan_preparation,
    start_preparation,
)
from rayssl.data.face_splits import SPLIT_KINDS, leakage_report, split_faces
from rayssl.data.face_videos import Compression
from rayssl.data.faces import FaceSet
from rayssl.data.stand_in import StandIn, write_stand_in
from rayssl.face_jobs import crop_videos
from rayssl.rllib.start import ray_address, start_ray

DRAWN_FACE = 0.25  # least side of a drawn face, by the frame's side: most are 0.4
UNFINISHED = 75  # exit code: run the same command to go on


@dataclass(frozen=True)
class Demo:
    """Draws a stand-in of faces that are nobody's, with fakes and masks, and prepares it."""

    out: Path = Path("results/local/drawn-faces")
    """Folder for `videos` and `faces`."""
    actors: int = StandIn.actors
    """Drawn persons, an even number."""
    takes: int = StandIn.takes
    """Real clips a person, each with one fake."""
    frames: int = StandIn.frames
    """Length of a clip; all frames are cropped."""
    size: int = 160
    """Height and width of a crop in pixels."""
    seed: int = 0
    """Of everything drawn."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""


@dataclass(frozen=True)
class Prepare:
    """Finds videos below a folder and crops their faces, many videos at once."""

    root: tyro.conf.Positional[Path]
    """Folder of DFDC, its preview, FaceForensics++ or DFD; on a cluster, one that all nodes see."""
    out: Path | None = None
    """Folder for the crops; default: results/local/faces-<name of root>."""
    real: int | None = None
    """Real videos drawn by seed (368: section V-B); default: all."""
    fake: int | None = None
    """Fake videos drawn by seed (400: section V-B); default: all."""
    frames: int = CropSettings.frames
    """Frames looked at in each video, evenly spaced (100: the authors' code)."""
    size: int = CropSettings.size
    """Height and width of a crop in pixels."""
    margin: float = CropSettings.margin
    """Side of the crop by the longer side of the face's box (1.3: the authors' code)."""
    detector: DetectorName = CropSettings.detector
    """lbp needs no files; yunet: OpenCV's, with --weights; mtcnn: facenet-pytorch's."""
    weights: Path | None = None
    """The file of yunet's network (.onnx)."""
    min_face: float = CropSettings.min_face
    """Least side of a face, by the frame's shorter side; lbp is faster for larger ones."""
    no_face: NoFace = CropSettings.no_face
    """Frames without a face: skip, previous (crop at the last box), centre (of the frame)."""
    faces: Faces = CropSettings.faces
    """Of several faces: the largest, the first that the detector names, or all."""
    compression: Compression | None = None
    """Of FaceForensics++, where the folder holds several."""
    seed: int = 0
    """Of the draw of --real and --fake."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""


def demo(demo: Demo) -> FaceSet:
    """Draws the stand-in, prepares it, and prints what each kind of split would leak."""
    stand_in = StandIn(demo.actors, demo.takes, demo.frames, demo.seed)
    try:
        stand_in.check()
        if demo.size < 8:
            raise ValueError(f"--size must be 8 or more, got {demo.size}.")
        clips = write_stand_in(demo.out / "videos", stand_in)
        total = 2 * demo.actors * demo.takes
        for _ in progress(clips, total, "drawing clips"):
            pass
    except (ValueError, OSError) as error:
        refuse(error)
    print(f"videos: {demo.out / 'videos'} (a stand-in of drawn faces)", flush=True)
    crops = CropSettings(frames=demo.frames, size=demo.size, min_face=DRAWN_FACE)
    settings = PreparationSettings(demo.out / "videos", crops)
    faces = run_preparation(settings, demo.out / "faces", None, demo.address, demo)
    for kind in SPLIT_KINDS:
        try:
            print(f"\n{leakage_report(split_faces(faces, kind, seed=demo.seed))}")
        except ValueError as error:
            print(f"\nsplit {kind}: {error}")
    return faces


def prepare(prepare: Prepare) -> FaceSet:
    """Prepares the videos of a command line; exits with 2 and one line for what was wrong in it."""
    p = prepare
    try:
        make_detector(p.detector, p.weights)  # found out now, not in every task
        crops = CropSettings(
            frames=p.frames, size=p.size, margin=p.margin, detector=p.detector, min_face=p.min_face,
            no_face=p.no_face, faces=p.faces, weights=weights_digest(p.weights),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        refuse(error)
    settings = PreparationSettings(p.root, crops, p.compression, p.real, p.fake, p.seed)
    out = p.out or Path("results/local") / f"faces-{p.root.resolve().name}"
    return run_preparation(settings, out, p.weights, p.address, p)


def run_preparation(
    settings: PreparationSettings, out: Path, weights: Path | None, address: str | None, told: Any
) -> FaceSet:
    """Crops all videos that are not cropped yet, and prints the report."""
    made: list[Path] = []
    try:
        plan = plan_preparation(settings, out)
        made = check_writable(out)
        start_ray(ray_address(address))
        start_preparation(settings, out)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    rows = plan.rows()
    results = crop_videos(settings.root, out, rows, settings.crops, weights)
    try:
        faces = finish_preparation(
            settings, out, plan, progress(results, len(rows), "cropping faces"), provenance(told)
        )
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on in {out}", file=sys.stderr)
        raise SystemExit(UNFINISHED) from None
    except ValueError as error:
        refuse(error)
    finally:
        ray.shutdown()
    print(f"\n{(out / REPORT_FILE).read_text()}\nfaces: {out} (look at {out / SHEET_FILE})")
    return faces


def progress(steps: Any, total: int, what: str) -> Any:
    """Returns the steps behind a progress bar; without a terminal, a line every ten seconds."""
    is_terminal = sys.stderr.isatty()
    return tqdm(steps, what, total, mininterval=0.2 if is_terminal else 10)


COMMANDS: dict[type, Callable[[Any], Any]] = {
    Demo: demo,
    Prepare: prepare,
}  # a sub-command is a line here: a settings dataclass, whose name is its name, and what it runs


def main(argv: Sequence[str] | None = None) -> Any:
    """Runs the sub-command of a command line and returns what it returns."""
    commands: Any = Union[tuple(COMMANDS)]  # noqa: UP007
    settings = tyro.cli(commands, args=argv)
    return COMMANDS[type(settings)](settings)


if __name__ == "__main__":
    main()
