"""Several tasks, tasks on sequences, target encoders and shifted TD batches in the learner."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor, nn

from rayssl.augmentation import draw_shifts, shift
from rayssl.rllib.aux_tasks import make_aux_tasks, sequence_columns
from rayssl.rllib.learner import AuxDQNLearner
from rayssl.tasks import available_tasks
from rayssl.tasks.inverse import InverseHead
from tests.rllib.test_learner import (
    ACTIONS,
    ROWS,
    SIZE,
    bit_equal,
    make_columns,
    make_learner,
    none_equal,
    record_tape,
    target_of,
    to_rllib,
    weights_of,
)

EVERY_TASK = pytest.mark.parametrize("task", available_tasks())
STEPS = 5  # of the longest task

torch.set_num_threads(1)


def columns(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """What a learner of any task needs: random frames, all steps exist."""
    rng = np.random.default_rng(seed + 1000)
    found = make_columns(rows, seed)
    for start in ("td", "rewarding"):
        obs = rng.integers(0, 256, (rows, STEPS + 1, 4, SIZE, SIZE), np.uint8)
        if start == "td":
            obs[:, 0] = found["obs"]
        found |= {
            f"{start}/obs": obs,
            f"{start}/actions": rng.integers(0, ACTIONS, (rows, STEPS)),
            f"{start}/rewards": rng.integers(-1, 2, (rows, STEPS)).astype(np.float32),
            f"{start}/mask": np.ones((rows, STEPS), bool),
        }
    return found


def update(learner: AuxDQNLearner, num_updates: int = 1, *, seed: int = 0) -> dict[str, Any]:
    return learner.update(to_rllib(columns(ROWS * num_updates, seed)), num_updates=num_updates)


def followers_of(learner: AuxDQNLearner) -> dict[str, Tensor]:
    state = learner._module[DEFAULT_MODULE_ID].followers.state_dict()
    return {name: value.clone() for name, value in state.items()}


def record_tasks(learner: AuxDQNLearner) -> list[str]:
    """Writes down the optimizer steps and, before each, the tasks whose loss goes into it."""
    tape = record_tape(learner)
    losses_of = learner._losses

    def recorded(columns: Any, drawn: Any) -> Any:
        tape.extend(each.aux.task.name for each in drawn)
        return losses_of(columns, drawn)

    learner._losses = recorded  # type: ignore[method-assign, assignment]
    return tape


@pytest.mark.parametrize(
    ("combine", "every", "tape"),
    [
        ("cycle", 1, ["td", "permutation", "aux", "td", "inverse", "aux", "td", "permutation",
                      "aux"]),
        ("cycle", 2, ["td", "td", "permutation", "aux", "td", "td", "inverse", "aux"]),
        ("sum", 1, ["td", "permutation", "inverse", "aux"] * 2),
    ],
)  # fmt: skip
def test_tasks_take_turns_or_are_summed(combine: str, every: int, tape: list[str]) -> None:
    auxiliary = {"task": "permutation+inverse", "combine": combine, "every": every}
    learner = make_learner(auxiliary)
    events = record_tasks(learner)
    counts = update(learner, num_updates=tape.count("td"))["counts"]
    assert events == tape
    assert counts["aux_updates"] == tape.count("aux")


def test_turns_go_on_in_the_next_call() -> None:
    learner = make_learner({"task": "permutation+inverse+rotation", "schedule": "aux-only"})
    events = record_tasks(learner)
    for _ in range(2):
        update(learner, num_updates=2)
    assert events == ["permutation", "aux", "inverse", "aux", "rotation", "aux", "permutation",
                      "aux"]  # fmt: skip


def test_only_the_head_whose_turn_it_is_moves() -> None:
    learner = make_learner({"task": "rotation+inverse+curl", "schedule": "aux-only"})
    heads = ["rotation", "inverse", "curl"]
    for turn in range(4):
        before = {head: weights_of(learner, f"heads.aux.{head}.") for head in heads}
        stats = update(learner, seed=turn)["stats"]
        moved = heads[turn % 3]
        assert set(stats) == {
            f"{name}/{moved}" for name in ("aux_left_out", "aux_loss", "aux_accuracy")
        }
        for head in heads:
            after = weights_of(learner, f"heads.aux.{head}.")
            assert (
                none_equal(after, before[head]) if head == moved else bit_equal(after, before[head])
            )


@EVERY_TASK
def test_each_update_leaves_the_other_head_bit_equal(task: str) -> None:
    learner = make_learner({"task": task, "schedule": "pretrain", "pretrain_updates": 1})
    for moved, idle in [("aux", "q"), ("q", "aux")]:
        trunk = weights_of(learner, "backbone")
        head, other = weights_of(learner, f"heads.{moved}"), weights_of(learner, f"heads.{idle}")
        followers = followers_of(learner)
        update(learner, seed=1)
        assert bit_equal(weights_of(learner, f"heads.{idle}"), other)
        assert none_equal(weights_of(learner, f"heads.{moved}"), head)
        assert not bit_equal(weights_of(learner, "backbone"), trunk)
        if moved == "q":
            assert bit_equal(followers_of(learner), followers)


@EVERY_TASK
def test_task_alone_keeps_the_flat_names_of_the_logs(task: str) -> None:
    stats = update(make_learner({"task": task, "cosine_every": 1}))["stats"]
    assert {"aux_loss", "aux_accuracy", "aux_left_out", "gradient_cosine"} <= set(stats)
    assert stats["aux_accuracy"][1] == ROWS
    assert not any("/" in name for name in stats)


@EVERY_TASK
def test_frozen_trunk_stays_and_separate_optimizers_work_with_every_task(task: str) -> None:
    learner = make_learner({"task": task, "freeze_trunk": True, "optimizers": "separate"})
    trunk, head = weights_of(learner, "backbone"), weights_of(learner, "heads.aux")
    update(learner, num_updates=2)
    assert bit_equal(weights_of(learner, "backbone"), trunk)
    assert none_equal(weights_of(learner, "heads.aux"), head)


@EVERY_TASK
def test_initial_agent_is_the_baselines_whatever_the_task(task: str) -> None:
    first, second = make_learner({"task": None}), make_learner({"task": task})
    assert bit_equal(weights_of(first), weights_of(second))


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_sum_is_the_weighted_sum_of_the_tasks_losses(schedule: str) -> None:
    auxiliary = {
        "task": "permutation+inverse", "weight": (0.5, 0.1), "combine": "sum", "schedule": schedule,
    }  # fmt: skip
    learner = make_learner(auxiliary)
    handed: list[float] = []
    descend = learner._descend

    def kept(loss: Tensor, optimizer: str) -> None:
        handed.append(float(loss.detach()))
        descend(loss, optimizer)

    learner._descend = kept  # type: ignore[method-assign]
    stats = {name: total / count for name, (total, count) in update(learner)["stats"].items()}
    expected = 0.5 * stats["aux_loss/permutation"] + 0.1 * stats["aux_loss/inverse"]
    expected += stats["td_loss"] if schedule == "joint" else 0
    assert handed[-1] == pytest.approx(expected, rel=1e-5)


def test_separate_optimizers_put_the_largest_weight_on_the_learning_rate() -> None:
    auxiliary = {"task": "permutation+inverse", "weight": (0.1, 0.5), "optimizers": "separate"}
    learner = make_learner(auxiliary, lr=1e-3)
    lr = learner.get_optimizer(DEFAULT_MODULE_ID, "aux").param_groups[0]["lr"]
    assert lr == pytest.approx(0.5e-3)
    assert learner.config.top_aux_weight == 0.5


@pytest.mark.parametrize(("task", "rate"), [("curl", 0.001), ("atc", 0.01), ("spr", 0.01)])
def test_target_encoder_follows_the_trained_one_after_each_aux_update(
    task: str, rate: float
) -> None:
    learner = make_learner({"task": task, "cosine_every": 1})
    before = followers_of(learner)
    online = weights_of(learner, "backbone") | weights_of(learner, "heads.aux")
    renamed = {f"{task}.{name}": value for name, value in online.items()}
    assert bit_equal(before, renamed)  # starts as a copy
    update(learner)
    online = weights_of(learner, "backbone") | weights_of(learner, "heads.aux")
    for name, value in online.items():
        own = f"{task}.{name}"
        expected = (1 - rate) * before[own] + rate * value
        torch.testing.assert_close(followers_of(learner)[own], expected, rtol=0, atol=1e-7)
    assert not bit_equal(followers_of(learner), before)
    assert not any(
        p.requires_grad for p in learner._module[DEFAULT_MODULE_ID].followers.parameters()
    )


@pytest.mark.parametrize("through", ["pickle-4", "files"])
def test_resumed_learner_with_followers_turns_and_shifts_is_bit_equal(
    through: str, tmp_path: Path
) -> None:
    auxiliary = {"task": "curl+spr+reward", "weight": (0.5, 1.0, 0.1), "cosine_every": 2}
    settings: dict[str, Any] = {"target_update_freq": 2, "augment": "shift"}
    learner = make_learner(auxiliary, **settings)
    update(learner, num_updates=4)
    resumed = make_learner(auxiliary, **settings)
    update(resumed, seed=99)
    if through == "files":
        resumed.restore_from_path(learner.save_to_path(tmp_path))
    else:
        resumed.set_state(pickle.loads(pickle.dumps(learner.get_state(), 4)))
    assert bit_equal(followers_of(learner), followers_of(resumed))
    tapes = record_tasks(learner), record_tasks(resumed)
    first, second = (update(each, num_updates=3, seed=1) for each in (learner, resumed))
    assert tapes[0] == tapes[1]
    assert bit_equal(weights_of(learner), weights_of(resumed))
    assert bit_equal(weights_of(learner, "heads.aux"), weights_of(resumed, "heads.aux"))
    assert bit_equal(target_of(learner), target_of(resumed))
    assert bit_equal(followers_of(learner), followers_of(resumed))
    assert first["stats"] == second["stats"]


def test_state_of_a_learner_from_before_combinations_is_taken() -> None:
    learner = make_learner()
    update(learner, num_updates=2)
    state = copy.deepcopy(learner.get_state())
    for name in ("_turn", "shifts"):
        del state["rayssl"][name]
    resumed = make_learner()
    resumed.set_state(state)
    first, second = (update(each, seed=1)["stats"] for each in (learner, resumed))
    assert first == second


def test_task_on_another_game_step_learns_nothing_from_steps_that_do_not_exist() -> None:
    learner, rows = make_learner({"task": "inverse", "schedule": "aux-only"}), columns()
    rows["td/mask"][:] = False
    before = weights_of(learner, "heads.aux")
    counts = learner.update(to_rllib(rows), num_updates=1)["counts"]
    assert counts["aux_updates"] == 0
    assert bit_equal(weights_of(learner, "heads.aux"), before)


def test_task_whose_samples_cannot_be_used_is_left_out_of_the_sum() -> None:
    auxiliary = {"task": "rotation+inverse", "combine": "sum", "schedule": "aux-only"}
    learner, rows = make_learner(auxiliary), columns()
    rows["td/mask"][:] = False
    stats = learner.update(to_rllib(rows), num_updates=1)["stats"]
    assert "aux_loss/rotation" in stats
    assert "aux_loss/inverse" not in stats
    assert stats["aux_left_out/inverse"] == (1, 1)


@EVERY_TASK
def test_every_task_learns_from_all_samples_if_asked(task: str) -> None:
    learner = make_learner({"task": task, "schedule": "aux-only", "samples": "all"})
    rows = columns()
    for start in ("td", "rewarding"):
        rows[f"{start}/obs"][:] = 7  # nothing moves, and no step exists
        rows[f"{start}/mask"][:] = False
    rows["obs"][:] = 7
    found = learner.update(to_rllib(rows), num_updates=1)
    assert found["counts"]["aux_updates"] == 1
    assert found["stats"]["aux_left_out"] == (0, 1)
    assert found["stats"]["aux_accuracy"][1] == ROWS


# Shifted TD batches (DrQ)


def test_td_batch_is_shifted_by_two_draws_per_sample_and_the_aux_batch_is_not() -> None:
    plain, shifted = (
        make_learner({"schedule": "joint"}, augment=augment) for augment in ("none", "shift")
    )
    rows = make_columns()
    draws = torch.Generator().manual_seed(104729)
    moved = {}
    for key in ("obs", "new_obs"):
        frames = torch.from_numpy(rows[key])
        moved[key] = shift(frames, draw_shifts(frames, generator=draws)).numpy()
        assert not np.array_equal(moved[key], rows[key])
    by_hand = plain.update(to_rllib(rows | moved), num_updates=1)
    found = shifted.update(to_rllib(rows), num_updates=1)
    np.testing.assert_array_equal(found["td_errors"], by_hand["td_errors"])
    unshifted = make_learner({"schedule": "joint"}).update(to_rllib(rows), num_updates=1)
    assert found["stats"]["aux_loss"] == unshifted["stats"]["aux_loss"]
    assert found["stats"]["td_loss"] != unshifted["stats"]["td_loss"]


# Data


def test_columns_hold_as_many_steps_as_the_longest_task_and_no_more_rows_than_asked() -> None:
    class Rows:
        """Says what it was asked for."""

        def draw_rewarding(self, batch_size: int, share: float) -> np.ndarray:
            return np.full(batch_size, round(100 * share))

        def gather_sequences(self, indices: np.ndarray, num_steps: int) -> Any:
            return type(
                "Asked", (), {"_asdict": lambda _: {"asked": (indices.tolist(), num_steps)}}
            )()

    def asked(names: str) -> dict[str, Any]:
        rows: Any = Rows()
        return sequence_columns(make_aux_tasks(names, (1.0,)), rows, np.array([7, 8]))

    assert asked("rotation+curl") == {}
    assert asked("inverse+atc") == {"td/asked": ([7, 8], 3)}
    assert asked("spr+reward") == {"td/asked": ([7, 8], 5), "rewarding/asked": ([50, 50], 1)}


@pytest.mark.slow  # one task for each kind of data and head
@pytest.mark.parametrize("task", ["inverse", "curl", pytest.param("spr", marks=pytest.mark.long)])
def test_compiled_losses_agree_with_plain_ones(task: str) -> None:
    torch.compiler.reset()
    plain, compiled = (
        make_learner({"task": task, "schedule": "aux-only"}, compile_learner=on)
        for on in (False, True)
    )
    first, second = (update(each, num_updates=2) for each in (plain, compiled))
    assert second["compiled"]
    torch.testing.assert_close(
        torch.tensor(second["stats"]["aux_loss"]), torch.tensor(first["stats"]["aux_loss"]),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.slow
def test_running_statistics_of_a_head_are_the_same_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = InverseHead.__init__

    def with_statistics(self: InverseHead, features: int, *args: Any) -> None:
        build(self, features, *args)
        self.norm = nn.BatchNorm1d(features, affine=False)

    monkeypatch.setattr(InverseHead, "__init__", with_statistics)
    auxiliary = {"task": "inverse", "schedule": "joint"}
    learners = [make_learner(auxiliary, compile_learner=each) for each in (True, False)]
    for learner in learners:
        for seed in range(3):
            found = learner.update(to_rllib(columns(ROWS, seed)), num_updates=1)
            assert found["compiled"] is learner.config.compile_learner
    compiled, plain = (dict(each._module[DEFAULT_MODULE_ID].named_buffers()) for each in learners)
    assert compiled.keys() == plain.keys() != set()
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-5)
