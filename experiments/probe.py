"""Reads the game's state from frozen trunks: what did a representation learn?

    python experiments/probe.py --checkpoint dqn=results/local/a --checkpoint aux=results/local/b
    python experiments/probe.py --game breakout                    # the random trunk alone

Linear probes of the numbers in the console's RAM (ball, paddles, score, lives, blocks: AtariARI),
fitted on some games and judged on others: F1 of classes, R2 of values, intervals by a bootstrap
over held-out games. All networks see the same states. Beside them stands a trunk with random
weights, which a line can read, too: the difference to it is what was learnt. Needs no Ray.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import tyro
from torch import nn
from tqdm import tqdm

from rayssl.cli import check_name, check_writable, provenance, refuse, remove_empty
from rayssl.envs.atari import AtariSettings, game_title, rom_id
from rayssl.envs.ram import RamConsoles, game_ram, state_labels
from rayssl.evaluation import EPSILON, Agent, load_agent, load_policy, watch_games
from rayssl.features import frozen
from rayssl.figures import ProbeScores, arm_colours, draw_probes, save
from rayssl.intervals import Interval
from rayssl.networks import make_atari_network
from rayssl.probing import GameSplit, StateScores, probe_state
from rayssl.report import markdown_table

RANDOM = "random trunk"
MEAN = "mean"
BATCH = 256  # states at once through a trunk

Checkpoints = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR", name="checkpoint")]


@dataclass(frozen=True)
class Settings:
    """Linear probes of the game's state on frozen trunks: a table, a CSV file and a figure."""

    checkpoints: tyro.conf.UseAppendAction[Checkpoints] = ()
    """A network to probe, a run or checkpoint folder; once for each."""
    policy: str = "random"
    """Who plays: random, or a run or checkpoint folder."""
    game: str = ""
    """Game, if no checkpoint says it: pong or breakout."""
    network: str = "nature"
    """Trunk of the random arm, if no checkpoint says it."""
    frame_size: int = 84
    """Side of its frames, pixels, if no checkpoint says it."""
    train_games: int = 8
    """Games that the probes are fitted on."""
    validation_games: int = 2
    """Games that choose their penalties."""
    test_games: int = 8
    """Games that they are judged on."""
    every: int = 4
    """Every so-manieth state of a game is taken: neighbours are nearly the same."""
    epsilon: float = EPSILON
    """Share of random actions of a policy that is a checkpoint."""
    max_game_frames: int = 12_000
    """Emulator frames after which a game is cut: 3,000 states."""
    seed: int = 0
    """Of games, the random trunk, and resamples of games."""
    results_dir: Path = Path("results/local")
    """Where the folder is made."""
    name: str | None = None
    """The folder with table.md, table.csv, probes.png and settings.json; default: <game>-probes."""


class Moments(NamedTuple):
    """States of whole games.

    Attributes:
      obs: uint8 `[N, stack, size, size]`.
      labels: name -> `[N]`; NaN where unknown.
      games: int64 `[N]`, the number of the game.
    """

    obs: npt.NDArray[np.uint8]
    labels: dict[str, npt.NDArray[np.float64]]
    games: npt.NDArray[np.int64]


def load_agents(settings: Settings) -> dict[str, Agent]:
    """Returns the networks to probe by name, all of one game and one kind of frames.

    Raises:
      FileNotFoundError, ValueError: if one cannot be read, or does not fit the others.
    """
    agents: dict[str, Agent] = {}
    for word in settings.checkpoints:
        name, _, path = word.partition("=")
        if not name or not path or name in (*agents, RANDOM):
            raise ValueError(
                f"Expected --checkpoint NAME=DIR with a name of its own, got {word!r}."
            )
        agents[name] = load_agent(path)
    seen = {
        name: tuple(agent.settings[k] for k in ("game", "stack", "frame_size"))
        for name, agent in agents.items()
    }
    if len({(rom_id(str(game)), *frames) for game, *frames in seen.values()}) > 1:
        raise ValueError(
            "Expected checkpoints of one game, stack and frame size, got "
            + "; ".join(f"{name}: {values}" for name, values in seen.items())
            + ". Probe them in several calls."
        )
    return agents


def games_of(settings: Settings, agents: dict[str, Agent]) -> AtariSettings:
    """Returns the games that are played; never with sticky actions, see `RamConsoles`.

    Raises:
      ValueError: if nothing or more than one thing says which, or its RAM is not known.
    """
    first = next(iter(agents.values()), None)
    if not first and not settings.game:
        raise ValueError("No game: pass --checkpoint NAME=DIR, or --game pong.")
    if first and settings.game and rom_id(settings.game) != rom_id(first.settings["game"]):
        raise ValueError(
            f"The checkpoints play {first.settings['game']}, got --game {settings.game}. Leave it "
            "out."
        )
    own = first.atari_settings() if first else AtariSettings(frame_size=settings.frame_size)
    game = first.settings["game"] if first else settings.game
    game_ram(game)
    return dataclasses.replace(
        own, game=game, num_envs=1, num_threads=1, sticky=0.0,
        max_game_frames=settings.max_game_frames,
    )  # fmt: skip


def gather(
    policy: Agent | None, played: AtariSettings, settings: Settings, num_games: int
) -> Moments:
    """Plays whole games and keeps every so-manieth state, with its labels."""
    consoles = RamConsoles(played)
    obs, ram, games = [], [], []
    watched = watch_games(
        policy, played, consoles, games=num_games, epsilon=settings.epsilon, seed=settings.seed
    )
    with tqdm(total=num_games, desc="games", disable=None) as bar:
        for step, (game, state) in enumerate(watched):
            bar.update(game - bar.n)
            if step % settings.every == 0:
                obs.append(state)
                ram.append(consoles.ram[0, -1, -1].copy())
                games.append(game)
    return Moments(np.stack(obs), state_labels(played.game, np.stack(ram)), np.array(games))


def features_of(backbone: nn.Module, obs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns float32 `[N, D]`; proves that the trunk did not change meanwhile."""
    with frozen(backbone):
        parts = [backbone(torch.from_numpy(part)) for part in np.split(
            obs, range(BATCH, len(obs), BATCH)
        )]  # fmt: skip
    found: npt.NDArray[np.float32] = torch.cat(parts).float().numpy()
    return found


def trunks_of(
    settings: Settings, agents: dict[str, Agent], played: AtariSettings
) -> dict[str, nn.Module]:
    """Returns the frozen trunks by name, the random one first: of the first one's architecture."""
    first = next(iter(agents.values()), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        drawn = make_atari_network(
            first.settings["network"] if first else settings.network, num_actions=1, aux_classes=0,
            stack=played.stack, size=played.frame_size,
        )  # fmt: skip
    return {RANDOM: drawn.backbone} | {n: agent.network.backbone for n, agent in agents.items()}


Found = dict[str, dict[str, StateScores | None]]  # label -> network -> scores


def interval(resamples: npt.NDArray[np.float64]) -> Interval:
    """Returns the value and its 95% percentile interval; NaN where a resample has no value."""
    low, high = np.percentile(resamples[1:], (2.5, 97.5))
    return Interval(float(resamples[0]), float(low), float(high))


def summarise(found: Found, networks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row for each label, network and measure; means over labels last.

    Of the means there is also the difference to the random trunk, resample by resample.
    """
    rows: list[dict[str, Any]] = []
    for measure in ("f1", "r2"):
        means: dict[str, npt.NDArray[np.float64]] = {}
        for network in networks:
            kept = []
            for label, scores in found.items():
                each = scores[network]
                values = None if each is None else getattr(each, measure)
                if values is not None and np.isfinite(values).all():
                    kept.append(values)
                shown = Interval(*3 * (np.nan,)) if values is None else interval(values)
                rows.append({"state": label, "measure": measure, "network": network,
                             **shown._asdict(), "states": each.states if each else 0})  # fmt: skip
            if kept:
                means[network] = np.mean(kept, axis=0)
        for network, values in means.items():
            row = {"measure": measure, "network": network, "states": 0}
            rows.append({"state": MEAN, **row, **interval(values)._asdict()})
            if network != RANDOM and RANDOM in means:
                apart = interval(values - means[RANDOM])._asdict()
                rows.append({"state": f"{MEAN}, minus {RANDOM}", **row, **apart})
    return rows


def as_table(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> str:
    """Returns markdown: a line for each number and measure, a column for each network."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(
            (row["measure"], row["state"]),
            {"measure": row["measure"].upper(), "state": row["state"]} | dict.fromkeys(networks),
        )
        if np.isfinite(row["value"]):  # a held-out game where the number is constant has no R2
            known = np.isfinite(row["low"])
            ends = f"{row['low']:.2f} to {row['high']:.2f}" if known else "no interval"
            line[row["network"]] = f"{row['value']:.2f} ({ends})"
    return markdown_table(list(lines.values()))


def draw(rows: Sequence[dict[str, Any]], networks: Sequence[str], stem: Path) -> None:
    """Writes the figure."""
    states = [row["state"] for row in rows if "minus" not in row["state"]]
    shown = []
    for state in dict.fromkeys(states):
        both: dict[str, dict[str, Interval]] = {"f1": {}, "r2": {}}
        for row in rows:
            if row["state"] == state:
                both[row["measure"]][row["network"]] = Interval(
                    row["value"], row["low"], row["high"]
                )
        shown.append(ProbeScores(state, both["f1"], both["r2"]))
    save(draw_probes(shown, arm_colours(networks, [RANDOM])), stem)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Writes and prints the table of a command line, and returns its rows."""
    settings = tyro.cli(Settings, args=argv)
    made: list[Path] = []
    try:
        for name in ("train_games", "validation_games", "test_games", "every"):
            if getattr(settings, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be 1 or more, got {getattr(settings, name)}.")
        agents = load_agents(settings)
        played = games_of(settings, agents)
        policy = None if settings.policy == "random" else load_policy(settings.policy, played)
        trunks = trunks_of(settings, agents, played)
        check_name(settings.name)
        folder = settings.results_dir / (settings.name or f"{rom_id(played.game)}-probes")
        if (folder / "settings.json").exists():
            raise FileExistsError(f"{folder} holds an experiment already. Choose --name.")
        made = check_writable(folder)
        counts = settings.train_games, settings.validation_games, settings.test_games
        ends = np.cumsum((0, *counts)).tolist()
        split = GameSplit(*(range(a, b) for a, b in zip(ends, ends[1:], strict=False)))
        moments = gather(policy, played, settings, sum(counts))
    except (ValueError, OSError) as error:
        remove_empty(made)
        refuse(error)
    found: Found = {label: {} for label in moments.labels}
    for network, trunk in tqdm(trunks.items(), desc="networks", disable=None):
        x = features_of(trunk, moments.obs)
        for label, values in moments.labels.items():
            found[label][network] = probe_state(
                x, values, moments.games, split, seed=settings.seed,
                class_width=game_ram(played.game).labels[label].class_width,
            )  # fmt: skip
    rows = summarise(found, list(trunks))
    table = as_table(rows, list(trunks))
    who = "random play" if policy is None else policy.name
    title = (
        f"{game_title(played.game)}, {len(moments.obs):,} states of {who}; {counts[0]} games to "
        f"fit, {counts[1]} to choose, {counts[2]} held out"
    )
    (folder / "settings.json").write_text(json.dumps(provenance(settings), indent=1))
    (folder / "table.md").write_text(f"{title}\n\n{table}\n")
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    draw(rows, list(trunks), folder / "probes")
    print(f"{title}\n\n{table}\n\n{folder}: table.md, table.csv, probes.png")
    return rows


if __name__ == "__main__":
    main()
