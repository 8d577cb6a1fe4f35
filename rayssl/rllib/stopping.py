"""How trials end: at their last step, as soon as a person asks, or at an error of their own.

Tune's own answer to Ctrl-C ends trials where they are and writes no checkpoint.
"""

import math
import os
import signal
import time
import traceback
from typing import Any, ClassVar

from ray import tune


class StopAtSteps(tune.Stopper):
    """Ends the trial after `steps` agent steps, or after the report at which a stop was asked for.

    A trial that ends by a stopper writes its final checkpoint (`checkpoint_at_end`).
    """

    asked: ClassVar[bool] = False  # of the class: Tune copies its stoppers

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns whether this trial ends now."""
        return StopAtSteps.asked or result["env_steps"] >= self.steps

    def stop_all(self) -> bool:
        """Returns False: the trial ends by itself, and so writes its checkpoint."""
        return False


class StopWhenAsked(tune.Stopper):
    """Ends all trials as soon as a stop was asked for; their last checkpoints are kept."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False: trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Returns whether a stop was asked for."""
        return StopAtSteps.asked


class StopAtNextReport(tune.Stopper):
    """Ends each trial at its next report after a stop was asked for, with a checkpoint."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns whether a stop was asked for."""
        return StopAtSteps.asked

    def stop_all(self) -> bool:
        """Returns False: trials end by themselves, and so write their checkpoints."""
        return False


ONE_SIGNAL_S = 1.0  # `timeout` sends its signal twice: to the process and to its group
NEXT_REPORT = "stopping at the next report, with a checkpoint; once more stops at once"


def stop_on_signals(message: str = NEXT_REPORT) -> None:
    """Makes Ctrl-C and SIGTERM ask for a stop; another, a second later or more, ends it at once.

    The message is printed at the first. Call it in the main thread, after ray.init, which sets a
    SIGTERM handler of its own.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    StopAtSteps.asked = False
    first = math.inf

    def ask(number: int, frame: Any) -> None:
        nonlocal first
        if StopAtSteps.asked:
            if time.monotonic() - first < ONE_SIGNAL_S:
                return
            raise KeyboardInterrupt
        StopAtSteps.asked, first = True, time.monotonic()
        print(f"\n{message}", flush=True)

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)


OWN_ERRORS = (ArithmeticError, ValueError, TypeError)  # come again however often one tries
FAILURE = "failure"  # in the last result of a trial that failed: the text of its error


def ends_with_own_errors(trainable: Any) -> Any:
    """Returns a trainable class that ends at once where an error of its own would come again.

    Tune starts a trial that raises anew, as it does after a lost process. An error of OWN_ERRORS
    becomes the trial's last result instead: `done`, with the text under FAILURE, and no checkpoint.
    """

    class Once(trainable):
        _failed = False

        def step(self) -> dict[str, Any]:
            self._failed = False  # Tune may reuse the process of a failed trial for the next
            try:
                result: dict[str, Any] = super().step()
            except OWN_ERRORS:
                self._failed = True
                return {"done": True, FAILURE: traceback.format_exc()}
            return result

        def save_checkpoint(self, checkpoint_dir: str) -> Any:
            return None if self._failed else super().save_checkpoint(checkpoint_dir)

    return Once
