"""What a sweep varies -> the list of its trials. Nothing is started here.

An axis is a setting of the job with the values that it takes: a list, or a range that is drawn from
log-uniformly. `trials_of_grid` makes every combination, `draw_point` one random one; both are
repeated for every seed, and the plain baseline is added once per seed.
"""

import dataclasses
import difflib
import itertools
import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from rayssl.jobs import Job

# The settings whose effect is that of the pretext head: an axis among them asks for a baseline.
AUX_SETTINGS = ("aux_task", "aux_weight", "aux_every", "schedule")


@dataclass(frozen=True)
class LogRange:
    """Values from `low` to `high`, drawn uniformly in their logarithm; whole numbers if `whole`."""

    low: float
    high: float
    whole: bool = False

    def at(self, share: float) -> float:
        """Returns the value at a share in [0, 1] of the range's logarithm."""
        value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")  # names stay readable


Axis = tuple[Any, ...] | LogRange
Axes = dict[str, Axis]  # setting -> values


class Trial(NamedTuple):
    """One training: its name, its settings, and the group of those that differ in the seed only."""

    name: str
    settings: Any
    group: int


def parse_axis(job: Job, name: str, words: Sequence[str]) -> tuple[str, Axis]:
    """Returns a setting's name and its values from the words of a command line.

    Args:
      name: with dashes or underscores.
      words: values, or one word `log:FROM:TO`.
    Raises:
      ValueError: for an unknown setting, one that is not the sweep's to vary, or a value that is
        not of the setting's type.
    """
    name = name.replace("-", "_")
    types_by_name = settable(job)
    if name not in types_by_name:
        raise ValueError(_unknown_setting(job, name))
    option = "--" + name.replace("_", "-")
    words = [word for word in words if word != ""]
    if not words:
        raise ValueError(f"{option} needs at least one value, got none.")
    kind = types_by_name[name]
    if any(word.startswith("log:") for word in words):
        return name, _log_range(option, words, kind)
    values = [_value(option, word, kind) for word in words]
    return name, tuple(dict.fromkeys(values))


def settable(job: Job) -> dict[str, Any]:
    """Returns the settings that a sweep of this job can vary, with their types."""
    hints = get_type_hints(job.settings)
    return {
        f.name: hints[f.name]
        for f in dataclasses.fields(job.settings)
        if f.name not in job.not_swept
    }


def base_settings(job: Job, preset: str | None) -> Any:
    """Returns the settings that every trial starts from: the job's defaults or a preset of it.

    Raises:
      ValueError: for a preset that the job has not.
    """
    if preset is None:
        return job.settings()
    if preset not in job.presets:
        known = ", ".join(sorted(job.presets)) or "none: leave --preset out"
        raise ValueError(f"Unknown preset '{preset}' of {job.name}. Available: {known}.")
    return job.settings(**job.presets[preset])


def grid_points(axes: Axes) -> list[dict[str, Any]]:
    """Returns every combination of the axes' values.

    Raises:
      ValueError: for a range: a grid has no end of it.
    """
    for name, axis in axes.items():
        if isinstance(axis, LogRange):
            raise ValueError(
                f"A grid cannot take every value of {name} from {axis.low:g} to {axis.high:g}. "
                "List values, or draw from the range with --search random or optuna."
            )
    return [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*_lists(axes.values()))
    ]


def end_points(axes: Axes) -> list[dict[str, Any]]:
    """Returns points that have every value of a list and both ends of a range among them."""
    ends = {k: (a.at(0), a.at(1)) if isinstance(a, LogRange) else a for k, a in axes.items()}
    first = {name: values[0] for name, values in ends.items()}
    return [first | {name: value} for name, values in ends.items() for value in values]


def baselines(job: Job, base: Any, axes: Axes) -> list[dict[str, Any]]:
    """Returns the points of the plain baseline: one for each combination of the other lists.

    None where no setting of the pretext head is an axis. A range has no single partner: there the
    baseline keeps the value that every trial starts from.
    """
    varied_of_head = {*AUX_SETTINGS, *(set(job.aux_only) & set(several(axes)))}
    if not varied_of_head & set(axes) or not hasattr(base, "aux_weight"):
        return []
    others = {
        name: axis
        for name, axis in axes.items()
        if name not in (*AUX_SETTINGS, *job.aux_only) and not isinstance(axis, LogRange)
    }
    return [
        {**dict(zip(others, values, strict=True)), "aux_weight": 0.0}
        for values in itertools.product(*_lists(others.values()))
    ]


def trials_of_points(
    job: Job,
    base: Any,
    axes: Axes,
    points: Iterable[Mapping[str, Any]],
    seeds: Sequence[int],
    known: Sequence[Trial] = (),
) -> list[Trial]:
    """Returns the trials of these points, for every seed, that are not among the known ones.

    Trials whose settings act alike (`Job.plain`) are one; with the first seed come all points, then
    the second, so that a sweep that is cut short has whole comparisons.
    """
    group_of = {_without_seed(t.settings): t.group for t in known}
    taken = {t.settings for t in known}
    found: list[Trial] = []
    points = list(points)
    for seed in seeds:
        for point in points:
            settings = job.plain(dataclasses.replace(base, **point, seed=seed))
            if settings in taken:
                continue
            taken.add(settings)
            group = group_of.setdefault(_without_seed(settings), len(group_of))
            found.append(Trial(trial_name(settings, base, axes), settings, group))
    return found


def draw_point(axes: Axes, generator: np.random.Generator) -> dict[str, Any]:
    """Returns one value of each axis: of a list with equal chances, of a range log-uniformly."""
    return {
        name: axis.at(generator.random())
        if isinstance(axis, LogRange)
        else axis[int(generator.integers(len(axis)))]
        for name, axis in axes.items()
    }


def draw_points(axes: Axes, samples: int, seed: int) -> list[dict[str, Any]]:
    """Returns that many different points, or all if there are fewer; the same for the same seed."""
    generator = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for _ in range(100 * samples):
        point = draw_point(axes, generator)
        if point not in found:
            found.append(point)
        if len(found) == samples:
            break
    return found


def trial_name(settings: Any, base: Any, axes: Axes) -> str:
    """Returns a trial's name: what it varies, and its seed: `rotation-w0.1-lr0.001-s0`.

    Settings that a sweep gives one value only are left out.
    """
    parts = []
    for name, axis in axes.items():
        if isinstance(axis, tuple) and len(axis) == 1 and name != "aux_weight":
            continue
        if name in AUX_SETTINGS and name != "aux_weight" and settings.aux_task == "none":
            continue
        parts.append(_part(name, getattr(settings, name)))
    if "aux_weight" not in axes and getattr(settings, "aux_task", "") == "none":
        parts.insert(0, "none")
    return "-".join([*parts, f"s{settings.seed}"])


def axes_to_json(axes: Axes) -> dict[str, Any]:
    """Returns axes as JSON has them."""
    return {
        name: {"log": [axis.low, axis.high]}
        if isinstance(axis, LogRange)
        else json.loads(json.dumps(list(axis), default=str))
        for name, axis in axes.items()
    }


def settings_to_json(settings: Any) -> dict[str, Any]:
    """Returns all settings of a trial as JSON has them: paths as text."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return values


def several(axes: Axes) -> Axes:
    """Returns the axes with more than one value."""
    return {k: axis for k, axis in axes.items() if isinstance(axis, LogRange) or len(axis) > 1}


def varied(axes: Axes) -> list[str]:
    """Returns the settings with more than one value, without those that every table has."""
    return [name for name in several(axes) if name not in ("aux_task", "aux_weight")]


def _lists(axes: Iterable[Axis]) -> list[tuple[Any, ...]]:
    return [axis for axis in axes if isinstance(axis, tuple)]


def _without_seed(settings: Any) -> Any:
    return dataclasses.replace(settings, seed=0)


_SHORT = {"aux_weight": "w", "aux_task": "", "schedule": "", "aux_every": "every"}


def _part(name: str, value: Any) -> str:
    """One part of a trial's name, of signs that every file system takes."""
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    text = "".join(sign if sign.isalnum() or sign in ".+-_" else "_" for sign in text)
    return _SHORT.get(name, name) + text


def _unknown_setting(job: Job, name: str) -> str:
    """The text of the error, with what was probably meant."""
    fields = {f.name for f in dataclasses.fields(job.settings)}
    if name in fields:
        instead = {"seed": "--seeds", "preset": "--preset"}.get(name, "an option of the sweep")
        return f"{name} is not a setting to vary: see {instead}."
    known = sorted(settable(job))
    near = difflib.get_close_matches(name, known, n=3) or known
    return f"{job.name} has no setting '{name}'. Near: {', '.join(near)}."


def _log_range(option: str, words: Sequence[str], kind: Any) -> LogRange:
    numbers = {k for k in _kinds(kind) if k in (int, float)}
    if not numbers:
        raise ValueError(f"{option} takes no range: its values are not numbers.")
    if len(words) > 1:
        raise ValueError(f"{option} takes a list or one range, got {' '.join(words)}.")
    try:
        low, high = map(float, words[0].split(":")[1:])
    except ValueError:
        raise ValueError(f"{option} expected log:FROM:TO, got {words[0]}.") from None
    if not 0 < low < high < math.inf:
        raise ValueError(f"{option} expected 0 < FROM < TO in log:FROM:TO, got {words[0]}.")
    if numbers != {int}:
        return LogRange(low, high)
    whole = LogRange(math.ceil(low), math.floor(high), whole=True)
    if not whole.low < whole.high:
        raise ValueError(f"{option} draws whole numbers: {words[0]} holds no two of them.")
    return whole


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _value(option: str, word: str, kind: Any) -> Any:
    """A word as a value of a type; `none` is a value of its own before it is text."""
    for one in sorted(_kinds(kind), key=lambda one: one is not types.NoneType):
        value = _value_of_kind(word, one)
        if value is not _NO_VALUE:
            return value
    raise ValueError(f"{option} expected {_kind_name(kind)}, got '{word}'.")


_NO_VALUE = object()


def _value_of_kind(word: str, kind: Any) -> Any:
    if kind is types.NoneType:
        return None if word.lower() == "none" else _NO_VALUE
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == word), _NO_VALUE)
    if kind is bool:
        return {"true": True, "false": False}.get(word.lower(), _NO_VALUE)
    if kind in (int, float, str, Path):
        try:
            return kind(word)
        except ValueError:
            return _NO_VALUE
    return _NO_VALUE


_IN_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "none",
}  # fmt: skip


def _kind_name(kind: Any) -> str:
    """A type in words: `a whole number or none`."""
    names: list[str] = []
    for one in _kinds(kind):
        if get_origin(one) is Literal:
            names += map(str, get_args(one))
        else:
            names.append(_IN_WORDS.get(one, getattr(one, "__name__", str(one))))
    return " or ".join(names)
