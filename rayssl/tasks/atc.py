"""Sequence-based self-supervision: which observation comes three steps later?

Augmented temporal contrast. Of ST-DIM and ATC it is the one that needs no more of a trunk than its
output: ST-DIM contrasts single places of an inner feature map.

What differs from the source: the trunk's output is compressed (there: the last convolution's); the
batch is that of the Q-network, not 512.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.augmentation import draw_shifts, shift
from rayssl.tasks import Encoder, Sequences, SequenceTask, TaskLoss, TrunkShape, check_generator

# github astooke/rlpyt, ul/experiments/ul_for_rl/configs/atari/atari_atc.py
LATENT, HIDDEN = 256, 512
SHIFTED_SHARE = 0.1  # of the observations; the others stay where they are


class AtcHead(nn.Module):
    """The compressor to 256 numbers, a residual predictor, and the matrix of the similarity.

    Args of the forward pass:
      features: `[B, F]`.
    Returns:
      codes `[B, 256]`.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.compressor = nn.Linear(features, LATENT)
        self.predictor = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENT)
        )
        self.bilinear = nn.Linear(LATENT, LATENT, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        codes: Tensor = self.compressor(features.float())
        return codes

    def similarity(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Returns (p + c)^T W c' for every anchor c, p = predictor(c), and every positive c'."""
        predicted = anchors + self.predictor(anchors)
        logits: Tensor = self.bilinear(predicted) @ positives.T
        return logits


@dataclass(frozen=True)
class AugmentedTemporalContrast:
    """ATC: InfoNCE between an observation and the one three steps later.

    L_i = -log softmax_j((c_i + p(c_i))^T W c'_j)[i], c = compressor(f(o_t)) of the trained encoder,
    c' = that of o_{t+3} under its slow copy; the other samples' c' are the negatives

    Source: Stooke et al. 2021, arXiv:2009.08319, section 3; values of their Atari configuration.
    """

    name: str = field(default="atc", init=False)
    num_steps: int = field(default=3, init=False)
    target_rate: float = field(default=0.01, init=False)
    rewarding_share: None = field(default=None, init=False)

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / B."""
        return 1 / batch_size

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns an AtcHead."""
        return AtcHead(trunk.features)

    def usable(self, data: Sequences) -> Tensor:
        """Returns where the observation three steps later is of the same game: bool `[B]`."""
        return data.mask[:, -1]

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns both observations; a tenth of them, drawn one by one, randomly shifted."""
        check_generator(data.obs, generator)
        return (
            self._augmented(data.obs[:, 0], generator),
            self._augmented(data.obs[:, -1], generator),
        )

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns InfoNCE of each anchor, and whether its own positive is the most similar one."""
        assert target is not None
        now, later = drawn
        anchors = online.head(online.features(now))
        with torch.no_grad():
            positives = target.head(target.features(later))
        logits = online.head.similarity(anchors, positives)  # [B, B]
        own = torch.arange(len(logits), device=logits.device)
        return TaskLoss(
            F.cross_entropy(logits, own, reduction="none"), (logits.argmax(1) == own).float()
        )

    def _augmented(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(obs), generator=generator, device=generator.device) < SHIFTED_SHARE
        return shift(obs, draw_shifts(obs, generator=generator) * chosen[:, None])


TASKS: dict[str, Callable[[], SequenceTask]] = {"atc": AugmentedTemporalContrast}
