"""Trains Table V's classifier with and without a rotation head, over seeds, through Ray Tune.

    python experiments/mnist.py --seeds 5
    python experiments/mnist.py --protocol paper paper-code strict --seeds 5 --num-cpus 1
    python experiments/mnist.py --resume results/local/mnist

Section V-B and VI-A of the paper. Ends with Tables I and II beside the paper's numbers, the
confusions 2/5 and 6/9, the pretext accuracy of each digit, and Figure 8 (PNG).
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # EpochLog writes the logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
import tyro
from ray import tune

from rayssl.classification_report import classification_report, plot_classification
from rayssl.cli import check_writable, provenance, refuse, remove_empty
from rayssl.data import ImageSplits, load_dataset
from rayssl.report import read_epochs
from rayssl.rllib.resources import free_resources
from rayssl.rllib.start import check_shared, ray_address, record_start, start_ray
from rayssl.rllib.stopping import StopWhenAsked, stop_on_signals
from rayssl.tasks import make_task
from rayssl.trainables import (
    EpochLog,
    ImageClassifier,
    newest_checkpoint,
    settings_of,
    trial_name,
)
from rayssl.training import AuxCopies, ClassifierSettings, ComputeDtype

UNFINISHED = 75  # exit code: run the same command with --resume to go on


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
    """Returns the settings of a command line; with --resume those that the folder was started with.

    Raises:
      SystemExit: after --help, or with code 2 for an unknown option or value.
      ValueError: if a resumed experiment is asked to change, or its settings.json is damaged.
      FileNotFoundError: if the folder to resume holds no settings.json.
    """
    run = tyro.cli(MnistRun, args=argv)
    if run.resume is None:
        return run
    path = run.resume / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run.resume} is not the folder of an experiment: no {path.name}.")
    try:
        values = dict(json.loads(path.read_text())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Start anew with --name.") from error
    known = {f.name for f in dataclasses.fields(MnistRun)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    values |= {k: Path(values[k]) for k in ("data_dir", "results_dir") if values.get(k)}
    saved = MnistRun(**values | {"resume": run.resume})
    again = tyro.cli(MnistRun, args=argv, default=saved)
    may_differ = {"address", "data_dir", "results_dir"}
    for field in dataclasses.fields(MnistRun):
        old, new = getattr(saved, field.name), getattr(again, field.name)
        if old != new and field.name not in may_differ:
            raise ValueError(
                f"{run.resume} was started with {field.name} {old}, got {new}. A resumed "
                "experiment keeps its settings; start another one with --name."
            )
    return again


def trials(run: MnistRun) -> list[dict[str, Any]]:
    """Returns one config per trial: protocols x tasks x weights x seeds, checked.

    Raises:
      ValueError: for a value that no trial can have.
    """
    for name, least in (("seeds", 1), ("num_cpus", 1), ("num_gpus", 0)):
        if not getattr(run, name) >= least:
            raise ValueError(
                f"--{name.replace('_', '-')} must be {least} or more, got {getattr(run, name)}."
            )
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
                        epochs=run.epochs, batch_size=run.batch_size, lr=run.lr,
                        compute_dtype=run.compute_dtype,
                    )  # fmt: skip
                    settings.check()
                    config = dataclasses.asdict(settings) | {"num_cpus": run.num_cpus}
                    found[trial_name(config)] = config
    return list(found.values())


def pending(folder: Path, configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the configs of trials that have not finished, each with its newest checkpoint."""
    rows = read_epochs(folder)
    left = [
        config
        for config in configs
        if len([row for row in rows if row["trial"] == trial_name(config)]) < config["epochs"]
    ]
    for config in left:
        checkpoint = newest_checkpoint(folder, trial_name(config))
        config["restore_from"] = str(checkpoint.resolve()) if checkpoint else None
    return left


def train(run: MnistRun, folder: Path, configs: list[dict[str, Any]], data: Any) -> tune.ResultGrid:
    """Runs these trials through Tune, as many at once as there is room for."""
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(ImageClassifier, data=data),
            {"CPU": run.num_cpus, **({"GPU": run.num_gpus} if run.num_gpus else {})},
        ),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            trial_dirname_creator=lambda t: f"{trial_name(settings_of(t.config))}_{t.trial_id}"
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.resolve()),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=2),
            stop=StopWhenAsked(),
            callbacks=[EpochLog(folder, len(configs))],
            verbose=0,
        ),
    ).fit()


def check_resources(run: MnistRun) -> None:
    """Raises ValueError if no node has room for one trial: Ray would wait for ever."""
    nodes = free_resources()
    if any(
        node.get("CPU", 0) >= run.num_cpus and node.get("GPU", 0) >= run.num_gpus for node in nodes
    ):
        return
    most = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ValueError(
        f"A trial needs {run.num_cpus} CPUs and {run.num_gpus:g} GPUs on one node, the largest has "
        f"{most.get('CPU', 0):g} and {most.get('GPU', 0):g} free. Lower --num-cpus or --num-gpus."
    )


def main(argv: Sequence[str] | None = None) -> str:
    """Runs the experiment of a command line and returns its tables as markdown."""
    made: list[Path] = []
    try:
        run = parse(argv)
        configs = trials(run)
        folder = run.resume or run.results_dir / (run.name or run.dataset)
        if run.name is not None and (Path(run.name).name != run.name or run.name == ".."):
            raise ValueError(
                f"--name must be a plain folder name, got '{run.name}'. See --results-dir."
            )
        if run.resume is None and (folder / "settings.json").exists():
            raise FileExistsError(
                f"{folder} holds an experiment already. Go on with --resume {folder}, or choose "
                "--name."
            )
        data = load_dataset(run.dataset, run.data_dir, verify=run.verify)
        check_trainable(data, configs)
        made = check_writable(folder)
        left = pending(folder, configs)
        if left:
            start_ray(ray_address(run.address))
            check_shared(folder)
            check_resources(run)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    failed: list[str] = []
    if left:
        record_start(folder, provenance(dataclasses.replace(run, resume=None)))
        print(f"{run.dataset}: {len(left)} of {len(configs)} trials to run -> {folder}", flush=True)
        stop_on_signals("stopping; every trial keeps its last whole epoch")
        for result in train(run, folder, left, data):
            if result.error is not None:
                last_line = str(result.error).strip().splitlines()[-1]
                failed.append(f"{trial_name(settings_of(result.config))} failed: {last_line}")
        ray.shutdown()
    return finish(run, folder, configs, failed)


def check_trainable(data: ImageSplits, configs: list[dict[str, Any]]) -> None:
    """Raises ValueError for a task that cannot take these images, before any trial starts."""
    for task in {config["aux_task"] for config in configs} - {"none"}:
        make_task(task).every_class(data.train_x[:1])


def finish(run: MnistRun, folder: Path, configs: list[dict[str, Any]], failed: list[str]) -> str:
    """Writes and prints tables and figure of all epochs so far; exits with 1 or 75 if some miss."""
    rows = read_epochs(folder)
    left = len(pending(folder, configs))
    if rows:
        report = classification_report(rows, dataset=run.dataset)
        (folder / "report.md").write_text(report + "\n")
        curves = plot_classification(rows, folder / "curves.png", title=run.dataset)
        print(
            f"\n{report}\n\ncurves: {curves}\nlogs: {folder} (tensorboard --logdir {folder / 'tb'})"
        )
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if left:
        print(f"{left} of {len(configs)} trials have not finished; go on with --resume {folder}")
        raise SystemExit(1 if failed else UNFINISHED)
    return report


if __name__ == "__main__":
    main()
