"""The job `atari`: a dueling double DQN on an Atari game, with or without a pretext head."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from ray import tune

from rayssl.backbones.atari import make_trunk
from rayssl.cli import check_name
from rayssl.envs.atari import rom_id
from rayssl.gpu_sharing import wait_asleep
from rayssl.jobs import Fit, Job, Row, Write
from rayssl.presets import PRESETS, AtariRun, preset_values, weights_of
from rayssl.replay import required_bytes
from rayssl.report import read_run, time_shares
from rayssl.rllib.algorithm import AuxDQN
from rayssl.rllib.checkpoint import MODEL_SETTINGS, newest_whole_checkpoint
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.resources import RUNNER_BYTES, Resources, fit_runner_cpus, total_cpus
from rayssl.rllib.run_log import COLUMNS, RunLog, live_line, task_columns

ALGORITHM_BYTES = 700e6  # of the algorithm's process without its replay: 529 MB, and its compiler
# Wall time of an evaluated whole game, seconds, one core: the medians of time_evaluation in
# results/paper-pong*-first (308, 564 and 741 s for 100 games) and the longer of Breakout's two.
SECONDS_A_GAME = {"pong": 5.6, "breakout": 0.7}

# Wall time of an agent step, seconds, of each of GPU_TRAININGS side by side on one NVIDIA H100 with
# 16 cores: medians of wall_s / env_steps at the ends of results/paper-gpu-first, 8 games in each.
GPU_SECONDS = {"none": 0.00145, "head": 0.0019}
GPU_TRAININGS = 18


def build_config(run: AtariRun) -> AuxDQNConfig:
    """Returns the algorithm's config for these settings; nothing is started."""
    plain = run.aux_task == "none"
    weights = weights_of(run.aux_weight)
    return (
        AuxDQNConfig()
        .environment(run.game, env_config={"frame_size": run.frame_size, "sticky": run.sticky})
        .auxiliary(
            task=run.aux_task, weight=weights if len(weights) > 1 else weights[0],
            combine=run.aux_combine, samples=run.aux_samples, every=run.aux_every,
            schedule=run.schedule, pretrain_updates=run.pretrain_updates,
            policy=str(run.policy) if run.policy else None,
            init_from=str(run.init_from) if run.init_from else None,
            freeze_trunk=run.freeze_trunk,
            optimizers="shared" if plain else run.optimizers,
        )
        .training(
            network=run.network, lr=run.lr, adam_epsilon=run.adam_epsilon, gamma=run.gamma,
            n_step=run.n_step, double_q=run.double_q, replay_ratio=run.replay_ratio,
            train_batch_size_per_learner=run.batch_size // max(1, run.num_learners),
            replay_capacity_steps=run.replay_capacity, replay_device=run.replay_device,
            learning_starts_steps=run.learning_starts,
            target_update_freq=run.target_every, target_update_unit=run.target_unit,
            grad_clip=run.grad_clip, grad_clip_by=run.grad_clip_by,
            epsilon=(1.0, run.epsilon_end, run.epsilon_steps), augment=run.augment,
            prioritized=run.prioritized,
            priority_beta_steps=run.priority_beta_steps or run.steps,
            clip_rewards=run.clip_rewards,
            cut_on_life_loss=run.cut_on_life_loss, compute_dtype=run.compute_dtype,
            compile_learner=run.compile, cuda_graphs=run.cuda_graphs,
            steps_per_iteration=steps_per_iteration(run),
            evaluate_every_steps=run.evaluate_every, games_per_evaluation=run.evaluation_games,
            save_replay=run.save_replay,
        )
        .env_runners(
            num_env_runners=run.num_workers, num_envs_per_env_runner=run.envs_per_worker
        )
        .learners(
            num_learners=run.num_learners,
            num_gpus_per_learner=run.num_gpus / max(1, run.num_learners),
        )
        .debugging(seed=run.seed)
    )  # fmt: skip


def steps_per_iteration(run: AtariRun) -> int:
    """Returns the agent steps of a report: an evaluation comes with one, and one ends the run."""
    return min(run.steps_per_report, run.steps, run.evaluate_every or run.steps)


def check_run(run: AtariRun) -> None:
    """Raises ValueError for settings that no run can have; starts nothing."""
    least = {"steps": 1, "steps_per_report": 1, "checkpoint_every": 1, "num_workers": 0,
             "envs_per_worker": 1, "num_learners": 0, "num_gpus": 0, "seed": 0,
             "learner_cpus": 1, "evaluate_every": 0, "evaluation_games": 1,
             "priority_beta_steps": 1}  # fmt: skip
    for name, smallest in least.items():
        value = getattr(run, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be {smallest} or more, got {value}.")
    check_name(run.name)
    if run.evaluate_every and run.steps % run.evaluate_every:
        raise ValueError(
            f"--steps {run.steps} is no multiple of --evaluate-every {run.evaluate_every}: the "
            "trained agent would go without its last evaluation. Choose one that divides it."
        )
    if run.priority_beta_steps is not None and not run.prioritized:
        raise ValueError(
            f"--priority-beta-steps {run.priority_beta_steps} is of prioritized replay, and this "
            "run's replay is uniform. Pass --prioritized, or leave it out."
        )
    if run.num_learners > 1 and run.batch_size % run.num_learners:
        raise ValueError(
            f"--batch-size {run.batch_size} is not shared evenly by {run.num_learners} learners. "
            "Choose a multiple."
        )
    # A run that goes on has its trunk: the one it started from may be gone.
    build_config(replace(run, init_from=None) if run.resume else run).validate()
    make_trunk(run.network, size=run.frame_size)  # refuses frames that are too small


class TrialOfAtari(AuxDQN):
    """AuxDQN with `AtariJob`'s Tune config: settings of an AtariRun and the sweep's."""

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        run: AtariRun = JOB.from_json(config)
        self._planned = run.steps
        main, *others = config["bundles"]
        algorithm = build_config(replace(run, num_gpus=main.get("GPU", 0)))
        if 0 < main.get("GPU", 0) < 1:
            wait_asleep()
        algorithm.num_cpus_for_main_process = algorithm.learner_threads = main["CPU"]
        if run.num_workers:
            algorithm.num_cpus_per_env_runner = others[0]["CPU"]
        algorithm.training(restore_from=config["restore_from"])
        tunes_own = {key: value for key, value in config.items() if key.startswith("__")}
        super().__init__(algorithm.to_dict() | tunes_own, **kwargs)

    @classmethod
    def default_resource_request(cls, config: Any) -> tune.PlacementGroupFactory:
        """Returns what the config says that this trial gets."""
        return tune.PlacementGroupFactory(config["bundles"])

    def step(self) -> dict[str, Any]:
        """Returns the columns of a run's log; `done` with the last step."""
        result = super().step()
        kept = {name: result[name] for name in (*COLUMNS, *task_columns(result)) if name in result}
        return kept | {"done": result["env_steps"] >= self._planned}


class AtariJob(Job):
    """Reinforcement learning, section V-A; progress is counted in agent steps."""

    name: ClassVar = "atari"
    settings: ClassVar = AtariRun
    presets: ClassVar = {name: preset_values(name) for name in PRESETS}
    unit: ClassVar = "env_steps"
    metric: ClassVar = "score_mean_100"
    judged_by: ClassVar = "the last mean score of 100 training games"
    not_swept: ClassVar = frozenset(
        {"seed", "preset", "name", "results_dir", "resume", "address", "learner_cpus", "num_gpus",
         "num_learners"}
    )  # fmt: skip
    aux_only: ClassVar = (
        "schedule", "aux_every", "aux_combine", "aux_samples", "pretrain_updates", "optimizers",
        "policy",
    )  # fmt: skip
    adaptable: ClassVar = ("aux_weight",)

    def check(self, settings: AtariRun) -> None:
        """Raises ValueError for settings that do not fit."""
        check_run(settings)

    def note(self, settings: AtariRun) -> str:
        """Returns a line if one Adam has a TD loss that importance weights shrink, and a head's."""
        run = self.plain(settings)
        if run.aux_task == "none" or run.schedule == "aux-only":
            return ""
        if not run.prioritized or run.optimizers != "shared":
            return ""
        away = "lower --aux-weight"
        if run.schedule != "joint":
            away = f"pass --optimizers separate, or {away}"
        return (
            f"note: prioritized replay makes the TD loss small and one Adam then follows the aux "
            f"loss, which cost Breakout's agent its score (RESULTS.md): {away}"
        )

    def plain(self, settings: AtariRun) -> AtariRun:
        """Returns the settings as they act, with the game by one of its names."""
        plain: AtariRun = super().plain(settings)
        try:
            return replace(plain, game=rom_id(plain.game))
        except ValueError:  # unknown, as `check` says
            return plain

    def trainable(self, trials: Sequence[AtariRun]) -> Any:
        """Returns the trainable."""
        return TrialOfAtari

    def planned(self, settings: AtariRun) -> int:
        """Returns the agent steps of a training."""
        return settings.steps

    def checkpoint_every(self, settings: AtariRun) -> int:
        """Returns the reports between two checkpoints."""
        return max(1, round(settings.checkpoint_every / steps_per_iteration(settings)))

    def bundles(self, settings: AtariRun, cpus: int, gpus: float) -> list[dict[str, float]]:
        """Returns the algorithm's process and its env runners, a core each."""
        frame = (settings.frame_size, settings.frame_size)
        replay = required_bytes(settings.replay_capacity, frame, settings.prioritized)
        main = {"CPU": cpus, "memory": int(ALGORITHM_BYTES + replay)}
        runner = {"CPU": 1.0, "memory": int(RUNNER_BYTES)}
        return [main | ({"GPU": gpus} if gpus else {})] + [runner] * settings.num_workers

    def fit(self, settings: AtariRun, cpus: int, gpus: float, nodes: Sequence[Resources]) -> Fit:
        """Returns the bundles with env runners that share cores if there are too few."""
        main, *runners = self.bundles(settings, cpus, gpus)
        fit = fit_runner_cpus(len(runners), main_bundle=main, nodes=nodes, total_cpus=total_cpus())
        return Fit([main] + [r | {"CPU": fit.cpus_per_runner} for r in runners], fit.message)

    def objective(self, row: Row, settings: AtariRun) -> float | None:
        """Returns the mean score of the last 100 whole games; None before the first game's end."""
        value = row.get(self.metric)
        return None if value is None or math.isnan(value) else float(value)

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the writer of progress.csv, result.json and tb/."""
        log = RunLog(folder, resumed_at)

        def write(result: dict[str, Any], settings: AtariRun) -> None:
            log.on_trial_result(0, [], None, result)
            if result["done"]:
                log.on_experiment_end([])

        return write

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Returns one row a report."""
        try:
            return read_run(folder).to_dict("records")
        except (OSError, ValueError):  # no row yet
            return []

    def newest_checkpoint(self, folder: Path) -> tuple[Path, int] | None:
        """Returns the newest whole checkpoint and its agent steps."""
        path = newest_whole_checkpoint(folder)
        if path is None:
            return None
        return path, int(json.loads((path / MODEL_SETTINGS).read_text())["env_steps"])

    def line(self, row: Row, settings: AtariRun) -> str:
        """Returns steps, score and speed."""
        return live_line(dict(row), settings.steps).strip()

    def seconds_per_unit(self, row: Row) -> float | None:
        """Returns the seconds of an agent step, over the whole run so far."""
        return row["wall_s"] / row["env_steps"] if row.get("wall_s") else None

    def time_shares(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the parts of the log's `time_*` columns: see `rayssl.report.time_shares`."""
        return time_shares(pd.DataFrame(rows)) if rows else {}

    def typical_seconds(self, settings: AtariRun) -> tuple[float, str]:
        """Returns what a step took in the first Pong runs of RESULTS.md, with its evaluations."""
        updates = 1 if settings.aux_task == "none" else 1 + 1 / settings.aux_every
        seconds = 0.0106 * updates * settings.replay_ratio / 0.25 * settings.batch_size / 32
        source = "Pong in RESULTS.md, one core of an AMD EPYC (Zen 4)"
        games, about = self._evaluations(settings)
        return seconds + games, source + about

    def typical_gpu_seconds(self, settings: AtariRun, on_each: int) -> tuple[float, str]:
        """Returns what a step took in results/paper-gpu-first; longer where more share the GPU."""
        updates = 1 if settings.aux_task == "none" else 1 + 1 / settings.aux_every
        an_update = GPU_SECONDS["head"] - GPU_SECONDS["none"]  # for each step, at replay ratio 0.25
        seconds = GPU_SECONDS["none"] + an_update * (updates * settings.replay_ratio / 0.25 - 1)
        seconds *= max(1.0, on_each / GPU_TRAININGS)
        source = (
            f"results/paper-gpu-first, {GPU_TRAININGS} trainings of strict side by side on one "
            "NVIDIA H100 with 16 cores"
        )
        games, about = self._evaluations(settings)
        return seconds + games, source + about + (", of a CPU core" if about else "")

    def _evaluations(self, settings: AtariRun) -> tuple[float, str]:
        """Seconds of the evaluations for each agent step, and their source; none: 0 and ""."""
        if not settings.evaluate_every:
            return 0.0, ""
        a_game = SECONDS_A_GAME.get(rom_id(settings.game), max(SECONDS_A_GAME.values()))
        seconds = a_game * settings.evaluation_games / settings.evaluate_every
        return seconds, f"; evaluations at {a_game:g} s a game: results/paper-*-first"

    def alike(self, saved: Mapping[str, Any], settings: AtariRun) -> bool:
        """Returns whether network, arithmetic, workers, updates and pretext task are the same."""
        if not isinstance(saved.get("game"), str):
            return False
        names = (
            "network", "num_workers", "envs_per_worker", "replay_ratio", "batch_size", "frame_size",
            "prioritized", "evaluate_every", "evaluation_games", "aux_task", "aux_every",
            "compute_dtype",
        )  # fmt: skip
        usual = asdict(AtariRun())  # of what older logs do not name
        return all(saved.get(k, usual.get(k)) == getattr(settings, k) for k in names)


JOB = AtariJob()
