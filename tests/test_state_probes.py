"""Probes of a game's state: scores by hand, games kept apart, and probe.py from end to end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score, r2_score

from experiments import probe
from rayssl.evaluation import load_agent
from rayssl.probing import GameSplit, fit_ridge, probe_state, r_squared, weighted_f1
from tests.toy_agents import save_agent

SPLIT = GameSplit(range(4), range(4, 6), range(6, 10))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def games_of(count: int = 10, states: int = 30) -> np.ndarray:
    return np.repeat(np.arange(count), states)


# Scores


def test_f1_is_the_one_of_scikit_learn_weighted_by_the_share_of_each_class(
    rng: np.random.Generator,
) -> None:
    true, guessed = rng.integers(0, 4, (2, 200))
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (true, guessed), 1)
    expected = f1_score(true, guessed, average="weighted")
    assert weighted_f1(confusion) == pytest.approx(expected)
    # Two states of class 0, one missed; one of class 1, found: 2/3 * 2/3 + 1/3 * 2/3.
    assert weighted_f1(np.array([[1, 1], [0, 1]])) == pytest.approx(2 / 3)


def test_r2_is_that_of_scikit_learn_from_sums_and_none_where_nothing_changes(
    rng: np.random.Generator,
) -> None:
    true = rng.integers(0, 100, 50).astype(float)
    guessed = true + rng.normal(size=50) * 9
    sums = np.array([50, true.sum(), (true**2).sum(), ((true - guessed) ** 2).sum()])
    assert r_squared(sums) == pytest.approx(r2_score(true, guessed))
    assert np.isnan(r_squared(np.array([3, 15, 75, 1])))  # 5, 5, 5


def test_ridge_is_that_of_scikit_learn_and_its_penalty_is_chosen_on_the_validation_set(
    rng: np.random.Generator,
) -> None:
    x = rng.normal(size=(40, 3)).astype(np.float32) * 5 + 2
    y = x @ [1.0, -2.0, 0.0] + 7 + rng.normal(size=40)
    found = fit_ridge((x[:30], y[:30]), (x[30:], y[30:]), penalties=(0.1,))
    mean, scale = x[:30].mean(0), x[:30].std(0)
    by_hand = Ridge(alpha=3.0).fit((x[:30] - mean) / scale, y[:30])
    assert found.predict(x) == pytest.approx(by_hand.predict((x - mean) / scale), abs=1e-3)
    strong = fit_ridge((x[:30], y[:30]), (x[30:], y[30:]), penalties=(1e3, 1e-3))
    assert abs(strong.weight).max() > 1  # 1e3 would leave nothing


# Games


def test_number_that_a_line_can_read_is_read_and_noise_is_not(rng: np.random.Generator) -> None:
    games = games_of()
    x = rng.normal(size=(len(games), 6)).astype(np.float32)
    value = np.round(10 * (x @ [1.0, 0, 0, -1, 0, 0])) + 100
    found = probe_state(x, value, games, SPLIT, class_width=20, c_values=(10.0,))
    assert found is not None
    assert (found.states, found.r2[0]) == (120, pytest.approx(1.0, abs=0.01))
    assert 0.5 < found.f1[0] <= 1
    shuffled = rng.permutation(value)
    nothing = probe_state(x, shuffled, games, SPLIT, class_width=20, c_values=(10.0,))
    assert nothing is not None
    assert nothing.r2[0] < 0.1
    assert nothing.f1[0] < found.f1[0] / 2


def test_held_out_games_change_neither_fit_nor_choice(rng: np.random.Generator) -> None:
    games = games_of()
    x = rng.normal(size=(len(games), 6)).astype(np.float32)
    value = np.round(10 * x[:, 0]).astype(float)
    first = probe_state(x, value, games, SPLIT, class_width=8)
    # The last game shows other states: the figures of the other held-out games stay.
    x[games == 9], value[games == 9] = 0.0, 5.0
    second = probe_state(x, value, games, SPLIT._replace(test=range(6, 9)), class_width=8)
    third = probe_state(x, value, games, SPLIT._replace(test=[6, 7, 8]), class_width=8)
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.r2[0] == third.r2[0]
    assert second.states == 90


def test_resamples_are_of_games_and_the_same_for_every_number(rng: np.random.Generator) -> None:
    games = games_of(states=20)
    x = rng.normal(size=(len(games), 4)).astype(np.float32)
    # Within a game all states are alike: as if there were one state in each.
    level = np.round(10 * x[::20, 0]).repeat(20).astype(float)
    found = probe_state(x, level, games, SPLIT)
    assert found is not None
    spread = np.nanpercentile(found.r2[1:], 97.5) - np.nanpercentile(found.r2[1:], 2.5)
    assert spread > 0.3
    again = probe_state(x, level, games, SPLIT)
    assert again is not None
    assert np.array_equal(found.f1, again.f1)
    other = probe_state(x, level, games, SPLIT, seed=1)
    assert other is not None
    assert not np.array_equal(found.f1, other.f1)


def test_unknown_states_are_left_out_and_a_class_new_in_the_test_games_is_missed(
    rng: np.random.Generator,
) -> None:
    games = games_of()
    x = rng.normal(size=(len(games), 4)).astype(np.float32)
    value = (x[:, 0] > 0).astype(float)
    x[:, 1] = value * 10
    value[::2] = np.nan
    known = probe_state(x, value, games, SPLIT)
    assert known is not None
    assert (known.states, known.f1[0]) == (60, 1.0)
    value[(games >= 6) & (np.arange(len(games)) % 4 == 1)] = 7  # half of the test's states
    missed = probe_state(x, value, games, SPLIT)
    assert missed is not None
    assert 0.2 < missed.f1[0] < 0.6


def test_number_that_never_changes_has_no_scores(rng: np.random.Generator) -> None:
    games = games_of()
    x = rng.normal(size=(len(games), 4)).astype(np.float32)
    assert probe_state(x, np.full(len(games), 5.0), games, SPLIT) is None
    value = np.where(games < 6, games % 2, 1).astype(float)  # changes, but not in the test games
    assert probe_state(x, value, games, SPLIT) is None


# The script

QUICK = ("--train-games", "3", "--validation-games", "1", "--test-games", "2", "--every", "5")


def test_table_has_every_number_of_the_state_for_every_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = save_agent(tmp_path / "agent")
    rows = probe.main(
        [*QUICK, "--checkpoint", f"dqn={agent}", "--checkpoint", f"same={agent}",
         "--results-dir", str(tmp_path)]
    )  # fmt: skip
    out = capsys.readouterr().out
    folder = tmp_path / "breakout-probes"
    assert "Breakout, " in out
    assert " of random play; 3 games to fit, 1 to choose, 2 held out" in out
    states = {row["state"] for row in rows}
    assert {"ball x", "ball y", "player x", "score", "lives", "blocks", "mean"} <= states
    by = {(r["state"], r["measure"], r["network"]): r for r in rows}
    for state in ("ball x", "player x"):
        for measure in ("f1", "r2"):
            first, second = (by[state, measure, name] for name in ("dqn", "same"))
            assert first["value"] == second["value"]
            assert first["low"] <= first["value"] <= first["high"]
    assert by["player x", "f1", "random trunk"]["value"] > 0.1
    assert "mean, minus random trunk" in states
    assert len(pd.read_csv(folder / "table.csv")) == len(rows)
    assert "| F1 " in (folder / "table.md").read_text()
    assert (folder / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "settings.json").is_file()


def test_games_are_played_without_sticky_actions_which_hide_the_ram(tmp_path: Path) -> None:
    agent = load_agent(save_agent(tmp_path / "agent"))
    sticky = dataclasses.replace(agent, settings=agent.settings | {"sticky": 0.25})
    assert sticky.atari_settings().sticky == 0.25
    assert probe.games_of(probe.Settings(), {"dqn": sticky}).sticky == 0


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""
    monkeypatch.setattr(probe, "gather", lambda *_: pytest.fail("no game may start"))

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            probe.main(words)
        err = capsys.readouterr().err
        assert (stop.value.code, err.count("\n")) == (2, 1)
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "No game: pass --checkpoint NAME=DIR, or --game pong."),
        (["--game", "boxing"], "The RAM of boxing is not known. Known: pong, breakout."),
        (["--checkpoint", "agent"], "Expected --checkpoint NAME=DIR with a name of its own, got"),
        (["--checkpoint", "a=agent", "--game", "pong"], "play breakout, got --game pong. Leave it"),
        (["--checkpoint", "a=agent", "--checkpoint", "b=pong"], "of one game, stack and frame siz"),
        (["--game", "pong", "--every", "0"], "--every must be 1 or more, got 0."),
        (["--game", "pong", "--name", "a/b"], "--name must be a plain folder name, got 'a/b'."),
        (["--game", "pong", "--policy", "gone"], "No checkpoint folder at gone."),
        (["--game", "breakout", "--policy", "agent"], "has frame_size 42, this run 84."),
        (["--game", "pong", "--network", "vgg"], "Unknown network 'vgg'. Available: nature, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_before_any_game_starts(
    words: list[str], text: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    save_agent(tmp_path / "agent")
    save_agent(tmp_path / "pong", game="pong")
    assert text in refused(*words)


def test_folder_that_holds_an_experiment_is_left_alone(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "results" / "local" / "pong-probes"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    assert "holds an experiment already. Choose --name." in refused("--game", "pong")
