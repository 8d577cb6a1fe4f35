"""The config refuses what cannot work before anything starts, and derives what follows from it."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rayssl.rllib.algorithm import AuxDQN
from rayssl.rllib.config import AuxDQNConfig
from tests.toy_agents import save_agent


def auxiliary(**settings: Any) -> AuxDQNConfig:
    return AuxDQNConfig().auxiliary(**settings)


def training(**settings: Any) -> AuxDQNConfig:
    return AuxDQNConfig().training(**settings)


def environment(**env_config: Any) -> AuxDQNConfig:
    return AuxDQNConfig().environment("pong", env_config=env_config)


def test_defaults_are_valid_and_the_plain_baseline() -> None:
    config = AuxDQNConfig()
    config.validate()
    assert config.aux_task is None
    assert config.aux_schedule_rule.updates(0) == ("td",)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (auxiliary(task="rotate"), "Unknown task 'rotate'. Available: atc, curl, inverse, jigsaw,"),
        (auxiliary(task="rotation+"), "Unknown task ''. Available: atc, "),
        (
            auxiliary(task="rotation+curl+rotation"),
            "Expected each task once in 'rotation+curl+rotation', got 'rotation' again.",
        ),
        (auxiliary(combine="mean"), "Unknown aux_combine 'mean'. Available: cycle, sum."),
        (auxiliary(samples="some"), "Unknown aux_samples 'some'. Available: usable, all."),
        (training(augment="crop"), "Unknown augment 'crop'. Available: none, shift."),
        (auxiliary(task="rotation", schedule="mix"), "Unknown schedule 'mix'. Available: alterna"),
        (auxiliary(schedule="mix"), "Unknown aux_schedule 'mix'. Available: alternate, joint, pr"),
        (auxiliary(optimizers="two"), "Unknown optimizers 'two'. Available: shared, separate."),
        (
            training(network="resnet"),
            "Unknown network 'resnet'. Available: nature, paper-code, paper-text.",
        ),
        (
            training(target_update_unit="frames"),
            "Unknown target_update_unit 'frames'. Available: steps, updates.",
        ),
        (
            training(compute_dtype="float16"),
            "Unknown compute_dtype 'float16'. Available: auto, float32, bfloat16.",
        ),
        (
            training(grad_clip_by="value"),
            "Unknown grad_clip_by 'value'. Available: global_norm, norm.",
        ),
        (AuxDQNConfig().environment("ALE/Pongg-v5"), "Unknown Atari game 'ALE/Pongg-v5'. Did you"),
        (environment(size=84), "Unknown env_config field size. AtariSettings has: fire_at_start,"),
        (environment(stick=0.1, siz=84), "Unknown env_config field siz, stick. AtariSettings has"),
    ],
)
def test_unknown_name_is_refused_with_those_that_are_known(config: AuxDQNConfig, text: str) -> None:
    with pytest.raises(ValueError) as error:
        config.validate()
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            auxiliary(schedule="aux-only"),
            "Schedule 'aux-only' needs a task and a weight above 0, got task none and weight 1.",
        ),
        (
            auxiliary(schedule="aux-only", task="rotation", weight=0),
            "Schedule 'aux-only' needs a task and a weight above 0, got task rotation and weight 0",
        ),
        (
            auxiliary(schedule="aux-only", task="rotation").training(prioritized=True),
            "Schedule 'aux-only' has no TD errors that replay could be prioritized by. Pass --no-p",
        ),
        (
            auxiliary(schedule="aux-only", task="rotation").training(evaluate_every_steps=500),
            "Schedule 'aux-only' trains no Q-values that an evaluation could play by. Pass --evalu",
        ),
        (
            auxiliary(task="rotation", policy="gone"),
            "A policy plays for schedule 'aux-only' alone, got 'alternate'",
        ),
    ],
)
def test_aux_only_refuses_what_does_not_go_with_it(config: AuxDQNConfig, text: str) -> None:
    with pytest.raises(ValueError) as error:
        config.validate()
    assert str(error.value).startswith(text)


@pytest.mark.parametrize("task", ["curl", "spr", "atc", "rotation+curl"])
def test_task_that_compares_samples_needs_two_a_learner(task: str) -> None:
    config = auxiliary(task=task).training(train_batch_size_per_learner=1)
    text = r"^Task \w+ compares the samples of a batch: each learner needs 2 or more, got 1\. Raise"
    with pytest.raises(ValueError, match=text):
        config.validate()
    config.training(train_batch_size_per_learner=2).validate()
    auxiliary(task="inverse").training(train_batch_size_per_learner=1).validate()


def test_trunk_and_policy_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved = str(save_agent(tmp_path / "saved", game="breakout", network="paper-text"))
    for config, text in (
        (auxiliary(init_from=saved), "has network paper-text, this run nature. Use a checkpoint o"),
        (auxiliary(init_from=saved).training(network="paper-text"), "has frame_size 42, this run"),
        (auxiliary(schedule="aux-only", task="rotation", policy=saved), "has game breakout, this"),
    ):
        with pytest.raises(ValueError, match=text):
            config.validate()
    for folder in (str(tmp_path), "gone"):
        (tmp_path / "saved" / "model.json").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            auxiliary(init_from=folder).validate()


def test_acting_is_random_while_only_the_aux_task_is_trained_and_greedy_with_a_policy(
    tmp_path: Path,
) -> None:
    config = auxiliary(schedule="aux-only", task="rotation")
    assert {config.epsilon_at(steps) for steps in (0, 10**7)} == {1.0}
    config.auxiliary(policy=str(save_agent(tmp_path / "player")))
    assert {config.epsilon_at(steps) for steps in (0, 10**7)} == {0.01}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (auxiliary(weight=-1), "aux_weight must be a number of 0 or more, got -1."),
        (auxiliary(weight="1"), "aux_weight must be a number of 0 or more, got '1'."),
        (auxiliary(weight=float("nan")), "aux_weight must be a number of 0 or more, got nan."),
        (auxiliary(weight=True), "aux_weight must be a number of 0 or more, got True."),
        (auxiliary(every=0), "aux_every must be a whole number of 1 or more, got 0."),
        (auxiliary(every=1.5), "aux_every must be a whole number of 1 or more, got 1.5."),
        (auxiliary(cosine_every=-1), "cosine_every must be a whole number of 0 or more, got -1."),
        (training(n_step=0), "n_step must be a whole number of 1 or more, got 0."),
        (
            training(target_update_freq="1000"),
            "target_update_freq must be a whole number of 1 or more, got '1000'.",
        ),
        (
            training(weights_every_updates=None),
            "weights_every_updates must be a whole number of 1 or more, got None.",
        ),
        (
            training(epsilon=(1.0, 0.1, -5)),
            "epsilon_steps must be a whole number of 0 or more, got -5.",
        ),
        (training(epsilon=(1.5, 0.1, 5)), "epsilon_start must lie in [0, 1], got 1.5."),
        (training(epsilon=(1.0, "0.1", 5)), "epsilon_end must lie in [0, 1], got '0.1'."),
        (training(priority_beta=-0.1), "priority_beta must lie in [0, 1], got -0.1."),
        (training(gamma=1.01), "gamma must lie in [0, 1], got 1.01."),
        (training(lr=0), "lr must be a number above 0, got 0."),
        (training(lr=float("nan")), "lr must be a number above 0, got nan."),
        (training(replay_ratio=-0.25), "replay_ratio must be a number above 0, got -0.25."),
        (training(replay_ratio="0.25"), "replay_ratio must be a number above 0, got '0.25'."),
        (training(adam_epsilon=float("inf")), "adam_epsilon must be a number above 0, got inf."),
        (training(grad_clip=0), "grad_clip must be a number above 0, got 0."),
        (environment(frame_size=0), "frame_size must be a whole number in [1, 2**31), got 0."),
        (
            environment(frame_size="84"),
            "frame_size must be a whole number in [1, 2**31), got '84'.",
        ),
        (environment(game=None), "game must be the name of an Atari game, e.g. 'pong', got None."),
        (
            AuxDQNConfig().environment(None),
            "game must be the name of an Atari game, e.g. 'pong', g",
        ),
        (auxiliary(task=3), "task must be the name of a task or None, got 3."),
        (auxiliary(task="rotation", every="2"), "aux_every must be a whole number of 1 or more, g"),
        (training(lr="x"), "lr must be a number above 0, got 'x'."),
        (
            AuxDQNConfig().env_runners(num_env_runners="2"),
            "num_env_runners must be a whole number of 0 or more, got '2'.",
        ),
        (
            AuxDQNConfig().learners(num_learners=-1),
            "num_learners must be a whole number of 0 or more, got -1.",
        ),
        (
            AuxDQNConfig().debugging(seed=2**31),
            "seed must be a whole number in [0, 2**31), got 2147483648.",
        ),
        (environment(sticky="x"), "sticky must be a probability in [0, 1), got 'x'."),
        (environment(sticky=1.0), "sticky must be a probability in [0, 1), got 1.0."),
    ],
)
def test_value_out_of_range_or_of_another_kind_is_refused(config: AuxDQNConfig, text: str) -> None:
    with pytest.raises(ValueError) as error:
        config.validate()
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (
            (0.5, 0.1, 1),
            "Expected one aux_weight for all of permutation+inverse, or 2 (one for each task), got "
            "3: 0.5,0.1,1.",
        ),
        ((1, 0), "Task inverse of permutation+inverse has aux_weight 0: leave it out of"),
        ((1, -1), "aux_weight must be a number of 0 or more, got -1."),
        ((), "aux_weight must be a number of 0 or more, got None."),
    ],
)
def test_weights_that_do_not_fit_a_combination_are_refused(weight: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        auxiliary(task="permutation+inverse", weight=weight).validate()
    assert str(error.value).startswith(text)


def test_each_task_of_a_combination_has_its_weight_or_all_have_one() -> None:
    config = auxiliary(task="permutation+inverse", weight=(0.5, 0.1))
    config.validate()
    assert [(aux.task.name, aux.weight) for aux in config.aux_tasks] == [
        ("permutation", 0.5), ("inverse", 0.1),
    ]  # fmt: skip
    assert config.top_aux_weight == 0.5
    assert [aux.weight for aux in config.auxiliary(weight=0.3).aux_tasks] == [0.3, 0.3]
    assert config.auxiliary(weight=0).aux_tasks == ()
    assert config.aux_schedule_rule.name is None


def test_task_of_a_combination_that_does_not_take_these_frames_is_refused() -> None:
    config = environment(stack=3).auxiliary(task="rotation+permutation")
    with pytest.raises(ValueError, match="Permutation needs 4 stacked frames"):
        config.validate()
    with pytest.raises(ValueError, match="Order verification needs observations of 4 frames"):
        environment(stack=3).auxiliary(task="order-verification").validate()


def test_epsilon_that_is_no_triple_is_refused() -> None:
    for epsilon in (0.1, (1.0, 0.1)):
        with pytest.raises(ValueError, match=r"^epsilon must be \(start, end, steps\), got "):
            training(epsilon=epsilon)


def test_gradients_may_go_unclipped() -> None:
    training(grad_clip=None).validate()


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"task": "rotation", "schedule": "joint"}, "got task rotation, schedule 'joint'."),
        ({"task": None}, "got task none, schedule 'alternate'."),
    ],
)
def test_separate_optimizers_need_two_losses_in_turn(settings: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match="optimizers='separate' needs two losses") as error:
        auxiliary(optimizers="separate", **settings).validate()
    assert got in str(error.value)
    assert "Use optimizers='shared'." in str(error.value)
    auxiliary(optimizers="separate", task="rotation").validate()


def test_pretraining_needs_a_number_of_updates() -> None:
    with pytest.raises(ValueError, match="Schedule 'pretrain' needs pretrain_updates of 1 or more"):
        auxiliary(task="rotation", schedule="pretrain").validate()


def test_replay_that_holds_less_than_learning_needs_is_refused() -> None:
    def replay(capacity: int, starts: int) -> AuxDQNConfig:
        config = training(replay_capacity_steps=capacity, learning_starts_steps=starts, n_step=3)
        return config.env_runners(num_envs_per_env_runner=8)

    with pytest.raises(ValueError) as error:
        replay(4_999, 5_000).validate()
    assert str(error.value) == (
        "replay_capacity_steps is 4999, but 8 games side by side need 88 and learning starts at "
        "5000 steps. Raise it, or lower the others."
    )
    replay(5_000, 5_000).validate()
    with pytest.raises(ValueError, match="replay_capacity_steps is 87, but 8 games"):
        replay(87, 0).validate()  # 8 * (4 + 3) + a batch of 32 - 1
    replay(88, 0).validate()


def test_task_that_does_not_take_these_frames_is_refused_before_the_start() -> None:
    config = environment(stack=3).auxiliary(task="permutation")
    with pytest.raises(ValueError, match="Permutation needs 4 stacked frames in dim 1, got shape"):
        config.validate()
    environment(stack=3).auxiliary(task="rotation").validate()


def test_number_of_games_is_set_in_one_place() -> None:
    with pytest.raises(ValueError, match=r"env_config has num_envs 4, but num_envs_per_env_runner"):
        environment(num_envs=4).validate()
    environment(num_envs=8).validate()
    assert AuxDQNConfig().env_runners(num_envs_per_env_runner=4).atari_settings().num_envs == 4
    assert AuxDQNConfig().env_runners(num_env_runners=0).num_lanes == 8
    assert AuxDQNConfig().env_runners(num_env_runners=3).num_lanes == 24


@pytest.mark.parametrize(
    ("unit", "freq", "ratio", "updates"),
    [
        ("steps", 1_000, 0.25, 250),
        ("steps", 1_000, 1.0, 1_000),
        ("steps", 1, 0.25, 1),  # never 0
        ("updates", 1_000, 0.25, 1_000),
        ("updates", 1_000, 1.0, 1_000),
    ],
)
def test_target_period_in_steps_follows_the_replay_ratio(
    unit: str, freq: int, ratio: float, updates: int
) -> None:
    config = training(target_update_freq=freq, target_update_unit=unit, replay_ratio=ratio)
    config.validate()
    assert config.target_period_updates == updates


def test_epsilon_falls_linearly_over_agent_steps() -> None:
    config = training(epsilon=(1.0, 0.1, 1_000))
    at = [config.epsilon_at(t) for t in (0, 500, 1_000, 99_999)]
    assert at == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("epsilon_steps", [0, 1_000])
def test_epsilon_is_one_while_the_trunk_is_pretrained_and_falls_after(epsilon_steps: int) -> None:
    config = training(
        epsilon=(0.5, 0.1, epsilon_steps), replay_ratio=0.25, learning_starts_steps=1_000
    )
    config.auxiliary(task="rotation", schedule="pretrain", pretrain_updates=101)
    config.validate()
    begins = 1_000 + 404  # updates of any kind begin at 1,000 steps
    assert config.pretrain_steps == begins
    assert [config.epsilon_at(t) for t in (0, begins - 1)] == [1.0, 1.0]
    assert config.epsilon_at(begins) == (0.5 if epsilon_steps else 0.1)
    assert config.epsilon_at(begins + epsilon_steps) == 0.1


def test_frames_on_the_learners_device_need_the_learner_in_the_algorithms_process() -> None:
    config = training(replay_device="learner").learners(num_learners=2)
    with pytest.raises(ValueError, match=r"got num_learners=2\. Use num_learners=0, or replay_"):
        config.validate()
    training(replay_device="learner").validate()
    with pytest.raises(
        ValueError, match="Unknown replay_device 'gpu'. Available: auto, host, learner"
    ):
        training(replay_device="gpu").validate()


@pytest.mark.parametrize("settings", [{"task": None}, {"task": "rotation", "weight": 0}])
def test_baseline_has_no_pretraining_and_acts_from_the_first_step(settings: dict[str, Any]) -> None:
    config = auxiliary(schedule="pretrain", pretrain_updates=100, **settings)
    assert config.pretrain_steps == 0
    assert config.epsilon_at(0) == config.epsilon_start
    assert config.aux_schedule_rule.updates(0) == ("td",)


def test_beta_rises_to_one() -> None:
    config = training(priority_beta=0.4, priority_beta_steps=1_000)
    assert [config.beta_at(t) for t in (0, 500, 1_000, 5_000)] == pytest.approx([0.4, 0.7, 1, 1])


def test_task_none_and_the_word_none_are_the_same() -> None:
    assert auxiliary(task="rotation").auxiliary(task="none").aux_task is None
    assert auxiliary(task="rotation").auxiliary(task=None).aux_task is None
    assert auxiliary(task="rotation").auxiliary(weight=2).aux_task == "rotation"


def test_tune_builds_the_algorithm_from_our_config_class() -> None:
    config = AuxDQN.get_default_config()
    assert type(config) is AuxDQNConfig
    assert config.algo_class is AuxDQN


def changed() -> AuxDQNConfig:
    config = auxiliary(task="permutation", weight=0.5, every=4, cosine_every=7)
    config.training(network="paper-code", epsilon=(0.9, 0.2, 77), replay_ratio=0.5, lr=3e-4)
    return config.environment("breakout", env_config={"frame_size": 48}).debugging(seed=5)


@pytest.mark.parametrize(
    "through",
    [
        lambda config: config.copy(copy_frozen=False),
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: AuxDQNConfig.from_state(config.get_state()),
        lambda config: AuxDQN.get_default_config().update_from_dict(config.to_dict()),
    ],
    ids=["copy", "pickle", "state", "dict"],
)
def test_copies_keep_our_fields_and_our_class(through: Any) -> None:
    config, copy = changed(), through(changed())
    assert type(copy) is AuxDQNConfig
    copy.validate()
    fresh = AuxDQNConfig()
    ours = set(vars(fresh)) - set(vars(AlgorithmConfig()))
    assert {"aux_task", "replay_ratio", "epsilon_steps", "network"} <= ours
    for name in sorted(ours | {"lr", "seed", "env", "env_config"}):
        assert getattr(copy, name) == getattr(config, name), name
    assert copy.aux_weight == 0.5
    assert copy.atari_settings() == config.atari_settings()


@pytest.mark.parametrize(
    ("task", "classes"), [("permutation", 4), ("permutation-6", 6), ("rotation", 4), (None, 0)]
)
def test_module_spec_has_as_many_aux_classes_as_the_task(task: str | None, classes: int) -> None:
    config = environment(frame_size=40).auxiliary(task=task).training(network="paper-code")
    obs = gym.spaces.Box(0, 255, (4, 40, 40), np.uint8)
    spaces: tuple[gym.Space, gym.Space] = (obs, gym.spaces.Discrete(6))
    spec = config.get_rl_module_spec(spaces={"__env__": spaces, "default_policy": spaces})
    assert spec.model_config == {
        "network": "paper-code",
        "aux_classes": classes,
        "stack": 4,
        "frame_size": 40,
    }
    heads = spec.build().net.heads
    assert ("aux" in heads) == (classes > 0)
    if classes:
        assert list(heads["aux"].logits)[-1].out_features == classes
