"""Clipping and Adam as functions equal torch's own, step by step."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rayssl.optimizers import ADAM_STATE, adam_steps, clip_scales

BETAS, EPS, LR = (0.9, 0.999), 1e-5, 1e-2


def make_params() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def make_grads(params: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    sizes = (3.0, 0.01)  # one beyond the limit by itself, one within
    return [
        size * torch.randn(param.shape, generator=generator)
        for size, param in zip(sizes, params, strict=True)
    ]


@pytest.mark.parametrize(("limit", "by"), [(0.5, "global_norm"), (0.5, "norm"), (None, "norm")])
def test_steps_are_those_of_torchs_clipping_and_fused_adam(limit: float | None, by: str) -> None:
    expected, mine = make_params(), make_params()
    adam = torch.optim.Adam(expected, lr=LR, betas=BETAS, eps=EPS, fused=True)
    states = [
        dict(zip(ADAM_STATE, (torch.zeros(()), *torch.zeros(2, *p.shape)), strict=True))
        for p in mine
    ]
    for step in range(5):
        for param, grad in zip(expected, make_grads(expected, step), strict=True):
            param.grad = grad
        if limit is not None:
            for group in [expected] if by == "global_norm" else [[p] for p in expected]:
                nn.utils.clip_grad_norm_(group, limit)
        adam.step()
        grads = make_grads(mine, step)
        untouched = copy.deepcopy(grads)
        with torch.no_grad():
            adam_steps(
                mine, grads, clip_scales(grads, limit, by), states, lr=LR, betas=BETAS, eps=EPS
            )
        assert all(map(torch.equal, grads, untouched))
    for param, own, state in zip(expected, mine, states, strict=True):
        torch.testing.assert_close(own, param, rtol=1e-6, atol=1e-7)
        for name in ADAM_STATE:
            torch.testing.assert_close(state[name], adam.state[param][name], rtol=1e-6, atol=1e-9)


def test_gradients_within_the_limit_keep_their_length() -> None:
    grads = [torch.tensor([3.0, 4.0])]
    assert clip_scales(grads, 5.1, "global_norm") == [1]
    assert clip_scales(grads, 2.5, "norm")[0] == pytest.approx(0.5)
