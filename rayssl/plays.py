"""Evaluation files -> those that may be averaged: each agent once, all of them played alike."""

from collections.abc import Sequence
from typing import NamedTuple

from rayssl.evaluation import EPSILON
from rayssl.results import Evaluation, Pairs


class Play(NamedTuple):
    """What evaluations of one game have to share before a mean over seeds is taken of them.

    Attributes:
      aux_task, aux_weight, network, env_steps: of the training; the random agent has no network
        and no steps. The weight is None where its checkpoint does not say.
      training: the options that it learned with; None where its checkpoint does not say.
      epsilon: share of random actions; None for the random agent.
      sticky: probability that the console repeats an action.
    """

    aux_task: str
    aux_weight: float | None
    network: str | None
    env_steps: int | None
    epsilon: float | None
    sticky: float
    training: Pairs | None

    @property
    def oddity(self) -> str:
        """What differs from evaluate.py's own play, epsilon 0.01 without sticky actions."""
        epsilon = f"epsilon {self.epsilon:g}" if self.epsilon not in (EPSILON, None) else ""
        return ", ".join(filter(None, [epsilon, f"sticky {self.sticky:g}" if self.sticky else ""]))


def play_of(found: Evaluation) -> Play:
    """Returns how an evaluation was played."""
    epsilon = None if found.agent == "random" else found.epsilon
    return Play(
        found.aux_task, found.aux_weight, found.network, found.env_steps, epsilon, found.sticky,
        found.training,
    )  # fmt: skip


def played_alike(found: Sequence[Evaluation]) -> dict[Play, list[Evaluation]]:
    """Returns how the evaluations were played -> one of each agent; first what a mean is taken of.

    First stand those of the most agents; of several with as many, those played as evaluate.py does
    by itself, then those after the most steps. Agents of one play are told apart by their seed. Of
    two evaluations of one agent that with more games counts.

    Args:
      found: of one game.
    """
    groups: dict[Play, dict[int | None, Evaluation]] = {}
    for each in sorted(found, key=lambda each: -each.num):
        groups.setdefault(play_of(each), {}).setdefault(each.seed, each)

    def rank(play: Play) -> tuple[int, bool, int]:
        return -len(groups[play]), bool(play.oddity), -(play.env_steps or 0)

    return {play: list(groups[play].values()) for play in sorted(groups, key=rank)}
