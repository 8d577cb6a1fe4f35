"""Result folders -> tables (markdown) and figures (PNG)."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

COLOURS = ("#3465a4", "#c4561d", "#4e7d3a", "#7b5aa6", "#9a7b1f", "#52676b")


def read_run(folder: str | Path) -> pd.DataFrame:
    """Returns a run's rows, one per report, sorted by `env_steps`, from its progress.csv.

    Of rows with the same `env_steps` the last one counts. A last line that a kill cut short is
    left out: its first number could be the beginning of a longer one.

    Raises:
      FileNotFoundError: if the folder holds no progress.csv.
      ValueError: if that holds no row yet, or is not the log of a run.
    """
    path = Path(folder) / "progress.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no progress.csv: pass the folder of a run.")
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole.count("\n") < 2:
        raise ValueError(f"{path} holds no row yet: wait for the run's first report.")
    rows = pd.read_csv(io.StringIO(whole))
    if "env_steps" not in rows:
        found = ", ".join(map(str, rows.columns[:5]))
        raise ValueError(
            f"Expected {path} with a column env_steps, got {found}. "
            "Pass the folder of a run of experiments/atari.py."
        )
    rows = rows.drop_duplicates("env_steps", keep="last")
    return rows.sort_values("env_steps", ignore_index=True)


def time_shares(rows: pd.DataFrame) -> dict[str, float]:
    """Returns where a run's time went: {part: share}, largest first; they add up to 1.

    A row's shares (`time_*`) are of the time since the row before; here they are weighted by that
    time, which is the row's steps divided by its steps/s. Parts: sampling, replay, learning,
    weights, waiting, logging, other. Empty if the log has no such columns.

    Args:
      rows: of a run, as `read_run` returns them.
    """
    columns = [name for name in rows if name.startswith("time_")]
    steps = rows["env_steps"].diff().fillna(rows["env_steps"])
    seconds = steps / rows["env_steps_per_s"] if columns else steps
    spent = rows[columns].mul(seconds, axis=0).sum().sort_values(ascending=False)
    spent = spent[spent > 0]
    return {name.removeprefix("time_"): value / spent.sum() for name, value in spent.items()}


def read_epochs(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the epochs of every trial of a classification experiment, from its epochs.jsonl.

    Sorted by trial and epoch; of an epoch that was run twice the last one counts. Lines that a kill
    cut short are left out; a folder without the file has no epochs.
    """
    path = Path(folder) / "epochs.jsonl"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["trial"], row["epoch"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [found[key] for key in sorted(found)]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a markdown table; columns in the order in which the rows first name them.

    `-` stands for NaN, None and a column that a row does not have.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_cell(name) for name in names]]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def plot_learning_curves(
    runs: Mapping[str, pd.DataFrame],
    path: str | Path,
    *,
    chance: float | None = None,
    random_score: float | None = None,
    title: str = "",
) -> Path:
    """Draws score, aux accuracy, losses and gradient cosine against steps; returns the PNG's path.

    Args:
      runs: name -> rows as `read_run` returns them; drawn on top of one another (Fig. 10).
      path: PNG to write.
      chance: aux accuracy of guessing, drawn as a line.
      random_score: mean score of a random agent, drawn as a line.
    """
    # Not pyplot: it would keep the figure, and choose a backend for whoever imports this module.
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2).flat
    panels = (
        ("score_mean_100", "training score (last 100 whole games)", random_score, "random agent"),
        ("aux_accuracy", "aux accuracy", chance, "chance"),
        ("td_loss", "TD loss (Huber)", None, ""),
        ("gradient_cosine", "cosine of TD and aux gradients", 0.0, "at right angles"),
    )
    for axis, (column, label, line, meaning) in zip(axes, panels, strict=True):
        drawn = 0
        series = [
            (name if own == column else own.removeprefix(f"{column}/"), own, rows)
            for name, rows in runs.items()
            # of several tasks each has its own column, e.g. aux_accuracy/inverse
            for own in [c for c in rows if c.startswith(f"{column}/")] or [column]
        ]
        for colour, (name, own, rows) in zip(cycle(COLOURS), series, strict=False):
            if own in rows and rows[own].notna().any():
                known = rows[rows[own].notna()]
                dot = "o" if len(known) == 1 else None  # a line through one point shows nothing
                axis.plot("env_steps", own, data=known, color=colour, marker=dot, label=name)
                drawn += 1
        if line is not None and drawn:
            axis.axhline(line, color="#888888", lw=1, ls="--", label=meaning)
        if not drawn:
            axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", color="#888888")
        axis.set_ylabel(label)
        axis.set_xlabel("agent steps")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.ticklabel_format(axis="x", style="plain")
        if drawn:
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
    return path


def plot_task_curves(
    runs: Mapping[str, pd.DataFrame], chances: Mapping[str, float], path: str | Path
) -> Path:
    """Draws each task's own accuracy, and its loss, against its updates; returns the PNG's path.

    Args:
      runs: task -> rows of a run with this task alone, as `read_run` returns them.
      chances: task -> accuracy of guessing, drawn as a line.
      path: PNG to write.
    """
    columns = min(4, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (task, rows) in zip(panels, runs.items(), strict=False):
        rows = rows[rows["aux_accuracy"].notna()]
        loss = axis.twinx()
        loss.plot("aux_updates", "aux_loss", data=rows, color="#bbbbbb", lw=1)
        loss.tick_params(labelsize=7, colors="#888888")
        loss.spines[["top"]].set_visible(False)
        axis.set_zorder(loss.get_zorder() + 1)
        axis.patch.set_visible(False)
        axis.plot("aux_updates", "aux_accuracy", data=rows, color=COLOURS[0])
        axis.axhline(chances[task], color="#888888", lw=1, ls="--")
        axis.set_ylim(0, 1.02)
        axis.set_title(task, fontsize=10)
        axis.tick_params(labelsize=7)
        axis.spines[["top"]].set_visible(False)
    for axis in panels[len(runs) :]:
        axis.set_axis_off()
    figure.supxlabel("aux updates", fontsize=9)
    figure.supylabel("accuracy (line), chance (dashes); loss (grey, right)", fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
    return path


def cell_text(value: Any) -> str:
    """Returns what a table shows of a value: `-` for NaN and None, three digits of small floats."""
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers are not Python's
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _cell(value: Any) -> str:
    return cell_text(value).replace("|", "\\|")
