"""RAM labels against the screen: a box that is computed from RAM holds the thing that one sees."""

from typing import NamedTuple

import ale_py
import numpy as np
import pytest

from rayssl.envs.atari import AtariSettings, AtariStream, rom_path
from rayssl.envs.ram import GAMES, RamConsoles, boxes, game_ram, region_masks, state_labels

COLOURS = {
    "pong": {"ball": (236, 236, 236), "player": (92, 186, 92), "enemy": (213, 130, 74)},
    "breakout": {"ball": (200, 72, 72), "player": (200, 72, 72)},
}
# Where a colour is that thing's alone: below the blocks, above the paddle, inside the walls.
SEEN_IN = {
    "pong": dict.fromkeys(("ball", "player", "enemy"), (34, 194, 0, 160)),
    "breakout": {"ball": (93, 189, 8, 152), "player": (189, 193, 8, 152)},
}


class Played(NamedTuple):
    """Ticks of a game: screens RGB `[T, 210, 160, 3]`, RAM `[T, 128]`, what the console says."""

    screens: np.ndarray
    ram: np.ndarray
    scores: np.ndarray
    lives: np.ndarray


@pytest.fixture(scope="module", params=["pong", "breakout"])
def game(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def play(game: str, ticks: int, every: int) -> Played:
    """Every so-manieth tick; Breakout's paddle follows the ball, so that blocks go."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    console.setInt("random_seed", 5)
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(rom_path(game))
    console.reset_game()
    noop, fire, right, left, *_ = console.getMinimalActionSet()
    rng, score = np.random.default_rng(0), 0
    rows: list[tuple[np.ndarray, np.ndarray, int, int]] = []
    for tick in range(ticks):
        ram = console.getRAM()
        if tick % 4 == 0:
            follow = right if ram[99] > int(ram[72]) + 6 else left
            chase = follow if game == "breakout" else (noop, right, left)[rng.integers(3)]
            action = fire if rng.random() < 0.1 else chase
        score += console.act(action)
        if tick % every == 0:
            rows.append((console.getScreenRGB(), console.getRAM(), score, console.lives()))
    return Played(*(np.stack(column) for column in zip(*rows, strict=True)))


@pytest.fixture(scope="module")
def played(game: str) -> Played:
    return play(game, ticks=1_500, every=3)


def seen(played: Played, game: str, name: str) -> np.ndarray:
    """Pixels in the thing's colour, where it is that thing's alone: bool `[T, 210, 160]`."""
    found = (played.screens == COLOURS[game][name]).all(3)
    top, bottom, left, right = SEEN_IN[game][name]
    inside = np.zeros_like(found)
    inside[:, top:bottom, left:right] = True
    shown: np.ndarray = found & inside
    return shown


def test_box_from_ram_holds_the_pixels_of_the_thing(game: str, played: Played) -> None:
    for name, edges in boxes(game, played.ram).items():
        pixels = seen(played, game, name)
        inside = np.zeros_like(pixels)
        for mask, (top, left, bottom, right) in zip(inside, edges, strict=True):
            mask[top:bottom, left:right] = True
        there = pixels.any((1, 2))
        assert there.sum() > 150, name
        share = (pixels & inside)[there].sum((1, 2)) / pixels[there].sum((1, 2))
        # Not all: in Breakout the topmost ball rows and a paddle under the wall are other things.
        assert (share == 1).mean() > 0.97, name
        # And not by being large: what the box holds is the thing.
        area = inside[there].sum((1, 2))
        assert np.median(pixels[there].sum((1, 2)) / area) >= 0.8, name


def test_ball_that_is_not_in_play_is_nowhere_and_unknown(game: str, played: Played) -> None:
    out = played.ram[:, game_ram(game).ball_in_play] == 0
    assert 0 < out.sum() < len(out)
    assert not seen(played, game, "ball")[out].any()
    assert (boxes(game, played.ram)["ball"][out] == 0).all()
    labels = state_labels(game, played.ram)
    assert np.isnan(labels["ball x"][out]).all()
    assert np.isfinite(labels["ball x"][~out]).all()
    assert not any(np.isnan(labels[name]).any() for name in labels if "ball" not in name)


def test_scores_of_breakout_are_those_of_the_rewards_and_blocks_those_on_the_screen() -> None:
    played = play("breakout", ticks=4_000, every=20)
    labels = state_labels("breakout", played.ram)
    assert labels["score"].tolist() == played.scores.tolist()
    assert played.scores.max() >= 10  # so that a decimal byte is not taken for a binary one
    assert labels["lives"].tolist() == played.lives.tolist()
    assert set(played.lives) >= {5, 4}
    # The wall, 6 rows of 6 lines and 18 blocks of 8 pixels; a ball may cover a gap in it.
    wall = played.screens[:, 57:93, 8:152].any(3).reshape(-1, 6, 6, 18, 8)
    shown = wall.all((2, 4)).sum((1, 2))
    assert (np.abs(shown - labels["blocks"]) <= 1).all()
    assert (shown == labels["blocks"]).mean() > 0.9
    assert labels["blocks"].min() < 108 == labels["blocks"][0]


def test_scores_of_pong_are_the_points_that_each_side_has_won() -> None:
    stream, consoles = stream_of("pong", num_envs=1)
    player = enemy = 0
    for _ in range(500):
        row = stream.step(np.array([0]))  # who does nothing loses every point
        player += int(row.rewards[0] > 0)
        enemy += int(row.rewards[0] < 0)
        labels = state_labels("pong", consoles.ram[:, -1, -1])
        assert (labels["player score"][0], labels["enemy score"][0]) == (player, enemy)
    assert enemy >= 3
    stream.close()


def stream_of(game: str, **changes: int) -> tuple[AtariStream, RamConsoles]:
    settings = AtariSettings(game=game, **{"num_envs": 2} | changes)  # type: ignore[arg-type]
    consoles = RamConsoles(settings)
    return AtariStream(settings, 3, consoles, steps_per_seed=0), consoles


def area_mean(size: int, whole: int) -> np.ndarray:
    """Weights `[size, whole]` of a resize by averaging: how much of each pixel lies in each."""
    edges = np.arange(size + 1) * whole / size
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(whole)
    share = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    found: np.ndarray = share.clip(0) * size / whole
    return found


def test_twin_shows_what_the_agent_sees_across_lives_resets_and_new_seeds(game: str) -> None:
    stream, consoles = stream_of(game, max_game_frames=400)  # 100 steps a game
    rng, resets = np.random.default_rng(1), 0
    for _ in range(230):
        row = stream.step(rng.integers(0, 4, 2))
        resets += int((~row.valid).sum())
        if (row.terminated | row.truncated).any():
            continue  # ale-py pools a game's last frame in another way
        grey = consoles.screens @ np.array([0.2989, 0.587, 0.114])
        small = area_mean(84, 210) @ grey @ area_mean(84, 160).T
        apart = np.abs(small - stream.obs[:, -1])
        if game == "pong":  # green over brown: the brighter of two colours is neither
            apart[:, :, 73:76] = 0
        assert apart.max() < 2
    assert resets >= 4
    stream.close()


@pytest.mark.parametrize("frames", [232, 233, 234, 235])
def test_twin_follows_a_game_that_is_cut_within_a_frame_skip(frames: int) -> None:
    stream, _ = stream_of("pong", num_envs=1, max_game_frames=frames)
    while not stream.step(np.array([0])).truncated[0]:
        pass  # of 233 the first point lies in the skip's rest, which the console does not play
    stream.close()


def test_ram_of_a_state_moves_with_its_frames() -> None:
    stream, consoles = stream_of("pong", num_envs=1)
    assert (consoles.ram[0, :3] == 0).all()
    assert not stream.obs[0, :3].any()
    before = consoles.ram.copy()
    for _ in range(2):
        stream.step(np.array([0]))
    assert np.array_equal(consoles.ram[:, 1], before[:, 3])
    assert consoles.ram[0, 2].any()
    stream.close()


def test_mask_on_the_small_frame_holds_the_balls_pixels_of_both_ticks() -> None:
    stream, consoles = stream_of("pong", num_envs=1)
    for _ in range(60):
        stream.step(np.array([0]))
    shown = 0
    for _ in range(40):
        stream.step(np.array([0]))
        masks = region_masks("pong", consoles.ram[:, -1], 84)
        frame, background = stream.obs[0, -1].astype(int), 87  # grey of the empty field
        bright = (np.abs(frame - background) > 20) & (np.arange(84) >= 15)[:, None]
        bright[77:] = False  # the walls
        assert not (bright & ~masks["ball and paddles"][0]).any()
        shown += bool((masks["ball and paddles"][0] & ~bright).sum() < 60)
        assert not (masks["score bar"][0] & masks["ball and paddles"][0]).any()
    assert shown == 40
    assert masks["score bar"].mean() == pytest.approx(24 / 210, abs=0.01)
    stream.close()


def test_game_whose_ram_is_unknown_and_sticky_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="The RAM of ms_pacman is not known. Known: pong, breako"):
        state_labels("MsPacman", np.zeros((1, 128), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[T, 128\], got float64 \(3, 128\)"):
        state_labels("pong", np.zeros((3, 128)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without sticky actions only, got sticky 0.25"):
        RamConsoles(AtariSettings(sticky=0.25))
    assert set(GAMES) == {"pong", "breakout"}
