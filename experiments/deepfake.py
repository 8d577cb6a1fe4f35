"""Faces of real and manipulated videos, prepared from a data set or drawn, and Table III over them.

    python experiments/deepfake.py demo
    python experiments/deepfake.py prepare /data/dfdc --real 368 --fake 400
    python experiments/deepfake.py probe results/local/drawn-faces/faces --seeds 3
    python experiments/deepfake.py probe --resume results/local/deepfake
    python experiments/deepfake.py report results/local/deepfake

`demo` draws a stand-in of faces that are nobody's, with fakes and masks, and prepares it: the whole
way without any download. `prepare` finds the videos of the Deepfake Detection Challenge, its
preview, FaceForensics++ or DFD below a folder, and crops the faces of evenly spaced frames. Both
can be killed, and the same command goes on. `probe` trains classifiers over frozen backbones and
ends with Table III beside the paper's numbers; `report` writes its tables and figure again.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Union

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # ProbeLog writes the logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
import tyro
from ray.exceptions import RayError
from tqdm import tqdm

from rayssl.backbones.images import MissingWeights, image_backbone_spec
from rayssl.cli import (
    check_name,
    check_writable,
    parse_experiment,
    provenance,
    refuse,
    remove_empty,
)
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
from rayssl.data.face_splits import (
    SPLIT_KINDS,
    SplitError,
    SplitKind,
    leakage_report,
    split_faces,
)
from rayssl.data.face_videos import Compression
from rayssl.data.faces import FaceSet, load_face_set
from rayssl.data.stand_in import StandIn, write_stand_in
from rayssl.deepfake import (
    TABLE_III,
    Classifier,
    ProbeSettings,
    ProtocolName,
    TrainingFakes,
    check_weights,
    dataset_of,
    split_of,
)
from rayssl.deepfake_report import Finished, deepfake_report, load_scores, plot_deepfake
from rayssl.deepfake_trainables import (
    SCORES,
    Place,
    extract_features,
    finished_trials,
    run_probes,
)
from rayssl.face_jobs import crop_videos
from rayssl.files import hold
from rayssl.report import read_epochs
from rayssl.rllib.resources import free_resources
from rayssl.rllib.start import ray_address, record_start, start_ray
from rayssl.rllib.stopping import StopAtSteps, stop_on_signals
from rayssl.trainables import newest_checkpoint

DRAWN_FACE = 0.25  # least side of a drawn face, by the frame's side: most are 0.4
UNFINISHED = 75  # exit code: run the same command to go on
HARD_SPLITS: dict[ProtocolName, tuple[SplitKind, ...]] = {  # the first that the faces allow
    "strict": ("family", "actor", "part", "video"),  # DFDC's preview names no families
    "paper-code": ("first-actor", "video"),
}
MAY_DIFFER = {"address", "backbone", "faces", "features_dir", "num_cpus", "num_gpus", "results_dir",
              "resume", "seeds", "weights"}  # fmt: skip  # of a resumed experiment


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


@dataclass(frozen=True)
class Probe:
    """Table III: classifiers over frozen backbones, every combination a trial of Ray Tune."""

    faces: tyro.conf.Positional[Path | None] = None
    """Folder of a face set, as prepare or demo wrote it."""
    protocol: tuple[ProtocolName, ...] = ("strict",)
    """strict (frozen, chosen on validation, test read once); paper-code (the authors' code: 10
    passes over all images, statistics drift, best test epoch)."""
    backbone: tuple[str, ...] = tuple(TABLE_III)
    """Rows of the table; one whose weights are nowhere is shown as not run."""
    layer: tuple[str, ...] = ()
    """Layers whose features are read; a backbone that has none of them gives the authors'."""
    weights: tuple[str, ...] = ()
    """Weight files, BACKBONE=PATH; default: RAYSSL_WEIGHTS, TORCH_HOME, the network."""
    split: tuple[SplitKind, ...] = ()
    """random (leaks), video (the paper's hard split), family, actor, first-actor (the authors'
    code), part. Default: random and a hard one, the first that the faces allow: family, actor,
    part, video for strict; first-actor, video for paper-code."""
    classifier: tuple[Classifier, ...] = ("logistic",)
    """Under strict: logistic, sgd (the field's linear evaluation), knn. paper-code has its own."""
    c: tuple[float, ...] = ()
    """Fixed C of logistic regression, one trial each; default: chosen on validation."""
    epochs: int | None = None
    """Of sgd and of paper-code's head; default: 90, and the authors' 5 or 10."""
    test_share: float = ProbeSettings.test_share
    """Of crops, videos or groups."""
    validation_share: float = ProbeSettings.validation_share
    """Of what is not test; strict only."""
    training_fakes: TrainingFakes = "data"
    """data, or self-blended: fakes made of the real faces, for training and validation; strict."""
    seeds: int = 1
    """Number of seeds: 0, 1, ... of split, random weights, head, order."""
    features_dir: Path | None = None
    """Folder of cached features; default: `features` in the face set's folder."""
    num_cpus: int = 1
    """CPU cores a trial; as many run at once as there is room for."""
    num_gpus: float = 0.0
    """GPUs a trial, 0.25 for four trials on one."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the experiment's folder is made; on a cluster, a folder that all nodes see."""
    name: str = "deepfake"
    """The experiment's folder."""
    resume: Path | None = None
    """Go on with an experiment's folder; finished trials are kept. --seeds and --backbone may add
    trials."""


@dataclass(frozen=True)
class Report:
    """Writes tables and figure of an experiment's finished trials again."""

    run: tyro.conf.Positional[Path]
    """Folder of an experiment."""
    out: Path = Path("results/local/report")
    """Folder for report.md and table3.png."""


def demo(demo: Demo) -> FaceSet:
    """Draws the stand-in, prepares it, and prints what each kind of split would leak."""
    stand_in = StandIn(demo.actors, demo.takes, demo.frames, demo.seed)
    crops = CropSettings(frames=demo.frames, size=demo.size, min_face=DRAWN_FACE)
    made: list[Path] = []
    try:
        stand_in.check()
        crops.check()
        made = check_writable(demo.out)
        clips = write_stand_in(demo.out / "videos", stand_in)
        total = 2 * demo.actors * demo.takes
        for _ in progress(clips, total, "drawing clips"):
            pass
    except KeyboardInterrupt:
        print(f"\nstopped; the same command draws anew in {demo.out}", file=sys.stderr)
        raise SystemExit(UNFINISHED) from None
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    print(f"videos: {demo.out / 'videos'} (a stand-in of drawn faces)", flush=True)
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
    with contextlib.ExitStack() as held:
        return _run_preparation(settings, out, weights, address, told, held)


def _run_preparation(
    settings: PreparationSettings, out: Path, weights: Path | None, address: str | None, told: Any,
    held: contextlib.ExitStack,
) -> FaceSet:  # fmt: skip
    """Is `run_preparation`, which gives back what is `held` at the end."""
    made: list[Path] = []
    try:
        plan = plan_preparation(settings, out)
        made = check_writable(out)
        held.enter_context(hold(out))
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
    except (ValueError, OSError) as error:
        refuse(error)
    finally:
        ray.shutdown()
    print(f"\n{(out / REPORT_FILE).read_text()}\nfaces: {out} (look at {out / SHEET_FILE})")
    return faces


def trials_of(run: Probe, faces: FaceSet) -> list[ProbeSettings]:
    """Returns the settings of every trial, checked.

    Raises:
      ValueError: for a value that no trial can have, or a split that these faces do not allow.
    """
    for name, least in (("seeds", 1), ("num_cpus", 1), ("num_gpus", 0)):
        if not getattr(run, name) >= least:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be {least} or more, got {getattr(run, name)}.")
    for name in ("protocol", "backbone", "classifier"):
        if not getattr(run, name):
            raise ValueError(f"--{name} needs at least one value, got none.")
    if run.resume is None:  # else they were taken before there was a check, and cannot be left out
        check_effects(run)
    files = weight_files(run)
    kinds = {p: run.split or ("random", hard_split(p, run, faces)[0]) for p in run.protocol}
    found: dict[str, ProbeSettings] = {}
    for seed in range(run.seeds):
        for protocol in run.protocol:
            for backbone in run.backbone:
                for split in kinds[protocol]:
                    for classifier in run.classifier if protocol == "strict" else ("adam",):
                        for layer in layers_of(run, backbone):
                            for c in run.c if classifier == "logistic" and run.c else (None,):
                                settings = ProbeSettings(
                                    protocol=protocol, backbone=backbone, layer=layer,
                                    weights=files.get(backbone), split=split,
                                    classifier=classifier, c=c,
                                    epochs=run.epochs if classifier in ("sgd", "adam") else None,
                                    test_share=run.test_share,
                                    validation_share=run.validation_share,
                                    training_fakes=run.training_fakes, seed=seed,
                                )  # fmt: skip
                                settings.check()
                                found[settings.name] = settings
    splits = {(s.protocol == "strict", s.split, s.seed): s for s in found.values()}
    for settings in splits.values():
        split_of(settings, faces)
    return list(found.values())


def check_effects(run: Probe) -> None:
    """Raises ValueError for an option that no trial of the command would use."""
    usual, strict = Probe(), "strict" in run.protocol
    acts = {  # name -> whether on any trial, and on which
        "epochs": ("paper-code" in run.protocol or "sgd" in run.classifier,
                   "--classifier sgd and --protocol paper-code"),
        "c": (strict and "logistic" in run.classifier,
              "--classifier logistic under --protocol strict"),
        "classifier": (strict, "--protocol strict; paper-code has its own head"),
        "validation_share": (strict, "--protocol strict; paper-code has no validation part"),
    }  # fmt: skip
    for name, (on_any, on_which) in acts.items():
        if not on_any and getattr(run, name) != getattr(usual, name):
            raise ValueError(
                f"--{name.replace('_', '-')} acts on {on_which}: no trial of this command uses it. "
                "Leave it out, or add what it acts on."
            )


def layers_of(run: Probe, backbone: str) -> tuple[str | None, ...]:
    """The layers asked for that this backbone has; None, the authors', where it has none of them.

    Raises:
      ValueError: for a layer that no backbone of the run has.
    """
    known = {name: image_backbone_spec(name).layers for name in run.backbone}
    for layer in run.layer:
        if not any(layer in layers for layers in known.values()):
            have = "; ".join(f"{name}: {', '.join(layers)}" for name, layers in known.items())
            raise ValueError(f"No backbone has a layer {layer!r}. They have {have}.")
    return tuple(layer for layer in run.layer if layer in known[backbone]) or (None,)


def hard_split(protocol: ProtocolName, run: Probe, faces: FaceSet) -> tuple[SplitKind, str]:
    """Returns the first of HARD_SPLITS that these faces allow, and why not those before it ("").

    Seed 0 decides, so that --seeds does not change it.

    Raises:
      ValueError: if they allow none, or for a value that no trial can have.
    """
    reasons = []
    for kind in HARD_SPLITS[protocol]:
        settings = ProbeSettings(
            protocol=protocol, split=kind, test_share=run.test_share,
            classifier="adam" if protocol == "paper-code" else "logistic",
            validation_share=run.validation_share,
        )  # fmt: skip
        settings.check()
        try:
            split_of(settings, faces)
        except SplitError as error:
            reasons.append(f"not {kind}: {error.why}")
        else:
            return kind, "; ".join(reasons)
    raise ValueError(
        f"These faces allow no hard split ({'; '.join(reasons)}). Prepare more videos, or choose "
        "--split random (leaks)."
    )


def split_notes(run: Probe, faces: FaceSet) -> list[str]:
    """Returns a line for each protocol whose hard split is not its first choice."""
    found = {p: hard_split(p, run, faces) for p in run.protocol} if not run.split else {}
    return [f"Hard split of {p}: {kind} ({why})." for p, (kind, why) in found.items() if why]


def weight_files(run: Probe) -> dict[str, str]:
    """Returns backbone -> path of what --weights says."""
    found = {}
    for text in run.weights:
        name, _, path = text.partition("=")
        if name not in run.backbone or not path:
            raise ValueError(f"Expected --weights BACKBONE=PATH of a --backbone, got {text!r}.")
        found[name] = str(Path(path).resolve())
    return found


def without_missing(
    trials: Sequence[ProbeSettings], rows: Sequence[dict[str, Any]]
) -> tuple[list[ProbeSettings], dict[str, str]]:
    """Returns the trials whose weights are there, and backbone -> why it cannot be run.

    Args:
      rows: of the experiment's log so far.
    Raises:
      ValueError: if a weight file is there and is not what it should be, or not that of the rows.
    """
    missing: dict[str, str] = {}
    for settings in {s.backbone: s for s in trials}.values():
        try:
            check_weights(rows, settings.backbone, settings.make_backbone().weights_id)
        except MissingWeights as error:
            missing[settings.backbone] = " ".join(str(error).split())
    return [s for s in trials if s.backbone not in missing], missing


def probe(run: Probe) -> str:
    """Runs the trials of a command line and returns their tables as markdown."""
    with contextlib.ExitStack() as held:
        return _probe(run, held)


def _probe(run: Probe, held: contextlib.ExitStack) -> str:
    """Is `probe`, which gives back what is `held` at the end."""
    made: list[Path] = []
    try:
        folder = experiment_folder(run)
        if run.faces is None:
            raise ValueError("No faces given. Pass the folder that demo or prepare wrote.")
        faces = load_face_set(run.faces)
        if run.resume and read_settings(folder)["faces"]["fingerprint"] != faces.fingerprint:
            raise ValueError(
                f"{folder} was started with other faces than {run.faces} holds now. Results of two "
                "face sets do not mix: start another experiment with --name."
            )
        trials, log = trials_of(run, faces), read_epochs(folder)
        wanted, missing = without_missing(trials, log)
        begun = {row.get("backbone") for row in log}  # their weights were there once
        asked = [s for s in trials if s.backbone not in missing or s.backbone in begun]
        notes = split_notes(run, faces)
        place = Place(
            str(run.faces.resolve()),
            str((run.features_dir or run.faces / "features").resolve()),
            str(folder.resolve()),
            faces.fingerprint,
        )
        made = check_writable(folder)
        made += check_writable(Path(place.features))
        held.enter_context(hold(folder))
        left = pending(folder, wanted)
        if left:
            start_ray(ray_address(run.address))
            check_resources(run)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    failed: list[str] = []
    about = {"faces": {"fingerprint": faces.fingerprint, "dataset": dataset_of(faces)}}
    # The whole path: --resume and attribution.py may come from another working directory.
    settings = dataclasses.replace(run, faces=run.faces.resolve(), resume=None)
    if left or not run.resume:
        record_start(folder, provenance(settings) | about | {"missing": missing, "notes": notes})
    if left:
        print(f"{dataset_of(faces)}: {len(left)} of {len(wanted)} trials to run -> {folder}",
              *notes, sep="\n", flush=True)  # fmt: skip
        stop_on_signals("stopping; finished trials and features are kept")
        without = extract_all([s for s in left if s.protocol == "strict"], place, run)
        failed += [f"{backbone}: {why}" for backbone, why in without.items()]
        left = [s for s in left if s.protocol != "strict" or s.backbone not in without]
        try:
            if left and not StopAtSteps.asked:
                configs = [config_of(s, place, run, folder) for s in left]
                failed += run_probes(configs, folder, num_cpus=run.num_cpus, num_gpus=run.num_gpus)
        except (ValueError, OSError, RuntimeError, RayError) as error:
            failed.append(" ".join(str(error).split()))
        ray.shutdown()
    return finish(folder, asked, missing, run.protocol, notes, dataset_of(faces), failed)


def extract_all(trials: Sequence[ProbeSettings], place: Place, run: Probe) -> dict[str, str]:
    """Fills the caches of these strict probes; returns backbone -> why its features are not whole.

    A backbone that fails keeps none of the others from running.
    """
    found: dict[str, str] = {}
    for backbone in dict.fromkeys(s.backbone for s in trials):
        if StopAtSteps.asked:
            break
        try:
            with tqdm(desc=f"features of {backbone}", unit=" crops", mininterval=1) as bar:
                extract_features(
                    [s for s in trials if s.backbone == backbone], place,
                    num_cpus=run.num_cpus, num_gpus=run.num_gpus,
                    on_rows=partial(show, bar),
                )  # fmt: skip
        except Exception as error:  # whatever a network raises, and Ray of a worker that was killed
            found[backbone] = " ".join(str(error).split()) or type(error).__name__
    return found


def show(bar: Any, done: int, total: int) -> None:
    """Moves a progress bar to a place."""
    bar.total = total
    bar.update(done - bar.n)


def config_of(settings: ProbeSettings, place: Place, run: Probe, folder: Path) -> dict[str, Any]:
    """Returns a trial's config for Tune, with its newest checkpoint."""
    checkpoint = newest_checkpoint(folder, settings.name)
    return {
        "probe": dataclasses.asdict(settings), "place": dataclasses.asdict(place),
        "num_cpus": run.num_cpus,
        "restore_from": str(checkpoint.resolve()) if checkpoint else None,
    }  # fmt: skip


def experiment_folder(run: Probe) -> Path:
    """Returns the folder of this experiment, which a new one must not find in use."""
    if run.resume is not None:
        return run.resume
    check_name(run.name)
    folder = run.results_dir / run.name
    if (folder / "settings.json").exists():
        raise FileExistsError(
            f"{folder} holds an experiment already. Go on with --resume {folder}, or choose --name."
        )
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings.json of an experiment.

    Raises:
      FileNotFoundError, ValueError: if there is none, or it is damaged.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of an experiment: no {path.name}.")
    try:
        saved: dict[str, Any] = json.loads(path.read_text())
        _ = saved["faces"]["fingerprint"], saved["faces"]["dataset"], saved["settings"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected {path} as deepfake.py probe writes it, got {type(error).__name__}: {error}."
        ) from error
    return saved


def pending(folder: Path, trials: Sequence[ProbeSettings]) -> list[ProbeSettings]:
    """Returns the trials that have not finished."""
    finished = finished_trials(folder, read_epochs(folder))
    return [settings for settings in trials if settings.name not in finished]


def check_resources(run: Probe) -> None:
    """Raises ValueError if no node has room for one trial: Ray would wait for ever."""
    nodes = free_resources()
    if not any(
        node.get("CPU", 0) >= run.num_cpus and node.get("GPU", 0) >= run.num_gpus for node in nodes
    ):
        most = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise ValueError(
            f"A trial needs {run.num_cpus} CPUs and {run.num_gpus:g} GPUs on one node, the largest "
            f"has {most.get('CPU', 0):g} and {most.get('GPU', 0):g} free. Lower --num-cpus or "
            "--num-gpus."
        )


def finish(
    folder: Path, trials: Sequence[ProbeSettings], missing: dict[str, str],
    protocols: Sequence[str], notes: Sequence[str], dataset: str, failed: list[str],
) -> str:  # fmt: skip
    """Writes and prints tables and figure of what has finished; exits with 1 or 75 if some miss.

    Exits with 1 if there are no trials, for want of weights; with 2 and one line if a trial's
    scores are damaged.
    """
    try:
        text = write_report(folder, folder, missing, protocols, notes, dataset)
    except (ValueError, OSError) as error:
        refuse(error)
    finally:
        for line in failed:
            print(f"error: {line}", file=sys.stderr)
    if not trials:
        print(
            "error: nothing could be run: no --backbone has its weights. Get one of the files "
            f"named above, then go on with --resume {folder}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    left = len(pending(folder, trials))
    if left:
        print(f"{left} of {len(trials)} trials have not finished; go on with --resume {folder}")
        raise SystemExit(1 if failed else UNFINISHED)
    return text


def write_report(
    folder: Path, out: Path, missing: dict[str, str], protocols: Sequence[str],
    notes: Sequence[str], dataset: str,
) -> str:  # fmt: skip
    """Writes report.md and table3.png of an experiment's finished trials, and prints the tables.

    Raises:
      ValueError: if a trial's scores are damaged.
    """
    rows = {row["trial"]: row for row in read_epochs(folder) if row.get("done")}
    names = finished_trials(folder, rows.values())
    done = [
        Finished(row, load_scores(folder / SCORES / f"{name}.npz"))
        for name, row in rows.items() if name in names
    ]  # fmt: skip
    text = deepfake_report(done, dataset=dataset, missing=missing, protocols=protocols)
    text = "\n\n".join([text, *notes])
    figure = plot_deepfake(done, out / "table3.png", dataset=dataset)
    (out / "report.md").write_text(f"{text}\n\n![Table III]({figure.name})\n")
    print(f"\n{text}\n\n{out / 'report.md'}\n{figure}")
    return text


def report(settings: Report) -> str:
    """Writes the report of an experiment's folder; exits with 2 and one line for what is no one."""
    try:
        saved = read_settings(settings.run)
        check_writable(settings.out)
        return write_report(
            settings.run, settings.out, saved.get("missing", {}),
            saved["settings"].get("protocol", ["strict"]), saved.get("notes", []),
            saved["faces"]["dataset"],
        )  # fmt: skip
    except (ValueError, OSError) as error:
        refuse(error)


def progress(steps: Any, total: int, what: str) -> Any:
    """Returns the steps behind a progress bar; without a terminal, a line every ten seconds."""
    is_terminal = sys.stderr.isatty()
    return tqdm(steps, what, total, mininterval=0.2 if is_terminal else 10)


COMMANDS: dict[type, Callable[[Any], Any]] = {
    Demo: demo,
    Prepare: prepare,
    Probe: probe,
    Report: report,
}  # a sub-command is a line here: a settings dataclass, whose name is its name, and what it runs


def main(argv: Sequence[str] | None = None) -> Any:
    """Runs the sub-command of a command line and returns what it returns."""
    argv = sys.argv[1:] if argv is None else argv
    commands: Any = Union[tuple(COMMANDS)]  # noqa: UP007
    settings = tyro.cli(commands, args=argv)
    if isinstance(settings, Probe) and settings.resume:
        try:
            read_settings(settings.resume)  # says what is wrong with them
            settings = parse_experiment(Probe, argv[1:], MAY_DIFFER)
        except (ValueError, OSError) as error:
            refuse(error)
    return COMMANDS[type(settings)](settings)


if __name__ == "__main__":
    main()
