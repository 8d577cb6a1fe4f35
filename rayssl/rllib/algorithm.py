"""AuxDQN: sampling that goes on while the learner learns, at a replay ratio that holds.

    one process (num_env_runners=0)      send actions | TD, aux updates | receive frames | ...
    with runners                         requests in flight | add fragments | due updates | ...

Updates due = (agent steps - learning_starts_steps) * replay_ratio, whatever the number of runners;
requests are held back when updates fall behind by more than one round of fragments.
"""

import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.typing import ResultDict, StateDict

from rayssl.device_frames import DeviceFrames
from rayssl.evaluation import evaluation_figures, make_agent
from rayssl.replay import Batch, FrameReplay, FrameStore, HostFrames
from rayssl.rllib.aux_tasks import sequence_columns
from rayssl.rllib.checkpoint import (
    MODEL,
    MODEL_SETTINGS,
    REPLAY,
    damage,
    hidden_code,
    write_manifest,
)
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.env_runner import Rollout
from rayssl.rllib.learner import AUX_FIGURES, DISCOUNTS, TD_FIGURES, WEIGHTS

logger = logging.getLogger(__name__)
SAMPLE, PING = "sample", "ping"  # tags of the requests in flight
PING_EVERY_S = 1.0  # between two pings to lost runners
NO_RUNNER_LIMIT_S = 600.0  # a run whose runners are all lost for so long ends with an error
MAX_UPDATES_A_CALL = 8
EVALUATION_ENVS = 16  # games of an evaluation side by side
EVALUATION_SEED = 1_000_003  # added to the run's seed
ACTING = ("backbone.", "heads.q.")  # prefixes of the weights that acting needs
WINDOW = 100  # games, section V-C: "Mean Score in 100 episodes"


class AuxDQN(Algorithm):
    """Dueling double DQN with a self-supervised task on its trunk, section IV-B."""

    @classmethod
    def get_default_config(cls) -> AuxDQNConfig:
        """Returns the config that Tune builds this algorithm from."""
        return AuxDQNConfig()

    def setup(self, config: AuxDQNConfig) -> None:
        """Builds replay, runners and learner; memory is checked before any of them starts."""
        self._env_steps = 0
        self._learn_from_steps = config.learning_starts_steps
        self._slots_before = 0  # slots done before `_learn_from_steps`
        self._replay_ratio = config.replay_ratio
        self._slots = 0
        self._counts = {"td_updates": 0, "aux_updates": 0}
        self._how: dict[str, int] = {}  # the updates are computed: 0 or 1 a name
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._life_scores: deque[float] = deque(maxlen=WINDOW)
        self._best_life_mean = float("nan")
        self._games = 0
        self._epsilon = 1.0
        self._evaluated_at = 0  # agent steps of the newest evaluation
        self._evaluation: dict[str, float] = {}
        self._updates_at_push = -1
        self._weights_version = 0
        self._weights_ref: Any = None
        self._last_ping = 0.0
        self._stats: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self._seconds: dict[str, float] = defaultdict(float)
        self._last_report: float | None = None  # time of the last result
        self._aux_tasks = config.aux_tasks
        # Kept in the state: a resumed run's config no longer names it.
        self._init_from = str(config.init_from) if config.init_from else None
        self.replay = self._make_replay(config)
        super().setup(config)
        self._push_weights()
        if config.restore_from:
            self.load_checkpoint(config.restore_from)

    def training_step(self) -> None:
        """Samples `steps_per_iteration` agent steps and makes the updates that they are due."""
        self._stats.clear()
        self._seconds.clear()
        self._evaluation = {}
        now = time.perf_counter()
        start = now if self._last_report is None else self._last_report
        self._seconds["logging"] = now - start  # of the last report, and of a checkpoint
        self._iteration_start = start, self._env_steps, self._updates_made()
        # Checkpoints fall between iterations: a resumed runner starts with the same weights.
        self._push_weights()
        target = self._env_steps + self.config.steps_per_iteration
        if self.env_runner_group.num_remote_env_runners():
            self._train_with_runners(target)
        else:
            self._train_in_process(target)
        self.metrics.log_value(
            (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME),
            self._env_steps - self._iteration_start[1],
            reduce="lifetime_sum",
        )
        if self._scores:
            self.metrics.log_value(
                (ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), float(np.mean(self._scores)), window=1
            )
        every = self.config.evaluate_every_steps
        if every and self._env_steps // every > self._evaluated_at // every:
            with self._timed("evaluation"):
                self._evaluation = self._evaluate_online()
            self._evaluated_at = self._env_steps

    def _evaluate_online(self) -> dict[str, float]:
        """Scores of the online network over whole games; every evaluation plays the same starts.

        The games are others than those of training: their seeds come from one far away. Nothing
        that training draws from is touched.
        """
        weights = {k: v for k, v in self.model_state().items() if k.startswith(ACTING)}
        agent = make_agent(self.model_settings() | {"aux_task": None}, weights)
        if self.learner_group.is_local:  # where it learns
            agent.network.to(self.learner_group._learner._device)
        settings = self.config.atari_settings()
        return evaluation_figures(
            agent,
            replace(settings, num_envs=EVALUATION_ENVS, num_threads=self.config.learner_threads),
            games=self.config.games_per_evaluation,
            seed=(self.config.seed or 0) + EVALUATION_SEED,
        )

    def _train_in_process(self, target: int) -> None:
        """Learns while the consoles run; the order of events is the same in every run."""
        runner = self.env_runner
        while self._env_steps < target:
            started = time.perf_counter()
            busy = self._busy_seconds()
            rollout = runner.sample(env_steps=self._env_steps, overlap=self._learn_due)
            elapsed = time.perf_counter() - started
            self._seconds["sampling"] += elapsed - (self._busy_seconds() - busy)
            self._take(rollout)

    def _train_with_runners(self, target: int) -> None:
        """Keeps requests in flight, adds what is ready, and learns what is due."""
        last_news = time.monotonic()
        # Until the updates of `target` steps are made, not of all that arrive meanwhile: where the
        # learner is the slower side there is always more.
        while self._env_steps < target or self._updates_due(target - self._env_steps) > 0:
            self.restore_env_runners(self.env_runner_group)
            with self._timed("sampling"):
                rollouts = self._fetch_and_request()
            for rollout in rollouts:
                self._take(rollout)
            due = self._updates_due()
            self._learn(min(due, MAX_UPDATES_A_CALL))
            if rollouts:
                last_news = time.monotonic()
            elif not due:
                self._wait_for_runners(last_news)

    def _fetch_and_request(self) -> list[Rollout]:
        """Rollouts that are ready; asks every runner for more unless updates lag behind."""
        manager = self.env_runner_group._worker_manager
        results = manager.fetch_ready_async_reqs(tags=SAMPLE, timeout_seconds=0.0)
        # Lost runners are marked unhealthy by the manager; restore_env_runners brings them back.
        rollouts = [result.get() for result in results if result.ok]
        pending = manager.num_outstanding_async_reqs(tag=SAMPLE)
        room = self._steps_allowed() - self._env_steps - len(rollouts) * self._fragment_steps
        if pending * self._fragment_steps < room:
            manager.foreach_actor_async(
                SAMPLE,
                tag=SAMPLE,
                kwargs={
                    "env_steps": self._env_steps,
                    "weights": [
                        self._weights_ref
                    ],  # in a list: the runner fetches it if it is newer
                    "weights_version": self._weights_version,
                },
            )
        return rollouts

    def _steps_allowed(self) -> int:
        """Agent steps that may be sampled or in flight: one round ahead of the updates."""
        ahead = 2 * self._fragment_steps * max(1, self.config.num_env_runners)
        learned = (self._slots - self._slots_before) / self.config.replay_ratio
        allowed = int(self._learn_from_steps + learned)
        if self.replay.num_sampleable < self.config.total_train_batch_size:
            allowed = max(allowed, self._env_steps)  # no update can be due before there is a batch
        return allowed + ahead

    @property
    def _fragment_steps(self) -> int:
        return self.config.rollout_fragment_length * self.config.num_envs_per_env_runner

    def _wait_for_runners(self, last_news: float) -> None:
        """Sleeps a little; gives up when no runner sent anything for long."""
        with self._timed("waiting"):
            time.sleep(0.001)
        if time.monotonic() - last_news > NO_RUNNER_LIMIT_S:
            raise RuntimeError(
                f"No env runner sent anything for {NO_RUNNER_LIMIT_S:.0f} s "
                f"({self.env_runner_group.num_healthy_remote_env_runners()} of "
                f"{self.config.num_env_runners} are alive). Check the nodes with `ray status`, "
                "then go on from the last checkpoint with --resume."
            )

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Returns the runners that came back since the last call; never waits for one.

        RLlib's own blocks until each lost runner answers or a time-out passes, before every
        training step: a node that does not come back would stall the run. Here lost runners are
        pinged, and those that answered are taken back. They get weights with their next sample
        request, as all do.
        """
        manager = env_runner_group._worker_manager
        lost = set(manager.actor_ids()) - set(manager.healthy_actor_ids())
        if not lost:
            return []
        manager.fetch_ready_async_reqs(tags=PING, timeout_seconds=0.0, mark_healthy=True)
        back = sorted(lost & set(manager.healthy_actor_ids()))
        silent = sorted(lost.difference(back))
        if silent and time.monotonic() - self._last_ping >= PING_EVERY_S:
            self._last_ping = time.monotonic()
            manager.foreach_actor_async(
                "ping", tag=PING, remote_actor_ids=silent, healthy_only=False
            )
        return back

    def _take(self, rollout: Rollout) -> None:
        """Adds a rollout to replay, counters and scores."""
        lane = max(0, rollout.worker_index - 1) * self.config.num_envs_per_env_runner
        with self._timed("replay"):
            self.replay.add(rollout.fragment, first_lane=lane)
        self._env_steps += rollout.fragment.actions.size
        self._epsilon = rollout.epsilon
        for game in rollout.games:
            self._scores.append(game.score)
            self._lengths.append(game.length)
            self._games += 1
        for life in rollout.lives:
            self._life_scores.append(life.clipped_score)
            if len(self._life_scores) == WINDOW:
                self._best_life_mean = float(
                    np.nanmax([self._best_life_mean, np.mean(self._life_scores)])
                )

    def _learn_due(self, steps_in_flight: int) -> None:
        """Makes the updates due, counting steps that are sampled but not yet in the replay."""
        while due := self._updates_due(steps_in_flight):
            self._learn(min(due, MAX_UPDATES_A_CALL))

    def _updates_made(self) -> int:
        return self._counts["td_updates"] + self._counts["aux_updates"]

    def _updates_due(self, steps_in_flight: int = 0) -> int:
        steps = self._env_steps + steps_in_flight - self._learn_from_steps
        if steps < 0 or self.replay.num_sampleable < self.config.total_train_batch_size:
            return 0
        return int(steps * self.config.replay_ratio) + self._slots_before - self._slots

    def _learn(self, num_updates: int) -> None:
        """Makes `num_updates` slots; with prioritized replay one by one, for fresh priorities."""
        if num_updates <= 0:
            return
        if self.config.prioritized and num_updates > 1:
            for _ in range(num_updates):
                self._learn(1)
            return
        size = self.config.total_train_batch_size * num_updates
        with self._timed("replay"):
            batch = self.replay.sample(size, beta=self.config.beta_at(self._env_steps))
            sequences = sequence_columns(self._aux_tasks, self.replay, batch.indices)
        with self._timed("learning"):
            results, td_errors = self._update(batch, sequences, num_updates)
        self._slots += num_updates
        td_updates = self._counts["td_updates"]
        self._counts = {k: results[0]["counts"][k] for k in self._counts}
        self._how = {k: int(results[0][k]) for k in ("compiled", "cuda_graphs", "bfloat16")}
        if self.config.prioritized and self._counts["td_updates"] > td_updates:
            with self._timed("replay"):
                self.replay.update_priorities(batch.indices, td_errors)
        for result in results:
            for name, pair in result["stats"].items():
                self._stats[name] += pair
        if self._slots - self._updates_at_push >= self.config.weights_every_updates:
            self._push_weights()

    def _update(
        self, batch: Batch, more: dict[str, np.ndarray], num_updates: int
    ) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Makes the updates of K slots and returns the learners' results and all TD errors.

        RLlib hands each learner as many consecutive rows: as they stand, the first of two learners
        would get whole minibatches, the second the others.

        Args:
          batch, more: `[K * B]` rows, minibatch after minibatch; see `_to_rllib`.
          num_updates: K.
        Returns:
          {"counts", ...} of each learner; float32 `[K * B]`, in the order of the batch.
        """
        num_learners = max(1, self.config.num_learners)
        order = shard_order(len(batch.indices), num_updates, num_learners)
        if num_updates > 1 and num_learners > 1:
            batch = Batch(*(column[order] for column in batch))
            more = {name: column[order] for name, column in more.items()}
        results = self.learner_group.update(batch=_to_rllib(batch, more), num_updates=num_updates)
        td_errors = np.empty(len(order), np.float32)
        td_errors[order] = np.concatenate([result["td_errors"] for result in results])
        return results, td_errors

    def _push_weights(self) -> None:
        """Hands the newest weights to the runners: at once in process, else with a request."""
        with self._timed("weights"):
            self._updates_at_push = self._slots
            self._weights_version += 1
            runners = self.env_runner_group.num_remote_env_runners()
            if self.learner_group.is_local and not runners:
                self.env_runner.take_weights(
                    self.learner_group._learner.module[DEFAULT_MODULE_ID].net
                )
                return
            state = self.learner_group.get_state(
                components=COMPONENT_LEARNER + "/" + COMPONENT_RL_MODULE, inference_only=True
            )[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
            if runners:
                self._weights_ref = ray.put(state)
            else:
                self.env_runner.set_state({COMPONENT_RL_MODULE: state})

    def _compile_iteration_results(self, **kwargs: Any) -> ResultDict:
        """RLlib's results, with ours flat beside them; docs/results.md explains each."""
        results = super()._compile_iteration_results(**kwargs)
        start, steps, updates = self._iteration_start
        self._last_report = time.perf_counter()
        wall = self._last_report - start
        mean = {name: total / count for name, (total, count) in self._stats.items() if count}
        own = [f"{name}{aux.suffix}" for aux in self._aux_tasks for name in AUX_FIGURES]
        results.update(dict.fromkeys((*TD_FIGURES, *own), float("nan")) | mean)
        results.update(
            env_steps=self._env_steps,
            games=self._games,
            epsilon=self._epsilon,
            score_mean_100=_mean(self._scores),
            score_last=self._scores[-1] if self._scores else float("nan"),
            game_length_mean_100=_mean(self._lengths),
            paper_code_score_mean_100=_mean(self._life_scores),
            paper_code_score_best=self._best_life_mean,
            env_steps_per_s=(self._env_steps - steps) / wall,
            updates_per_s=(self._updates_made() - updates) / wall,
            replay_rows=len(self.replay),
            replay_fill=len(self.replay) / self.replay.capacity,
            replay_bytes=self.replay.nbytes,
            **self._evaluation,
            **self._counts,
            **self._how,
        )
        busy = sum(self._seconds.values())
        results.update({f"time_{k}": v / wall for k, v in self._seconds.items()})
        results["time_other"] = max(0.0, 1 - busy / wall)
        if self.env_runner_group.num_remote_env_runners():
            results["healthy_runners"] = self.env_runner_group.num_healthy_remote_env_runners()
            results["runner_restarts"] = self.env_runner_group.num_remote_worker_restarts()
        return results

    # Checkpoints. RLlib leaves the replay out without a word (rllib-notes.md, 3.4 f).

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Saves everything to a folder, the manifest last, and returns its path.

        Beside RLlib's files: `model.pt` (weights only, float32) with `model.json`, which need
        neither Ray nor unpickling to be read; `replay.lz4` (streamed); `manifest.json`.
        """
        saved = Path(super().save_to_path(path, **kwargs))
        torch.save(self.model_state(), saved / MODEL)
        (saved / MODEL_SETTINGS).write_text(json.dumps(self.model_settings(), indent=1))
        if self.config.save_replay:
            self.replay.save(saved / REPLAY)
        write_manifest(saved)
        return str(saved)

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores everything from a folder that `save_to_path` wrote; runs none of its code.

        Raises:
          ValueError: if the checkpoint was cut short, is damaged, holds more than plain data, or is
            of another game or network.
        """
        wrong = damage(path)
        if wrong:
            raise ValueError(f"Checkpoint {path} cannot be used: {wrong}. Take an older one.")
        wrong = hidden_code(path)
        if wrong:
            raise ValueError(
                f"Checkpoint {path} is refused: {wrong}. It was not written by rayssl as it is; "
                f"its weights alone can be used: experiments/evaluate.py reads {MODEL}."
            )
        self._check_same_model(Path(path))
        super().restore_from_path(path, *args, **kwargs)
        if (Path(path) / REPLAY).exists():
            self.replay.restore(Path(path) / REPLAY)
        else:  # learn again when the replay holds enough
            self._slots_before = self._slots
            self._learn_from_steps = self._env_steps + self.config.learning_starts_steps
        self._push_weights()

    def model_state(self) -> dict[str, torch.Tensor]:
        """Returns the online network's weights by name, float32 on the CPU, aux head included."""
        state = self.learner_group.get_state(
            components=COMPONENT_LEARNER + "/" + COMPONENT_RL_MODULE
        )[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
        prefix = "net."
        return {
            name.removeprefix(prefix): torch.from_numpy(np.array(value))
            for name, value in state.items()
            if name.startswith(prefix)
        }

    def model_settings(self) -> dict[str, Any]:
        """Returns what rebuilds network and games, and what they learned with: JSON values."""
        settings = self.config.atari_settings()
        return {
            "game": settings.game,
            "network": self.config.network,
            "aux_task": self.config.aux_task,
            "aux_weight": self.config.top_aux_weight if self.config.aux_task else 0.0,
            "stack": settings.stack,
            "frame_size": settings.frame_size,
            "frame_skip": settings.frame_skip,
            "fire_at_start": settings.fire_at_start,
            "noop_max": settings.noop_max,
            "sticky": settings.sticky,
            "env_steps": self._env_steps,
            "td_updates": self._counts["td_updates"],
            "aux_updates": self._counts["aux_updates"],
            "seed": self.config.seed,
            "training": self.config.training_options | {"init_from": self._init_from},
        }

    def _check_same_model(self, path: Path) -> None:
        from rayssl.envs.atari import rom_id

        saved, own = json.loads((path / MODEL_SETTINGS).read_text()), self.model_settings()
        saved["game"], own["game"] = rom_id(saved["game"]), rom_id(own["game"])
        for name in ("game", "network", "aux_task", "stack", "frame_size"):
            if saved[name] != own[name]:
                raise ValueError(
                    f"Checkpoint {path} has {name} {saved[name] or 'none'}, this run "
                    f"{own[name] or 'none'}. Resume with the settings that it was made with."
                )

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns RLlib's state and ours: counters, scores, epsilon."""
        state = super().get_state(*args, **kwargs)
        state["rayssl"] = {name: getattr(self, name) for name in _STATE}
        return state

    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned."""
        super().set_state(state)
        for name, value in state.get("rayssl", {}).items():
            setattr(self, name, value)
        if self._replay_ratio != self.config.replay_ratio:
            self._replay_ratio = self.config.replay_ratio
            if self._env_steps > self._learn_from_steps:  # the new ratio is of the steps to come
                self._learn_from_steps, self._slots_before = self._env_steps, self._slots

    def _make_replay(self, config: AuxDQNConfig) -> FrameReplay:
        size = config.atari_settings().frame_size
        make_frames: Callable[[int, int], FrameStore] = HostFrames
        if config.replay_device == "learner" or _has_room(config, size * size):
            device = get_device(config, config.num_gpus_per_learner)
            make_frames = partial(DeviceFrames, device=device)
        return FrameReplay(
            config.replay_capacity_steps,
            num_lanes=config.num_lanes,
            frame_shape=(size, size),
            stack=config.atari_settings().stack,
            n_step=config.n_step,
            gamma=config.gamma,
            clip_rewards=config.clip_rewards,
            cut_on_life_loss=config.cut_on_life_loss,
            prioritized=config.prioritized,
            alpha=config.priority_alpha,
            seed=config.seed,
            make_frames=make_frames,
        )

    def _busy_seconds(self) -> float:
        return self._seconds["learning"] + self._seconds["replay"] + self._seconds["weights"]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - start


_STATE = (
    "_env_steps", "_learn_from_steps", "_slots_before", "_slots", "_replay_ratio", "_counts",
    "_scores", "_lengths", "_life_scores", "_best_life_mean", "_games", "_epsilon",
    "_updates_at_push", "_evaluated_at", "_init_from",
)  # fmt: skip


def shard_order(num_rows: int, num_updates: int, num_learners: int) -> np.ndarray:
    """Returns the order of rows in which equal consecutive shards hold a share of every minibatch.

        rows of 2 minibatches   0 1 2 3 | 4 5 6 7
        order for 2 learners    0 1 4 5 | 2 3 6 7

    Args:
      num_rows: of all minibatches together; a multiple of num_updates * num_learners.
      num_updates: minibatches.
      num_learners: shards.
    Returns:
      int64 `[num_rows]`: place -> row.
    """
    rows = np.arange(num_rows).reshape(num_updates, num_learners, -1)
    return rows.swapaxes(0, 1).ravel()


def _has_room(config: AuxDQNConfig, pixels: int) -> bool:
    """Whether replay_device `auto` takes the GPU of a learner in this process.

    It takes half of what is free, and half of its share of a GPU that trials share: those that
    start together all see the same memory free.
    """
    share = config.num_gpus_per_learner
    if config.replay_device != "auto" or not share or config.num_learners:
        return False
    device = get_device(config, share)
    if device.type != "cuda":  # Ray gave this process none
        return False
    free, total = torch.cuda.mem_get_info(device)
    return bool(2 * config.replay_capacity_steps * pixels <= min(free, min(1, share) * total))


def _mean(values: deque[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _to_rllib(batch: Batch, more: dict[str, Any] | None = None) -> MultiAgentBatch:
    """The replay's batch under RLlib's column names, and what the aux tasks need beside it."""
    columns = SampleBatch(
        {
            Columns.OBS: batch.obs,
            Columns.NEXT_OBS: batch.next_obs,
            Columns.ACTIONS: batch.actions,
            Columns.REWARDS: batch.returns,
            DISCOUNTS: batch.discounts,
            WEIGHTS: batch.weights,
        }
        | (more or {})
    )
    return MultiAgentBatch({DEFAULT_MODULE_ID: columns}, env_steps=len(batch.actions))
