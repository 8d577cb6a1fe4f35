"""What a paper-sized Atari sweep costs on machines of several sizes, from measured runs.

    python benchmarks/cost.py results/pong-first --price 0.05

The sweep is Table IV's: 2 games x 3 tasks (none, rotation, permutation) x seeds, each of the
preset's steps. Assumed: one run a core (`--learner-cpus 1`, sampling in the same process), at the
speed of the measured runs, which had a core each; other cores are as fast; Breakout costs what
Pong does. docs/cluster.md holds this table, and a test holds it to this script.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import check_settings
from rayssl.cli import refuse
from rayssl.presets import preset_values
from rayssl.report import markdown_table, read_run

GAMES, TASKS = 2, 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Computes hours and money from the logs of finished runs."""

    results: Annotated[Path, tyro.conf.Positional] = Path("results/pong-first")
    """Folder of the measured runs: their steps and wall time."""
    preset: str = "paper-code"
    """Preset whose steps each run makes."""
    seeds: int = 5
    """Seeds of each game and task."""
    cores: tuple[int, ...] = (2, 8, 16, 64)
    """Machines, or clusters, by their CPU cores."""
    price: float = 0.05
    """Assumed price of a core for an hour; put your provider's here."""


def seconds_per_step(results: Path) -> float:
    """Returns the wall seconds of one agent step, mean over all runs below the folder.

    Raises:
      FileNotFoundError: if there is no run.
    """
    runs = [path.parent for path in sorted(results.glob("*/progress.csv"))]
    if not runs:
        raise FileNotFoundError(f"{results} holds no runs (*/progress.csv).")
    last = [read_run(run).iloc[-1] for run in runs]
    return float(sum(row["wall_s"] for row in last) / sum(row["env_steps"] for row in last))


def cost_table(settings: Settings) -> str:
    """Returns the table as markdown."""
    runs = GAMES * TASKS * settings.seeds
    steps = preset_values(settings.preset)["steps"]
    hours = steps * seconds_per_step(settings.results) / 3600
    rows = []
    for cores in settings.cores:
        wall = math.ceil(runs / cores) * hours
        rows.append(
            {
                "cores": cores, "runs at once": min(runs, cores), "hours": f"{wall:.1f}",
                "core-hours paid": f"{wall * cores:.0f}",
                "price": f"{wall * cores * settings.price:.2f}",
            }
        )  # fmt: skip
    head = (
        f"{runs} runs of {steps:,} steps, {hours:.1f} hours each on one core "
        f"({1 / seconds_per_step(settings.results):.0f} steps/s), {settings.price} a core-hour:"
    )
    return f"{head}\n\n{markdown_table(rows)}"


def main(argv: Sequence[str] | None = None) -> str:
    """Prints the table of a command line and returns it."""
    settings = tyro.cli(Settings, args=argv)
    check_settings(settings)
    try:
        table = cost_table(settings)
    except (OSError, ValueError) as error:
        refuse(error)
    print(table)
    return table


if __name__ == "__main__":
    main()
