"""How far each self-supervised task got in aux-only runs: a table and a figure.

    python experiments/pretrain.py atari --aux-task inverse --results-dir results/tasks-first \
        --name inverse
    python experiments/task_curves.py results/tasks-first

Every folder below the one that is given is a run with one task. Writes task-curves.png and
task-curves.md there. Needs no Ray.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rayssl.cli import refuse, saved_settings
from rayssl.envs.atari import action_set
from rayssl.networks import as_sequence_task
from rayssl.presets import AtariRun
from rayssl.report import markdown_table, plot_task_curves, read_run
from rayssl.tasks import make_tasks


@dataclass(frozen=True)
class Settings:
    """Compares runs that train one self-supervised task each."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the runs."""


def read_runs(folder: Path) -> dict[str, tuple[AtariRun, Any]]:
    """Returns task -> settings and log of its run.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if two runs have one task, or a run has none or several, or no aux update yet.
    """
    found: dict[str, tuple[AtariRun, Any]] = {}
    for log in sorted(folder.glob("*/progress.csv")):
        run, rows = AtariRun(**saved_settings(log.parent)), read_run(log.parent)
        if run.aux_task in found or len(make_tasks(run.aux_task)) != 1:
            raise ValueError(
                f"Expected one run for each task in {folder}, got {log.parent.name} with task "
                f"{run.aux_task}. Move it elsewhere."
            )
        if not rows["aux_accuracy"].notna().any():
            raise ValueError(
                f"{log.parent} has no aux update yet. Go on with it, or move it elsewhere."
            )
        found[run.aux_task] = run, rows
    if not found:
        raise FileNotFoundError(f"{folder} holds no runs (*/progress.csv).")
    return found


def chance_of(run: AtariRun) -> float:
    """Returns the accuracy of a head of this run that knows nothing."""
    (task,) = map(as_sequence_task, make_tasks(run.aux_task))
    return task.chance(num_actions=len(action_set(run.game)), batch_size=run.batch_size)


def table_row(task: str, run: AtariRun, rows: Any) -> dict[str, Any]:
    """Returns a run's row of the table: accuracies and losses of its first and last report."""
    known = rows[rows["aux_accuracy"].notna()]
    first, last = known.iloc[0], known.iloc[-1]
    return {
        "task": task, "aux updates": int(last["aux_updates"]), "chance": chance_of(run),
        "first accuracy": float(first["aux_accuracy"]),
        "last accuracy": float(last["aux_accuracy"]),
        "best": float(known["aux_accuracy"].max()),
        "first loss": float(first["aux_loss"]), "last loss": float(last["aux_loss"]),
        "left out": float(last["aux_left_out"]), "minutes": float(last["wall_s"]) / 60,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> str:
    """Writes table and figure and returns the table."""
    settings = tyro.cli(Settings, args=sys.argv[1:] if argv is None else argv)
    try:
        runs = read_runs(settings.folder)
        table = markdown_table([table_row(task, *run) for task, run in runs.items()])
        (settings.folder / "task-curves.md").write_text(table + "\n")
        curves = plot_task_curves(
            {task: rows for task, (_, rows) in runs.items()},
            {task: chance_of(run) for task, (run, _) in runs.items()},
            settings.folder / "task-curves.png",
        )
    except (ValueError, OSError) as error:
        refuse(error)
    print(f"{table}\nfigure: {curves}")
    return table


if __name__ == "__main__":
    main()
