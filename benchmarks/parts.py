"""The parts of a training, each alone: where is the limit, and from how many workers on?

    python benchmarks/parts.py --json benchmarks/results/parts.json

    runner    acts and plays 8 games on one core
    intake    the algorithm's process takes in fragments from runners that have them ready
    updates   sampling a batch, a TD update (and an aux update), pushing weights every 32
    weights   handing weights over: the algorithm's side (push), the runner's side (set)

From these: how many runners, each on a core of its own, the learner and the intake can serve.
"""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import tyro
from ray.rllib.core import COMPONENT_RL_MODULE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    EPSILON,
    GAME,
    STEPS_PER_UPDATE,
    check_compiled,
    milliseconds,
    report,
    run_facts,
    spread,
    turn_about,
    usable_cores,
)
from experiments.atari import start_ray
from rayssl.cli import refuse
from rayssl.rllib.algorithm import MAX_UPDATES_A_CALL, AuxDQN
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.env_runner import AtariEnvRunner, Rollout
from rayssl.rllib.resources import ensure_auth_token

PARTS = ("runner", "intake", "updates", "weights", "points")
TASKS = ("none", "permutation")
FRAMES_PER_STEP = 4
ONE_THREAD = ", 1 thread"
ROWS_BEFORE_UPDATES = 2_000  # of real play in the replay, so that the aux tasks have labels
REPLAY_CAPACITY = 20_000  # rows; taking in costs the same with more
COLUMNS = ("name", "figure", "unit")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures runner, intake, learner and weights, each by itself."""

    seconds: float = 10.0
    """Length of each timed window, seconds."""
    repeats: int = 3
    """Turns that each part gets."""
    only: str = ",".join(PARTS)
    """Parts to measure, separated by commas."""
    runners: int = 2
    """Stand-in runners that feed the intake."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of workers of the whole trainings that `points` measures."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    threads: int | None = None
    """CPU threads of the learner; by default all cores that this process may use."""
    seed: int = 0
    """Seeds weights, games and draws."""
    compile: bool = True
    """torch.compile the losses."""


class StandInRunner(AtariEnvRunner):
    """A runner that plays once and then returns that rollout whenever it is asked."""

    _ready: Rollout | None = None

    def sample(self, **kwargs: Any) -> Rollout:
        """Returns the same Rollout at every call, without the marks of a game's start."""
        if self._ready is None:
            rollout = super().sample(num_steps=self.config.rollout_fragment_length)
            fragment = rollout.fragment._replace(reset=np.zeros_like(rollout.fragment.reset))
            self._ready = rollout._replace(fragment=fragment)
        return self._ready


class IntakeOnly(AuxDQN):
    """The algorithm without updates: it asks for fragments, takes them in, and reports."""

    def _steps_allowed(self) -> int:
        return sys.maxsize

    def _updates_due(self, steps_in_flight: int = 0) -> int:
        return 0


def make_config(settings: Settings, task: str = "none", runners: int = 0) -> AuxDQNConfig:
    """Returns the algorithm's default settings on Breakout."""
    return (
        AuxDQNConfig()
        .environment(GAME)
        .auxiliary(task=task)
        .training(
            compile_learner=settings.compile, learner_threads=settings.threads or usable_cores(),
            epsilon=(EPSILON, EPSILON, 0), replay_capacity_steps=REPLAY_CAPACITY,
        )
        .env_runners(num_env_runners=runners, num_cpus_per_env_runner=0)
        .debugging(seed=settings.seed)
    )  # fmt: skip


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on one core; torch with one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def make_runner(settings: Settings) -> AtariEnvRunner:
    """Returns a runner in this process, its consoles on the one core that `one_core` chooses.

    It chooses actions as a worker's runner does: uncompiled.
    """
    with one_core():
        config = make_config(settings).training(compile_learner=False)
        config.validate()
        runner = AtariEnvRunner(config=config)
        runner.sample(num_steps=8)
    return runner


def runner_steps_per_s(runner: AtariEnvRunner, seconds: float) -> float:
    """Returns the agent steps per second that a runner makes on one core."""
    with one_core():
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            steps += runner.sample().fragment.actions.size
        return steps / (time.perf_counter() - start)


def make_intake(settings: Settings) -> AuxDQN:
    """Returns an algorithm that is fed by stand-in runners and never learns."""
    config = make_config(settings, runners=settings.runners)
    config.algo_class = IntakeOnly
    config.env_runner_cls = StandInRunner
    algo: AuxDQN = config.build_algo()
    algo.train()
    return algo


def intake(algo: AuxDQN, seconds: float) -> tuple[float, float]:
    """Returns steps taken in per second, and CPU microseconds of this process per step."""
    start, cpu, steps = time.perf_counter(), time.process_time(), algo._env_steps
    while time.perf_counter() - start < seconds:
        algo.train()
    taken = algo._env_steps - steps
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return taken / wall, cpu / taken * 1e6


def make_learning(settings: Settings, task: str, threads: int) -> AuxDQN:
    """Returns an algorithm in this process with real play in its replay and compiled updates."""
    config = make_config(settings, task)
    config.training(learner_threads=threads)
    algo: AuxDQN = config.build_algo()
    while algo._env_steps < ROWS_BEFORE_UPDATES:
        algo._take(algo.env_runner.sample())
    algo._learn(MAX_UPDATES_A_CALL)
    check_compiled(settings.compile, algo._how)
    return algo


def td_updates_per_s(algo: AuxDQN, threads: int, seconds: float) -> float:
    """Returns TD updates per second (each with its aux update, if the task is one)."""
    torch.set_num_threads(threads)  # of the process: another algorithm may have set its own
    start, updates = time.perf_counter(), algo._counts["td_updates"]
    while time.perf_counter() - start < seconds:
        algo._learn(MAX_UPDATES_A_CALL)
    return (algo._counts["td_updates"] - updates) / (time.perf_counter() - start)


def make_point(settings: Settings, workers: int) -> AuxDQN:
    """Returns a whole training with so many workers, past its compiling."""
    config = make_config(settings, runners=workers)
    left = usable_cores() - workers
    config.training(
        learning_starts_steps=ROWS_BEFORE_UPDATES, steps_per_iteration=200,
        learner_threads=settings.threads or max(1, left),
    )  # fmt: skip
    algo: AuxDQN = config.build_algo()
    while algo._counts["td_updates"] < MAX_UPDATES_A_CALL:
        algo.train()
    check_compiled(settings.compile, algo._how)
    return algo


def env_steps_per_s(settings: Settings, workers: int) -> float:
    """Returns the agent steps per second of a whole training with so many workers."""
    algo = make_point(settings, workers)
    start, steps = time.perf_counter(), algo._env_steps
    while time.perf_counter() - start < settings.seconds:
        algo.train()
    rate = (algo._env_steps - steps) / (time.perf_counter() - start)
    algo.stop()
    return rate


def learner_threads(settings: Settings) -> list[int]:
    """Returns the numbers of threads of the learner to measure: all, and what workers leave it."""
    most = settings.threads or usable_cores()
    return [most] if most == 1 else [most, 1]


def updates_name(task: str, threads: int, settings: Settings) -> str:
    """Returns the name of a figure: that of all threads has the task's name alone."""
    return f"updates {task}" + ("" if threads == learner_threads(settings)[0] else ONE_THREAD)


def weights_set_ms(algo: AuxDQN, runner: AtariEnvRunner) -> float:
    """Returns the ms in which a runner fetches pushed weights from the object store and casts."""

    def fetch_and_set() -> None:
        runner.set_state({COMPONENT_RL_MODULE: ray.get(algo._weights_ref)})

    with one_core():
        return milliseconds(fetch_and_set, 20)


def measurements(settings: Settings, wanted: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Returns name -> a function that measures once; everything has run once already."""
    made: dict[str, Callable[[], Any]] = {}
    if {"runner", "weights"} & set(wanted):
        runner = make_runner(settings)
    if {"intake", "weights"} & set(wanted):
        feeder = make_intake(settings)
    if "runner" in wanted:
        made["runner"] = lambda: runner_steps_per_s(runner, settings.seconds)
    if "intake" in wanted:
        made["intake"] = lambda: intake(feeder, settings.seconds)
    if "updates" in wanted:
        for task, threads in product(TASKS, learner_threads(settings)):
            algo = make_learning(settings, task, threads)
            made[updates_name(task, threads, settings)] = partial(
                td_updates_per_s, algo, threads, settings.seconds
            )
    if "weights" in wanted:
        made["push"] = lambda: milliseconds(feeder._push_weights, 20)
        made["set"] = lambda: weights_set_ms(feeder, runner)
    if "points" in wanted:
        for workers in settings.workers:
            made[f"point {workers}"] = partial(env_steps_per_s, settings, workers)
    return made


def table_rows(figures: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows: what was measured, then what follows from it."""

    def row(name: str, values: Sequence[float], unit: str) -> dict[str, Any]:
        return {"name": name, "figure": spread(values), "unit": unit}

    steps = figures.get("runner")
    if steps:
        yield row("runner", [s * FRAMES_PER_STEP for s in steps], "frames/s on one core")
    taken = [pair[0] for pair in figures.get("intake", [])]
    if taken:
        yield row("intake", taken, "env steps/s")
        yield row("intake, CPU", [pair[1] for pair in figures["intake"]], "us of CPU per env step")
    for task, threads in product(TASKS, ("", ONE_THREAD)):
        if updates := figures.get(f"updates {task}{threads}"):
            yield row(f"updates, task {task}{threads}", updates, "TD updates/s")
    for name, meaning in (("push", "get_state and ray.put"), ("set", "ray.get and set_state")):
        if name in figures:
            yield row(f"weights, {name}", figures[name], f"ms, {meaning}")
    for name, rates in figures.items():
        if name.startswith("point "):
            yield row(f"whole training, {name[6:]} workers", rates, "env steps/s")
    if not steps:
        return
    for task in TASKS:
        if updates := figures.get(f"updates {task}"):
            served = [u * STEPS_PER_UPDATE / s for u, s in zip(updates, steps, strict=True)]
            unit = f"workers, one core each, at one update per {STEPS_PER_UPDATE} steps"
            yield row(f"learner's limit, task {task}", served, unit)
    if taken:
        served = [t / s for t, s in zip(taken, steps, strict=True)]
        yield row("intake's limit", served, "workers, one core each")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    wanted = [name.strip() for name in settings.only.split(",")]
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        refuse(f"Unknown part '{unknown[0]}'. Available: {', '.join(PARTS)}.")
    logging.getLogger("ray").setLevel(logging.ERROR)
    facts = run_facts(settings) | {"threads": settings.threads or usable_cores()}
    if not ray.is_initialized():
        ensure_auth_token()
        start_ray("local")
    figures = turn_about(measurements(settings, wanted), settings.repeats)
    rows = [row | {"run": facts} for row in table_rows(figures)]
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
