"""Self-supervised tasks: labels and targets that are derived from the data alone (section IV).

Two kinds. A `PretextTask` needs one observation, x -> (x_hat, y_hat), and is trained with the
cross-entropy of eq. (2): it works on images and on games. A `SequenceTask` needs what only a game
has (next observations, actions, rewards), or another loss, or a slowly moving copy of the network.

Adding a task of either kind is one new file here, `rayssl/tasks/<name>.py`, that defines

    TASKS: dict[str, Callable[[], AnyTask]] = {"<name>": MyTask}

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
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = [
    "AnyTask",
    "Encoder",
    "PretextTask",
    "SequenceTask",
    "Sequences",
    "TaskLoss",
    "TrunkShape",
    "available_image_tasks",
    "available_pretext_tasks",
    "available_tasks",
    "check_generator",
    "draw_per_sample",
    "make_any_task",
    "make_image_task",
    "make_task",
    "make_tasks",
    "split_names",
]


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


class Sequences(NamedTuple):
    """K steps of B games, from observation to observation.

    Step k leads from obs[:, k] to obs[:, k + 1]. Where a game ends, or the stream broke, the mask
    is False from there on: the last observation is repeated, actions and rewards are 0.

    Attributes:
      obs: uint8 `[B, K + 1, stack, H, W]`.
      actions: int64 `[B, K]`.
      rewards: float32 `[B, K]`, as the game gave them (unclipped).
      mask: bool `[B, K]`, the step exists, in the same game.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor

    @classmethod
    def without_steps(cls, obs: Tensor) -> "Sequences":
        """Returns sequences of one observation each, `[B, stack, H, W]`, with K = 0."""
        none = obs.new_zeros((len(obs), 0))
        return cls(obs[:, None], none.long(), none.float(), none.bool())

    def first(self, num_steps: int) -> "Sequences":
        """Returns the first `num_steps` steps of each."""
        return Sequences(
            self.obs[:, : num_steps + 1], self.actions[:, :num_steps],
            self.rewards[:, :num_steps], self.mask[:, :num_steps],
        )  # fmt: skip


class TrunkShape(NamedTuple):
    """What a head can stand on.

    Attributes:
      features: F, numbers in the trunk's output.
      feature_map: (C, h, w) of its last convolution's output.
      hidden: units of the layer that each head of the network has for itself; None: no such layer.
    """

    features: int
    feature_map: tuple[int, int, int]
    hidden: int | None = None


class Encoder(NamedTuple):
    """A trunk with a task's head over it: the one that is trained, or its slowly moving copy.

    Attributes:
      features: observations `[N, stack, H, W]`, uint8 or float in [0, 255] -> `[N, F]`.
      feature_map: the same -> `[N, C, h, w]`, after the last convolution's ReLU.
      features_of_map: a feature map, the network's or a predicted one -> `[N, F]`.
      head: what the task's `make_head` returned.
    """

    features: Callable[[Tensor], Tensor]
    feature_map: Callable[[Tensor], Tensor]
    features_of_map: Callable[[Tensor], Tensor]
    head: Any


class TaskLoss(NamedTuple):
    """What a task's head makes of B samples.

    Attributes:
      loss: float32 `[B]`.
      correct: float32 `[B]` in [0, 1], 1 where the head is right (compare with `chance`).
    """

    loss: Tensor
    correct: Tensor


@runtime_checkable
class SequenceTask(Protocol):
    """Learns from K steps of a game, with a head and a loss of its own."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def num_steps(self) -> int:
        """K, the steps after the first observation that the task needs; 0: none."""

    @property
    def target_rate(self) -> float | None:
        """Share of the trained weights that the target encoder takes over after each update.

        target <- target + rate * (trained - target). None: the task needs no target encoder.
        """

    @property
    def rewarding_share(self) -> float | None:
        """Share of the sequences whose first step has a reward; None: those of the TD batch."""

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns the accuracy of a head that knows nothing."""

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns a new head; it computes in float32, whatever the trunk does."""

    def usable(self, data: Sequences) -> Tensor:
        """Returns which samples can be learned from: bool `[B]`. Costs no host sync.

        Raises:
          ValueError: if the observations have a shape that the task cannot take.
        """

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns the inputs of `loss`, and holds all of the task's randomness.

        Args:
          data: with num_steps steps. Not modified.
          generator: source of all randomness, one independent draw per sample; on data's device.
        Returns:
          tensors with B samples each.
        """

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns loss and success of every sample, usable or not; a function of its arguments.

        Args:
          online: the encoder that is trained.
          target: its slowly moving copy; no gradient flows into it. None without target_rate.
          drawn: what `draw` returned.
        """


AnyTask: TypeAlias = PretextTask | SequenceTask


def available_tasks() -> tuple[str, ...]:
    """Returns the names of all tasks, sorted."""
    return tuple(sorted(_constructors()))


def available_pretext_tasks() -> tuple[str, ...]:
    """Returns the names that `make_task` takes, sorted: tasks on single observations."""
    made = {name: make() for name, make in _constructors().items()}
    return tuple(sorted(name for name, task in made.items() if isinstance(task, PretextTask)))


def available_image_tasks() -> tuple[str, ...]:
    """Returns the names that `make_image_task` takes, sorted."""
    made = {name: make() for name, make in _constructors().items()}
    return tuple(sorted(name for name, task in made.items() if not _needs_games(task)))


def make_task(name: str) -> PretextTask:
    """Returns a new task of this name that works on single observations, images included.

    Raises:
      ValueError: if no file in `rayssl/tasks/` defines the name ("none" is not a task: a caller
        that allows it treats it before), if the files themselves break the rules above, or if the
        task needs more than single observations, or labels none.
    """
    task = make_any_task(name)
    if isinstance(task, PretextTask):
        return task
    if _needs_games(task):
        raise ValueError(
            f"Task {name!r} works on games alone (experiments/atari.py). For images: "
            f"{', '.join(available_image_tasks())}."
        )
    raise ValueError(
        f"Task {name!r} puts no label on an image, as this needs. Labels have "
        f"{', '.join(available_pretext_tasks())}."
    )


def make_image_task(name: str) -> AnyTask:
    """Returns a new task of this name that a classifier of images can train, of either kind.

    Raises:
      ValueError: as `make_any_task`, or if the task needs more than single images.
    """
    task = make_any_task(name)
    return make_task(name) if _needs_games(task) else task  # the first: for its error


def make_any_task(name: str) -> AnyTask:
    """Returns a new task of this name, of either kind.

    Raises:
      ValueError: as `make_task`, but for tasks of either kind.
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


def split_names(names: str) -> tuple[str, ...]:
    """Returns the names in a combination such as `permutation+inverse`, in its order.

    Raises:
      ValueError: if one is named twice.
    """
    found = tuple(names.split("+"))
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"Expected each task once in {names!r}, got {twice[0]!r} again.")
    return found


def make_tasks(names: str | None) -> tuple[AnyTask, ...]:
    """Returns new tasks of a combination such as `permutation+inverse`; () for None or "none".

    Raises:
      ValueError: as `make_any_task` and `split_names`.
    """
    if names is None or names == "none":
        return ()
    return tuple(make_any_task(name) for name in split_names(names))


def draw_per_sample(x: Tensor, high: int, *, generator: torch.Generator) -> Tensor:
    """Returns one independent uniform integer in [0, high) per sample: int64 `[B]`, x's device.

    Raises:
      ValueError: if the generator lives on another kind of device than x.
    """
    check_generator(x, generator)
    return torch.randint(high, (x.shape[0],), generator=generator, device=x.device)


def check_generator(x: Tensor, generator: torch.Generator) -> None:
    """Raises ValueError if the generator lives on another kind of device than x."""
    if generator.device.type != x.device.type:
        raise ValueError(
            f"Expected a generator on x's device {x.device}, got one on {generator.device}. "
            "Create it with torch.Generator(device=x.device)."
        )


def _needs_games(task: AnyTask) -> bool:
    if isinstance(task, PretextTask):
        return False
    return bool(task.num_steps or task.rewarding_share)


def _constructors() -> dict[str, Callable[[], AnyTask]]:
    """Read the folder anew each time: a file added while Python runs is found, too."""
    found: dict[str, Callable[[], AnyTask]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module_name = module_info.name
        module = importlib.import_module(f"{__name__}.{module_name}")
        tasks: dict[str, Callable[[], AnyTask]] = getattr(module, "TASKS", {})
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
