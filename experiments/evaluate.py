"""Plays whole games with a trained agent and prints its scores beside the paper's Table IV.

    python experiments/evaluate.py results/pong/checkpoint_000010 --episodes 100 --video pong.mp4
    python experiments/evaluate.py random --game pong

A result folder does, too: its newest checkpoint is taken. Needs no Ray.
"""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from rayssl import evaluation
from rayssl.cli import check_file_writable, git_commit, refuse
from rayssl.envs.atari import AtariSettings, Game, LifeEpisode
from rayssl.evaluation import Agent, load_agent, play_games, record_game, score_row, score_table
from rayssl.files import write_whole


@dataclass(frozen=True)
class Settings:
    """Plays whole games with a trained agent: unclipped scores, games per env fixed beforehand."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint folder, a result folder (newest checkpoint below it), or the word `random`."""
    game: str = ""
    """Game of the `random` agent, e.g. pong; a checkpoint knows its own."""
    episodes: int = 100
    """Whole games (100: section V-C)."""
    num_envs: int = 16
    """Games played side by side."""
    epsilon: float = evaluation.EPSILON
    """Share of random actions (0.01: end of exploration in the authors' code; Mnih 2015: 0.05)."""
    sticky: float | None = None
    """Probability that the console repeats the last action (Machado et al. 2018: 0.25); by default
    as in the agent's training, and 0 for `random`."""
    seed: int = 0
    """Of consoles and actions."""
    max_game_frames: int = 108_000
    """Emulator frames after which a game is cut: 30 minutes of play."""
    random: bool = False
    """Also play as many games with uniformly random actions."""
    video: Path | None = None
    """MP4 file to write: the first game."""
    json: Path | None = None
    """JSON file to write; by default <checkpoint>-evaluation.json, beside the checkpoint, unless
    that holds more games, or games of other settings."""
    smoke: bool = False
    """2 games of at most 400 frames: does it run at all? Replaces no other, but with --json."""


def prepare(settings: Settings) -> tuple[Agent | None, AtariSettings, Path | None]:
    """Returns the agent, its games and the result file; raises for all that a person got wrong."""
    random = settings.checkpoint == "random"
    if random and not settings.game:
        raise ValueError("The random agent needs a game. Pass e.g. --game pong.")
    if random and settings.video:
        raise ValueError("--video shows the values of a checkpoint's agent; `random` has none.")
    if settings.video and settings.video.suffix != ".mp4":
        raise ValueError(f"Expected a --video path ending in .mp4, got {settings.video}.")
    agent = None if random else load_agent(settings.checkpoint)
    own = agent.atari_settings() if agent else AtariSettings()
    games = replace(
        own,
        game=settings.game or own.game,
        num_envs=settings.num_envs,
        sticky=own.sticky if settings.sticky is None else settings.sticky,
        max_game_frames=settings.max_game_frames,
        num_threads=max(1, min(settings.num_envs, os.cpu_count() or 1)),
    )
    evaluation.check_play(
        agent, games, episodes=settings.episodes, epsilon=settings.epsilon, seed=settings.seed
    )
    path = settings.json
    if agent and not path:  # not inside: the checkpoint's manifest lists its files
        path = Path(f"{agent.checkpoint.resolve()}-evaluation.json")
        if settings.smoke and path.exists():  # whole games, maybe: not to be lost for two cut ones
            path = Path(f"{agent.checkpoint.resolve()}-smoke-evaluation.json")
    for file in filter(None, (path, settings.video)):
        check_file_writable(file)
    return agent, games, path


def says_more(path: Path, agent: Agent, games: AtariSettings, settings: Settings) -> bool:
    """Returns whether a file holds whole games of this agent that those to come do not stand for:
    more of them, others, or a random agent's beside them.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        old = saved["settings"]
        played = AtariSettings(**saved["games"])
        if old.get("smoke") or saved["model"] != agent.settings:
            return False
        same = replace(played, game=games.game, num_threads=games.num_threads) == games
        same &= (old["epsilon"], old["seed"]) == (settings.epsilon, settings.seed)
        fewer = settings.episodes < old["episodes"] or (old["random"] and not settings.random)
        return not same or fewer
    except (OSError, ValueError, KeyError, TypeError):  # none, or not of this script
        return False


def sticky_line(agent: Agent | None, games: AtariSettings) -> str:
    """Returns a line that says how sticky the consoles are, and were in the agent's training."""
    line = f"Sticky actions: {games.sticky:g}"
    if agent is None:
        return line
    trained = agent.settings.get("sticky")
    if trained is None:
        return f"{line}; of its training the checkpoint does not say"
    return f"{line}, as in training" if games.sticky == trained else f"{line}; trained {trained:g}"


def play(agent: Agent | None, games: AtariSettings, settings: Settings) -> dict[str, Any]:
    """Returns the row of results of one agent; counts games on a terminal's last line."""
    done = itertools.count(1)

    def show(game: Game) -> None:
        if sys.stderr.isatty():
            line = f"{next(done)}/{settings.episodes} games, last score {game.score:g}"
            print(f"\r{line:60}", end="", file=sys.stderr, flush=True)

    lives: list[LifeEpisode] = []
    played = play_games(
        agent, games, episodes=settings.episodes, epsilon=settings.epsilon, seed=settings.seed,
        on_game=show, on_life=lives.append,
    )  # fmt: skip
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return score_row(agent, games.game, played, lives)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the results that it saves; exits with 2 and one line for what a person got wrong."""
    argv = sys.argv[1:] if argv is None else argv
    settings = tyro.cli(Settings, args=argv)
    if settings.smoke:
        settings = replace(settings, episodes=2, num_envs=2, max_game_frames=400)
    try:
        agent, games, path = prepare(settings)
    except (ValueError, OSError) as error:
        refuse(error)
    if path and agent and not settings.json and says_more(path, agent, games, settings):
        print(
            f"Not replaced: {path}, an evaluation of more games or of other settings; --json FILE "
            "saves this one, too.",
            flush=True,
        )
        path = None
    results = {
        "command": ["experiments/evaluate.py", *argv],
        "commit": git_commit(),
        "versions": {name: version(name) for name in ("ale-py", "torch", "numpy")},
        "checkpoint": str(agent.checkpoint) if agent else None,
        "model": agent.settings if agent else None,
        "settings": json.loads(json.dumps(asdict(settings), default=str)),  # paths as text
        "games": asdict(games),
        "rows": [play(agent, games, settings)],
    }
    if agent and settings.random:
        results["rows"].append(play(None, games, settings))
    if path:
        write_whole(path, json.dumps(results, indent=1))
        print(f"Results: {path}")
    if agent and settings.video:
        game = record_game(
            agent, settings.video, games, epsilon=settings.epsilon, seed=settings.seed
        )
        print(f"Video: {settings.video}, one game of score {game.score:g}")
    cut = sum(row["cut_games"] for row in results["rows"])
    if cut:
        print(f"{cut} games were cut at {games.max_game_frames} frames; their scores end there.")
    print(sticky_line(agent, games))
    if agent and agent.is_aux_only:
        print("Its Q-values were never trained (aux-only): it plays by those of random weights.")
    print(score_table(results["rows"]))
    return results


if __name__ == "__main__":
    main()
