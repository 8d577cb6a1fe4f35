"""Trainings as Ray Tune trainables, reported and checkpointed by the epoch; trials that resume."""

import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from ray import tune
from tensorboardX import SummaryWriter

from rayssl.bigan import AdversarialTraining, make_training
from rayssl.data import ImageSplits
from rayssl.rllib.stopping import FAILURE, StopWhenAsked, ends_with_own_errors
from rayssl.training import ClassifierSettings, ClassifierTraining

STATE = "state.pt"
NOT_SETTINGS = ("num_cpus", "restore_from", "adapts")  # of a trial's config
EPOCHS = "epochs.jsonl"  # one line per epoch of each trial, in the folder of the experiment
IMAGES = "images"  # folder of PNG files, beside it


class EpochTraining(Protocol):
    """What an EpochTrainable drives, an epoch at a time."""

    device: torch.device

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""

    def run_epoch(self) -> dict[str, Any]:
        """Trains for one epoch and returns its metrics, `epoch` (from 1) among them."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs, and the number of epochs as `epoch`."""

    def load_state_dict(self, state: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
        """Restores what `state_dict` returned; settings in `may_differ` may be others."""


class EpochTrainable(tune.Trainable):
    """One training; a Tune iteration is an epoch. A subclass says which training in `make`.

        tune.with_parameters(ImageClassifier, data=load_dataset("digits"))

    The config holds the training's settings, `num_cpus` (threads), and `restore_from`: a
    checkpoint to go on from, or None; or all of them under `trial`, which takes a list of whole
    configs into one `tune.grid_search`. `adapts` names settings in which a checkpoint may differ
    (population-based training). The data travel through Ray's object store, so that nodes need no
    copy of the files.
    """

    def make(self, settings: dict[str, Any], data: ImageSplits, device: str) -> EpochTraining:
        """Returns the training of these settings, at its start."""
        raise NotImplementedError

    def setup(self, config: dict[str, Any], data: ImageSplits) -> None:
        """Builds the training on the GPU if Tune gave the trial one, else on the CPU."""
        config = config.get("trial", config)
        torch.set_num_threads(max(1, int(config.get("num_cpus", 1))))
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides GPUs not asked for
        self.training = self.make(settings_of(config), data, device)
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


class ImageClassifier(EpochTrainable):
    """One training of `rayssl.training.ClassifierTraining`; settings: ClassifierSettings."""

    def make(self, settings: dict[str, Any], data: ImageSplits, device: str) -> ClassifierTraining:
        """Returns the training of one classifier."""
        return ClassifierTraining(data, ClassifierSettings(**settings), device)


class FeatureLearner(EpochTrainable):
    """One training of `rayssl.bigan`; settings: `model`, and those of that model."""

    def make(self, settings: dict[str, Any], data: ImageSplits, device: str) -> AdversarialTraining:
        """Returns the training of one BiGAN or BigBiGAN."""
        return make_training(data=data, device=device, **settings)


@dataclass(frozen=True)
class Kind:
    """A kind of trial: what runs, and how it is named and logged.

    Attributes:
      trainable: what Tune runs.
      name: a config's name for people, unlike that of every other trial.
      metrics: keys of a result that are logged.
      line: a row of the log as one line for people.
    """

    trainable: type[EpochTrainable]
    name: Callable[[dict[str, Any]], str]
    metrics: tuple[str, ...]
    line: Callable[[dict[str, Any]], str]


class EpochWriter:
    """Appends epochs to EPOCHS in a folder, and their figures to TensorBoard, as they come.

    Tune's own loggers write into a staging folder and copy it now and then (cluster-notes.md,
    fact 9); a killed driver would lose its last rows. An epoch that a resumed trial repeats is
    written again: readers take the last line of each (`rayssl.report.read_epochs`).

    Args:
      folder: of the experiment, or of a trial.
      metrics: keys of a row that go to TensorBoard where they are numbers.
    """

    def __init__(self, folder: Path, metrics: Sequence[str]) -> None:
        self._folder, self._metrics = folder, metrics
        self._mend_last_line()

    def write(
        self, row: dict[str, Any], tensorboard: Path, images: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Writes one epoch of one trial, and its images as PNG files in IMAGES.

        Args:
          row: with `trial` and `epoch`.
          tensorboard: folder.
          images: name -> uint8 `[H, W, C]`.
        """
        images = images or {}
        with (self._folder / EPOCHS).open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        # Opened for each epoch: hundreds of trials would be hundreds of open files and threads.
        suffix = f".epoch-{row['epoch']}"  # files are named by the second
        with SummaryWriter(str(tensorboard), filename_suffix=suffix) as writer:
            for key in self._metrics:
                value = row.get(key)
                if isinstance(value, int | float) and math.isfinite(value):
                    writer.add_scalar(key, value, row["epoch"])
            for key, image in images.items():
                writer.add_image(key, image, row["epoch"], dataformats="HWC")
        for key, image in images.items():
            name = f"{row['trial']}-{key}-epoch-{row['epoch']:04d}.png"
            (self._folder / IMAGES).mkdir(exist_ok=True)
            grey = image.shape[2] == 1
            Image.fromarray(image[:, :, 0] if grey else image).save(self._folder / IMAGES / name)

    def _mend_last_line(self) -> None:
        """Ends a line that a kill cut short, so that the next one stands by itself."""
        path = self._folder / EPOCHS
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as handle:
                handle.write("\n")


class EpochLog(tune.Callback):
    """Writes the epochs of all trials of an experiment (`EpochWriter`), and prints a line for each.

    Args:
      folder: of the experiment.
      num_trials: for the line.
      kind: what the trials' names, metrics and lines look like.
    """

    def __init__(self, folder: Path, num_trials: int, kind: Kind) -> None:
        self._writer, self._tb = EpochWriter(folder, kind.metrics), folder / "tb"
        self._num_trials, self._kind = num_trials, kind
        self.failures: dict[str, str] = {}  # name of a trial -> last line of its own error

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes one epoch of one trial."""
        config = settings_of(trial.config)
        name = self._kind.name(config)
        if FAILURE in result:
            self.failures[name] = result[FAILURE].strip().splitlines()[-1]
            return
        row = {"trial": name, **config}
        row |= {k: v for k, v in result.items() if k in self._kind.metrics}
        self._writer.write(row, self._tb / name, result.get("images"))
        done = sum(t.is_finished() for t in trials) + bool(result.get("done"))
        print(f"{self._kind.line(row)} | {done}/{self._num_trials} trials done", flush=True)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a training's own settings in a trial's config."""
    config = config.get("trial", config)
    return {k: v for k, v in config.items() if k not in NOT_SETTINGS}


def pending(
    rows: Sequence[dict[str, Any]], folder: Path, configs: list[dict[str, Any]], kind: Kind
) -> list[dict[str, Any]]:
    """Returns the configs of trials that have not finished, each with its newest checkpoint.

    A checkpoint of epochs that the log lacks is passed over: they are run again, for their rows.

    Args:
      rows: `rayssl.report.read_epochs` of the folder.
      folder: of the experiment.
      configs: of all its trials; those returned get `restore_from`.
      kind: names the trials.
    """
    epochs: dict[str, set[int]] = {}
    for row in rows:
        epochs.setdefault(row["trial"], set()).add(row["epoch"])
    left = []
    for config in configs:
        name = kind.name(config)
        own = epochs.get(name, set())
        logged = next(n for n in itertools.count() if n + 1 not in own)  # without a gap
        if logged < config["epochs"]:
            checkpoint = newest_checkpoint(folder, name, logged)
            config["restore_from"] = str(checkpoint.resolve()) if checkpoint else None
            left.append(config)
    return left


def run_trials(
    kind: Kind,
    folder: Path,
    configs: list[dict[str, Any]],
    data: ImageSplits,
    *,
    num_cpus: int,
    num_gpus: float,
) -> list[str]:
    """Runs trials through Tune, as many at once as there is room for; returns a line per failure.

    Args:
      kind: of the trials.
      folder: of the experiment.
      configs: one per trial, as `pending` returns them.
      data: for all of them.
      num_cpus: cores of a trial.
      num_gpus: GPUs of a trial, 0.25 for four trials on one.
    """
    log = EpochLog(folder, len(configs), kind)
    found = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(ends_with_own_errors(kind.trainable), data=data),
            {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})},
        ),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            trial_dirname_creator=lambda t: f"{kind.name(settings_of(t.config))}_{t.trial_id}"
        ),
        run_config=tune.RunConfig(
            name=folder.resolve().name,
            storage_path=str(folder.resolve().parent),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=2),
            stop=StopWhenAsked(),
            callbacks=[log],
            verbose=0,
        ),
    ).fit()
    failures = dict(log.failures)
    for result in found:
        if result.error is not None:
            last_line = str(result.error).strip().splitlines()[-1]
            failures[kind.name(settings_of(result.config))] = last_line
    return [f"{name} failed: {text}" for name, text in failures.items()]


def newest_checkpoint(folder: Path, name: str, most: int | None = None) -> Path | None:
    """Returns the checkpoint with the most epochs among a trial's folders; None if none is whole.

    A trial has a folder for each start of the experiment. Files that a kill cut short are passed
    over, and states of more than `most` epochs.
    """
    found = newest_state(folder.glob(f"{name}_*/checkpoint_*"), most)
    return found[0] if found else None


def newest_state(checkpoints: Iterable[Path], most: int | None = None) -> tuple[Path, int] | None:
    """Returns the whole one with the most epochs, at most `most`, and its epochs."""
    best: tuple[Path, int] | None = None
    for folder in checkpoints:
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
            epoch = int(state["epoch"])
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError):
            continue
        if most is not None and epoch > most:
            continue
        if best is None or epoch > best[1]:
            best = folder, epoch
    return best


METRICS = (
    "epoch", "selected_epoch", "lr", "loss", "class_loss", "aux_loss", "aux_train_accuracy",
    "validation_accuracy", "test_accuracy", "aux_accuracy", "seconds", "images_per_s",
    "test_confusion", "aux_accuracy_per_class",
)  # fmt: skip


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


CLASSIFICATION = Kind(ImageClassifier, trial_name, METRICS, epoch_line)

ADVERSARIAL_METRICS = (
    "epoch", "lr", "d_loss", "ge_loss", "e_loss", "g_loss", "score_encoded", "score_generated",
    "s_x_encoded", "s_x_generated", "s_z_encoded", "s_z_generated", "s_xz_encoded",
    "s_xz_generated", "encoder_std", "nn_features", "nn_code", "probe_features", "probe_code",
    "recon_l2", "recon_l2_baseline", "seconds", "images_per_s", "eval_seconds",
)  # fmt: skip


def adversarial_name(config: dict[str, Any]) -> str:
    """Returns the name of a trial for people: `bigan-s0`."""
    return f"{config['model']}-s{config['seed']}"


def adversarial_line(row: dict[str, Any]) -> str:
    """Returns one line for people about one epoch of one BiGAN."""
    parts = [f"{adversarial_name(row)}: epoch {row['epoch']}/{row['epochs']}"]
    parts += [
        f"{label} {row[key]:.3f}"
        for key, label in (
            ("d_loss", "D"), ("ge_loss", "G, E"), ("e_loss", "E"), ("g_loss", "G"),
        )
        if key in row
    ]  # fmt: skip
    if "nn_features" in row:
        parts += [f"1-NN {row['nn_features']:.2%}", f"probe {row['probe_features']:.2%}"]
    if "recon_l2" in row:
        parts.append(f"reconstruction {row['recon_l2']:.2f} of {row['recon_l2_baseline']:.2f}")
    return " | ".join([*parts, f"{row['seconds']:.0f} s"])


FEATURE_LEARNING = Kind(FeatureLearner, adversarial_name, ADVERSARIAL_METRICS, adversarial_line)
