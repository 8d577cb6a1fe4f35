"""Runs the paper: every arm of Table IV on Pong and Breakout, under both protocols, over seeds.

    python experiments/paper.py --dry-run
    python experiments/paper.py --protocols strict --seeds 3 --steps 200000
    python experiments/paper.py --resume results/local/paper
    python experiments/paper.py --resume results/local/paper --publish results/paper

Each training is evaluated over 100 whole games at fixed intervals. Stop it at any point, and go on
with --resume: on a laptop trainings run one after another, on a cluster or a large GPU side by
side. Ends with Table IV and Figure 10; experiments/report.py reads the folder at any time.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # SweepLog writes the logs
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # no score before a game's end
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray

from experiments import evaluate, report, sweep
from rayssl.cli import (
    check_name,
    check_writable,
    parse_experiment,
    provenance,
    refuse,
    remove_empty,
)
from rayssl.evaluation import export_agent
from rayssl.files import hold
from rayssl.jobs import find_job
from rayssl.results import PAPER_CODE
from rayssl.rllib.start import check_shared, ray_address, record_start, start_ray
from rayssl.sweeps.axes import Trial
from rayssl.sweeps.folder import FINISHED, STATUS, SWEEP, TABLE, SweepFolder, read_trials
from rayssl.sweeps.paper import GAMES, Arm, ProtocolName, paper_trials

SETTINGS = "settings.json"  # options and starts, in the runs' folder
RANDOM = "random-*-evaluation.json"  # of the random agent, beside them
KEPT = ("progress.csv", "settings.json", STATUS)  # of a training, when it is published


@dataclass(frozen=True)
class PaperRun:
    """Runs the arms of Table IV and shows them beside the paper's numbers."""

    protocols: tuple[ProtocolName, ...] = ("strict", "paper-code")
    """strict: the game's preset, whole games; paper-code: as the authors' code does and counts."""
    games: tuple[str, ...] = GAMES
    """pong, breakout."""
    arms: tuple[Arm, ...] = ("random", "none", "rotation", "permutation")
    """Rows of Table IV; random plays without training."""
    seeds: int = 3
    """Trainings of each arm, seeds 0, 1, ..."""
    steps: int | None = None
    """Agent steps of a training; by default the preset's (paper-code: 1,000,000)."""
    aux_weight: float | None = None
    """Weight of the pretext loss; by default the paper's 1. Only 1 is judged."""
    evaluate_every: int | None = None
    """Agent steps between two evaluations; by default a tenth of the training, or, where ten do not
    divide its steps, all of it: evaluated at the end alone."""
    evaluation_games: int = 100
    """Whole games of an evaluation."""
    num_workers: int = 0
    """Env runner processes of each training under strict; paper-code has none."""
    cpus_per_trial: int | None = None
    """Cores of a training's own process; by default shared out."""
    gpus_per_trial: float = 0.0
    """GPUs of a training, 0.125 for eight on one."""
    at_once: int | None = None
    """Most trainings side by side; by default as many as there is room for."""
    dry_run: bool = False
    """Print the trainings, resources and an estimate of the time, and end."""
    address: str | None = None
    """A running Ray cluster, HOST:PORT or auto; default: RAY_ADDRESS, else a Ray of its own."""
    results_dir: Path = Path("results/local")
    """Where the folder is made; on a cluster, a folder that all nodes see."""
    name: str = "paper"
    """The folder of all runs."""
    resume: Path | None = None
    """Go on with a folder; trainings that are over are kept."""
    publish: Path | None = None
    """Train no more: copy the logs here, and an agent of each arm, finished or not, to
    checkpoints/<this folder's name>/ beside it."""


# Where and whether a folder is gone on with, not what runs in it.
MAY_DIFFER = {"address", "cpus_per_trial", "gpus_per_trial", "at_once", "dry_run", "publish"}


def check(run: PaperRun) -> None:
    """Raises ValueError for options that no runs can have."""
    check_name(run.name)
    check_publish(run)
    for name in ("protocols", "games", "arms"):
        values = getattr(run, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--{name} expected different names, got {' '.join(values) or 'none'}")
    # A folder of before the check can only go on as it began.
    if run.num_workers and PAPER_CODE in run.protocols and run.resume is None:
        raise ValueError(
            f"--num-workers {run.num_workers} plays as many environments beside the learner; the "
            f"protocol {PAPER_CODE} is one environment that takes turns with it. Pass --protocols "
            "strict, or leave --num-workers at 0."
        )
    unknown = set(run.games) - set(GAMES)
    if unknown:
        raise ValueError(
            f"--games takes {', '.join(GAMES)}: the paper's, with a preset each. Got "
            f"{', '.join(sorted(unknown))}. Sweep others with experiments/sweep.py atari."
        )
    for name, least in (("seeds", 1), ("evaluation_games", 1), ("cpus_per_trial", 1),
                        ("gpus_per_trial", 0), ("at_once", 1), ("evaluate_every", 1)):  # fmt: skip
        value = getattr(run, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {value}.")


def prepare(run: PaperRun) -> sweep.Sweep:
    """Returns the trainings as a sweep that can start or go on; nothing is started.

    Raises:
      ValueError, OSError: for what a person got wrong.
    """
    check(run)
    job = find_job("atari")
    path = run.resume or run.results_dir / run.name
    if run.resume is None and ((path / SETTINGS).exists() or (path / SWEEP).exists()):
        raise FileExistsError(
            f"{path} holds runs already. Go on with --resume {path}, or choose --name."
        )
    trials = paper_trials(
        run.protocols, run.games, run.arms, run.seeds, steps=run.steps,
        evaluate_every=run.evaluate_every, evaluation_games=run.evaluation_games,
        num_workers=run.num_workers, aux_weight=run.aux_weight,
    )  # fmt: skip
    for trial in trials:
        try:
            job.check(trial.settings)
        except (ValueError, OSError, MemoryError) as error:
            raise ValueError(f"{trial.name} cannot work: {error}") from error
    if run.resume and (path / SWEEP).exists():
        trials = read_trials(job, sweep.read_sweep(path))
    folder = SweepFolder(path, job)
    folder.add(trials, {})
    options = sweep.SweepRun(
        job="atari", seeds=run.seeds, cpus_per_trial=run.cpus_per_trial,
        gpus_per_trial=run.gpus_per_trial, at_once=run.at_once, address=run.address,
        results_dir=path.parent, name=path.resolve().name,
    )  # fmt: skip
    base = trials[0].settings if trials else job.settings()
    plan = sweep.Plan(base, trials, [])
    return sweep.Sweep(options, {}, plan, folder, sweep.still_to_run(folder), 0, 0)


def as_if_at_once(run: PaperRun, left: int) -> int:
    """Returns how many trainings a machine with one GPU would run side by side; without GPUs 1."""
    room = int(1 / run.gpus_per_trial) if 0 < run.gpus_per_trial <= 1 else 1
    return min(left, run.at_once or left, room)


def play_random(run: PaperRun, folder: Path) -> None:
    """Writes an evaluation of the random agent for each game that has no readable one yet."""
    for game in run.games if "random" in run.arms else ():
        path = folder / RANDOM.replace("*", game)
        if not is_evaluation(path):
            evaluate.main([
                "random", "--game", game, "--episodes", str(run.evaluation_games),
                "--json", str(path),
            ])  # fmt: skip


def is_evaluation(path: Path) -> bool:
    """Returns whether a file holds what evaluate.py writes; False if a kill cut it short."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_publish(run: PaperRun) -> None:
    """Raises ValueError where --publish has nothing to copy, or would replace another run's."""
    if run.publish is None:
        return
    if run.resume is None:
        raise ValueError("--publish copies what has run: name its folder with --resume.")
    if run.publish.resolve() == run.resume.resolve():
        raise ValueError(
            f"--publish expected another folder than --resume, got {run.publish} twice."
        )
    there, own = (first_start(folder / SETTINGS) for folder in (run.publish, run.resume))
    holds = any((run.publish / name).exists() for name in (SETTINGS, SWEEP, TABLE))
    if holds and (there is None or there != own):
        raise ValueError(f"{run.publish} holds another run than {run.resume}. Choose a new folder.")


def first_start(path: Path) -> Any:
    """Returns when and by which command the runs of a settings.json were started; None: unknown."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["starts"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def agents_folder(published: Path) -> Path:
    """Returns where the agents of a published folder go: checkpoints/<its name>/ beside it."""
    folder = published.resolve()
    named = published.name not in ("", "..")  # else its parent is not that of its path
    beside = published.parent if named else Path(os.path.relpath(folder.parent))
    return beside / "checkpoints" / folder.name


def publish(run: PaperRun, folder: SweepFolder) -> None:
    """Copies logs, exports an agent of each arm and evaluates that file.

    What is there of these runs from an earlier time is replaced.
    """
    assert run.publish is not None
    for name in (SETTINGS, SWEEP, TABLE, RANDOM):  # without trainings there is no sweep.json
        for path in folder.path.glob(name):
            shutil.copy2(path, run.publish)
    for trial in folder.trials:
        own = folder.of(trial.name)
        for name in KEPT:
            if (own / name).is_file():
                (run.publish / trial.name).mkdir(exist_ok=True)
                shutil.copy2(own / name, run.publish / trial.name)
            elif name == STATUS:  # a lost trial goes on: what was published is no longer so
                (run.publish / trial.name / name).unlink(missing_ok=True)
    for group in sorted({trial.group for trial in folder.trials}):
        arm = [trial for trial in folder.trials if trial.group == group]
        export(arm, folder, agents_folder(run.publish), run.evaluation_games)


def export(arm: Sequence[Trial], folder: SweepFolder, into: Path, games: int) -> None:
    """Writes the agent of an arm's first finished seed below `into`, and its evaluation.

    Where none has finished, or none of those has a whole checkpoint, the first seed that has one
    stands for the arm. Prints which, of how many steps, and what was passed over.
    """
    finished = [trial for trial in arm if has_finished(folder, trial)]
    for trial in sorted(arm, key=lambda trial: trial not in finished):
        row = folder.row(trial.name)
        found = folder.job.newest_checkpoint(folder.of(trial.name))
        if found is None:
            print(f"not exported: {trial.name}, {row['status']}: it has no whole checkpoint")
            continue
        checkpoint, steps = found
        export_agent(checkpoint, into / trial.name)
        unfinished = "" if trial in finished else f" ({row['status']})"
        print(
            f"agent of {steps:,} of {row['planned']:,} steps{unfinished}: {into / trial.name}",
            flush=True,
        )
        evaluate.main([str(into / trial.name), "--episodes", str(games)])
        for other in arm:  # that stood for the arm at an earlier time
            if other is not trial:
                shutil.rmtree(into / other.name, ignore_errors=True)
                (into / f"{other.name}-evaluation.json").unlink(missing_ok=True)
        return


def has_finished(folder: SweepFolder, trial: Trial) -> bool:
    """Returns whether a training was noted as finished, or its driver died just before that."""
    return folder.row(trial.name)["status"] == FINISHED or sweep.is_at_its_end(folder, trial)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs what is asked for and returns the rows of trials.csv."""
    with contextlib.ExitStack() as held:
        return run_paper(argv, held)


def run_paper(argv: Sequence[str] | None, held: contextlib.ExitStack) -> list[dict[str, Any]]:
    """Is `main`, which gives back what is `held` at the end."""
    made: list[Path] = []
    started_here = False
    try:
        run = parse_experiment(PaperRun, argv, MAY_DIFFER)
        own = prepare(run)
        left = 0 if run.publish else len(own.waiting)
        if not run.dry_run:
            made = check_writable(run.publish or own.folder.path)
            held.enter_context(hold(run.publish or own.folder.path))
            if run.publish is None:
                sweep.note_ends(own.folder)
            if run.publish and own.folder.trials:
                made = [*check_writable(agents_folder(run.publish)), *made]
        if left:
            started_here = not ray.is_initialized()
            if started_here:
                start_ray(ray_address(run.address))
            if not run.dry_run:
                check_shared(own.folder.path)
            try:
                where, about = sweep.place(own.run, own.folder.job, own.plan.examples(), left)
                at_once = where.at_once
            except ValueError as error:
                if not run.dry_run:
                    raise
                at_once = as_if_at_once(run, left)
                about = f"cannot run here: {error}\nestimated as if {at_once} ran at once elsewhere"
    except (ValueError, OSError, MemoryError) as error:
        remove_empty(made)
        refuse(error)
    if run.dry_run:
        print(sweep.describe(own))
        if left:
            print(about)
            sweep.print_estimate(own, at_once)
        return own.folder.rows()
    try:
        if run.publish is None:
            options = dataclasses.replace(run, resume=None, dry_run=False)
            record_start(own.folder.path, provenance(options))
            play_random(run, own.folder.path)
        if left:
            print(f"{left} trainings to run -> {own.folder.path}\n{about}", flush=True)
            sweep.go(own, where)
        if started_here:
            ray.shutdown()
        return show(run, own)
    except KeyboardInterrupt:
        publish_it = f" --publish {run.publish}" if run.publish else ""
        print(f"\nstopped; go on with --resume {own.folder.path}{publish_it}", file=sys.stderr)
        raise SystemExit(sweep.UNFINISHED) from None


def show(run: PaperRun, own: sweep.Sweep) -> list[dict[str, Any]]:
    """Publishes what is to be published, writes the page, and returns the rows of trials.csv."""
    shown = own.folder.path
    if run.publish:
        publish(run, own.folder)
        shown = run.publish
    rows = own.folder.rows()
    if any(row["done"] for row in rows) or any(shown.glob(RANDOM)):
        agents = agents_folder(shown)
        also = [str(agents)] if run.publish and agents.is_dir() else []
        report.main([str(shown), *also, "--out", str(shown / "report")])
    return rows if run.publish or not rows else sweep.finish(own.folder, undrawn=0)


if __name__ == "__main__":
    main()
