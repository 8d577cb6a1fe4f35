"""Runs one job many times: over aux weights, tasks, schedules, any other setting, and seeds.

    python experiments/sweep.py mnist --aux-weight 0 0.1 1 --seeds 3 --dry-run
    python experiments/sweep.py atari --aux-task rotation permutation --set lr=1e-4,2e-4
    python experiments/sweep.py mnist --aux-weight log:0.01:3 --search optuna --samples 20
    python experiments/sweep.py --resume results/local/mnist-sweep

Ends with a table of all trials; the same stands in trials.csv (docs/results.md).
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # SweepLog writes the logs
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # no score before a game's end
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
import tyro

from rayssl.cli import check_name, check_writable, provenance, refuse, remove_empty, value_of
from rayssl.files import hold
from rayssl.jobs import Fit, Job, available_jobs, find_job
from rayssl.report import markdown_table
from rayssl.rllib.resources import count_fitting, free_after_ended, total_cpus
from rayssl.rllib.start import check_shared, ray_address, start_ray, with_starts
from rayssl.rllib.stopping import stop_on_signals
from rayssl.sweeps.axes import (
    Axes,
    Trial,
    base_settings,
    baselines,
    draw_points,
    end_points,
    grid_points,
    parse_axis,
    settable,
    several,
    trials_of_points,
    varied,
)
from rayssl.sweeps.estimate import duration, estimate
from rayssl.sweeps.folder import (
    FAILED,
    FINISHED,
    LOST,
    OVER,
    STATUSES,
    SWEEP,
    TABLE,
    VERSION,
    SweepFolder,
    read_trials,
)
from rayssl.sweeps.trackers import Tracker, check_tracker, make_tracker
from rayssl.sweeps.tuning import (
    OptunaDraws,
    Place,
    asha_grace,
    pbt_interval,
    run_trials,
)

logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # a page about API stacks at every start
UNFINISHED = 75  # exit code: run the same command with --resume to go on
SAMPLES = 20  # that random and Optuna draw where the line does not say
MOST_COUNTED = 1_000  # combinations of lists; of more, none is left over by a search
MOST_CPUS = 8  # of a trial's own process: more threads do not make these small networks faster


@dataclass(frozen=True)
class SweepRun:
    """Runs a job many times. Every setting of the job is an option too, with one value or more.

    --aux-weight 0 0.1 1, --aux-task none rotation, --epochs 2, ...; log:FROM:TO is a range, drawn
    from log-uniformly with --search random or optuna. `python experiments/JOB.py --help` explains
    the settings. Where the aux head is varied, the plain baseline (weight 0) is added, once a seed.
    """

    job: tyro.conf.Positional[str] = ""
    """atari, mnist, ...: the files in rayssl/jobs/."""
    set: tuple[str, ...] = ()
    """Settings of the job by name, NAME=VALUE,VALUE: the same as --NAME VALUE VALUE. Semicolons
    separate values that hold commas: aux_weight=0.5,0.1;1,1 for permutation+inverse."""
    preset: str | None = None
    """Starting values of the job's settings; the job's defaults if left out."""
    seeds: int = 1
    """Number of seeds of every combination: 0, 1, ..."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """Every combination, random ones, or Optuna's proposals (TPE)."""
    samples: int | None = None
    """Combinations that random draws (20 if left out) or that Optuna proposes; times seeds."""
    search_seed: int = 0
    """Seed of what is drawn."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """asha stops bad trials early; pbt copies good ones and changes their settings on the way."""
    baseline: bool = True
    """Add the plain baseline where a setting of the aux head is varied."""
    cpus_per_trial: int | None = None
    """Cores of a trial's own process; by default shared out so that as many trials run as can."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial, 0.25 for four trials on one."""
    at_once: int | None = None
    """Most trials side by side; by default as many as there is room for."""
    log: tuple[Tracker, ...] = ()
    """Also log to Weights & Biases (wandb) or MLflow (mlflow)."""
    dry_run: bool = False
    """Print trials, resources and an estimate of the time, and end."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the sweep's folder is made; on a cluster, a folder that all nodes see."""
    name: str | None = None
    """The sweep's folder; default: the job's name and -sweep."""
    resume: Path | None = None
    """Go on with a sweep's folder; trials that are over are kept."""


MAY_DIFFER = {
    "address", "cpus_per_trial", "gpus_per_trial", "at_once", "log", "dry_run", "results_dir",
}  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> tuple[SweepRun, dict[str, Any] | None]:
    """Returns the options of a command line, and the sweep.json of a folder to resume.

    Options that are settings of the job stand in `set`, as NAME=VALUE,VALUE.

    Raises:
      SystemExit: after --help, or with code 2 for an unknown option or value.
      ValueError: for an unknown job or setting, or a resumed sweep that is asked to change.
      FileNotFoundError: if the folder to resume holds no sweep.json.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    folder = value_of(words, "--resume")
    if folder is None:
        job = words[0] if words and not words[0].startswith("-") else None
        rest, axes = split_words(words, job)
        run = tyro.cli(SweepRun, args=rest)
        if not run.job:
            raise ValueError(f"Name the job first: {', '.join(available_jobs())}.")
        return dataclasses.replace(run, set=axes), None
    saved = read_sweep(Path(folder))
    before = SweepRun(**_options(saved["settings"]))
    rest, axes = split_words(words, saved["job"])
    again = tyro.cli(SweepRun, args=rest, default=dataclasses.replace(before, set=()))
    again = dataclasses.replace(again, set=axes or before.set)
    for field in dataclasses.fields(SweepRun):
        old, new = getattr(before, field.name), getattr(again, field.name)
        if old != new and field.name not in MAY_DIFFER | {"resume"}:
            raise ValueError(
                f"{folder} was started with {field.name} {old}, got {new}. A resumed sweep keeps "
                "its settings; start another one with --name."
            )
    return again, saved


def split_words(words: Sequence[str], job: str | None) -> tuple[list[str], tuple[str, ...]]:
    """Returns the words that are the sweep's own options, and the job's settings of the others."""
    own = {f.name for f in dataclasses.fields(SweepRun)} - {"set"}
    kinds = settable(find_job(job)) if job else {}
    rest: list[str] = []
    settings: dict[str, list[str]] = {}
    into = rest
    for word in words:
        name, _, inline = word[2:].partition("=")
        field = name.replace("-", "_")
        if not word.startswith("--"):
            into.append(word)
        elif field in own or field.removeprefix("no_") in own or field == "help":
            into = rest
            into.append(word)
        elif job is None:
            raise ValueError(f"Name the job before {word}: {', '.join(available_jobs())}.")
        elif field.startswith("no_") and kinds.get(field[3:]) is bool:
            into = settings.setdefault(field[3:], [])
            into.append("false")
        else:
            into = settings.setdefault(field, [])
            into += [inline] if inline else []
    for each in settings.pop("set", []):
        name, equals, values = each.partition("=")
        if not equals:
            raise ValueError(f"--set expected NAME=VALUE,VALUE, got '{each}'.")
        settings.setdefault(name.replace("-", "_"), []).extend(split_values(values))
    for name, given in settings.items():
        if not given and kinds.get(name) is bool:
            given.append("true")
    if "--help" in words:
        return rest, ()
    combined = any("+" in task for task in settings.get("aux_task", ()))
    return rest, tuple(
        f"{name}={join_values(values, whole=combined and name == 'aux_weight')}"
        for name, values in settings.items()
    )


def split_values(text: str) -> list[str]:
    """Returns the values of `VALUE,VALUE`, or of `VALUE;VALUE`, where a value may hold commas."""
    return text.split(";" if ";" in text else ",")


def join_values(values: Sequence[str], whole: bool) -> str:
    """Returns the text that `split_values` takes apart.

    Args:
      whole: a comma within a value does not separate two.
    """
    if any(";" in value for value in values) or (whole and any("," in v for v in values)):
        return ";".join([*values, ""])
    return ",".join(values)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Returns the sweep.json of a folder.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged or of another layout.
    """
    path = folder / SWEEP
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a sweep: it holds no {SWEEP}.")
    try:
        saved: dict[str, Any] = json.loads(path.read_text())
        version = saved["version"]
        _ = saved["job"], {**saved["settings"]}
        _ = [(each["trial"], each["group"], {**each["settings"]}) for each in saved["trials"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Start anew with --name.") from error
    if version != VERSION:
        raise ValueError(f"{path} has layout {version}, expected {VERSION}.")
    return saved


def _options(saved: dict[str, Any]) -> dict[str, Any]:
    """The options of a sweep.json as arguments of SweepRun."""
    known = {f.name for f in dataclasses.fields(SweepRun)}
    values: dict[str, Any] = {k: v for k, v in saved.items() if k in known}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    folder = Path(values.get("results_dir", SweepRun.results_dir))
    return values | {"results_dir": folder, "resume": None}


def check_options(run: SweepRun, job: Job, axes: Axes) -> None:
    """Raises ValueError for options that do not go together."""
    for name, least in (("seeds", 1), ("samples", 1), ("cpus_per_trial", 1), ("gpus_per_trial", 0),
                        ("at_once", 1), ("search_seed", 0)):  # fmt: skip
        value = getattr(run, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {value}.")
    check_name(run.name)
    if run.gpus_per_trial > 1 and run.gpus_per_trial % 1:
        raise ValueError(
            f"--gpus-per-trial above 1 must be a whole number, got {run.gpus_per_trial:g}."
        )
    if run.samples is not None and run.search == "grid":
        raise ValueError("--samples counts what --search random or optuna draws; a grid is whole.")
    changing = several(axes)
    if run.search == "optuna":
        if not changing:
            raise ValueError(
                "--search optuna needs a setting with several values or a range, e.g. "
                "--aux-weight log:0.01:3."
            )
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise ValueError(
                "--search optuna needs the package optuna: pip install 'rayssl[sweep]'."
            ) from None
    if run.scheduler == "pbt":
        _check_pbt(run, job, changing)
    for tracker in run.log:
        check_tracker(tracker)


def _check_pbt(run: SweepRun, job: Job, several: Axes) -> None:
    if run.at_once is not None:
        raise ValueError("--scheduler pbt takes turns with its population: leave --at-once out.")
    if run.search == "optuna" or run.seeds != 1:
        raise ValueError(
            "--scheduler pbt is a search of its own, over one population: use --search grid or "
            "random and --seeds 1."
        )
    cannot = sorted(set(several) - set(job.adaptable))
    if not several or cannot:
        raise ValueError(
            f"--scheduler pbt changes settings while {job.name} trains: vary only "
            f"{', '.join(job.adaptable) or 'none'}, got {', '.join(cannot) or 'nothing'}."
        )
    if any(isinstance(axis, tuple) and not all(isinstance(v, int | float) for v in axis)
           for axis in several.values()):  # fmt: skip
        raise ValueError(
            "--scheduler pbt changes numbers: leave none out, and give one aux weight for all "
            "tasks of a combination."
        )
    if any(isinstance(axis, tuple) and 0 in axis for axis in several.values()):
        raise ValueError(
            "--scheduler pbt copies weights among trials, and a plain network has no pretext head: "
            "leave aux weight 0 out."
        )


class Plan(NamedTuple):
    """What a command line asks for, checked before anything starts.

    Attributes:
      base: the settings that all trials start from.
      trials: those that are known before the start; a searcher adds others.
      ends: trials at the ends of what a searcher may propose, for checks.
    """

    base: Any
    trials: list[Trial]
    ends: list[Trial]

    def examples(self) -> list[Any]:
        """Returns settings of every kind that may run."""
        return [t.settings for t in [*self.trials, *self.ends]] or [self.base]


def plan(run: SweepRun, job: Job, axes: Axes) -> Plan:
    """Returns the trials of a command line.

    Raises:
      ValueError: with the trial's name, for settings that cannot work.
    """
    base = base_settings(job, run.preset)
    fixed = {k: a[0] for k, a in axes.items() if isinstance(a, tuple) and len(a) == 1}
    base = dataclasses.replace(base, **fixed)
    points = baselines(job, base, axes) if run.baseline and run.scheduler != "pbt" else []
    if run.search == "grid":
        points += grid_points(axes)
    elif run.search == "random":
        points += draw_points(axes, run.samples or SAMPLES, run.search_seed)
    trials = trials_of_points(job, base, axes, points, range(run.seeds))
    corners = end_points(axes) if run.search == "optuna" else []
    ends = trials_of_points(job, base, axes, corners, [0])
    for trial in [*trials, *ends]:
        try:
            job.check(trial.settings)
        except (ValueError, OSError, MemoryError) as error:
            raise ValueError(f"Trial {trial.name} cannot work: {error}") from error
    if run.scheduler == "asha" and all(job.planned(t.settings) < 2 for t in [*trials, *ends]):
        raise ValueError(f"--scheduler asha cannot stop a training of 1 {job.unit} early.")
    return Plan(base, trials, ends)


def place(run: SweepRun, job: Job, examples: Sequence[Any], number: int) -> tuple[Place, str]:
    """Returns what each trial gets of the connected Ray, and lines about it for people.

    One core a trial, so that as many run as there are cores: trials do not wait for one another,
    the threads of one trial do. Cores that would be left over are shared out.

    Args:
      examples: settings of every kind of trial.
      number: trials that are still to run.
    Raises:
      ValueError: if one trial alone does not fit: Ray would wait for ever.
    """
    nodes = free_after_ended()
    kinds = {repr(job.bundles(settings, 1, 0)): settings for settings in examples}.values()
    wanted = min(number, run.at_once or number)

    def fitting(cpus: int) -> tuple[int, Fit]:
        """How many trials of the largest kind fit side by side, and what each of them gets."""
        fits = [job.fit(settings, cpus, run.gpus_per_trial, nodes) for settings in kinds]
        counts = [count_fitting(fit.bundles, nodes, wanted) for fit in fits]
        return min(zip(counts, fits, strict=True), key=lambda found: found[0])

    cpus = run.cpus_per_trial or 1
    at_once, fit = fitting(cpus)
    if at_once == 0:
        need = "; ".join(_amounts(bundle) for bundle in fit.bundles)
        there = "; ".join(_amounts({k: n.get(k, 0) for k in fit.bundles[0]}) for n in nodes)
        raise ValueError(
            f"A trial needs {need}, and no node has the room. Free on each: {there}. Lower "
            "--cpus-per-trial, --gpus-per-trial or the job's memory, or use a larger cluster."
        )
    if run.cpus_per_trial is None:
        workers = max(len(job.bundles(settings, 1, 0)) for settings in kinds) - 1
        share = min(MOST_CPUS, int(total_cpus() // at_once) - workers)
        for more in range(share, 1, -1):
            with contextlib.suppress(ValueError):  # no node has so many
                count, wider = fitting(more)
                if count == at_once:
                    cpus, fit = more, wider
                    break
    text = f"each trial gets {'; '.join(_amounts(b) for b in fit.bundles)}; "
    text += "one runs after another" if at_once == 1 else f"{at_once} run at once"
    if run.cpus_per_trial is None and at_once > 1 and cpus == 1:
        text += " (faster than one trial on all cores, whose threads wait for one another)"
    message = [text, *([fit.message] if fit.message else [])]
    message += dict.fromkeys(filter(None, map(job.note, examples)))
    limited = run.at_once is not None or run.search == "optuna"
    return Place(cpus, run.gpus_per_trial, nodes, at_once, limited), "\n".join(message)


def _amounts(bundle: Mapping[str, float]) -> str:
    return ", ".join(
        f"{value / 1e9:.1f} GB" if kind == "memory" else f"{value:g} {kind}"
        for kind, value in bundle.items()
    )


class Sweep(NamedTuple):
    """A sweep that is ready to start.

    Attributes:
      folder: with all trials that are known.
      waiting: those that are not over.
      first_group: group of the first trials that a searcher proposes.
      further: trials that it may still propose, at most.
    """

    run: SweepRun
    axes: Axes
    plan: Plan
    folder: SweepFolder
    waiting: list[Trial]
    first_group: int
    further: int


def describe(sweep: Sweep) -> str:
    """Returns the trials as a table, and lines about what is not in it."""
    run, axes, job = sweep.run, sweep.axes, sweep.folder.job
    columns = ["trial", "status", "seed", "aux_task", "aux_weight", *varied(axes)]
    rows = [{k: row[k] for k in [*columns, "done", "planned"]} for row in sweep.folder.rows()]
    lines = [markdown_table(rows)] if rows else []
    most = max(map(job.planned, sweep.plan.examples()))
    if sweep.further:
        lines.append(f"up to {sweep.further} more trials, as Optuna proposes their settings")
    if run.scheduler == "asha":
        lines.append(
            f"ASHA stops trials outside the best third from {asha_grace(most):,} {job.unit} on, "
            "never the baseline"
        )
    if run.scheduler == "pbt":
        changes = ", ".join(several(axes))
        lines.append(f"PBT changes {changes} every {pbt_interval(most):,} {job.unit}")
    if run.search == "optuna" or run.scheduler != "none":
        lines.append(f"judged by {job.judged_by}")
    return "\n".join(lines)


def prepare(run: SweepRun, saved: dict[str, Any] | None) -> Sweep:
    """Returns the sweep of these options; nothing is started, and no folder made.

    Raises:
      ValueError, OSError: for what a person got wrong.
    """
    job = find_job(run.job)
    axes = dict(
        parse_axis(job, name, split_values(values))
        for name, _, values in (each.partition("=") for each in run.set)
    )
    check_options(run, job, axes)
    planned = plan(run, job, axes)
    path = run.resume or run.results_dir / (run.name or f"{job.name}-sweep")
    if run.resume is None and (path / SWEEP).exists():
        raise FileExistsError(
            f"{path} holds a sweep already. Go on with --resume {path}, or choose --name."
        )
    folder = SweepFolder(path, job)
    folder.add(read_trials(job, saved) if saved else planned.trials, axes)
    waiting = still_to_run(folder)
    first = len({t.group for t in planned.trials})
    drawn = len({t.group for t in folder.trials if t.group >= first})
    further = 0
    if run.search == "optuna":
        left = min(run.samples or SAMPLES, combinations(job, planned, axes)) - drawn
        further = max(0, left) * run.seeds
    if saved and (waiting or further):
        check_resumed(folder)
    return Sweep(run, axes, planned, folder, waiting, first, further)


def combinations(job: Job, planned: Plan, axes: Axes) -> int:
    """Returns how many points of these axes a searcher may propose; endless where one is a range.

    Points that act alike are one, and those of the baseline are not proposed again.
    """
    lists = [axis for axis in axes.values() if isinstance(axis, tuple)]
    if len(lists) < len(axes) or math.prod(map(len, lists)) > MOST_COUNTED:
        return sys.maxsize
    points = grid_points(axes)
    return len(trials_of_points(job, planned.base, axes, points, [0], planned.trials))


def check_resumed(folder: SweepFolder) -> None:
    """Raises ValueError, with the trial's name, if what is left would not fit what is there."""
    for trial in folder.trials:
        try:
            folder.job.check_resumed(trial.settings, folder.of(trial.name))
        except (ValueError, OSError) as error:
            raise ValueError(f"Trial {trial.name} cannot go on: {error}") from error


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the sweep of a command line and returns the rows of its table."""
    with contextlib.ExitStack() as held:
        return run_sweep(argv, held)


def run_sweep(argv: Sequence[str] | None, held: contextlib.ExitStack) -> list[dict[str, Any]]:
    """Is `main`, which gives back what is `held` at the end."""
    made: list[Path] = []
    started_here = False
    try:
        sweep = prepare(*parse(argv))
        run, folder, left = sweep.run, sweep.folder, len(sweep.waiting) + sweep.further
        asked = len(folder.trials) + sweep.further
        if not run.dry_run:
            made = check_writable(folder.path)
            held.enter_context(hold(folder.path))
            note_ends(folder)
        if left:
            started_here = not ray.is_initialized()
            if started_here:
                start_ray(ray_address(run.address))
            if not run.dry_run:
                check_shared(folder.path)
            where, about = place(run, folder.job, sweep.plan.examples(), left)
    except (ValueError, OSError, MemoryError) as error:
        remove_empty(made)
        refuse(error)
    if left and run.dry_run:
        print(f"{describe(sweep)}\n{about}")
        print_estimate(sweep, where.at_once)
    elif left:
        print(f"{left} trials to run -> {folder.path}\n{about}", flush=True)
        try:
            asked = asked if go(sweep, where) else len(folder.trials)
        except KeyboardInterrupt:
            print(f"\nstopped; go on with --resume {folder.path}", file=sys.stderr)
            raise SystemExit(UNFINISHED) from None
    if started_here:
        ray.shutdown()
    if run.dry_run:
        return folder.rows()
    return finish(folder, undrawn=asked - len(folder.trials))


def go(sweep: Sweep, where: Place) -> bool:
    """Runs what is left of a sweep; returns False where a searcher finds nothing new to propose."""
    run, folder = sweep.run, sweep.folder
    options = dataclasses.replace(run, resume=None, dry_run=False)
    made = with_starts(folder.path / SWEEP, provenance(options))
    folder.write_sweep(made, sweep.axes)
    folder.write_table()
    draws = None
    if run.search == "optuna":
        draws = OptunaDraws(
            folder, sweep.plan.base, sweep.axes, range(run.seeds), run.samples or SAMPLES,
            run.search_seed, sweep.first_group,
        )  # fmt: skip
    stop_on_signals("stopping: every trial at its next report, with a checkpoint")
    run_trials(
        folder, sweep.waiting, axes=sweep.axes, place=where, examples=sweep.plan.examples(),
        made=made, scheduler=run.scheduler, draws=draws, further=sweep.further,
        seed=run.search_seed, callbacks=[make_tracker(name, folder.path) for name in run.log],
    )  # fmt: skip
    if draws is None or not draws.exhausted:
        return True
    print("Optuna proposes nothing but what has run already: the search ends here", flush=True)
    return False


def still_to_run(folder: SweepFolder) -> list[Trial]:
    """Returns the trials that are not over, nor have a checkpoint of their end."""
    return [t for t in folder.trials if not folder.is_over(t) and not is_at_its_end(folder, t)]


def is_at_its_end(folder: SweepFolder, trial: Trial) -> bool:
    """Returns whether a trial has a checkpoint and a row of its last step."""
    if not folder.of(trial.name).is_dir():
        return False
    found, row = folder.job.newest_checkpoint(folder.of(trial.name)), folder.row(trial.name)
    return found is not None and bool(min(found[1], row["done"]) >= row["planned"])


def note_ends(folder: SweepFolder) -> None:
    """Notes as finished what a driver that was killed could not."""
    for trial in folder.trials:
        if not folder.is_over(trial) and is_at_its_end(folder, trial):
            folder.end(trial.name, FINISHED)


def print_estimate(sweep: Sweep, at_once: int) -> None:
    """Prints how long the trials that are left may take, and how that is known."""
    folder = sweep.folder
    trials = [*sweep.waiting, *[Trial("", sweep.plan.base, 0)] * sweep.further]
    done = [folder.row(t.name)["done"] for t in sweep.waiting] + [0] * sweep.further
    run = sweep.run
    found = estimate(folder.job, trials, done, at_once, run.results_dir, gpus=run.gpus_per_trial)
    most = "at most " if run.scheduler == "asha" else ""
    print(f"{most}about {duration(found.seconds)}, give or take a factor of two:")
    for source in found.sources:
        print(f"  {source}")


def time_table(folder: SweepFolder) -> list[dict[str, Any]]:
    """Returns a row for each trial whose log tells where its time went, per cent a part."""
    shares = {t.name: folder.job.time_shares(folder.job.rows(folder.of(t.name))) for t in
              folder.trials if folder.of(t.name).is_dir()}  # fmt: skip
    parts = dict.fromkeys(part for each in shares.values() for part in each)
    return [
        {"trial": name} | {part: f"{each.get(part, 0.0):.1%}" for part in parts}
        for name, each in shares.items() if each
    ]  # fmt: skip


def finish(folder: SweepFolder, undrawn: int) -> list[dict[str, Any]]:
    """Prints the closing table; exits with 75 if trials are left, with 1 if some failed.

    Args:
      undrawn: trials that a searcher would still have proposed, had the sweep not been stopped.
    """
    folder.write_table()
    rows = folder.rows()
    columns = ("trial", "status", "done", "planned", "final", "best", "reported", "attempts")
    shown = [
        {name: row[name] for name in columns} | {"minutes": row["wall_s"] / 60}
        | ({"error": row["error"]} if row["error"] else {})
        for row in rows
    ]  # fmt: skip
    print("\n" + markdown_table(shown))
    print(f"final, best, reported: {folder.job.metric}")
    if times := time_table(folder):
        print(f"\nwhere the time of each trial went, in per cent:\n\n{markdown_table(times)}\n")
    print(f"table: {folder.path / TABLE}\nlogs: tensorboard --logdir {folder.path}")
    by_status = {status: [r["trial"] for r in rows if r["status"] == status] for status in STATUSES}
    left = [
        name for status, names in by_status.items() if status not in (*OVER, LOST) for name in names
    ]
    print(", ".join(f"{len(names)} {status}" for status, names in by_status.items() if names))
    for row in rows:
        if row["error"]:
            print(f"error: {row['trial']} {row['status']}: {row['error']}", file=sys.stderr)
    if left or undrawn > 0:
        number = len(left) + max(0, undrawn)
        print(f"{number} trials have not ended; go on with --resume {folder.path}")
        raise SystemExit(UNFINISHED)
    if by_status[LOST]:
        print(f"lost trials are tried again with --resume {folder.path}")
    if by_status[FAILED] or by_status[LOST]:
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    main()
