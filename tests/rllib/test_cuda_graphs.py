"""On a GPU updates are replayed as CUDA graphs; they are the updates made kernel by kernel."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.cuda_graphs import PLAIN_CALLS, CudaGraph
from rayssl.rllib.learner import AuxDQNLearner
from rayssl.tasks import available_tasks
from tests.rllib.test_aux_tasks import columns
from tests.rllib.test_learner import ROWS, make_learner, target_of, to_rllib, weights_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CALLS = PLAIN_CALLS + 3


def learn(learner: AuxDQNLearner, calls: int = CALLS) -> list[dict[str, Any]]:
    return [
        learner.update(to_rllib(columns(2 * ROWS, seed)), num_updates=2)["stats"]
        for seed in range(calls)
    ]


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_function_runs_as_it_is_where_graphs_are_off() -> None:
    graph = CudaGraph(lambda x: (2 * x,), enabled=False)
    for i in range(CALLS):
        assert graph(torch.tensor([float(i)]))[0].tolist() == [2.0 * i]
    assert not graph.captured


@needs_gpu
def test_a_captured_function_reads_new_inputs_and_leaves_old_outputs_alone() -> None:
    total = torch.zeros(1, device="cuda")

    def add(x: Tensor) -> tuple[Tensor]:
        total.add_(x)
        return (total * 1,)

    graph = CudaGraph(add, enabled=True)
    found = [graph(torch.full((1,), float(i), device="cuda"))[0] for i in range(1, 9)]
    assert graph.captured
    assert [x.item() for x in found] == [1, 3, 6, 10, 15, 21, 28, 36]


@needs_gpu
def test_inputs_of_another_shape_run_plainly() -> None:
    graph = CudaGraph(lambda x: (2 * x,), enabled=True)
    for _ in range(CALLS):
        graph(torch.ones(3, device="cuda"))
    assert graph.captured
    assert graph(torch.ones(5, device="cuda"))[0].tolist() == [2.0] * 5


@needs_gpu
def test_a_function_that_cannot_be_captured_goes_on_plainly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = CudaGraph(lambda x: (x * x.sum().item(),), enabled=True)
    with caplog.at_level(logging.WARNING):
        found = [graph(torch.ones(2, device="cuda"))[0].tolist() for _ in range(CALLS)]
    assert found == [[2.0, 2.0]] * CALLS
    assert "No CUDA graph" in caplog.text
    assert "--no-cuda-graphs" in caplog.text


@needs_gpu
@pytest.mark.parametrize("task", [None, *available_tasks(), "permutation+inverse"])
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_replayed_updates_are_those_made_kernel_by_kernel(task: str | None, schedule: str) -> None:
    found = []
    for graphs in (True, False):
        learner = make_learner(
            {"task": task, "schedule": schedule, "cosine_every": 4}, num_gpus=1,
            cuda_graphs=graphs, target_update_freq=3,
        )  # fmt: skip
        stats = learn(learner)
        assert any(step.captured for step in learner._steps.values()) == graphs
        found.append((weights_of(learner), target_of(learner), stats))
    (weights, target, stats), (plain_weights, plain_target, plain_stats) = found
    assert_close(weights, plain_weights)
    assert_close(target, plain_target)
    for one, other in zip(stats, plain_stats, strict=True):
        assert {name: count for name, (_, count) in one.items()} == {
            name: count for name, (_, count) in other.items()
        }


@needs_gpu
def test_a_restored_learner_captures_again() -> None:
    first = make_learner(num_gpus=1)
    learn(first)
    state = first.get_state()
    second = make_learner(num_gpus=1)
    learn(second)  # graphs of the weights that are replaced now
    second.set_state(state)
    learn(first)
    learn(second)
    assert_close(weights_of(first), weights_of(second))


@needs_gpu
def test_a_state_of_the_gpu_goes_on_on_the_cpu_and_back() -> None:
    gpu, cpu = make_learner(num_gpus=1), make_learner()
    learn(gpu)
    cpu.set_state(gpu.get_state())
    learn(cpu)
    gpu.set_state(cpu.get_state())
    learn(gpu)
    assert all(step.captured for step in gpu._steps.values())
