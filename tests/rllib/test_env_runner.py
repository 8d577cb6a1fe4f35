"""What a runner hands on: epsilon-greedy steps of N games as single frames, one after the other."""

import copy
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from rayssl.envs.atari import AtariSettings
from rayssl.replay import Fragment, FrameReplay
from rayssl.rllib import env_runner
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.env_runner import AtariEnvRunner, Rollout

SIZE, GAMES, STEPS = 36, 2, 5
GREEDY, RANDOM = (0.0, 0.0, 1), (1.0, 1.0, 1)

torch.set_num_threads(1)
MakeRunner = Callable[..., AtariEnvRunner]


def make_config(
    game: str = "pong",
    *,
    epsilon: tuple[float, float, int] = RANDOM,
    seed: int = 0,
    games: int = GAMES,
    runners: int = 0,
    task: str = "permutation",
    compiled: bool = False,
    **env_config: Any,
) -> AuxDQNConfig:
    config = AuxDQNConfig().environment(game, env_config={"frame_size": SIZE, **env_config})
    config.auxiliary(task=task).debugging(seed=seed)
    config.training(
        compute_dtype="float32", epsilon=epsilon, network="nature", compile_learner=compiled
    )
    config.env_runners(
        num_env_runners=runners, num_envs_per_env_runner=games, rollout_fragment_length=STEPS
    )
    config.validate()
    return config


@pytest.fixture
def make_runner() -> Iterator[MakeRunner]:
    """Starts runners in this process and frees their consoles after the test."""
    runners: list[AtariEnvRunner] = []

    def make(*args: Any, worker_index: int = 0, **settings: Any) -> AtariEnvRunner:
        config = make_config(*args, **settings)
        runners.append(AtariEnvRunner(config=config, worker_index=worker_index, num_workers=0))
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


def record_obs(runner: AtariEnvRunner) -> list[np.ndarray]:
    """Writes down the states `[N, 4, H, W]` on which the actions are taken."""
    seen: list[np.ndarray] = []
    send = runner.env.send

    def recorded(actions: np.ndarray) -> None:
        seen.append(runner.env.obs.copy())
        send(actions)

    runner.env.send = recorded
    return seen


def prefer(runner: AtariEnvRunner, action: int) -> None:
    """Sets weights with which this action is always the greedy one."""
    state = {k: np.zeros_like(v) for k, v in runner.module.get_state().items()}
    bias = next(k for k in state if k.startswith("net.heads.q.advantage") and k.endswith("bias"))
    state[bias][action] = 1
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: state}})


def same(first: Rollout, second: Rollout) -> bool:
    """Whether two rollouts hold the same steps, games and lives."""
    pairs = zip(first.fragment, second.fragment, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs) and first[2:] == second[2:]


def test_rollout_holds_steps_of_all_games_with_their_dtypes(make_runner: MakeRunner) -> None:
    rollout = make_runner().sample()
    assert rollout.worker_index == 0
    assert (rollout.epsilon, rollout.games, rollout.lives) == (1.0, [], [])
    got = {
        name: (array.shape, array.dtype)
        for name, array in zip(Fragment._fields, rollout.fragment, strict=True)
    }
    row = (STEPS, GAMES)
    expected: dict[str, Any] = {
        "frames": ((*row, SIZE, SIZE), np.uint8),
        "actions": (row, np.int64),
        "rewards": (row, np.float32),
    }
    for name in ("terminated", "truncated", "life_lost", "reset", "valid"):
        expected[name] = (row, np.bool_)
    assert got == expected
    assert rollout.fragment.valid.all()
    assert rollout.fragment.reset[0].all()
    assert not rollout.fragment.reset[1:].any()


def test_number_of_steps_is_the_fragment_length_unless_asked_for(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert runner.sample().fragment.actions.shape == (STEPS, GAMES)
    assert runner.sample(num_steps=3).fragment.actions.shape == (3, GAMES)
    assert runner.num_env_steps_sampled_lifetime == (STEPS + 3) * GAMES


def test_fragments_are_contiguous_in_time(make_runner: MakeRunner) -> None:
    parts, whole = make_runner(), make_runner()
    seen = record_obs(parts)
    fragments = [parts.sample().fragment for _ in range(3)]
    at_once = whole.sample(num_steps=3 * STEPS).fragment
    for name, column in zip(Fragment._fields, zip(*fragments, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(column), getattr(at_once, name), name)
    np.testing.assert_array_equal(at_once.frames, np.stack(seen)[:, :, -1])


def test_epsilon_one_draws_uniformly_and_never_asks_the_network(make_runner: MakeRunner) -> None:
    runner = make_runner(games=8, epsilon=RANDOM)
    runner._params = {}  # a forward pass would use the module's own; so forbid it altogether
    runner.module.net.call_with = None
    actions = runner.sample(num_steps=45).fragment.actions
    counts = np.bincount(actions.ravel(), minlength=6)
    assert len(counts) == 6
    assert np.abs(counts - 60).max() < 5 * np.sqrt(360 * 1 / 6 * 5 / 6)  # 5 sigma
    assert (actions != actions[:, :1]).any()  # games do not share their draws


def test_compiled_choice_of_actions_is_the_plain_one_and_follows_the_weights(
    make_runner: MakeRunner,
) -> None:
    compiled, plain = (make_runner(epsilon=GREEDY, compiled=on) for on in (True, False))
    for seed in range(2):  # new weights land where the graph reads them
        torch.manual_seed(seed)
        net = copy.deepcopy(plain.module.net)
        for param in net.parameters():
            torch.nn.init.normal_(param, std=0.1)
        choices = []
        for runner in (compiled, plain):
            runner.take_weights(net)
            choices.append(runner.sample().fragment.actions)
        np.testing.assert_array_equal(choices[0], choices[1])
    assert not compiled._greedy.refused


@pytest.mark.parametrize(
    ("device", "asked", "threads"),
    [("cpu", {}, 1), ("cuda", {}, 3), ("cuda", {"num_threads": 2}, 2)],
)
def test_consoles_take_the_threads_that_a_learner_on_a_gpu_leaves_free(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, device: str,
    asked: dict[str, int], threads: int,
) -> None:  # fmt: skip
    runner = make_runner(**asked)
    started: list[AtariSettings] = []

    def start(settings: AtariSettings, seed: int) -> Any:
        started.append(settings)
        return runner.env

    monkeypatch.setattr(env_runner, "AtariStream", start)
    runner.config.learner_threads = 3
    runner._device = torch.device(device)
    monkeypatch.setattr(runner.env, "close", lambda: None)
    runner.make_env()
    assert [settings.num_threads for settings in started] == [threads]


def test_games_do_not_depend_on_the_number_of_threads(make_runner: MakeRunner) -> None:
    one, three = make_runner(num_threads=1), make_runner(num_threads=3)
    for _ in range(3):
        assert same(one.sample(), three.sample())


def test_epsilon_zero_acts_greedily_by_the_module(make_runner: MakeRunner) -> None:
    runner, elsewhere = make_runner(epsilon=GREEDY), make_runner(epsilon=RANDOM)
    seen, states = record_obs(runner), record_obs(elsewhere)
    elsewhere.sample(num_steps=30)
    with torch.no_grad():  # no action better than another on average, so that states decide
        net = runner.module.net
        q = net(torch.from_numpy(np.concatenate(states)), "q")
        net.heads["q"].advantage[-1].bias -= q.mean(dim=0)
    runner.set_state({COMPONENT_RL_MODULE: runner.module.get_state()})
    actions = runner.sample(num_steps=30).fragment.actions
    with torch.no_grad():
        for obs, acted in zip(seen, actions, strict=True):
            out = runner.module.forward_inference({Columns.OBS: torch.from_numpy(obs)})
            np.testing.assert_array_equal(out["qf_preds"].argmax(dim=1).numpy(), acted)
            np.testing.assert_array_equal(out[Columns.ACTIONS].numpy(), acted)
    assert len(np.unique(actions)) > 1


def test_weights_taken_from_a_learner_act_at_once(make_runner: MakeRunner) -> None:
    runner = make_runner(task="none")
    net = copy.deepcopy(runner.module.net)
    obs = torch.randint(0, 256, (GAMES, 4, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        expected = net(obs, "q").argmax(dim=1)
    runner.take_weights(net)
    assert torch.equal(runner._best_actions(obs)[0], expected)
    assert all(
        torch.equal(mine, net.state_dict()[name])
        for name, mine in runner.module.net.state_dict().items()
    )


def test_share_of_random_actions_is_epsilon(make_runner: MakeRunner) -> None:
    runner = make_runner(games=8, epsilon=(0.3, 0.3, 1))
    prefer(runner, 2)
    share = (runner.sample(num_steps=45).fragment.actions == 2).mean()
    expected = 0.7 + 0.3 / 6
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 360)


def test_epsilon_follows_the_steps_of_the_whole_run(make_runner: MakeRunner) -> None:
    runner = make_runner(epsilon=(1.0, 0.0, 100))
    # The last of 5 steps starts when 50 + 4 * 2 agent steps are done.
    assert runner.sample(env_steps=50).epsilon == pytest.approx(1 - 58 / 100)
    prefer(runner, 3)
    assert (runner.sample(env_steps=100).fragment.actions == 3).all()


def test_overlap_is_called_once_a_step_while_the_consoles_run(make_runner: MakeRunner) -> None:
    runner = make_runner()
    calls: list[int] = []

    def overlap(steps: int) -> None:
        assert runner.env._pending is not None  # sent, not yet received
        calls.append(steps)

    runner.sample(overlap=overlap)
    assert calls == [2, 4, 6, 8, 10]


def test_weights_set_during_a_step_act_from_the_next_one(make_runner: MakeRunner) -> None:
    runner = make_runner(epsilon=GREEDY)
    prefer(runner, 1)
    actions = runner.sample(overlap=lambda steps: prefer(runner, 4)).fragment.actions
    assert actions.tolist() == [[1, 1]] + [[4, 4]] * 4


def test_weights_come_with_a_request_only_if_they_are_newer(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, other = make_runner(epsilon=GREEDY), make_runner(epsilon=GREEDY)
    monkeypatch.setattr(ray, "get", lambda ref: ref)

    def state_that_prefers(action: int) -> dict[str, Any]:
        prefer(other, action)
        return {DEFAULT_MODULE_ID: pickle.loads(pickle.dumps(other.module.get_state()))}

    for version, action, acted in [(1, 3, 3), (1, 5, 3), (0, 5, 3), (2, 5, 5)]:
        weights = [state_that_prefers(action)]
        actions = runner.sample(weights=weights, weights_version=version).fragment.actions
        assert (actions == acted).all()


@pytest.mark.parametrize("max_game_frames", [108_000, 60])
def test_restored_runner_goes_on_bit_for_bit(make_runner: MakeRunner, max_game_frames: int) -> None:
    settings = {"epsilon": (0.5, 0.5, 1), "max_game_frames": max_game_frames}
    runner, restored = make_runner("breakout", **settings), make_runner("breakout", **settings)
    for _ in range(4):
        runner.sample()
    restored.sample()  # something to overwrite
    restored.set_state(pickle.loads(pickle.dumps(runner.get_state())))
    assert restored.num_env_steps_sampled_lifetime == 4 * STEPS * GAMES
    for _ in range(4):
        assert same(runner.sample(), restored.sample())


def test_state_leaves_the_module_out_on_request(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert COMPONENT_RL_MODULE in runner.get_state()
    assert COMPONENT_RL_MODULE not in runner.get_state(not_components=COMPONENT_RL_MODULE)


def test_runner_restored_from_files_acts_with_the_saved_weights(
    make_runner: MakeRunner, tmp_path: Any
) -> None:
    runner, restored = make_runner(epsilon=GREEDY), make_runner(epsilon=GREEDY)
    prefer(runner, 5)
    prefer(restored, 1)
    runner.sample()
    restored.restore_from_path(runner.save_to_path(tmp_path))
    first, second = runner.sample(), restored.sample()
    assert (second.fragment.actions == 5).all()
    assert same(first, second)


def test_same_seed_plays_the_same_games_and_another_seed_others(make_runner: MakeRunner) -> None:
    first, second, third = (make_runner(seed=seed).sample(num_steps=10) for seed in (7, 7, 8))
    assert same(first, second)
    assert not np.array_equal(first.fragment.actions, third.fragment.actions)
    assert not np.array_equal(first.fragment.frames, third.fragment.frames)


def test_runners_and_their_replacements_play_games_of_their_own(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(worker_index: int, reconstructed: bool = False) -> Rollout:
        context = SimpleNamespace(was_current_actor_reconstructed=reconstructed)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        return make_runner(worker_index=worker_index).sample(num_steps=20)

    first = play(1)
    assert first.worker_index == 1
    assert same(first, play(1))
    for other in (play(2), play(1, reconstructed=True)):
        assert not np.array_equal(first.fragment.frames, other.fragment.frames)


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_replay_rebuilds_the_states_that_the_runner_saw(make_runner: MakeRunner, game: str) -> None:
    runner = make_runner(game, max_game_frames=100)  # games of 25 steps: several resets
    seen = record_obs(runner)
    replay = FrameReplay(
        60 * GAMES, num_lanes=GAMES, frame_shape=(SIZE, SIZE), n_step=1, gamma=0.5, seed=0
    )
    rollouts = [runner.sample() for _ in range(12)]
    for rollout in rollouts:
        replay.add(rollout.fragment)
    indices = replay.sampleable_indices()
    batch = replay.gather(indices)
    rows, lanes = indices // GAMES, indices % GAMES
    states = np.stack(seen)  # [60, N, 4, H, W]
    np.testing.assert_array_equal(batch.obs, states[rows, lanes])
    goes_on = batch.discounts > 0
    assert goes_on.sum() > 90
    np.testing.assert_array_equal(
        batch.next_obs[goes_on], states[rows[goes_on] + 1, lanes[goes_on]]
    )
    actions = np.concatenate([rollout.fragment.actions for rollout in rollouts])
    np.testing.assert_array_equal(batch.actions, actions[rows, lanes])
    ended = [game for rollout in rollouts for game in rollout.games]
    assert len(ended) >= 2 * GAMES
    assert all(entry.truncated for entry in ended)


@pytest.mark.parametrize("task", ["permutation", "curl", "inverse+spr"])
def test_acting_module_has_neither_aux_head_nor_target(make_runner: MakeRunner, task: str) -> None:
    runner = make_runner(task=task)
    assert list(runner.module.net.heads) == ["q"]
    assert not hasattr(runner.module, "target")
    assert not hasattr(runner.module, "followers")
    spec = runner.config.get_rl_module_spec(spaces=runner.get_spaces())
    learning = spec.build()
    assert list(learning.net.heads) == ["q", "aux"]
    assert list(learning.target.heads) == ["q"]
    sent = learning.get_state(inference_only=True)
    assert sent.keys() == runner.module.get_state().keys()
    runner.set_state({COMPONENT_RL_MODULE: sent})
    for name, value in runner._params.items():
        np.testing.assert_array_equal(value.numpy(), sent[f"net.{name}"])


def test_process_whose_runners_are_elsewhere_plays_no_games(make_runner: MakeRunner) -> None:
    runner = make_runner(runners=2)
    assert runner.env is None
    assert runner.get_state().keys().isdisjoint({"stream"})
    runner.stop()


@pytest.mark.parametrize(("game", "actions"), [("pong", 6), ("breakout", 4)])
def test_spaces_are_those_of_the_game(make_runner: MakeRunner, game: str, actions: int) -> None:
    obs, action = make_runner(game).get_spaces()[DEFAULT_MODULE_ID]
    assert obs.shape == (4, SIZE, SIZE)
    assert action.n == actions  # type: ignore[attr-defined]
