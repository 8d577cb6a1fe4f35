"""Shows which pixels move a network's score (SmoothGrad, Figs. 9 and 11), and what to make of it.

    python experiments/attribution.py results/local/pong-permutation-s0 --target aux
    python experiments/attribution.py RUN --beside dqn=RUN2 --video maps.mp4
    python experiments/attribution.py results/local/mnist/TRIAL
    python experiments/attribution.py results/local/deepfake/heads/TRIAL.pt

Takes an Atari run or checkpoint, a trial of mnist.py, or a linear probe of `deepfake.py probe`
(its heads/ holds one file each). Beside every map stands its rank correlation with the map of the
same network with all weights drawn anew: a map that looks the same shows the image, not what was
learnt. Where it is known what should be found (the manipulated part of a face, ball and paddles
from the console's RAM), the maps are scored, beside what a map that knows nothing would get.
Needs no Ray.
"""

import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from rayssl import attribution
from rayssl.attribution import (
    Condition,
    Kind,
    condition_grid,
    panel,
    pixel_maps,
    reinitialized,
    score_against_masks,
)
from rayssl.cli import (
    check_file_writable,
    check_writable,
    provenance,
    refuse,
    remove_empty,
)
from rayssl.data import load_dataset
from rayssl.data.faces import FaceSet, load_face_set
from rayssl.deepfake import (
    ProbeSettings,
    as_batch,
    check_faces,
    dataset_of,
    load_probe,
    split_of,
)
from rayssl.envs.atari import rom_id
from rayssl.evaluation import CONSOLE_FPS, EPSILON, MODEL_SETTINGS, Agent, load_agent
from rayssl.explaining import (
    Explained,
    Target,
    attribution_frames,
    check_target,
    explain_atari,
    explain_mnist,
    region_shares,
)
from rayssl.metrics import summarize_scores
from rayssl.report import markdown_table
from rayssl.video import write_mp4

MNIST_STATE = "state.pt"  # of a trial of mnist.py, in its checkpoint folder
RESULTS = Path("results/local/attribution")
RECORD, TABLE = "attribution.json", "attribution.md"
# What is explained -> the options that it alone takes.
GAME, CLASSIFIER, PROBE = "an Atari checkpoint", "a trial of mnist.py", "a probe, a file in heads/"
OWN_OPTIONS = {
    GAME: ("beside", "games", "epsilon", "video", "video_steps"),
    CLASSIFIER: ("data_dir",),
    PROBE: ("faces", "weights"),
}
REDRAWN = "all weights drawn anew"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Attribution maps of a checkpoint: panels (PNG), and scores where it is known what to find."""

    checkpoint: tyro.conf.Positional[Path]
    """An Atari run or checkpoint folder, a trial of mnist.py, or a probe's file in heads/."""
    target: Target | None = None
    """What is explained: aux (logit of the true pretext class), q (Q-value of the chosen action) or
    class; default: aux where an Atari network has it, class of an image."""
    beside: tuple[str, ...] = ()
    """More Atari networks for the same states, NAME=CHECKPOINT each: rows of conditions.png."""
    kind: Kind = "smoothgrad_sq"
    """smoothgrad_sq (mean of squared gradients: the paper's) or smoothgrad (mean of gradients)."""
    samples: int = attribution.SAMPLES
    """Noisy copies of an image (20: the authors' code)."""
    noise: float = attribution.NOISE
    """Noise's deviation as a share of an image's range (0.05: the authors' code)."""
    shown: int = 6
    """Inputs in the panels."""
    scored: int = 48
    """Inputs scored against what should be found, from as many videos or games as there are."""
    games: int = 4
    """Atari: games that the states come from."""
    epsilon: float = EPSILON
    """Atari: share of random actions in them; 1: a random agent's games."""
    video: Path | None = None
    """Atari: MP4 file of maps along the first game."""
    video_steps: int = 450
    """Agent steps in it, at most; 450 are half a minute."""
    faces: Path | None = None
    """Folder of a probe's face set; default: the one that its experiment was started with."""
    weights: Path | None = None
    """File of the weights of a probe's backbone; default: where the probe found it."""
    data_dir: Path | None = None
    """Folder of the files of a classifier's data set; default: as its experiment."""
    seed: int = 0
    """Of noise, choice of inputs, games, pretext draws and redrawn weights."""
    batch_size: int = 20
    """Noisy copies at once."""
    device: str = "cpu"
    """Where the maps are computed: cpu or cuda."""
    out: Path | None = None
    """Folder for panel.png, redrawn.png, conditions.png, attribution.json, attribution.md; default:
    results/local/attribution/CHECKPOINT, with -TARGET where one is given."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint that was read: what it has to say, and its agent where it plays a game."""

    explained: Explained
    agent: Agent | None = None


def explain_deepfake_probe(checkpoint: dict[str, Any], settings: Settings) -> Explained:
    """Fakes of a probe's test part; the score is the logit of fake minus that of real.

    Where the head has a ReLU on its logits (paper-code over BigBiGAN), those before it are
    explained; p(fake) in the captions is the whole head's.
    """
    faces = load_face_set(faces_folder(settings))
    check_faces(  # else the split is another, and its test part holds crops of the training
        checkpoint.get("faces"), faces, "that the probe was fitted on",
        "Pass their folder with --faces.",
    )  # fmt: skip
    backbone, head = load_probe(checkpoint, settings.weights)
    probe = ProbeSettings(**checkpoint["settings"])
    rows = choose_fakes(faces, split_of(probe, faces).test, settings)
    crops = as_batch(faces.crops(rows))
    x = backbone.preprocess(crops)
    # A ReLU on the logits is left out: where both are at or below 0 it has no gradient at all.
    logits, before = head, ""
    if isinstance(head, nn.Sequential):  # its layer, then the ReLU
        logits, before = head[0], ", before the head's ReLU"
    network = nn.Sequential(backbone, logits).eval().requires_grad_(False)

    # The network's input, seen as an image: preprocessing maps 0 and 255 to its own bounds.
    low, high = (backbone.preprocess(torch.full_like(crops[:1], v)) for v in (0, 255))

    def visible(batch: Tensor) -> Floats:
        shares = (backbone.preprocess(batch) - low) / (high - low)
        found: Floats = shares.permute(0, 2, 3, 1).double().numpy().clip(0, 1)
        return found

    # Empty where the data have none: FaceForensics++ has none of FaceShifter, DFDC none at all.
    has_mask = faces.column("has_masks")[rows].astype(bool)
    masks = np.zeros((len(rows), *x.shape[2:]), bool)
    if has_mask.any():
        grey = as_batch(np.repeat(faces.masks(rows[has_mask])[..., None], 3, axis=3))
        masks[has_mask] = visible(grey)[..., 0] > 0.5
    with torch.no_grad():
        fake = torch.cat(
            [torch.softmax(head(backbone(part)), 1)[:, 1] for part in x.split(32)]
        ).tolist()
    videos = faces.column("video")[rows]
    names = [
        f"{str(v).rsplit('/', 1)[-1]}\np(fake) {p:.2f}" for v, p in zip(videos, fake, strict=True)
    ]
    return Explained(
        network, lambda net, i: lambda batch: _margin(net(batch)), x, visible(crops), names,
        np.unique(videos.astype(str), return_inverse=True)[1].astype(np.int64),
        f"{dataset_of(faces)}: {probe.name}, score: logit of fake minus real{before}",
        masks=masks,
    )  # fmt: skip


def read_subject(settings: Settings) -> Subject:
    """Returns what is to be explained: a folder is a run or a trial, a file a probe.

    Raises:
      FileNotFoundError, ValueError: if it is not there, or of no known kind.
    """
    path = settings.checkpoint
    if not path.is_dir():
        probe = read_probe(path)
        check_options(settings, PROBE)
        if settings.target not in (None, "class"):
            raise ValueError(f"A probe has no score {settings.target!r}. Available: class.")
        return Subject(explain_deepfake_probe(probe, settings))
    count = max(settings.shown, settings.scored)
    if any(path.rglob(MODEL_SETTINGS)):
        agent = load_agent(path)
        check_options(settings, GAME)
        explained = explain_atari(
            agent, target=settings.target, count=count, games=settings.games,
            epsilon=settings.epsilon, seed=settings.seed,
        )  # fmt: skip
        return Subject(explained, agent)
    state, data = read_classifier(path, settings.data_dir)
    check_options(settings, CLASSIFIER)
    return Subject(
        explain_mnist(state, data, target=settings.target, count=count, seed=settings.seed)
    )


def check_options(settings: Settings, kind: str) -> None:
    """Raises ValueError for an option that does nothing for this kind of checkpoint."""
    usual = Settings(settings.checkpoint)
    for owner, names in OWN_OPTIONS.items():
        for name in names:
            if owner != kind and getattr(settings, name) != getattr(usual, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} needs {owner}, got {settings.checkpoint}, "
                    f"{kind}. Leave it out."
                )
    if settings.video is None and settings.video_steps != usual.video_steps:
        raise ValueError("--video-steps needs --video, the file to write. Leave it out.")


def read_probe(path: Path) -> dict[str, Any]:
    """Returns what a probe's file holds.

    Raises:
      FileNotFoundError, ValueError: if it is not there, or no probe.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}. Pass a file in heads/ of an experiment of deepfake.py probe,"
            " or the folder of a run of atari.py or of a trial of mnist.py."
        )
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        kind = found["kind"]
    except (
        RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError,
    ) as error:  # fmt: skip  # text is read as a pickle: 't' finds an empty stack
        raise ValueError(
            f"Expected {path} to be a probe that deepfake.py probe wrote, got "
            f"{type(error).__name__}. Other checkpoints are given by their folder."
        ) from error
    if kind != "deepfake-probe":
        raise ValueError(f"{path} is of kind {kind!r}. Available: deepfake-probe.")
    return found


def read_classifier(path: Path, data_dir: Path | None) -> tuple[dict[str, Any], Any]:
    """Returns the state of the one trial of mnist.py at or below a folder, and its images.

    Raises:
      FileNotFoundError, ValueError: if there is none, or several, or its experiment is unknown.
    """
    files = sorted(path.rglob(MNIST_STATE))
    if len(files) != 1:
        found = ", ".join(str(file.parent) for file in files[:3])
        raise FileNotFoundError(
            f"Expected the checkpoint of one run or trial in {path}, got {len(files) or 'none'}"
            + (
                f": {found}{', ...' if len(files) > 3 else ''}. Pass one of these."
                if found
                else "."
            )
        )
    try:
        state = torch.load(files[0], map_location="cpu", weights_only=True)
    except (
        RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise ValueError(f"{files[0]} cannot be read ({type(error).__name__}).") from error
    settings = state.get("settings") if isinstance(state, dict) else None
    if not isinstance(settings, dict) or not {"protocol", "aux_task"} <= settings.keys():
        raise ValueError(
            f"Expected {files[0]} to be of a trial of mnist.py, got that of another script. Of "
            "deepfake.py pass a file in heads/; bigan.py's and pretrain.py's are not explained."
        )
    for folder in files[0].resolve().parents:
        if (folder / "settings.json").is_file():
            saved = json.loads((folder / "settings.json").read_text())["settings"]
            own = saved.get("data_dir")
            data_dir = data_dir or (Path(own) if own else None)
            return state, load_dataset(saved["dataset"], data_dir, verify=saved["verify"])
    raise ValueError(
        f"Expected {files[0]} in the folder of an experiment of mnist.py, whose settings.json "
        "names the data set. Leave it there."
    )


def faces_folder(settings: Settings) -> Path:
    """The face set that is given, else the one in the settings of the probe's experiment."""
    if settings.faces is not None:
        return settings.faces
    path = settings.checkpoint.resolve().parent.parent / "settings.json"
    try:
        return Path(json.loads(path.read_text())["settings"]["faces"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected {path} to name the face set, got {type(error).__name__}. Pass --faces."
        ) from error


def choose_fakes(
    faces: FaceSet, test: npt.NDArray[np.int64], settings: Settings
) -> npt.NDArray[np.int64]:
    """Rows of fakes, drawn in rounds: one crop of every video before the second of any."""
    rng = np.random.default_rng(settings.seed)
    rows = rng.permutation(test[faces.labels[test] == 1])
    order = np.argsort(_round_of(faces.column("video")[rows]), kind="stable")
    found: npt.NDArray[np.int64] = rows[order][: max(settings.shown, settings.scored)]
    return found


def _round_of(videos: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How often each video was named before."""
    seen: dict[str, int] = {}
    rounds = []
    for video in videos:
        rounds.append(seen.get(video, 0))
        seen[video] = rounds[-1] + 1
    return np.array(rounds, np.int64)


def _margin(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def networks(subject: Subject, settings: Settings) -> dict[str, nn.Module]:
    """The networks that are asked the same questions, by name; the checkpoint's own is the first.

    Raises:
      FileNotFoundError, ValueError: for a --beside that is no NAME=CHECKPOINT, or of other states.
    """
    found: dict[str, nn.Module] = {"as trained": subject.explained.network}
    for word in settings.beside:
        name, _, path = word.partition("=")
        if not path or not name or name in (*found, REDRAWN):
            raise ValueError(
                f"Expected --beside NAME=CHECKPOINT with a name of its own, got {word!r}."
            )
        assert subject.agent is not None
        other, own = load_agent(path), subject.agent
        alike = [other.settings[k] == own.settings[k] for k in ("stack", "frame_size")]
        alike.append(rom_id(other.settings["game"]) == rom_id(own.settings["game"]))
        same_heads = (other.task, other.aux_head) == (own.task, own.aux_head)
        same_heads |= check_target(own, settings.target) == "q"
        if not all(alike) or not same_heads:
            raise ValueError(
                f"{path} plays another game, sees other frames, or has another pretext task than "
                f"{settings.checkpoint}: they have no score in common. Use --target q for networks "
                "of several tasks."
            )
        found[name] = other.network.requires_grad_(False)
    return found


def maps_of(explained: Explained, network: nn.Module, settings: Settings, name: str) -> Tensor:
    """Maps of a network, `[N, C, H, W]`, behind a progress bar on a terminal."""
    found = explained.maps(
        network.to(settings.device), kind=settings.kind, samples=settings.samples,
        noise=settings.noise, seed=settings.seed, batch_size=settings.batch_size,
        track=lambda numbers: tqdm(numbers, desc=f"maps, {name}", unit="map", disable=None),
    )  # fmt: skip
    return found.cpu()


def scorable(explained: Explained) -> npt.NDArray[np.bool_]:
    """Returns which inputs have a mask with an inside and an outside: `[N]`."""
    assert explained.masks is not None
    return np.asarray(explained.masks.any((1, 2)) & ~explained.masks.all((1, 2)))


def left_out(explained: Explained) -> str:
    """Returns a line about the inputs that masks cannot score; empty where there are none."""
    usable = scorable(explained)
    missing = f"{(~usable).sum()} of {len(usable)} fakes: no mask in their crop of what was changed"
    if not usable.any():
        return f"Maps are not scored, {missing}."
    return "" if usable.all() else f"Left out of the scores, {missing}."


def score_rows(explained: Explained, maps: dict[str, Floats]) -> list[dict[str, Any]]:
    """Returns one row for each set of maps: means over videos with 95% bootstrap intervals.

    Raises:
      ValueError: for a map of zeros, with the name of its set.
    """
    assert explained.masks is not None
    usable = scorable(explained)
    rows, chance = [], np.zeros(0)
    for name, found in maps.items():
        try:
            scores = score_against_masks(found[usable], explained.masks[usable])
        except ValueError as error:
            raise ValueError(f"The maps {name!r} cannot be scored: {error}") from error
        chance = scores.chance
        row: dict[str, Any] = {"maps": name, "images": int(usable.sum())}
        for label, values in (
            ("energy inside", scores.energy_inside),
            ("energy inside minus chance", scores.energy_inside - chance),
            ("pointing game", scores.pointing),
        ):
            row[label] = interval(values, explained.clusters[usable])
        rows.append(row)
    flat = interval(chance, explained.clusters[usable])
    rows.append({"maps": "chance: the mask's share of the pixels", "images": int(usable.sum()),
                 "energy inside": flat, "pointing game": flat})  # fmt: skip
    return rows


def interval(values: Floats, clusters: npt.NDArray[np.int64]) -> list[float]:
    """Returns mean, low and high: the mean over videos' means, videos resampled."""
    numbers = np.unique(clusters, return_inverse=True)[1]
    found = summarize_scores(np.bincount(numbers, values) / np.bincount(numbers))
    return [found.mean, found.ci_low, found.ci_high]


def region_rows(explained: Explained, maps: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Returns one row for each network's maps: the share in each region, games resampled."""
    rows: list[dict[str, Any]] = []
    uniform: dict[str, Any] = {"maps": "a uniform map", "states": len(explained.x)}
    for name, found in maps.items():
        row: dict[str, Any] = {"maps": name, "states": len(explained.x)}
        for region, shares in region_shares(found, explained.regions).items():
            row[f"share on {region}"] = interval(shares.of_map, explained.clusters)
            uniform[f"share on {region}"] = interval(shares.uniform, explained.clusters)
        rows.append(row)
    return [*rows, uniform]


def folder_of(settings: Settings) -> Path:
    """Returns the folder to write to; by default one of the checkpoint's own.

    Raises:
      ValueError: if that holds the maps of another checkpoint of this name.
    """
    if settings.out is not None:
        return settings.out
    checkpoint = settings.checkpoint.resolve()
    name = checkpoint.name if checkpoint.is_dir() else checkpoint.stem
    folder = RESULTS / (f"{name}-{settings.target}" if settings.target else name)
    try:
        other = json.loads((folder / RECORD).read_text())["settings"]["checkpoint"]
        is_other = Path(other).resolve() != checkpoint
    except (OSError, ValueError, KeyError, TypeError):
        is_other = False
    if is_other:
        raise ValueError(f"{folder} holds the maps of {other}. Choose another folder with --out.")
    return folder


def likeness(a: Floats, b: Floats) -> list[float]:
    """Returns the Spearman correlation of each pair of maps, pixel by pixel."""
    return [float(spearmanr(x.ravel(), y.ravel()).statistic) for x, y in zip(a, b, strict=True)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes panels, attribution.json and, where maps are scored, attribution.md; returns all."""
    settings = tyro.cli(Settings, args=argv)
    made: list[Path] = []
    try:
        for name in ("shown", "scored", "games", "video_steps"):
            if getattr(settings, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be 1 or more, got {getattr(settings, name)}.")
        if settings.video and settings.video.suffix != ".mp4":
            raise ValueError(f"Expected a --video path ending in .mp4, got {settings.video}.")
        if settings.video:
            check_file_writable(settings.video)
        out = folder_of(settings)
        subject = read_subject(settings)
        trained = networks(subject, settings)
        explained = on_device(subject.explained, settings.device)
        made = check_writable(out)
        maps, drawn = {}, {}
        for name, network in trained.items():
            fresh = reinitialized(network, seed=settings.seed)
            maps[name] = maps_of(explained, network, settings, name)
            drawn[name] = maps_of(explained, fresh, settings, f"{name}, {REDRAWN}")
        maps[REDRAWN] = next(iter(drawn.values()))  # of the checkpoint itself, in the last row
        # Before anything is written: a map of zeros cannot be scored.
        rows: list[dict[str, Any]] = []
        note = "" if explained.masks is None else left_out(explained)
        if explained.masks is not None and scorable(explained).any():
            rows = score_rows(
                explained,
                {k if k == REDRAWN else f"{settings.kind}, {k}": pixel_maps(v)
                 for k, v in maps.items()},
            )  # fmt: skip
        elif explained.regions:
            rows = region_rows(explained, maps)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    alike = {k: likeness(pixel_maps(maps[k]), pixel_maps(v)) for k, v in drawn.items()}
    results: dict[str, Any] = provenance(settings) | {
        "what": explained.what,
        "left_out": note,
        "likeness": {name: float(np.mean(values)) for name, values in alike.items()},
        "likeness_of_each": alike,
        "inputs": [text.replace("\n", ", ") for text in explained.captions],
    }
    for path in draw(explained, maps, alike, settings, out):
        print(path)
    (out / TABLE).unlink(missing_ok=True)  # of an earlier run: this one may have none
    if rows:
        results["rows"] = rows
        told = f"{explained.what}\n\n{table(rows)}"
        told = f"{told}\n\n{note}".rstrip()
        print(f"\n{told}")
        (out / TABLE).write_text(f"{told}\n")
    elif note:
        print(f"\n{note}")
    print("\nSpearman correlation of each map with that of the same network, weights drawn anew:")
    for name, values in alike.items():
        shown = " ".join(f"{value:.2f}" for value in values[: settings.shown])
        print(f"{name}: mean {np.mean(values):.2f}; of those shown {shown}")
    (out / RECORD).write_text(json.dumps(results, indent=1))
    if settings.video:
        assert subject.agent is not None
        record(subject.agent, settings, settings.video)
    return results


def on_device(explained: Explained, device: str) -> Explained:
    """The same with inputs on a device; raises ValueError if there is no such device."""
    try:
        return replace(explained, x=explained.x.to(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def draw(
    explained: Explained, maps: dict[str, Tensor], alike: dict[str, list[float]],
    settings: Settings, out: Path,
) -> Iterable[Path]:  # fmt: skip
    """Draws the panels and returns their paths: input, map and overlay; one row a network."""
    n = settings.shown
    notes = {
        name: [f"rank corr. with redrawn {value:.2f}" for value in values[:n]]
        for name, values in alike.items()
    }
    flat = {name: pixel_maps(found)[:n] for name, found in maps.items()}
    for name, file in (("as trained", "panel.png"), (REDRAWN, "redrawn.png")):
        yield panel(
            explained.images[:n], flat[name], out / file,
            frames=None if explained.frames is None else explained.frames[:n],
            masks=None if explained.masks is None else explained.masks[:n],
            captions=explained.captions[:n], notes=notes.get(name, ()),
            title=f"{explained.what}\n{settings.kind}, {name}",
        )  # fmt: skip
    rows = [Condition(name, found, notes.get(name, ())) for name, found in flat.items()]
    yield condition_grid(
        explained.images[:n], rows, out / "conditions.png",
        captions=explained.captions[:n], title=f"{explained.what}\n{settings.kind}",
    )  # fmt: skip


def record(agent: Agent, settings: Settings, path: Path) -> None:
    """Writes the video of maps along a game."""
    frames = attribution_frames(
        agent, target=settings.target, kind=settings.kind, samples=settings.samples,
        noise=settings.noise, seed=settings.seed, batch_size=settings.batch_size,
        steps=settings.video_steps, epsilon=settings.epsilon,
    )  # fmt: skip
    shown = tqdm(frames, desc="video", unit="step", disable=None, total=settings.video_steps)
    count = write_mp4(path, shown, CONSOLE_FPS / agent.atari_settings().frame_skip)
    print(f"Video: {path}, {count} agent steps")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as markdown, intervals in brackets."""
    shown = [
        {k: _with_interval(*v) if isinstance(v, list) else v for k, v in row.items()}
        for row in rows
    ]
    return markdown_table(shown)


def _with_interval(mean: float, low: float, high: float) -> str:
    """Mean and interval; one game or video alone has none."""
    return f"{mean:.3f} ({'no interval' if low != low else f'{low:.3f} to {high:.3f}'})"


if __name__ == "__main__":
    main()
