"""AuxDQNConfig: RLlib's fluent configuration for dueling double DQN with a pretext task."""

import math
from dataclasses import fields
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayssl.backbones.atari import TRUNKS
from rayssl.envs.atari import AtariSettings
from rayssl.evaluation import load_policy, load_trunk
from rayssl.rllib.aux_tasks import COMBINATIONS, SAMPLES, AuxTask, make_aux_tasks
from rayssl.schedules import AUX_SCHEDULES, AuxSchedule, AuxScheduleName, LinearSchedule
from rayssl.tasks import PretextTask, Sequences, make_tasks

TARGET_UNITS = ("steps", "updates")
OPTIMIZERS = ("shared", "separate")
REPLAY_DEVICES = ("auto", "host", "learner")
DTYPES = ("auto", "float32", "bfloat16")
CLIPS = ("global_norm", "norm")
AUGMENTATIONS = ("none", "shift")


# Options of experiments/atari.py that decide what is learned -> their names here.
_TRAINING_OPTIONS = {
    name: name
    for name in (
        "lr", "adam_epsilon", "gamma", "n_step", "double_q", "replay_ratio",
        "grad_clip", "grad_clip_by", "epsilon_end", "epsilon_steps", "augment", "prioritized",
        "clip_rewards", "cut_on_life_loss", "compute_dtype", "freeze_trunk",
    )
} | {
    "replay_capacity": "replay_capacity_steps", "learning_starts": "learning_starts_steps",
    "target_every": "target_update_freq", "target_unit": "target_update_unit",
}  # fmt: skip
_AUX_OPTIONS = {
    "schedule": "aux_schedule", "aux_combine": "aux_combine", "aux_samples": "aux_samples",
    "aux_every": "aux_every", "pretrain_updates": "pretrain_updates", "optimizers": "optimizers",
}  # fmt: skip


class AuxDQNConfig(AlgorithmConfig):
    """Configures AuxDQN.

        config = (
            AuxDQNConfig()
            .environment("ALE/Pong-v5")
            .auxiliary(task="permutation", weight=1.0, every=1, schedule="alternate")
            .env_runners(num_env_runners=16)
        )
        algo = config.build_algo()

    `environment(env_config=...)` takes the fields of rayssl.envs.atari.AtariSettings. Defaults are
    those of the preset `pong` (rayssl/presets.py), which has a source for each. All durations
    carry their unit: *steps* are agent steps (4 emulator frames), *updates* are gradient updates.
    """

    def __init__(self, algo_class: Any = None) -> None:
        from rayssl.rllib.algorithm import AuxDQN
        from rayssl.rllib.env_runner import AtariEnvRunner

        super().__init__(algo_class=algo_class or AuxDQN)
        # auxiliary()
        self.aux_task: str | None = None
        self.aux_weight: float | tuple[float, ...] = 1.0
        self.aux_combine = "cycle"
        self.aux_samples = "usable"
        self.aux_every = 1
        self.aux_schedule: AuxScheduleName = "alternate"
        self.pretrain_updates = 0
        self.policy: str | None = None
        self.init_from: str | None = None
        self.freeze_trunk = False
        self.optimizers = "shared"
        self.cosine_every = 200
        # training()
        self.network = "nature"
        self.lr = 2e-4
        self.adam_epsilon = 1e-5
        self.gamma = 0.99
        self.n_step = 10
        self.double_q = True
        self.train_batch_size_per_learner = 32
        self.replay_ratio = 0.25
        self.replay_capacity_steps = 100_000
        self.replay_device = "auto"
        self.learning_starts_steps = 3_000
        self.target_update_freq = 1_000
        self.target_update_unit = "steps"
        self.grad_clip = 10.0
        self.grad_clip_by = "global_norm"
        self.epsilon_start, self.epsilon_end, self.epsilon_steps = 1.0, 0.01, 30_000
        self.augment = "none"
        self.prioritized = False
        self.priority_alpha, self.priority_beta, self.priority_beta_steps = 0.6, 0.4, 1_000_000
        self.clip_rewards = True
        self.cut_on_life_loss = True
        self.compute_dtype = "auto"
        self.compile_learner = True
        self.cuda_graphs = True
        self.learner_threads = 1
        self.weights_every_updates = 32
        self.steps_per_iteration = 2_000
        self.evaluate_every_steps = 0
        self.games_per_evaluation = 100
        self.save_replay = True
        self.restore_from: str | None = None
        # AlgorithmConfig's own
        self.env = "ALE/Pong-v5"
        self.env_runner_cls = AtariEnvRunner
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 8
        self.rollout_fragment_length = 8
        self.create_env_on_local_worker = False
        self.validate_env_runners_after_construction = False  # train with those that are up
        self.max_requests_in_flight_per_env_runner = 2
        self.min_time_s_per_iteration = None
        self.min_sample_timesteps_per_iteration = 0
        self._dont_auto_sync_env_runner_states = True  # weights travel with sample requests
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0  # RLlib: 60
        self.env_runner_restore_timeout_s = 30.0
        self.num_cpus_for_main_process = 1

    def auxiliary(
        self,
        *,
        task: str | None = NotProvided,
        weight: float | tuple[float, ...] = NotProvided,
        combine: str = NotProvided,
        samples: str = NotProvided,
        every: int = NotProvided,
        schedule: str = NotProvided,
        pretrain_updates: int = NotProvided,
        policy: str | None = NotProvided,
        init_from: str | None = NotProvided,
        freeze_trunk: bool = NotProvided,
        optimizers: str = NotProvided,
        cosine_every: int = NotProvided,
    ) -> "AuxDQNConfig":
        """Sets the self-supervised task and how it is mixed with Q-learning.

        Args:
          task: a name of rayssl.tasks.available_tasks(), several of them joined by "+", or None /
            "none" for the plain baseline.
          weight: lambda of eq. (3); 1 in the paper, 0 is the plain baseline. With optimizers=
            "shared" it multiplies the aux loss; with "separate" the aux learning rate, because an
            Adam of its own divides a constant factor of the loss away again. A tuple: one for each
            task; then the largest multiplies the learning rate, the others are relative to it.
          combine: of several tasks, `cycle`: an aux update trains one, each in its turn; `sum`: an
            aux update trains the weighted sum of all.
          samples: which of a batch an aux update learns from. `usable`: those that the task's
            `usable` names; `all`: the others, too (equal frames, padding, steps past a game's end),
            as the paper's code.
          every: one aux update after this many TD updates.
          schedule: `alternate`, `joint`, `pretrain` or `aux-only` (rayssl.schedules.AuxSchedule).
          pretrain_updates: aux-only updates before the first TD update.
          policy: with `aux-only`: folder of a run or checkpoint whose network plays, greedily but
            for a share `epsilon_end`; None: random actions. All nodes must see it.
          init_from: folder of a run or checkpoint whose trunk this run starts from (heads and
            optimizer start anew); None: random weights. All nodes must see it.
          freeze_trunk: no update moves the trunk; only heads are trained.
          optimizers: `shared`: one Adam for both losses; `separate`: one each, as the paper's code.
          cosine_every: slots between two measurements of the cosine of TD and aux gradients on
            the trunk; 0: never. Each costs about one TD and one aux update.
        Returns:
          this config.
        """
        if task is not NotProvided:
            self.aux_task = None if task in (None, "none") else task
        self._set(
            aux_weight=weight,
            aux_combine=combine,
            aux_samples=samples,
            aux_every=every,
            aux_schedule=schedule,
            pretrain_updates=pretrain_updates,
            policy=policy,
            init_from=init_from,
            freeze_trunk=freeze_trunk,
            optimizers=optimizers,
            cosine_every=cosine_every,
        )
        return self

    def training(
        self,
        *,
        network: str = NotProvided,
        adam_epsilon: float = NotProvided,
        n_step: int = NotProvided,
        double_q: bool = NotProvided,
        replay_ratio: float = NotProvided,
        replay_capacity_steps: int = NotProvided,
        replay_device: str = NotProvided,
        learning_starts_steps: int = NotProvided,
        target_update_freq: int = NotProvided,
        target_update_unit: str = NotProvided,
        epsilon: tuple[float, float, int] = NotProvided,
        augment: str = NotProvided,
        prioritized: bool = NotProvided,
        priority_alpha: float = NotProvided,
        priority_beta: float = NotProvided,
        priority_beta_steps: int = NotProvided,
        clip_rewards: bool = NotProvided,
        cut_on_life_loss: bool = NotProvided,
        compute_dtype: str = NotProvided,
        compile_learner: bool = NotProvided,
        cuda_graphs: bool = NotProvided,
        learner_threads: int = NotProvided,
        weights_every_updates: int = NotProvided,
        steps_per_iteration: int = NotProvided,
        evaluate_every_steps: int = NotProvided,
        games_per_evaluation: int = NotProvided,
        save_replay: bool = NotProvided,
        restore_from: str | None = NotProvided,
        **kwargs: Any,
    ) -> "AuxDQNConfig":
        """Sets Q-learning; `lr`, `gamma`, `grad_clip`, ... go to RLlib's own `training`.

        Args:
          network: `nature`, `paper-code` or `paper-text` (rayssl.backbones.atari.TRUNKS).
          adam_epsilon: Adam's epsilon.
          n_step: rewards in a return.
          double_q: choose the bootstrap action with the online network.
          replay_ratio: TD updates per agent step, whatever the number of runners (0.25: one update
            per 4 steps).
          replay_capacity_steps: transitions kept, 7.06 kB each.
          replay_device: where their frames lie: `host`, this process's memory, or `learner`, the
            memory of the learner's GPU, where batches are then rebuilt; that one with one learner
            in this process (num_learners=0) only. `auto`: `learner` where there is such a GPU with
            twice as much free memory, else `host`.
          learning_starts_steps: steps before the first update.
          target_update_freq: period of the hard target update, in `target_update_unit`: "steps"
            (times replay_ratio: TD updates) or "updates" (TD updates).
          epsilon: (start, end, steps) of the linear schedule.
          augment: `none`, or `shift`: random shifts of the TD batch (rayssl.augmentation), the
            observations and the next ones each by a draw of their own.
          prioritized: proportional prioritized replay with `priority_alpha` and a beta that goes
            from `priority_beta` to 1 over `priority_beta_steps`.
          clip_rewards: learn from the sign of rewards; scores are never clipped.
          cut_on_life_loss: no bootstrapping across a lost life; games and scores go on.
          compute_dtype: `auto`, `float32` or `bfloat16` (rayssl.rllib.learner.resolve_dtype).
          compile_learner: compile updates (on a CPU, with one learner, each as one graph with its
            gradients and Adam: rayssl.compiled_graphs; else the losses alone, by torch.compile),
            and the choice of actions in the learner's process.
          cuda_graphs: on a GPU, whole updates and the choice of actions as CUDA graphs
            (rayssl.cuda_graphs), with one learner.
          learner_threads: CPU threads of the learner; beside one on a GPU, of the consoles, too.
          weights_every_updates: TD updates between two pushes of weights to the runners.
          steps_per_iteration: agent steps of one train() call.
          evaluate_every_steps: agent steps between two evaluations of the online network over
            `games_per_evaluation` whole games (rayssl.evaluation.play_games); 0: none. Training
            waits meanwhile, and is the same with and without them.
          save_replay: write the replay's contents into checkpoints.
          restore_from: checkpoint folder to start from.
        Returns:
          this config.
        """
        super().training(**kwargs)
        if epsilon is not NotProvided:
            if not isinstance(epsilon, tuple | list) or len(epsilon) != 3:
                raise ValueError(f"epsilon must be (start, end, steps), got {epsilon!r}.")
            self.epsilon_start, self.epsilon_end, self.epsilon_steps = epsilon
        self._set(
            network=network,
            adam_epsilon=adam_epsilon,
            n_step=n_step,
            double_q=double_q,
            replay_ratio=replay_ratio,
            replay_capacity_steps=replay_capacity_steps,
            replay_device=replay_device,
            learning_starts_steps=learning_starts_steps,
            target_update_freq=target_update_freq,
            target_update_unit=target_update_unit,
            augment=augment,
            prioritized=prioritized,
            priority_alpha=priority_alpha,
            priority_beta=priority_beta,
            priority_beta_steps=priority_beta_steps,
            clip_rewards=clip_rewards,
            cut_on_life_loss=cut_on_life_loss,
            compute_dtype=compute_dtype,
            compile_learner=compile_learner,
            cuda_graphs=cuda_graphs,
            learner_threads=learner_threads,
            weights_every_updates=weights_every_updates,
            steps_per_iteration=steps_per_iteration,
            evaluate_every_steps=evaluate_every_steps,
            games_per_evaluation=games_per_evaluation,
            save_replay=save_replay,
            restore_from=restore_from,
        )
        return self

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            if value is not NotProvided:
                setattr(self, name, value)

    def atari_settings(self) -> AtariSettings:
        """Returns the games that every runner plays: `env` with the fields of `env_config`.

        Raises:
          ValueError: for an unknown game or field, or two different numbers of games.
        """
        known = {field.name for field in fields(AtariSettings)}
        if not isinstance(self.env_config, dict):
            raise ValueError(
                "env_config must be a dict of AtariSettings' fields, got "
                f"{self.env_config!r}. Leave it out for the defaults."
            )
        unknown = set(self.env_config) - known
        if unknown:
            raise ValueError(
                f"Unknown env_config field {', '.join(sorted(unknown))}. "
                f"AtariSettings has: {', '.join(sorted(known))}."
            )
        own = {"game": self.env, "num_envs": self.num_envs_per_env_runner}
        merged = own | dict(self.env_config)
        if merged["num_envs"] != own["num_envs"]:  # the replay's lanes are counted with RLlib's
            raise ValueError(
                f"env_config has num_envs {merged['num_envs']}, but num_envs_per_env_runner is "
                f"{own['num_envs']}. Set it with .env_runners(num_envs_per_env_runner=...) only."
            )
        return AtariSettings(**merged)

    @property
    def training_options(self) -> dict[str, Any]:
        """Returns what was learned with, by the names of `rayssl.presets.AtariRun`, JSON values.

        Without a pretext task its options are left out; network, task and weight are never in it.
        """
        names = _TRAINING_OPTIONS | (_AUX_OPTIONS if self.aux_schedule_rule.name else {})
        batch_size = self.train_batch_size_per_learner * max(1, self.num_learners)
        return {"batch_size": batch_size} | {
            option: getattr(self, name) for option, name in names.items()
        }

    @property
    def aux_schedule_rule(self) -> AuxSchedule:
        """Returns which updates each slot has; TD only without a task or with weight 0."""
        if self.aux_task is None or self.top_aux_weight == 0:
            return AuxSchedule()
        return AuxSchedule(self.aux_schedule, self.aux_every, self.pretrain_updates)

    @property
    def aux_weights(self) -> tuple[float, ...]:
        """Returns one weight for each task, or one for all."""
        if isinstance(self.aux_weight, tuple | list):  # JSON has no tuples
            return tuple(self.aux_weight)
        return (self.aux_weight,)

    @property
    def top_aux_weight(self) -> float:
        """Returns the largest weight of a task."""
        return max(self.aux_weights)

    @property
    def aux_tasks(self) -> tuple[AuxTask, ...]:
        """Returns the tasks that are trained; () for the plain baseline."""
        if self.aux_schedule_rule.name is None:
            return ()
        return make_aux_tasks(self.aux_task, self.aux_weights)

    @property
    def pretrain_steps(self) -> int:
        """Returns the agent steps at which Q-learning begins after aux-only updates; 0 without any.

        They begin at `learning_starts_steps`. Acting is random meanwhile.
        """
        updates = self.aux_schedule_rule.pretrain_updates
        return self.learning_starts_steps + math.ceil(updates / self.replay_ratio) if updates else 0

    @property
    def target_period_updates(self) -> int:
        """Returns the period of the hard target update in TD updates, at least 1."""
        if self.target_update_unit == "updates":
            return self.target_update_freq
        return max(1, round(self.target_update_freq * self.replay_ratio))

    @property
    def num_lanes(self) -> int:
        """Returns the number of games played side by side by all runners."""
        return max(1, self.num_env_runners) * self.num_envs_per_env_runner

    def epsilon_at(self, env_steps: int) -> float:
        """Returns epsilon after this many agent steps; 1 while only the aux task is trained."""
        if self.aux_schedule == "aux-only":
            return self.epsilon_end if self.policy else 1.0
        if env_steps < self.pretrain_steps:
            return 1.0
        schedule = LinearSchedule(self.epsilon_start, self.epsilon_end, self.epsilon_steps)
        return schedule(env_steps - self.pretrain_steps)

    def beta_at(self, env_steps: int) -> float:
        """Returns the importance exponent of prioritized replay after this many agent steps."""
        return LinearSchedule(self.priority_beta, 1.0, self.priority_beta_steps)(env_steps)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns the spec of AuxDQNModule for this network, task and frame size."""
        from rayssl.rllib.module import AuxDQNModule

        settings = self.atari_settings()
        tasks = make_tasks(self.aux_task)
        alone = tasks[0] if len(tasks) == 1 else None
        classes = alone.num_classes if isinstance(alone, PretextTask) else 0
        return RLModuleSpec(
            module_class=AuxDQNModule,
            model_config={
                "network": self.network,
                "aux_classes": classes,
                "stack": settings.stack,
                "frame_size": settings.frame_size,
            }
            | ({"aux_task": self.aux_task} if tasks and not classes else {}),
        )

    def get_default_learner_class(self) -> type:
        """Returns AuxDQNLearner."""
        from rayssl.rllib.learner import AuxDQNLearner

        return AuxDQNLearner

    def validate(self) -> None:
        """Checks every value before anything is started.

        Raises:
          ValueError: what was expected, what came, and what to do.
        """
        settings = self.atari_settings()
        self._check_numbers()
        super().validate()
        if not isinstance(self.aux_task, str | None):
            raise ValueError(f"task must be the name of a task or None, got {self.aux_task!r}.")
        tasks = make_aux_tasks(self.aux_task, self.aux_weights)
        _ = self.aux_schedule_rule
        for name, choices in (
            ("aux_combine", COMBINATIONS),
            ("aux_samples", SAMPLES),
            ("augment", AUGMENTATIONS),
            ("aux_schedule", AUX_SCHEDULES),  # without a task, aux_schedule_rule does not look
            ("network", tuple(sorted(TRUNKS))),
            ("target_update_unit", TARGET_UNITS),
            ("optimizers", OPTIMIZERS),
            ("replay_device", REPLAY_DEVICES),
            ("compute_dtype", DTYPES),
            ("grad_clip_by", CLIPS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Unknown {name} '{getattr(self, name)}'. Available: {', '.join(choices)}."
                )
        if self.optimizers == "separate" and (not tasks or self.aux_schedule == "joint"):
            raise ValueError(
                "optimizers='separate' needs two losses that are stepped in turn: set a task and "
                f"schedule 'alternate' or 'pretrain', got task {self.aux_task or 'none'}, schedule "
                f"'{self.aux_schedule}'. Use optimizers='shared'."
            )
        self._check_aux_only()
        if self.init_from:
            load_trunk(self.init_from, self.network, settings.stack, settings.frame_size)
        if self.replay_device == "learner" and self.num_learners:
            raise ValueError(
                f"replay_device='learner' needs the learner in the algorithm's own process, got "
                f"num_learners={self.num_learners}. Use num_learners=0, or replay_device='host'."
            )
        for aux in tasks:
            _check_task_takes_frames(aux, settings)
            _check_task_has_others(aux, self.train_batch_size_per_learner)
        lanes, batch = self.num_lanes, self.total_train_batch_size
        need = lanes * (settings.stack + self.n_step) + max(lanes, batch)
        if self.replay_capacity_steps < max(need, self.learning_starts_steps):
            raise ValueError(
                f"replay_capacity_steps is {self.replay_capacity_steps}, but {self.num_lanes} "
                f"games side by side need {need} and learning starts at "
                f"{self.learning_starts_steps} steps. Raise it, or lower the others."
            )

    def _check_aux_only(self) -> None:
        """Raises ValueError, or what `load_policy` raises, for what does not go with aux-only."""
        if self.aux_schedule != "aux-only":
            if self.policy:
                raise ValueError(
                    f"A policy plays for schedule 'aux-only' alone, got '{self.aux_schedule}': "
                    "elsewhere the network that is trained plays. Leave policy out."
                )
            return
        if self.aux_schedule_rule.name is None:
            raise ValueError(
                "Schedule 'aux-only' needs a task and a weight above 0, got task "
                f"{self.aux_task or 'none'} and weight {self.top_aux_weight:g}."
            )
        if self.prioritized:
            raise ValueError(
                "Schedule 'aux-only' has no TD errors that replay could be prioritized by. Pass "
                "--no-prioritized."
            )
        if self.evaluate_every_steps:
            raise ValueError(
                "Schedule 'aux-only' trains no Q-values that an evaluation could play by. Pass "
                "--evaluate-every 0."
            )
        if self.policy:
            load_policy(self.policy, self.atari_settings())

    def _check_numbers(self) -> None:
        """Before RLlib looks: its own texts do not name a way out, or it compares text with 0."""
        checked = [(name, getattr(self, name), True) for name in _AT_LEAST if name != "aux_weight"]
        checked += [("aux_weight", weight, False) for weight in self.aux_weights or (None,)]
        for name, value, whole in checked:
            least = _AT_LEAST[name]
            if not _is_number(value, whole) or value < least:
                kind = "whole number" if whole else "number"
                raise ValueError(f"{name} must be a {kind} of {least} or more, got {value!r}.")
        for name in ("lr", "replay_ratio", "adam_epsilon", "grad_clip"):
            value = getattr(self, name)
            if name == "grad_clip" and value is None:
                continue  # no clipping
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a number above 0, got {value!r}.")
        for name in ("gamma", "epsilon_start", "epsilon_end", "priority_alpha", "priority_beta"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")
        if self.seed is not None and not (_is_number(self.seed, True) and 0 <= self.seed < 2**31):
            raise ValueError(f"seed must be a whole number in [0, 2**31), got {self.seed!r}.")


_AT_LEAST = {
    "aux_weight": 0, "aux_every": 1, "pretrain_updates": 0, "cosine_every": 0, "n_step": 1,
    "train_batch_size_per_learner": 1, "replay_capacity_steps": 1, "learning_starts_steps": 0,
    "target_update_freq": 1, "epsilon_steps": 0, "priority_beta_steps": 1, "learner_threads": 1,
    "weights_every_updates": 1, "steps_per_iteration": 1, "rollout_fragment_length": 1,
    "num_envs_per_env_runner": 1, "num_env_runners": 0, "num_learners": 0,
    "evaluate_every_steps": 0, "games_per_evaluation": 1,
}  # fmt: skip


def _is_number(value: Any, whole: bool = False) -> bool:
    """Whether a value is a finite number, and an int where it has to be `whole`; never a bool."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value)


def _check_task_has_others(aux: AuxTask, batch_size: int) -> None:
    """Refuses a batch of one for a task that asks which sample of a batch is the right one."""
    if batch_size == 1 and aux.task.chance(num_actions=2, batch_size=1) == 1:
        raise ValueError(
            f"Task {aux.task.name} compares the samples of a batch: each learner needs 2 or more, "
            "got 1. Raise --batch-size (train_batch_size_per_learner)."
        )


def _check_task_takes_frames(aux: AuxTask, settings: AtariSettings) -> None:
    """Asks the task itself, with two random states, so that a wrong pair fails before the start."""
    import torch

    steps = aux.task.num_steps
    shape = (2, steps + 1, settings.stack, settings.frame_size, settings.frame_size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())
    none = torch.zeros(2, steps)
    data = Sequences(frames, none.long(), none, none == 0)
    aux.task.usable(data)
    aux.task.draw(data, generator=torch.Generator())
