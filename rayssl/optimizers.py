"""Clipping and Adam as functions of tensors, for graphs that hold a whole update."""

from collections.abc import Sequence

import torch
from torch import Tensor

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")  # torch.optim.Adam's names


def clip_scales(grads: Sequence[Tensor], limit: float | None, by: str) -> list[Tensor]:
    """Returns what each gradient is to be multiplied with, float32 `[]`, at most 1.

    Args:
      grads: float32 tensors, at least one.
      limit: largest norm; None: no limit.
      by: `global_norm` of all gradients together, or `norm` of each by itself.
    Source: torch.nn.utils.clip_grad_norm_, the factor of which this is.
    """
    if limit is None:
        return [torch.ones((), device=grad.device) for grad in grads]
    if by == "global_norm":
        norms = [torch.nn.utils.get_total_norm(grads)] * len(grads)
    else:
        norms = [torch.linalg.vector_norm(grad) for grad in grads]
    return [torch.clamp(limit / (norm + 1e-6), max=1.0) for norm in norms]


def adam_steps(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    scales: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Makes one step of Adam, in place, with the states and the arithmetic of torch's own.

    Args:
      params, grads: float32 tensors, of the same shapes.
      scales: float32 `[]`, what each gradient is multiplied with.
      states: of each parameter its `ADAM_STATE`: steps made so far, float32 `[]`; running means of
        gradient and squared gradient, shaped as the parameter.
      lr, betas, eps: learning rate; decay of the two means; added to the root.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    beta1, beta2 = betas
    step_sizes, inverse_roots = [], []
    for state in states:
        state["step"] += 1
        exact = state["step"].double()  # 1 - 0.999 has three digits less in float32
        step_sizes.append((lr / (1 - beta1**exact)).float())
        inverse_roots.append((1 - beta2**exact).rsqrt().float())
    # All in one array: the compiler would compute these anew for every few weights, as it fuses.
    numbers = torch.stack([*scales, *step_sizes, *inverse_roots]).view(3, -1)
    for param, grad, scale, step_size, inverse_root, state in zip(
        params, grads, *(row.unbind() for row in numbers), states, strict=True
    ):
        grad = grad * scale
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        param -= step_size * mean / (square.sqrt() * inverse_root + eps)
