"""Dueling double DQN on Atari as one plain loop, in the manner of CleanRL's dqn_atari.py.

One game, gymnasium's own wrappers, a ring of stacked uint8 states, eager float32 PyTorch. Nothing
here comes from rayssl: it is what a careful person writes in an afternoon, to compare with.
"""

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import (
    BATCH_SIZE,
    EPSILON,
    GAMMA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    REPLAY_CAPACITY,
    STEPS_PER_UPDATE,
    Figures,
    Meter,
    Turn,
)

SETTINGS = (
    "one game: gymnasium's AtariPreprocessing (a lost life ends an episode) and "
    "FrameStackObservation; ring of stacked uint8 states, the next state is the next row; Nature "
    "trunk, dueling double DQN, eager float32, Adam; acts, then learns, in turn"
)
TARGET_PERIOD_UPDATES = 250


class QNetwork(nn.Module):
    """Q-values, float32 `[B, A]`, of uint8 states `[B, 4, 84, 84]`; 1.69M parameters."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(),
        )  # fmt: skip
        self.advantage = nn.Linear(512, num_actions)
        self.value = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x / 255.0)
        advantage = self.advantage(features)
        values: Tensor = self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)
        return values


class Ring:
    """The last `capacity` transitions of one game, one state a row."""

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        self.obs = np.zeros((capacity, 4, 84, 84), np.uint8)
        self.actions = np.zeros(capacity, np.int64)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.float32)
        self.valid = np.zeros(capacity, bool)  # False where the next row is of another episode
        self.rng = rng
        self.added = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.obs, self.actions, self.rewards, self.terminated, self.valid)
        return sum(array.nbytes for array in arrays)

    def add(
        self, obs: np.ndarray, action: int, reward: float, terminated: bool, truncated: bool
    ) -> None:
        """Appends one step over the oldest."""
        row = self.added % len(self.obs)
        self.obs[row], self.actions[row] = obs, action
        self.rewards[row], self.terminated[row] = np.sign(reward), terminated
        self.valid[row] = not truncated
        self.added += 1

    def sample(self) -> tuple[Tensor, ...]:
        """Returns obs, actions, rewards, next_obs, terminated of BATCH_SIZE rows."""
        stored = min(self.added, len(self.obs))
        oldest = self.added - stored
        chosen = oldest + self.rng.integers(0, stored - 1, BATCH_SIZE)  # the newest has no next
        rows, following = chosen % len(self.obs), (chosen + 1) % len(self.obs)
        usable = rows[self.valid[rows]]
        if len(usable) < len(rows):  # a cut episode: take another row twice
            rows = np.where(self.valid[rows], rows, usable[0])
            following = (rows + 1) % len(self.obs)
        arrays = (
            self.obs[rows], self.actions[rows], self.rewards[rows], self.obs[following],
            self.terminated[rows],
        )  # fmt: skip
        return tuple(torch.from_numpy(array) for array in arrays)


def make_env() -> Any:
    """Returns one Breakout: 84x84 grey, frame skip 4, 4 frames stacked."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = gym.wrappers.AtariPreprocessing(env, terminal_on_life_loss=True)
    return gym.wrappers.FrameStackObservation(env, 4)


def td_update(
    online: QNetwork, target: QNetwork, adam: torch.optim.Adam, batch: tuple[Tensor, ...]
) -> None:
    """Makes one double Q-learning update."""
    obs, actions, rewards, next_obs, terminated = batch
    with torch.no_grad():
        chosen = online(next_obs).argmax(dim=1, keepdim=True)
        bootstrap = target(next_obs).gather(1, chosen).squeeze(1)
        goal = rewards + GAMMA * (1 - terminated) * bootstrap
    prediction = online(obs).gather(1, actions[:, None]).squeeze(1)
    adam.zero_grad()
    F.huber_loss(prediction, goal).backward()
    nn.utils.clip_grad_norm_(online.parameters(), MAX_GRAD_NORM)
    adam.step()


def measure(turn: Turn) -> Figures:
    """Returns the figures of one measurement."""
    torch.manual_seed(turn.seed)
    rng = np.random.default_rng(turn.seed)
    env = make_env()
    num_actions = int(env.action_space.n)
    online, target = QNetwork(num_actions), QNetwork(num_actions)
    target.load_state_dict(online.state_dict())
    adam = torch.optim.Adam(online.parameters(), lr=LEARNING_RATE)
    ring, meter = Ring(REPLAY_CAPACITY, rng), Meter(turn)
    steps = updates = 0
    obs, _ = env.reset(seed=turn.seed)
    while meter.goes_on(steps, updates):
        if rng.random() < EPSILON or steps < turn.fill_steps:
            action = int(rng.integers(num_actions))
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(obs[None])).argmax())
        next_obs, reward, terminated, truncated, _ = env.step(action)
        ring.add(obs, action, float(reward), terminated, truncated)
        obs = env.reset()[0] if terminated or truncated else next_obs
        steps += 1
        if steps > turn.fill_steps and steps % STEPS_PER_UPDATE == 0:
            td_update(online, target, adam, ring.sample())
            updates += 1
            if updates % TARGET_PERIOD_UPDATES == 0:
                target.load_state_dict(online.state_dict())
    env.close()
    parameters = sum(p.numel() for p in online.parameters())
    return meter.figures(ring.nbytes / REPLAY_CAPACITY, parameters)
