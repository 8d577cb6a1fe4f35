"""Runs the trials of a sweep through Ray Tune, so that whatever dies can go on.

Tune's own restore takes what its last snapshot knew, forgets the scheduler, and is not used: what
has happened is read from the trials' folders, and every start is a new Tune run over the rest.
"""

import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler, pbt
from ray.tune.search import Searcher

from rayssl.files import write_whole
from rayssl.jobs import Fit, Job
from rayssl.rllib.start import record_start
from rayssl.rllib.stopping import (
    FAILURE,
    StopAtNextReport,
    StopAtSteps,
    ends_with_own_errors,
)
from rayssl.sweeps.axes import Axes, LogRange, Trial, settings_to_json, several, trials_of_points
from rayssl.sweeps.folder import FAILED, FINISHED, LOST, RUNNING, STOPPED, WAITING, SweepFolder
from rayssl.sweeps.hparams import write_hparams

PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
OBJECTIVE = "objective"  # in every result: what searchers and schedulers judge by
RETRIES = 3  # of a trial whose process or node died
REDUCTION = 3  # of ASHA: the share of trials that goes on at each rung is a third
LINE_EVERY_S = 20.0


@contextmanager
def starting_together(trials: int) -> Iterator[None]:
    """Lets Tune start the processes of so many trials side by side.

    Of a custom search it would start each only when the one before it is up.
    A searcher that learns from results is asked for one trial after the other, as before.

    Source: ray/tune/execution/tune_controller.py, `_get_max_pending_trials`.
    """
    before = os.environ.get(PENDING)
    os.environ.setdefault(PENDING, str(trials))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PENDING, None)


@dataclass(frozen=True)
class Place:
    """What each trial gets: cores and GPUs of its own process; how many of them run side by side.

    Attributes:
      nodes: what is free on each node of the cluster, before the sweep starts.
      limited: no more than `at_once` run even if nodes join later.
    """

    cpus: int
    gpus: float
    nodes: list[dict[str, float]]
    at_once: int
    limited: bool

    def fit(self, job: Job, settings: Any) -> Fit:
        """Returns what the processes of a trial ask for."""
        return job.fit(settings, self.cpus, self.gpus, self.nodes)


def as_trial(trainable: Any, job: Job) -> Any:
    """Returns a trainable whose results have OBJECTIVE, and whose own errors end it at once."""
    once: Any = ends_with_own_errors(trainable)

    class SweepTrial(once):
        def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
            self._settings = job.from_json(config)
            # The checkpoint of an earlier start is gone when this start has one of its own, from
            # which Tune restores a trial whose process died.
            before = config.get("restore_from")
            there = before if before and Path(before).is_dir() else None
            super().__init__(config | {"restore_from": there}, **kwargs)

        def step(self) -> dict[str, Any]:
            result: dict[str, Any] = super().step()
            value = None if FAILURE in result else job.objective(result, self._settings)
            return result if value is None else result | {OBJECTIVE: value}

    return SweepTrial


class TrialQueue(Searcher):
    """Hands Tune one trial after another: those that wait, then those that a searcher draws.

    Args:
      configs: of trials that wait, in order.
      draw: returns further configs, or none when all are drawn.
      at_once: most trials under way, so that what is drawn can learn from those before; None: as
        many as Tune finds room for.
      room: trials that there is room for now. One more is handed out, and waits for a node that
        joins, when all have reported. None: nobody knows.
      mode: of the objective.
    """

    def __init__(
        self, configs: Sequence[dict[str, Any]], draw: Any, at_once: int | None, mode: str,
        room: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(metric=OBJECTIVE, mode=mode)
        self._waiting, self._draw, self._at_once = list(configs), draw, at_once
        self._room = room
        self._live: set[str] = set()
        self._reported: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's config, None to wait for others, or FINISHED."""
        if StopAtSteps.asked:
            return Searcher.FINISHED
        if self._at_once is not None and len(self._live) >= self._at_once:
            return None
        full = self._room is not None and len(self._live) >= self._room
        if full and self._live - self._reported:
            return None  # after Ctrl-C, what waits would start, and run to its first report
        if not self._waiting and self._draw is not None:
            self._waiting = self._draw()
        if not self._waiting:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return self._waiting.pop(0)

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        """Notes that a trial has started."""
        self._reported.add(trial_id)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Notes that a trial is over."""
        self._live.discard(trial_id)
        self._reported.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing of worth: see the text above."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing."""


class OptunaDraws:
    """Optuna's proposals (TPE), each for every seed; told the mean of the seeds' last objectives.

    The state stands in search.pkl, written after each proposal and each answer. It is unpickled on
    a resume, as Tune's own files are: resume only what you trust.

    Attributes:
      exhausted: twenty proposals in a row were of trials that are there already.
    """

    def __init__(
        self, folder: SweepFolder, base: Any, axes: Axes, seeds: Sequence[int], samples: int,
        seed: int, first_group: int,
    ) -> None:  # fmt: skip
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._folder, self._base, self._axes, self._seeds = folder, base, axes, seeds
        self._samples, self._first = samples, first_group
        self.exhausted = False
        self._path = folder.path / "search.pkl"
        space = {name: _distribution(axis) for name, axis in axes.items()}
        mode = folder.job.mode
        self._search = OptunaSearch(space, metric=OBJECTIVE, mode=mode, seed=seed)
        self._search.told = set()
        if self._path.exists():
            self._search.restore(str(self._path))
        for group in {t.group for t in folder.trials if t.group >= first_group}:
            self.tell(group)

    def draw(self) -> list[Trial]:
        """Returns the trials of one more proposal; none if all samples are drawn."""
        group = len({t.group for t in self._folder.trials})
        if group - self._first >= self._samples:
            return []
        for attempt in range(20):  # a proposal that was run already is answered and drawn again
            number = f"{group}.{attempt}"
            point = self._search.suggest(number)
            known = self._folder.trials
            job = self._folder.job
            found = trials_of_points(job, self._base, self._axes, [point], self._seeds, known)
            if found and _all_can_work(job, found):
                self._search.number_of = getattr(self._search, "number_of", {}) | {group: number}
                self._save()
                return found
            self._search.on_trial_complete(number, error=True)
        self.exhausted = True
        return []

    def tell(self, group: int) -> None:
        """Answers a proposal if all its trials are over; a failed one makes it a failure."""
        trials = [t for t in self._folder.trials if t.group == group]
        number = getattr(self._search, "number_of", {}).get(group)
        if number is None or group in self._search.told:
            return
        if not all(self._folder.is_over(t) for t in trials):
            return
        values = [self._folder.result_of(t) for t in trials]
        failed = any(self._folder.row(t.name)["status"] == FAILED for t in trials)
        known = [value for value in values if value is not None]
        if failed or not known:
            self._search.on_trial_complete(number, error=True)
        else:
            self._search.on_trial_complete(number, {OBJECTIVE: sum(known) / len(known)})
        self._search.told.add(group)
        self._save()

    def finished(self) -> list[Any]:
        """Returns Optuna's records of the proposals that it knows the value of."""
        from optuna.trial import TrialState

        found: list[Any] = self._search._ot_study.get_trials(states=[TrialState.COMPLETE])
        return found

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        self._search.save(str(part))
        part.replace(self._path)


def _all_can_work(job: Job, trials: Sequence[Trial]) -> bool:
    try:
        for trial in trials:
            job.check(trial.settings)
    except ValueError:
        return False
    return True


def _distribution(axis: Any) -> Any:
    """An axis as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, LogRange):
        return CategoricalDistribution(axis)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=True)
    return FloatDistribution(axis.low, axis.high, log=True)


class AshaFromLogs(ASHAScheduler):
    """ASHA that knows the results of earlier starts from the trials' logs.

    The plain baseline is never stopped: every comparison needs it.
    """

    def __init__(self, folder: SweepFolder, waiting: Sequence[Trial], planned: int) -> None:
        job = folder.job
        self.job, self.folder = job, folder
        self.by_name = {trial.name: trial for trial in waiting}
        super().__init__(
            time_attr=job.unit, metric=OBJECTIVE, mode=job.mode, max_t=planned,
            grace_period=asha_grace(planned), reduction_factor=REDUCTION,
        )  # fmt: skip
        for trial in folder.trials:
            if trial.name not in self.by_name:
                self._replay(_Known(trial.name), trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Adds a trial with what it did in earlier starts."""
        super().on_trial_add(tune_controller, trial)
        if trial.config["trial"] in self.by_name:
            self._replay(trial, self.by_name[trial.config["trial"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether the trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        plain = trial.config.get("aux_task") == "none"
        return TrialScheduler.CONTINUE if plain else decision

    def _replay(self, known: Any, trial: Trial) -> None:
        for row in self.job.rows(self.folder.of(trial.name)):
            value = self.job.objective(row, trial.settings)
            if value is not None:
                progress = row[self.job.unit]
                self._brackets[0].on_result(known, progress, self._metric_op * value)


@dataclass(frozen=True)
class _Known:
    """What a bracket needs to know of a trial of an earlier start."""

    trial_id: str


def asha_grace(planned: int) -> int:
    """Returns the progress before which ASHA stops no trial: two rungs before the end."""
    return max(1, planned // REDUCTION**2)


def pbt_interval(planned: int) -> int:
    """Returns the progress between two adaptations: a tenth of the training, at least 1."""
    return max(1, planned // 10)


class _WithoutSearcher:
    """Tune's controller, as it looks to a scheduler that refuses searchers."""

    search_alg = None


class Population(PopulationBasedTraining):
    """PBT over the sweep's own list of trials.

    Tune refuses PBT beside anything that hands out trials, because a searcher would learn from
    settings that PBT has changed since; `TrialQueue` learns nothing.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial into the population; asks the controller for nothing but its searcher."""
        super().on_trial_add(_WithoutSearcher(), trial)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        """Takes the settings that PBT changes; name, cores and folder remain the trial's own."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        changed = {name: config[name] for name in self._hyperparam_mutations}
        return trial.config | changed, operations


def population_based(job: Job, axes: Axes, planned: int, seed: int) -> Population:
    """Returns PBT that changes the axes within their ranges or along their lists."""
    import random

    random.seed(seed)  # PBT draws from the global generators
    # It would have processes reused; ours build what belongs to their settings anew.
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
    logging.getLogger(pbt.__name__).setLevel(logging.WARNING)  # SweepLog says it by trials' names
    changing = several(axes)

    def within(config: dict[str, Any]) -> dict[str, Any]:
        for name, axis in changing.items():
            if isinstance(axis, LogRange):
                config[name] = min(max(config[name], axis.low), axis.high)
        return config

    return Population(
        time_attr=job.unit, metric=OBJECTIVE, mode=job.mode,
        perturbation_interval=pbt_interval(planned), require_attrs=False, log_config=False,
        hyperparam_mutations={
            k: tune.loguniform(a.low, a.high) if isinstance(a, LogRange) else sorted(a)
            for k, a in changing.items()
        },
        custom_explore_fn=within,
    )  # fmt: skip


class SweepLog(tune.Callback):
    """Writes every trial's folder and the sweep's table as results come, and prints lines.

    Args:
      folder: of the sweep.
      made: `rayssl.cli.provenance` of the sweep, for each trial's settings.json.
      resumed_at: progress of the checkpoints that trials go on from.
      draws: told when a trial is over, if there is a searcher.
      adapts: settings that change while trials run.
    """

    def __init__(
        self, folder: SweepFolder, made: dict[str, Any], resumed_at: dict[str, int],
        draws: OptunaDraws | None, adapts: Sequence[str],
    ) -> None:  # fmt: skip
        self._folder, self._made, self._resumed_at = folder, made, resumed_at
        self._draws, self._adapts = draws, adapts
        self._writers: dict[str, Any] = {}
        self._failures: dict[str, str] = {}
        self._settings: dict[str, Any] = {}
        self._last_lines: dict[str, float] = {}  # trial -> when it last had a line

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: Tune pickles its callbacks, and this one is not read back."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Opens the trial's log, once in each start of the sweep."""
        name = trial.config["trial"]
        if name in self._writers:  # a retry, or a trial that a scheduler had paused
            return
        job, path = self._folder.job, self._folder.of(name)
        path.mkdir(parents=True, exist_ok=True)
        self._settings[name] = job.from_json(trial.config)
        own = self._made | {"settings": settings_to_json(self._settings[name])}
        record_start(path, own)
        self._folder.start(name)
        self._writers[name] = job.open_log(path, name, self._resumed_at.get(name, 0))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes one result."""
        name, job = trial.config["trial"], self._folder.job
        if FAILURE in result:
            self._failures[name] = result[FAILURE]
            return
        if self._adapts:
            self._note_adaptation(name, trial.config, result[job.unit])
        self._writers[name](result, self._settings[name])
        self._folder.report(name, float(result.get("time_this_iter_s", 0.0)))
        running = sum(row["status"] == RUNNING for row in self._folder.rows())
        now = time.monotonic()
        if now - self._last_lines.get(name, -math.inf) >= LINE_EVERY_S * running:
            self._last_lines[name] = now
            self._print(name, job.line(result, self._settings[name]))

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Removes the checkpoints of earlier starts: this start has one of its own now."""
        for left in self._folder.of(trial.config["trial"]).glob("checkpoint_*"):
            if _index(left) <= trial.config["checkpoints_before"]:
                shutil.rmtree(left, ignore_errors=True)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts and names a retry."""
        name = trial.config["trial"]
        self._folder.retry(name)
        left = RETRIES - trial.run_metadata.num_failures
        self._print(name, f"its process died; goes on from its checkpoint ({left} retries left)")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Notes how a trial ended; its last checkpoint is written by now."""
        name = trial.config["trial"]
        row = self._folder.row(name)
        if name in self._failures:
            self._end(name, FAILED, self._failures[name])
            return
        self._folder.report(name, 0.0)
        done = (trial.last_result or {}).get(row["unit"], row["done"])
        if done >= row["planned"]:
            self._end(name, FINISHED)
        else:
            self._end(name, WAITING if StopAtSteps.asked else STOPPED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Notes that a trial died for good."""
        path = Path(trial.error_file) if trial.error_file else None
        text = path.read_text() if path and path.is_file() else "its process died"
        self._end(trial.config["trial"], LOST, text)

    def _end(self, name: str, status: str, error: str = "") -> None:
        self._folder.end(name, status, error)
        row = self._folder.row(name)
        if status in (FINISHED, STOPPED):
            write_hparams(self._folder.of(name) / "tb", row)
        if self._draws is not None:
            self._draws.tell(next(t.group for t in self._folder.trials if t.name == name))
        value = row["reported"] if row["reported"] is not None else row["final"]
        figure = "" if value is None else f", {row['metric']} {value:.4g}"
        text = f"{status} at {row['done']:,} of {row['planned']:,} {row['unit']}{figure}"
        self._print(name, text + (f": {row['error']}" if row["error"] else ""))

    def _note_adaptation(self, name: str, config: dict[str, Any], progress: int) -> None:
        """Keeps in settings.json what a scheduler changed, so that a resume goes on with it."""
        changed = {k: config[k] for k in self._adapts}
        before = self._settings[name]
        if all(getattr(before, k) == v for k, v in changed.items()):
            return
        self._settings[name] = self._folder.job.from_json(settings_to_json(before) | changed)
        path = self._folder.of(name) / "settings.json"
        saved = json.loads(path.read_text())
        saved["adapted"] = [*saved.get("adapted", []), {"done": progress, **changed}]
        write_whole(path, json.dumps(saved, indent=1))
        values = ", ".join(f"{name} {value:.4g}" for name, value in changed.items())
        self._print(name, f"took over a better trial's weights at {progress:,}, now {values}")

    def _print(self, name: str, text: str) -> None:
        rows = self._folder.rows()
        over = sum(row["status"] in (FINISHED, STOPPED, FAILED, LOST) for row in rows)
        print(f"[{over}/{len(rows)}] {name}: {text}", flush=True)


def adapted(path: Path) -> dict[str, Any]:
    """Returns the settings that a scheduler last changed in a trial, from its settings.json."""
    try:
        found = json.loads((path / "settings.json").read_text()).get("adapted", [])
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found[-1].items() if k != "done"} if found else {}


def trial_config(folder: SweepFolder, trial: Trial, place: Place, adapts: Sequence[str]) -> Any:
    """Returns a trial's Tune config, and the progress of the checkpoint that it goes on from."""
    checkpoint = folder.job.newest_checkpoint(folder.of(trial.name))
    there = [_index(path) for path in folder.of(trial.name).glob("checkpoint_*")]
    config = settings_to_json(trial.settings)
    if adapts:
        config |= adapted(folder.of(trial.name))
    config |= {
        "trial": trial.name, "cpus": place.cpus, "adapts": list(adapts),
        "bundles": place.fit(folder.job, trial.settings).bundles,
        "restore_from": str(checkpoint[0].resolve()) if checkpoint else None,
        "checkpoints_before": max(there, default=-1),
    }  # fmt: skip
    return config, checkpoint[1] if checkpoint else 0


def _index(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("_")[2])


def run_trials(
    folder: SweepFolder,
    waiting: Sequence[Trial],
    *,
    axes: Axes,
    place: Place,
    examples: Sequence[Any],
    made: dict[str, Any],
    scheduler: str,
    draws: OptunaDraws | None,
    further: int,
    seed: int,
    callbacks: Sequence[Any] = (),
) -> None:
    """Runs what waits, and what a searcher draws; returns when all is over or a stop was asked for.

    Args:
      waiting: trials that are not over, in order.
      axes: of the command line.
      place: what each trial gets.
      examples: settings of every kind that may run.
      made: `rayssl.cli.provenance` of the sweep.
      scheduler: none, asha or pbt.
      draws: the searcher, if there is one.
      further: trials that it may still draw, at most.
      seed: of what a scheduler draws.
      callbacks: Tune's own loggers.
    """
    job = folder.job
    adapts = [k for k in axes if k in job.adaptable] if scheduler == "pbt" else []
    resumed_at: dict[str, int] = {}

    def configs(trials: Sequence[Trial]) -> list[dict[str, Any]]:
        found = []
        for trial in trials:
            config, resumed_at[trial.name] = trial_config(folder, trial, place, adapts)
            found.append(config)
        return found

    def draw() -> list[dict[str, Any]]:
        assert draws is not None
        trials = draws.draw()
        folder.add(trials, axes)
        folder.write_sweep(made, axes)
        return configs(trials)

    def dirname(trial: Any) -> str:
        # Checkpoints are numbered on from those that are there: Tune would start at 0 again.
        trial.storage.current_checkpoint_index = trial.config["checkpoints_before"]
        return str(trial.config["trial"])

    planned = max(map(job.planned, examples))
    schedulers = {
        "none": lambda: None,
        "asha": lambda: AshaFromLogs(folder, waiting, planned),
        "pbt": lambda: population_based(job, axes, planned, seed),
    }
    every = min(map(job.checkpoint_every, examples))
    at_once = place.at_once if place.limited else None
    queue = TrialQueue(configs(waiting), draw if draws else None, at_once, job.mode, place.at_once)
    tuner = tune.Tuner(
        as_trial(job.trainable(examples), job),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            scheduler=schedulers[scheduler](),
            num_samples=len(waiting) + further,
            trial_dirname_creator=dirname,
            trial_name_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name=folder.path.resolve().name,
            storage_path=str(folder.path.resolve().parent),
            stop=StopAtNextReport(),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=every,
                checkpoint_at_end=True,
                num_to_keep=3 if adapts else 1,  # PBT copies checkpoints of other trials
            ),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[
                SweepLog(folder, made, resumed_at, draws, adapts),
                *callbacks,
            ],
            verbose=0,
        ),
    )
    with starting_together(place.at_once if draws is None else 1):
        tuner.fit()
    sys.stdout.flush()
