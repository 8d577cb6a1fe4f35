"""The env runner: acts in N games by epsilon-greedy and returns plain arrays of single frames."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.typing import StateDict

from rayssl.compiled_graphs import CompiledGraph
from rayssl.cuda_graphs import CudaGraph
from rayssl.envs.atari import AtariStream, Game, LifeEpisode, StepRow, action_set
from rayssl.evaluation import load_policy
from rayssl.networks import MultiHeadNetwork
from rayssl.replay import Fragment
from rayssl.rllib.checkpoint import MODEL_SETTINGS
from rayssl.rllib.learner import resolve_dtype, skip_filling_of_new_tensors


def steps_of_checkpoint(config: Any) -> int:
    """Returns the agent steps of the checkpoint that a run goes on from; 0 for a new run."""
    if not config.restore_from:
        return 0
    settings = Path(config.restore_from) / MODEL_SETTINGS
    return int(json.loads(settings.read_text())["env_steps"]) if settings.is_file() else 0


class Rollout(NamedTuple):
    """What one `sample` call returns: T steps of N games.

    Attributes:
      worker_index: which runner (0: the one in the algorithm's process).
      fragment: arrays `[T, N, ...]` for the replay.
      games, lives: whole games and lives that ended meanwhile.
      epsilon: of the last step.
    """

    worker_index: int
    fragment: Fragment
    games: list[Game]
    lives: list[LifeEpisode]
    epsilon: float


class AtariEnvRunner(EnvRunner, Checkpointable):
    """N games of one process; no episodes, no connectors, no autograd."""

    worker_index: int
    env: Any  # AtariStream; None in the algorithm's process if others play

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        skip_filling_of_new_tensors()
        self.worker_index = self.worker_index or 0
        self._weights_version = -1
        self._params: dict[str, torch.Tensor] = {}
        self._policy = self._load_policy()
        remote = self.worker_index > 0
        if remote:
            torch.set_num_threads(1)
        self._device = self._acting_device()
        self._dtype = resolve_dtype(self.config.compute_dtype, self._device)
        self._rng = np.random.default_rng([self._base_seed(), self.worker_index, 1])
        if remote or not self.config.num_env_runners:
            self.make_env()
        self.make_module()
        self._greedy = self._make_greedy()

    def make_env(self) -> None:
        """Starts this runner's games; each game has a seed of its own (AtariStream)."""
        if self.env is not None:
            self.env.close()
        settings = self.config.atari_settings()
        if self._device.type == "cuda" and "num_threads" not in self.config.env_config:
            # The learner is on that GPU, too: its CPU threads are free for the consoles.
            settings = replace(settings, num_threads=self.config.learner_threads)
        # A runner that replaces a lost one, or goes on in a resumed run, must not play the same
        # games again. (An in-process runner then restores its stream, seed and all.)
        entropy = [self._base_seed(), self.worker_index, steps_of_checkpoint(self.config)]
        if self.worker_index and ray.get_runtime_context().was_current_actor_reconstructed:
            entropy.append(int(np.random.default_rng().integers(1, 2**31)))
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        self.env = AtariStream(settings, seed)

    def make_module(self) -> None:
        """Builds the acting part of the module: trunk and Q-head."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build().eval().to(self._device)
        self._cast()

    def sample(
        self,
        *,
        num_steps: int | None = None,
        env_steps: int = 0,
        weights: Any = None,
        weights_version: int = 0,
        overlap: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Rollout:
        """Returns `num_steps` agent steps of every game.

        Args:
          num_steps: T; None: the config's rollout_fragment_length.
          env_steps: agent steps that the whole run has sampled so far; epsilon follows it.
          weights: list with the object ref of the newest module state; fetched if
            `weights_version` is newer.
          overlap: called once a step while the consoles run, with the agent steps done in this
            call; an algorithm in the same process learns there.
        Returns:
          a Rollout with arrays `[T, N, ...]`.
        """
        if weights is not None and weights_version > self._weights_version:
            self.set_state({COMPONENT_RL_MODULE: ray.get(weights[0])})
            self._weights_version = weights_version
        steps = num_steps or self.config.rollout_fragment_length
        rows: list[StepRow] = []
        epsilon = 1.0
        for t in range(steps):
            epsilon = self.config.epsilon_at(env_steps + t * self.env.num_envs)
            self.env.send(self._act(epsilon))
            if overlap is not None:
                overlap((t + 1) * self.env.num_envs)
            rows.append(self.env.recv())
        games, lives = self.env.take_games()
        self.num_env_steps_sampled_lifetime += steps * self.env.num_envs
        fragment = Fragment(*(np.stack(column) for column in zip(*rows, strict=True)))
        return Rollout(self.worker_index, fragment, games, lives, epsilon)

    def _act(self, epsilon: float) -> np.ndarray:
        """Epsilon-greedy actions, int64 `[N]`; the network is asked only where it decides."""
        n = self.env.num_envs
        explore = self._rng.random(n) < epsilon
        actions = self._rng.integers(0, self.env.num_actions, n)
        if not explore.all():
            obs = torch.from_numpy(self.env.obs).to(self._device)
            with torch.no_grad():
                greedy = self._greedy(obs)[0].cpu().numpy()
            actions = np.where(explore, actions, greedy)
        return actions

    def _make_greedy(self) -> CompiledGraph | CudaGraph:
        """The choice of actions in its fastest form.

        Compiled only beside the learner, which compiles in any case: for remote runners, as many as
        there are, the seconds of compiling would come at every start of every one.
        """
        name = "the choice of actions"
        if self._device.type == "cuda":
            return CudaGraph(self._best_actions, self.config.cuda_graphs, name)
        if self.worker_index or not self.config.compile_learner:
            return CudaGraph(self._best_actions, False, name)
        return CompiledGraph(self._best_actions_with, self._params, self._best_actions, name)

    def _best_actions(self, obs: torch.Tensor) -> tuple[torch.Tensor]:
        """The first action of largest Q-value in each state, int64 `[N]`."""
        return self._best_actions_with(self._params, obs)

    def _best_actions_with(
        self, params: dict[str, torch.Tensor], obs: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (self._player().call_with(params, obs, "q").argmax(dim=1),)

    def _acting_device(self) -> torch.device:
        """The GPU of a learner in this process, if there is one: it has the weights already."""
        config = self.config
        alone = not config.num_env_runners and not config.num_learners
        if self.worker_index or not alone or not config.num_gpus_per_learner:
            return torch.device("cpu")
        device: torch.device = get_device(config, config.num_gpus_per_learner)
        return device

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Returns {module id: (observation space, action space)}."""
        settings = self.config.atari_settings()
        size = settings.frame_size
        obs = gym.spaces.Box(0, 255, (settings.stack, size, size), np.uint8)
        spaces: tuple[gym.Space, gym.Space] = (
            obs,
            gym.spaces.Discrete(len(action_set(settings.game))),
        )
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> StateDict:
        """Returns steps sampled, RNG and the games under way (and the module if asked for)."""
        state: StateDict = {
            "num_env_steps_sampled_lifetime": self.num_env_steps_sampled_lifetime,
            "rng": self._rng.bit_generator.state,
        }
        if self.env is not None:
            state["stream"] = self.env.get_state()
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(**kwargs)
        return state

    def set_state(self, state: StateDict) -> None:
        """Restores what is in the state: weights, RNG, games."""
        if COMPONENT_RL_MODULE in state:
            module_state = state[COMPONENT_RL_MODULE]
            if isinstance(module_state, ray.ObjectRef):
                module_state = ray.get(module_state)
            self.module.set_state(module_state.get(DEFAULT_MODULE_ID, module_state))
            self._cast()
        if "num_env_steps_sampled_lifetime" in state:
            self.num_env_steps_sampled_lifetime = state["num_env_steps_sampled_lifetime"]
        if "rng" in state:
            self._rng.bit_generator.state = state["rng"]
        if "stream" in state and self.env is not None:
            self.env.set_state(state["stream"])

    def take_weights(self, net: MultiHeadNetwork) -> None:
        """Acts with these weights from now on; of a learner in this process, without a detour."""
        newest = net.state_dict()
        own = self.module.net.state_dict()
        torch._foreach_copy_(list(own.values()), [newest[name] for name in own])
        self._cast()

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        """Returns the module."""
        return [(COMPONENT_RL_MODULE, self.module)]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores from a checkpoint folder, the weights as they act included."""
        super().restore_from_path(path, *args, **kwargs)
        self._cast()

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns what rebuilds this runner."""
        return (), {"config": self.config}

    def get_metrics(self) -> dict[str, Any]:
        """Returns {}: scores travel with the rollouts."""
        return {}

    def assert_healthy(self) -> None:
        """Raises AssertionError if the constructor did not finish."""
        assert self.env is not None
        assert hasattr(self, "module")

    def stop(self) -> None:
        """Frees the consoles."""
        if self.env is not None:
            self.env.close()

    def _base_seed(self) -> int:
        return int(self.config.seed or 0)

    def _load_policy(self) -> MultiHeadNetwork | None:
        """The network that plays in place of the one that is trained; None: that one plays."""
        if not self.config.policy:
            return None
        return load_policy(self.config.policy, self.config.atari_settings()).network

    def _player(self) -> Any:
        return self.module.net if self._policy is None else self._policy

    def _cast(self) -> None:
        """Casts the weights once, for all steps until they change."""
        player = self._player().to(memory_format=torch.channels_last)
        player.cast_into(self._params, self._dtype, self._device)
