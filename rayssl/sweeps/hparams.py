"""TensorBoard's table of hyper-parameters: one session per trial."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

NOT_HPARAMS = (
    "trial", "status", "error", "job", "unit", "done", "planned", "metric", "final", "best",
    "reported", "wall_s", "attempts", "folder",
)  # fmt: skip
FIGURES = ("final", "best", "reported")


def write_hparams(folder: Path, row: Mapping[str, Any]) -> None:
    """Writes what a trial varied, and its final, best and reported metric, beside its curves.

    Args:
      folder: of the trial's event files.
      row: of trials.csv.
    """
    varied = {k: v for k, v in row.items() if k not in NOT_HPARAMS and v is not None}
    varied = {
        k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in varied.items()
    }
    figures = {f"trial/{k}": row[k] for k in FIGURES if row[k] is not None}
    suffix = f".hparams-{time.time_ns()}"  # files are named by the second
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for summary in hparams(varied, figures):
            writer.file_writer.add_summary(summary)
        for name, value in figures.items():
            writer.add_scalar(name, value, row["done"])
