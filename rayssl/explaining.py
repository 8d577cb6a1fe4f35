"""What there is to explain in a trained network: inputs, the score of each, and where things are.

    explained = explain_atari(load_agent(folder), target="aux", count=6)
    maps = explained.maps(explained.network, seed=0)

A score is one number of one output: of the aux branch the logit of the true pretext label, of the
Q-values that of the action chosen, of a classifier the logit of the image's label. Which one is
fixed by the input, not by the network: so that the maps of several networks, and of one whose
weights are drawn anew, explain the same question.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayssl.attribution import Kind, Score, pixel_maps, score_against_masks, shown_map, smoothgrad
from rayssl.data import ImageSplits
from rayssl.envs.atari import AtariSettings, action_set, game_title, rom_id
from rayssl.envs.ram import GAMES, RamConsoles, region_masks
from rayssl.evaluation import EPSILON, Agent, ColourTwin, watch_games
from rayssl.tasks import PretextTask, make_task
from rayssl.training import ClassifierSettings, ClassifierTraining
from rayssl.video import action_words, draw_attribution

Target = Literal["aux", "q", "class"]
Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]
ScoreOf = Callable[[nn.Module, int], Score]
Track = Callable[[range], Iterable[int]]  # e.g. tqdm

# A game is cut there: so long that a beginner's game of Pong or Breakout ends by itself.
MAX_GAME_FRAMES = 20_000


@dataclass(frozen=True)
class Explained:
    """What one checkpoint has to say of itself.

    Attributes:
      network: the trained one, for `reinitialized`, too.
      score: makes the score of the i-th input from a network of the same heads.
      x: float inputs `[N, C, H, W]`.
      images: how they look, `[N, H, W, 3]` or `[N, H, W]` in [0, 1].
      captions: of each.
      clusters: inputs of one cluster (a video, a game) are no independent evidence.
      what: a caption for people.
      frames: all frames of each input, `[N, C, H, W]` in [0, 1]; None for single images.
      masks: bool `[N, H, W]` of what should be found; None where that is not known.
      regions: name -> bool `[N, C, H, W]`: which pixels of each frame show what.
    """

    network: nn.Module
    score: ScoreOf
    x: Tensor
    images: Floats
    captions: list[str]
    clusters: npt.NDArray[np.int64]
    what: str
    frames: Floats | None = None
    masks: Masks | None = None
    regions: dict[str, Masks] = field(default_factory=dict)

    def maps(
        self,
        network: nn.Module,
        *,
        kind: Kind,
        samples: int,
        noise: float,
        seed: int,
        batch_size: int,
        track: Track = iter,
    ) -> Tensor:
        """Returns the maps of a network's scores, `[N, C, H, W]`; arguments as for `smoothgrad`.

        Args:
          track: wraps the numbers of the inputs, for a progress bar.
        """
        found = [
            smoothgrad(
                self.score(network, i), self.x[i : i + 1], kind=kind, samples=samples, noise=noise,
                seed=seed, batch_size=batch_size,
            )
            for i in track(range(len(self.x)))
        ]  # fmt: skip
        return torch.cat(found)


@dataclass(frozen=True)
class Shares:
    """The share of each map that lies in a region, and that of a uniform map: `[N]` each."""

    of_map: Floats
    uniform: Floats


def region_shares(maps: Tensor, regions: dict[str, Masks]) -> dict[str, Shares]:
    """Returns how much of each map's sum of absolute values lies in each region.

    A state of several frames counts as one large picture, each frame with the region of its own
    time: where the ball was then.

    Args:
      maps: `[N, C, H, W]`, from `smoothgrad`.
      regions: name -> bool `[N, C, H, W]`.
    Raises:
      ValueError: as `score_against_masks`.
    """
    size = maps.detach().cpu().double().abs().numpy()
    tall = (len(size), -1, size.shape[-1])
    return {
        name: Shares(found.energy_inside, found.chance)
        for name, region in regions.items()
        if (found := score_against_masks(size.reshape(tall), region.reshape(tall)))
    }


def explain_atari(
    agent: Agent,
    *,
    target: Target | None = None,
    count: int = 6,
    games: int = 4,
    epsilon: float = EPSILON,
    seed: int = 0,
    max_game_frames: int = MAX_GAME_FRAMES,
) -> Explained:
    """Returns states of games that the agent plays, drawn evenly from each game's steps.

    Left out are states with blank frames, and those that carry no pretext label. In games whose RAM
    is known (rayssl.envs.ram) there is a ball in every state, and the regions say where it is.

    Args:
      target: `aux` or `q`; None: aux where there is an aux head.
      count: states; games: from so many games, in equal parts.
      epsilon: share of random actions.
      seed: of games, choice of states, and draws of the pretext task.
      max_game_frames: emulator frames after which a game is cut.
    Raises:
      ValueError: for a target that the network does not have, or games without enough states.
    """
    target = check_target(agent, target)
    # RAM cannot be read with sticky actions, see `RamConsoles`.
    settings = agent.atari_settings(num_envs=1, max_game_frames=max_game_frames, sticky=0.0)
    known = rom_id(settings.game) in GAMES
    consoles = RamConsoles(settings) if known else ColourTwin(settings)
    drawn = _draw_states(agent, settings, consoles, count, games, epsilon, seed)
    states = torch.from_numpy(np.stack([state for _, state, _ in drawn]))
    clusters = np.array([game for game, _, _ in drawn])
    regions: dict[str, Tensor] = {}
    if known:
        stacks = np.stack([ram for _, _, ram in drawn])  # [N, stack, 2, 128]
        flat = region_masks(settings.game, stacks.reshape(-1, *stacks.shape[2:]), states.shape[-1])
        regions = {name: torch.from_numpy(m.reshape(states.shape)) for name, m in flat.items()}
    x_hat, score, captions = _ask(agent, target, states, seed)
    if target == "aux":  # regions go where the task puts the frames' pixels: by the same draws
        assert agent.task is not None
        regions = {name: _draw_pretext(agent.task, m, seed)[0] for name, m in regions.items()}
    frames = x_hat.double().numpy() / 255
    return Explained(
        agent.network.requires_grad_(False), score, x_hat.float(), frames[:, -1], captions,
        clusters, f"{game_title(settings.game)}: {agent.name}, score: {_score_name(agent, target)}",
        frames=frames, regions={name: region.numpy() for name, region in regions.items()},
    )  # fmt: skip


def explain_mnist(
    state: dict[str, Any],
    data: ImageSplits,
    *,
    target: Target | None = None,
    count: int = 6,
    seed: int = 0,
) -> Explained:
    """Returns test images of a classifier that `ClassifierTraining` saved.

    Args:
      state: of `ClassifierTraining.state_dict`.
      data: the images that it was trained on.
      target: `class` (the default) or `aux`.
      count: images.
      seed: of the choice of images and the draws of the pretext task.
    Raises:
      ValueError: for a target that the network does not have, or a state of other images.
    """
    training = ClassifierTraining(data, ClassifierSettings(**state["settings"]))
    training.load_state_dict(state)
    task = training.settings.aux_task
    heads = ["class"] if training.task is None else ["aux", "class"]
    target = target or "class"
    if target not in heads:
        raise ValueError(
            f"This classifier has no score {target!r} (pretext task {task}). Available: "
            f"--target {' or '.join(heads)}."
        )
    rows = np.random.default_rng(seed).permutation(len(data.test_x))[:count]
    images, labels = data.test_x[rows], data.test_y[rows]
    x, y = images, labels
    if target == "aux":
        x, y = _draw_pretext(make_task(task), images, seed)
    network = training.network.float().eval().requires_grad_(False)
    with torch.no_grad():
        sure = network(x, target).softmax(1)[range(len(x)), y].tolist()
    word = "class" if target == "aux" else "label"
    captions = [f"{word} {label}\np {p:.2f}" for label, p in zip(y.tolist(), sure, strict=True)]
    name = f"logit of the true {'pretext class (' + task + ')' if target == 'aux' else 'label'}"
    return Explained(
        network, _logit_of(target, y), x.float(), x[:, 0].double().numpy() / 255, captions,
        np.arange(len(x)), f"{training.settings.protocol}, {task}, epoch {training.epoch}, score: "
        f"{name}",
    )  # fmt: skip


def check_target(agent: Agent, target: Target | None) -> Target:
    """Returns the target, or the agent's default; raises ValueError for one that it cannot have."""
    heads: list[Target] = ["aux", "q"] if agent.task else ["q"]
    if target is None:
        return heads[0]
    if target not in heads:
        task = agent.settings["aux_task"] or "none"
        raise ValueError(
            f"{agent.checkpoint} has no score {target!r} (pretext task {task}). Available: "
            f"--target {' or '.join(heads)}."
        )
    return target


def attribution_frames(
    agent: Agent,
    *,
    target: Target | None,
    kind: Kind,
    samples: int,
    noise: float,
    seed: int,
    batch_size: int,
    steps: int,
    epsilon: float = EPSILON,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields frames of a video of maps along the first game, one for each agent step.

    The pretext task's draw is the same in the whole video.

    Args:
      steps: at most.
      kind, samples, noise, seed, batch_size: as for `smoothgrad`.
    Raises:
      ValueError: as `check_target`.
    """
    target = check_target(agent, target)
    settings = agent.atari_settings(num_envs=1, sticky=0.0)  # as in `explain_atari`
    consoles = ColourTwin(settings)
    network = agent.network.requires_grad_(False)
    watched = watch_games(agent, settings, consoles, games=1, epsilon=epsilon, seed=seed)
    for _, (_, state) in zip(range(steps), watched, strict=False):
        x, score, captions = _ask(agent, target, torch.from_numpy(state)[None], seed)
        maps = smoothgrad(
            score(network, 0), x.float(), kind=kind, samples=samples, noise=noise, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip
        yield draw_attribution(
            consoles.screens[0], x[0, -1].numpy(), shown_map(pixel_maps(maps))[0],
            f"{kind} of the {_score_name(agent, target)}", captions[0].replace("\n", ", "),
        )  # fmt: skip
    watched.close()  # type: ignore[attr-defined]


def _draw_states(
    agent: Agent, settings: AtariSettings, consoles: Any, count: int, games: int, epsilon: float,
    seed: int,
) -> list[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """(game, state, RAM of its frames): a reservoir sample of each game's steps, shuffled."""
    known = isinstance(consoles, RamConsoles)
    rng = np.random.default_rng(seed)
    quota = [count // games + (i < count % games) for i in range(games)]
    kept: list[dict[int, tuple[int, np.ndarray, np.ndarray]]] = [{} for _ in range(games)]
    seen = [0] * games
    watched = watch_games(agent, settings, consoles, games=games, epsilon=epsilon, seed=seed)
    for step, (game, state) in enumerate(watched):
        ram = consoles.ram[0].copy() if known else np.zeros(0)
        if not _tells(agent.task, state) or (known and not _has_ball(settings.game, ram)):
            continue
        seen[game] += 1
        own = kept[game]
        if len(own) < quota[game]:
            own[step] = game, state, ram
        elif rng.random() < quota[game] / seen[game]:
            del own[list(own)[rng.integers(len(own))]]
            own[step] = game, state, ram
    found = [moment for own in kept for moment in own.values()]
    found = [found[i] for i in rng.permutation(len(found))]  # so that the first are of all games
    if len(found) < count:
        raise ValueError(
            f"Expected {count} states that can be explained in {games} games, got {len(found)}. "
            "Lower --shown and --scored, or raise --games."
        )
    return found


def _tells(task: PretextTask | None, state: np.ndarray) -> bool:
    """Whether no frame is blank and the state carries a pretext label."""
    if not state.any((1, 2)).all():
        return False
    return task is None or bool(task.usable(torch.from_numpy(state)[None]))


def _has_ball(game: str, ram: np.ndarray) -> bool:
    byte = GAMES[rom_id(game)].ball_in_play
    return bool((ram[:, -1, byte] > 0).all())


def _ask(
    agent: Agent, target: Target, states: Tensor, seed: int
) -> tuple[Tensor, ScoreOf, list[str]]:
    """Inputs uint8 `[N, stack, H, W]`, the score of each, and captions."""
    if target == "aux":
        assert agent.task is not None
        x, labels = _draw_pretext(agent.task, states, seed)
        with torch.no_grad():
            sure = agent.network(x, agent.aux_head).softmax(1)[range(len(x)), labels].tolist()
        rows = zip(labels.tolist(), sure, strict=True)
        return (
            x,
            _logit_of(agent.aux_head, labels),
            [f"class {label}\np {p:.2f}" for label, p in rows],
        )
    q = torch.from_numpy(agent.q_values(states.numpy()))
    actions = q.argmax(1)
    names = [action_words(name) for name in action_set(agent.settings["game"])]
    best = zip(actions.tolist(), q.amax(1).tolist(), strict=True)
    return states, _logit_of("q", actions), [f"{names[a]}\nQ {value:.2f}" for a, value in best]


def _logit_of(head: str, index: Tensor) -> ScoreOf:
    """The i-th input's score: output `index[i]` of a head."""
    return lambda network, i: lambda batch: network(batch, head)[:, index[i]]


def _draw_pretext(task: PretextTask, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """x_hat and labels; the i-th draw is the same whatever is in x, a frame or a mask of it."""
    drawn = [
        task(one[None], generator=torch.Generator().manual_seed(seed * 100_003 + i))
        for i, one in enumerate(x)
    ]
    return torch.cat([x_hat for x_hat, _ in drawn]), torch.cat([label for _, label in drawn])


def _score_name(agent: Agent, target: Target) -> str:
    if target == "q":
        return "Q-value of the chosen action"
    assert agent.task is not None
    return f"logit of the true pretext class ({agent.task.name})"
