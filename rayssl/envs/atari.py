"""Atari as the paper plays it: 4 grey 84x84 frames a state, whole games, lives apart from games.

    agent step t      1     2     3     4     5 | 6    7     game 1 ends at step 5; step 6 resets
    action            a1    a2    a3    a4    a5 | -    a7
    reset             x     .     .     .     .  | .    x    newest frame is the first of a game
    valid             x     x     x     x     x  | .    x    step 6 ignores its action (autoreset)
    terminated        .     .     .     .     x  | .    .    the console's game over, never a life
    life_lost         .     .     x     .     x  | .    .

A score is the unclipped sum of rewards over a whole game. Beside it stands the figure of the
authors' code: rewards clipped to their sign, summed over one life (see `LifeEpisode`).
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import ale_py
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv


@dataclass(frozen=True)
class AtariSettings:
    """How a game is played; the defaults are the paper's `NoFrameskip-v4` with its wrappers.

    Attributes:
      game: any usual name of an ALE game: `pong`, `Pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4`.
      num_envs: games played side by side.
      frame_size: side of a grey frame, pixels (84: section V-A).
      stack: frames in a state (4: section V-A).
      frame_skip: emulator frames per agent step; the last two are max-pooled.
      noop_max: at most this many no-op frames at a game's start (30: Mnih et al. 2015).
      sticky: probability that the console repeats the last action (0; 0.25: Machado et al. 2018).
      fire_at_start: press FIRE at a game's start and after a lost life, in games that have it
        (Baselines' FireResetEnv).
      max_game_frames: emulator frames after which a game is cut (truncated), 30 minutes of play.
      num_threads: emulator threads (C++); 0: one per core.
    """

    game: str = "pong"
    num_envs: int = 8
    frame_size: int = 84
    stack: int = 4
    frame_skip: int = 4
    noop_max: int = 30
    sticky: float = 0.0
    fire_at_start: bool = True
    max_game_frames: int = 108_000
    num_threads: int = 1

    def __post_init__(self) -> None:
        rom_path(self.game)
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or not least <= value < 2**31:  # ale-py takes int32
                raise ValueError(
                    f"{name} must be a whole number in [{least}, 2**31), got {value!r}."
                )
        if self.frame_size > SCREEN_LINES:
            raise ValueError(
                f"frame_size must be {SCREEN_LINES} or less, the console's own lines, got "
                f"{self.frame_size}. The paper's is 84."
            )
        sticky: Any = self.sticky
        if not isinstance(sticky, int | float) or not 0 <= sticky < 1:
            raise ValueError(f"sticky must be a probability in [0, 1), got {sticky!r}.")
        fire: Any = self.fire_at_start
        if not isinstance(fire, bool):
            raise ValueError(f"fire_at_start must be true or false, got {fire!r}.")


_AT_LEAST = {
    "num_envs": 1, "frame_size": 1, "stack": 1, "frame_skip": 1, "noop_max": 0,
    "max_game_frames": 1, "num_threads": 0,
}  # fmt: skip
SCREEN_LINES = 210  # a larger frame would be blown up, and its first dense layer with it
# Games for two, which ale-py ships for PettingZoo: loadROM of one ends the whole process.
_FOR_TWO = frozenset({"combat", "joust", "maze_craze", "warlords"})


@cache
def available_games() -> tuple[str, ...]:
    """Returns the names of the games for one that ale-py ships, sorted, e.g. `ms_pacman`."""
    return tuple(sorted(set(roms.get_all_rom_ids()) - _FOR_TWO))


def rom_id(game: str) -> str:
    """Returns ale-py's ROM name of a game given by any of its usual names.

    `Pong`, `pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4` -> `pong`; `MsPacman` -> `ms_pacman`.

    Raises:
      ValueError: for an unknown game, with the nearest known names.
    """
    if not isinstance(game, str):
        raise ValueError(f"game must be the name of an Atari game, e.g. 'pong', got {game!r}.")
    stem = re.sub(r"(-ram)?(NoFrameskip|Deterministic)?-v\d+$", "", game.removeprefix("ALE/"))
    key = re.sub(r"[^a-z0-9]", "", stem.lower())
    by_key = {name.replace("_", ""): name for name in available_games()}
    if key in by_key:
        return by_key[key]
    near = difflib.get_close_matches(key, list(by_key), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(by_key[k] for k in near)}?" if near else ""
    raise ValueError(
        f"Unknown Atari game '{game}'.{hint} ale-py ships {len(by_key)} games, "
        "e.g. pong, breakout, ms_pacman, space_invaders."
    )


@cache
def rom_path(game: str) -> Path:
    """Returns the file of a game's ROM.

    Raises:
      ValueError: for an unknown game.
      FileNotFoundError: if ale-py's ROM is missing or has changed.
    """
    name = rom_id(game)
    try:
        return Path(str(roms.get_rom_path(name)))
    except OSError as error:
        raise FileNotFoundError(
            f"Expected the ROM of {name} in ale-py's folder or $ALE_ROMS_DIR, got: "
            f"{' '.join(str(error).split())}. "
            "Install ale-py anew (pip install --force-reinstall ale-py)."
        ) from error


def game_title(game: str) -> str:
    """Returns the game's name as papers print it: `ms_pacman` -> `MsPacman`."""
    return "".join(part.capitalize() for part in rom_id(game).split("_"))


def make_vector_env(settings: AtariSettings) -> AtariVectorEnv:
    """Returns ale-py's vector environment for these settings.

    Lives are read from `info["lives"]`: its own `episodic_life` would reset the whole game at each
    lost life. Rewards are not clipped, so that scores stay true.
    """
    return AtariVectorEnv(
        rom_id(settings.game),
        settings.num_envs,
        num_threads=settings.num_threads,
        max_num_frames_per_episode=settings.max_game_frames,
        repeat_action_probability=settings.sticky,
        img_height=settings.frame_size,
        img_width=settings.frame_size,
        stack_num=settings.stack,
        frameskip=settings.frame_skip,
        noop_max=settings.noop_max,
        use_fire_reset=settings.fire_at_start,
        reward_clipping=False,
    )


class Game(NamedTuple):
    """A finished game: its env, unclipped score, length in agent steps, and whether it was cut."""

    env: int
    score: float
    length: int
    truncated: bool


class LifeEpisode(NamedTuple):
    """One life as the authors' training loop counts an episode: sum of sign-clipped rewards.

    Source: paper's Table IV through its code (an episode per life, rewards clipped to their sign).
    """

    env: int
    clipped_score: float


class StepRow(NamedTuple):
    """What one agent step of all envs gave; arrays `[N]`. See the drawing on top of the module.

    Attributes:
      frames: newest frame before the action, uint8 `[N, size, size]`.
      actions: actions that the console got, int64.
      rewards: unclipped, float32; 0 in rows that are not valid.
      terminated, truncated, life_lost, reset, valid: bool.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray
    reset: np.ndarray
    valid: np.ndarray


class AtariStream:
    """N games side by side as an endless stream of rows, with scores and a state to save.

    The consoles' state is (seeds, actions since): `set_state` plays those actions again, and the
    stream goes on bit for bit. So that they stay few, an env's next game starts from a new seed,
    drawn from (seed, env, number of the seed), once it has played `steps_per_seed` steps from the
    last one. Not at every game: ale-py loads the ROM again for a seed, which takes 0.1 s, the time
    of a short game's learning.

    Args:
      settings: the game.
      seed: of all seeds.
      env: consoles to play on; None: ale-py's.
      steps_per_seed: agent steps; 0: every game has a seed of its own.
    Attributes:
      obs: the current states, uint8 `[N, stack, size, size]`, oldest frame first.
      num_actions: size of the game's minimal action set (Pong 6, Breakout 4).
    """

    def __init__(
        self, settings: AtariSettings, seed: int, env: Any = None, *, steps_per_seed: int = 2_000
    ) -> None:
        self.settings = settings
        self.seed = seed
        self._steps_per_seed = steps_per_seed
        self._env = make_vector_env(settings) if env is None else env
        self.num_actions = int(self._env.single_action_space.n)
        self._fire = fire_action(settings) if settings.fire_at_start else None
        n = settings.num_envs
        self._seeds_used = np.zeros(n, np.int64)
        self._history: list[list[int]] = [[] for _ in range(n)]
        self._lives = np.zeros(n, np.int64)
        self._reset_all()
        self._score = np.zeros(n)  # unclipped, of the game under way
        self._length = np.zeros(n)  # agent steps, of the game under way
        self._life_score = np.zeros(n)  # clipped, of the life under way
        self._over = np.zeros(n, bool)  # the game ended at the last step; the next one resets
        self._first = np.ones(n, bool)
        self._life_lost = np.zeros(n, bool)
        self._pending: tuple[np.ndarray, np.ndarray] | None = None
        self._games: list[Game] = []
        self._lives_log: list[LifeEpisode] = []

    @property
    def num_envs(self) -> int:
        """Games side by side, N."""
        return self.settings.num_envs

    def send(self, actions: np.ndarray) -> None:
        """Starts one agent step; the consoles run in C++ threads until `recv`.

        Args:
          actions: int64 `[N]` in [0, num_actions). Replaced by FIRE right after a lost life.
        Raises:
          ValueError: for actions of another shape or out of range.
          RuntimeError: if the step before has not been received.
        """
        if self._pending is not None:
            raise RuntimeError("AtariStream.send() called twice without recv() between.")
        # ale-py's threads swallow a wrong action, and its recv then waits forever.
        if actions.shape != (self.num_envs,) or not (
            actions.min() >= 0 and actions.max() < self.num_actions
        ):
            raise ValueError(
                f"Expected {self.num_envs} actions in [0, {self.num_actions}), "
                f"got {actions.tolist()}."
            )
        actions = actions.astype(np.int64)  # a copy
        if self._fire is not None:
            actions[self._life_lost] = self._fire
        self._pending = (actions, self.obs[:, -1].copy())
        self._env.send(actions)

    def recv(self) -> StepRow:
        """Returns the row of the step that `send` started, and moves `obs` on."""
        if self._pending is None:
            raise RuntimeError("AtariStream.recv() called without send(actions) before it.")
        (actions, frames), self._pending = self._pending, None
        obs, rewards, terminated, truncated, info = self._env.recv()
        valid, lives = ~self._over, np.asarray(info["lives"])
        over = (terminated | truncated) & valid
        life_lost = (lives < self._lives) & valid
        row = StepRow(
            frames,
            actions,
            np.where(valid, rewards, 0).astype(np.float32),
            terminated & valid,
            truncated & ~terminated & valid,
            life_lost,
            self._first,
            valid,
        )
        self._count(row, over)
        for history, action in zip(self._history, actions.tolist(), strict=True):
            history.append(action)
        self._lives, self._first, self._life_lost = lives.copy(), ~valid, life_lost & ~over
        self.obs = obs
        if not valid.all():
            self._seed_anew(~valid)
        self._over = over
        return row

    def step(self, actions: np.ndarray) -> StepRow:
        """Returns the row of one agent step, `send` and `recv` in one."""
        self.send(actions)
        return self.recv()

    def take_games(self) -> tuple[list[Game], list[LifeEpisode]]:
        """Returns the games and lives that ended since the last call, in order."""
        games, lives = self._games, self._lives_log
        self._games, self._lives_log = [], []
        return games, lives

    def get_state(self) -> dict[str, Any]:
        """Returns a picklable state: seeds, the actions since, counts of the games under way."""
        if self._pending is not None:
            raise RuntimeError("AtariStream.get_state() between send() and recv(): call recv().")
        return {
            "seed": self.seed,
            "seeds_used": self._seeds_used.copy(),
            "history": [np.asarray(h, np.uint8) for h in self._history],
            "over": self._over.copy(),
            "first": self._first.copy(),
            "life_lost": self._life_lost.copy(),
            "counts": {k: getattr(self, k).copy() for k in _COUNTS},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Brings the consoles back by playing the saved actions again.

        Takes as long as those took without an agent: at most about 2,000 steps and a game an env.

        Raises:
          ValueError: if the state is of another number of envs.
        """
        if len(state["history"]) != self.num_envs:
            raise ValueError(
                f"The saved stream has {len(state['history'])} envs, this one {self.num_envs}. "
                "Resume with the same number of envs, or without the runner's state."
            )
        if self._pending is not None:
            self._env.recv()  # the consoles finish their step before they are reset
        self.seed = state["seed"]
        self._seeds_used = state["seeds_used"].copy()
        self._history = [h.tolist() for h in state["history"]]
        self._replay()
        for name in ("over", "first", "life_lost"):
            setattr(self, f"_{name}", state[name].copy())
        for name, value in state["counts"].items():
            setattr(self, name, value.copy())
        self._pending, self._games, self._lives_log = None, [], []

    def close(self) -> None:
        """Frees the consoles."""
        self._env.close()

    def _replay(self) -> None:
        """Plays every env's history; shorter ones start later, so that all end at the same step."""
        lengths = np.array([len(h) for h in self._history])
        self._reset_all()
        for t in range(lengths.max()):
            starts = lengths.max() - lengths == t
            if t and starts.any():
                self._reset_envs(starts)
            actions = [
                h[t - lengths.max()] if t - lengths.max() + len(h) >= 0 else 0
                for h in self._history
            ]
            self.obs, _, _, _, info = self._env.step(np.array(actions, np.int64))
            self._lives = np.asarray(info["lives"]).copy()
        if lengths.max() and (lengths == 0).any():
            self._reset_envs(lengths == 0)

    def _reset_all(self) -> None:
        self._reset_envs(np.ones(self.num_envs, bool))

    def _reset_envs(self, mask: np.ndarray) -> None:
        """Resets the masked envs to the state that their present seed gives."""
        seeds = np.array([self._env_seed(int(env)) for env in np.flatnonzero(mask)])
        options = None if mask.all() else {"reset_mask": mask}
        self.obs, info = self._env.reset(seed=seeds, options=options)
        self._lives = np.asarray(info["lives"]).copy()

    def _seed_anew(self, mask: np.ndarray) -> None:
        """Starts the new games of those masked envs over whose seeds are used up."""
        long = np.array([len(h) - 1 >= self._steps_per_seed for h in self._history])
        used_up = mask & long  # without the autoreset's own step
        if not used_up.any():
            return
        self._seeds_used[used_up] += 1
        for env in np.flatnonzero(used_up):
            self._history[env] = []
        self._reset_envs(used_up)

    def _env_seed(self, env: int) -> int:
        entropy = [self.seed, env, int(self._seeds_used[env])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)  # fits int32

    def _count(self, row: StepRow, over: np.ndarray) -> None:
        """Adds a row to the running scores and logs the games and lives that it ended."""
        self._score += row.rewards
        self._length += row.valid
        self._life_score += np.sign(row.rewards)
        life_over = over | row.life_lost
        for env in np.flatnonzero(life_over):
            self._lives_log.append(LifeEpisode(int(env), float(self._life_score[env])))
        self._life_score[life_over] = 0
        for env in np.flatnonzero(over):
            score, length = float(self._score[env]), int(self._length[env])
            self._games.append(Game(int(env), score, length, bool(row.truncated[env])))
        for name in _COUNTS:
            getattr(self, name)[over] = 0


_COUNTS = ("_score", "_length", "_life_score")


def fire_action(settings: AtariSettings) -> int | None:
    """Returns the index of FIRE in the game's minimal action set, or None where there is none."""
    actions = action_set(settings.game)
    return actions.index("FIRE") if "FIRE" in actions else None


@cache
def action_set(game: str) -> Sequence[str]:
    """Returns the names of the game's minimal action set, in the order of their indices."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr
    ale = ale_py.ALEInterface()
    ale.loadROM(rom_path(game))
    return tuple(action.name for action in ale.getMinimalActionSet())
