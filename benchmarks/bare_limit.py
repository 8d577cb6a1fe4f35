"""How fast this work can go at all: consoles, network and optimizer, and nothing else.

No replay (batches are random rows of an array), no scores, no metrics, no checks, no Ray:

    send actions | 2 compiled TD updates while 8 games play | receive | act by epsilon-greedy
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import (
    BATCH_SIZE,
    EPSILON,
    GAME,
    GAMMA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    NUM_ENVS,
    STEPS_PER_UPDATE,
    Figures,
    Meter,
    Turn,
    check_compiled,
    milliseconds,
)
from rayssl.compiled_graphs import CompiledGraph
from rayssl.envs.atari import AtariSettings, make_vector_env
from rayssl.losses import double_q_td_error, td_loss
from rayssl.memory import keep_freed_memory
from rayssl.networks import MultiHeadNetwork, make_atari_network
from rayssl.optimizers import ADAM_STATE, adam_steps, clip_scales
from rayssl.rllib.learner import resolve_dtype

SETTINGS = (
    f"ale-py's AtariVectorEnv, {NUM_ENVS} games on one C++ thread, stepped during the updates; "
    "Nature trunk, dueling double DQN, channels_last, bfloat16 where the CPU has it, losses, "
    "gradients, clipping and Adam compiled as one graph; batches are random rows of an array that "
    "never changes"
)
TARGET_PERIOD_UPDATES = 250  # 1,000 steps, as rayssl's default
SHAPE = (4, 84, 84)

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def measure(turn: Turn) -> Figures:
    """Returns the figures of one measurement."""
    torch.manual_seed(turn.seed)
    rng = np.random.default_rng(turn.seed)
    env = make_vector_env(AtariSettings(GAME, num_envs=NUM_ENVS))
    num_actions = int(env.single_action_space.n)
    agent = Agent(num_actions, turn.compile)
    actions = np.zeros(NUM_ENVS, np.int64)
    env.reset(seed=turn.seed)
    draw = batches(collect_states(env, turn.fill_steps, rng), num_actions, rng)
    meter, steps, updates = Meter(turn), 0, 0
    while meter.goes_on(steps, updates):
        env.send(actions)
        for _ in range(NUM_ENVS // STEPS_PER_UPDATE):
            agent.update(draw())
        obs = env.recv()[0]
        actions = np.where(
            rng.random(NUM_ENVS) < EPSILON, rng.integers(0, num_actions, NUM_ENVS), agent.act(obs)
        )
        steps, updates = steps + NUM_ENVS, updates + NUM_ENVS // STEPS_PER_UPDATE
        check_compiled(turn.compile, {"compiled": agent.compiled})
    env.close()
    return meter.figures(None, sum(p.numel() for p in agent.net.parameters()))


def collect_states(env: Any, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the states of `steps` random steps, uint8 `[steps, 84, 84, 4]`: channels last.

    So laid out the network reads them as they are; frames one after another must be interleaved.
    """
    states = []
    for _ in range(max(1, steps // NUM_ENVS)):
        obs = env.step(rng.integers(0, env.single_action_space.n, NUM_ENVS))[0]
        states.append(obs.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(np.concatenate(states))


def batches(states: np.ndarray, num_actions: int, rng: np.random.Generator) -> Callable[[], Batch]:
    """Returns a function that draws (obs, next_obs, actions, rewards, discounts)."""
    discounts = torch.full((BATCH_SIZE,), GAMMA)
    rows = states.reshape(len(states), -1)

    def draw() -> Batch:
        chosen = rows[rng.integers(0, len(rows), 2 * BATCH_SIZE)]
        both = torch.from_numpy(chosen).view(2, BATCH_SIZE, *SHAPE[1:], SHAPE[0])
        obs, next_obs = both.permute(0, 1, 4, 2, 3)
        actions = torch.from_numpy(rng.integers(0, num_actions, BATCH_SIZE))
        rewards = torch.from_numpy(rng.integers(-1, 2, BATCH_SIZE).astype(np.float32))
        return obs, next_obs, actions, rewards, discounts

    return draw


def arithmetic(threads: int) -> dict[str, Any]:
    """Returns what the network's arithmetic alone allows on this machine.

    Returns:
      dtype: of the convolutions and large layers; gflop_per_update: a TD update's; gflop_per_s: of
      this machine, multiplying two matrices of 1024 x 1024 in that dtype on `threads` threads, the
      best of 20; env_steps_per_s: as many as these two allow at one update per 4 steps. No program
      that does this work can pass it, but one whose convolutions need fewer multiplications.
    """
    states = np.zeros((2 * BATCH_SIZE, *SHAPE[1:], SHAPE[0]), np.uint8)
    agent = Agent(num_actions=4, compile_it=False)
    gflop = agent.gflop_of_update(batches(states, 4, np.random.default_rng(0))())
    dtype, before = resolve_dtype("auto", torch.device("cpu")), torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    seconds = min(milliseconds(lambda: a @ b, 1) for _ in range(20)) / 1e3
    torch.set_num_threads(before)
    per_s = 2 * 1024**3 / seconds / 1e9
    return {
        "dtype": str(dtype).removeprefix("torch."), "gflop_per_update": gflop,
        "gflop_per_s": per_s, "env_steps_per_s": per_s / gflop * STEPS_PER_UPDATE,
    }  # fmt: skip


class Agent:
    """A dueling double Q-network, its target and the states of its Adam."""

    def __init__(self, num_actions: int, compile_it: bool) -> None:
        keep_freed_memory()
        self.net: MultiHeadNetwork = make_atari_network(
            "nature", num_actions=num_actions, aux_classes=0
        )
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._dtype = resolve_dtype("auto", torch.device("cpu"))
        state = {name: param.detach() for name, param in self.net.named_parameters()}
        self._names = list(state)
        self._target: dict[str, Tensor] = {}
        self._copy_target()
        for name in self._names:
            state[f"{name}/step"] = torch.zeros(())
            state |= {f"{name}/{key}": torch.zeros_like(state[name]) for key in ADAM_STATE[1:]}
        state |= {f"target.{name}": tensor for name, tensor in self._target.items()}
        self._state = state
        self._update, self._greedy = (
            partial(function, state) for function in (self._step, self._argmax)
        )
        if compile_it:
            self._update, self._greedy = (  # type: ignore[assignment]
                CompiledGraph(function, state, partial(function, state), function.__name__)
                for function in (self._step, self._argmax)
            )
        self._updates = 0

    @property
    def compiled(self) -> bool:
        """Whether updates and the choice of actions run compiled, as far as they have run."""
        graphs = (self._update, self._greedy)
        return all(isinstance(graph, CompiledGraph) and not graph.refused for graph in graphs)

    def update(self, batch: Batch) -> None:
        """Makes one TD update."""
        self._update(*batch)
        self._updates += 1
        if self._updates % TARGET_PERIOD_UPDATES == 0:
            self._copy_target()

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Returns greedy actions, int64 `[N]`, for uint8 `[N, 4, 84, 84]`."""
        with torch.no_grad():
            actions: np.ndarray = self._greedy(torch.from_numpy(obs))[0].numpy()
        return actions

    def gflop_of_update(self, batch: Batch) -> float:
        """Returns the arithmetic of one update without clipping and Adam, 1e9 operations.

        A multiplication and its addition are two. Counted as PyTorch runs it, uncompiled.
        """
        leaves = {name: self._state[name].clone().requires_grad_() for name in self._names}
        with FlopCounterMode(display=False) as counter:
            self._td_loss(leaves, self._target, *batch).backward()
        return counter.get_total_flops() / 1e9

    def _step(self, state: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, ...]:
        """Makes a gradient step in place and returns the loss."""
        leaves = {name: state[name].detach().requires_grad_() for name in self._names}
        target = {name: state[f"target.{name}"] for name in self._names}
        with torch.enable_grad():
            loss = self._td_loss(leaves, target, *batch)
            grads = torch.autograd.grad(loss, list(leaves.values()))
        adam_steps(
            [state[name] for name in self._names],
            grads,
            clip_scales(grads, MAX_GRAD_NORM, "global_norm"),
            [{key: state[f"{name}/{key}"] for key in ADAM_STATE} for name in self._names],
            lr=LEARNING_RATE,
            betas=(0.9, 0.999),
            eps=1e-8,
        )
        return (loss.detach(),)

    def _td_loss(
        self,
        params: dict[str, Tensor],
        target: dict[str, Tensor],
        obs: Tensor,
        next_obs: Tensor,
        actions: Tensor,
        rewards: Tensor,
        discounts: Tensor,
    ) -> Tensor:
        """The Huber loss of one batch; the next states' forwards build no graph."""
        params = self.net.cast_parameters(self._dtype, params)
        with torch.no_grad():
            q_t_value = self.net.call_with(target, next_obs, "q")
            q_t_selector = self.net.call_with(params, next_obs, "q")
        q_tm1 = self.net.call_with(params, obs, "q")
        errors = double_q_td_error(q_tm1, actions, rewards, discounts, q_t_value, q_t_selector)
        return td_loss(errors, torch.ones_like(errors))

    def _argmax(self, state: dict[str, Tensor], obs: Tensor) -> tuple[Tensor, ...]:
        own = {name: state[name] for name in self._names}
        params = self.net.cast_parameters(self._dtype, own)
        return (self.net.call_with(params, obs, "q").argmax(dim=1),)

    def _copy_target(self) -> None:
        self.net.cast_into(self._target, self._dtype)
