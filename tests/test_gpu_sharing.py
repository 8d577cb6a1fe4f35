"""Trials on one GPU."""

import ctypes

import pytest

from rayssl.gpu_sharing import wait_asleep


def test_without_a_driver_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert wait_asleep() is False


@pytest.mark.parametrize(("init", "flags", "taken"), [(0, 0, True), (100, 0, False), (0, 1, False)])
def test_the_driver_decides(
    init: int, flags: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Driver:
        def cuInit(self, zero: int) -> int:  # noqa: N802
            return init

        def cuDevicePrimaryCtxSetFlags_v2(self, device: int, given: int) -> int:  # noqa: N802
            asked.append((device, given))
            return flags

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert wait_asleep() is taken
    assert asked == ([(0, 4)] if init == 0 else [])
