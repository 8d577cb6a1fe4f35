"""How good is an agent? Whole games, unclipped scores, a number of games fixed before the start.

The first N games to finish would be the short ones, and in most games short is bad (in others,
good): so every env gets its share of the N games before the start, and what it plays beyond that
does not count.

    env 0   |-- game --|-- game --|....not counted....
    env 1   |------- game -------|------- game -------|

Reads `model.json` and `model.pt` of a checkpoint alone: it needs neither Ray nor unpickling.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from safetensors.torch import save_file

from rayssl.backbones.weights import load_weights
from rayssl.envs.atari import (
    AtariSettings,
    AtariStream,
    Game,
    LifeEpisode,
    action_set,
    game_title,
    make_vector_env,
    rom_id,
)
from rayssl.metrics import TABLE_IV, summarize_scores
from rayssl.networks import MultiHeadNetwork, head_paths, make_atari_network
from rayssl.tasks import PretextTask, make_tasks
from rayssl.video import AuxPanel, Panel, draw_frame, write_mp4

MODEL, MODEL_SETTINGS = "model.pt", "model.json"
EXPORTED_MODEL = "model.safetensors"  # of `export_agent`
EXPORT_BYTES = 9_990_000  # of weights in it: 10 MB with names and shapes
NETWORK_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "game": str, "network": str, "aux_task": (str, type(None)),
    "stack": int, "frame_size": int, "env_steps": int,
}  # fmt: skip
GAME_KEYS: Final = (
    "game", "stack", "frame_size", "frame_skip", "fire_at_start", "noop_max", "sticky",
)  # fmt: skip
EPSILON = 0.01  # final exploration of the authors' code, whose episodes Table IV counts (deepq)
COLUMNS = ["agent", "game", "episodes", "mean", "std", "min", "max", "IQM", "95% interval"]
TABLE_IV_NOTE = (
    "Table IV's DQN, Rotation and Sequence rows are, by the authors' code, the best mean of 100 "
    "training episodes, counted per life and with clipped rewards: its Breakout numbers (5 lives) "
    "are no whole-game scores and do not compare with ours."
)
CONSOLE_FPS = 60  # NTSC
AUX_HOLD_STEPS = 30  # a pretext draw stays this long in a video, 2 s, so that a person can read it
END_HOLD_FRAMES = 15  # the last screen of a video stays for a second


class AuxGuess(NamedTuple):
    """What the pretext head makes of one draw of its task.

    Attributes:
      x_hat: the transformed state, uint8 `[stack, size, size]`.
      label: the true class, in [0, K).
      probabilities: the head's, float32 `[K]`, sum 1.
      usable: False if the state carries no label (see `PretextTask.usable`).
    """

    x_hat: np.ndarray
    label: int
    probabilities: np.ndarray
    usable: bool


@dataclass(frozen=True)
class Agent:
    """A trained network with what it takes to let it play, float32.

    Attributes:
      network: heads "q" and those of the aux tasks; in evaluation mode, on the CPU unless it is
        moved.
      settings: the checkpoint's `model.json`.
      checkpoint: the folder that it was read from.
      task: the (first) pretext task that was trained, whose head gives labels to single states;
        None if there is none.
      aux_head: path of that task's head in the network.
    """

    network: MultiHeadNetwork
    settings: dict[str, Any]
    checkpoint: Path
    task: PretextTask | None
    aux_head: str = "aux"

    @property
    def name(self) -> str:
        """The agent in a few words, e.g. `paper-code, rotation, 1000000 steps`.

        The weight of its pretext loss is named if it is not the paper's 1, how sticky it was, and
        that it is `aux-only` if its Q-values were not trained.
        """
        named, weight = trained_with(self.settings), aux_weight_of(self.settings)
        task = "no aux task" if named == "none" else named
        if named != "none" and weight is not None and weight != 1:
            task += f" of weight {weight:g}"
        if self.is_aux_only:
            task += ", aux-only"
        sticky = self.settings.get("sticky")
        words = [self.settings["network"], task, f"{self.settings['env_steps']} steps"]
        return ", ".join(words + ([f"trained with sticky {sticky:g}"] if sticky else []))

    @property
    def is_aux_only(self) -> bool:
        """Whether the pretext loss alone was trained so far; False if `model.json` does not say."""
        return self.settings.get("td_updates") == 0 < self.settings.get("aux_updates", 0)

    def atari_settings(self, **changes: Any) -> AtariSettings:
        """Returns the games that the agent was trained on, with fields replaced by `changes`.

        What a checkpoint does not say is `AtariSettings`' default: of an older one sticky is 0.
        """
        return replace(_games_of(self.settings), **changes)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def q_values(self, obs: np.ndarray) -> np.ndarray:
        """Returns Q(s, a), float32 `[N, A]`, of states uint8 `[N, stack, size, size]`."""
        with torch.inference_mode():
            q = self.network(torch.from_numpy(obs).to(self.device), head="q")
        values: np.ndarray = q.cpu().numpy()
        return values

    def aux_guess(self, obs: np.ndarray, *, generator: torch.Generator) -> AuxGuess | None:
        """Returns the aux head's guess on one draw of its task, or None if no head has labels.

        Args:
          obs: one state, uint8 `[stack, size, size]`.
          generator: source of the draw, on the CPU.
        """
        if self.task is None:
            return None
        x = torch.from_numpy(obs)[None]
        x_hat, label = self.task(x, generator=generator)
        with torch.inference_mode():
            logits = self.network(x_hat.to(self.device), head=self.aux_head)
        probabilities = logits.softmax(1).cpu()
        usable = bool(self.task.usable(x))
        return AuxGuess(x_hat[0].numpy(), int(label), probabilities[0].numpy(), usable)


def load_agent(checkpoint: str | Path) -> Agent:
    """Returns the agent of a checkpoint folder, or of the newest checkpoint below a run folder.

    Newest is the one with the most agent steps. Only `model.json` and `model.safetensors`, or else
    `model.pt`, are read, as tensors: nothing in them can run code.

    Raises:
      FileNotFoundError: if there is no checkpoint, or one of the two files is missing.
      ValueError: if a file is unreadable, or the weights are not those of the network.
    """
    folder = _find_checkpoint(Path(checkpoint))
    settings = _read_settings(folder / MODEL_SETTINGS)
    _games_of(settings)  # refuses a frame size that would take all memory below
    exported = folder / EXPORTED_MODEL
    weights = load_weights(exported) if exported.exists() else _read_weights(folder / MODEL)
    return make_agent(settings, weights, folder)


def make_agent(
    settings: dict[str, Any], weights: dict[str, torch.Tensor], checkpoint: Path | None = None
) -> Agent:
    """Returns the agent with these weights.

    Args:
      settings: as `model.json` has them.
      weights: name -> tensor, those of the aux head among them unless `aux_task` is None.
      checkpoint: the folder that both come from, for errors; None: a run that goes on.
    Raises:
      ValueError: if the weights are not those of the network.
    """
    aux_task = settings["aux_task"] or None
    pretext = [task for task in make_tasks(aux_task) if isinstance(task, PretextTask)]
    network = make_atari_network(
        settings["network"],
        num_actions=len(action_set(settings["game"])),
        aux_task=aux_task,
        stack=settings["stack"],
        size=settings["frame_size"],
    )
    folder = checkpoint or Path()
    _check_weights(weights, network.state_dict(), folder)
    network.load_state_dict(weights)
    network = network.float().eval()
    if not pretext:
        return Agent(network, settings, folder, None)
    return Agent(network, settings, folder, pretext[0], head_paths(aux_task)[pretext[0].name])


def trained_with(settings: Mapping[str, Any]) -> str:
    """Returns the pretext tasks that an agent was trained with, by its `model.json`; `none`."""
    return str(settings.get("trained_with") or settings.get("aux_task") or "none")


def aux_weight_of(settings: Mapping[str, Any]) -> float | None:
    """Returns the (largest) weight of the pretext losses; None: a `model.json` without it."""
    if trained_with(settings) == "none":
        return 0.0
    weight = settings.get("aux_weight")
    return float(weight) if isinstance(weight, int | float) else None


def export_agent(checkpoint: str | Path, folder: Path) -> Agent:
    """Writes the weights of a checkpoint to a folder of at most 10 MB; returns the agent in it.

    The folder gets `model.safetensors` and `model.json`: what `load_agent` reads, and no more.
    Weights are float32, the checkpoint's bit for bit, where that fits (`nature`), else rounded to
    float16; the aux head is left out where even those are too many. `exported` in model.json says
    which, `trained_with` the task of a head that was left out. The agent that is returned, like any
    that is loaded, has the weights of the file.

    Args:
      checkpoint: as for `load_agent`.
      folder: made if missing; files of these names in it are replaced.
    Raises:
      FileNotFoundError, ValueError: as `load_agent`.
    """
    agent = load_agent(checkpoint)
    weights = {name: tensor.contiguous() for name, tensor in agent.network.state_dict().items()}
    settings = agent.settings | {"exported": "float32"}
    if _num_bytes(weights) > EXPORT_BYTES:
        weights = {name: tensor.half() for name, tensor in weights.items()}
        settings |= {"exported": "float16"}
    if _num_bytes(weights) > EXPORT_BYTES:
        weights = {k: v for k, v in weights.items() if not k.startswith("heads.aux")}
        settings |= {"exported": "float16, without the aux head", "aux_task": None}
        settings |= {"trained_with": agent.settings["aux_task"]}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{EXPORTED_MODEL}.part"
    save_file(weights, part)
    part.replace(folder / EXPORTED_MODEL)
    (folder / MODEL_SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return load_agent(folder)


def _num_bytes(weights: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


def evaluation_figures(
    agent: Agent, settings: AtariSettings, *, games: int, seed: int
) -> dict[str, float]:
    """Returns what a training run logs of an evaluation over whole games (docs/results.md).

    Keys: evaluation_score_mean, _std, _low, _high (95% bootstrap interval of the mean over games),
    _iqm, and evaluation_games; NaN where one game alone has no spread.

    Args:
      agent, settings, seed: as for `play_games`, which plays at epsilon 0.01.
      games: how many.
    """
    played = play_games(agent, settings, episodes=games, seed=seed)
    found = summarize_scores([game.score for game in played]).to_dict()
    names = {"mean": "mean", "std": "std", "ci_low": "low", "ci_high": "high", "iqm": "iqm"}
    figures = {f"evaluation_score_{new}": float(found[old]) for old, new in names.items()}
    return figures | {"evaluation_games": float(len(played))}


class Trunk(NamedTuple):
    """A trunk's weights by name, without the network's prefix, and the folder they come from."""

    weights: dict[str, torch.Tensor]
    checkpoint: Path


def load_trunk(checkpoint: str | Path, network: str, stack: int, frame_size: int) -> Trunk:
    """Returns the trunk of a checkpoint, for a run whose own trunk is of the same kind.

    The game and the pretext task may be others.

    Args:
      checkpoint: as for `load_agent`.
      network, stack, frame_size: of the run.
    Raises:
      FileNotFoundError, ValueError: as `load_agent`, or for a trunk of another kind.
    """
    agent = load_agent(checkpoint)
    _check_alike(agent, "trunk", {"network": network, "stack": stack, "frame_size": frame_size})
    return Trunk(agent.network.backbone.state_dict(), agent.checkpoint)


def load_policy(checkpoint: str | Path, settings: AtariSettings) -> Agent:
    """Returns the agent of a checkpoint, for games that it can play.

    Raises:
      FileNotFoundError, ValueError: as `load_agent`, or for another game or other frames.
    """
    agent = load_agent(checkpoint)
    game = rom_id(settings.game)
    _check_alike(
        agent, "policy", {"game": game, "stack": settings.stack, "frame_size": settings.frame_size}
    )
    return agent


def _check_alike(agent: Agent, what: str, own: dict[str, Any]) -> None:
    saved = agent.settings | {"game": rom_id(agent.settings["game"])}
    for name, value in own.items():
        if saved[name] != value:
            raise ValueError(
                f"The {what} of {agent.checkpoint} has {name} {saved[name]}, this run {value}. Use "
                f"a checkpoint of that {name}, or pass --{name.replace('_', '-')} {saved[name]}."
            )


def games_per_env(episodes: int, num_envs: int) -> np.ndarray:
    """Returns how many games of each env count, int64 `[num_envs]`, as even as can be."""
    return np.array([episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)])


def check_play(
    agent: Agent | None, settings: AtariSettings, *, episodes: int, epsilon: float, seed: int
) -> None:
    """Checks the arguments of `play_games` without playing.

    Raises:
      ValueError: if a number is out of range, or the agent does not fit the game.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be 1 or more, got {episodes}. 100 is the paper's.")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}. Take e.g. {EPSILON}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}. Take e.g. 0.")
    if agent and rom_id(agent.settings["game"]) != rom_id(settings.game):
        raise ValueError(
            f"The agent plays {agent.settings['game']}, got game {settings.game}. "
            "Evaluate it on its own game."
        )


def play_games(
    agent: Agent | None,
    settings: AtariSettings,
    *,
    episodes: int,
    epsilon: float = EPSILON,
    seed: int = 0,
    on_game: Callable[[Game], None] | None = None,
    on_life: Callable[[LifeEpisode], None] | None = None,
    env: Any = None,
) -> list[Game]:
    """Returns `episodes` whole games with unclipped scores, ordered by env, then by time.

    The number of games of each env is fixed before the start. A game starts after up to `noop_max`
    no-ops, as many as the console's own generator draws. Its seed is drawn from (seed, env, number
    of the seed), a new one at the first end of a game after 2,000 steps (`AtariStream`): several
    short games share one. Actions are greedy (the first of equal values) but for a share epsilon
    that is uniform. So the games are a function of the arguments; games of one env do not depend on
    the other envs' luck.

    Args:
      agent: None plays uniformly random actions.
      settings: the games, e.g. `agent.atari_settings(num_envs=16)`; no more envs than episodes are
        started. A game longer than `max_game_frames` is cut, and says so in `truncated`.
      episodes: at least 1.
      epsilon: share of uniform actions, in [0, 1]. 0.01 is the final exploration of the authors'
        code, at which Table IV's episodes were played; Mnih et al. 2015 use 0.05.
      seed: of consoles and actions, 0 or more.
      on_game: called after each game that counts, as it ends.
      on_life: called after each life of such a game, with its clipped score: an episode as the
        authors' code counts it.
      env: stands in for the settings' AtariVectorEnv.
    Raises:
      ValueError: as `check_play`.
    Source: section V-C, "Mean Score in 100 episodes"; protocol: Machado et al. 2018.
    """
    check_play(agent, settings, episodes=episodes, epsilon=epsilon, seed=seed)
    if env is None:
        settings = replace(settings, num_envs=min(settings.num_envs, episodes))
    actor = _Actor(agent, settings, epsilon, seed)
    stream = AtariStream(settings, seed, env)
    try:
        with _one_torch_thread():
            shares = games_per_env(episodes, settings.num_envs)
            return _play(stream, actor, shares, on_game, on_life)
    finally:
        stream.close()


def watch_games(
    agent: Agent | None,
    settings: AtariSettings,
    consoles: Any,
    *,
    games: int,
    epsilon: float = EPSILON,
    seed: int = 0,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of the game and the state, of every state of whole games in turn.

    Each game starts from a seed of its own, drawn from (seed, number of the game). While a state is
    in the caller's hands the consoles stand still in it: what they show besides, RAM or a screen,
    is that state's. They are closed at the end.

    Args:
      agent: None plays uniformly random actions.
      settings: the games; one console plays.
      consoles: plays one of these games, e.g. `RamConsoles(settings)`.
      games: how many.
      epsilon, seed: as in `play_games`.
    Yields:
      the game's number from 0; the state, uint8 `[stack, size, size]`, a copy.
    Raises:
      ValueError: as `check_play`.
    """
    check_play(agent, settings, episodes=games, epsilon=epsilon, seed=seed)
    actor = _Actor(agent, settings, epsilon, seed)
    stream = AtariStream(settings, seed, consoles, steps_per_seed=0)
    try:
        for game in range(games):
            over = False
            while not over:
                yield game, stream.obs[0].copy()
                with _one_torch_thread():
                    row = stream.step(actor.actions(stream.obs, np.array([True])))
                over = bool(row.terminated[0] or row.truncated[0])
            if game + 1 < games:
                stream.step(np.zeros(1, np.int64))  # the reset: it ignores its action
    finally:
        stream.close()


def record_game(
    agent: Agent,
    path: str | Path,
    settings: AtariSettings | None = None,
    *,
    epsilon: float = EPSILON,
    seed: int = 0,
) -> Game:
    """Writes an MP4 of one whole game and returns the game: env 0's first game in `play_games`.

    That is, unless two actions' values differ in their last bits only, which depend on the number
    of envs: here one plays.

    Beside the console's screen in colour: the value of each action, the chosen one marked, the
    state's value, the score and, if the agent has an aux head, its guess on a draw of its pretext
    task, which stays for 2 s. One frame for each agent step (15 a second at a frame skip of 4).

    Args:
      path: ends in `.mp4`.
      settings: as in `play_games` (the agent's own if None); one env is played.
      epsilon, seed: as in `play_games`.
    Raises:
      ValueError: as `check_play`, or for a path with another ending.
    """
    settings = replace(settings or agent.atari_settings(), num_envs=1)
    check_play(agent, settings, episodes=1, epsilon=epsilon, seed=seed)
    actor = _Actor(agent, settings, epsilon, seed)
    consoles = ColourTwin(settings)
    stream = AtariStream(settings, seed, consoles)
    try:
        frames = _frames(agent, actor, stream, consoles)
        with _one_torch_thread():
            write_mp4(path, frames, Fraction(CONSOLE_FPS, settings.frame_skip))
        return stream.take_games()[0][0]
    finally:
        stream.close()


def score_row(
    agent: Agent | None, game: str, games: Sequence[Game], lives: Sequence[LifeEpisode] = ()
) -> dict[str, Any]:
    """Returns one row of results as plain JSON values; NaN (one game has no spread) becomes None.

    Keys: agent, game, summary (of `summarize_scores`), scores and steps in the order of `games`,
    cut_games, how many were cut at `max_game_frames`, and lives: how many there were and the mean
    of their clipped scores, which is what the authors' code calls the score of an episode.
    """
    scores = [game.score for game in games]
    summary = summarize_scores(scores).to_dict()
    return {
        "agent": agent.name if agent else "random",
        "game": game_title(game),
        "summary": {k: None if np.isnan(v) else v for k, v in summary.items()},
        "scores": scores,
        "steps": [game.length for game in games],
        "cut_games": sum(game.truncated for game in games),
        "lives": {
            "num": len(lives),
            "clipped_mean": sum(life.clipped_score for life in lives) / len(lives)
            if lives
            else None,
        },
    }


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of `score_row`, all of one game, as a markdown table beside Table IV's."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for row in rows:
        s = {k: "-" if v is None else f"{v:.2f}" for k, v in row["summary"].items()}
        numbers = [s["mean"], s["std"], s["min"], s["max"], s["iqm"]]
        interval = f"{s['ci_low']} to {s['ci_high']}"
        lines.append([row["agent"], row["game"], str(len(row["scores"])), *numbers, interval])
    game = rows[0]["game"]
    for name, means in TABLE_IV.items():
        if game in means:
            lines.append([f"{name} (Table IV)", game, "", f"{means[game]:.2f}", *[""] * 5])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\n{TABLE_IV_NOTE}" if game in TABLE_IV["DQN"] else "")


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Batches of a few states: on 2 busy cores, 2 threads took 56 ms a state, one takes 1.2 ms."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ColourTwin:
    """An AtariVectorEnv with a twin in lockstep that keeps the console's screen in colour.

    The consoles are deterministic: the same seeds and actions give the same game. Rewards and lives
    of both are compared at every step, so that a picture never shows another game.

    Attributes:
      screens: the newest, RGB uint8 `[N, 210, 160, 3]`, of the same tick as the newest grey frame.
    """

    def __init__(self, settings: AtariSettings) -> None:
        self._env = make_vector_env(settings)
        self._twin = AtariVectorEnv(
            rom_id(settings.game),
            settings.num_envs,
            num_threads=settings.num_threads,
            max_num_frames_per_episode=settings.max_game_frames,
            repeat_action_probability=settings.sticky,
            grayscale=False,
            img_height=210,
            img_width=160,
            stack_num=1,
            frameskip=settings.frame_skip,
            noop_max=settings.noop_max,
            use_fire_reset=settings.fire_at_start,
            reward_clipping=False,
        )
        self.single_action_space = self._env.single_action_space
        self.screens = np.zeros((settings.num_envs, 210, 160, 3), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Resets both from the same seeds and returns what the grey one gave."""
        self._see(self._twin.reset(**kwargs)[0])
        result: tuple[np.ndarray, dict[str, np.ndarray]] = self._env.reset(**kwargs)
        return result

    def send(self, actions: np.ndarray) -> None:
        """Starts a step of both."""
        self._env.send(actions)
        self._twin.send(actions)

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns the grey one's step.

        Raises:
          RuntimeError: if the two gave other rewards, lives or ends.
        """
        obs, rewards, terminated, truncated, info = self._env.recv()
        screens, *twins, twin_info = self._twin.recv()
        own = (rewards, terminated, truncated, info["lives"])
        if not all(map(np.array_equal, own, (*twins, twin_info["lives"]))):
            raise RuntimeError(
                f"The colour console left the game: expected rewards, ends and lives {own}, got "
                f"{(*twins, twin_info['lives'])}. Please report it with the game and the seed."
            )
        self._see(screens)
        return obs, rewards, terminated, truncated, info

    def close(self) -> None:
        """Frees the consoles."""
        self._env.close()
        self._twin.close()

    def _see(self, screens: np.ndarray) -> None:
        self.screens = screens[:, -1].copy()


class _Actor:
    """Epsilon-greedy actions, each env with a generator of its own."""

    def __init__(
        self, agent: Agent | None, settings: AtariSettings, epsilon: float, seed: int
    ) -> None:
        self.agent = agent
        self.epsilon = 1.0 if agent is None else epsilon
        self.num_actions = len(action_set(settings.game))
        self._generators = [np.random.default_rng([seed, i]) for i in range(settings.num_envs)]

    def actions(self, obs: np.ndarray, busy: np.ndarray) -> np.ndarray:
        """Actions int64 `[N]`, 0 or random for envs that are not busy.

        Those go through the network, too: in a batch of another size Q-values have other last bits.
        """
        greedy = np.zeros(len(obs), np.int64)
        if self.agent is not None and self.epsilon < 1:
            greedy[busy] = self.agent.q_values(obs).argmax(1)[busy]
        return self.explore(greedy)

    def explore(self, greedy: np.ndarray) -> np.ndarray:
        """Replaces a share epsilon of actions int64 `[N]` by uniform ones."""
        for i, generator in enumerate(self._generators):
            if generator.random() < self.epsilon:
                greedy[i] = generator.integers(self.num_actions)
        return greedy


def _play(
    stream: AtariStream,
    actor: _Actor,
    shares: np.ndarray,
    on_game: Callable[[Game], None] | None,
    on_life: Callable[[LifeEpisode], None] | None,
) -> list[Game]:
    counted: list[list[Game]] = [[] for _ in shares]
    while (busy := np.array([len(games) for games in counted]) < shares).any():
        stream.step(actor.actions(stream.obs, busy))
        games, lives = stream.take_games()
        for life in lives:  # the last life of a game ends with it, and belongs to it
            if on_life and len(counted[life.env]) < shares[life.env]:
                on_life(life)
        for game in games:
            if len(counted[game.env]) < shares[game.env]:
                counted[game.env].append(game)
                if on_game:
                    on_game(game)
    return [game for games in counted for game in games]


def _frames(
    agent: Agent, actor: _Actor, stream: AtariStream, consoles: ColourTwin
) -> Iterator[np.ndarray]:
    """The first game of the stream; a frame shows a state, and what is done in it."""
    panel = Panel(
        title=game_title(stream.settings.game),
        subtitle=agent.name,
        score=0.0,
        step=0,
        actions=action_set(stream.settings.game),
        values=np.zeros(stream.num_actions, np.float32),
        chosen=None,
        spread=0.0,
        trace=[],
    )
    over = False
    while not over:
        screen, state = consoles.screens[0], stream.obs[0].copy()
        values = agent.q_values(stream.obs)[0]
        row = stream.step(actor.explore(values.argmax(keepdims=True)))
        panel = replace(
            panel,
            values=values,
            chosen=int(row.actions[0]),  # not always the agent's: FIRE after a lost life
            spread=max(panel.spread, float(np.abs(values - values.mean()).max())),
            trace=[*panel.trace, float(values.mean())],
            aux=_aux_panel(agent, state, stream.seed, panel.step),
        )
        yield draw_frame(screen, panel)
        panel = replace(panel, score=panel.score + float(row.rewards[0]), step=panel.step + 1)
        over = bool(row.terminated[0] or row.truncated[0])
    last = draw_frame(consoles.screens[0], replace(panel, chosen=None))
    yield from [last] * END_HOLD_FRAMES


def _aux_panel(agent: Agent, state: np.ndarray, seed: int, step: int) -> AuxPanel | None:
    """The same generator for AUX_HOLD_STEPS states is the same transform for all of them."""
    entropy = np.random.SeedSequence([seed, step // AUX_HOLD_STEPS]).generate_state(1)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    guess = agent.aux_guess(state, generator=generator)
    if guess is None or agent.task is None:
        return None
    captions = _times(state, guess.x_hat) if guess.usable else [""] * len(state)
    return AuxPanel(
        agent.task.name, guess.x_hat, captions, guess.probabilities, guess.label, guess.usable
    )


def _times(state: np.ndarray, shown: np.ndarray) -> list[str]:
    """When each shown frame was, "t-3" or "t"; "" where it is no frame of the state."""
    captions = []
    for frame in shown:
        places = [i for i, own in enumerate(state) if np.array_equal(frame, own)]
        age = len(state) - 1 - places[-1] if places else None
        captions.append("" if age is None else "t" if age == 0 else f"t-{age}")
    return captions


def _find_checkpoint(path: Path) -> Path:
    """The folder itself if it holds a model, else the one with the most agent steps below it."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"No checkpoint folder at {path}. Pass a folder that holds {MODEL_SETTINGS} and "
            f"{MODEL}, or a run folder with checkpoints below it."
        )
    if any((path / name).exists() for name in (MODEL_SETTINGS, MODEL, EXPORTED_MODEL)):
        return path
    found = []
    for file in path.rglob(MODEL_SETTINGS):
        try:  # a checkpoint that is being written has no whole model.json: it comes after model.pt
            found.append((int(json.loads(file.read_text())["env_steps"]), str(file.parent)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not found:
        raise FileNotFoundError(
            f"No checkpoint in or below {path}: found no readable {MODEL_SETTINGS}. Pass a folder "
            "that a training run wrote."
        )
    return Path(max(found)[1])


def _games_of(settings: dict[str, Any]) -> AtariSettings:
    """The games that a checkpoint's `model.json` describes."""
    return AtariSettings(**{key: settings[key] for key in GAME_KEYS if key in settings})


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Model settings missing: {path}. Take a checkpoint that was written to its end."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{path} is not readable JSON ({error}). Take another checkpoint."
        ) from None
    own = settings if isinstance(settings, dict) else {}
    wrong = [k for k, kind in NETWORK_KEYS.items() if k not in own or not isinstance(own[k], kind)]
    if wrong:
        raise ValueError(
            f"Expected {', '.join(NETWORK_KEYS)} in {path}, missing or of a wrong type: "
            f"{', '.join(wrong)}. Take a checkpoint of experiments/atari.py."
        )
    return own


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Weights missing: {path}. Take a checkpoint that was written to its end."
        ) from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged. Nothing in it was run. "
            "Use checkpoints of rayssl only, and of people whom you trust."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}). Take another checkpoint.") from None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(
            f"Expected {path} to hold name -> tensor, got {type(weights).__name__}. "
            "Take a checkpoint of experiments/atari.py."
        )
    return weights


def _check_weights(
    weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor], folder: Path
) -> None:
    """Torch's own text names no file and runs over many lines."""
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unknown {name}" for name in weights if name not in own]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{folder / MODEL} does not fit the network that {MODEL_SETTINGS} describes: "
            f"{'; '.join(wrong[:3])}{more}. Take both files from one checkpoint."
        )
