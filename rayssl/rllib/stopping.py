"""Ends a run at its last step, or as soon as a person asks, with a checkpoint either way.

Tune's own answer to Ctrl-C ends trials where they are and writes no checkpoint.
"""

import os
import signal
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


NEXT_REPORT = "stopping at the next report, with a checkpoint; once more stops at once"


def stop_on_signals(message: str = NEXT_REPORT) -> None:
    """Makes Ctrl-C and SIGTERM ask for a stop; a second one ends the process at once.

    The message is printed at the first. Call it in the main thread, after ray.init, which sets a
    SIGTERM handler of its own.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    StopAtSteps.asked = False

    def ask(number: int, frame: Any) -> None:
        if StopAtSteps.asked:
            raise KeyboardInterrupt
        StopAtSteps.asked = True
        print(f"\n{message}", flush=True)

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
