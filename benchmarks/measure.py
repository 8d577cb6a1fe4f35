"""What the benchmarks share: the common work, the clock of one measurement, spreads, and output."""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from rayssl.cli import check_file_writable, provenance, refuse
from rayssl.report import markdown_table

# The work of every row of throughput.py. A step is one agent decision, 4 emulator frames.
GAME = "breakout"
NUM_ENVS = 8
BATCH_SIZE = 32
STEPS_PER_UPDATE = 4  # Mnih et al. 2015, Ext. Data Table 1: "update frequency"
REPLAY_CAPACITY = 100_000  # transitions
EPSILON = 0.1  # constant, so that every second of a measurement asks the network equally often
LEARNING_RATE = 2e-4
GAMMA = 0.99
MAX_GRAD_NORM = 10.0

LOAD = "load_average_1min_at_start"  # of the machine
MAY_BE_ZERO = ("seed", "workers", "warm_updates", "fill_steps", "least", "price")  # options
PACKAGES = ("torch", "ray", "stable-baselines3", "gymnasium", "ale-py", "numpy")


@dataclass(frozen=True)
class Turn:
    """How one measurement is made.

    Attributes:
      seconds: length of the timed window.
      fill_steps: steps that fill the replay before the first update; not timed.
      warm_updates: TD updates (and the compiling) before the window starts; not timed.
      threads: CPU threads of torch.
      seed: of weights, games and draws.
      compile: torch.compile where a row uses it.
    """

    seconds: float = 60.0
    fill_steps: int = 1_000
    warm_updates: int = 50
    threads: int = 1
    seed: int = 0
    compile: bool = True


class Figures(NamedTuple):
    """What one measurement gives.

    Attributes:
      env_steps_per_s, updates_per_s, aux_updates_per_s: in the timed window; the second counts TD
        updates only.
      seconds: length of the window.
      bytes_per_transition: bytes of the replay's arrays by transitions they hold; None: no replay.
      parameters: of the online network.
    """

    env_steps_per_s: float
    updates_per_s: float
    aux_updates_per_s: float
    seconds: float
    bytes_per_transition: float | None
    parameters: int


class Meter:
    """The clock of one measurement: starts after the warm-up updates, stops after `seconds`.

    Counts are read with the clock at both ends of the window, so it may end late but not wrongly.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._start: tuple[float, tuple[int, int, int]] | None = None
        self._end: tuple[float, tuple[int, int, int]] | None = None

    def goes_on(self, env_steps: int, td_updates: int, aux_updates: int = 0) -> bool:
        """Returns whether to go on; takes the totals since the row's start."""
        now = time.perf_counter(), (env_steps, td_updates, aux_updates)
        if self._start is None:
            if td_updates >= self.turn.warm_updates:
                self._start = now
            return True
        self._end = now
        return now[0] - self._start[0] < self.turn.seconds

    def figures(self, bytes_per_transition: float | None, parameters: int) -> Figures:
        """Returns the rates of the window that is over, with the two sizes."""
        assert self._start is not None
        assert self._end is not None
        seconds = self._end[0] - self._start[0]
        pairs = zip(self._start[1], self._end[1], strict=True)
        steps, td, aux = ((end - start) / seconds for start, end in pairs)
        return Figures(steps, td, aux, seconds, bytes_per_transition, parameters)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def show(figure: dict[str, float] | None) -> str | None:
    """Returns a spread as a table's cell, `median (min-max)`; None stays None."""
    if figure is None:
        return None
    low, middle, high = (_digits(figure[key]) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def milliseconds(function: Callable[[], Any], calls: int) -> float:
    """Returns the mean wall time of one call, ms, over `calls` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls * 1e3


def turn_about(functions: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Returns name -> one figure a repeat; A B C A B C ..., so that a slow minute meets all."""
    figures: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            figures[name].append(function())
    return figures


def peak_rss_mib() -> float:
    """Returns this process's largest resident memory so far, MiB.

    From /proc: `getrusage` starts at the size of the parent process, which says nothing of ours.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("No VmHWM in /proc/self/status: peak memory is measured on Linux only.")


def check_settings(settings: Any) -> None:
    """Ends the script with one line for a number below its least, or a file it cannot write.

    Before anything is measured. The least is 1 for whole numbers and above 0 for others, but for
    those in MAY_BE_ZERO.

    Args:
      settings: the dataclass of the command line.
    """
    for each in dataclasses.fields(settings):
        given = getattr(settings, each.name)
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and each.name not in MAY_BE_ZERO):
                least = "0 or more" if each.name in MAY_BE_ZERO else "more than 0"
                refuse(f"--{each.name.replace('_', '-')} must be {least}, got {value}.")
    try:
        if path := getattr(settings, "json", None):
            check_file_writable(path)
    except OSError as error:
        refuse(error)


def run_facts(settings: Any) -> dict[str, Any]:
    """Returns what all rows of a file share: settings, command, commit, date, versions, machine.

    Args:
      settings: the dataclass of the command line; see `check_settings`.
    """
    check_settings(settings)
    facts = provenance(settings)
    facts["versions"] |= {name: _version(name) for name in PACKAGES}
    facts["machine"] = {
        "cpu": facts["cpu"],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        LOAD: round(os.getloadavg()[0], 2),
    }
    return facts


def usable_cores() -> int:
    """Returns the cores that this process may use (`taskset` lowers it)."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_compiled(compile_it: bool, result: Mapping[str, Any], *, graphs: bool = False) -> None:
    """Ends the script unless updates run as they were asked to: else it measures something else.

    Args:
      compile_it: whether they were asked to compile.
      result: `compiled` and `cuda_graphs`, as the learner or the algorithm tells.
      graphs: whether they were asked to be replayed as CUDA graphs.
    """
    for name, asked in (("compiled", compile_it), ("cuda_graphs", graphs)):
        if asked and not result[name]:
            without = {"compiled": "--no-compile", "cuda_graphs": "--no-cuda-graphs"}[name]
            refuse(
                f"Expected updates that are {name.replace('_', ' ')}, and they are not (a warning "
                f"above says why). Repair that, or measure everything with {without}."
            )


def report(rows: Sequence[dict[str, Any]], columns: Sequence[str], path: Path | None) -> None:
    """Prints rows as a markdown table and writes all they hold to a JSON file, if one is given.

    Args:
      rows: one object a row.
      columns: keys to print; spreads become `median (min-max)`.
      path: file to write; its folder is made.
    """
    shown = [{key: _cell(row.get(key)) for key in columns} for row in rows]
    print(markdown_table(shown))
    for row in rows:
        if "skipped" in row or "failed" in row:
            print(f"{row['name']}: {row.get('skipped') or row['failed']}", file=sys.stderr)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(rows), indent=1) + "\n")
        print(f"saved: {path}")


def _cell(value: Any) -> Any:
    return show(value) if isinstance(value, dict) else value
