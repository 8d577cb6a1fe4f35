"""The algorithm: replay ratio, resume, lost runners. Small frames, no compiler, one thread."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from rayssl.device_frames import DeviceFrames
from rayssl.evaluation import load_agent, play_games
from rayssl.rllib.algorithm import EVALUATION_SEED, AuxDQN, shard_order
from rayssl.rllib.checkpoint import MANIFEST, MODEL, REPLAY
from rayssl.rllib.config import AuxDQNConfig
from tests.toy_agents import save_agent

Build = Callable[[AuxDQNConfig], AuxDQN]


def make_config(task: str = "permutation", runners: int = 0, game: str = "pong") -> AuxDQNConfig:
    """A run of the real parts that takes seconds: 42x42 frames, 2 games, float32, eager."""
    return (
        AuxDQNConfig()
        .environment(game, env_config={"frame_size": 42, "max_game_frames": 600})
        .auxiliary(task=task, cosine_every=7)
        .training(
            train_batch_size_per_learner=8,
            learning_starts_steps=64,
            replay_capacity_steps=2_000,
            steps_per_iteration=96,
            compile_learner=False,
            compute_dtype="float32",
            epsilon=(1.0, 0.1, 300),
            target_update_freq=40,
        )
        .env_runners(
            num_env_runners=runners, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.2,
            rollout_fragment_length=4,
        )
        .debugging(seed=3)
    )  # fmt: skip


@pytest.fixture
def build(ray_local: None) -> Iterator[Build]:
    """Builds algorithms and stops them at the test's end."""
    made: list[AuxDQN] = []

    def build_algo(config: AuxDQNConfig) -> AuxDQN:
        made.append(config.build_algo())
        return made[-1]

    yield build_algo
    for algo in made:
        algo.stop()


def weights(algo: AuxDQN) -> dict[str, torch.Tensor]:
    return algo.model_state()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def assert_ratio_holds(algo: AuxDQN, result: dict) -> None:
    """Updates follow the steps; they lag by two rounds of requests at most."""
    due = int((result["env_steps"] - 64) * 0.25)
    rounds = 2 * 2 * algo._fragment_steps * algo.config.num_env_runners
    assert due - rounds * 0.25 <= result["td_updates"] <= due


@pytest.mark.parametrize("prioritized", [False, True])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    build: Build, tmp_path: Path, prioritized: bool
) -> None:
    config = make_config().training(prioritized=prioritized)
    whole = build(config.copy())
    for _ in range(3):
        whole.train()
    whole.save_to_path(str(tmp_path / "ck"))
    after_save = weights(whole)
    for _ in range(3):
        expected = whole.train()

    resumed = build(config.copy().training(restore_from=str(tmp_path / "ck")))
    assert_equal(weights(resumed), after_save)
    for _ in range(3):
        got = resumed.train()

    assert_equal(weights(resumed), weights(whole))
    assert expected["games"] > 0, "the run must cross the end of a game to show anything"
    same = ("env_steps", "games", "td_updates", "aux_updates", "epsilon", "td_loss", "aux_loss",
            "score_mean_100", "paper_code_score_mean_100", "replay_rows")  # fmt: skip
    assert {k: got[k] for k in same} == {k: expected[k] for k in same}
    for a, b in zip(whole.replay.sample(16), resumed.replay.sample(16), strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_are_nan_until_the_first_update(build: Build) -> None:
    algo = build(make_config().training(learning_starts_steps=100))  # an iteration: 96
    names = ("td_loss", "td_error_abs", "q_mean", "aux_loss", "aux_accuracy", "aux_left_out")
    first, second = algo.train(), algo.train()
    assert all(np.isnan(first[name]) for name in names)
    assert all(np.isfinite(second[name]) for name in names)
    several = build(make_config("rotation+inverse").training(learning_starts_steps=100)).train()
    assert np.isnan(several["aux_loss/inverse"])
    assert "aux_loss" not in several


def test_aux_only_run_makes_no_td_update_and_its_checkpoint_starts_another_run(
    build: Build, tmp_path: Path
) -> None:
    config = make_config()
    config.auxiliary(schedule="aux-only")
    algo = build(config)
    result = [algo.train() for _ in range(3)][-1]
    assert (result["td_updates"], result["epsilon"]) == (0, 1.0)
    assert result["aux_updates"] == int((result["env_steps"] - 64) * 0.25)
    saved = algo.save_to_path(str(tmp_path / "ck"))
    second = make_config("rotation")
    second.auxiliary(init_from=saved, freeze_trunk=True)
    started = build(second)
    trunk = {k: v for k, v in weights(algo).items() if k.startswith("backbone")}
    assert started.train()["td_updates"] > 0
    assert_equal({k: v for k, v in weights(started).items() if k in trunk}, trunk)
    acting = started.env_runner.module.net.state_dict()
    assert_equal({k: acting[k] for k in trunk}, trunk)
    again = second.copy()
    again.auxiliary(init_from=None)  # as --resume does: that run may be gone
    again.training(restore_from=started.save_to_path(str(tmp_path / "started")))
    told = [
        each.model_settings()["training"]["init_from"] for each in (algo, started, build(again))
    ]
    assert told == [None, saved, saved]


def test_policy_plays_for_an_aux_only_run_and_stays_as_it_is(build: Build, tmp_path: Path) -> None:
    player = save_agent(tmp_path / "player", game="pong")
    config = make_config()
    config.auxiliary(schedule="aux-only", policy=str(player))
    config.training(epsilon=(1.0, 0.0, 300), learning_starts_steps=16)
    algo = build(config)
    algo.train()
    runner, net = algo.env_runner, load_agent(player).network
    obs = torch.from_numpy(runner.env.obs)
    with torch.no_grad():
        expected = net(obs, "q").argmax(1).numpy()
        own = algo.learner_group._learner._net(obs, "q")
    assert np.array_equal(runner._act(0.0), expected)
    assert not torch.allclose(own, net(obs, "q"))  # the network that is trained is another
    saved = torch.load(player / "model.pt", weights_only=True)
    assert all(torch.equal(v, saved[k]) for k, v in runner._policy.state_dict().items())


def test_run_of_several_tasks_on_sequences_resumes_bit_for_bit_and_its_agent_is_read(
    build: Build, tmp_path: Path
) -> None:
    config = make_config("rotation+spr+reward").training(augment="shift")
    config.auxiliary(weight=(0.5, 1.0, 0.1))
    whole = build(config.copy())
    whole.train()
    whole.save_to_path(str(tmp_path / "ck"))
    expected = whole.train()
    resumed = build(config.copy().training(restore_from=str(tmp_path / "ck")))
    got = resumed.train()
    assert_equal(weights(resumed), weights(whole))
    tasks = ("rotation", "spr", "reward")
    same = ["td_loss", "aux_updates", *(f"aux_loss/{task}" for task in tasks)]
    assert {k: got[k] for k in same} == {k: expected[k] for k in same}
    assert all(0 <= expected[f"aux_accuracy/{task}"] <= 1 for task in tasks)
    assert not {"aux_loss", "aux_accuracy"} & expected.keys()
    agent = load_agent(tmp_path / "ck")
    assert agent.settings["aux_task"] == "rotation+spr+reward"
    obs = resumed.env_runner.env.obs[0]
    assert agent.aux_guess(obs, generator=torch.Generator()) is not None


def test_two_learners_share_the_sequences_of_every_batch(build: Build) -> None:
    config = make_config("inverse+atc").learners(num_learners=2, num_cpus_per_learner=0.5)
    algo = build(config.training(augment="shift"))
    result = algo.train()
    assert result["aux_updates"] == result["td_updates"] > 0
    states = algo.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"])
    first, second = (found.get()["default_policy"] for found in states)
    assert any(name.startswith("followers.atc.") for name in first)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_other_seed_gives_another_run(build: Build) -> None:
    first, second = build(make_config()), build(make_config().debugging(seed=4))
    first.train(), second.train()
    assert any(not torch.equal(a, b) for a, b in zip(
        weights(first).values(), weights(second).values(), strict=True))  # fmt: skip


def test_arms_make_the_same_number_of_td_updates_per_step(build: Build) -> None:
    results = {}
    for task in ("none", "rotation", "permutation"):
        algo = build(make_config(task))
        results[task] = [algo.train() for _ in range(2)][-1]
    steps = results["none"]["env_steps"]
    assert {r["td_updates"] for r in results.values()} == {int((steps - 64) * 0.25)}
    assert results["none"]["aux_updates"] == 0
    assert results["rotation"]["aux_updates"] == results["rotation"]["td_updates"]


def test_replay_ratio_holds_with_runners(build: Build) -> None:
    algo = build(make_config(runners=2))
    result = [algo.train() for _ in range(3)][-1]
    assert_ratio_holds(algo, result)
    assert result["env_steps"] == int(algo.replay._added.sum()), "every step is in the replay"


def test_runners_go_on_until_the_replay_has_a_batch(build: Build) -> None:
    config = make_config(runners=1).training(train_batch_size_per_learner=256)
    algo = build(config)  # a batch is four times the steps before learning
    result = [algo.train() for _ in range(4)][-1]
    assert result["td_updates"] > 0


def test_pretraining_leaves_the_priorities_of_rows_alone(build: Build) -> None:
    config = make_config(task="rotation").training(prioritized=True)
    config.auxiliary(schedule="pretrain", pretrain_updates=16)
    algo = build(config)
    result = algo.train()
    assert (result["td_updates"], result["aux_updates"]) == (0, 8)
    np.testing.assert_array_equal(algo.replay.sample(32).weights, 1)  # none is preferred
    for _ in range(2):
        result = algo.train()
    assert result["td_updates"] > 0
    assert algo.replay.sample(32).weights.min() < 1


@pytest.mark.parametrize("ratio", [0.125, 0.5])
def test_other_replay_ratio_of_a_resumed_run_is_of_the_steps_to_come(
    build: Build, tmp_path: Path, ratio: float
) -> None:
    config = make_config()
    first = build(config.copy())
    for _ in range(3):
        before = first.train()
    first.save_to_path(str(tmp_path / "ck"))
    resumed = build(config.copy().training(restore_from=str(tmp_path / "ck"), replay_ratio=ratio))
    after = resumed.train()
    steps = after["env_steps"] - before["env_steps"]
    assert after["td_updates"] - before["td_updates"] == int(steps * ratio)


def test_iterations_end_where_runners_outrun_the_learner(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo = build(make_config(runners=2))
    learn = algo._learn

    def slow_learn(num_updates: int) -> None:
        time.sleep(0.03)
        learn(num_updates)

    monkeypatch.setattr(algo, "_learn", slow_learn)
    steps = [algo.train()["env_steps"] for _ in range(8)]
    in_flight = 2 * 2 * algo._fragment_steps
    assert np.diff(steps).min() >= 96
    assert np.diff(steps).max() <= 96 + 3 * in_flight


@pytest.mark.long
def test_killed_runner_is_replaced_and_the_run_goes_on(build: Build) -> None:
    algo = build(make_config(runners=2))
    algo.train()
    group = algo.env_runner_group
    pids = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    os.kill(pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    result = algo.train()
    while time.monotonic() < deadline and (
        result["runner_restarts"] < 1 or result["healthy_runners"] < 2
    ):
        result = algo.train()
    assert result["runner_restarts"] >= 1
    assert result["healthy_runners"] == 2
    assert_ratio_holds(algo, result)
    assert result["env_steps"] == int(algo.replay._added.sum())
    new = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    assert pids[0] not in new


def test_checkpoint_cut_short_is_refused(build: Build, tmp_path: Path) -> None:
    algo = build(make_config())
    algo.train()
    path = Path(algo.save_to_path(str(tmp_path / "ck")))
    replay = (path / REPLAY).read_bytes()
    (path / REPLAY).write_bytes(replay[: len(replay) // 2])
    with pytest.raises(ValueError, match=rf"cannot be used: {REPLAY} has \d+ bytes, expected"):
        algo.restore_from_path(str(path))
    (path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="it was cut short"):
        algo.restore_from_path(str(path))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: make_config(game="breakout"), "has game pong, this run breakout"),
        (lambda: make_config(task="rotation"), "has aux_task permutation, this run rotation"),
        (
            lambda: make_config().training(network="paper-text"),
            "has network nature, this run paper",
        ),
    ],
)
def test_checkpoint_of_another_game_task_or_network_is_refused(
    build: Build, tmp_path: Path, other: Callable[[], AuxDQNConfig], text: str
) -> None:
    algo = build(make_config())
    path = algo.save_to_path(str(tmp_path / "ck"))
    with pytest.raises(ValueError, match=text):
        build(other()).restore_from_path(path)


def test_without_saved_replay_learning_waits_until_it_is_filled_again(
    build: Build, tmp_path: Path
) -> None:
    algo = build(make_config().training(save_replay=False))
    before = [algo.train() for _ in range(2)][-1]
    path = Path(algo.save_to_path(str(tmp_path / "ck")))
    assert not (path / REPLAY).exists()
    resumed = build(make_config().training(restore_from=str(path)))
    result = resumed.train()
    steps = result["env_steps"] - before["env_steps"]
    assert result["td_updates"] == before["td_updates"] + int((steps - 64) * 0.25)


def test_model_file_holds_the_acting_weights_without_pickle(build: Build, tmp_path: Path) -> None:
    algo = build(make_config())
    algo.train()
    path = Path(algo.save_to_path(str(tmp_path / "ck")))
    state = torch.load(path / MODEL, weights_only=True)
    assert_equal(state, weights(algo))
    assert any(name.startswith("heads.aux") for name in state)


@pytest.mark.long
def test_two_learners_share_every_batch(build: Build) -> None:
    config = make_config().learners(num_learners=2, num_cpus_per_learner=0.5)
    algo = build(config)
    result = algo.train()
    assert result["td_updates"] == int((result["env_steps"] - 64) * 0.25)
    states = algo.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"])
    first, second = (result.get()["default_policy"] for result in states)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_two_learners_equal_one_with_the_joint_batch_to_float_tolerance(build: Build) -> None:
    one = build(make_config())
    two = build(make_config().learners(num_learners=2, num_cpus_per_learner=0.5))
    start = weights(one)
    assert_equal(start, weights(two))
    while one.replay.num_sampleable < 64:
        one._take(one.env_runner.sample())
    for num_updates in (1, 1, 2, 3):  # with transforms drawn for all 8 rows of a minibatch
        batch = one.replay.sample(8 * num_updates)
        (joint, td_errors), (shards, same) = (a._update(batch, {}, num_updates) for a in (one, two))
        np.testing.assert_array_equal(td_errors, joint[0]["td_errors"])
        assert [len(shard["td_errors"]) for shard in shards] == [4 * num_updates] * 2
        np.testing.assert_allclose(same, td_errors, rtol=1e-3, atol=1e-4)
    assert joint[0]["counts"]["aux_updates"] >= 6
    moved, both = weights(one), weights(two)
    for name, value in moved.items():
        step = (value - start[name]).abs().max()
        assert step > 0, name
        # Adam divides by the gradient's size: where that is near 0, rounding decides its sign.
        apart = (both[name] - value).abs()
        assert apart.mean() < 1e-3 * step, name


@pytest.mark.parametrize(
    ("num_updates", "num_learners", "order"),
    [
        (2, 2, [0, 1, 4, 5, 2, 3, 6, 7]),
        (1, 2, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, 4, [0, 4, 1, 5, 2, 6, 3, 7]),
    ],
)
def test_every_learner_gets_a_share_of_every_minibatch(
    num_updates: int, num_learners: int, order: list[int]
) -> None:
    assert shard_order(8, num_updates, num_learners).tolist() == order


def test_run_with_frames_on_the_learners_device_equals_one_with_frames_in_memory(
    build: Build,
) -> None:
    host, device = (build(make_config().training(replay_device=d)) for d in ("host", "learner"))
    assert isinstance(device.replay._frames, DeviceFrames)
    results = [[algo.train() for _ in range(3)][-1] for algo in (host, device)]
    assert results[0]["td_updates"] == results[1]["td_updates"] > 0
    assert_equal(weights(host), weights(device))


def test_replay_that_exceeds_memory_is_refused_before_anything_starts(ray_local: None) -> None:
    config = make_config().training(replay_capacity_steps=10**12)
    with pytest.raises(MemoryError, match="Lower --replay-capacity to"):
        config.build_algo()


def test_scores_are_of_whole_games_and_lives_are_named_as_the_papers_code(build: Build) -> None:
    algo = build(make_config(game="breakout"))
    result = [algo.train() for _ in range(8)][-1]
    assert result["games"] < len(algo._life_scores), "lives end more often than games"
    assert result["score_mean_100"] >= result["paper_code_score_mean_100"]


def test_ray_is_the_only_engine(build: Build) -> None:
    algo = build(make_config(runners=1))
    runners = algo.env_runner_group._worker_manager.actors()
    assert all(isinstance(actor, ray.actor.ActorHandle) for actor in runners.values())


def test_every_runner_computes_with_one_thread(build: Build) -> None:
    """Else N runners on N cores would run N * N threads, each waiting for the others' barriers."""
    from threadpoolctl import threadpool_info

    algo = build(make_config(runners=2))

    def threads(runner: Any) -> tuple[int, int, list[int]]:
        pools = [pool["num_threads"] for pool in threadpool_info()]  # OpenMP and BLAS
        return torch.get_num_threads(), runner.config.atari_settings().num_threads, pools

    found = algo.env_runner_group.foreach_env_runner(threads, local_env_runner=False)
    assert len(found) == 2
    for torch_threads, consoles, pools in found:
        assert (torch_threads, consoles) == (1, 1)
        assert pools
        assert set(pools) == {1}
    assert algo.config.learner_threads == 1


def test_evaluations_come_at_their_intervals_and_leave_training_as_it_was(build: Build) -> None:
    plain, evaluated = make_config(), make_config()
    evaluated.training(evaluate_every_steps=192, games_per_evaluation=2)
    algos = [build(plain), build(evaluated)]
    results = [[algo.train() for _ in range(4)] for algo in algos]
    assert_equal(weights(algos[0]), weights(algos[1]))
    assert [result["score_last"] for result in results[0]] == pytest.approx(
        [result["score_last"] for result in results[1]], nan_ok=True
    )
    assert not any("evaluation_games" in result for result in results[0])
    told = [result.get("evaluation_games") for result in results[1]]
    assert told == [None, 2, None, 2]  # 96, 192, 288, 384 steps
    assert results[1][1]["time_evaluation"] > 0


def test_resumed_run_does_not_repeat_an_evaluation(build: Build, tmp_path: Path) -> None:
    config = make_config()
    config.training(evaluate_every_steps=192, games_per_evaluation=1)
    first = build(config)
    assert [("evaluation_games" in first.train()) for _ in range(2)] == [False, True]
    first.save_to_path(tmp_path / "saved")
    second = build(config.copy(copy_frozen=False).training(restore_from=str(tmp_path / "saved")))
    assert [("evaluation_games" in second.train()) for _ in range(2)] == [False, True]


def test_logged_evaluation_is_what_play_games_says_of_the_saved_agent(
    build: Build, tmp_path: Path
) -> None:
    config = make_config()
    config.training(evaluate_every_steps=96, games_per_evaluation=3)
    config.environment(env_config={"sticky": 0.25} | config.env_config)
    algo = build(config)
    logged = algo.train()
    algo.save_to_path(tmp_path / "saved")
    agent = load_agent(tmp_path / "saved")
    settings = agent.atari_settings(num_envs=16, max_game_frames=600)
    assert settings.sticky == 0.25
    scores = [g.score for g in play_games(agent, settings, episodes=3, seed=3 + EVALUATION_SEED)]
    assert logged["evaluation_score_mean"] == np.mean(scores)
