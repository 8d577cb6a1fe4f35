"""Tables I and II, confusions and Figure 8 of a classification experiment, over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from rayssl.claims import verdict
from rayssl.intervals import MIN_SEEDS, Difference
from rayssl.metrics import TABLE_I, TABLE_II, MeanInterval, mean_interval
from rayssl.report import COLOURS, markdown_table

Epoch = Mapping[str, Any]  # a row of read_epochs
DIGITS = ("mnist", "digits")  # whose class k is the digit k
PAIRS = ((2, 5), (5, 2), (6, 9), (9, 6))  # section VI-A: half turns of one another
HALF_TURNS = "Test images taken for their half turn (label -> prediction), mean count a seed"
PRETEXT = "Accuracy of the pretext head for each class in percent"
SELECTED = {
    "paper": "best test epoch",
    "paper-code": "last epoch",
    "strict": "best validation epoch",
}


@dataclass(frozen=True)
class Arm:
    """The finished trials of one protocol, pretext task and aux weight: one list of epochs each.

    Attributes:
      protocol, aux_task, aux_weight: what its trials share.
      runs: seed -> epochs in order; only trials whose last epoch has run.
    """

    protocol: str
    aux_task: str
    aux_weight: float
    runs: dict[int, list[Epoch]]

    @property
    def name(self) -> str:
        """`rotation, weight 1`, or `none`."""
        return "none" if self.aux_task == "none" else f"{self.aux_task}, weight {self.aux_weight:g}"

    def selected(self) -> dict[int, Epoch]:
        """Returns seed -> the epoch whose test figures the protocol reports.

        With a validation split these stand in the last row, whatever epoch they were read from.
        """
        if self.protocol == "strict":
            return {seed: epochs[-1] for seed, epochs in self.runs.items()}
        return {
            seed: epochs[epochs[-1]["selected_epoch"] - 1] for seed, epochs in self.runs.items()
        }

    def accuracies(self) -> dict[int, float]:
        """Returns seed -> test accuracy in percent, of the selected epoch."""
        return {seed: 100 * epoch["test_accuracy"] for seed, epoch in self.selected().items()}

    def confusion(self) -> npt.NDArray[np.float64]:
        """Returns test counts of the selected epochs: `[seeds, labels, predictions]`."""
        return np.array([epoch["test_confusion"] for epoch in self.selected().values()], float)


def finished_arms(rows: Sequence[Epoch]) -> list[Arm]:
    """Returns the arms that have a finished trial, in the order of protocols and tasks' names.

    Args:
      rows: `rayssl.report.read_epochs`.
    """
    runs: dict[tuple[str, str, float], dict[int, list[Epoch]]] = {}
    for row in rows:
        key = row["protocol"], row["aux_task"], float(row["aux_weight"])
        runs.setdefault(key, {}).setdefault(row["seed"], []).append(row)
    order = list(SELECTED)
    arms = []
    for key in sorted(runs, key=lambda k: (order.index(k[0]), k[1] != "none", k)):
        finished = {s: r for s, r in sorted(runs[key].items()) if _is_whole(r)}
        if finished:
            arms.append(Arm(*key, finished))
    return arms


def _is_whole(epochs: Sequence[Epoch]) -> bool:
    """Whether every epoch is there: a disk that failed may have lost one from the middle."""
    return [epoch["epoch"] for epoch in epochs] == list(range(1, epochs[-1]["epochs"] + 1))


def classification_report(rows: Sequence[Epoch], *, dataset: str) -> str:
    """Returns all tables as markdown, under headings.

    Args:
      rows: `rayssl.report.read_epochs`.
      dataset: the paper's numbers stand beside those of `mnist` only.
    """
    arms = finished_arms(rows)
    if not arms:
        return "No trial has finished yet."
    differences = _differences(arms)
    parts = [
        f"### Test accuracy in percent (Table I), {dataset}",
        markdown_table(table_1(arms, dataset)),
        "### Does the pretext head help? Difference to `none`, same seeds, percentage points",
        markdown_table(differences) if differences else "Needs an arm `none`.",
        "### Test accuracy of each class in percent (Table II)",
        markdown_table(table_2(arms, dataset)),
    ]
    if dataset in DIGITS:
        parts += [f"### {HALF_TURNS}", markdown_table(half_turns(arms))]
    pretext = pretext_accuracies(arms)
    if pretext:
        parts += [f"### {PRETEXT}", markdown_table(pretext)]
    parts.append(
        "Intervals: Student's t over seeds, 95%. `-`: not known, or one seed only. A verdict needs "
        f"{MIN_SEEDS} seeds and an interval with some width."
    )
    return "\n\n".join(parts)


def plot_classification(rows: Sequence[Epoch], path: str | Path, *, title: str) -> Path:
    """Draws training loss and test accuracy by epoch (Figure 8) and returns the PNG's path.

    Lines are means over seeds, bands go from the lowest to the highest seed. Where the test set is
    read once (`strict`), the validation split's accuracy is drawn.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    arms = finished_arms(rows)
    several = len({arm.protocol for arm in arms}) > 1
    for colour, arm in zip(cycle(COLOURS), arms, strict=False):
        label = f"{arm.protocol}: {arm.name}" if several else arm.name
        shown = "validation_accuracy" if arm.protocol == "strict" else "test_accuracy"
        if arm.protocol == "strict":
            label += " (validation)"
        for axis, key, scale in ((axes[0], "loss", 1), (axes[1], shown, 100)):
            values = scale * np.array([[e[key] for e in run] for run in arm.runs.values()])
            epochs = np.arange(1, values.shape[1] + 1)
            style = "-" if arm.aux_task == "none" else "--"
            axis.plot(epochs, values.mean(0), style, color=colour, label=label, marker=".")
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)
    axes[0].set(ylabel="training loss", title="(a) Training loss")
    axes[1].set(ylabel="accuracy (%)", title="(b) Test set accuracy")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if arms:  # without lines, a legend warns
        axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}: mean over seeds, band from lowest to highest")
    path = Path(path)
    figure.savefig(path, dpi=130, format="png")
    return path


def table_1(arms: Sequence[Arm], dataset: str) -> list[dict[str, Any]]:
    """Returns Table I's rows, one an arm, beside the paper's where it did the same."""
    rows = []
    for arm in arms:
        found = mean_interval(list(arm.accuracies().values()))
        by_epoch = [[e.get("test_accuracy", math.nan) for e in run] for run in arm.runs.values()]
        known = 100 * np.array(by_epoch, float)
        whole = bool(np.isfinite(known).all())
        rows.append({
            "protocol": arm.protocol, "pretext task": arm.name, "seeds": len(arm.runs),
            "epochs": len(next(iter(arm.runs.values()))), **_subset(arm),
            "reported": SELECTED[arm.protocol], "accuracy": _two(found.mean),
            "95% interval": _interval(found),
            "best epoch": _two(known.max(1).mean()) if whole else None,
            "last epoch": _two(known[:, -1].mean()) if whole else None,
            "paper": _paper(TABLE_I.get(arm.aux_task), arm, dataset),
        })  # fmt: skip
    return rows


def _subset(arm: Arm) -> dict[str, Any]:
    """The number of training images, where that is not all of them."""
    counts = {int(run[0].get("train_images") or 0) for run in arm.runs.values()} - {0}
    return {"training images": ", ".join(f"{n:,}" for n in sorted(counts))} if counts else {}


def _differences(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Paired over the seeds that both arms have; judged as the paper's claims are."""
    rows = []
    for arm in arms:
        plain = next((a for a in arms if a.protocol == arm.protocol and a.aux_task == "none"), None)
        if arm.aux_task == "none" or plain is None:
            continue
        own, other = arm.accuracies(), plain.accuracies()
        seeds = sorted(own.keys() & other.keys())
        if not seeds:
            continue
        found = mean_interval([own[s] - other[s] for s in seeds])
        gap = Difference(*found, num_seeds=len(seeds), paired=True)
        helps, hurts = (verdict(gap, side) == "supported" for side in ("above", "below"))
        rows.append({
            "protocol": arm.protocol, "pretext task": arm.name, "seeds": len(seeds),
            "difference": _two(found.mean, sign=True), "95% interval": _interval(found, sign=True),
            "verdict": "helps" if helps else "hurts" if hurts else "undecided",
        })  # fmt: skip
    return rows


def table_2(arms: Sequence[Arm], dataset: str) -> list[dict[str, Any]]:
    """Returns Table II's rows, one a class: accuracy of each arm, beside the paper's."""
    per_arm = []
    for arm in arms:
        counts = arm.confusion()
        with np.errstate(invalid="ignore"):  # a class that the test set does not have
            per_arm.append(100 * np.diagonal(counts, axis1=1, axis2=2) / counts.sum(2))
    rows = []
    for digit in range(per_arm[0].shape[1]):
        row: dict[str, Any] = {"class": str(digit)}
        for arm, accuracy in zip(arms, per_arm, strict=True):
            column = f"{arm.protocol}: {arm.name}"
            values = accuracy[:, digit]
            if np.isfinite(values).all():
                found = mean_interval(list(values))
                spread = "" if math.isnan(found.low) else f" ± {(found.high - found.low) / 2:.2f}"
                row[column] = f"{found.mean:.2f}{spread}"
            else:
                row[column] = None
        if dataset == "mnist":
            # Not "paper: none": that is the column of the protocol `paper`.
            row |= {f"printed: {task}": _two(TABLE_II[task][digit]) for task in TABLE_II}
        rows.append(row)
    return rows


def half_turns(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Returns one row an arm: how often a digit was taken for its half turn (section VI-A)."""
    rows = []
    for arm in arms:
        mean = arm.confusion().mean(0)
        row: dict[str, Any] = {"protocol": arm.protocol, "pretext task": arm.name}
        rows.append(row | {f"{a} -> {b}": f"{mean[a, b]:.1f}" for a, b in PAIRS})
    return rows


def pretext_accuracies(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Returns one row an arm with a pretext head: its accuracy over all and for each class."""
    rows = []
    for arm in arms:
        epochs = list(arm.selected().values())
        if not all("aux_accuracy_per_class" in epoch for epoch in epochs):
            continue
        mean = np.mean([epoch["aux_accuracy_per_class"] for epoch in epochs], 0)
        row: dict[str, Any] = {"protocol": arm.protocol, "pretext task": arm.name}
        row["all"] = _two(100 * float(np.mean([epoch["aux_accuracy"] for epoch in epochs])))
        rows.append(row | {str(i): _two(100 * value) for i, value in enumerate(mean)})
    return rows


def _paper(value: float | None, arm: Arm, dataset: str) -> str | None:
    """The paper's number, beside MNIST's arms of its weight, however long they were trained."""
    comparable = dataset == "mnist" and arm.aux_weight == 1 and value is not None
    return _two(value) if comparable and value is not None else None


def _interval(found: MeanInterval, *, sign: bool = False) -> str | None:
    if math.isnan(found.low):
        return None
    return f"{_two(found.low, sign=sign)} to {_two(found.high, sign=sign)}"


def _two(value: float, *, sign: bool = False) -> str:
    return f"{value:+.2f}" if sign else f"{value:.2f}"
