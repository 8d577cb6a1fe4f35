"""Ctrl-C and SIGTERM ask a run to stop; only a later signal ends it at once."""

import os
import signal
from collections.abc import Iterator

import pytest

from rayssl.rllib import stopping
from rayssl.rllib.stopping import StopAtSteps, stop_on_signals


@pytest.fixture
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop_on_signals("stopping")
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    StopAtSteps.asked = False


def test_two_signals_of_one_timeout_are_one_and_a_later_one_ends_at_once(
    own_handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert StopAtSteps.asked
    assert capsys.readouterr().out.count("stopping") == 1
    monkeypatch.setattr(stopping, "ONE_SIGNAL_S", 0.0)  # as if a second had passed
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
