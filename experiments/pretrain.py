"""Pretrains a backbone: on an image folder over Ray Train, or on the frames of a game with RLlib.

    python experiments/pretrain.py atari --game pong --steps 100000    # the aux loss alone
    python experiments/pretrain.py atari --policy results/local/RUN    # frames of a trained player

A game's trunk is trained as experiments/atari.py trains it, with all its options, but for the TD
updates: there are none. Its checkpoint starts another run: experiments/atari.py --init-from DIR.

    python experiments/pretrain.py --data IMAGENET/train --workers 8 --gpus-per-worker 1
    python experiments/pretrain.py --data DIR --no-labels              # RotNet: rotation alone
    python experiments/pretrain.py --data DIR --aux-weight 0           # plain supervised training
    python experiments/pretrain.py --resume results/local/pretrain     # after Ctrl-C or kill -9

DIR holds one folder a class (torchvision's ImageFolder): labels and a pretext task at once; with
--no-labels any images below it. Ends with a table of the epochs and the weights, which
`rayssl.backbones` reads: so the row "AlexNet (backbone trained with ImageNet & Rotation)" of Table
III can be trained as the paper describes it.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
import tyro

from rayssl.cli import check_name, check_writable, provenance, refuse, remove_empty, value_of
from rayssl.data.class_folders import ClassFolders
from rayssl.files import hold
from rayssl.pretraining import BACKBONES, Arch, PretrainSettings, check_data, check_share
from rayssl.pretraining_job import (
    CHECKPOINT,
    PretrainJob,
    check_room,
    final_weights,
    load_checkpoint,
    read_progress,
    run_job,
)
from rayssl.report import markdown_table
from rayssl.rllib.start import ray_address, record_start, start_ray
from rayssl.rllib.stopping import StopAtSteps, stop_on_signals

UNFINISHED = 75  # exit code: run the same command with --resume to go on
SHOWN_EPOCHS = 10  # of the table; progress.jsonl has all


@dataclass(frozen=True)
class PretrainRun:
    """Settings of one pretraining; the defaults are RotNet's for AlexNet on ImageNet."""

    data: Path | None = None
    """Folder with one folder a class, of the images to train on; --no-labels: of any images."""
    validation: Path | None = None
    """The like, of images whose accuracies are measured after each epoch."""
    arch: Arch = PretrainSettings.arch
    """alexnet-rotnet has BatchNorm and no dropout; alexnet is torchvision's."""
    task: str = PretrainSettings.task
    """Pretext task; each image is seen under every one of its labels."""
    aux_weight: float = PretrainSettings.aux_weight
    """lambda of eq. (3); 0 is plain supervised training."""
    labels: bool = PretrainSettings.labels
    """Train on the folders' labels, too; --no-labels: the pretext task alone, as RotNet."""
    epochs: int = PretrainSettings.epochs
    """Passes over the images."""
    batch_size: int = PretrainSettings.batch_size
    """Images an update, of all workers together; rotated copies come on top."""
    lr: float = PretrainSettings.lr
    """Learning rate of SGD with Nesterov momentum."""
    lr_steps: tuple[int, ...] = PretrainSettings.lr_steps
    """Epochs after which lr is divided by ten."""
    momentum: float = PretrainSettings.momentum
    """Of SGD."""
    weight_decay: float = PretrainSettings.weight_decay
    """Of SGD."""
    image_size: int = PretrainSettings.image_size
    """Side of the images that the network sees, pixels."""
    sync_batch_norm: bool = PretrainSettings.sync_batch_norm
    """BatchNorm over the batches of all workers: their number does not change the result."""
    checkpoint_every: int = PretrainSettings.checkpoint_every
    """Updates between two checkpoints within an epoch; there is one after each epoch anyway."""
    seed: int = PretrainSettings.seed
    """Of weights, order of images, random parts and dropout."""
    workers: int = 1
    """Processes that share each batch, on one machine or a cluster."""
    cpus_per_worker: int = 1
    """CPU cores of each; with more than one, the others read images."""
    gpus_per_worker: float = 0.0
    """GPUs of each: 0 or 1, or a part of one for a single worker."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the run's folder is made; on a cluster, a folder that all nodes see."""
    name: str = "pretrain"
    """The run's folder."""
    resume: Path | None = None
    """Go on with a run's folder from its newest checkpoint."""


def parse(argv: Sequence[str] | None = None) -> PretrainRun:
    """Returns the settings of a command line; with --resume those that the folder was started with.

    Raises:
      SystemExit: after --help, or with code 2 for an unknown option or value.
      ValueError: if a resumed run is asked to change, or its settings.json is damaged.
      FileNotFoundError: if the folder to resume holds no settings.json.
    """
    run = tyro.cli(PretrainRun, args=argv)
    if run.resume is None:
        return run
    path = run.resume / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run.resume} is not the folder of a run: no {path.name}.")
    try:
        values = dict(json.loads(path.read_text())["settings"])
        values |= {k: Path(values[k]) for k in ("data", "validation", "results_dir") if values[k]}
        values["lr_steps"] = tuple(values["lr_steps"])
        saved = PretrainRun(**values | {"resume": run.resume})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Start anew with --name.") from error
    again = tyro.cli(PretrainRun, args=argv, default=saved)
    may_differ = {
        "address", "data", "validation", "results_dir", "workers", "cpus_per_worker",
        "gpus_per_worker",
    }  # fmt: skip
    for field in dataclasses.fields(PretrainRun):
        old, new = getattr(saved, field.name), getattr(again, field.name)
        if old != new and field.name not in may_differ:
            raise ValueError(
                f"{run.resume} was started with {field.name} {old}, got {new}. A resumed run "
                "keeps its settings; start another one with --name."
            )
    return again


def make_job(run: PretrainRun) -> PretrainJob:
    """Returns the job of these settings, checked against the images.

    Raises:
      ValueError: for a value that no job can have.
      FileNotFoundError: if a folder is not there.
    """
    if run.data is None:
        raise ValueError("--data is missing: the folder of images, with labels one folder a class.")
    check_name(run.name)
    for name in ("workers", "cpus_per_worker"):
        if getattr(run, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be 1 or more, got {getattr(run, name)}.")
    whole = run.gpus_per_worker in (0, 1)
    if not whole and not (0 < run.gpus_per_worker < 1 and run.workers == 1):
        raise ValueError(
            "--gpus-per-worker must be 0 or 1, or a part of one for a single worker, got "
            f"{run.gpus_per_worker:g}. Use more workers for more GPUs."
        )
    names = {field.name for field in dataclasses.fields(PretrainSettings)}
    settings = PretrainSettings(**{name: getattr(run, name) for name in names})
    settings.check()
    check_share(settings.batch_size, run.workers)
    folders = partial(ClassFolders, side=settings.image_size, labelled=settings.labels)
    train, validation = folders(run.data), folders(run.validation) if run.validation else None
    check_data(settings, train, validation)
    folder = run.resume or run.results_dir / run.name
    return PretrainJob(
        settings, run.data.resolve(), run.validation.resolve() if run.validation else None,
        folder.resolve(), run.workers, run.cpus_per_worker, run.gpus_per_worker,
    )  # fmt: skip


def pretrain_on_games(words: Sequence[str]) -> str:
    """Runs experiments/atari.py without TD updates and returns its table as markdown."""
    if value_of(words, "--schedule") is not None:
        refuse(
            "pretrain.py atari trains with the aux loss alone. For schedules that make TD updates "
            "use experiments/atari.py."
        )
    # A script's own folder is on the path, the folder above it is not.
    atari = import_module("experiments.atari" if __package__ else "atari")
    return markdown_table([atari.main(["--schedule", "aux-only", *words])])


def main(argv: Sequence[str] | None = None) -> str:
    """Runs the pretraining of a command line and returns its table as markdown."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["atari"]:
        return pretrain_on_games(words[1:])
    with contextlib.ExitStack() as held:
        return pretrain_on_images(argv, held)


def pretrain_on_images(argv: Sequence[str] | None, held: contextlib.ExitStack) -> str:
    """Is `main` for a folder of images; gives back what is `held` at the end."""
    made: list[Path] = []
    try:
        run = parse(argv)
        job = make_job(run)
        if run.resume is None and (job.folder / "settings.json").exists():
            raise FileExistsError(
                f"{job.folder} holds a run already. Go on with --resume {job.folder}, or choose "
                "--name."
            )
        check_checkpoint(job)
        made = check_writable(job.folder)
        held.enter_context(hold(job.folder))
        finished = final_weights(job.folder, job.settings) is not None
        if not finished:
            start_ray(ray_address(run.address))
            check_room(job)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    failed = ""
    if not finished:
        record_start(job.folder, provenance(dataclasses.replace(run, resume=None)))
        parts = (["labels"] if run.labels else []) + ([run.task] if run.aux_weight else [])
        workers = f"{run.workers} worker" + ("" if run.workers == 1 else "s")
        print(f"{run.arch}, {' and '.join(parts)}, {workers} -> {job.folder}", flush=True)
        stop_on_signals("stopping after this update, with a checkpoint; once more stops at once")
        failed = run_job(
            job,
            stop=lambda: StopAtSteps.asked,
            show=lambda line: print(line, flush=True),
        )
        ray.shutdown()
    return finish(job, failed)


def check_checkpoint(job: PretrainJob) -> None:
    """Raises ValueError if the newest checkpoint of a run cannot be read."""
    if (job.folder / CHECKPOINT).is_file():
        try:
            load_checkpoint(job.folder)
        except Exception as error:  # torch raises many classes for a damaged file
            raise ValueError(
                f"{job.folder / CHECKPOINT} cannot be read ({str(error).splitlines()[0]}). Delete "
                "it to begin again."
            ) from error


def finish(job: PretrainJob, failed: str) -> str:
    """Prints the table of all epochs so far and the weights; exits with 1 or 75 if some miss."""
    rows = [row for row in read_progress(job.folder) if row.get("epoch_done")]
    left_out = ("update", "updates", "epoch_done")
    table = markdown_table(
        [{k: v for k, v in row.items() if k not in left_out} for row in rows[-SHOWN_EPOCHS:]]
    )
    if rows:
        print(f"\n{table}\n")
    if failed:
        print(f"error: {failed}", file=sys.stderr)
    weights = final_weights(job.folder, job.settings)
    if weights is None:
        print(
            f"{len(rows)} of {job.settings.epochs} epochs have run; go on with --resume "
            f"{job.folder}"
        )
        raise SystemExit(1 if failed else UNFINISHED)
    print(f"weights of the backbone {BACKBONES[job.settings.arch][0]}: {weights}")
    print(f"logs: {job.folder} (tensorboard --logdir {job.folder / 'tb'})")
    return table


if __name__ == "__main__":
    main()
