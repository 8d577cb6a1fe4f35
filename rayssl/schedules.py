"""When things happen: epsilon, beta, learning rates over time, updates over slots. Pure rules."""

from dataclasses import dataclass
from typing import Literal, get_args

AuxScheduleName = Literal["alternate", "joint", "pretrain", "aux-only"]
AUX_SCHEDULES: tuple[str, ...] = get_args(AuxScheduleName)
Update = Literal["td", "aux", "joint"]


@dataclass(frozen=True)
class LinearSchedule:
    """A value that goes from `start` to `end` over `duration` steps and then stays.

    value(t) = start + (end - start) * min(t / duration, 1)

    Attributes:
      start: value at step 0.
      end: value from step `duration` on.
      duration: agent steps; 0 means `end` from the beginning.
    """

    start: float
    end: float
    duration: int

    def __call__(self, step: int) -> float:
        """Returns the value at an agent step (0 or more)."""
        if step >= self.duration:
            return self.end
        return self.start + (self.end - self.start) * max(step, 0) / self.duration


def constant_then_exponential(
    epoch: int, *, constant: int, decay: int, final: float = 0.01
) -> float:
    """Returns the factor of the learning rate in an epoch: 1 at first, then falling to `final`.

    1 for the first `constant` epochs, then final**((epoch - constant + 1) / decay).

    Args:
      epoch: from 0.
      constant: epochs before the rate falls.
      decay: epochs of the fall; the last of them has the factor `final`.
      final: in (0, 1].
    Source: Donahue et al. 2016, arXiv:1605.09782, and their train_gan.py.
    """
    if epoch < constant:
        return 1.0
    return float(final ** (min(epoch - constant + 1, decay) / decay))


@dataclass(frozen=True)
class AuxSchedule:
    """Which updates the learner makes in its n-th slot; a slot comes once per replay batch.

    - `alternate`: a TD update in every slot, and after every `every`-th one an aux update on the
      same batch (section IV-B, "We alternate between Q(s, a) prediction and sequence prediction").
    - `joint`: one update of the weighted sum of eq. (3) in every `every`-th slot, TD in the others.
    - `pretrain`: aux updates only in the first `pretrain_updates` slots ("pre-trained ... with only
      the self-supervised loss"), TD updates only after them.
    - `aux-only`: an aux update in every slot, never a TD update: a trunk for another run.

    `pretrain_updates` may precede the other two schedules as well. With `name=None` (task `none`)
    every slot is a TD update: the same number of TD updates per env step in every arm.

    Raises:
      ValueError: for an unknown name, `every` below 1, or `pretrain` without `pretrain_updates`.
    """

    name: AuxScheduleName | None = None
    every: int = 1
    pretrain_updates: int = 0

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in AUX_SCHEDULES:
            raise ValueError(
                f"Unknown schedule '{self.name}'. Available: {', '.join(AUX_SCHEDULES)}."
            )
        if self.every < 1:
            raise ValueError(f"aux_every must be 1 or more TD updates, got {self.every}.")
        if self.pretrain_updates < 0:
            raise ValueError(f"pretrain_updates must be 0 or more, got {self.pretrain_updates}.")
        if self.name == "pretrain" and self.pretrain_updates == 0:
            raise ValueError(
                "Schedule 'pretrain' needs pretrain_updates of 1 or more, got 0: it is the number "
                "of aux-only updates before Q-learning starts."
            )

    def updates(self, slot: int) -> tuple[Update, ...]:
        """Returns the updates of slot number `slot` (from 0), in order."""
        if self.name is None:
            return ("td",)
        if self.name == "aux-only" or slot < self.pretrain_updates:
            return ("aux",)
        due = (slot - self.pretrain_updates + 1) % self.every == 0
        if self.name == "pretrain" or not due:
            return ("td",)
        return ("td", "aux") if self.name == "alternate" else ("joint",)
