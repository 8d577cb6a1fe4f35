"""What a step, a life and a game are, in scripted games and in ale-py's own."""

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from rayssl.envs.atari import (
    AtariSettings,
    AtariStream,
    Game,
    LifeEpisode,
    StepRow,
    action_set,
    available_games,
    fire_action,
    game_title,
    rom_id,
    rom_path,
)

FIRE = 1  # in Breakout: NOOP, FIRE, RIGHT, LEFT
RIGHT = 2

MakeStream = Callable[..., AtariStream]


@pytest.fixture
def make_stream() -> Iterator[MakeStream]:
    """Starts streams of real consoles and closes them after the test."""
    streams: list[AtariStream] = []

    def make(seed: int = 0, steps_per_seed: int = 2_000, **settings: Any) -> AtariStream:
        streams.append(AtariStream(AtariSettings(**settings), seed, steps_per_seed=steps_per_seed))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


def random_actions(stream: AtariStream, steps: int, seed: int = 0) -> np.ndarray:
    """Actions for all envs of a stream, int64 `[steps, N]`."""
    return np.random.default_rng(seed).integers(0, stream.num_actions, (steps, stream.num_envs))


def play(stream: AtariStream, actions: np.ndarray) -> list[StepRow]:
    return [stream.step(step) for step in actions]


def same_rows(rows: list[StepRow], others: list[StepRow]) -> bool:
    return all(
        np.array_equal(a, b)
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row, other, strict=True)
    )


# Names of games


@pytest.mark.parametrize(
    ("game", "rom"),
    [
        ("pong", "pong"),
        ("Pong", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("PongDeterministic-v4", "pong"),
        ("Pong-ramNoFrameskip-v4", "pong"),
        ("Pong-v0", "pong"),
        ("MsPacman", "ms_pacman"),
        ("ms_pacman", "ms_pacman"),
        ("MsPacmanNoFrameskip-v4", "ms_pacman"),
        ("ALE/SpaceInvaders-v5", "space_invaders"),
        ("Q*bert", "qbert"),
    ],
)
def test_a_game_answers_to_any_of_its_usual_names(game: str, rom: str) -> None:
    assert rom_id(game) == rom
    assert AtariSettings(game=game).game == game


def test_every_game_answers_to_its_own_name_and_to_its_title() -> None:
    assert {"pong", "breakout", "ms_pacman", "space_invaders"} <= set(available_games())
    assert len(available_games()) > 100
    for game in available_games():
        assert rom_id(game) == game
        assert rom_id(f"ALE/{game_title(game)}-v5") == game


def test_all_games_can_be_loaded_for_one_and_those_for_two_are_left_out() -> None:
    # loadROM of an unsupported ROM ends the process, so ask without loading.
    supported = [ale_py.ALEInterface.isSupportedROM(rom_path(game)) for game in available_games()]
    assert supported == list(available_games())
    with pytest.raises(ValueError, match=r"^Unknown Atari game 'combat'\."):
        AtariSettings(game="combat")


@pytest.mark.parametrize("found", [None, b"not the ROM that was listed"])
def test_rom_that_is_missing_or_changed_is_refused_with_what_to_do(
    found: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if found is not None:
        (tmp_path / "pong.bin").write_bytes(found)
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    rom_path.cache_clear()
    with pytest.raises(
        FileNotFoundError, match=r"^Expected the ROM of pong .* Install ale-py anew"
    ):
        AtariSettings(game="pong")


def test_titles_are_as_papers_print_them() -> None:
    assert [game_title(g) for g in ("pong", "ALE/MsPacman-v5", "space_invaders")] == [
        "Pong",
        "MsPacman",
        "SpaceInvaders",
    ]


def test_unknown_game_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"^Unknown Atari game 'Pomg'\. Did you mean pong.*\? ale"):
        rom_id("Pomg")
    with pytest.raises(ValueError, match=r"^Unknown Atari game 'Brekout-v5'\. Did you mean break"):
        AtariSettings(game="Brekout-v5")
    with pytest.raises(ValueError, match=r"^Unknown Atari game '1234567'\. ale-py ships \d+ games"):
        rom_id("1234567")


def test_pong_has_6_different_actions_and_breakout_has_4() -> None:
    assert action_set("pong") == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert action_set("ALE/Breakout-v5") == ("NOOP", "FIRE", "RIGHT", "LEFT")


def test_fire_is_found_where_the_game_has_it() -> None:
    assert fire_action(AtariSettings(game="breakout")) == FIRE
    assert fire_action(AtariSettings(game="ms_pacman")) is None


@pytest.mark.parametrize("name", ["num_envs", "frame_size", "stack", "frame_skip"])
def test_settings_below_1_are_refused(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(
        ValueError, match=rf"^{name} must be a whole number in \[1, 2\*\*31\), got 0\.$"
    ):
        AtariSettings(**settings)


@pytest.mark.parametrize("sticky", [-0.1, 1.0])
def test_sticky_outside_0_to_1_is_refused(sticky: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^sticky must be a probability in \[0, 1\), got {sticky}"
    ):
        AtariSettings(sticky=sticky)


# "four consecutive image frames", 84x84, grayscale: against gymnasium's wrappers


@pytest.mark.parametrize(("game", "steps"), [("breakout", 500), ("pong", 250)])
def test_states_rewards_and_ends_equal_gymnasiums_preprocessing_and_frame_stacking_bit_for_bit(
    game: str, steps: int, make_stream: MakeStream
) -> None:
    gymnasium.register_envs(ale_py)
    console = gymnasium.make(f"ALE/{game_title(game)}-v5", frameskip=1, repeat_action_probability=0)
    reference: gymnasium.Env = FrameStackObservation(
        AtariPreprocessing(
            console, noop_max=0, frame_skip=4, screen_size=84, terminal_on_life_loss=False
        ),
        4,
        padding_type="zero",
    )
    stream = make_stream(game=game, num_envs=1, noop_max=0, fire_at_start=False)
    assert stream.num_actions == len(action_set(game))
    assert reference.action_space == gymnasium.spaces.Discrete(stream.num_actions)
    obs, info = reference.reset(seed=0)
    assert np.array_equal(stream.obs[0], obs)
    assert not obs[:3].any()  # a game starts with three empty frames and its first, newest last
    assert obs[3].any()

    lives, lost, ended, rewarded = info["lives"], 0, 0, 0
    for action in random_actions(stream, steps)[:, 0]:
        row = stream.step(np.array([action]))
        if row.valid[0]:
            obs, reward, terminated, truncated, info = reference.step(action)
            assert row.rewards[0] == reward
            assert row.terminated[0] == terminated
            assert row.truncated[0] == truncated
            assert row.life_lost[0] == (info["lives"] < lives)
            ended, rewarded = ended + terminated, rewarded + (reward != 0)
        else:
            obs, info = reference.reset()
        assert np.array_equal(stream.obs[0], obs)
        lost, lives = lost + (info["lives"] < lives), info["lives"]
    reference.close()
    assert rewarded >= 3
    if game == "breakout":  # the comparison went over lost lives and ends of games
        assert ended >= 2
        assert lost == 5 * ended + (5 - lives)


def test_states_are_the_last_four_rows_of_frames_with_nothing_from_before_the_first_one(
    make_stream: MakeStream,
) -> None:
    stream = make_stream(game="breakout", num_envs=2)
    rows, states = [], []
    for action in random_actions(stream, 300):
        states.append(stream.obs.copy())
        rows.append(stream.step(action))
    assert sum(row.reset.sum() for row in rows) >= 2 + 2  # the beginning and two new games

    for env in range(2):
        for t, row in enumerate(rows):
            rebuilt = np.zeros((4, 84, 84), np.uint8)
            for age in range(4):
                rebuilt[3 - age] = rows[t - age].frames[env]
                if rows[t - age].reset[env]:
                    break
            assert np.array_equal(rebuilt, states[t][env])
            assert row.frames.dtype == np.uint8


# Scripted games


class Tick(NamedTuple):
    """What the scripted console answers to one step."""

    reward: float = 0
    lives: int = 2
    terminated: bool = False
    truncated: bool = False


class ScriptedConsoles:
    """Plays a list of ticks for each env and remembers what it was told.

    After a game's end the next tick is the answer to the automatic reset, as in ale-py.
    """

    def __init__(self, scripts: Sequence[Sequence[Tick]], lives: int) -> None:
        self.single_action_space: Any = gymnasium.spaces.Discrete(4)
        self.actions: list[list[int]] = []
        self.resets: list[tuple[list[bool], list[int]]] = []
        self._scripts = scripts
        self._lives_at_start = lives
        self._lives = np.full(len(scripts), lives)
        self._time = 0

    def reset(self, *, seed: np.ndarray, options: dict[str, Any] | None = None) -> Any:
        mask = np.ones(len(self._scripts), bool) if options is None else options["reset_mask"]
        assert len(seed) == mask.sum()
        self.resets.append((mask.tolist(), seed.tolist()))
        self._lives[mask] = self._lives_at_start
        return self._obs(), {"lives": self._lives}

    def send(self, actions: np.ndarray) -> None:
        self.actions.append(actions.tolist())

    def recv(self) -> Any:
        ticks = [script[self._time] for script in self._scripts]
        self._time += 1
        reward, lives, terminated, truncated = (
            np.array(column) for column in zip(*ticks, strict=True)
        )
        self._lives[:] = lives
        return self._obs(), reward, terminated, truncated, {"lives": self._lives}

    def _obs(self) -> np.ndarray:
        """Each pixel is the number of steps so far."""
        return np.full((len(self._scripts), 4, 84, 84), self._time, np.uint8)


def scripted(
    *scripts: Sequence[Tick],
    game: str = "breakout",
    fire_at_start: bool = True,
    lives: int = 2,
    seed: int = 0,
    steps_per_seed: int = 0,
) -> tuple[AtariStream, ScriptedConsoles]:
    """A stream over scripted consoles whose games start with so many lives."""
    consoles = ScriptedConsoles(scripts, lives)
    settings = AtariSettings(game=game, num_envs=len(scripts), fire_at_start=fire_at_start)
    return AtariStream(settings, seed, consoles, steps_per_seed=steps_per_seed), consoles


# The drawing on top of rayssl/envs/atari.py: a life lost at step 3, the game over at step 5.
DRAWING = [
    Tick(4),
    Tick(4),
    Tick(0, lives=1),
    Tick(7, lives=1),
    Tick(4, lives=0, terminated=True),
    Tick(99),  # the answer to the reset: its reward belongs to no game
    Tick(1),
    Tick(-8, lives=1),
    Tick(0, lives=1),
]


def column(rows: list[StepRow], name: str, env: int = 0) -> list[Any]:
    return [getattr(row, name)[env].item() for row in rows]


def marks(rows: list[StepRow], name: str, env: int = 0) -> str:
    """A bool column as in the drawing."""
    return "".join("x" if value else "." for value in column(rows, name, env))


def test_rows_are_as_drawn() -> None:
    stream, _ = scripted(DRAWING)
    rows = play(stream, np.full((7, 1), RIGHT))
    assert marks(rows, "reset") == "x.....x"
    assert marks(rows, "valid") == "xxxxx.x"
    assert marks(rows, "terminated") == "....x.."
    assert marks(rows, "truncated") == "......."
    assert marks(rows, "life_lost") == "..x.x.."
    assert column(rows, "rewards") == [4, 4, 0, 7, 4, 0, 1]
    assert [row.frames[0, 0, 0] for row in rows] == [0, 1, 2, 3, 4, 5, 6]  # before each action
    assert [row.rewards.dtype for row in rows] == [np.float32] * 7


def test_a_score_is_the_unclipped_sum_over_a_whole_game() -> None:
    stream, _ = scripted(DRAWING)
    play(stream, np.full((6, 1), RIGHT))
    games, _ = stream.take_games()
    assert games == [Game(env=0, score=4 + 4 + 0 + 7 + 4, length=5, truncated=False)]


def test_the_authors_episode_is_one_life_with_rewards_clipped_to_their_sign() -> None:
    stream, _ = scripted(DRAWING)
    play(stream, np.full((8, 1), RIGHT))
    _, lives = stream.take_games()
    assert lives == [
        LifeEpisode(env=0, clipped_score=1 + 1 + 0),
        LifeEpisode(env=0, clipped_score=1 + 1),
        LifeEpisode(env=0, clipped_score=1 - 1),
    ]


def test_a_game_without_lives_is_one_episode_of_either_kind() -> None:
    # Pong: the console says 0 lives throughout
    script = [Tick(-1, lives=0), Tick(1, lives=0), Tick(-1, lives=0, terminated=True)]
    stream, _ = scripted(script, game="pong", lives=0)
    rows = play(stream, np.zeros((3, 1), np.int64))
    assert marks(rows, "life_lost") == "..."
    assert marks(rows, "terminated") == "..x"
    assert stream.take_games() == ([Game(0, -1, 3, truncated=False)], [LifeEpisode(0, -1)])


def test_a_lost_life_ends_no_game_and_an_extra_life_is_no_lost_one() -> None:
    stream, consoles = scripted([Tick(), Tick(lives=3), Tick(lives=2), Tick(lives=1), Tick()])
    rows = play(stream, np.full((4, 1), RIGHT))
    assert marks(rows, "life_lost") == "..xx"
    assert marks(rows, "terminated") == "...."
    assert marks(rows, "valid") == "xxxx"
    assert stream.take_games()[0] == []
    assert len(consoles.resets) == 1


def test_a_cut_game_is_truncated_and_not_terminated() -> None:
    stream, _ = scripted([Tick(3), Tick(2, truncated=True), Tick(), Tick()])
    rows = play(stream, np.full((4, 1), RIGHT))
    assert marks(rows, "truncated") == ".x.."
    assert marks(rows, "terminated") == "...."
    assert marks(rows, "valid") == "xx.x"
    assert marks(rows, "reset") == "x..x"
    games, lives = stream.take_games()
    assert games == [Game(0, score=5, length=2, truncated=True)]
    assert lives == [LifeEpisode(0, 2)]


def test_a_game_over_on_the_last_allowed_frame_is_terminated() -> None:
    stream, _ = scripted([Tick(terminated=True, truncated=True, lives=0), Tick()])
    rows = play(stream, np.full((2, 1), RIGHT))
    assert marks(rows, "terminated") == "x."
    assert marks(rows, "truncated") == ".."
    assert [game.truncated for game in stream.take_games()[0]] == [False]


def test_fire_is_pressed_right_after_a_lost_life_but_not_after_a_game() -> None:
    stream, consoles = scripted(DRAWING)
    sent = np.full((9, 1), RIGHT)
    rows = play(stream, sent)
    got = [RIGHT, RIGHT, RIGHT, FIRE, RIGHT, RIGHT, RIGHT, RIGHT, FIRE]
    assert [step[0] for step in consoles.actions] == got
    assert column(rows, "actions") == got  # replay stores what the console got
    assert (sent == RIGHT).all()  # the caller's array is not changed


@pytest.mark.parametrize(("game", "fire_at_start"), [("breakout", False), ("ms_pacman", True)])
def test_fire_is_not_pressed_where_switched_off_or_absent(game: str, fire_at_start: bool) -> None:
    stream, consoles = scripted(DRAWING, game=game, fire_at_start=fire_at_start)
    play(stream, np.full((9, 1), 3))
    assert consoles.actions == [[3]] * 9


def test_games_of_other_envs_go_on_while_one_starts_anew() -> None:
    long = [Tick(2)] * 7
    stream, consoles = scripted(DRAWING, long)
    rows = play(stream, np.full((7, 2), RIGHT))
    assert marks(rows, "valid", env=1) == "xxxxxxx"
    assert marks(rows, "reset", env=1) == "x......"
    assert [mask for mask, _ in consoles.resets] == [[True, True], [True, False]]
    assert [game.env for game in stream.take_games()[0]] == [0]


def test_take_games_empties_the_lists() -> None:
    stream, _ = scripted(DRAWING)
    play(stream, np.full((6, 1), RIGHT))
    games, lives = stream.take_games()
    assert (len(games), len(lives)) == (1, 2)
    assert stream.take_games() == ([], [])


def test_seeds_are_decided_by_run_env_and_number_of_the_seed_alone() -> None:
    short = [Tick(terminated=True), Tick()] * 6
    long = [Tick(), Tick(), Tick(terminated=True), Tick()] * 3

    def seeds(first: list[Tick], second: list[Tick], seed: int) -> dict[tuple[int, int], int]:
        """(env, number of its game) -> seed."""
        stream, consoles = scripted(first, second, seed=seed)
        play(stream, np.zeros((12, 2), np.int64))
        found, games = {}, [itertools.count(), itertools.count()]
        for mask, given in consoles.resets:
            for env, value in zip(np.flatnonzero(mask), given, strict=True):
                found[int(env), next(games[env])] = value
        return found

    one, other_lengths, other_seed = (
        seeds(short, long, 7),
        seeds(long, short, 7),
        seeds(short, long, 8),
    )
    assert len(one) == 7 + 4
    assert len({*one.values(), *other_seed.values()}) == 2 * 11
    assert all(0 <= value < 2**31 for value in one.values())
    both = one.keys() & other_lengths.keys()
    assert len(both) == 8
    assert all(one[game] == other_lengths[game] for game in both)


@pytest.mark.parametrize(
    ("steps_per_seed", "resets"),  # games of 3 steps end at 3, 7 and 11, and reset at 4, 8 and 12
    [(0, [4, 8, 12]), (3, [4, 8, 12]), (4, [8]), (7, [8]), (8, [12]), (100, [])],
)
def test_a_game_is_seeded_anew_once_the_last_seed_has_served_its_steps(
    steps_per_seed: int, resets: list[int]
) -> None:
    game = [Tick(), Tick(), Tick(terminated=True), Tick()]
    stream, consoles = scripted(game * 3, steps_per_seed=steps_per_seed)
    times = []
    for t in range(1, 13):
        before = len(consoles.resets)
        stream.step(np.zeros(1, np.int64))
        times += [t] * (len(consoles.resets) - before)
    assert times == resets


# Real consoles: seeds, cuts, states


def test_same_seed_is_the_same_stream_and_another_seed_another_one(make_stream: MakeStream) -> None:
    one, same, other = (make_stream(seed, game="breakout", num_envs=1) for seed in (3, 3, 4))
    actions = random_actions(one, 80)
    rows = play(one, actions)
    assert same_rows(rows, play(same, actions))
    assert not same_rows(rows, play(other, actions))


def test_envs_of_a_stream_play_different_games_and_each_the_one_it_would_play_alone(
    make_stream: MakeStream,
) -> None:
    both, alone = (make_stream(game="breakout", num_envs=n, sticky=0.25) for n in (2, 1))
    actions = random_actions(alone, 200)
    rows = play(both, actions.repeat(2, axis=1))
    assert any(not np.array_equal(*row.frames) for row in rows)
    assert any(row.terminated[0] for row in rows)
    for row, single in zip(rows, play(alone, actions), strict=True):
        assert np.array_equal(row.frames[0], single.frames[0])
        assert row.rewards[0] == single.rewards[0]


def test_games_of_one_env_start_differently(make_stream: MakeStream) -> None:
    stream = make_stream(game="breakout", num_envs=1)
    rows = play(stream, np.zeros((420, 1), np.int64))
    starts = [t for t, row in enumerate(rows) if row.reset[0]]
    assert len(starts) >= 3
    openings = {b"".join(row.frames.tobytes() for row in rows[t : t + 20]) for t in starts[:3]}
    assert len(openings) == 3


def test_sticky_actions_change_the_stream(make_stream: MakeStream) -> None:
    plain, sticky = (make_stream(game="breakout", num_envs=1, sticky=p) for p in (0.0, 0.5))
    actions = random_actions(plain, 60)
    assert not same_rows(play(plain, actions), play(sticky, actions))


def test_max_game_frames_cuts_a_game_after_so_many_emulator_frames(make_stream: MakeStream) -> None:
    stream = make_stream(game="pong", num_envs=1, max_game_frames=40)  # 10 steps of 4 frames
    rows = play(stream, np.zeros((23, 1), np.int64))
    assert marks(rows, "truncated") == ".........x..........x.."
    assert marks(rows, "valid") == "xxxxxxxxxx.xxxxxxxxxx.x"
    assert not any(row.terminated[0] for row in rows)
    assert [(game.length, game.truncated) for game in stream.take_games()[0]] == [(10, True)] * 2


def awkward_moments(rows: list[StepRow]) -> dict[str, int]:
    """Numbers of steps after which to save."""
    over = next(t for t, row in enumerate(rows, 1) if row.terminated.any())
    losing = [t for t, row in enumerate(rows, 1) if (row.life_lost & ~row.terminated).any()]
    last_life = max(t for t in losing if t < over)
    return {
        "in a game": over - 40,
        "life lost": last_life,
        "over": over,
        "reset": over + 1,
        "new game beside an old one": over + 15,
    }


@pytest.mark.parametrize("steps_per_seed", [0, 2_000])
def test_a_restored_stream_goes_on_bit_for_bit_with_sticky_actions_over_ends_of_games(
    make_stream: MakeStream, steps_per_seed: int
) -> None:
    settings: dict[str, Any] = {
        "game": "breakout", "num_envs": 2, "sticky": 0.1, "steps_per_seed": steps_per_seed
    }  # fmt: skip
    stream, restored = (make_stream(seed, **settings) for seed in (5, 99))
    actions = random_actions(stream, 210)
    actions[actions == FIRE] = RIGHT  # so that a FIRE after a lost life is the stream's own
    rows, states, ends = [], [stream.get_state()], []
    for action in actions:
        rows.append(stream.step(action))
        states.append(pickle.loads(pickle.dumps(stream.get_state())))
        ends.append(stream.take_games())
    moments = awkward_moments(rows)
    assert sum(row.terminated.sum() for row in rows[moments["in a game"] :][:60]) >= 1

    for moment, steps in moments.items():
        future = slice(steps, steps + 60)
        restored.set_state(states[steps])
        assert same_rows(play(restored, actions[future]), rows[future]), moment
        games, lives = (list(itertools.chain(*log)) for log in zip(*ends[future], strict=True))
        assert restored.take_games() == (games, lives), moment

    restored.send(actions[0])  # from the middle of a step to before the first one
    restored.set_state(states[0])
    assert same_rows(play(restored, actions[:20]), rows[:20])


def test_a_state_is_a_snapshot_that_later_steps_do_not_change() -> None:
    stream, _ = scripted(DRAWING)
    play(stream, np.full((3, 1), RIGHT))
    state = stream.get_state()
    before = pickle.dumps(state)
    play(stream, np.full((6, 1), RIGHT))
    assert pickle.dumps(state) == before
    assert pickle.dumps(stream.get_state()) != before


def test_a_state_of_another_number_of_envs_is_refused() -> None:
    (two, _), (one, _) = scripted(DRAWING, DRAWING), scripted(DRAWING)
    state = two.get_state()
    with pytest.raises(
        ValueError,
        match=r"^The saved stream has 2 envs, this one 1\. Resume with the same number of envs",
    ):
        one.set_state(state)


# Misuse


def test_recv_without_send_and_send_without_recv_are_refused() -> None:
    stream, consoles = scripted(DRAWING)
    with pytest.raises(RuntimeError, match=r"recv\(\) called without send\(actions\) before it"):
        stream.recv()
    stream.send(np.array([RIGHT]))
    with pytest.raises(RuntimeError, match=r"send\(\) called twice without recv\(\) between"):
        stream.send(np.array([RIGHT]))
    assert len(consoles.actions) == 1
    stream.recv()


def test_state_between_send_and_recv_is_refused() -> None:
    stream, _ = scripted(DRAWING)
    stream.send(np.array([RIGHT]))
    with pytest.raises(RuntimeError, match=r"get_state\(\) between send\(\) and recv\(\)"):
        stream.get_state()


@pytest.mark.parametrize("actions", [[4, 0], [0, -1], [0], [[0, 0]]])
def test_actions_that_would_hang_the_consoles_are_refused(actions: list[Any]) -> None:
    stream, consoles = scripted(DRAWING, DRAWING)
    with pytest.raises(ValueError, match=r"^Expected 2 actions in \[0, 4\), got \["):
        stream.step(np.array(actions))
    assert consoles.actions == []
