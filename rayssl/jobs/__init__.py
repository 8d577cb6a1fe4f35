"""What a sweep needs to know of a job: one file a job, whose name is its name on the command line.

A job is a training that a sweep runs many times. Its file holds a subclass of `Job` and an instance
of it under the name JOB; nothing else has to be changed to add one.
"""

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from rayssl.report import read_epochs
from rayssl.rllib.resources import Resources
from rayssl.trainables import newest_state

Row = Mapping[str, Any]  # one result: a row of a trial's own log
Write = Callable[[dict[str, Any], Any], None]  # takes a result and the trial's settings


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the processes of one trial ask for, and a line for people if that had to be adapted."""

    bundles: list[dict[str, float]]
    message: str | None


class Job:
    """One kind of training. The class attributes are its description, the methods its mechanism.

    Attributes:
      name: on the command line.
      settings: frozen dataclass of one training, with a field `seed`; `aux_task` and `aux_weight`
        if it has a pretext head. Each field is an option of the sweep but those in `not_swept`.
      presets: name -> values that replace the defaults of `settings`.
      unit: progress of a training, a column of its log.
      metric: its measure, a column of its log.
      mode: whether a good metric is large or small.
      judged_by: what `objective` returns, in words.
      not_swept: settings that the sweep gives itself.
      aux_only: settings that do nothing without a pretext head.
      adaptable: settings that may change while a training goes on, for PBT.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Any]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unit: ClassVar[str]
    metric: ClassVar[str]
    mode: ClassVar[Literal["max", "min"]] = "max"
    judged_by: ClassVar[str]
    not_swept: ClassVar[frozenset[str]] = frozenset({"seed"})
    aux_only: ClassVar[tuple[str, ...]] = ()
    adaptable: ClassVar[tuple[str, ...]] = ()

    def check(self, settings: Any) -> None:
        """Raises ValueError for settings that no training can have; starts nothing."""
        raise NotImplementedError

    def note(self, settings: Any) -> str:
        """Returns a line for people about settings that are allowed and a trap; else ""."""
        return ""

    def check_resumed(self, settings: Any, folder: Path) -> None:
        """Raises ValueError or OSError if a trial of an earlier start does not fit any more.

        What the settings name by path may have changed since.

        Args:
          folder: of the trial, with its log.
        """

    def trainable(self, trials: Sequence[Any]) -> Any:
        """Returns the Tune trainable of these trials: a class whose Tune config is `tune_config`.

        Args:
          trials: the settings of all trials that may run, for data that they share.
        """
        raise NotImplementedError

    def planned(self, settings: Any) -> int:
        """Returns the progress at which a training ends, in `unit`."""
        raise NotImplementedError

    def checkpoint_every(self, settings: Any) -> int:
        """Returns the Tune iterations between two checkpoints."""
        return 1

    def bundles(self, settings: Any, cpus: int, gpus: float) -> list[dict[str, float]]:
        """Returns what each process of a trial asks for; the trial's own process is the first.

        Args:
          cpus: cores of the trial's own process.
          gpus: GPUs of the trial.
        """
        raise NotImplementedError

    def fit(self, settings: Any, cpus: int, gpus: float, nodes: Sequence[Resources]) -> Fit:
        """Returns the bundles of a trial that has the cluster to itself, made to fit if they can.

        Raises:
          ValueError: if nothing makes them fit.
        """
        return Fit(self.bundles(settings, cpus, gpus), None)

    def objective(self, row: Row, settings: Any) -> float | None:
        """Returns what a searcher or scheduler judges a result by; None if it has no value yet."""
        value = row.get(self.metric)
        return None if value is None else float(value)

    def reported(self, rows: Sequence[Row], settings: Any) -> float | None:
        """Returns the metric that this job's protocol reports for a training with these rows."""
        return self.objective(rows[-1], settings) if rows else None

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the function that writes a trial's results to its folder.

        Args:
          folder: of the trial.
          name: of the trial.
          resumed_at: progress of the checkpoint that it goes on from; 0: from the start.
        """
        raise NotImplementedError

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Returns the rows of a trial's log in the order of `unit`, each step once."""
        raise NotImplementedError

    def newest_checkpoint(self, folder: Path) -> tuple[Path, int] | None:
        """Returns the newest whole checkpoint of a trial and its progress, or None."""
        raise NotImplementedError

    def line(self, row: Row, settings: Any) -> str:
        """Returns one line for people about a result."""
        raise NotImplementedError

    def seconds_per_unit(self, row: Row) -> float | None:
        """Returns the seconds that one step of `unit` took, as a row of a log tells; None: unknown.

        For the estimate of a dry run; `typical_seconds` where no earlier run is found.
        """
        raise NotImplementedError

    def time_shares(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns where a training's time went: {part: share}; empty if its log does not tell."""
        return {}

    def typical_seconds(self, settings: Any) -> tuple[float, str]:
        """Returns seconds for one step of `unit` and where that number comes from."""
        raise NotImplementedError

    def typical_gpu_seconds(self, settings: Any, on_each: int) -> tuple[float, str]:
        """Returns `typical_seconds` of a training that shares a GPU; a CPU's where none is known.

        Args:
          settings: of the training.
          on_each: trainings that share a GPU.
        """
        return self.typical_seconds(settings)

    def alike(self, saved: Mapping[str, Any], settings: Any) -> bool:
        """Returns whether an earlier run with these saved settings is about as fast."""
        raise NotImplementedError

    def plain(self, settings: Any) -> Any:
        """Returns the settings as they act: what does nothing is set to its default.

        Weight 0 is the plain baseline whatever the task, and the task none whatever the weight: so
        that equal trainings have equal settings.
        """
        task, weight = getattr(settings, "aux_task", None), getattr(settings, "aux_weight", None)
        if task is None or weight is None or (task != "none" and weight != 0):
            return settings
        defaults = {f.name: f.default for f in dataclasses.fields(settings)}
        unused = {name: defaults[name] for name in self.aux_only}
        return dataclasses.replace(settings, aux_task="none", aux_weight=0.0, **unused)

    def from_json(self, values: Mapping[str, Any]) -> Any:
        """Returns settings from values as JSON has them; names that are no setting are left out."""
        types = get_type_hints(self.settings)
        known = {f.name for f in dataclasses.fields(self.settings)}
        return self.settings(
            **{
                k: Path(v) if Path in _choices(types[k]) and isinstance(v, str) else v
                for k, v in values.items()
                if k in known
            }
        )


class EpochJob(Job):
    """A job whose trial is one process that runs, logs and checkpoints by the epoch.

    Its log is `rayssl.trainables.EpochWriter`'s, its trainable an `EpochTrainable`.

    Attributes:
      trial_bytes: memory that a trial asks Ray for.
    """

    unit: ClassVar = "epoch"
    trial_bytes: ClassVar[float]

    def bundles(self, settings: Any, cpus: int, gpus: float) -> list[dict[str, float]]:
        """Returns the one process of a trial."""
        return [{"CPU": cpus, "memory": self.trial_bytes} | ({"GPU": gpus} if gpus else {})]

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Returns one row an epoch."""
        return read_epochs(folder)

    def newest_checkpoint(self, folder: Path) -> tuple[Path, int] | None:
        """Returns the whole checkpoint with the most epochs that the log has.

        A finished one whose last row is lost would have nothing left to run, and never a row.
        """
        logged = max((row["epoch"] for row in self.rows(folder)), default=0)
        return newest_state(folder.glob("checkpoint_*"), logged)

    def seconds_per_unit(self, row: Row) -> float | None:
        """Returns the seconds of an epoch."""
        return row.get("seconds")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types of `A | B`, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def available_jobs() -> list[str]:
    """Returns the names of all jobs, sorted: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_job(name: str) -> Job:
    """Returns the job of this name.

    Raises:
      ValueError: for an unknown name; the text lists the known ones.
    """
    if name not in available_jobs():
        raise ValueError(
            f"Unknown job '{name}'. Available: {', '.join(available_jobs())}. To add one, create "
            "rayssl/jobs/<name>.py."
        )
    job: Job = import_module(f"{__name__}.{name}").JOB
    return job
