"""The table and the curves of an experiment with BiGAN or BigBiGAN."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from rayssl.report import COLOURS, markdown_table

Epoch = Mapping[str, Any]  # a row of read_epochs

DONAHUE_LOG: Final[tuple[Epoch, ...]] = tuple(
    # README of github jeffdonahue/bigan, permutation-invariant MNIST: NNC_e-, NNC_e, CLS_e-
    # (whose classifier is trained in the BN statistics' 1,000 batches), EGr, EGr_b, JD, E.
    dict(zip(
        ("epoch", "nn_features", "nn_code", "probe_features", "recon_l2", "recon_l2_baseline",
         "d_loss", "ge_loss"),
        row, strict=True,
    ))
    for row in (
        (0, 0.9684, 0.9150, 0.9139, 13.64, 13.64, 0.6932, 0.6932),  # untrained
        (1, 0.9256, 0.8994, 0.8672, 8.70, 9.55, 0.4239, 1.2217),
        (25, 0.9628, 0.9541, 0.9133, 7.29, 9.51, 0.4490, 1.3910),
        (200, 0.9714, 0.9592, 0.9263, 6.04, 9.91, 0.1777, 2.8711),
        (400, 0.9735, 0.9210, 0.7948, 5.95, 9.60, 0.0545, 3.8253),
    )
)  # fmt: skip


def evaluated(rows: Sequence[Epoch]) -> dict[str, list[Epoch]]:
    """Returns trial -> its epochs that were evaluated, in order."""
    found: dict[str, list[Epoch]] = {}
    for row in rows:
        if "recon_l2" in row:
            found.setdefault(row["trial"], []).append(row)
    return found


def bigan_report(rows: Sequence[Epoch], *, dataset: str) -> str:
    """Returns the last evaluation of every trial, and every trial's curve, as markdown.

    Args:
      rows: `rayssl.report.read_epochs`.
      dataset: Donahue's log stands below BiGAN's rows on `mnist` only.
    """
    trials = evaluated(rows)
    if not trials:
        return "No epoch has been evaluated yet."
    last = [_row(epochs[-1], rows) for epochs in trials.values()]
    parts = [f"### Last evaluation of each trial, {dataset}", markdown_table(last)]
    for name, epochs in trials.items():
        parts += [f"### {name} by epoch", markdown_table([_figures(epoch) for epoch in epochs])]
    if dataset == "mnist" and any(name.startswith("bigan-") for name in trials):
        parts += [
            "### Donahue et al.'s log of 400 epochs (50,000 images; 1-NN of 10,000 others)",
            "Epoch 0 is the untrained network: 1-NN alone says little, see the reconstruction.",
            markdown_table([_figures(epoch) for epoch in DONAHUE_LOG]),
        ]
    parts.append(
        "1-NN: euclidean, all training images, on the layer before the encoder's output "
        "(features) and on its output (code); probe: logistic regression; accuracies of the test "
        "images in percent. Reconstruction: mean |x - G(E(x))|, pixels in [0, 1]; baseline: "
        "against another image."
    )
    return "\n\n".join(parts)


def _row(epoch: Epoch, rows: Sequence[Epoch]) -> dict[str, Any]:
    own = [row for row in rows if row["trial"] == epoch["trial"]]
    minutes = sum(row["seconds"] + row.get("eval_seconds", 0.0) for row in own) / 60
    return {
        "model": epoch["model"], "seed": epoch["seed"], "of epochs": epoch["epochs"],
        **_figures(epoch), "minutes": f"{minutes:.1f}",
    }  # fmt: skip


def _figures(epoch: Epoch) -> dict[str, Any]:
    figures: dict[str, Any] = {"epoch": epoch["epoch"]}
    for key, label in (
        ("nn_features", "1-NN features"), ("nn_code", "1-NN code"),
        ("probe_features", "probe features"), ("probe_code", "probe code"),
    ):  # fmt: skip
        figures[label] = f"{100 * epoch[key]:.2f}" if key in epoch else None
    figures["reconstruction"] = f"{epoch['recon_l2']:.2f}"
    figures["baseline"] = f"{epoch['recon_l2_baseline']:.2f}"
    for key, label in (
        ("d_loss", "D loss"), ("ge_loss", "G, E loss"), ("e_loss", "E loss"), ("g_loss", "G loss"),
    ):  # fmt: skip
        if key in epoch:
            figures[label] = f"{epoch[key]:.3f}"
    return figures


def plot_bigan(rows: Sequence[Epoch], path: Path, *, title: str) -> Path:
    """Draws accuracies, reconstruction error and losses by epoch; returns the PNG's path."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    accuracy, error, loss = figure.subplots(1, 3)
    curves = {name: list(epochs) for name, epochs in evaluated(rows).items()}
    for colour, (name, epochs) in zip(cycle(COLOURS), curves.items(), strict=False):
        for axis, key, style, label in (
            (accuracy, "nn_features", "-", "1-NN, features"),
            (accuracy, "nn_code", ":", "1-NN, code"),
            (accuracy, "probe_features", "--", "linear probe, features"),
            (error, "recon_l2", "-", "own image"),
            (error, "recon_l2_baseline", ":", "another image"),
        ):
            known = [epoch for epoch in epochs if key in epoch]
            scale = 100 if axis is accuracy else 1
            axis.plot(
                [e["epoch"] for e in known], [scale * e[key] for e in known], style,
                color=colour, marker=".", label=f"{name}: {label}",
            )  # fmt: skip
        every = [row for row in rows if row["trial"] == name]
        for key, style, label in (
            ("d_loss", "-", "D"), ("ge_loss", "--", "G and E"), ("e_loss", "--", "E"),
            ("g_loss", ":", "G"),
        ):  # fmt: skip
            known = [epoch for epoch in every if key in epoch]
            if known:
                loss.plot(
                    [e["epoch"] for e in known], [e[key] for e in known], style, color=colour,
                    label=f"{name}: {label}",
                )  # fmt: skip
    accuracy.set(ylabel="test accuracy (%)", title="(a) What the features know")
    error.set(ylabel="mean |x - G(E(x))|", title="(b) Reconstruction")
    loss.set(ylabel="loss", title="(c) Losses")
    for axis in (accuracy, error, loss):
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:  # without lines, a legend warns
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")
    return path
