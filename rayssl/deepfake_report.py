"""Table III beside the paper's, all metrics with intervals, what leaked, what moved; a figure."""

import math
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rayssl.backbones.images import image_backbone_spec
from rayssl.backbones.weights import hash_in_name
from rayssl.deepfake import OTHER, PROTOCOLS, RANDOM, TABLE_III, CropScores
from rayssl.detection_metrics import (
    METRICS,
    Interval,
    metric_intervals,
    paired_differences,
    per_cluster,
)
from rayssl.report import COLOURS, markdown_table

Row = Mapping[str, Any]  # the last row of a finished trial, as rayssl.report.read_epochs returns it
CHOSEN_BY = {
    "strict": "the best on validation crops, test read once",
    "paper-code": "the best epoch on the test crops, as the authors did",
}
PERCENT = ("accuracy", "balanced_accuracy", "eer")


class Arm(NamedTuple):
    """What is averaged over seeds and compared with its like."""

    protocol: str
    backbone: str
    layer: str
    classifier: str
    split: str

    @property
    def features(self) -> str:
        """`resnet50-random`, with the layer where it is not the authors'."""
        return f"{self.backbone} {self.layer}"


class Finished(NamedTuple):
    """A finished trial: its last row, and what it said of the test crops."""

    row: Row
    scores: CropScores


class Summary(NamedTuple):
    """An arm's metrics: of how many seeds, and name -> mean and interval."""

    seeds: int
    metrics: dict[str, Interval]


def load_scores(path: Path) -> CropScores:
    """Returns what `deepfake_trainables.save_scores` wrote.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        # Opened here: np.load leaves a file open that is no archive.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return CropScores(**{name: arrays[name] for name in CropScores._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Delete it and resume the experiment."
        ) from error


def deepfake_report(
    trials: Sequence[Finished], *, dataset: str, missing: Mapping[str, str],
    protocols: Collection[str] = (),
) -> str:  # fmt: skip
    """Returns all tables as markdown, under headings.

    Args:
      trials: the finished ones.
      dataset: what the faces are; stands in every heading of a number.
      missing: backbone -> why it was not run, one line.
      protocols: those that were asked for; one of which nothing ran shows its rows as not run.
    """
    arms = _arms(trials)
    frames, videos = (
        {arm: Summary(len(runs), _intervals(runs, level)) for arm, runs in arms.items()}
        for level in ("frame", "video")
    )
    parts: list[str] = []
    for protocol in PROTOCOLS:
        own = {arm: found for arm, found in frames.items() if arm.protocol == protocol}
        if not own and not (missing and protocol in protocols):
            continue
        parts += [
            f"### Table III under `{protocol}`, {dataset}: accuracy per frame in percent",
            f"Reported: {CHOSEN_BY[protocol]}. The paper's numbers are of other data.",
            markdown_table(_table_3(own, missing, _weights(arms))),
        ]
    if missing:
        ran = {arm.backbone for arm in arms}
        parts.append("\n".join(
            f"- {_row_name(b)}: {'not run further' if b in ran else 'not run'}: {why}"
            for b, why in missing.items()
        ))  # fmt: skip
    if not arms:
        return "\n\n".join([*parts, "No trial has finished yet."])
    for level, found in (("frame", frames), ("video", videos)):
        parts += [f"### All metrics per {level}, {dataset}", markdown_table(_metrics(found))]
    differences = _differences(arms)
    if differences:
        parts += [
            f"### Difference to the first row's features, same videos and seeds, {dataset}",
            markdown_table(differences),
        ]
    parts += [
        "### What training and test crops share, first seed",
        markdown_table(_leakage(arms)),
        "### What the backbone's tensors did meanwhile, first seed",
        markdown_table(_moved(arms)),
        "Accuracy, balanced accuracy and EER in percent. Intervals: 95%, bootstrap over videos "
        "(frames of one video are drawn together; with several seeds the mean over seeds, the same "
        "videos drawn in each). Score of a video: mean over its frames. EER: FPR and FNR "
        "interpolated linearly between the thresholds where they cross. Log-loss in nats.",
    ]
    return "\n\n".join(parts)


def plot_deepfake(trials: Sequence[Finished], path: str | Path, *, dataset: str) -> Path:
    """Draws accuracy per frame and AUC per video of each row by split, and returns the PNG's path.

    Bars are 95% intervals; open diamonds are the paper's accuracies, of other data.
    """
    arms = _arms(trials)
    rows = list(dict.fromkeys(arm._replace(split="") for arm in arms))
    splits = list(dict.fromkeys(arm.split for arm in arms))
    figure = Figure(figsize=(11, 1.6 + 0.5 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("frame", "accuracy", 100, "accuracy per frame (%)"),
        ("video", "auc", 1, "AUC per video"),
    )
    for axis, (level, metric, scale, label) in zip(axes, panels, strict=True):
        for i, (split, colour) in enumerate(zip(splits, cycle(COLOURS), strict=False)):
            shown = [arm for arm in arms if arm.split == split]
            found = [_intervals(arms[arm], level)[metric] for arm in shown]
            y = np.array([rows.index(arm._replace(split="")) for arm in shown], float)
            y += 0.16 * (i - (len(splits) - 1) / 2)
            values = scale * np.array([f.value for f in found])
            ends = scale * np.array([[f.value - f.low, f.high - f.value] for f in found]).T
            # A percentile interval need not hold the value; errorbar refuses lengths below 0.
            bars = np.nan_to_num(ends).clip(min=0)
            axis.errorbar(values, y, xerr=bars, fmt="o", color=colour, label=split)
            if metric == "accuracy":
                paper = [_paper(arm) for arm in shown]
                axis.plot(paper, y, ls="", marker="D", mfc="none", color=colour, ms=5, alpha=0.6)
        axis.axvline(scale * 0.5, color="#888888", lw=1, ls="--")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    names = [f"{arm.protocol}: {arm.features}, {arm.classifier}" for arm in rows]
    axes[0].set_yticks(range(len(rows)), names, fontsize=7)
    axes[0].invert_yaxis()
    if arms:
        figure.legend(
            *axes[1].get_legend_handles_labels(), loc="outside lower center", frameon=False,
            fontsize=8, ncols=len(splits),
        )  # fmt: skip
    figure.suptitle(
        f"{dataset}; bars: 95% over videos; diamonds: the paper, other data", fontsize=9
    )
    path = Path(path)
    figure.savefig(path, dpi=130, format="png")
    return path


def _arms(trials: Sequence[Finished]) -> dict[Arm, list[Finished]]:
    """Trials by arm, in the order of protocols, Table III, layers and splits; seeds in order."""
    found: dict[Arm, list[Finished]] = {}
    for trial in sorted(trials, key=lambda t: t.row["seed"]):
        row = trial.row
        classifier = row["classifier"] + ("" if row["c"] is None else f" C={row['c']:g}")
        classifier += "" if row["training_fakes"] == "data" else f", {row['training_fakes']}"
        arm = Arm(row["protocol"], row["backbone"], row["layer"], classifier, row["split"])
        found.setdefault(arm, []).append(trial)
    return {arm: found[arm] for arm in sorted(found, key=_place)}


def _place(arm: Arm) -> tuple[Any, ...]:
    order = list(TABLE_III)
    backbone = order.index(arm.backbone) if arm.backbone in order else len(order)
    return PROTOCOLS.index(arm.protocol), arm.classifier, backbone, *arm[1:3], arm.split != "random"


def _intervals(trials: Sequence[Finished], level: str) -> dict[str, Interval]:
    scored = [trial.scores.scored() for trial in trials]
    return metric_intervals([per_cluster(s) for s in scored] if level == "video" else scored)


def _weights(arms: Mapping[Arm, Sequence[Finished]]) -> dict[str, str]:
    """Backbone -> whose weights its rows stand for: drawn, the published file's, or another's."""
    found: dict[str, dict[str, None]] = {}
    for arm, trials in arms.items():
        for trial in trials:
            own = found.setdefault(arm.backbone, {})
            own |= {_weights_name(arm.backbone, trial.row.get("weights_id")): None}
    return {backbone: ", ".join(filter(None, names)) for backbone, names in found.items()}


def _weights_name(backbone: str, weights_id: str | None) -> str:
    """`published` only where the file has the hash that its publisher put into its name."""
    if weights_id is None:  # a log that is older than it
        return ""
    if weights_id.startswith(RANDOM):
        return "drawn"
    try:
        file = image_backbone_spec(backbone).weights
    except ValueError:  # of a plug-in that is not here
        file = None
    published = hash_in_name(file.name) if file else None
    return "published" if published and weights_id.startswith(published) else f"file {weights_id}"


def _table_3(
    arms: Mapping[Arm, Summary], missing: Mapping[str, str], weights: Mapping[str, str]
) -> list[dict[str, Any]]:
    splits = list(dict.fromkeys(arm.split for arm in arms)) or ["random"]
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for arm, found in arms.items():
        row = rows.setdefault((arm.backbone, arm.layer, arm.classifier), {
            "method": _row_name(arm.backbone), "layer": arm.layer, "classifier": arm.classifier,
            "weights": weights[arm.backbone] or None, "seeds": found.seeds,
        })  # fmt: skip
        row[_split_name(arm.split)] = _cell("accuracy", found.metrics["accuracy"])
    for backbone in set(missing) - {arm.backbone for arm in arms}:
        rows[(backbone,)] = {"method": _row_name(backbone), _split_name(splits[0]): "not run"}
    order = [*TABLE_III, *(key[0] for key in rows if key[0] not in TABLE_III)]
    shown = sorted(rows, key=lambda key: order.index(key[0]))
    names = ["method", "layer", "classifier", "weights", "seeds", *map(_split_name, splits)]
    table = []
    for key in shown:
        paper = TABLE_III.get(key[0], OTHER)
        row = {name: rows[key].get(name) for name in names}
        table.append(row | {"paper: random": _one(paper.random_split),
                            "paper: hard": _one(paper.hard_split)})  # fmt: skip
    return table


def _metrics(arms: Mapping[Arm, Summary]) -> list[dict[str, Any]]:
    rows = []
    for arm, found in arms.items():
        rows.append({
            "protocol": arm.protocol, "features": arm.features, "classifier": arm.classifier,
            "split": arm.split, "seeds": found.seeds,
            **{name.replace("_", " "): _cell(name, found.metrics[name]) for name in METRICS},
        })  # fmt: skip
    return rows


def _differences(arms: Mapping[Arm, Sequence[Finished]]) -> list[dict[str, Any]]:
    """Paired over videos and the seeds that both have; a claim is what the interval says."""
    rows = []
    for arm, trials in arms.items():
        alike = [a for a in arms if (a.protocol, a.classifier, a.split)
                 == (arm.protocol, arm.classifier, arm.split)]  # fmt: skip
        first = alike[0]
        if arm == first:
            continue
        theirs = {trial.row["seed"]: trial for trial in arms[first]}
        pairs = [(t, theirs[t.row["seed"]]) for t in trials if t.row["seed"] in theirs]
        if not pairs:
            continue
        row: dict[str, Any] = {
            "protocol": arm.protocol, "classifier": arm.classifier, "split": arm.split,
            "features": arm.features, "minus": first.features, "seeds": len(pairs),
        }  # fmt: skip
        for level in ("frame", "video"):
            sides: list[list[Any]] = [[], []]
            for pair in pairs:
                for side, trial in zip(sides, pair, strict=True):
                    scored = trial.scores.scored()
                    side.append(per_cluster(scored) if level == "video" else scored)
            found = paired_differences(*sides)
            for name in ("accuracy", "auc"):
                row[f"{name} per {level}"] = _cell(name, found[name], sign=True)
        rows.append(row)
    return rows


def _leakage(arms: Mapping[Arm, Sequence[Finished]]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for arm, trials in arms.items():
        row = trials[0].row
        sizes, leaks = row["sizes"], row["leakage"]
        shared = {
            f"{name} shared": None if count is None else f"{count} of {leaks['total'][name]}"
            for name, count in leaks["shared"].items()
        }
        rows[arm.protocol, arm.split] = {
            "protocol": arm.protocol, "split": arm.split,
            **{f"{part} crops": size for part, size in sizes.items()},
            **shared, "left out": leaks["left_out"],
            # Rows from before have none of the three.
            "fakes more than reals": leaks.get("surplus"),
            "of parts without families": ", ".join(leaks.get("left_out_parts", ())) or None,
            "not on every side": "; ".join(leaks.get("lacking", ())) or None,
        }  # fmt: skip
    return list(rows.values())


def _moved(arms: Mapping[Arm, Sequence[Finished]]) -> list[dict[str, Any]]:
    rows = []
    for arm, trials in arms.items():
        row = trials[0].row
        statistics = row["changed_statistics"]
        rows.append({
            "protocol": arm.protocol, "features": arm.features, "classifier": arm.classifier,
            "split": arm.split, "chosen": _chosen(row["chosen"]),
            "parameters changed": len(row["changed_parameters"]),
            "BatchNorm statistics changed": len(statistics),
            "such as": ", ".join(statistics[1:3]) or None,
        })  # fmt: skip
    return rows


def _chosen(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in chosen.items())


def _row_name(backbone: str) -> str:
    return TABLE_III[backbone].name if backbone in TABLE_III else backbone


def _split_name(split: str) -> str:
    return "random split" if split == "random" else f"hard split: {split}"


def _paper(arm: Arm) -> float:
    paper = TABLE_III.get(arm.backbone, OTHER)
    return paper.random_split if arm.split == "random" else paper.hard_split


def _one(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.1f}"


def _cell(metric: str, found: Interval, *, sign: bool = False) -> str | None:
    """A value and its interval, in percent where that is usual."""
    if math.isnan(found.value):
        return None
    scale, form = (100, ".1f") if metric in PERCENT else (1, ".3f")
    value, low, high = (format(scale * v, ("+" if sign else "") + form) for v in found)
    return value if math.isnan(found.low) else f"{value} ({low} to {high})"
