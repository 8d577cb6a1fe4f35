"""Videos: every frame arrives, of the right size, and a broken recording leaves no file."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from rayssl.video import (
    BAR,
    CHOSEN,
    HEIGHT,
    RIGHT_GUESS,
    WIDTH,
    WRONG_GUESS,
    AuxPanel,
    Panel,
    action_words,
    draw_attribution,
    draw_frame,
    write_mp4,
)

PANEL = Panel(
    title="Pong",
    subtitle="paper-code, rotation, 1000 steps",
    score=3.0,
    step=12,
    actions=("NOOP", "FIRE", "RIGHT"),
    values=np.array([0.1, 0.4, 0.1], np.float32),
    chosen=1,
    spread=0.2,
    trace=[0.1, 0.3, 0.2],
)
AUX = AuxPanel(
    task="rotation",
    images=np.full((4, 84, 84), 9, np.uint8),
    captions=["t-3", "t-2", "t-1", "t"],
    probabilities=np.array([0.1, 0.7, 0.1, 0.1], np.float32),
    label=1,
    usable=True,
)
SCREEN = np.full((210, 160, 3), (200, 10, 10), np.uint8)


def has_color(frame: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((frame == np.array(color)).all(2).any())


def read_mp4(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def test_mp4_holds_every_frame_in_order_size_and_rate(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(6)]
    assert write_mp4(tmp_path / "new" / "a.mp4", iter(frames), fps=15) == 6
    decoded, rate = read_mp4(tmp_path / "new" / "a.mp4")
    assert [frame.shape for frame in decoded] == [(48, 64, 3)] * 6
    assert rate == 15
    for shown, given in zip(decoded, frames, strict=True):
        assert np.abs(shown.astype(int) - given).max() <= 4  # what H.264 loses


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "at least one frame, got none"),
        ([np.zeros((47, 64, 3), np.uint8)], r"even size, got uint8 \(47, 64, 3\) at frame 0"),
        ([np.zeros((48, 64, 3), np.float32)], "got float32"),
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 66, 3), np.uint8)], "at frame 1"),
    ],
)
def test_frames_that_do_not_fit_are_named_and_leave_no_file(
    frames: list[np.ndarray], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        write_mp4(tmp_path / "a.mp4", frames, fps=15)
    assert list(tmp_path.iterdir()) == []


def test_recording_that_breaks_off_keeps_the_video_that_was_there(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((48, 64, 3), np.uint8)
        raise RuntimeError("console lost")

    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="console lost"):
        write_mp4(tmp_path / "a.mp4", broken(), fps=15)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", b"old")]


def test_video_path_must_end_in_mp4(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ending in .mp4"):
        write_mp4(tmp_path / "a.avi", [], fps=15)


def test_frame_shows_the_screen_enlarged_and_the_chosen_action_marked() -> None:
    frame = draw_frame(SCREEN, PANEL)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert frame.dtype == np.uint8
    assert (frame[:, :480] == SCREEN[0, 0]).all()
    assert has_color(frame, CHOSEN)
    assert not has_color(draw_frame(SCREEN, replace(PANEL, chosen=None)), CHOSEN)


def test_bar_of_the_best_action_goes_right_and_others_left_of_the_middle() -> None:
    frame = draw_frame(SCREEN, replace(PANEL, trace=[]))
    best = np.flatnonzero((frame == np.array(CHOSEN)).all(2).sum(0) > 15)  # columns of the bar
    others = np.flatnonzero((frame == np.array(BAR)).all(2).sum(0) > 15)
    assert best.min() == others.max() + 1 or abs(int(best.min()) - int(others.max())) <= 2
    # Q - V: 0.2 fills the half of the bar (spread 0.2), -0.1 half of the other one
    assert len(best) == pytest.approx(2 * len(others), rel=0.1)


def test_pretext_guess_is_green_if_right_red_if_wrong_and_neither_without_label() -> None:
    right = draw_frame(SCREEN, replace(PANEL, aux=AUX))
    wrong = draw_frame(SCREEN, replace(PANEL, aux=replace(AUX, label=2)))
    without = draw_frame(SCREEN, replace(PANEL, aux=replace(AUX, usable=False)))
    found = [[has_color(f, c) for c in (RIGHT_GUESS, WRONG_GUESS)] for f in (right, wrong, without)]
    assert found == [[True, False], [False, True], [False, False]]


@pytest.mark.parametrize("num_actions", [1, 18])
def test_panel_takes_any_number_of_actions_and_classes(num_actions: int) -> None:
    many = replace(
        PANEL,
        actions=["DOWNRIGHTFIRE"] * num_actions,
        values=np.zeros(num_actions, np.float32),
        chosen=0,
        spread=0.0,
        aux=replace(AUX, probabilities=np.full(24, 1 / 24)),
    )
    assert draw_frame(SCREEN, many).shape == (HEIGHT, WIDTH, 3)


def test_action_names_are_split_into_words() -> None:
    assert action_words("DOWNRIGHTFIRE") == "down right fire"
    assert action_words("NOOP") == "noop"


def test_long_title_of_a_map_stays_inside_its_picture() -> None:
    screen, frame = np.zeros((210, 160, 3), np.uint8), np.zeros((84, 84), np.uint8)
    title = "smoothgrad_sq of the logit of the true pretext class (permutation)"
    short, long = (
        draw_attribution(screen, frame, np.zeros((84, 84)), text, "") for text in ("x", title)
    )
    margin = slice(WIDTH - 8, WIDTH)
    assert (long != short).any()
    assert np.array_equal(long[:, margin], short[:, margin])
