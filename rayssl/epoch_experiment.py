"""An experiment of trials that run by the epoch, from its command line to its tables and figure."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rayssl.cli import check_writable, provenance, refuse, remove_empty
from rayssl.data import ImageSplits
from rayssl.files import hold
from rayssl.report import read_epochs
from rayssl.rllib.resources import check_trial_fits
from rayssl.rllib.start import check_shared, ray_address, record_start, start_ray
from rayssl.rllib.stopping import stop_on_signals
from rayssl.trainables import IMAGES, Kind, pending, run_trials

UNFINISHED = 75  # exit code: run the same command with --resume to go on


@dataclass(frozen=True)
class Experiment:
    """What a command line asks for.

    Attributes:
      run: the script's settings: num_cpus and num_gpus of a trial, address, resume.
      kind: of the trials.
      folder: where the results lie.
      configs: one per trial.
      data: the images of all trials.
      title: what is trained and on what, for people.
      report: rows of epochs.jsonl -> tables as markdown.
      plot: rows, path of a PNG -> the figure's path.
    """

    run: Any
    kind: Kind
    folder: Path
    configs: list[dict[str, Any]]
    data: ImageSplits
    title: str
    report: Callable[[Sequence[dict[str, Any]]], str]
    plot: Callable[[Sequence[dict[str, Any]], Path], Path]


def check_at_least(run: Any) -> None:
    """Raises ValueError for numbers of seeds, cores or GPUs that no experiment can have."""
    for name, least in (("seeds", 1), ("num_cpus", 1), ("num_gpus", 0)):
        if not getattr(run, name) >= least:
            raise ValueError(
                f"--{name.replace('_', '-')} must be {least} or more, got {getattr(run, name)}."
            )


def run_experiment(make: Callable[[], Experiment]) -> str:
    """Runs the trials that have not finished and returns the tables of all as markdown.

    Args:
      make: returns the experiment; its ValueError or OSError is the user's mistake.
    Raises:
      SystemExit: with code 2 and one line for a mistake, before anything is written; after the
        tables with 1 if trials failed, with `UNFINISHED` if the experiment was stopped.
    """
    with contextlib.ExitStack() as held:
        return _run(make, held)


def _run(make: Callable[[], Experiment], held: contextlib.ExitStack) -> str:
    made: list[Path] = []
    try:
        own = make()
        run, folder = own.run, own.folder
        made = check_writable(folder)
        held.enter_context(hold(folder))
        left = pending(read_epochs(folder), folder, own.configs, own.kind)
        if left:
            start_ray(ray_address(run.address))
            check_shared(folder)
            check_trial_fits(run.num_cpus, run.num_gpus)
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    failed: list[str] = []
    if left:
        record_start(folder, provenance(dataclasses.replace(run, resume=None)))
        count = f"{len(left)} of {len(own.configs)} trials to run"
        print(f"{own.title}: {count} -> {folder}", flush=True)
        stop_on_signals("stopping; every trial keeps its last whole epoch")
        failed = run_trials(
            own.kind, folder, left, own.data, num_cpus=run.num_cpus, num_gpus=run.num_gpus
        )
        ray.shutdown()
    return _finish(own, failed)


def _finish(own: Experiment, failed: list[str]) -> str:
    """Writes and prints tables and figure of all epochs so far; exits with 1 or 75 if some miss."""
    folder, rows = own.folder, read_epochs(own.folder)
    left = len(pending(rows, folder, own.configs, own.kind))
    report = ""
    if rows:
        report = own.report(rows)
        (folder / "report.md").write_text(report + "\n")
        print(f"\n{report}\n\ncurves: {own.plot(rows, folder / 'curves.png')}")
        if (folder / IMAGES).is_dir():
            print(f"samples and reconstructions: {folder / IMAGES}")
        print(f"logs: {folder} (tensorboard --logdir {folder / 'tb'})")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if left:
        print(
            f"{left} of {len(own.configs)} trials have not finished; go on with --resume {folder}"
        )
        raise SystemExit(1 if failed else UNFINISHED)
    return report
