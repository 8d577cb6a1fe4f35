"""Image-based self-supervision: which two randomly shifted views are of one observation?

What differs from the source: the map of the last convolution is batch normalized before the first
layer. Without that, and with the contrast on the trunk's output, the task stays at chance on Pong,
where any two screens look nearly alike to a fresh trunk (results/tasks-second; with: results/
tasks-third). The view is a random shift by up to 4 pixels (there: a crop of 80x80, then the shift).

On images, too: there the slowly moving copy is a classifier's, without its dropout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.augmentation import random_shift
from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape, check_generator

HIDDEN, LATENT = 256, 128  # github aravindsrinivas/curl_rainbow, model.py (W_h, W_c)
SCALE = 0.1  # of the logits: curl_rainbow, agent.py


class CurlHead(nn.Module):
    """Latents of 128 numbers, and the matrix W of the bilinear similarity q^T W k.

    Args of the forward pass:
      feature_map: `[B, C, h, w]` with `C * h * w` numbers a sample.
    Returns:
      latents `[B, 128]`.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        # Without running statistics: nothing asks this head outside of training.
        self.norm = nn.BatchNorm1d(features, affine=False, track_running_stats=False)
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.LayerNorm(HIDDEN, elementwise_affine=False), nn.ReLU(),
            nn.Linear(HIDDEN, LATENT), nn.LayerNorm(LATENT, elementwise_affine=False),
        )  # fmt: skip
        self.bilinear = nn.Parameter(torch.rand(LATENT, LATENT))

    def forward(self, feature_map: Tensor) -> Tensor:
        latents: Tensor = self.layers(self.norm(feature_map.flatten(1).float()))
        return latents


@dataclass(frozen=True)
class Curl:
    """CURL: InfoNCE between two views of each observation, the others in the batch as negatives.

    L_i = -log softmax_j(0.1 q_i^T W k_j)[i], q of the trained encoder, k of its slow copy

    Source: Laskin, Srinivas & Abbeel 2020, arXiv:2004.04136, section 4; scale and sizes as in their
    Atari code, which is not in the text; target rate 0.001: its `momentum=0.999`.
    """

    name: str = field(default="curl", init=False)
    num_steps: int = field(default=0, init=False)
    target_rate: float = field(default=0.001, init=False)
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / B."""
        return 1 / batch_size

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns a CurlHead."""
        return CurlHead(math.prod(trunk.feature_map))

    def usable(self, data: Sequences) -> Tensor:
        """Returns True for every sample: bool `[B]`."""
        return torch.ones(len(data.obs), dtype=torch.bool, device=data.obs.device)

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns two views of each observation, each with a shift of its own."""
        obs = data.obs[:, 0]
        check_generator(obs, generator)
        return random_shift(obs, generator=generator), random_shift(obs, generator=generator)

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns InfoNCE of each query, and whether its own key is the most similar one."""
        assert target is not None
        views, other_views = drawn
        queries = online.head(online.feature_map(views))  # [B, 128]
        with torch.no_grad():
            keys = target.head(target.feature_map(other_views))
        logits = SCALE * (queries @ online.head.bilinear @ keys.T)  # [B, B]
        own = torch.arange(len(logits), device=logits.device)
        return TaskLoss(
            F.cross_entropy(logits, own, reduction="none"), (logits.argmax(1) == own).float()
        )


TASKS: dict[str, Callable[[], SequenceTask]] = {"curl": Curl}
