"""What an aux update costs beside a TD update, with the learner's fast settings.

    python benchmarks/update_cost.py --json benchmarks/results/update_cost.json

Compiled, channels_last, bfloat16 where the hardware has it, batch 32, Nature trunk; in one process,
the parts taking turns. To check: aux update <= 0.65 of a TD update; TD and aux 1:1 <= 1.7 times TD
alone, for tasks that make one pass of one state. Ratios are taken within a turn, where both sides
met the same machine. On a GPU:

    python benchmarks/update_cost.py --gpu --batch-size 256 --updates 2000
"""

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    BATCH_SIZE,
    GAME,
    check_compiled,
    milliseconds,
    report,
    run_facts,
    spread,
    turn_about,
    usable_cores,
)
from rayssl.cli import refuse
from rayssl.envs.atari import AtariSettings, AtariStream, action_set
from rayssl.replay import Fragment, FrameReplay
from rayssl.rllib.algorithm import _to_rllib
from rayssl.rllib.aux_tasks import make_aux_tasks, sequence_columns
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.learner import AuxDQNLearner
from rayssl.tasks import available_pretext_tasks, available_tasks

logging.getLogger("ray").setLevel(logging.ERROR)  # a page about API stacks at every start
UPDATES_A_CALL = 8  # as the algorithm asks for where many are due
COLUMNS = ("name", "ms", "updates_per_s", "ratio_to_td", "claim")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures the time of TD and aux updates."""

    updates: int = 200
    """Updates of each kind in a turn."""
    repeats: int = 5
    """Turns that each kind gets."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    threads: int | None = None
    """CPU threads of torch; by default all cores that this process may use."""
    seed: int = 0
    """Seeds weights, states and draws."""
    compile: bool = True
    """torch.compile the losses."""
    batch_size: int = BATCH_SIZE
    """Transitions in an update."""
    gpu: bool = False
    """Update on a GPU, and keep the batches there."""
    cuda_graphs: bool = True
    """On a GPU, replay whole updates as CUDA graphs."""
    game: str = GAME
    """Its number of actions; its states."""
    tasks: tuple[str, ...] = tuple(available_tasks())
    """Pretext tasks to measure."""


def make_learner(task: str | None, threads: int, settings: Settings) -> AuxDQNLearner:
    """Returns a learner with the algorithm's default settings, for the game's actions."""
    config = AuxDQNConfig().environment(settings.game).auxiliary(task=task, cosine_every=0)
    config.training(
        compile_learner=settings.compile, learner_threads=threads, cuda_graphs=settings.cuda_graphs
    )
    config.learners(num_gpus_per_learner=int(settings.gpu))
    config.debugging(seed=settings.seed)
    config.validate()
    spec = config.get_default_rl_module_spec()
    spec.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    spec.action_space = gym.spaces.Discrete(len(action_set(settings.game)))
    modules = MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec})
    learner = AuxDQNLearner(config=config, module_spec=modules)
    learner.build()
    return learner


def play(game: str, steps: int, seed: int) -> FrameReplay:
    """Returns a replay of random play, `steps` agent steps of each of 8 games."""
    rng = np.random.default_rng(seed)
    stream = AtariStream(AtariSettings(game), seed)
    rows = [stream.step(rng.integers(0, stream.num_actions, stream.num_envs)) for _ in range(steps)]
    stream.close()
    replay = FrameReplay(steps * stream.num_envs, num_lanes=stream.num_envs, n_step=10, seed=seed)
    replay.add(Fragment(*(np.stack(column) for column in zip(*rows, strict=True))))
    return replay


def make_batch(
    replay: FrameReplay, updates: int, settings: Settings, task: str | None = None
) -> MultiAgentBatch:
    """Returns `updates` minibatches of real states, and what the task needs beside them."""
    batch = replay.sample(updates * settings.batch_size)
    tasks = make_aux_tasks(task, (1.0,))
    made = _to_rllib(batch, sequence_columns(tasks, replay, batch.indices))
    if settings.gpu:  # as with --replay-device learner
        columns = made[DEFAULT_MODULE_ID]
        for name in [name for name in columns if name.endswith("obs")]:
            columns[name] = torch.as_tensor(columns[name]).cuda()
    return made


def parts(settings: Settings, threads: int) -> dict[str, Callable[[], float]]:
    """Returns name -> a function that gives the mean ms of one update (of both, for `1:1`).

    Every part has run, and is compiled, when this returns.
    """
    steps = max(100, UPDATES_A_CALL * settings.batch_size // 4)
    replay = play(settings.game, steps, settings.seed)
    calls = max(1, settings.updates // UPDATES_A_CALL)

    def slots(learner: AuxDQNLearner, batch: MultiAgentBatch) -> Callable[[], float]:
        result = learner.update(batch, num_updates=UPDATES_A_CALL)  # compiles, captures
        graphs = settings.gpu and settings.cuda_graphs
        check_compiled(settings.compile, result, graphs=graphs)
        return lambda: (
            milliseconds(lambda: learner.update(batch, num_updates=UPDATES_A_CALL), calls)
            / UPDATES_A_CALL
        )

    def aux_alone(learner: AuxDQNLearner, batch: MultiAgentBatch) -> Callable[[], float]:
        columns = {k: learner._moved(v) for k, v in batch[DEFAULT_MODULE_ID].items()}
        size = settings.batch_size
        minibatches = [
            {k: v[i * size : (i + 1) * size] for k, v in columns.items()}
            for i in range(UPDATES_A_CALL)
        ]

        def updates() -> None:
            learner._stats.clear()  # what `update` does at its start
            for due in learner._due_tasks(minibatches):
                learner._aux_update(due)
            learner._reduced_stats()

        return lambda: milliseconds(updates, calls) / UPDATES_A_CALL

    plain = make_batch(replay, UPDATES_A_CALL, settings)
    # Each learner compiles the same functions for itself; from the ninth on they would run plain.
    torch._dynamo.config.recompile_limit = 64
    made = {"td": slots(make_learner(None, threads, settings), plain)}
    for task in settings.tasks:
        learner = make_learner(task, threads, settings)
        batch = make_batch(replay, UPDATES_A_CALL, settings, task)
        made[f"td+{task} 1:1"] = slots(learner, batch)
        made[f"aux {task}"] = aux_alone(learner, batch)
    return made


def claim(name: str) -> str | None:
    """Returns what the ratio to a TD update should not exceed, for one pass of one state."""
    if not any(name in (f"td+{task} 1:1", f"aux {task}") for task in available_pretext_tasks()):
        return None
    return "<= 1.7" if "1:1" in name else "<= 0.65"


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    threads = settings.threads or usable_cores()
    if settings.gpu and not torch.cuda.is_available():
        refuse("--gpu needs a GPU that PyTorch can use, and there is none. Leave it out.")
    facts = run_facts(settings) | {"threads": threads}
    try:
        functions = parts(settings, threads)
    except ValueError as error:  # an unknown game or task
        refuse(error)
    figures = turn_about(functions, settings.repeats)
    rows = []
    for name, values in figures.items():
        ratios = [value / td for value, td in zip(values, figures["td"], strict=True)]
        rows.append(
            {
                "name": name, "ms": spread(values),
                "updates_per_s": spread([1e3 / value for value in values]),
                "ratio_to_td": spread(ratios), "claim": claim(name), "run": facts,
            }
        )  # fmt: skip
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
