"""Trains a BiGAN or BigBiGAN through Ray Tune, and says what its encoder has learnt.

    python experiments/bigan.py --dataset digits --epochs 20
    python experiments/bigan.py --dataset mnist --data-dir data                 # 400 epochs
    python experiments/bigan.py --model bigbigan --dataset DIR --size 64
    python experiments/bigan.py --resume results/local/bigan-mnist

Ends with 1-nearest-neighbour and linear accuracies of the encoder's features and the
reconstruction error, beside those of Donahue et al. 2016; grids of samples and reconstructions
lie in images/ and in TensorBoard.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # EpochLog writes the logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

from rayssl.bigan_report import bigan_report, plot_bigan
from rayssl.cli import experiment_folder, parse_experiment
from rayssl.epoch_experiment import Experiment, check_at_least, run_experiment
from rayssl.jobs.bigan import BiganTrial
from rayssl.trainables import FEATURE_LEARNING


@dataclass(frozen=True)
class BiganRun:
    """Settings of one experiment: every seed is one trial. Left out: the model's own values."""

    model: Literal["bigan", "bigbigan"] = "bigan"
    """bigan: Donahue et al. 2016's MNIST networks; bigbigan: Donahue & Simonyan 2019's, small."""
    dataset: str = "mnist"
    """mnist, fashion-mnist, digits (no files needed), or a folder of images."""
    data_dir: Path | None = None
    """Folder of mnist's files; default: the environment's RAYSSL_DATA, else data."""
    verify: bool = True
    """Refuse files of mnist that are not the published ones."""
    size: int | None = None
    """Side of an image in pixels; bigan 28, bigbigan 32 (or 64, 128)."""
    epochs: int | None = None
    """Passes over the training images; bigan 400, bigbigan 50."""
    batch_size: int | None = None
    """Images an update; 128."""
    lr: float | None = None
    """Adam's learning rate; 2e-4."""
    encoder_lr: float | None = None
    """That of bigbigan's encoder; 2e-3."""
    beta1: float | None = None
    """Adam's decay of the first moment; 0.5."""
    decay_share: float | None = None
    """Share of the epochs, at the end, in which lr falls to 1%; bigan 0.5, bigbigan 0."""
    weight_decay: float | None = None
    """bigan's L2; 2.5e-5."""
    z_dim: int | None = None
    """Numbers in a code; bigan 50, bigbigan 120."""
    width: int | None = None
    """Units of dense layers; bigan 1024, bigbigan 512."""
    channels: int | None = None
    """Channels of bigbigan's largest map; 64."""
    d_steps: int | None = None
    """Updates of bigbigan's discriminator for one of encoder and generator; 2."""
    ema: float | None = None
    """Decay of the average of bigbigan's generator, after a warm-up; 0.999."""
    eval_every: int | None = None
    """Epochs from one evaluation to the next; 25. The first and the last are evaluated too."""
    statistics_batches: int | None = None
    """Batches that BatchNorm's statistics are averaged over before an evaluation; 1000."""
    seeds: int = 1
    """Number of seeds: 0, 1, ..."""
    num_cpus: int = 1
    """CPU cores a trial; as many trials run at once as there is room for."""
    num_gpus: float = 0.0
    """GPUs a trial, 0.25 for four trials on one."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the experiment's folder is made; on a cluster, a folder that all nodes see."""
    name: str | None = None
    """The experiment's folder; default: model and data set."""
    resume: Path | None = None
    """Go on with an experiment's folder; finished trials are kept."""


def trials(run: BiganRun) -> list[BiganTrial]:
    """Returns one trial per seed.

    Raises:
      ValueError: for a value that no trial can have.
    """
    check_at_least(run)
    names = {field.name for field in dataclasses.fields(BiganTrial)} - {"seed"}
    given = {name: getattr(run, name) for name in names}
    return [BiganTrial(**given, seed=seed) for seed in range(run.seeds)]


def make_experiment(argv: Sequence[str] | None = None) -> Experiment:
    """Returns the experiment of a command line.

    Raises:
      ValueError, OSError: for a value, files or a folder that no experiment can have.
    """
    run = parse_experiment(BiganRun, argv)
    first, *others = trials(run)
    default = f"{run.model}-{Path(run.dataset).resolve().name}"
    dataset = Path(run.dataset).name
    return Experiment(
        run=run,
        kind=FEATURE_LEARNING,
        folder=run.resume or experiment_folder(run.results_dir, run.name, default),
        configs=[trial.config() | {"num_cpus": run.num_cpus} for trial in (first, *others)],
        data=first.data(),  # the seeds share it
        title=default,
        report=lambda rows: bigan_report(rows, dataset=dataset),
        plot=lambda rows, path: plot_bigan(rows, path, title=f"{run.model}, {dataset}"),
    )


def main(argv: Sequence[str] | None = None) -> str:
    """Runs the experiment of a command line and returns its tables as markdown."""
    return run_experiment(lambda: make_experiment(argv))


if __name__ == "__main__":
    main()
