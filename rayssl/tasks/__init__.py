"""Pretext tasks: labels that are derived from the input alone, x -> (x_hat, y_hat) (section IV).

Adding a task is one new file here, `rayssl/tasks/<name>.py`, that defines

    TASKS: dict[str, Callable[[], PretextTask]] = {"<name>": MyTask}

The keys are the names on the command line; the first is the file's own name (with `-` for `_`),
further ones are variants. Nothing else has to be edited: the registry reads the folder and
`tests/test_contracts.py` runs over every name in it. A task is a frozen dataclass, so that it can
be pickled to a worker and compared. It knows nothing of how its loss is used: RL alternates TD and
aux updates (section IV-B), classification adds the losses (eq. 3).
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["PretextTask", "available_tasks", "draw_per_sample", "make_task"]


@runtime_checkable
class PretextTask(Protocol):
    """Derives inputs and labels for the pretext head h from inputs x alone (eq. 2)."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def num_classes(self) -> int:
        """The number of labels, and of outputs of the pretext head."""

    def __call__(self, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns transformed inputs and the labels that tell which transform each one got.

        Args:
          x: `[B, C, H, W]`, any dtype, any device; stacked frames are channels. Not modified.
          generator: source of all randomness, one independent draw per sample; on x's device.
        Returns:
          x_hat, `[B, C, H, W]` with x's dtype and device; y_hat, int64 `[B]` in [0, num_classes).
        Raises:
          ValueError: if x has a shape that the task cannot take, or the generator's device is
            not x's.
        """

    def every_class(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each sample once under every label, without a draw.

        Where a label stands for several transforms, its first one is applied.

        Args:
          x: `[B, C, H, W]`, as `__call__` takes it.
        Returns:
          x_hat, `[num_classes * B, C, H, W]`: all samples under label 0, then under 1, ...;
          y_hat, int64 `[num_classes * B]`.
        """

    def usable(self, x: Tensor) -> Tensor:
        """Returns which samples carry a label: bool `[B]` on x's device.

        False where two classes can give the same x_hat, or where x_hat gives its label away.
        Callers leave these samples out of the aux loss and log the share. Costs no host sync.
        Raises ValueError as `__call__` does for x.
        """


def available_tasks() -> tuple[str, ...]:
    """Returns the names that `make_task` takes, sorted."""
    return tuple(sorted(_constructors()))


def make_task(name: str) -> PretextTask:
    """Returns a new task of this name.

    Raises:
      ValueError: if no file in `rayssl/tasks/` defines the name ("none" is not a task: a caller
        that allows it treats it before), or if the files themselves break the rules above.
    """
    constructors = _constructors()
    if name not in constructors:
        close = difflib.get_close_matches(name, constructors, n=1)
        raise ValueError(
            f"Unknown task {name!r}. Available: {', '.join(sorted(constructors))}. "
            "To add one, create rayssl/tasks/<name>.py."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return constructors[name]()


def draw_per_sample(x: Tensor, high: int, *, generator: torch.Generator) -> Tensor:
    """Returns one independent uniform integer in [0, high) per sample: int64 `[B]`, x's device.

    Raises:
      ValueError: if the generator lives on another kind of device than x.
    """
    if generator.device.type != x.device.type:
        raise ValueError(
            f"Expected a generator on x's device {x.device}, got one on {generator.device}. "
            "Create it with torch.Generator(device=x.device)."
        )
    return torch.randint(high, (x.shape[0],), generator=generator, device=x.device)


def _constructors() -> dict[str, Callable[[], PretextTask]]:
    """Read the folder anew each time: a file added while Python runs is found, too."""
    found: dict[str, Callable[[], PretextTask]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module_name = module_info.name
        module = importlib.import_module(f"{__name__}.{module_name}")
        tasks: dict[str, Callable[[], PretextTask]] = getattr(module, "TASKS", {})
        own_name = module_name.replace("_", "-")
        if next(iter(tasks), None) != own_name:
            raise ValueError(
                f"Expected rayssl/tasks/{module_name}.py to define TASKS with first name "
                f"{own_name!r}, got {list(tasks)}. "
                f"Write TASKS = {{{own_name!r}: <constructor>}} there."
            )
        for name in tasks:
            if name in found:
                raise ValueError(
                    f"Expected one task for each name, got {name!r} again in "
                    f"rayssl/tasks/{module_name}.py. Rename one of the two."
                )
        found.update(tasks)
    return found
