"""Shows which pixels move a network's score (SmoothGrad, Fig. 9), and marks the maps against masks.

    python experiments/attribution.py results/local/deepfake/heads/TRIAL.pt

TRIAL is a linear probe of `deepfake.py probe`; its heads/ holds one file each. Takes manipulated
crops of the probe's test part. Where the faces have masks, the maps are scored: how much of a map
lies where the face was changed, beside what a map that knows nothing would get and what the same
network gets with all weights drawn anew. Needs no Ray.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from scipy.stats import spearmanr
from torch import Tensor, nn

from rayssl import attribution
from rayssl.attribution import (
    Kind,
    Score,
    panel,
    pixel_maps,
    reinitialized,
    score_against_masks,
    smoothgrad,
)
from rayssl.cli import check_writable, provenance, refuse
from rayssl.data.faces import FaceSet, load_face_set
from rayssl.deepfake import ProbeSettings, as_batch, dataset_of, load_probe, split_of
from rayssl.metrics import summarize_scores
from rayssl.report import markdown_table

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Attribution maps of a checkpoint: a panel (PNG), and scores where masks are known."""

    checkpoint: tyro.conf.Positional[Path]
    """A probe's file in heads/ of an experiment of deepfake.py probe."""
    faces: Path | None = None
    """Folder of the probe's face set; default: the one that its experiment was started with."""
    kind: Kind = "smoothgrad_sq"
    """smoothgrad_sq (mean of squared gradients: the paper's) or smoothgrad (mean of gradients)."""
    samples: int = attribution.SAMPLES
    """Noisy copies of an image (20: the authors' code)."""
    noise: float = attribution.NOISE
    """Noise's deviation as a share of an image's range (0.05: the authors' code)."""
    shown: int = 6
    """Images in the panel."""
    scored: int = 48
    """Images scored against masks, from as many videos as there are."""
    seed: int = 0
    """Of noise, choice of images and redrawn weights."""
    batch_size: int = 20
    """Noisy copies at once."""
    out: Path = Path("results/local/attribution")
    """Folder for panel.png, redrawn.png and attribution.json."""


class Explained(NamedTuple):
    """What one kind of checkpoint has to say of itself.

    Attributes:
      network: for `reinitialized`; score: makes the score to explain from a network.
      x: float inputs `[N, ...]`; images: how they look, `[N, H, W, 3]` in [0, 1].
      captions: of each; clusters: images of one cluster (video) are no independent evidence.
      masks: bool `[N, H, W]` of what should be found, or None; what: of a caption for people.
    """

    network: nn.Module
    score: Callable[[nn.Module], Score]
    x: Tensor
    images: Floats
    captions: list[str]
    clusters: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_] | None
    what: str


def explain_deepfake_probe(checkpoint: dict[str, Any], settings: Settings) -> Explained:
    """Fakes of a probe's test part; the score is the logit of fake minus that of real."""
    faces = load_face_set(faces_folder(settings))
    backbone, head = load_probe(checkpoint)
    probe = ProbeSettings(**checkpoint["settings"])
    rows = choose_fakes(faces, split_of(probe, faces).test, settings)
    crops = as_batch(faces.crops(rows))
    x = backbone.preprocess(crops)
    network = nn.Sequential(backbone, head).eval().requires_grad_(False)

    # The network's input, seen as an image: preprocessing maps 0 and 255 to its own bounds.
    low, high = (backbone.preprocess(torch.full_like(crops[:1], v)) for v in (0, 255))

    def visible(batch: Tensor) -> Floats:
        shares = (backbone.preprocess(batch) - low) / (high - low)
        found: Floats = shares.permute(0, 2, 3, 1).double().numpy().clip(0, 1)
        return found

    masks = None
    if faces.column("has_masks")[rows].all():
        grey = as_batch(np.repeat(faces.masks(rows)[..., None], 3, axis=3))
        masks = visible(grey)[..., 0] > 0.5
    with torch.no_grad():
        fake = torch.cat([torch.softmax(network(part), 1)[:, 1] for part in x.split(32)]).tolist()
    videos = faces.column("video")[rows]
    names = [
        f"{str(v).rsplit('/', 1)[-1]}\np(fake) {p:.2f}" for v, p in zip(videos, fake, strict=True)
    ]
    return Explained(
        network, lambda net: lambda batch: _margin(net(batch)), x, visible(crops), names,
        np.unique(videos.astype(str), return_inverse=True)[1].astype(np.int64), masks,
        f"{dataset_of(faces)}: {probe.name}, score: logit of fake minus real",
    )  # fmt: skip


# A kind of checkpoint is a line here: how it is recognised by `read_checkpoint`, who explains it.
EXPLAINERS: dict[str, Callable[[dict[str, Any], Settings], Explained]] = {
    "deepfake-probe": explain_deepfake_probe,
}


def read_checkpoint(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the kind of a checkpoint, a key of EXPLAINERS, and what it holds.

    Raises:
      FileNotFoundError, ValueError: if it is not there, or of no known kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}. Pass a file in heads/ of an experiment of deepfake.py probe."
        )
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        kind = found["kind"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"Expected {path} to be a probe that deepfake.py probe wrote, got "
            f"{type(error).__name__}. Available kinds: {', '.join(EXPLAINERS)}."
        ) from error
    if kind not in EXPLAINERS:
        raise ValueError(f"{path} is of kind {kind!r}. Available: {', '.join(EXPLAINERS)}.")
    return kind, found


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


def maps_of(explained: Explained, network: nn.Module, settings: Settings) -> Floats:
    """Returns the pixel maps of all images: `[N, H, W]`."""
    maps = smoothgrad(
        explained.score(network), explained.x, kind=settings.kind, samples=settings.samples,
        noise=settings.noise, seed=settings.seed, batch_size=settings.batch_size,
    )  # fmt: skip
    return pixel_maps(maps)


def score_rows(explained: Explained, maps: dict[str, Floats]) -> list[dict[str, Any]]:
    """Returns one row for each set of maps: means over videos with 95% bootstrap intervals."""
    assert explained.masks is not None
    usable = explained.masks.any((1, 2)) & ~explained.masks.all((1, 2))
    rows, chance = [], np.zeros(0)
    for name, found in maps.items():
        scores = score_against_masks(found[usable], explained.masks[usable])
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


def likeness(a: Floats, b: Floats) -> float:
    """Returns the mean Spearman correlation of two sets of maps, pixel by pixel."""
    return float(np.mean([spearmanr(x.ravel(), y.ravel()).statistic
                          for x, y in zip(a, b, strict=True)]))  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes panels and attribution.json, prints the table, and returns what was found."""
    settings = tyro.cli(Settings, args=argv)
    try:
        for name in ("shown", "scored"):
            if getattr(settings, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(settings, name)}.")
        kind, checkpoint = read_checkpoint(settings.checkpoint)
        explained = EXPLAINERS[kind](checkpoint, settings)
        check_writable(settings.out)
        own = maps_of(explained, explained.network, settings)
        fresh = maps_of(explained, reinitialized(explained.network, seed=settings.seed), settings)
    except (ValueError, OSError) as error:
        refuse(error)
    alike = likeness(own, fresh)
    results: dict[str, Any] = provenance(settings) | {"what": explained.what, "likeness": alike}
    n = settings.shown
    for name, found, which in (
        ("panel.png", own, "as trained"),
        ("redrawn.png", fresh, "all weights drawn anew"),
    ):
        path = panel(
            explained.images[:n], found[:n], settings.out / name,
            masks=None if explained.masks is None else explained.masks[:n],
            captions=explained.captions[:n], title=f"{explained.what}\n{settings.kind}, {which}",
        )  # fmt: skip
        print(path)
    if explained.masks is not None:
        maps = {f"{settings.kind}, as trained": own, "all weights drawn anew": fresh}
        results["rows"] = score_rows(explained, maps)
        print(f"\n{explained.what}\n\n{table(results['rows'])}")
    print(f"\nSpearman correlation of the maps with those of redrawn weights: {alike:.2f}")
    (settings.out / "attribution.json").write_text(json.dumps(results, indent=1))
    return results


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as markdown, intervals in brackets."""
    shown = [
        {k: f"{v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})" if isinstance(v, list) else v
         for k, v in row.items()}
        for row in rows
    ]  # fmt: skip
    return markdown_table(shown)


if __name__ == "__main__":
    main()
