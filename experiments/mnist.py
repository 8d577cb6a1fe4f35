"""Trains Table V's classifier with and without a rotation head, over seeds, through Ray Tune.

    python experiments/mnist.py --seeds 5
    python experiments/mnist.py --protocol paper paper-code strict --seeds 5 --num-cpus 1
    python experiments/mnist.py --resume results/local/mnist

Section V-B and VI-A of the paper. Ends with Tables I and II beside the paper's numbers, the
confusions 2/5 and 6/9, the pretext accuracy of each digit, and Figure 8 (PNG).
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # EpochLog writes the logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

from rayssl.classification_report import classification_report, plot_classification
from rayssl.cli import experiment_folder, parse_experiment
from rayssl.data import ImageSplits, load_dataset
from rayssl.epoch_experiment import Experiment, check_at_least, run_experiment
from rayssl.trainables import CLASSIFICATION, trial_name
from rayssl.training import AuxCopies, ClassifierSettings, ComputeDtype


@dataclass(frozen=True)
class MnistRun:
    """Settings of one experiment: every protocol x task x weight x seed is one trial."""

    protocol: tuple[str, ...] = ("paper",)
    """paper (the text), paper-code (the authors' code), strict (validation split, test once)."""
    aux_task: tuple[str, ...] = ("none", "rotation")
    """Pretext tasks to compare; none is the plain network."""
    aux_weight: tuple[float, ...] = (1.0,)
    """lambda of eq. (3); 1 in the paper. The task none has one trial, whatever the weights."""
    aux_copies: AuxCopies | None = None
    """one: a drawn rotation of each image; all: its four rotations. Default: the protocol's."""
    seeds: int = 1
    """Number of seeds: 0, 1, ..."""
    epochs: int = ClassifierSettings.epochs
    """Passes over the training images."""
    train_images: int | None = ClassifierSettings.train_images
    """Train on the first so many images only; default: all. The test set stays whole."""
    batch_size: int = ClassifierSettings.batch_size
    """Images an update."""
    lr: float = ClassifierSettings.lr
    """Learning rate of Adadelta, times 0.7 after each epoch."""
    compute_dtype: ComputeDtype = ClassifierSettings.compute_dtype
    """Of convolutions and the dense layer; bfloat16 is faster on CPUs and GPUs that have it."""
    dataset: str = "mnist"
    """mnist, fashion-mnist, or digits (scikit-learn's small images, no files needed)."""
    data_dir: Path | None = None
    """Folder of the data set's files; default: the environment's RAYSSL_DATA, else data."""
    verify: bool = True
    """Refuse files of mnist that are not the published ones."""
    num_cpus: int = 1
    """CPU cores a trial; as many trials run at once as there is room for."""
    num_gpus: float = 0.0
    """GPUs a trial, 0.25 for four trials on one."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the experiment's folder is made; on a cluster, a folder that all nodes see."""
    name: str | None = None
    """The experiment's folder; default: the data set's name."""
    resume: Path | None = None
    """Go on with an experiment's folder; finished trials are kept."""


def parse(argv: Sequence[str] | None = None) -> MnistRun:
    """Returns the settings of a command line: see `rayssl.cli.parse_experiment`."""
    return parse_experiment(MnistRun, argv)


def trials(run: MnistRun) -> list[dict[str, Any]]:
    """Returns one config per trial: protocols x tasks x weights x seeds, checked.

    Raises:
      ValueError: for a value that no trial can have.
    """
    check_at_least(run)
    for name in ("protocol", "aux_task", "aux_weight"):
        if not getattr(run, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one value, got none.")
    found: dict[str, dict[str, Any]] = {}
    for seed in range(run.seeds):
        for protocol in run.protocol:
            for task in run.aux_task:
                for weight in run.aux_weight if task != "none" else (1.0,):
                    settings = ClassifierSettings(
                        protocol=protocol, aux_task=task, aux_weight=weight, seed=seed,
                        aux_copies=None if task == "none" else run.aux_copies,
                        epochs=run.epochs, train_images=run.train_images,
                        batch_size=run.batch_size, lr=run.lr, compute_dtype=run.compute_dtype,
                    )  # fmt: skip
                    settings.check()
                    config = dataclasses.asdict(settings) | {"num_cpus": run.num_cpus}
                    found[trial_name(config)] = config
    return list(found.values())


def check_trainable(data: ImageSplits, configs: list[dict[str, Any]]) -> None:
    """Raises ValueError for what these images cannot serve, before any trial starts."""
    names = ("train_images", "protocol", "aux_task")
    for values in {tuple(config[name] for name in names) for config in configs}:
        ClassifierSettings(**dict(zip(names, values, strict=True))).check_data(data)


def make_experiment(argv: Sequence[str] | None = None) -> Experiment:
    """Returns the experiment of a command line.

    Raises:
      ValueError, OSError: for a value, files or a folder that no experiment can have.
    """
    run = parse(argv)
    configs = trials(run)
    folder = run.resume or experiment_folder(run.results_dir, run.name, run.dataset)
    data = load_dataset(run.dataset, run.data_dir, verify=run.verify)
    check_trainable(data, configs)
    return Experiment(
        run=run,
        kind=CLASSIFICATION,
        folder=folder,
        configs=configs,
        data=data,
        title=run.dataset,
        report=lambda rows: classification_report(rows, dataset=run.dataset),
        plot=lambda rows, path: plot_classification(rows, path, title=run.dataset),
    )


def main(argv: Sequence[str] | None = None) -> str:
    """Runs the experiment of a command line and returns its tables as markdown."""
    return run_experiment(lambda: make_experiment(argv))


if __name__ == "__main__":
    main()
