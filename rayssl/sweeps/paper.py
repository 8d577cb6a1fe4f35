"""The arms of Table IV as trials: which game, pretext task and preset each protocol means by them.

Two protocols, because text and code of the paper measure different things (README, "Readings"):

* `paper-code`: the preset of that name, 6 classes of orders, an Adam for each loss, and as score
  the best mean of 100 training episodes, per life and with clipped rewards, looked at every 10,000
  steps (`rayssl.comparison.paper_code_score`).
* `strict`: the game's own preset, 4 classes of orders, and as score the mean over whole, unclipped
  games of the trained agent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rayssl.presets import AtariRun, preset_values
from rayssl.sweeps.axes import Trial

ProtocolName = Literal["strict", "paper-code"]
Arm = Literal["random", "none", "rotation", "permutation"]
EVALUATIONS: Final = 10  # of a training, where no interval is asked for


@dataclass(frozen=True)
class Protocol:
    """What a protocol makes of an arm's name.

    Attributes:
      preset: of every game; None: the preset of the game's own name.
      sequence: the pretext task that stands for sequence prediction.
    """

    preset: str | None
    sequence: str


PROTOCOLS: Final[dict[str, Protocol]] = {
    "strict": Protocol(None, "permutation"),
    "paper-code": Protocol("paper-code", "permutation-6"),
}
GAMES: Final = ("pong", "breakout")  # those with a preset of their own; the paper's


def arm_settings(
    protocol: str, game: str, arm: str, *, seed: int, steps: int | None, evaluate_every: int | None,
    evaluation_games: int, num_workers: int = 0, aux_weight: float | None = None,
) -> AtariRun:  # fmt: skip
    """Returns the training of one arm.

    Args:
      protocol: a name of PROTOCOLS.
      game: `pong` or `breakout`.
      arm: `none`, `rotation` or `permutation`.
      seed: of the training.
      steps: agent steps; None: the preset's.
      evaluate_every: agent steps between two evaluations; None: a tenth of the training, or its
        end alone where ten do not divide it.
      evaluation_games: whole games of each.
      num_workers: env runner processes.
      aux_weight: of the pretext loss; None: the preset's.
    Raises:
      ValueError: for a number of steps that evaluations do not divide.
    """
    own = PROTOCOLS[protocol]
    values = preset_values(own.preset or game) | {"game": game}
    task = {"permutation": own.sequence}.get(arm, arm)
    total = steps if steps is not None else int(values.get("steps", AtariRun.steps))
    tenth = total // EVALUATIONS if total % EVALUATIONS == 0 else total
    every = evaluate_every if evaluate_every is not None else tenth
    values |= {
        "aux_task": task, "seed": seed, "steps": total, "evaluate_every": every,
        "evaluation_games": evaluation_games, "num_workers": num_workers,
    }  # fmt: skip
    if task == "none":
        values |= {"aux_weight": 0.0, "optimizers": "shared"}
    elif aux_weight is not None:
        values["aux_weight"] = aux_weight
    return AtariRun(**values)


def paper_trials(
    protocols: Sequence[str], games: Sequence[str], arms: Sequence[str], seeds: int, *,
    steps: int | None, evaluate_every: int | None, evaluation_games: int, num_workers: int,
    aux_weight: float | None,
) -> list[Trial]:  # fmt: skip
    """Returns the trainings of all arms, `strict-pong-rotation-s0`, seed by seed.

    All arms of the first seed come first: what is cut short holds whole comparisons. `random` is no
    training. The other arguments are those of `arm_settings`.
    """
    found: list[Trial] = []
    for seed in range(seeds):
        group = 0
        for protocol in protocols:
            for game in games:
                for arm in arms:
                    if arm == "random":
                        continue
                    settings = arm_settings(
                        protocol, game, arm, seed=seed, steps=steps,
                        evaluate_every=evaluate_every, evaluation_games=evaluation_games,
                        num_workers=num_workers, aux_weight=aux_weight,
                    )  # fmt: skip
                    name = f"{protocol}-{game}-{arm}-s{seed}"
                    found.append(Trial(name, settings, group))
                    group += 1
    return found
