"""Env steps and updates per second beside peers: same machine, same work, turn about.

    python benchmarks/throughput.py --json benchmarks/results/throughput.json
    python benchmarks/throughput.py --only rayssl-none,bare-limit --seconds 20

Work: Breakout, 84x84 grey, 4 frames stacked, frame skip 4, batch 32, one TD update per 4 agent
steps, epsilon 0.1. Every measurement is a fresh process: start, fill of the replay and compiling
are not timed. Rows take turns (A B C A B C ...), so that a slow minute of the machine meets all.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bare_limit, plain_loop
from benchmarks.measure import (
    BATCH_SIZE,
    EPSILON,
    LEARNING_RATE,
    LOAD,
    MAX_GRAD_NORM,
    NUM_ENVS,
    REPLAY_CAPACITY,
    STEPS_PER_UPDATE,
    Figures,
    Meter,
    Turn,
    check_compiled,
    peak_rss_mib,
    report,
    run_facts,
    spread,
    usable_cores,
)
from rayssl.cli import refuse
from rayssl.report import markdown_table

MEASURED = (*Figures._fields, "peak_rss_mib")
COLUMNS = (
    "name", "env_steps_per_s", "updates_per_s", "aux_updates_per_s", "steps_per_update",
    "peak_rss_mib", "bytes_per_transition",
)  # fmt: skip
SPARE_SECONDS = 600.0  # for start, fill and compiling; a child that takes longer is given up


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures env steps and updates per second of rayssl and its peers, one process a turn."""

    seconds: float = 60.0
    """Length of each timed window, seconds; a row may overrun it by one of its own iterations."""
    repeats: int = 3
    """Turns that every row gets."""
    only: str | None = None
    """Names of rows, separated by commas; all if not given."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    threads: int | None = None
    """CPU threads of torch in every row; by default all cores that this process may use."""
    seed: int = 0
    """Seeds weights, games and draws; the n-th turn adds n."""
    fill_steps: int = 1_000
    """Agent steps before the first update, not timed."""
    warm_updates: int = 50
    """TD updates before the timed window."""
    compile: bool = True
    """torch.compile in the rows that use it."""
    measure: str | None = None
    """Measure this one row once, in this process, and print its figures as JSON."""


def start_own_ray() -> None:
    """Starts a Ray of this process's own; RLlib would start or join one by itself."""
    from experiments.atari import start_ray
    from rayssl.rllib.resources import ensure_auth_token

    ensure_auth_token()
    start_ray("local")


def measure_rayssl(task: str, turn: Turn) -> Figures:
    """Returns the figures of AuxDQN with a task, configured as experiments/atari.py does."""
    from experiments.atari import build_config
    from rayssl.presets import AtariRun, preset_values

    start_own_ray()
    values = preset_values("breakout") | {
        "aux_task": task, "epsilon_steps": 1, "epsilon_end": EPSILON, "seed": turn.seed,
        "learning_starts": turn.fill_steps, "compile": turn.compile,
        "replay_capacity": REPLAY_CAPACITY, "envs_per_worker": NUM_ENVS, "batch_size": BATCH_SIZE,
        "replay_ratio": 1 / STEPS_PER_UPDATE, "aux_every": 1,
    }  # fmt: skip
    config = build_config(AtariRun(**values))
    config.training(learner_threads=turn.threads)
    algo, meter = config.build_algo(), Meter(turn)
    result = {"env_steps": 0, "td_updates": 0, "aux_updates": 0}
    while meter.goes_on(result["env_steps"], result["td_updates"], result["aux_updates"]):
        result = algo.train()
        if result["td_updates"]:
            check_compiled(turn.compile, result)
    net = algo.learner_group._learner._net
    figures = meter.figures(
        algo.replay.bytes_per_transition, sum(p.numel() for p in net.parameters())
    )
    algo.stop()
    return figures


def measure_sb3(turn: Turn) -> Figures:
    """Returns the figures of Stable-Baselines3's DQN."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    class Clock(BaseCallback):
        """Reads the meter after every step of the games; False ends `learn`."""

        def __init__(self) -> None:
            super().__init__()
            self.meter = Meter(turn)

        def _on_step(self) -> bool:
            return self.meter.goes_on(self.model.num_timesteps, self.model._n_updates)

    env = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", NUM_ENVS, seed=turn.seed), 4)
    model = DQN(
        "CnnPolicy", env, learning_rate=LEARNING_RATE, buffer_size=REPLAY_CAPACITY,
        learning_starts=turn.fill_steps, batch_size=BATCH_SIZE, train_freq=1,
        gradient_steps=NUM_ENVS // STEPS_PER_UPDATE, target_update_interval=1_000,
        exploration_initial_eps=EPSILON, exploration_final_eps=EPSILON,
        max_grad_norm=MAX_GRAD_NORM, seed=turn.seed, device="cpu",
    )  # fmt: skip
    clock = Clock()
    model.learn(total_timesteps=10**9, callback=clock)
    buffer = model.replay_buffer
    arrays = (
        buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards,
        buffer.dones, buffer.timeouts,
    )  # fmt: skip
    per_transition = sum(array.nbytes for array in arrays) / (buffer.buffer_size * NUM_ENVS)
    return clock.meter.figures(per_transition, sum(p.numel() for p in model.q_net.parameters()))


def measure_rllib(turn: Turn) -> Figures:
    """Returns the figures of RLlib's own DQN on the new API stack."""
    start_own_ray()
    algo, meter = rllib_config(turn).build_algo(), Meter(turn)
    updates = 0
    update = algo.learner_group.update

    def counted(**kwargs: Any) -> Any:
        nonlocal updates
        updates += 1
        return update(**kwargs)

    algo.learner_group.update = counted
    steps = 0
    while meter.goes_on(steps, updates):
        result = algo.train()
        steps = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
    buffer = algo.local_replay_buffer
    module = algo.learner_group._learner.module["default_policy"]
    online = {n: p for n, p in module.named_parameters() if not n.startswith("_target")}
    figures = meter.figures(
        episodes_nbytes(buffer.episodes) / buffer.get_num_timesteps(),
        sum(p.numel() for p in online.values()),
    )
    algo.stop()
    return figures


def rllib_config(turn: Turn) -> Any:
    """Returns RLlib's DQNConfig for the common work."""
    import gymnasium as gym
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
    from ray.tune.registry import register_env

    def make_env(_: Any) -> Any:
        name = "ale_py:ALE/Breakout-v5"
        game = gym.make(name, frameskip=1, repeat_action_probability=0.0)
        # Stacking by connectors does not work with DQN's replay (ValueError: axes don't match).
        return wrap_atari_for_new_api_stack(game, dim=84, framestack=4)

    register_env("breakout-84x84x4", make_env)
    # The last "convolution" is the shared layer of 512 units, which no other option gives.
    filters = [[32, 8, 4, "valid"], [64, 4, 2, "valid"], [64, 3, 1, "valid"], [512, 7, 1, "valid"]]
    return (
        DQNConfig()
        .environment("breakout-84x84x4")
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=NUM_ENVS, rollout_fragment_length=1
        )
        .training(
            double_q=True, dueling=True, n_step=1, lr=LEARNING_RATE, grad_clip=MAX_GRAD_NORM,
            train_batch_size_per_learner=BATCH_SIZE, epsilon=EPSILON,
            training_intensity=BATCH_SIZE / STEPS_PER_UPDATE,
            num_steps_sampled_before_learning_starts=turn.fill_steps,
            target_network_update_freq=1_000,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": REPLAY_CAPACITY},
        )
        .framework(torch_skip_nan_gradients=True)  # else two passes over all parameters
        .rl_module(
            model_config=DefaultModelConfig(
                conv_filters=filters, conv_activation="relu", head_fcnet_hiddens=[]
            )
        )
        .debugging(seed=turn.seed)
    )  # fmt: skip


def episodes_nbytes(episodes: Sequence[Any]) -> int:
    """Returns the bytes of the arrays that RLlib's episodes hold."""
    columns = ("observations", "actions", "rewards")
    total = 0
    for episode in episodes:
        for column in columns:
            data = getattr(episode, column).data
            total += data.nbytes if hasattr(data, "nbytes") else sum(item.nbytes for item in data)
        total += sum(buffer.data.nbytes for buffer in episode.extra_model_outputs.values())
    return total


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      measure: makes one measurement.
      settings: what the row runs, in words.
      needs: packages beyond rayssl's own; the row is left out where one is missing.
    """

    measure: Callable[[Turn], Figures]
    settings: str
    needs: tuple[str, ...] = ()


_RAYSSL = (
    "AuxDQN as experiments/atari.py --preset breakout builds it, in-process runner: 8 games, "
    "Nature trunk, dueling double DQN, n-step 10, compiled, bfloat16 where the CPU has it; epsilon "
    "fixed at 0.1, learning from the start; "
)
ROWS = {
    "rayssl-none": Row(lambda turn: measure_rayssl("none", turn), _RAYSSL + "TD updates only"),
    "rayssl-permutation": Row(
        lambda turn: measure_rayssl("permutation", turn),
        _RAYSSL + "one aux update (permutation) after every TD update",
    ),
    "rayssl-rotation": Row(
        lambda turn: measure_rayssl("rotation", turn),
        _RAYSSL + "one aux update (rotation) after every TD update",
    ),
    "sb3": Row(
        measure_sb3,
        "Stable-Baselines3 DQN (it has neither double nor dueling), CnnPolicy, make_atari_env with "
        "8 games in a DummyVecEnv and VecFrameStack(4), train_freq=1, gradient_steps=2, n-step 1, "
        "uniform replay that keeps obs and next_obs",
        ("stable_baselines3", "cv2"),
    ),
    "rllib-dqn": Row(
        measure_rllib,
        "RLlib 2.60 DQN, new API stack, dueling double DQN, num_env_runners=0 (its sampling waits "
        "for its learning in any case), 8 games, rollout_fragment_length=1, training_intensity=8, "
        "wrap_atari_for_new_api_stack(dim=84, framestack=4), uniform EpisodeReplayBuffer, n-step "
        "1, valid padding and a shared layer of 512 (its default network has 8M parameters), no "
        "checks for NaN; where a game starts anew its runner adds a step of all games, so that "
        "it makes about a tenth fewer updates a step: see steps_per_update",
        ("cv2",),
    ),
    "plain-loop": Row(plain_loop.measure, plain_loop.SETTINGS, ("cv2",)),
    "bare-limit": Row(bare_limit.measure, bare_limit.SETTINGS),
}


def measure_here(name: str, turn: Turn) -> dict[str, Any]:
    """Returns the figures of one row, measured once in this process."""
    torch.set_num_threads(turn.threads)
    return ROWS[name].measure(turn)._asdict() | {"peak_rss_mib": peak_rss_mib()}


def measure_in_child(name: str, turn: Turn) -> dict[str, Any]:
    """Returns the figures of one row, measured in a fresh process.

    Raises:
      RuntimeError: with the last line of its errors, if it fails or hangs.
    """
    words = [
        sys.executable, str(Path(__file__).resolve()), "--measure", name,
        "--seconds", str(turn.seconds), "--threads", str(turn.threads), "--seed", str(turn.seed),
        "--fill-steps", str(turn.fill_steps), "--warm-updates", str(turn.warm_updates),
        "--compile" if turn.compile else "--no-compile",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(turn.threads)}
    limit = SPARE_SECONDS + 10 * turn.seconds
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=limit, check=True
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"gave no figures in {limit:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error_line(error.stderr) or f"exit code {error.returncode}") from None
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def error_line(stderr: str) -> str:
    """Returns the last line that names an error, else the last line; a Ray may log after it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|error:", line)]
    return (named or lines or [""])[-1]


def missing(row: Row) -> str | None:
    """Returns why a row cannot be measured here and how to change that; None if it can."""
    absent = [name for name in row.needs if find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} is not installed: pip install -e '.[bench]'"


def measure_all(names: Sequence[str], settings: Settings, threads: int) -> list[dict[str, Any]]:
    """Returns one object a row: spreads over the repeats, or why there are none."""
    rows = {name: {"name": name, "settings": ROWS[name].settings} for name in names}
    for name in names:
        if why := missing(ROWS[name]):
            rows[name]["skipped"] = why
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(settings.repeats):
        turn = Turn(
            settings.seconds, settings.fill_steps, settings.warm_updates, threads,
            settings.seed + repeat, settings.compile,
        )  # fmt: skip
        for name in names:
            if rows[name].keys() & {"skipped", "failed"}:
                continue
            try:
                samples[name].append(measure_in_child(name, turn))
            except RuntimeError as error:
                rows[name]["failed"] = str(error)
                continue
            speed = samples[name][-1]["env_steps_per_s"]
            print(f"turn {repeat + 1}/{settings.repeats} {name}: {speed:.1f} steps/s", flush=True)
    return [rows[name] | spreads(samples[name]) for name in names]


def spreads(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns measured figure -> spread over the samples; None where a row has no such figure."""
    if not samples:
        return {}
    columns = {key: [sample[key] for sample in samples] for key in MEASURED}
    updates = zip(columns["env_steps_per_s"], columns["updates_per_s"], strict=True)
    columns["steps_per_update"] = [steps / made for steps, made in updates]
    return {key: None if None in values else spread(values) for key, values in columns.items()}


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Adds `ratio_to`: this row's median steps/s divided by that of each other measured row."""
    medians = {
        row["name"]: row["env_steps_per_s"]["median"] for row in rows if "env_steps_per_s" in row
    }
    for row in rows:
        if row["name"] in medians:
            own = medians[row["name"]]
            row["ratio_to"] = {n: own / other for n, other in medians.items() if n != row["name"]}


def ratio_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns `ratio_to` as a table: the row's median steps/s divided by the column's."""
    measured = [row for row in rows if "ratio_to" in row]
    return [
        {"steps/s / those of": row["name"]}
        | {other["name"]: row["ratio_to"].get(other["name"], 1.0) for other in measured}
        for row in measured
    ]


def machine_line(facts: dict[str, Any]) -> str:
    """Returns the processor, its load, the commit and the versions of a run in one line."""
    machine, versions = facts["machine"], facts["versions"].items()
    return (
        f"{machine['cpu']}, {machine['usable_cores']} cores, load {machine[LOAD]} at the start; "
        f"commit {facts['commit']}; " + ", ".join(f"{name} {v}" for name, v in versions if v)
    )


def chosen_rows(only: str | None) -> list[str]:
    """Returns the names of the rows to measure. Raises ValueError for an unknown one."""
    names = list(ROWS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in ROWS:
            raise ValueError(f"Unknown row '{name}'. Available: {', '.join(ROWS)}.")
    return names


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    threads = settings.threads or usable_cores()
    try:
        names = chosen_rows(settings.measure or settings.only)
    except ValueError as error:
        refuse(error)
    if settings.measure:
        turn = Turn(
            settings.seconds, settings.fill_steps, settings.warm_updates, threads, settings.seed,
            settings.compile,
        )  # fmt: skip
        print(json.dumps(measure_here(settings.measure, turn)), flush=True)
        return []
    facts = run_facts(settings) | {"threads": threads, "work": " ".join((__doc__ or "").split())}
    limit = facts["arithmetic"] = bare_limit.arithmetic(threads)
    rows = measure_all(names, settings, threads)
    add_ratios(rows)
    for row in rows:
        row["run"] = facts
    report(rows, COLUMNS, settings.json)
    if ratios := ratio_table(rows):
        print(f"\n{markdown_table(ratios)}")
    print(f"\n{machine_line(facts)}")
    print(
        f"arithmetic: {limit['gflop_per_update']:.2f} GFLOP a TD update, {limit['gflop_per_s']:.0f}"
        f" GFLOP/s of {limit['dtype']} matrix products here: {limit['env_steps_per_s']:.0f} env "
        "steps/s at most"
    )
    if any("failed" in row for row in rows):
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    main()
