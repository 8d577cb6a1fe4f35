"""Evaluation: whole unclipped games, shares fixed beforehand, agents read without unpickling."""

import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from experiments import evaluate
from rayssl.envs.atari import AtariSettings, AtariStream, LifeEpisode, action_set
from rayssl.evaluation import (
    END_HOLD_FRAMES,
    TABLE_IV_NOTE,
    Agent,
    ColourTwin,
    _Actor,
    _times,
    aux_weight_of,
    check_play,
    export_agent,
    games_per_env,
    load_agent,
    play_games,
    record_game,
    score_row,
    score_table,
)
from rayssl.networks import make_atari_network
from rayssl.tasks import make_task

ROOT = Path(__file__).parent.parent


class ScriptedConsole:
    """Games of fixed lengths with 5 lives; each step gives 4 points, or 4 x action if asked.

    After a game's end the next step resets and ignores its action, as AtariVectorEnv does.
    """

    def __init__(self, lengths: list[int], pay_action: bool = False) -> None:
        self.lengths = np.array(lengths)
        self.pay_action = pay_action
        self.single_action_space = types.SimpleNamespace(n=4)  # Breakout's
        self.time = np.zeros(len(lengths), int)
        self.over = np.zeros(len(lengths), bool)

    def reset(
        self, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        mask = options["reset_mask"] if options else np.ones(len(self.time), bool)
        self.time[mask], self.over[mask] = 0, False
        return self._obs(), {"lives": self._lives()}

    def send(self, actions: np.ndarray) -> None:
        self.actions = actions

    def recv(self) -> tuple[np.ndarray, ...]:
        resets = self.over.copy()
        self.time = np.where(resets, 0, self.time + 1)
        self.over = ~resets & (self.time >= self.lengths)
        rewards = np.where(resets, 0, 4 * self.actions if self.pay_action else 4)
        info: Any = {"lives": self._lives()}
        return self._obs(), rewards, self.over, np.zeros_like(self.over), info

    def close(self) -> None:
        self.closed = True

    def _lives(self) -> np.ndarray:
        return 5 - np.minimum(5, 5 * self.time // self.lengths)

    def _obs(self) -> np.ndarray:
        return np.zeros((len(self.time), 4, 84, 84), np.uint8)


def scripted(num_envs: int) -> AtariSettings:
    return AtariSettings(game="breakout", num_envs=num_envs)


def save_agent(
    folder: Path, game: str = "pong", aux_task: str | None = "permutation",
    network: str = "paper-code",
) -> Path:  # fmt: skip
    """Writes the two files of a checkpoint that evaluation reads, and decoys that it must not."""
    folder.mkdir(parents=True)
    net = make_atari_network(
        network,
        num_actions=len(action_set(game)),
        aux_task=aux_task,
    )
    torch.save(net.state_dict(), folder / "model.pt")
    settings = {
        "game": game, "network": network, "aux_task": aux_task, "stack": 4, "frame_size": 84,
        "frame_skip": 4, "fire_at_start": True, "noop_max": 30, "env_steps": 1000, "seed": 0,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(settings))
    (folder / "algorithm_state.pkl").write_bytes(b"no pickle")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_agent(tmp_path_factory.mktemp("run") / "checkpoint_000001")


def test_score_is_of_the_whole_game_and_unclipped() -> None:
    console = ScriptedConsole([10])
    games = play_games(None, scripted(1), episodes=2, env=console)
    # 5 lives of 2 steps, 4 points each: 40. Per life it were 8, clipped 10, both 2.
    assert [(game.score, game.length) for game in games] == [(40.0, 10), (40.0, 10)]
    assert console.closed


def test_share_of_each_env_is_fixed_before_the_start_and_favours_no_short_games() -> None:
    seen: list[float] = []
    games = play_games(
        None,
        scripted(2),
        episodes=4,
        env=ScriptedConsole([5, 50]),
        on_game=lambda g: seen.append(g.score),
    )
    assert [game.env for game in games] == [0, 0, 1, 1]
    assert np.mean([game.score for game in games]) == 110  # the first four to finish: 20 each
    assert seen == [20, 20, 200, 200]


@pytest.mark.parametrize(
    ("episodes", "num_envs", "shares"), [(100, 16, [7] * 4 + [6] * 12), (2, 3, [1, 1, 0])]
)
def test_shares_are_as_even_as_can_be(episodes: int, num_envs: int, shares: list[int]) -> None:
    assert games_per_env(episodes, num_envs).tolist() == shares


def test_same_seed_gives_same_scores_and_another_seed_others() -> None:
    def scores(seed: int) -> list[float]:
        console = ScriptedConsole([20, 30], pay_action=True)
        games = play_games(None, scripted(2), episodes=4, seed=seed, env=console)
        return [game.score for game in games]

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)
    assert len(set(scores(1))) > 1  # envs and games have randomness of their own


def test_luck_of_one_env_does_not_depend_on_the_others() -> None:
    def first(lengths: list[int]) -> float:
        console = ScriptedConsole(lengths, pay_action=True)
        settings = scripted(len(lengths))
        return play_games(None, settings, episodes=len(lengths), env=console)[0].score

    assert first([20]) == first([20, 3, 40])


def test_values_of_one_env_are_the_same_whichever_others_still_play(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = load_agent(ROOT / "results/checkpoints/strict-breakout-permutation-s0")
    values, seen = Agent.q_values, []

    def q_values(self: Agent, obs: np.ndarray) -> np.ndarray:
        seen.append(values(self, obs))
        return seen[-1]

    monkeypatch.setattr(Agent, "q_values", q_values)
    obs = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84)).astype(np.uint8)
    actor = _Actor(agent, agent.atari_settings(num_envs=16), epsilon=0.0, seed=0)
    for still in (16, 3, 1):
        actor.actions(obs, np.arange(16) < still)
    assert all(np.array_equal(found[0], seen[0][0]) for found in seen)


def test_agent_acts_greedily_but_for_epsilon(tmp_path: Path) -> None:
    agent = load_agent(save_agent(tmp_path / "agent", game="breakout"))
    best = int(agent.q_values(np.zeros((1, 4, 84, 84), np.uint8)).argmax())
    greedy = play_games(
        agent, scripted(1), episodes=1, epsilon=0.0, env=ScriptedConsole([40], pay_action=True)
    )
    # FIRE (action 1) after each of the first four lost lives, whatever the agent wants
    assert greedy[0].score == 4 * (36 * best + 4)
    random = play_games(
        agent, scripted(1), episodes=1, epsilon=1.0, env=ScriptedConsole([40], pay_action=True)
    )
    nobody = play_games(
        None, scripted(1), episodes=1, epsilon=0.0, env=ScriptedConsole([40], pay_action=True)
    )
    assert random == nobody != greedy


def test_random_agent_plays_real_pong_and_says_that_games_were_cut() -> None:
    settings = AtariSettings(game="pong", num_envs=16, max_game_frames=300)
    games = play_games(None, settings, episodes=2)
    assert [(game.env, game.truncated) for game in games] == [(0, True), (1, True)]
    assert all(0 < game.length <= 75 for game in games)
    assert play_games(None, settings, episodes=2) == games


def test_loaded_agent_gives_the_q_values_of_the_saved_network(checkpoint: Path) -> None:
    agent = load_agent(checkpoint)
    network = make_atari_network("paper-code", num_actions=6, aux_classes=4)
    network.load_state_dict(torch.load(checkpoint / "model.pt", weights_only=True))
    obs = np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8)
    values = agent.q_values(obs)
    np.testing.assert_array_equal(values, network(torch.from_numpy(obs), "q").detach().numpy())
    assert values.shape == (3, 6)
    assert values.dtype == np.float32
    assert agent.name == "paper-code, permutation, 1000 steps"


def test_aux_guess_is_the_heads_softmax_on_the_tasks_own_draw(checkpoint: Path) -> None:
    agent = load_agent(checkpoint)
    obs = np.random.default_rng(0).integers(0, 256, (4, 84, 84), dtype=np.uint8)
    guess = agent.aux_guess(obs, generator=torch.Generator().manual_seed(3))
    x_hat, label = make_task("permutation")(
        torch.from_numpy(obs)[None], generator=torch.Generator().manual_seed(3)
    )
    assert guess is not None
    assert guess.usable
    assert guess.label == int(label)
    np.testing.assert_array_equal(guess.x_hat, x_hat[0])
    assert guess.probabilities.shape == (4,)
    assert guess.probabilities.sum() == pytest.approx(1)


def test_agent_without_aux_head_guesses_nothing(tmp_path: Path) -> None:
    agent = load_agent(save_agent(tmp_path / "agent", aux_task=None))
    obs = np.zeros((4, 84, 84), np.uint8)
    assert agent.aux_guess(obs, generator=torch.Generator()) is None
    assert agent.name == "paper-code, no aux task, 1000 steps"


@pytest.mark.parametrize("task", ["curl", "inverse+spr"])
def test_agent_whose_heads_give_no_labels_guesses_nothing(tmp_path: Path, task: str) -> None:
    agent = load_agent(save_agent(tmp_path / "agent", aux_task=task))
    obs = np.ones((4, 84, 84), np.uint8)
    assert agent.task is None
    assert agent.aux_guess(obs, generator=torch.Generator()) is None
    assert agent.name == f"paper-code, {task}, 1000 steps"
    assert agent.q_values(obs[None]).shape == (1, 6)


def test_guess_of_a_combination_is_that_of_its_first_pretext_task(tmp_path: Path) -> None:
    agent = load_agent(save_agent(tmp_path / "agent", aux_task="inverse+rotation+permutation-6"))
    assert agent.task == make_task("rotation")
    obs = np.random.default_rng(0).integers(0, 256, (4, 84, 84), dtype=np.uint8)
    guess = agent.aux_guess(obs, generator=torch.Generator().manual_seed(3))
    assert guess is not None
    logits = agent.network(torch.from_numpy(guess.x_hat)[None], "aux/rotation")
    np.testing.assert_allclose(guess.probabilities, logits.softmax(1)[0].detach(), rtol=1e-5)


def test_agent_names_its_aux_weight_unless_it_is_the_papers(tmp_path: Path) -> None:
    folder = save_agent(tmp_path / "agent", aux_task="permutation")
    settings = json.loads((folder / "model.json").read_text())
    for weight, words in ((0.1, "permutation of weight 0.1"), (1.0, "permutation")):
        (folder / "model.json").write_text(json.dumps({**settings, "aux_weight": weight}))
        agent = load_agent(folder)
        assert agent.name == f"{agent.settings['network']}, {words}, 1000 steps"
        assert aux_weight_of(export_agent(folder, tmp_path / str(weight)).settings) == weight
    assert aux_weight_of(settings) is None
    assert aux_weight_of({**settings, "aux_task": None}) == 0


def test_agent_whose_q_values_were_never_trained_is_called_aux_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_agent(tmp_path / "agent")
    settings = json.loads((folder / "model.json").read_text())
    warning = "Its Q-values were never trained (aux-only): it plays by those of random weights.\n"
    for td, aux, only in ((0, 9, ", aux-only"), (9, 9, ""), (0, 0, "")):
        counts = {"td_updates": td, "aux_updates": aux}
        (folder / "model.json").write_text(json.dumps(settings | counts))
        (row,) = evaluate.main([str(folder), "--smoke"])["rows"]
        assert row["agent"] == f"paper-code, permutation{only}, 1000 steps"
        assert (warning in capsys.readouterr().out) == bool(only)


def test_run_folder_gives_the_checkpoint_with_the_most_steps(tmp_path: Path) -> None:
    for name, steps in {"a": 900, "b": 10_000, "c": 2_000}.items():
        folder = save_agent(tmp_path / "run" / name)
        settings = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**settings, "env_steps": steps}))
    torn = save_agent(tmp_path / "run" / "d")
    (torn / "model.json").write_text('{"env_steps": 99')
    assert load_agent(tmp_path / "run").checkpoint == tmp_path / "run" / "b"


class Poison:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    folder = save_agent(tmp_path / "agent")
    torch.save({"backbone.convs.0.weight": Poison(tmp_path / "owned")}, folder / "model.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_agent(folder)
    assert not (tmp_path / "owned").exists()


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = torch.load(folder / "model.pt", weights_only=True)
    change(weights)
    torch.save(weights, folder / "model.pt")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.pop("heads.aux.logits.0.weight"), "missing heads.aux.logits.0.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown extra. Take both"),
        (
            lambda w: w.update({"heads.q.value.2.bias": torch.zeros(3)}),
            r"heads.q.value.2.bias has shape \(3,\), expected \(1,\)",
        ),
        (lambda w: w.update(extra="words"), "hold name -> tensor"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(
    change: Callable[[dict[str, Any]], object], text: str, tmp_path: Path
) -> None:
    folder = save_agent(tmp_path / "agent")
    change_weights(folder, change)
    with pytest.raises(ValueError, match=text):
        load_agent(folder)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda f: (f / "model.pt").unlink(), FileNotFoundError, "Weights missing: .*model.pt"),
        (lambda f: (f / "model.json").unlink(), FileNotFoundError, "Model settings missing"),
        (lambda f: (f / "model.json").write_text("{"), ValueError, "not readable JSON"),
        (lambda f: (f / "model.json").write_text("[]"), ValueError, "missing or of a wrong type"),
        (lambda f: (f / "model.pt").write_bytes(b"PK"), ValueError, "model.pt"),
        (
            lambda f: (f / "model.pt").write_bytes((f / "model.pt").read_bytes()[:5000]),
            ValueError,
            "model.pt cannot be read",
        ),
    ],
)
def test_damaged_checkpoint_is_refused_with_the_files_name(
    damage: Callable[[Path], object], error: type[Exception], text: str, tmp_path: Path
) -> None:
    folder = save_agent(tmp_path / "agent")
    damage(folder)
    with pytest.raises(error, match=text):
        load_agent(folder)


def test_frame_size_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    folder = save_agent(tmp_path / "agent")
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**settings, "frame_size": 100_000}))
    with pytest.raises(ValueError, match="frame_size must be 210 or less"):
        load_agent(folder)


@pytest.mark.parametrize(
    ("network", "how", "tolerance"),
    [
        ("nature", "float32", 0.0),
        ("paper-code", "float16, without the aux head", 0.01),
    ],
)
def test_exported_agent_is_below_10_mb_and_plays_as_its_checkpoint(
    network: str, how: str, tolerance: float, tmp_path: Path
) -> None:
    checkpoint = save_agent(tmp_path / "run", network=network)
    exported = export_agent(checkpoint, tmp_path / "small")
    assert exported.checkpoint == tmp_path / "small"
    assert exported.settings["exported"] == how
    assert exported.name == f"{network}, permutation, 1000 steps"  # whatever heads are left
    files = {path.name: path.stat().st_size for path in (tmp_path / "small").iterdir()}
    assert sorted(files) == ["model.json", "model.safetensors"]
    assert sum(files.values()) < 10_000_000
    state = np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8)
    expected = load_agent(checkpoint).q_values(state)
    assert np.abs(exported.q_values(state) - expected).max() <= tolerance


def test_damaged_export_is_refused_with_the_files_name(checkpoint: Path, tmp_path: Path) -> None:
    export_agent(checkpoint, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as weights"):
        load_agent(tmp_path)


def test_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No checkpoint in or below"):
        load_agent(tmp_path)
    with pytest.raises(FileNotFoundError, match="No checkpoint folder at"):
        load_agent(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"episodes": 0}, "episodes must be 1 or more, got 0"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"episodes": 1, "epsilon": 0.0, "seed": 0}
    check_play(None, AtariSettings(), **good)
    with pytest.raises(ValueError, match=text):
        check_play(None, AtariSettings(), **{**good, **changes})


def test_colour_twin_shows_the_tick_of_the_newest_grey_frame() -> None:
    settings = AtariSettings(game="pong", num_envs=1, max_game_frames=120)
    consoles = ColourTwin(settings)
    stream = AtariStream(settings, 0, consoles)
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(70):  # over the end of two games: 30 steps each at most
        grey = Image.fromarray(consoles.screens[0]).convert("L")
        small = np.asarray(grey.resize((84, 84), Image.Resampling.BOX), int)
        differences.append(np.abs(small - stream.obs[0]).mean((1, 2)))  # [4], oldest frame first
        stream.step(generator.integers(6, size=1))
    stream.close()
    newest, before = np.max(differences, 0)[3], np.mean(differences, 0)[2]
    assert newest < 0.75 < before  # of 255; what is left is the way of resizing


def test_colour_twin_that_leaves_the_game_is_caught() -> None:
    settings = AtariSettings(game="pong", num_envs=1, max_game_frames=120)
    consoles = ColourTwin(settings)
    stream = AtariStream(settings, 0, consoles)
    consoles._twin.reset(seed=np.array([1]))  # another game: it ends at another step, or scores
    consoles._twin.step(np.array([0]))

    def play_on() -> None:
        for _ in range(40):
            stream.step(np.array([0]))

    with pytest.raises(RuntimeError, match="colour console left the game"):
        play_on()
    stream.close()


def test_recorded_game_is_the_first_of_env_0_and_has_a_frame_a_step(
    checkpoint: Path, tmp_path: Path
) -> None:
    agent = load_agent(checkpoint)
    settings = agent.atari_settings(max_game_frames=200, num_envs=2)
    game = record_game(agent, tmp_path / "a.mp4", settings, epsilon=0.3, seed=5)
    assert game == play_games(agent, settings, episodes=2, epsilon=0.3, seed=5)[0]
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 15
    assert frames == [(960, 630)] * (game.length + END_HOLD_FRAMES)


def test_captions_tell_which_frame_is_shown_where_and_nothing_for_other_pictures() -> None:
    state = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert _times(state, state[[1, 3, 0, 2]]) == ["t-2", "t", "t-3", "t-1"]
    assert _times(state, state + 9) == ["", "", "", ""]


def test_table_shows_ours_beside_table_iv_and_warns_of_its_breakout_numbers() -> None:
    games = play_games(None, scripted(2), episodes=4, env=ScriptedConsole([5, 50]))
    table = score_table([score_row(None, "breakout", games)])
    assert "| random | Breakout | 4 | 110.00 | 103.92 | 20.00 | 200.00 | 110.00 |" in table
    assert "| Rotation (Table IV) | Breakout |  | 7.60 |" in table
    assert table.endswith(TABLE_IV_NOTE)
    assert "Table IV" not in score_table([score_row(None, "seaquest", games)])


def test_lives_are_those_of_the_games_that_count_and_their_rewards_are_clipped() -> None:
    lives: list[LifeEpisode] = []
    games = play_games(
        None, scripted(2), episodes=3, env=ScriptedConsole([5, 50]), on_life=lives.append
    )
    assert sorted(game.score for game in games) == [20, 20, 200]  # 4 points a step
    assert len(lives) == 15
    row = score_row(None, "breakout", games, lives)
    assert row["lives"] == {"num": 15, "clipped_mean": (5 + 5 + 50) / 15}  # 1 point a step


def test_one_game_has_no_spread_and_stays_valid_json() -> None:
    games = play_games(None, scripted(1), episodes=1, env=ScriptedConsole([5]))
    row = score_row(None, "breakout", games)
    assert row["summary"]["std"] is None
    assert "NaN" not in json.dumps(row)
    assert "| 20.00 | - | 20.00 | 20.00 | 20.00 | - to - |" in score_table([row])


def test_script_plays_random_games_and_saves_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "random.json"
    words = ["random", "--game=Pong", "--episodes=3", "--num-envs=2", "--max-game-frames=200"]
    results = evaluate.main([*words, "--json", str(path)])
    saved = json.loads(path.read_text())
    assert saved == results
    assert len(saved["rows"][0]["scores"]) == 3
    assert saved["rows"][0]["cut_games"] == 3
    assert saved["settings"]["episodes"] == 3
    assert saved["command"][1:] == [*words, "--json", str(path)]
    assert "| random | Pong | 3 |" in capsys.readouterr().out


def test_kill_while_results_are_written_leaves_the_old_ones(
    tmp_path: Path, killed_write: Callable[[], None]
) -> None:
    (tmp_path / "random.json").write_text("old")
    killed_write()
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([
            "random", "--game", "pong", "--smoke", "--json", str(tmp_path / "random.json"),
        ])  # fmt: skip
    assert (tmp_path / "random.json").read_text() == "old"


def test_script_writes_beside_the_checkpoint_never_into_it(tmp_path: Path) -> None:
    folder = save_agent(tmp_path / "run" / "checkpoint_000001")
    before = sorted(folder.iterdir())
    video = tmp_path / "a.mp4"
    words = [str(tmp_path / "run"), "--smoke", "--random", "--video", str(video)]
    results = evaluate.main(words)
    assert sorted(folder.iterdir()) == before
    assert [row["agent"] for row in results["rows"]] == [
        "paper-code, permutation, 1000 steps", "random",
    ]  # fmt: skip
    saved = json.loads((tmp_path / "run" / "checkpoint_000001-evaluation.json").read_text())
    assert saved == results
    assert saved["model"]["env_steps"] == 1000
    assert video.stat().st_size > 1000


def test_smoke_run_does_not_replace_an_evaluation_that_is_there(tmp_path: Path) -> None:
    save_agent(tmp_path / "checkpoint_000001")
    whole = tmp_path / "checkpoint_000001-evaluation.json"
    whole.write_text("100 whole games")
    evaluate.main([str(tmp_path), "--smoke"])
    assert whole.read_text() == "100 whole games"
    assert (tmp_path / "checkpoint_000001-smoke-evaluation.json").is_file()


@pytest.mark.parametrize(
    "words",
    ["--episodes 1 --video {tmp}/a.mp4", "--epsilon 0.5", "--seed 1", "--max-game-frames 60", ""],
)
def test_evaluation_that_says_more_is_not_replaced_unless_asked(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_agent(tmp_path / "agent")
    usual = [str(tmp_path / "agent"), "--episodes=2", "--num-envs=2", "--max-game-frames=80"]
    path = tmp_path / "agent-evaluation.json"
    evaluate.main([*usual, "--random"])
    whole = path.read_bytes()
    again = [*usual, *(words or "--no-random").format(tmp=tmp_path).split()]
    again += ["--random"] if words else []
    capsys.readouterr()
    evaluate.main(again)
    assert path.read_bytes() == whole
    out = capsys.readouterr().out
    assert out.startswith(f"Not replaced: {path}, an evaluation of more games or of other settings")
    assert "| agent | game |" in out
    assert (tmp_path / "a.mp4").exists() == ("video" in words)
    assert evaluate.main([*again, "--json", str(path)]) == json.loads(path.read_text())


def test_evaluation_is_replaced_by_as_many_equal_games_and_by_another_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_agent(tmp_path / "agent")
    path = tmp_path / "agent-evaluation.json"
    words = [str(folder), "--num-envs=2", "--max-game-frames=80"]
    evaluate.main([str(folder), "--smoke"])
    for episodes in (2, 2, 3):  # whole games in the place of a smoke run's, as many, more of them
        capsys.readouterr()
        evaluate.main([*words, f"--episodes={episodes}"])
        assert f"Results: {path}" in capsys.readouterr().out
        assert len(json.loads(path.read_text())["rows"][0]["scores"]) == episodes
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(settings | {"env_steps": 2000}))
    evaluate.main([*words, "--episodes=1", "--epsilon=0.5"])
    assert json.loads(path.read_text())["model"]["env_steps"] == 2000


@pytest.mark.parametrize(
    ("trained", "words", "played", "line"),
    [
        (0.25, [], 0.25, "Sticky actions: 0.25, as in training"),
        (0.25, ["--sticky", "0"], 0.0, "Sticky actions: 0; trained 0.25"),
        (0.0, ["--sticky", "0.1"], 0.1, "Sticky actions: 0.1; trained 0"),
        (None, [], 0.0, "Sticky actions: 0; of its training the checkpoint does not say"),
    ],
)
def test_agent_is_evaluated_as_sticky_as_it_was_trained_unless_told_otherwise(
    trained: float | None, words: list[str], played: float, line: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = save_agent(tmp_path / "agent", network="nature")
    settings = json.loads((folder / "model.json").read_text())
    settings |= {} if trained is None else {"sticky": trained}
    (folder / "model.json").write_text(json.dumps(settings))
    exported = export_agent(folder, tmp_path / "exported").checkpoint
    results = evaluate.main([str(exported), "--smoke", *words])
    assert results["games"]["sticky"] == played
    assert line in capsys.readouterr().out.splitlines()
    assert results["rows"][0]["agent"].endswith(", trained with sticky 0.25") == (trained == 0.25)


def test_random_agent_plays_without_sticky_actions_unless_told_otherwise(tmp_path: Path) -> None:
    words = ["random", "--game", "pong", "--smoke", "--json", str(tmp_path / "random.json")]
    assert evaluate.main(words)["games"]["sticky"] == 0
    assert evaluate.main([*words, "--sticky", "0.25"])["games"]["sticky"] == 0.25


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("random", "The random agent needs a game"),
        ("random --game pongg", "Unknown Atari game 'pongg'. Did you mean pong or"),
        ("random --game pong --episodes -3", "episodes must be 1 or more, got -3"),
        ("random --game pong --sticky 1", "sticky must be a probability in [0, 1), got 1.0"),
        ("random --game pong --num-envs 0", "num_envs must be a whole number in [1, 2**31), got 0"),
        ("random --game pong --video a.mp4", "`random` has none"),
        ("random --game pong --json {file}/a.json", "Cannot write"),
        ("{tmp}/nowhere", "No checkpoint folder at"),
        ("{agent} --game breakout", "The agent plays pong, got game breakout"),
        ("{agent} --video {tmp}/a.avi", "ending in .mp4"),
        ("{agent} --json {tmp}", "Cannot write"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2_before_any_game(
    words: str,
    text: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "play_games", lambda *_, **__: pytest.fail("played"))
    (tmp_path / "file").touch()
    filled = words.format(tmp=tmp_path, file=tmp_path / "file", agent=checkpoint)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(filled.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_agent_is_on_its_own_settings_unless_told_otherwise(checkpoint: Path) -> None:
    agent: Agent = load_agent(checkpoint)
    assert agent.atari_settings() == AtariSettings(game="pong")
    assert agent.atari_settings(sticky=0.25).sticky == 0.25
