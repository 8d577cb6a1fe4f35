"""What an aux update costs beside a TD update, with the learner's fast settings.

    python benchmarks/update_cost.py --json benchmarks/results/update_cost.json

Compiled, channels_last, bfloat16 where the hardware has it, batch 32, Nature trunk; in one process,
the parts taking turns. To check: aux update <= 0.65 of a TD update; TD and aux 1:1 <= 1.7 times TD
alone. Ratios are taken within a turn, where both sides met the same machine. On a GPU:

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
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    BATCH_SIZE,
    GAME,
    milliseconds,
    report,
    run_facts,
    spread,
    turn_about,
    usable_cores,
)
from rayssl.cli import refuse
from rayssl.envs.atari import AtariSettings, action_set, make_vector_env
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.learner import AuxDQNLearner

logging.getLogger("ray").setLevel(logging.ERROR)  # a page about API stacks at every start
TASKS = ("permutation", "rotation")
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


def make_learner(task: str | None, threads: int, settings: Settings) -> AuxDQNLearner:
    """Returns a learner with the algorithm's default settings, on Breakout's 4 actions."""
    config = AuxDQNConfig().environment(GAME).auxiliary(task=task, cosine_every=0)
    config.training(compile_learner=settings.compile, learner_threads=threads)
    config.learners(num_gpus_per_learner=int(settings.gpu))
    config.debugging(seed=settings.seed)
    config.validate()
    spec = config.get_default_rl_module_spec()
    spec.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    spec.action_space = gym.spaces.Discrete(len(action_set(GAME)))
    modules = MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec})
    learner = AuxDQNLearner(config=config, module_spec=modules)
    learner.build()
    return learner


def make_batch(updates: int, settings: Settings) -> MultiAgentBatch:
    """Returns `updates` minibatches of real states, which the tasks can label."""
    rng = np.random.default_rng(settings.seed)
    rows = updates * settings.batch_size
    states = torch.from_numpy(real_states(2 * rows, settings.seed))
    if settings.gpu:  # as with --replay-device learner
        states = states.cuda()
    columns = {
        "obs": states[:rows],
        "new_obs": states[rows:],
        "actions": rng.integers(0, len(action_set(GAME)), rows),
        "rewards": rng.integers(-1, 2, rows).astype(np.float32),
        "discounts": np.full(rows, 0.99, np.float32),
        "weights": np.ones(rows, np.float32),
    }
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, rows)


def real_states(count: int, seed: int) -> np.ndarray:
    """Returns states of random play, uint8 `[count, 4, 84, 84]`, in random order."""
    rng = np.random.default_rng(seed)
    env = make_vector_env(AtariSettings(GAME))
    env.reset(seed=seed)
    n = env.single_action_space.n
    steps = [
        env.step(rng.integers(0, n, env.num_envs))[0] for _ in range(-(-count // env.num_envs))
    ]
    env.close()
    return rng.permutation(np.concatenate(steps))[:count]


def parts(settings: Settings, threads: int) -> dict[str, Callable[[], float]]:
    """Returns name -> a function that gives the mean ms of one update (of both, for `1:1`).

    Every part has run, and is compiled, when this returns.
    """
    batch = make_batch(UPDATES_A_CALL, settings)
    observations = list(batch[DEFAULT_MODULE_ID]["obs"].split(settings.batch_size))
    calls = max(1, settings.updates // UPDATES_A_CALL)

    def slots(learner: AuxDQNLearner) -> Callable[[], float]:
        learner.update(batch, num_updates=UPDATES_A_CALL)
        return lambda: (
            milliseconds(lambda: learner.update(batch, num_updates=UPDATES_A_CALL), calls)
            / UPDATES_A_CALL
        )

    def aux_alone(learner: AuxDQNLearner) -> Callable[[], float]:
        def updates() -> None:
            learner._stats.clear()  # what `update` does at its start
            labels = learner._labels_of(observations)
            for obs, of_obs in zip(observations, labels, strict=True):
                learner._aux_update(obs, of_obs)
            learner._reduced_stats()

        return lambda: milliseconds(updates, calls) / UPDATES_A_CALL

    made = {"td": slots(make_learner(None, threads, settings))}
    for task in TASKS:
        learner = make_learner(task, threads, settings)
        made[f"td+{task} 1:1"] = slots(learner)
        made[f"aux {task}"] = aux_alone(learner)
    return made


def claim(name: str) -> str | None:
    """Returns what the ratio to a TD update should not exceed."""
    if name == "td":
        return None
    return "<= 1.7" if "1:1" in name else "<= 0.65"


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    threads = settings.threads or usable_cores()
    if settings.gpu and not torch.cuda.is_available():
        refuse("--gpu needs a GPU that PyTorch can use, and there is none. Leave it out.")
    facts = run_facts(settings) | {"threads": threads}
    figures = turn_about(parts(settings, threads), settings.repeats)
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
