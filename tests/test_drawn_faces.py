"""Drawn faces: found by the detector, the same in every run, manipulated where the mask says."""

import numpy as np
import pytest

from rayssl.data.drawn_faces import Clip, draw_portrait, film, swap_face
from rayssl.data.face_detectors import make_detector


@pytest.fixture(scope="module")
def clip() -> Clip:
    return film(draw_portrait(0, 0), 0, 0, 0, num_frames=3)


def test_default_detector_finds_one_face_in_drawn_frames_where_it_was_drawn() -> None:
    detect = make_detector("lbp", min_face=0.25)
    hits, frames = 0, 0
    for actor in range(6):
        clip = film(draw_portrait(1, actor), 1, actor, 0, num_frames=2)
        for t, image in enumerate(clip.frames):
            frames += 1
            for box in detect(image):
                x, y = box.left + box.width / 2, box.top + box.height / 2
                hits += (
                    abs(x - 128 - clip.motion.x[t]) < 15 and abs(y - 128 - clip.motion.y[t]) < 20
                )
    assert hits >= frames - 1


def test_detector_finds_nobody_in_a_wall() -> None:
    wall = np.random.default_rng(0).integers(90, 110, (128, 128, 3)).astype(np.uint8)
    assert make_detector("lbp", min_face=0.25)(wall) == []


def test_drawing_is_the_same_in_every_run_and_another_for_another_seed(clip: Clip) -> None:
    again = film(draw_portrait(0, 0), 0, 0, 0, num_frames=3)
    assert np.array_equal(clip.frames, again.frames)
    assert not np.array_equal(clip.frames, film(draw_portrait(5, 0), 5, 0, 0, num_frames=3).frames)


def test_frames_of_a_clip_move_and_takes_of_an_actor_differ(clip: Clip) -> None:
    assert np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3)).min() > 0.5
    other = film(clip.portrait, 0, 0, 1, num_frames=3)
    assert np.abs(clip.frames.astype(int) - other.frames).mean() > 10


def test_swap_changes_the_face_where_the_mask_is_white_and_no_pixel_elsewhere(clip: Clip) -> None:
    fake, mask = swap_face(clip, draw_portrait(0, 1), seed=(0, 0, 0))
    assert fake.shape == clip.frames.shape
    assert mask.shape == fake.shape[:3]
    assert mask.dtype == np.uint8
    assert np.array_equal(fake[mask == 0], clip.frames[mask == 0])
    change = np.abs(fake.astype(float) - clip.frames).mean(-1)
    assert change[mask > 200].mean() > 5
    assert 0.02 < (mask > 128).mean() < 0.25


def test_swap_is_the_same_for_the_same_seed_and_another_for_another(clip: Clip) -> None:
    other = draw_portrait(0, 1)
    one, again, different = (swap_face(clip, other, seed=(s,))[0] for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, different)
