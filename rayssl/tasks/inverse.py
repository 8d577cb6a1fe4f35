"""Sequence-based self-supervision: which action lies between two observations?

What differs from the sources: the features are those of the Q-network's trunk, not of a network of
the task's own, and there is no forward model beside it. They are batch normalized, as those of
Burda et al. 2019 (arXiv:1808.04355, section 2.2): without, the task stays at chance on Pong, where
the features of any two screens are nearly alike (results/tasks-second; with: results/tasks-third).
Actions that do the same (in Pong two of six move up, two down, two not at all) cannot be told
apart: there accuracy ends below 1/2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape

HIDDEN = 256  # Pathak et al. 2017, section 3.2 ("Training details")


class InverseHead(nn.Module):
    """Logits of the actions from the features before and after: two layers of 256 and A units."""

    def __init__(self, features: int, num_actions: int) -> None:
        super().__init__()
        # Without running statistics: nothing asks this head outside of training.
        self.norm = nn.BatchNorm1d(features, affine=False, track_running_stats=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_actions)
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Returns logits `[B, A]` from features `[B, F]` each."""
        both = self.norm(torch.cat([before, after]).float())  # [2 * B, F]
        logits: Tensor = self.layers(torch.cat(both.chunk(2), 1))
        return logits


@dataclass(frozen=True)
class Inverse:
    """Inverse dynamics: cross-entropy of the action a_t given f(o_t) and f(o_{t+1}).

    L = -log softmax(h(f(o_t), f(o_{t+1})))[a_t]

    Source: Pathak et al. 2017, arXiv:1705.05363, eq. (3); Agrawal et al. 2016, arXiv:1606.07419.
    """

    name: str = field(default="inverse", init=False)
    num_steps: int = field(default=1, init=False)
    target_rate: None = field(default=None, init=False)
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / A."""
        return 1 / num_actions

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns an InverseHead."""
        return InverseHead(trunk.features, num_actions)

    def usable(self, data: Sequences) -> Tensor:
        """Returns where the next observation is of the same game: bool `[B]`."""
        return data.mask[:, 0]

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns observations before and after, and the actions; nothing is drawn."""
        return data.obs[:, 0], data.obs[:, 1], data.actions[:, 0]

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the cross-entropy of each action, and whether its logit is the largest."""
        before, after, actions = drawn
        features = online.features(torch.cat([before, after]))  # one pass for both
        logits = online.head(*features.chunk(2))
        losses = F.cross_entropy(logits, actions, reduction="none")
        return TaskLoss(losses, (logits.argmax(1) == actions).float())


TASKS: dict[str, Callable[[], SequenceTask]] = {"inverse": Inverse}
