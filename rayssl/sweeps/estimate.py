"""How long a sweep may take, from the logs of earlier runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rayssl.jobs import Job
from rayssl.sweeps.axes import Trial

NEWEST = 30  # earlier runs that are looked at


class Estimate(NamedTuple):
    """Seconds of a sweep, and one line for each source of the speeds in it."""

    seconds: float
    sources: list[str]


def estimate(
    job: Job, trials: Sequence[Trial], done: Sequence[int], at_once: int, past: Path,
    gpus: float = 0.0,
) -> Estimate:  # fmt: skip
    """Returns how long these trials may take, `at_once` of them side by side.

    Args:
      done: progress that each trial has made already.
      past: folder of earlier runs; where none is like a trial, the job's typical speed counts.
      gpus: of each trial. With any, earlier runs count only if their machine had a GPU, which they
        need not have used: their logs do not say.
    """
    logs = _earlier(job, past, gpus > 0)
    devices = max(1, math.ceil(at_once * gpus - 1e-9))  # 30 * 0.1 is a little more than 3
    sources: dict[str, None] = {}
    seconds = []
    for trial, before in zip(trials, done, strict=True):
        speeds = [s for saved, s in logs if job.alike(saved, trial.settings)]
        if speeds:
            each = median(speeds)
            source = f"median of {len(speeds)} rows of earlier runs in {past}"
        elif gpus:
            each, source = job.typical_gpu_seconds(trial.settings, math.ceil(at_once / devices))
        else:
            each, source = job.typical_seconds(trial.settings)
        head = "no pretext head" if getattr(trial.settings, "aux_task", "") == "none" else "with it"
        sources[f"{each:.2g} s for 1 {job.unit}, {head}: {source}"] = None
        seconds.append(each * max(0, job.planned(trial.settings) - before))
    total = max([sum(seconds) / max(1, at_once), *seconds], default=0.0)
    return Estimate(total, list(sources))


def duration(seconds: float) -> str:
    """Returns a rough duration for people: no more than two figures of it are meant."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"


def _earlier(job: Job, past: Path, with_gpu: bool) -> list[tuple[dict[str, Any], float]]:
    """The settings and seconds of each row of the newest runs below a folder."""
    found = []
    files = [path for depth in ("*", "*/*") for path in past.glob(f"{depth}/settings.json")]
    for path in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True)[:NEWEST]:
        try:
            made = json.loads(path.read_text())
            saved = made["settings"]
            if with_gpu and not made.get("gpu"):
                continue
            rows = job.rows(path.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for row in rows:
            seconds = job.seconds_per_unit(row)
            if seconds:
                found.append(({**saved, **row}, seconds))
    return found
