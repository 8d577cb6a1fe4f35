"""On a GPU updates are replayed as CUDA graphs; they are the updates made kernel by kernel."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.cuda_graphs import PLAIN_CALLS, CudaGraph
from rayssl.networks import make_atari_network
from rayssl.rllib import algorithm
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.learner import AuxDQNLearner
from rayssl.tasks import available_tasks
from tests.rllib.test_aux_tasks import columns
from tests.rllib.test_learner import ROWS, make_learner, target_of, to_rllib, weights_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CALLS = PLAIN_CALLS + 3
Stats = list[dict[str, tuple[float, float]]]


def learn(learner: AuxDQNLearner, calls: int = CALLS, first_seed: int = 0) -> Stats:
    return [
        learner.update(to_rllib(columns(2 * ROWS, seed)), num_updates=2)["stats"]
        for seed in range(first_seed, first_seed + calls)
    ]


def captured(step: object) -> bool:
    """Whether an update of a learner on a GPU is replayed as a graph."""
    return isinstance(step, CudaGraph) and step.captured


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are further apart than rounding."""
    assert first.keys() == second.keys()
    return [
        name
        for name in first
        if not torch.allclose(first[name].cpu(), second[name].cpu(), rtol=1e-3, atol=1e-5)
    ]


def test_a_function_runs_as_it_is_where_graphs_are_off() -> None:
    graph = CudaGraph(lambda x: (2 * x,), enabled=False)
    for i in range(CALLS):
        assert graph(torch.tensor([float(i)]))[0].tolist() == [2.0 * i]
    assert not graph.captured


class FakeCuda:
    """torch.cuda's capture on a CPU: `replay` runs what was recorded, on the inputs kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: bool = False) -> None:
        self.recording, self.replays = False, 0
        fake = self

        class Graph:
            def replay(self) -> None:
                fake.replays += 1

        @contextmanager
        def recording(graph: Graph) -> Iterator[None]:
            fake.recording = True
            try:
                if refuse:
                    raise RuntimeError("operation not permitted\nwhen stream is capturing")
                yield
            finally:
                fake.recording = False

        @contextmanager
        def device(of: torch.device) -> Iterator[None]:
            yield

        for name, value in {
            "CUDAGraph": Graph, "graph": recording, "device": device,
            "current_stream": lambda: None, "set_stream": lambda stream: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


def test_three_calls_run_plainly_the_fourth_is_captured_and_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(monkeypatch)
    calls: list[bool] = []

    def function(x: Tensor) -> tuple[Tensor]:
        calls.append(fake.recording)
        return (2 * x,)

    graph = CudaGraph(function, enabled=True)
    for _ in range(CALLS):
        graph(torch.ones(2))
    assert calls == [False] * PLAIN_CALLS + [True]
    assert fake.replays == CALLS - PLAIN_CALLS
    assert graph.captured
    assert graph(torch.ones(3))[0].tolist() == [2.0] * 3, "another shape runs plainly"
    assert fake.replays == CALLS - PLAIN_CALLS


def test_every_call_gets_inputs_of_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    seen: list[tuple[int, ...]] = []

    def function(x: Tensor) -> tuple[Tensor]:
        seen.append(x.stride())
        return (2 * x,)

    graph = CudaGraph(function, enabled=True)
    for _ in range(CALLS):
        graph(torch.ones(4, 6)[:, ::2])
    assert len(seen) == PLAIN_CALLS + 1
    assert len(set(seen)) == 1


def test_a_capture_that_cuda_refuses_is_named_once_and_calls_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeCuda(monkeypatch, refuse=True)
    graph = CudaGraph(lambda x: (2 * x,), enabled=True, name="update td")
    with caplog.at_level(logging.WARNING):
        found = [graph(torch.ones(1))[0].tolist() for _ in range(CALLS)]
    assert found == [[2.0]] * CALLS
    assert graph.refused
    assert caplog.text.count("No CUDA graph of update td (operation not permitted)") == 1
    assert "--no-cuda-graphs" in caplog.text


def test_casts_keep_their_addresses_and_take_new_values() -> None:
    net = make_atari_network("nature", num_actions=3)
    kept: dict[str, Tensor] = {}
    net.cast_into(kept, torch.bfloat16)
    before = {name: value.data_ptr() for name, value in kept.items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    net.cast_into(kept, torch.bfloat16)
    assert {name: value.data_ptr() for name, value in kept.items()} == before
    for name, expected in net.cast_parameters(torch.bfloat16).items():
        assert torch.equal(kept[name], expected)
        assert not kept[name].requires_grad


@pytest.mark.parametrize("task", available_tasks())
def test_what_a_task_draws_reaches_the_update_without_gaps(task: str) -> None:
    learner = make_learner({"task": task, "schedule": "aux-only"})
    seen: list[Tensor] = []
    losses = learner._losses

    def recorded(td_columns: Any, drawn: Any) -> Any:
        seen.extend(x for each in drawn for x in each.inputs)
        return losses(td_columns, drawn)

    learner._losses = recorded  # type: ignore[method-assign, assignment]
    learn(learner, calls=1)
    assert seen
    assert all(torch.equal(x, x.clone()) and x.stride() == x.clone().stride() for x in seen)


@pytest.mark.parametrize(
    ("auxiliary", "kinds"),
    [
        ({"task": None}, {("update", True)}),
        ({}, {("update", True), ("update", False, ("aux", 4))}),
        ({"schedule": "joint"}, {("update", True, ("aux", 4))}),
        ({"schedule": "aux-only"}, {("update", False, ("aux", 4))}),
    ],
)
def test_there_is_one_graph_for_each_kind_of_update(
    auxiliary: dict[str, Any], kinds: set[Any]
) -> None:
    learner = make_learner(auxiliary)
    learn(learner, calls=1)
    assert set(learner._steps) == kinds
    learner.set_state(learner.get_state())
    assert not learner._steps, "the old optimizer's states are gone"


def test_a_generator_of_another_kind_of_device_starts_anew_by_the_slots_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drawn = []
    for slots in (1, 1, 2):
        learner = make_learner()
        state = learner.get_state()
        state["rayssl"] |= {"generator": state["rayssl"]["generator"][:16], "_slot": slots}
        learner.set_state(state)
        drawn.append(int(torch.randint(10**9, (1,), generator=learner._generator)))
    assert drawn[0] == drawn[1] != drawn[2]
    assert "of another kind of device" in caplog.text


@pytest.mark.parametrize(
    ("settings", "device", "share", "taken"),
    [
        ({}, "cuda", 1.0, True),
        ({}, "cuda", 0.5, True),
        ({}, "cuda", 0.01, False),  # half of 1% of 80 GB
        ({}, "cpu", 1.0, False),  # Ray gave none
        ({}, "cuda", 0.0, False),
        ({"replay_device": "host"}, "cuda", 1.0, False),
        ({"replay_capacity_steps": 6_000_000}, "cuda", 1.0, False),  # 42 GB
    ],
)
def test_auto_keeps_frames_where_half_of_the_gpu_holds_them(
    settings: dict[str, Any],
    device: str,
    share: float,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(algorithm, "get_device", lambda config, gpus: torch.device(device))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79 * 10**9, 80 * 10**9))
    config = AuxDQNConfig().training(**settings)
    config.learners(num_gpus_per_learner=share)
    assert algorithm._has_room(config, 84 * 84) is taken


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
def test_a_function_that_looks_at_values_goes_on_plainly() -> None:
    graph = CudaGraph(lambda x: (x * x.sum().item(),), enabled=True)
    found = [graph(torch.ones(2, device="cuda"))[0].tolist() for _ in range(CALLS)]
    assert found == [[2.0, 2.0]] * CALLS
    assert graph.refused


def arms() -> list[Any]:
    """Auxiliary settings and training settings of learners that are compared."""
    every = [{"task": task} for task in (None, *available_tasks(), "permutation+inverse")]
    more: list[tuple[dict[str, Any], dict[str, Any]]] = [(auxiliary, {}) for auxiliary in every]
    more += [({**auxiliary, "schedule": "joint"}, {}) for auxiliary in every[1:]]
    more += [
        ({"optimizers": "separate"}, {}),
        ({"schedule": "pretrain", "pretrain_updates": 5}, {}),
        ({"schedule": "aux-only", "task": "spr"}, {}),
        ({"task": "permutation+inverse", "combine": "sum"}, {}),
        ({"freeze_trunk": True, "cosine_every": 0}, {}),
        ({}, {"augment": "shift"}),
        ({"task": "spr"}, {"compute_dtype": "bfloat16"}),
        *(({"task": task}, {"compile_learner": True}) for task in ("inverse", "spr")),
        ({"task": "order-verification"}, {"compile_learner": True}),
    ]
    return [pytest.param(*each, id=str(each)) for each in more]


@needs_gpu
@pytest.mark.parametrize(("auxiliary", "training"), arms())
def test_replayed_updates_are_those_made_kernel_by_kernel(
    auxiliary: dict[str, Any], training: dict[str, Any]
) -> None:
    found = []
    for graphs in (True, False):
        learner = make_learner(
            {"cosine_every": 4} | auxiliary, num_gpus=1, cuda_graphs=graphs, target_update_freq=3,
            **training,
        )  # fmt: skip
        stats = learn(learner, 2 * CALLS)
        updates = {captured(step) for kind, step in learner._steps.items() if kind[0] == "update"}
        assert updates == {graphs}
        found.append((weights_of(learner), target_of(learner), stats))
    (weights, target, stats), (plain_weights, plain_target, plain_stats) = found
    assert not differing(weights, plain_weights)
    assert not differing(target, plain_target)
    for one, other in zip(stats, plain_stats, strict=True):
        assert one.keys() == other.keys()
        for name, (total, count) in one.items():
            assert count == other[name][1]
            if name != "gradient_cosine":
                assert total == pytest.approx(other[name][0], rel=0.02, abs=0.02), name


@needs_gpu
def test_a_restored_learner_captures_again() -> None:
    first, second = make_learner(num_gpus=1), make_learner(num_gpus=1)
    learn(first)
    learn(second, CALLS - 1, first_seed=100)  # graphs of weights that are replaced now
    assert all(map(captured, second._steps.values()))
    assert differing(weights_of(first), weights_of(second))
    second.set_state(first.get_state())
    assert not differing(weights_of(first), weights_of(second))
    for learner in (first, second):
        learn(learner, first_seed=200)
    assert not differing(weights_of(first), weights_of(second))


@needs_gpu
def test_a_state_of_the_gpu_goes_on_on_the_cpu_and_back() -> None:
    gpu, cpu = make_learner(num_gpus=1), make_learner()
    learn(gpu)
    cpu.set_state(gpu.get_state())
    learn(cpu)
    gpu.set_state(cpu.get_state())
    learn(gpu)
    assert all(map(captured, gpu._steps.values()))
