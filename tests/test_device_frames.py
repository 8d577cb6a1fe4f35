"""Frames on a device are the frames in memory; tried with the CPU as the device."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rayssl.device_frames import DeviceFrames
from rayssl.replay import Fragment, FrameReplay, HostFrames

SHAPE = (6, 6)


def make_replay(on_device: bool) -> FrameReplay:
    on_cpu = partial(DeviceFrames, device=torch.device("cpu"))
    return FrameReplay(
        64, num_lanes=2, frame_shape=SHAPE, n_step=3, seed=5,
        make_frames=on_cpu if on_device else HostFrames,
    )  # fmt: skip


def fragment(rng: np.random.Generator, start: int, steps: int = 10) -> Fragment:
    """Games of 7 steps and their autoreset row, side by side in two lanes."""
    shape = (steps, 2)
    place = np.tile((start + np.arange(steps))[:, None] % 8, (1, 2))
    never = np.zeros(shape, bool)
    return Fragment(
        frames=rng.integers(0, 256, (*shape, *SHAPE), np.uint8),
        actions=rng.integers(0, 4, shape),
        rewards=rng.normal(size=shape).astype(np.float32),
        terminated=place == 6,
        truncated=never,
        life_lost=never,
        reset=place == 0,
        valid=place < 7,
    )


@pytest.fixture
def pair() -> tuple[FrameReplay, FrameReplay]:
    """The same stream in memory and on the device, over ends of games and a full ring."""
    host, device = make_replay(False), make_replay(True)
    for replay in (host, device):
        rng = np.random.default_rng(0)
        for i in range(6):
            replay.add(fragment(rng, 10 * i))
    assert len(host) == host.capacity
    return host, device


def test_sequences_are_the_same_and_stay_on_the_device(
    pair: tuple[FrameReplay, FrameReplay],
) -> None:
    host, device = pair
    indices = host.sampleable_indices()
    first, second = (replay.gather_sequences(indices, 5) for replay in pair)
    assert isinstance(second.obs, torch.Tensor)
    assert not first.mask.all()
    for name, value in first._asdict().items():
        np.testing.assert_array_equal(value, np.asarray(getattr(second, name)), err_msg=name)


def assert_same_batches(host: FrameReplay, device: FrameReplay) -> None:
    blank = 0
    for _ in range(20):
        first, second = host.sample(16), device.sample(16)
        assert isinstance(second.obs, torch.Tensor)
        for name, value in first._asdict().items():
            np.testing.assert_array_equal(value, np.asarray(getattr(second, name)), err_msg=name)
        blank += int((first.obs == 0).all(axis=(2, 3)).sum())
    assert blank, "no stack of a game's start was drawn"


def test_batches_equal_those_of_frames_in_memory(pair: tuple[FrameReplay, FrameReplay]) -> None:
    assert_same_batches(*pair)


def test_files_are_the_same_and_restore_either_way(
    pair: tuple[FrameReplay, FrameReplay], tmp_path: Path
) -> None:
    host, device = pair
    for name, replay in (("host", host), ("device", device)):
        replay.save(tmp_path / name)
    assert (tmp_path / "host").read_bytes() == (tmp_path / "device").read_bytes()
    host, device = make_replay(False), make_replay(True)
    host.restore(tmp_path / "device")
    device.restore(tmp_path / "host")
    assert_same_batches(host, device)


def test_what_is_stored_does_not_follow_the_array_that_it_came_from() -> None:
    frames = DeviceFrames(4, 3, torch.device("cpu"))
    given = np.full((2, 3), 7, np.uint8)
    frames.write(np.array([1, 2]), given)
    given[:] = 9
    np.testing.assert_array_equal(frames.read(np.array([1, 2])), 7)
    stacks = frames.stacks(np.array([[1, 2]]), np.array([[True, False]]))
    assert stacks.tolist() == [[[0, 0, 0], [7, 7, 7]]]
    np.testing.assert_array_equal(frames.read(np.array([1])), 7)  # a stack is a copy
    assert frames.nbytes == 12


def test_device_without_room_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    with pytest.raises(MemoryError, match=r"needs 7\.06 GB .* cuda has 1 GB free.* to 141723"):
        DeviceFrames(10**6, 84 * 84, torch.device("cuda"))
