"""Sequence-based self-supervision: what will the next five observations look like to the agent?

Self-predictive representations. What differs from the source: the projection is a layer of the
head's own (there: the first layer of the Q-head), of 256 units; of the two augmentations the random
shift is kept, the jitter of the intensity left out. As in the source with augmentation, the target
encoder takes over the trained weights whole after each update (tau = 0 there, rate 1 here).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.augmentation import random_shift
from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape, check_generator

CHANNELS = 64  # of the transition model: mila-iqia/spr, src/models.py
LATENT = 256


class SprHead(nn.Module):
    """Transition model on feature maps, projection, and predictor.

    Args of the forward pass:
      feature_map: `[B, C, h, w]`.
      actions: int64 `[B]`.
    Returns:
      the feature map that the model expects after the action, in [0, 1].
    """

    def __init__(self, feature_map: tuple[int, int, int], num_actions: int) -> None:
        super().__init__()
        channels, height, width = feature_map
        self.num_actions = num_actions
        self.transition = nn.Sequential(
            nn.Conv2d(channels + num_actions, CHANNELS, 3, padding=1), nn.ReLU(),
            # Without running statistics: in training it makes no use of them.
            nn.BatchNorm2d(CHANNELS, track_running_stats=False),
            nn.Conv2d(CHANNELS, channels, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.projection = nn.Linear(channels * height * width, LATENT)
        self.predictor = nn.Linear(LATENT, LATENT)

    def forward(self, feature_map: Tensor, actions: Tensor) -> Tensor:
        every = torch.arange(self.num_actions, device=actions.device)
        planes = (actions[:, None] == every).float()[:, :, None, None]  # one-hot
        planes = planes.expand(-1, -1, *feature_map.shape[2:])
        return normalized(self.transition(torch.cat([feature_map, planes], 1)))

    def project(self, feature_map: Tensor) -> Tensor:
        """Returns latents `[B, 256]` of feature maps."""
        latents: Tensor = self.projection(feature_map.flatten(1))
        return latents


@dataclass(frozen=True)
class SelfPrediction:
    """SPR: predicts the agent's own latent representations five steps ahead, given the actions.

    L = 1/K sum_k m_k |y_k / |y_k| - t_k / |t_k||^2, y_k = q(g(z_k)), z_k = h(z_{k-1}, a_{k-1}),
    t_k = g'(f'(o_k)); m_k = 0 beyond a game's end; the distance is 2 - 2 cos(y_k, t_k)

    Right is a prediction that is more similar to its own target than to those of all other samples
    at the same step: representations that collapse to one point are never right. The loss forbids
    no collapse; in the source Q-learning runs beside it. In a first aux-only run on Pong the loss
    fell to 0.007 while the accuracy stayed at chance.

    Source: Schwarzer et al. 2021, arXiv:2007.05929, section 2 and github mila-iqia/spr,
    src/models.py.
    """

    name: str = field(default="spr", init=False)
    num_steps: int = field(default=5, init=False)
    target_rate: float = field(default=1.0, init=False)
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / B."""
        return 1 / batch_size

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns an SprHead."""
        return SprHead(trunk.feature_map, num_actions)

    def usable(self, data: Sequences) -> Tensor:
        """Returns where there is a next step in the same game: bool `[B]`."""
        return data.mask[:, 0]

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns observations, each with a shift of its own, actions and mask."""
        check_generator(data.obs, generator)
        shifted = random_shift(data.obs.flatten(0, 1), generator=generator)
        return shifted.view(data.obs.shape), data.actions, data.mask

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the mean distance of each sample's predictions, and the share that is right."""
        assert target is not None
        obs, actions, mask = drawn
        with torch.no_grad():
            maps = normalized(target.feature_map(obs[:, 1:].flatten(0, 1)).float())
            targets = F.normalize(target.head.project(maps), dim=1)
            targets = targets.unflatten(0, (len(obs), -1))  # [B, K, 256]
        latents = normalized(online.feature_map(obs[:, 0]).float())
        sample = torch.arange(len(obs), device=obs.device)
        same = sample[:, None] == sample
        losses, correct = [], []
        for k in range(actions.shape[1]):
            latents = online.head(latents, actions[:, k])
            predicted = online.head.predictor(online.head.project(latents))
            cosines = F.normalize(predicted, dim=1) @ targets[:, k].T  # [B, B]
            own = torch.where(same, cosines, 0.0).sum(1)
            others = torch.where(same, -2.0, cosines.detach()).amax(1)
            losses.append(2 - 2 * own)
            correct.append((own.detach() > others).float())
        steps = mask.float()  # [B, K]
        loss = (torch.stack(losses, 1) * steps).mean(1)
        right = (torch.stack(correct, 1) * steps).sum(1) / steps.sum(1).clamp(min=1)
        return TaskLoss(loss, right)


def normalized(feature_map: Tensor) -> Tensor:
    """Returns each sample's feature map, scaled so that its values span [0, 1]."""
    flat = feature_map.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-5)).view_as(feature_map)


TASKS: dict[str, Callable[[], SequenceTask]] = {"spr": SelfPrediction}
