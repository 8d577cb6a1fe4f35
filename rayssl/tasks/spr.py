"""Sequence-based self-supervision: what will the next five observations look like to the agent?

Self-predictive representations, in the source's variant without augmentation, whose target encoder
follows slowly. A predicted map is projected by the layers that Q-learning trains, as there: the
first of the Q-head there, the trunk's fully connected ones here. In the network `paper-code`, whose
heads share no such layer, the head has a projection of its own.

What differs: projections are batch normalized. Without that the loss is lowest where all screens
have one projection, and on Pong it went there at once: a loss of nearly 0 with an accuracy at
chance (results/tasks-first). Now that point has the loss of chance, 2. There is no dropout, and
Q-learning sees the map as it is (there: normalized, too).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape

CHANNELS = 64  # of the transition model: mila-iqia/spr, src/models.py
LATENT = 256  # of a projection of the head's own


class SprHead(nn.Module):
    """Transition model on feature maps, and predictor over projected ones.

    Args of the forward pass:
      feature_map: `[B, C, h, w]`.
      actions: int64 `[B]`.
    Returns:
      the feature map that the model expects after the action, in [0, 1].
    """

    def __init__(self, trunk: TrunkShape, num_actions: int) -> None:
        super().__init__()
        channels = trunk.feature_map[0]
        self.num_actions = num_actions
        self.transition = nn.Sequential(
            nn.Conv2d(channels + num_actions, CHANNELS, 3, padding=1), nn.ReLU(),
            # Without running statistics: in training it makes no use of them.
            nn.BatchNorm2d(CHANNELS, track_running_stats=False),
            nn.Conv2d(CHANNELS, channels, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        own = trunk.hidden is not None  # no layer behind the map is shared
        self.projection = nn.Linear(trunk.features, LATENT) if own else nn.Identity()
        latent = LATENT if own else trunk.features
        # Without running statistics: nothing asks this head outside of training.
        self.norm = nn.BatchNorm1d(latent, affine=False, track_running_stats=False)
        self.predictor = nn.Linear(latent, latent)

    def forward(self, feature_map: Tensor, actions: Tensor) -> Tensor:
        every = torch.arange(self.num_actions, device=actions.device)
        planes = (actions[:, None] == every).float()[:, :, None, None]  # one-hot
        planes = planes.expand(-1, -1, *feature_map.shape[2:])
        return normalized(self.transition(torch.cat([feature_map, planes], 1)))


@dataclass(frozen=True)
class SelfPrediction:
    """SPR: predicts the agent's own latent representations five steps ahead, given the actions.

    L = 1/K sum_k m_k |y_k / |y_k| - t_k / |t_k||^2, y_k = q(g(z_k)), z_k = h(z_{k-1}, a_{k-1}),
    t_k = g'(f'(o_k)); m_k = 0 beyond a game's end; the distance is 2 - 2 cos(y_k, t_k)

    Right is a prediction that is more similar to its own target than to those of all other samples
    at the same step, each less its mean over the batch. A head that knows nothing has a loss of 2.
    Trained alone it keeps few directions in which screens differ, and the accuracy stays low where
    the loss is good (results/tasks-third); beside Q-learning it is right most of the time
    (results/pong-tasks-second).

    Source: Schwarzer et al. 2021, arXiv:2007.05929, section 2 and github mila-iqia/spr,
    src/models.py.
    """

    name: str = field(default="spr", init=False)
    num_steps: int = field(default=5, init=False)
    target_rate: float = field(default=0.01, init=False)  # 1 - 0.99 there
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / B."""
        return 1 / batch_size

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns an SprHead."""
        return SprHead(trunk, num_actions)

    def usable(self, data: Sequences) -> Tensor:
        """Returns where there is a next step in the same game: bool `[B]`."""
        return data.mask[:, 0]

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns observations, actions and mask; nothing is drawn."""
        return data.obs, data.actions, data.mask

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the mean distance of each sample's predictions, and the share that is right."""
        assert target is not None
        obs, actions, mask = drawn
        with torch.no_grad():
            maps = normalized(target.feature_map(obs[:, 1:].flatten(0, 1)).float())
            targets = F.normalize(_projected(target, maps), dim=1)
            targets = targets.unflatten(0, (len(obs), -1))  # [B, K, latent]
        latents = normalized(online.feature_map(obs[:, 0]).float())
        losses, correct = [], []
        for k in range(actions.shape[1]):
            latents = online.head(latents, actions[:, k])
            predicted = online.head.predictor(_projected(online, latents))
            predicted = F.normalize(predicted, dim=1)
            losses.append(2 - 2 * (predicted * targets[:, k]).sum(1))
            correct.append(_own_is_nearest(predicted.detach(), targets[:, k]))
        steps = mask.float()  # [B, K]
        loss = (torch.stack(losses, 1) * steps).mean(1)
        right = (torch.stack(correct, 1) * steps).sum(1) / steps.sum(1).clamp(min=1)
        return TaskLoss(loss, right)


def _own_is_nearest(predicted: Tensor, targets: Tensor) -> Tensor:
    """Whether each row of `[B, N]` is more similar to its own target than to any other: `[B]`.

    What all rows share is taken away first. Else the target that is most like the mean prediction
    would be the nearest one of all.
    """
    unlike = [F.normalize(x - x.mean(0), dim=1) for x in (predicted, targets)]
    cosines = unlike[0] @ unlike[1].T  # [B, B]
    sample = torch.arange(len(cosines), device=cosines.device)
    same = sample[:, None] == sample
    own = torch.where(same, cosines, 0.0).sum(1)
    return (own > torch.where(same, -2.0, cosines).amax(1)).float()


def _projected(encoder: Encoder, feature_map: Tensor) -> Tensor:
    features = encoder.features_of_map(feature_map).float()
    latents: Tensor = encoder.head.norm(encoder.head.projection(features))
    return latents


def normalized(feature_map: Tensor) -> Tensor:
    """Returns each sample's feature map, scaled so that its values span [0, 1]."""
    flat = feature_map.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-5)).view_as(feature_map)


TASKS: dict[str, Callable[[], SequenceTask]] = {"spr": SelfPrediction}
