"""The learner's updates: which come when, what each moves, and the same by hand in plain torch."""

import copy
import pickle
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from rayssl.backbones.atari import available_networks
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.learner import AuxDQNLearner, resolve_dtype
from rayssl.tasks import make_task
from tests.toy_agents import save_agent

SIZE, ACTIONS, ROWS = 36, 6, 8
NEVER = 10**6  # updates: the target network stays as it is
TARGET = {"target_update_unit": "updates", "target_update_freq": NEVER}

torch.set_num_threads(1)


def make_config(
    auxiliary: dict[str, Any] | None = None, *, num_gpus: int = 0, **training: Any
) -> AuxDQNConfig:
    settings: dict[str, Any] = {"network": "nature", "lr": 1e-3, "grad_clip": 10.0} | TARGET
    settings |= {"compile_learner": False, "compute_dtype": "float32"}
    config = AuxDQNConfig().environment("pong", env_config={"frame_size": SIZE})
    config.auxiliary(**({"task": "permutation", "cosine_every": 0} | (auxiliary or {})))
    config.training(**(settings | training))
    config.learners(num_gpus_per_learner=num_gpus)
    config.debugging(seed=0)
    config.validate()
    return config


def make_learner(
    auxiliary: dict[str, Any] | None = None, *, num_gpus: int = 0, **training: Any
) -> AuxDQNLearner:
    config = make_config(auxiliary, num_gpus=num_gpus, **training)
    spec = config.get_default_rl_module_spec()
    spec.observation_space = gym.spaces.Box(0, 255, (4, SIZE, SIZE), np.uint8)
    spec.action_space = gym.spaces.Discrete(ACTIONS)
    modules = MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec})
    learner = AuxDQNLearner(config=config, module_spec=modules)
    learner.build()
    return learner


def make_columns(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, rows, 4, SIZE, SIZE), np.uint8)
    return {
        "obs": frames[0],
        "new_obs": frames[1],
        "actions": rng.integers(0, ACTIONS, rows),
        "rewards": rng.normal(size=rows).astype(np.float32) * 2,  # both sides of Huber's bend
        "discounts": rng.choice([0.0, 0.9, 0.97], rows).astype(np.float32),
        "weights": rng.uniform(0.2, 1.0, rows).astype(np.float32),
    }


def to_rllib(columns: dict[str, np.ndarray]) -> MultiAgentBatch:
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, len(columns["actions"]))


def update(learner: AuxDQNLearner, num_updates: int = 1, *, seed: int = 0) -> dict[str, Any]:
    batch = to_rllib(make_columns(ROWS * num_updates, seed))
    return learner.update(batch, num_updates=num_updates)


def weights_of(learner: AuxDQNLearner, part: str = "") -> dict[str, Tensor]:
    """Copies of the online weights whose name starts with `part`; all but the aux head's if ''."""
    return {
        name: value.detach().clone()
        for name, value in learner._net.named_parameters()
        if (name.startswith(part) if part else not name.startswith("heads.aux"))
    }


def target_of(learner: AuxDQNLearner) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in learner._module[DEFAULT_MODULE_ID].target.state_dict().items()}


def bit_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def none_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return not any(torch.equal(first[name], second[name]) for name in first)


def record_tape(learner: AuxDQNLearner) -> list[str]:
    """Writes down the optimizer steps, in order, by the loss that they are of."""
    tape: list[str] = []
    descend: Callable[[Tensor, str], None] = learner._descend

    def recorded(loss: Tensor, optimizer: str) -> None:
        tape.append(optimizer)
        descend(loss, optimizer)

    learner._descend = recorded  # type: ignore[method-assign]
    return tape


class ByHand:
    """The updates in plain torch: loops over rows, Adam by its equations (Kingma & Ba, alg. 1)."""

    def __init__(
        self, learner: AuxDQNLearner, clip: Callable[[list[Tensor]], list[Tensor]]
    ) -> None:
        config = learner.config
        self.net = copy.deepcopy(learner._net)
        self.target = copy.deepcopy(learner._net)
        self.generator = torch.Generator()
        self.generator.set_state(learner._generator.get_state())
        self.task = make_task(config.aux_task)
        self.lr, self.epsilon, self.clip = config.lr, config.adam_epsilon, clip
        self.moments: dict[str, tuple[int, Tensor, Tensor]] = {}

    def td_errors(self, rows: dict[str, np.ndarray]) -> Tensor:
        with torch.no_grad():
            q_online = self.net(torch.from_numpy(rows["new_obs"]), "q")
            q_target = self.target(torch.from_numpy(rows["new_obs"]), "q")
        q = self.net(torch.from_numpy(rows["obs"]), "q")
        errors = []
        for i, action in enumerate(rows["actions"]):
            bootstrap = q_target[i, int(q_online[i].argmax())]
            goal = float(rows["rewards"][i]) + float(rows["discounts"][i]) * bootstrap
            errors.append(goal - q[i, action])
        return torch.stack(errors)

    def td_loss(self, rows: dict[str, np.ndarray]) -> Tensor:
        losses = []
        for weight, error in zip(rows["weights"], self.td_errors(rows), strict=True):
            small = bool(error.abs() <= 1)
            losses.append(float(weight) * (error**2 / 2 if small else error.abs() - 0.5))
        return torch.stack(losses).mean()

    def aux_loss(self, rows: dict[str, np.ndarray]) -> Tensor:
        x_hat, y_hat = self.task(torch.from_numpy(rows["obs"]), generator=self.generator)
        logits = self.net(x_hat, "aux")
        losses = [logits[i].logsumexp(0) - logits[i, k] for i, k in enumerate(y_hat)]
        return torch.stack(losses).mean()  # of all samples: random frames are usable

    def step(self, loss: Tensor, *, adam: str = "shared", lr: float | None = None) -> None:
        """One Adam step of every parameter that the loss reaches."""
        named = dict(self.net.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        reached = {n: g for n, g in zip(named, found, strict=True) if g is not None}
        for name, g in zip(reached, self.clip(list(reached.values())), strict=True):
            t, m, v = self.moments.get(f"{adam} {name}", (0, 0 * g, 0 * g))
            t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[f"{adam} {name}"] = t, m, v
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            step = (self.lr if lr is None else lr) * m_hat / (v_hat.sqrt() + self.epsilon)
            named[name].data -= step

    def assert_agrees_with(self, learner: AuxDQNLearner) -> None:
        online = dict(learner._net.named_parameters())
        for name, value in self.net.named_parameters():
            torch.testing.assert_close(value, online[name], rtol=0, atol=2e-6, msg=name)


def unclipped(gradients: list[Tensor]) -> list[Tensor]:
    return gradients


@pytest.mark.parametrize(
    ("every", "tape"),
    [
        (1, ["td", "aux"] * 4),
        (4, ["td", "td", "td", "td", "aux", "td", "td", "td", "td", "aux"]),
    ],
)
def test_td_and_aux_updates_alternate(every: int, tape: list[str]) -> None:
    learner = make_learner({"every": every})
    events = record_tape(learner)
    counts = update(learner, num_updates=tape.count("td"))["counts"]
    assert events == tape
    assert counts == {
        "td_updates": tape.count("td"),
        "aux_updates": tape.count("aux"),
        "slots": tape.count("td"),
    }


def test_aux_only_moves_trunk_and_aux_head_and_leaves_the_dueling_head_alone() -> None:
    learner = make_learner({"schedule": "aux-only"})
    q, target = weights_of(learner, "heads.q"), target_of(learner)
    trunk, aux = weights_of(learner, "backbone"), weights_of(learner, "heads.aux")
    result = update(learner, num_updates=5)
    assert result["counts"] == {"td_updates": 0, "aux_updates": 5, "slots": 5}
    assert "td_loss" not in result["stats"]
    assert bit_equal(weights_of(learner, "heads.q"), q)
    assert bit_equal(target_of(learner), target)
    assert none_equal(weights_of(learner, "backbone"), trunk)
    assert none_equal(weights_of(learner, "heads.aux"), aux)


def test_trunk_is_taken_from_a_checkpoint_into_both_networks_and_heads_start_anew(
    tmp_path: Path,
) -> None:
    saved = save_agent(tmp_path / "saved", game="breakout", size=SIZE, seed=9)
    weights = torch.load(saved / "model.pt", weights_only=True)
    trunk = {name: value for name, value in weights.items() if name.startswith("backbone")}
    learner, plain = make_learner({"init_from": str(saved)}), make_learner()
    assert bit_equal(weights_of(learner, "backbone"), trunk)
    target = target_of(learner)
    assert all(torch.equal(target[name], value) for name, value in trunk.items())
    for head in ("heads.q", "heads.aux"):
        assert bit_equal(weights_of(learner, head), weights_of(plain, head))
    update(learner)
    assert none_equal(weights_of(learner, "backbone"), trunk)


@pytest.mark.parametrize(
    ("optimizers", "schedule"),
    [("shared", "alternate"), ("shared", "joint"), ("separate", "alternate")],
)
def test_frozen_trunk_is_bit_equal_after_updates_that_move_both_heads(
    tmp_path: Path, optimizers: str, schedule: str
) -> None:
    saved = save_agent(tmp_path / "saved", game="breakout", size=SIZE, seed=9)
    learner = make_learner(
        {"init_from": str(saved), "freeze_trunk": True, "schedule": schedule,
         "optimizers": optimizers, "cosine_every": 1},
        target_update_freq=2,
    )  # fmt: skip
    before = weights_of(learner, "backbone")
    buffers = {name: value.clone() for name, value in learner._net.backbone.named_buffers()}
    heads = {head: weights_of(learner, head) for head in ("heads.q", "heads.aux")}
    result = update(learner, num_updates=4)
    assert (result["counts"]["td_updates"], result["counts"]["aux_updates"]) == (4, 4)
    assert bit_equal(weights_of(learner, "backbone"), before)
    assert bit_equal(dict(learner._net.backbone.named_buffers()), buffers)
    for head, values in heads.items():
        assert none_equal(weights_of(learner, head), values)
    assert "gradient_cosine" not in result["stats"]  # of a trunk that has no gradients


def test_joint_slots_are_one_step_that_counts_as_both() -> None:
    learner = make_learner({"schedule": "joint", "every": 2})
    events = record_tape(learner)
    counts = update(learner, num_updates=4)["counts"]
    assert events == ["td"] * 4
    assert counts == {"td_updates": 4, "aux_updates": 2, "slots": 4}


def test_pretraining_makes_aux_updates_only_and_then_td_updates_only() -> None:
    learner = make_learner({"schedule": "pretrain", "pretrain_updates": 3})
    events = record_tape(learner)
    td_errors = update(learner, num_updates=5)["td_errors"].reshape(5, ROWS)
    assert events == ["aux"] * 3 + ["td"] * 2
    assert not td_errors[:3].any()
    assert td_errors[3:].all()


@pytest.mark.parametrize("network", ["nature", "paper-code", "paper-text"])
@pytest.mark.parametrize("optimizers", ["shared", "separate"])
def test_each_update_leaves_the_other_head_bit_equal_and_moves_the_trunk(
    network: str, optimizers: str
) -> None:
    learner = make_learner(
        {"schedule": "pretrain", "pretrain_updates": 2, "optimizers": optimizers}, network=network
    )
    for moved, idle in [("aux", "q"), ("aux", "q"), ("q", "aux"), ("q", "aux")]:
        trunk = weights_of(learner, "backbone")
        head, other = weights_of(learner, f"heads.{moved}"), weights_of(learner, f"heads.{idle}")
        update(learner, seed=1)
        assert bit_equal(weights_of(learner, f"heads.{idle}"), other)
        assert not bit_equal(weights_of(learner, f"heads.{moved}"), head)
        assert none_equal(weights_of(learner, "backbone"), trunk)


@pytest.mark.parametrize(
    "auxiliary",
    [
        {"weight": 0},
        {"weight": 0, "schedule": "joint", "every": 2},
        {"weight": 0, "optimizers": "separate"},
        {"weight": 0, "schedule": "pretrain", "pretrain_updates": 2},
        {"task": "none", "pretrain_updates": 2},
    ],
    ids=str,
)
def test_without_weight_or_task_the_updates_are_the_plain_baselines(
    auxiliary: dict[str, Any],
) -> None:
    changes = {"target_update_freq": 4}
    plain, learner = make_learner({"task": None}, **changes), make_learner(auxiliary, **changes)
    assert bit_equal(weights_of(plain), weights_of(learner))  # both start from the same agent
    first, second = update(plain, num_updates=6), update(learner, num_updates=6)
    assert bit_equal(weights_of(plain), weights_of(learner))
    assert bit_equal(target_of(plain), target_of(learner))
    assert first["counts"] == second["counts"] == {"td_updates": 6, "aux_updates": 0, "slots": 6}
    np.testing.assert_array_equal(first["td_errors"], second["td_errors"])


def test_arm_with_a_task_makes_as_many_td_updates_as_the_baseline_and_moves_elsewhere() -> None:
    plain, learner = make_learner({"task": None}), make_learner()
    counts = [update(each, num_updates=4)["counts"]["td_updates"] for each in (plain, learner)]
    assert counts == [4, 4]
    assert not bit_equal(weights_of(plain), weights_of(learner))


def test_joint_update_is_one_adam_step_on_the_weighted_sum() -> None:
    learner = make_learner({"schedule": "joint", "weight": 0.3}, adam_epsilon=1e-3, grad_clip=None)
    hand, rows = ByHand(learner, unclipped), make_columns()
    for _ in range(3):
        learner.update(to_rllib(rows), num_updates=1)
        hand.step(hand.td_loss(rows) + 0.3 * hand.aux_loss(rows))
    hand.assert_agrees_with(learner)


def test_alternating_updates_are_two_steps_of_one_adam() -> None:
    learner = make_learner({"weight": 0.3}, adam_epsilon=1e-3, grad_clip=None)
    hand, rows = ByHand(learner, unclipped), make_columns()
    for _ in range(3):
        learner.update(to_rllib(rows), num_updates=1)
        hand.step(hand.td_loss(rows))
        hand.step(0.3 * hand.aux_loss(rows))
    hand.assert_agrees_with(learner)


@pytest.mark.parametrize(
    "auxiliary",
    [
        {"cosine_every": 1},
        pytest.param({"cosine_every": 1, "optimizers": "separate"}, marks=pytest.mark.long),
        pytest.param({"schedule": "joint"}, marks=pytest.mark.long),
        pytest.param({"task": None}, marks=pytest.mark.long),
    ],
)
def test_updates_compiled_as_one_graph_are_those_of_autograd_and_torchs_adam(
    auxiliary: dict[str, Any],
) -> None:
    plain, compiled = (
        make_learner(auxiliary, compile_learner=on, grad_clip=0.5, adam_epsilon=1e-3)
        for on in (False, True)
    )
    for seed in range(2):  # a second call meets the states that the first one made
        expected, results = (update(each, 2, seed=seed) for each in (plain, compiled))
        assert results["compiled"]
        assert results["counts"] == expected["counts"]
        np.testing.assert_allclose(results["td_errors"], expected["td_errors"], rtol=1e-4)
        assert results["stats"].keys() == expected["stats"].keys()
        for name, pair in expected["stats"].items():
            assert results["stats"][name] == pytest.approx(pair, rel=1e-4, abs=1e-6)
    for name, value in plain._net.state_dict().items():
        torch.testing.assert_close(compiled._net.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    for name, adam in plain._named_optimizers.items():
        states = compiled._named_optimizers[name].state_dict()["state"]
        for number, state in adam.state_dict()["state"].items():
            assert states[number]["step"] == state["step"]
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    states[number][moment], state[moment], rtol=1e-3, atol=1e-8
                )


@pytest.mark.slow
def test_compiled_updates_go_on_after_a_checkpoint_as_if_there_had_been_none() -> None:
    straight, second = (make_learner(compile_learner=True) for _ in range(2))
    update(straight, seed=1)
    second.set_state(pickle.loads(pickle.dumps(straight.get_state())))
    for each in (straight, second):
        update(each, seed=2)
    assert bit_equal(weights_of(second), weights_of(straight))


def test_separate_optimizers_keep_own_moments_and_weigh_the_learning_rate() -> None:
    learner = make_learner(
        {"weight": 0.3, "optimizers": "separate"}, adam_epsilon=1e-3, grad_clip=None
    )
    hand, rows = ByHand(learner, unclipped), make_columns()
    shared = ByHand(learner, unclipped)
    for _ in range(3):
        learner.update(to_rllib(rows), num_updates=1)
        hand.step(hand.td_loss(rows), adam="td")
        hand.step(hand.aux_loss(rows), adam="aux", lr=0.3 * hand.lr)
        shared.step(shared.td_loss(rows))
        shared.step(shared.aux_loss(rows), lr=0.3 * shared.lr)
    hand.assert_agrees_with(learner)
    with pytest.raises(AssertionError):  # one Adam for both is something else
        shared.assert_agrees_with(learner)


@pytest.mark.parametrize("by", ["global_norm", "norm"])
def test_gradients_are_clipped_all_together_or_each_tensor_by_itself(by: str) -> None:
    limit = 0.05

    def scaled(gradients: list[Tensor], norm: Tensor) -> list[Tensor]:
        return [g * (limit / norm) if norm > limit else g for g in gradients]

    def together(gradients: list[Tensor]) -> list[Tensor]:
        return scaled(gradients, torch.stack([g.pow(2).sum() for g in gradients]).sum().sqrt())

    def each(gradients: list[Tensor]) -> list[Tensor]:
        return [scaled([g], g.pow(2).sum().sqrt())[0] for g in gradients]

    # A large epsilon: Adam would divide the factor of a clipped gradient away again.
    learner = make_learner(adam_epsilon=0.1, lr=0.1, grad_clip=limit, grad_clip_by=by)
    rules = {"global_norm": together, "norm": each, "none": unclipped}
    hands = {name: ByHand(learner, rule) for name, rule in rules.items()}
    rows = make_columns()
    for _ in range(2):
        learner.update(to_rllib(rows), num_updates=1)
        for hand in hands.values():
            hand.step(hand.td_loss(rows))
            hand.step(hand.aux_loss(rows))
    hands.pop(by).assert_agrees_with(learner)
    for decoy in hands.values():
        with pytest.raises(AssertionError):
            decoy.assert_agrees_with(learner)


def test_target_network_is_copied_every_n_td_updates_and_rests_between() -> None:
    learner = make_learner({"every": 2}, target_update_freq=3)
    before = target_of(learner)
    assert bit_equal(before, weights_of(learner))
    for td_updates in range(1, 8):
        update(learner, seed=td_updates)
        if td_updates % 3 == 0:
            assert not bit_equal(target_of(learner), before)
            # In slot 6 an aux update follows the copy and moves the online trunk again.
            assert bit_equal(target_of(learner), weights_of(learner)) == (td_updates % 2 == 1)
            before = target_of(learner)
        assert bit_equal(target_of(learner), before)
        assert bit_equal(learner._target_params, before)  # what the updates compute with


def test_first_td_update_after_pretraining_bootstraps_from_the_pretrained_trunk() -> None:
    learner = make_learner({"schedule": "pretrain", "pretrain_updates": 3})
    start = target_of(learner)
    update(learner, num_updates=3)
    assert bit_equal(target_of(learner), start)
    pretrained = weights_of(learner)
    update(learner, num_updates=2)
    assert bit_equal(target_of(learner), pretrained)
    assert not bit_equal(pretrained, start)


@pytest.mark.parametrize(("double_q", "td_error"), [(True, -0.5), (False, 3.5)])
def test_double_q_bootstraps_with_target_value_of_online_argmax(
    double_q: bool, td_error: float
) -> None:
    learner = make_learner({"task": None}, double_q=double_q)
    module = learner._module[DEFAULT_MODULE_ID]
    online, target = [0.0, 0, 0, 6, -6, 0], [1.0, 2, 5, -3, -4, -1]  # both have mean 0
    with torch.no_grad():
        for net, advantages in ((module.net, online), (module.target, target)):
            for value in net.heads["q"].parameters():
                value.zero_()
            net.heads["q"].advantage[-1].bias.copy_(torch.tensor(advantages))
    learner.set_state(learner.get_state())  # casts the target anew
    rows = make_columns()
    rows["actions"][:], rows["rewards"][:], rows["discounts"][:] = 0, 1, 0.5
    # online argmax 3: 1 + 0.5 * -3 - 0; the target's own argmax 2: 1 + 0.5 * 5 - 0
    got = learner.update(to_rllib(rows), num_updates=1)["td_errors"]
    np.testing.assert_allclose(got, np.full(ROWS, td_error), atol=1e-6)


def test_updates_of_one_call_equal_as_many_calls_of_one() -> None:
    together, one_by_one = (
        make_learner({"every": 2, "cosine_every": 2}, target_update_freq=2) for _ in range(2)
    )
    columns = make_columns(4 * ROWS)
    at_once = together.update(to_rllib(columns), num_updates=4)
    parts = [
        one_by_one.update(
            to_rllib({k: v[i * ROWS : (i + 1) * ROWS] for k, v in columns.items()}), num_updates=1
        )
        for i in range(4)
    ]
    assert bit_equal(weights_of(together), weights_of(one_by_one))
    assert bit_equal(weights_of(together, "heads.aux"), weights_of(one_by_one, "heads.aux"))
    np.testing.assert_array_equal(
        at_once["td_errors"], np.concatenate([part["td_errors"] for part in parts])
    )
    assert at_once["counts"] == parts[-1]["counts"]
    for name, (total, count) in at_once["stats"].items():
        pairs = [part["stats"][name] for part in parts if name in part["stats"]]
        assert total == pytest.approx(sum(pair[0] for pair in pairs), rel=1e-5)
        assert count == sum(pair[1] for pair in pairs)


def test_batch_that_does_not_divide_into_slots_is_refused() -> None:
    learner = make_learner()
    expected = "Expected a batch of num_updates=3 minibatches of one size, got 8 rows."
    with pytest.raises(ValueError, match=expected):
        learner.update(to_rllib(make_columns(8)), num_updates=3)


@pytest.mark.parametrize("optimizers", ["shared", "separate"])
@pytest.mark.parametrize("through", ["pickle-4", "pickle-5", "files"])
def test_resumed_learner_makes_bit_equal_next_updates(
    through: str, optimizers: str, tmp_path: Path
) -> None:
    auxiliary = {"every": 2, "optimizers": optimizers, "weight": 0.5}
    learner = make_learner(auxiliary, target_update_freq=2)
    update(learner, num_updates=3)  # between two aux updates, and one after the target's copy
    resumed = make_learner(auxiliary, target_update_freq=2)
    update(resumed, seed=99)  # no fresh learner: everything has to be overwritten
    if through.startswith("pickle"):  # protocol 4 does not keep the layout of channels-last arrays
        protocol = int(through[-1])
        resumed.set_state(pickle.loads(pickle.dumps(learner.get_state(), protocol)))
    else:
        resumed.restore_from_path(learner.save_to_path(tmp_path))
    tapes = record_tape(learner), record_tape(resumed)
    first, second = (update(each, num_updates=3, seed=1) for each in (learner, resumed))
    assert tapes[0] == tapes[1] == ["td", "aux", "td", "td", "aux"]
    assert bit_equal(weights_of(learner), weights_of(resumed))
    assert bit_equal(weights_of(learner, "heads.aux"), weights_of(resumed, "heads.aux"))
    assert bit_equal(target_of(learner), target_of(resumed))
    assert first["stats"] == second["stats"]
    assert first["counts"] == second["counts"]
    np.testing.assert_array_equal(first["td_errors"], second["td_errors"])


def test_resumed_learner_has_the_learning_rate_and_epsilon_that_it_was_given() -> None:
    learner = make_learner(lr=1e-3, adam_epsilon=1e-5)
    update(learner)
    state = pickle.dumps(learner.get_state())
    resumed = make_learner(lr=1e-4, adam_epsilon=1e-3)
    resumed.set_state(pickle.loads(state))
    for adam in resumed._named_optimizers.values():
        assert [(group["lr"], group["eps"]) for group in adam.param_groups] == [(1e-4, 1e-3)]
        steps = {float(each["step"]) for each in adam.state.values()}
        assert steps == {1.0, 2.0}, "the moments go on: of the heads 1, of the trunk 2"


def test_resumed_learner_with_two_optimizers_weighs_the_aux_loss_as_it_was_told() -> None:
    learner = make_learner({"optimizers": "separate", "weight": 1.0})
    update(learner)
    state, found = pickle.dumps(learner.get_state()), []
    for weight in (1.0, 0.01):
        resumed = make_learner({"optimizers": "separate", "weight": weight})
        resumed.set_state(pickle.loads(state))
        update(resumed, seed=1)
        found.append(weights_of(resumed))
    assert not bit_equal(*found)


def test_older_state_takes_the_weights_back_too() -> None:
    learner = make_learner()
    update(learner, seed=1)
    older, weights = pickle.dumps(learner.get_state()), weights_of(learner)
    update(learner, num_updates=2, seed=2)
    assert not bit_equal(weights_of(learner), weights)
    learner.set_state(pickle.loads(older))
    assert bit_equal(weights_of(learner), weights)


def test_same_seed_gives_same_updates_and_another_seed_others() -> None:
    stats = []
    for seed in (0, 0, 1):
        learner = make_learner()
        learner._generator.manual_seed(seed)
        stats.append(update(learner, num_updates=2)["stats"]["aux_loss"])
    assert stats[0] == stats[1] != stats[2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loss_that_is_not_finite_ends_the_run_with_advice(value: float) -> None:
    learner, rows = make_learner(), make_columns()
    rows["rewards"][3] = value
    with pytest.raises(
        FloatingPointError,
        match=r"td_loss is (nan|inf) after 1 TD and 1 aux updates. Lower --lr or --aux-weight, "
        r"or use --compute-dtype float32.",
    ):
        learner.update(to_rllib(rows), num_updates=1)


def test_figures_of_queued_updates_come_with_the_next_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = [update(learner, seed=i) for learner in [make_learner()] for i in range(4)]
    monkeypatch.setattr(AuxDQNLearner, "_reads_later", True)  # as on a GPU
    late = [update(learner, seed=i) for learner in [make_learner()] for i in range(4)]
    assert [each["stats"] for each in late] == [{}, *(each["stats"] for each in at_once[:-1])]
    for one, other in zip(late, at_once, strict=True):
        assert one["td_errors"].tolist() == other["td_errors"].tolist()
        assert one["counts"] == other["counts"]


def test_loss_that_is_not_finite_is_found_by_the_next_update_or_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AuxDQNLearner, "_reads_later", True)  # as on a GPU
    rows = make_columns()
    rows["rewards"][3] = float("nan")
    looks: list[Callable[[AuxDQNLearner], Any]] = [update, AuxDQNLearner.get_state]
    for look in looks:
        learner, sound = make_learner(), make_learner()
        before = sound.get_state()
        learner.update(to_rllib(rows), num_updates=1)
        with pytest.raises(FloatingPointError, match=r"td_loss is nan after"):
            look(learner)
        learner.set_state(before)
        update(learner)
        assert none_equal(weights_of(learner), weights_of(sound))


def test_share_of_samples_without_a_label_is_logged_and_not_learned_from() -> None:
    learner, rows = make_learner(), make_columns()
    rows["obs"][:3] = rows["obs"][:3, :1]  # nothing moves
    rows["obs"][3, 0] = 0  # padding at a game's start
    stats = learner.update(to_rllib(rows), num_updates=1)["stats"]
    assert stats["aux_left_out"] == (0.5, 1)
    assert stats["aux_accuracy"][1] == 4  # out of the usable ones


def test_samples_without_a_label_are_learned_from_if_asked() -> None:
    auxiliary = {"samples": "all", "schedule": "aux-only"}
    learner = make_learner(auxiliary, adam_epsilon=1e-3, grad_clip=None)
    hand, rows = ByHand(learner, unclipped), make_columns()
    rows["obs"][:3] = rows["obs"][:3, :1]  # nothing moves
    stats = learner.update(to_rllib(rows), num_updates=1)["stats"]
    hand.step(hand.aux_loss(rows))
    hand.assert_agrees_with(learner)
    assert stats["aux_left_out"] == (0, 1)
    assert stats["aux_accuracy"][1] == ROWS


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_batch_without_any_usable_sample_makes_the_td_update_alone(
    schedule: str, compiled: bool
) -> None:
    # The first update fills Adam's momentum, which would go on to move the weights.
    auxiliary = {"schedule": schedule, "cosine_every": 1}
    learner, baseline = (make_learner(auxiliary, compile_learner=compiled) for _ in range(2))
    for each in (learner, baseline):
        update(each)
    baseline.config.aux_weight = 0
    head, rows = weights_of(learner, "heads.aux"), make_columns(seed=1)
    rows["obs"][:] = 7  # nothing moves
    results = learner.update(to_rllib(rows), num_updates=1)
    baseline.update(to_rllib(rows), num_updates=1)
    assert results["stats"]["aux_left_out"] == (1, 1)
    assert {"aux_loss", "aux_accuracy", "gradient_cosine"}.isdisjoint(results["stats"])
    assert results["counts"] == {"td_updates": 2, "aux_updates": 1, "slots": 2}
    assert bit_equal(weights_of(learner, "heads.aux"), head)
    assert bit_equal(weights_of(learner), weights_of(baseline))
    assert update(learner)["counts"] == {"td_updates": 3, "aux_updates": 2, "slots": 3}


def test_pretraining_slot_without_any_usable_sample_passes_and_moves_nothing() -> None:
    learner = make_learner({"schedule": "pretrain", "pretrain_updates": 2})
    update(learner)
    before, rows = weights_of(learner), make_columns()
    rows["obs"][:, 0] = 0  # padding at a game's start
    counts = learner.update(to_rllib(rows), num_updates=1)["counts"]
    assert counts == {"td_updates": 0, "aux_updates": 1, "slots": 2}
    assert bit_equal(weights_of(learner), before)
    assert update(learner)["counts"] == {"td_updates": 1, "aux_updates": 1, "slots": 3}


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_measuring_the_gradient_cosine_changes_nothing_else(schedule: str) -> None:
    measured = make_learner({"cosine_every": 1, "schedule": schedule})
    plain = make_learner({"cosine_every": 0, "schedule": schedule})
    first, second = (update(learner, num_updates=4)["stats"] for learner in (measured, plain))
    assert bit_equal(weights_of(measured), weights_of(plain))
    assert bit_equal(weights_of(measured, "heads.aux"), weights_of(plain, "heads.aux"))
    total, count = first.pop("gradient_cosine")
    assert count == 4
    assert abs(total) <= 4
    assert first == second  # the losses of the measurement are not counted a second time


@pytest.mark.parametrize(("every", "cosine_every", "times"), [(1, 4, 3), (4, 8, 2), (4, 1, 3)])
def test_gradient_cosine_is_measured_now_and_then_where_both_losses_meet(
    every: int, cosine_every: int, times: int
) -> None:
    learner = make_learner({"every": every, "cosine_every": cosine_every})
    assert update(learner, num_updates=12)["stats"]["gradient_cosine"][1] == times


def test_gradient_cosine_is_that_of_both_losses_on_the_trunk() -> None:
    learner = make_learner({"cosine_every": 1})
    hand, rows = ByHand(learner, unclipped), make_columns()
    trunk = list(hand.net.backbone.parameters())
    td, aux = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk)]).double()
        for loss in (hand.td_loss(rows), hand.aux_loss(rows))
    )
    expected = float((td * aux).sum() / (td.pow(2).sum() * aux.pow(2).sum()).sqrt())
    total, _ = learner.update(to_rllib(rows), num_updates=1)["stats"]["gradient_cosine"]
    assert total == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("network", available_networks())
def test_bfloat16_gradients_point_where_float32_gradients_do(network: str) -> None:
    gradients: dict[str, list[Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        learner = make_learner(compute_dtype=dtype, network=network)
        gradients[dtype] = []

        def keep(loss: Tensor, optimizer: str, learner: AuxDQNLearner = learner) -> None:
            found = torch.autograd.grad(loss, list(learner._net.parameters()), allow_unused=True)
            kept = torch.cat([g.flatten() for g in found if g is not None])
            gradients[learner.config.compute_dtype].append(kept)

        learner._descend = keep  # type: ignore[method-assign]
        update(learner)
    for exact, rounded in zip(*gradients.values(), strict=True):  # of the TD and the aux loss
        assert exact.dtype == rounded.dtype == torch.float32
        assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99
        assert rounded.norm() == pytest.approx(float(exact.norm()), rel=0.05)
        assert not torch.equal(exact, rounded)


def test_td_errors_come_back_in_row_order() -> None:
    learner = make_learner()
    hand, rows = ByHand(learner, unclipped), make_columns(2 * ROWS)
    got = learner.update(to_rllib(rows), num_updates=2)["td_errors"]
    assert got.dtype == np.float32
    assert got.shape == (2 * ROWS,)
    first = {k: v[:ROWS] for k, v in rows.items()}  # the second half has moved weights
    expected = hand.td_errors(first).detach().numpy()
    np.testing.assert_allclose(got[:ROWS], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_update_says_which_arithmetic_it_used(dtype: str) -> None:
    assert update(make_learner(compute_dtype=dtype))["bfloat16"] == (dtype == "bfloat16")


def test_dtype_is_taken_by_name_and_auto_is_one_of_both() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("float32", cpu) is torch.float32
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_auto_is_float32_where_onednn_would_emulate_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
