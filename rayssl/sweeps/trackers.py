"""Weights & Biases and MLflow, through Tune's own callbacks."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["wandb", "mlflow"]


def check_tracker(name: Tracker) -> None:
    """Raises ValueError if a tracker's package is not installed."""
    if find_spec(name) is None:
        raise ValueError(f"--log {name} needs the package {name}: pip install 'rayssl[{name}]'.")


def make_tracker(name: Tracker, folder: Path) -> Any:
    """Returns Tune's callback for a tracker: a run for each trial, grouped by the sweep's name.

    W&B's project is `rayssl` (WANDB_MODE=offline works); MLflow goes to MLFLOW_TRACKING_URI, else
    to mlflow.db in the sweep's folder.
    """
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project="rayssl", group=folder.resolve().name)
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    own = f"sqlite:///{folder.resolve()}/mlflow.db"
    return MLflowLoggerCallback(
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", own),
        experiment_name=folder.resolve().name,
    )
