"""Compares training runs: tables (markdown) and one figure of their curves (PNG).

    python experiments/report.py results/local/pong-none-s0 results/local/pong-permutation-s0
    python experiments/report.py results/local/mnist

Figure 10 of the paper; for an experiment of mnist.py Tables I and II and Figure 8, of the trials
that have finished. Every number is read from the runs' own logs and settings.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from rayssl.classification_report import classification_report, plot_classification
from rayssl.cli import check_writable, refuse
from rayssl.report import markdown_table, plot_learning_curves, read_epochs, read_run


@dataclass(frozen=True)
class Settings:
    """Compares training runs: one table and one figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, as experiments/atari.py printed them, or one of experiments/mnist.py."""
    out: Path = Path("results/local/report")
    """Folder for report.md and curves.png."""
    above: float = -5.0
    """Score whose first crossing is reported, in agent steps."""


def run_row(folder: Path, rows: pd.DataFrame, above: float) -> dict[str, Any]:
    """Returns one run's row of the table."""
    last = rows.iloc[-1]
    try:
        saved = json.loads((folder / "settings.json").read_text())
        settings, starts = saved["settings"], saved.get("starts", [saved])
        crossed = rows[rows["score_mean_100"] > above]
        return {
            "game": settings["game"],
            "task": settings["aux_task"],
            "seed": settings["seed"],
            "steps": int(last["env_steps"]),
            "TD / aux updates": f"{int(last['td_updates']):,} / {int(last['aux_updates']):,}",
            "last score": last["score_mean_100"],
            "best score": rows["score_mean_100"].max(),
            f"first above {above:g}": int(crossed["env_steps"].iloc[0]) if len(crossed) else None,
            "aux accuracy": last.get("aux_accuracy"),
            "minutes": last["wall_s"] / 60,
            "commit": ", ".join(dict.fromkeys(str(start["commit"]) for start in starts)),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected in {folder} settings.json and progress.csv as experiments/atari.py writes "
            f"them, got {type(error).__name__}: {error}. Leave this folder out, or copy all of it."
        ) from error


def report_classification(folder: Path, out: Path) -> None:
    """Writes and prints the tables and the figure of an experiment's finished trials.

    Raises:
      ValueError: if settings.json is not that of experiments/mnist.py.
    """
    try:
        dataset = json.loads((folder / "settings.json").read_text())["settings"]["dataset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected {folder / 'settings.json'} as experiments/mnist.py writes it, got "
            f"{type(error).__name__}: {error}. Copy the whole folder of the experiment."
        ) from error
    rows = read_epochs(folder)
    text = classification_report(rows, dataset=dataset)
    check_writable(out)
    curves = plot_classification(rows, out / "curves.png", title=dataset)
    (out / "report.md").write_text(f"{text}\n\n![curves]({curves.name})\n")
    print(f"{text}\n\n{out / 'report.md'}")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Writes the report; returns the table's rows of games, none for a classification."""
    settings = tyro.cli(Settings, args=argv)
    try:
        if not settings.runs:
            raise ValueError("No runs given. Pass the folders of one or more runs.")
        if any((folder / "epochs.jsonl").is_file() for folder in settings.runs):
            if len(settings.runs) > 1:
                raise ValueError(
                    f"Expected one folder of experiments/mnist.py, got {len(settings.runs)}. Its "
                    "arms and seeds stand in one experiment: pass one at a time."
                )
            report_classification(settings.runs[0], settings.out)
            return []
        runs = {folder: read_run(folder) for folder in settings.runs}
        table = [run_row(folder, rows, settings.above) for folder, rows in runs.items()]
        check_writable(settings.out)
    except (ValueError, OSError) as error:
        refuse(error)
    short = {folder.name for folder in runs}
    named = {f.name if len(short) == len(runs) else str(f): rows for f, rows in runs.items()}
    curves = plot_learning_curves(named, settings.out / "curves.png")
    text = (
        "Scores are means of the last 100 whole training games, unclipped, exploration on.\n\n"
        + markdown_table(table)
        + f"\n\n![curves]({curves.name})\n"
    )
    (settings.out / "report.md").write_text(text)
    print(text + f"\n{settings.out / 'report.md'}")
    return table


if __name__ == "__main__":
    main()
