"""One compiled graph does what its function does: results, gradients, changes in place."""

import logging

import pytest
import torch
from torch import Tensor

from rayssl import compiled_graphs
from rayssl.compiled_graphs import CompiledGraph

torch.set_num_threads(1)


def descend(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """A gradient step of length 0.1 on the squared outputs of one layer; returns the loss."""
    weight = state["weight"].detach().requires_grad_()
    with torch.enable_grad():
        loss = (x @ weight).square().mean()
        (grad,) = torch.autograd.grad(loss, [weight])
    state["weight"] -= 0.1 * grad
    state["steps"] += 1
    return (loss.detach(),)


def make_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 2, generator=generator), "steps": torch.zeros(())}


def test_compiled_step_moves_the_state_in_place_as_the_plain_one_does() -> None:
    mine, plain = make_state(), make_state()
    graph = CompiledGraph(descend, mine, lambda x: pytest.fail("ran plainly"), "a step")
    address = mine["weight"].data_ptr()
    for rows in (4, 4, 5):  # another layout compiles anew
        x = torch.arange(3.0 * rows).view(rows, 3) / 10
        (loss,), (expected,) = graph(x), descend(plain, x)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(mine["weight"], plain["weight"])
    assert mine["steps"] == 3
    assert mine["weight"].data_ptr() == address
    assert not graph.refused


def test_results_of_one_call_stay_what_they_are_in_the_next() -> None:
    state = make_state()
    graph = CompiledGraph(descend, state, lambda x: pytest.fail("ran plainly"), "a step")
    (first,) = graph(torch.ones(4, 3))
    kept = first.clone()
    (second,) = graph(torch.ones(4, 3))
    assert torch.equal(first, kept)
    assert second < first


def test_without_a_compiler_it_runs_plainly_after_one_warning_and_makes_no_step_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*args: object) -> None:
        raise RuntimeError("g++: not found\nmore")

    monkeypatch.setattr(compiled_graphs.torch._inductor, "compile", no_compiler)
    state = make_state()
    graph = CompiledGraph(descend, state, lambda x: descend(state, x), "update td")
    with caplog.at_level(logging.WARNING):
        graph(torch.ones(4, 3))
        graph(torch.ones(4, 3))
    assert graph.refused
    assert state["steps"] == 2
    assert [record.message for record in caplog.records] == [
        "Compiling update td failed (RuntimeError: g++: not found); it runs uncompiled and slower. "
        "If there is no C++ compiler, install one; --no-compile silences this."
    ]
