"""Sequence-based self-supervision: do three frames stand in the order of time, or not?

Of five consecutive frames a, b, c, d, e: (b, c, d) is in order, (b, a, d) and (b, e, d) are not:
first and last frame are the same, so that only the middle one tells. Half of the triples are turned
round, as time may run both ways.

What differs from the source: frames are 4 emulator frames apart and none are chosen by optical flow
(those that do not move are left out instead); half of the triples are in order (there the share is
tuned); the three features are compared by a layer of 256 units (there by a linear layer alone,
which can weigh the frames but not compare them); batch normalization stands behind the trunk (there
within it). Without it the task stays at chance on Pong, where the features of any two screens are
nearly alike: results/tasks-second without, results/tasks-third with it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape, draw_per_sample

HIDDEN = 256
FRAMES = 5
A, B, C, D, E = range(FRAMES)
# Drawn evenly: a row of the upper half is in order, one of the lower half is not.
TRIPLES = (
    (B, C, D), (D, C, B), (B, C, D), (D, C, B),
    (B, A, D), (D, A, B), (B, E, D), (D, E, B),
)  # fmt: skip


class OrderHead(nn.Module):
    """Logits of "not in order" and "in order" from the features of three frames."""

    def __init__(self, features: int) -> None:
        super().__init__()
        # Without running statistics: nothing asks this head outside of training.
        self.norm = nn.BatchNorm1d(features, affine=False, track_running_stats=False)
        self.layers = nn.Sequential(
            nn.Linear(3 * features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits `[B, 2]` from features `[B, 3, F]`."""
        frames = self.norm(features.flatten(0, 1).float())  # [3 * B, F]
        logits: Tensor = self.layers(frames.unflatten(0, (-1, 3)).flatten(1))
        return logits


@dataclass(frozen=True)
class OrderVerification:
    """Shuffle and learn: is a triple of frames in the order of time?

    L = -log softmax(h(f(x_1), f(x_2), f(x_3)))[y], y = 1 where (x_1, x_2, x_3) is in order

    Each frame is encoded by itself: it fills all channels of an observation.

    Source: Misra, Zitnick & Hebert 2016, arXiv:1603.08561, section 3.
    """

    name: str = field(default="order-verification", init=False)
    num_steps: int = field(default=1, init=False)
    target_rate: None = field(default=None, init=False)
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1/2."""
        return 0.5

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns an OrderHead."""
        return OrderHead(trunk.features)

    def usable(self, data: Sequences) -> Tensor:
        """Returns which samples tell their order: bool `[B]`.

        False where any two of the five frames are equal, where one is blank (padding at a game's
        start), and where the next observation is not of the same game.

        Raises:
          ValueError: if an observation has fewer than 4 frames.
        """
        frames = five_frames(data)
        told: Tensor = data.mask[:, 0] & (frames != 0).flatten(2).any(2).all(1)
        for lag in range(1, FRAMES):  # all ten pairs
            told = told & (frames[:, lag:] != frames[:, :-lag]).flatten(2).any(2).all(1)
        return told

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns triples `[B, 3, H, W]` and their labels; triple and turn are drawn per sample."""
        frames = five_frames(data)
        drawn = draw_per_sample(frames, len(TRIPLES), generator=generator)
        order = _table(frames.device)[drawn]  # [B, 3]
        samples = torch.arange(len(frames), device=frames.device)[:, None]
        channels = data.obs.shape[2]
        triples = frames[samples, order]  # [B, 3, H, W]
        stacked = triples[:, :, None].expand(-1, -1, channels, -1, -1)
        return stacked, (drawn < len(TRIPLES) // 2).long()

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the cross-entropy of each label, and whether its logit is the largest."""
        stacked, labels = drawn
        features = online.features(stacked.flatten(0, 1))  # [3 * B, F]
        logits = online.head(features.unflatten(0, (-1, 3)))
        losses = F.cross_entropy(logits, labels, reduction="none")
        return TaskLoss(losses, (logits.argmax(1) == labels).float())


def five_frames(data: Sequences) -> Tensor:
    """Returns the last four frames of the first observation and the newest of the next.

    `[B, 5, H, W]`, oldest first.

    Raises:
      ValueError: if an observation has fewer than 4 frames.
    """
    if data.obs.shape[2] < FRAMES - 1:
        raise ValueError(
            f"Order verification needs observations of {FRAMES - 1} frames or more, got shape "
            f"{tuple(data.obs.shape)} [B, K + 1, stack, H, W]. Use a stack of 4."
        )
    return torch.cat([data.obs[:, 0, 1 - FRAMES :], data.obs[:, 1, -1:]], 1)


@functools.cache  # a copy to the GPU on each call would wait for all work queued there
def _table(device: torch.device) -> Tensor:
    return torch.tensor(TRIPLES, device=device)


TASKS: dict[str, Callable[[], SequenceTask]] = {"order-verification": OrderVerification}
