"""The losses of the paper, eqs. (1)-(3), of dueling double Q-learning, BiGAN and BigBiGAN.

Tensors in, tensors out.

Time is in the names, as in rlax: `q_tm1` belongs to the observation on which the action was taken,
`r_t`, `discount_t` and `q_t` to what came after it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def double_q_td_error(
    q_tm1: Tensor,
    a_tm1: Tensor,
    r_t: Tensor,
    discount_t: Tensor,
    q_t_value: Tensor,
    q_t_selector: Tensor,
) -> Tensor:
    """Returns the temporal-difference error of double Q-learning, target minus prediction.

    delta = stop_gradient(r_t + discount_t * q_t_value[argmax_a q_t_selector]) - q_tm1[a_tm1]

    Args:
      q_tm1: online Q-values of the first observation, float32 `[B, A]`.
      a_tm1: actions taken there, int64 `[B]`.
      r_t: (n-step) reward, float32 `[B]`.
      discount_t: gamma**n, or 0 where bootstrapping is cut, float32 `[B]`.
      q_t_value: Q-values of the later observation under the target network, `[B, A]`.
      q_t_selector: Q-values of the later observation under the online network, `[B, A]`; pass
        `q_t_value` itself for the single Q-learning of Mnih et al. 2015.
    Returns:
      float32 `[B]`; gradients flow into q_tm1 only.
    Source: van Hasselt et al. 2016, arXiv:1509.06461, eq. (4).
    """
    a_t = q_t_selector.argmax(dim=1, keepdim=True)  # [B, 1]
    target_tm1 = r_t + discount_t * q_t_value.gather(1, a_t).squeeze(1)  # [B]
    return target_tm1.detach() - q_tm1.gather(1, a_tm1.unsqueeze(1)).squeeze(1)


def td_loss(td_error: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean Huber loss of TD errors, each times its importance weight.

    mean_i w_i * h(delta_i), h(d) = d**2 / 2 where |d| <= 1, |d| - 1/2 elsewhere.

    Args:
      td_error: float32 `[B]`.
      weights: importance weights of prioritized replay (ones for uniform), float32 `[B]`.
    Returns:
      float32 scalar.
    Source: Mnih et al. 2015 (error clipping); Schaul et al. 2016, arXiv:1511.05952, algorithm 1.
    """
    return (weights * F.huber_loss(td_error, torch.zeros_like(td_error), reduction="none")).mean()


def pretext_loss(logits: Tensor, y_hat: Tensor, usable: Tensor | None = None) -> Tensor:
    """Returns the cross-entropy of a pretext head, averaged over the usable samples.

    L_ss = (1 / n) sum_i l(h(f(x_hat_i)), y_hat_i); the paper writes a sum, its code takes the mean.

    Args:
      logits: h(f(x_hat)), float `[B, K]`.
      y_hat: labels that the task drew, int64 `[B]` in [0, K).
      usable: bool `[B]`; samples that carry no label are left out. None: all are used.
    Returns:
      float32 scalar; 0 (with zero gradients) where no sample is usable.
    Source: section IV-A, eq. (2).
    """
    losses = F.cross_entropy(logits.float(), y_hat, reduction="none")  # [B]
    return losses.mean() if usable is None else mean_of_usable(losses, usable)


def mean_of_usable(values: Tensor, usable: Tensor) -> Tensor:
    """Returns the mean of the usable samples' values; 0 where no sample is usable.

    Args:
      values: float `[B]`.
      usable: bool `[B]`.
    """
    return torch.where(usable, values, 0.0).sum() / usable.sum().clamp(min=1)


def combined_loss(supervised: Tensor, pretext: Tensor, aux_weight: float) -> Tensor:
    """Returns the sum of both losses; the paper's weight is 1.

    L = L_s + aux_weight * L_ss

    Args:
      supervised: L_s of eq. (1), scalar.
      pretext: L_ss of eq. (2), scalar.
      aux_weight: lambda >= 0. At 0 the pretext loss is left out, so that the gradients are those
        of plain supervised training, bit for bit.
    Returns:
      float32 scalar.
    Raises:
      ValueError: if aux_weight is negative.
    Source: section IV-A, eq. (3).
    """
    if aux_weight < 0:
        raise ValueError(f"aux_weight must be 0 or more, got {aux_weight}. Use 0 to switch it off.")
    return supervised if aux_weight == 0 else supervised + aux_weight * pretext


def gradient_cosine(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Returns the cosine of the angle between two gradients given as lists of tensors.

    Args:
      first, second: gradients of the same parameters, in the same order.
    Returns:
      float32 scalar in [-1, 1]; 0 where either is zero. Below 0 the two losses pull apart.
    Source: Yu et al. 2020, arXiv:2001.06782, definition 1 (conflicting gradients).
    """
    a = torch.cat([g.flatten().float() for g in first])
    b = torch.cat([g.flatten().float() for g in second])
    return (a @ b) / (a.norm() * b.norm()).clamp(min=1e-12)


class BiganLosses(NamedTuple):
    """The losses of the three players; each is minimised over its own player's parameters."""

    discriminator: Tensor
    encoder: Tensor
    generator: Tensor


def bigan_losses(encoded: Tensor, generated: Tensor) -> BiganLosses:
    """Returns BiGAN's losses: cross-entropies with labels, and with labels swapped.

    L_D  = (mean -log D(x, E(x)) + mean -log(1 - D(G(z), z))) / 2
    L_EG = (mean -log(1 - D(x, E(x))) + mean -log D(G(z), z)) / 2, for encoder and generator alike

    L_EG is not -L_D: its gradient does not vanish where the discriminator is right.

    Args:
      encoded: logits of D(x, E(x)), float `[B]`.
      generated: logits of D(G(z), z), float `[B]`.
    Returns:
      float32 scalars; both are log 2 for logits of 0.
    Source: Donahue et al. 2016, arXiv:1605.09782, section 3 ("inverse" objective); the halves are
      those of their code's log.
    """
    discriminator = (F.softplus(-encoded).mean() + F.softplus(generated).mean()) / 2
    swapped = (F.softplus(encoded).mean() + F.softplus(-generated).mean()) / 2
    return BiganLosses(discriminator, swapped, swapped)


def bigbigan_losses(encoded: Tensor, generated: Tensor) -> BiganLosses:
    """Returns BigBiGAN's losses: a hinge on every score by itself for D, no hinge for E and G.

    L_D = mean max(0, 1 - s(x, E(x))) + mean max(0, 1 + s(G(z), z)), L_E = mean s(x, E(x)),
    L_G = mean -s(G(z), z); means over the batch and over the scores s_x, s_z, s_xz.

    Args:
      encoded: scores s_x, s_z, s_xz of (x, E(x)), float `[B, 3]`.
      generated: those of (G(z), z), float `[B, 3]`.
    Returns:
      float32 scalars.
    Source: Donahue & Simonyan 2019, arXiv:1907.02544, section 2; the mean over the three scores is
      that of DeepMind's notebook (the paper sums them).
    """
    discriminator = F.relu(1 - encoded).mean() + F.relu(1 + generated).mean()
    return BiganLosses(discriminator, encoded.mean(), -generated.mean())
