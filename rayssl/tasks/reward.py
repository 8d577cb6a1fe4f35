"""Sequence-based self-supervision: is the next reward negative, zero, or positive?

Rewards are rare, so half of the sequences are asked to start at a step with a reward
(`rewarding_share`), as in the source, whose replay is skewed in the same way.

What differs from the source: the state is the agent's own stack of four frames (there: the last
three frames, each encoded by itself, no LSTM), and so is the trunk.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape

HIDDEN = 128  # Jaderberg et al. 2017, appendix A ("Reward prediction": a layer of 128)


class RewardHead(nn.Module):
    """Logits of negative, zero, positive: two layers of 128 and 3 units."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits `[B, 3]` from features `[B, F]`."""
        logits: Tensor = self.layers(features.float())
        return logits


@dataclass(frozen=True)
class Reward:
    """Reward prediction of UNREAL: cross-entropy of the sign of r_{t+1} given o_t.

    L = -log softmax(h(f(o_t)))[sign(r_{t+1}) + 1]

    Source: Jaderberg et al. 2017, arXiv:1611.05397, section 3.2 and appendix A.
    """

    name: str = field(default="reward", init=False)
    num_steps: int = field(default=1, init=False)
    target_rate: None = field(default=None, init=False)
    rewarding_share: float = field(default=0.5, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1/2: that of a head that always says zero."""
        return 1 - self.rewarding_share

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns a RewardHead."""
        return RewardHead(trunk.features)

    def usable(self, data: Sequences) -> Tensor:
        """Returns where the step exists: bool `[B]`."""
        return data.mask[:, 0]

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns the observations and the classes 0, 1, 2 of the rewards; nothing is drawn."""
        return data.obs[:, 0], data.rewards[:, 0].sign().long() + 1

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the cross-entropy of each sign, and whether its logit is the largest."""
        obs, signs = drawn
        logits = online.head(online.features(obs))
        losses = F.cross_entropy(logits, signs, reduction="none")
        return TaskLoss(losses, (logits.argmax(1) == signs).float())


TASKS: dict[str, Callable[[], SequenceTask]] = {"reward": Reward}
