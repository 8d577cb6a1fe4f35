"""Classification as Ray Tune trainables: training.py, reported and checkpointed by the epoch."""

import json
import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ray import tune
from tensorboardX import SummaryWriter

from rayssl.data import ImageSplits
from rayssl.training import ClassifierSettings, ClassifierTraining

STATE = "state.pt"
NOT_SETTINGS = ("num_cpus", "restore_from", "adapts")  # of a trial's config
EPOCHS = "epochs.jsonl"  # one line per epoch of each trial, in the folder of the experiment


class ImageClassifier(tune.Trainable):
    """One training of `rayssl.training.ClassifierTraining`; a Tune iteration is an epoch.

        tune.with_parameters(ImageClassifier, data=load_dataset("digits"))

    The config holds the fields of ClassifierSettings, `num_cpus` (threads), and `restore_from`:
    a checkpoint to go on from, or None; or all of them under `trial`, which takes a list of whole
    configs into one `tune.grid_search`. `adapts` names settings in which a checkpoint may differ
    (population-based training). The data travel through Ray's object store, so that nodes need no
    copy of the files.
    """

    def setup(self, config: dict[str, Any], data: ImageSplits) -> None:
        """Builds network and data on the GPU if Tune gave the trial one, else on the CPU."""
        config = config.get("trial", config)
        torch.set_num_threads(max(1, int(config.get("num_cpus", 1))))
        settings = ClassifierSettings(**settings_of(config))
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides GPUs not asked for
        self.training = ClassifierTraining(data, settings, device)
        self._adapts = tuple(config.get("adapts") or ())
        if config.get("restore_from"):
            self.load_checkpoint(config["restore_from"])

    def step(self) -> dict[str, Any]:
        """Returns the metrics of one more epoch; `done` with the last."""
        return self.training.run_epoch() | {"done": self.training.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the whole state; it can be read without running code (`weights_only`)."""
        torch.save(self.training.state_dict(), Path(checkpoint_dir) / STATE)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restores what `save_checkpoint` wrote."""
        path = Path(checkpoint) / STATE
        state = torch.load(path, map_location=self.training.device, weights_only=True)
        self.training.load_state_dict(state, may_differ=self._adapts)


class EpochWriter:
    """Appends epochs to EPOCHS in a folder, and their figures to TensorBoard, as they come.

    Tune's own loggers write into a staging folder and copy it now and then (cluster-notes.md,
    fact 9); a killed driver would lose its last rows. An epoch that a resumed trial repeats is
    written again: readers take the last line of each (`rayssl.report.read_epochs`).
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EPOCHS
        self._mend_last_line()

    def write(self, row: dict[str, Any], tensorboard: Path) -> None:
        """Writes one epoch of one trial."""
        with self._path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        # Opened for each epoch: hundreds of trials would be hundreds of open files and threads.
        suffix = f".epoch-{row['epoch']}"  # files are named by the second
        with SummaryWriter(str(tensorboard), filename_suffix=suffix) as writer:
            for key, value in row.items():
                if key in METRICS and isinstance(value, int | float) and math.isfinite(value):
                    writer.add_scalar(key, value, row["epoch"])

    def _mend_last_line(self) -> None:
        """Ends a line that a kill cut short, so that the next one stands by itself."""
        if self._path.is_file() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a") as handle:
                handle.write("\n")


class EpochLog(tune.Callback):
    """Writes the epochs of all trials of an experiment (`EpochWriter`), and prints a line for each.

    Args:
      folder: of the experiment.
      num_trials: for the line.
    """

    def __init__(self, folder: Path, num_trials: int) -> None:
        self._writer, self._tb, self._num_trials = EpochWriter(folder), folder / "tb", num_trials

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes one epoch of one trial."""
        config = settings_of(trial.config)
        row = {"trial": trial_name(config), **config}
        row |= {k: v for k, v in result.items() if k in METRICS}
        self._writer.write(row, self._tb / trial_name(config))
        done = sum(t.is_finished() for t in trials) + bool(result.get("done"))
        print(f"{epoch_line(row)} | {done}/{self._num_trials} trials done", flush=True)


METRICS = (
    "epoch", "selected_epoch", "lr", "loss", "class_loss", "aux_loss", "aux_train_accuracy",
    "validation_accuracy", "test_accuracy", "aux_accuracy", "seconds", "images_per_s",
    "test_confusion", "aux_accuracy_per_class",
)  # fmt: skip


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of ClassifierSettings in a trial's config."""
    config = config.get("trial", config)
    return {k: v for k, v in config.items() if k not in NOT_SETTINGS}


def newest_checkpoint(folder: Path, name: str) -> Path | None:
    """Returns the checkpoint with the most epochs among a trial's folders; None if none is whole.

    A trial has a folder for each start of the experiment. Files that a kill cut short are passed
    over.
    """
    found = newest_state(folder.glob(f"{name}_*/checkpoint_*"))
    return found[0] if found else None


def newest_state(checkpoints: Iterable[Path]) -> tuple[Path, int] | None:
    """Returns the whole one with the most epochs among checkpoint folders, and its epochs."""
    best: tuple[Path, int] | None = None
    for folder in checkpoints:
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
            epoch = int(state["epoch"])
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError):
            continue
        if best is None or epoch > best[1]:
            best = folder, epoch
    return best


def trial_name(config: dict[str, Any]) -> str:
    """Returns a trial's name for people: `paper-rotation-w1-s0`."""
    aux = config["aux_task"]
    weight = "" if aux == "none" else f"-w{config['aux_weight']:g}"
    return f"{config['protocol']}-{aux}{weight}-s{config['seed']}"


def epoch_line(row: dict[str, Any]) -> str:
    """Returns one line for people about one epoch of one trial."""
    parts = [f"{trial_name(row)}: epoch {row['epoch']}/{row['epochs']}", f"loss {row['loss']:.4f}"]
    for key, label in (
        ("validation_accuracy", "validation"), ("test_accuracy", "test"), ("aux_accuracy", "aux"),
    ):  # fmt: skip
        if key in row:
            parts.append(f"{label} {row[key]:.2%}")
    return " | ".join([*parts, f"{row['seconds']:.0f} s"])
