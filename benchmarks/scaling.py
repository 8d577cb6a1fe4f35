"""What the parts promise together: steps/s for a number of workers, and where the limit lies.

    python benchmarks/parts.py --json benchmarks/results/parts.json
    python benchmarks/scaling.py                      # writes docs/scaling.md

The model has the figures of parts.py and no free parameter. A step costs core time in the runner
(1 / its steps/s on one core), in the learner (its threads / its steps/s) and in the intake; the
cores of a machine give no more than so many seconds a second, and no part is faster than alone.
The learner has the threads that workers leave it, as far as parts.py measured so many:

    steps/s = min(cores / (cost of a step), workers * runner, learner, intake)
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import BATCH_SIZE, STEPS_PER_UPDATE, show
from benchmarks.parts import FRAMES_PER_STEP, ONE_THREAD
from rayssl.cli import refuse
from rayssl.report import markdown_table

POINT = "whole training, "
UPDATES = "updates, task none"
CREDIBLE = 1.1  # times a prediction: the spread of the parts themselves


@dataclasses.dataclass(frozen=True)
class Settings:
    """Writes the page that puts the measured parts together."""

    parts: Path = Path("benchmarks/results/parts.json")
    """What parts.py saved."""
    gpu: Path | None = None
    """What `update_cost.py --gpu` saved, for the rows of machines with a GPU; by default
    update_cost_gpu.json beside the parts, if it is there."""
    out: Path = Path("docs/scaling.md")
    """The page."""


class Parts(NamedTuple):
    """Figures of the parts, each alone: medians.

    Attributes:
      runner: env steps/s of one runner on one core.
      learners: threads of the learner -> env steps/s that its updates allow, at one update per 4
        steps; threads 0: it learns on a GPU.
      intake: env steps/s that the algorithm's process takes in.
      intake_cost: core seconds of the intake per env step.
    """

    runner: float
    learners: Mapping[int, float]
    intake: float
    intake_cost: float

    def threads(self, free: int) -> int:
        """Returns the threads of the learner that has so many free cores."""
        return max((n for n in self.learners if n <= free), default=min(self.learners))


def predict(parts: Parts, cores: int, workers: int) -> tuple[float, str]:
    """Returns env steps/s of a training with so many workers, and which part limits it.

    Without workers the games run in the learner's process, and cost the same core time.
    """
    threads = parts.threads(max(1, cores - workers))
    learner = parts.learners[threads]
    cost = 1 / parts.runner + threads / learner + parts.intake_cost
    limits = {"cores": cores / cost, "learner": learner, "intake": parts.intake}
    if workers:
        limits["runners"] = workers * parts.runner
    name = min(limits, key=lambda key: limits[key])
    return limits[name], name


def read_parts(rows: Sequence[dict[str, Any]]) -> Parts:
    """Returns the figures of a file of parts.py.

    Raises:
      ValueError: if a part is missing.
    """
    try:
        found = {row["name"]: row["figure"]["median"] for row in rows}
        learners = {int(rows[0]["run"]["threads"]): found[UPDATES] * STEPS_PER_UPDATE}
        if UPDATES + ONE_THREAD in found:
            learners[1] = found[UPDATES + ONE_THREAD] * STEPS_PER_UPDATE
        return Parts(
            runner=found["runner"] / FRAMES_PER_STEP,
            learners=learners,
            intake=found["intake"],
            intake_cost=found["intake, CPU"] / 1e6,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"Expected a file with all parts, got none of {error}. Run benchmarks/parts.py."
        ) from error


def machines(parts: Parts, cores: int, gpu_updates_per_s: float | None) -> list[dict[str, Any]]:
    """Returns one row a machine: number of workers at which the learner is the limit, and steps/s.

    A core is taken to be one of this machine's.
    """
    kinds = [
        (f"this machine, {cores} cores", cores, parts, ""),
        ("16 cores, no GPU", 16, parts, ""),
        ("cluster of 4 x 16 cores, no GPU", 64, parts, ""),
    ]
    if gpu_updates_per_s:
        fast = parts._replace(learners={0: gpu_updates_per_s * STEPS_PER_UPDATE})
        text = f"{gpu_updates_per_s:.0f} updates/s of batches at hand, measured: a ceiling"
        kinds += [("16 cores and a GPU", 16, fast, text), ("cluster with a GPU", 64, fast, text)]
    else:
        for updates in (1_000, 3_000):
            fast = parts._replace(learners={0: updates * STEPS_PER_UPDATE})
            text = f"if a GPU made {updates:,} updates/s: not measured"
            kinds += [(f"{n} cores and a GPU", n, fast, text) for n in (16, 64)]
    rows = []
    for name, count, figures, learner in kinds:
        threads = max(figures.learners)
        free = max(1, count - max(1, threads))  # the algorithm's process has a core
        used = figures.threads(count - free)
        full = figures.learners[used] / figures.runner
        if not learner:
            on = "1 core" if used == 1 else f"{used} cores"
            learner = f"{figures.learners[used] / STEPS_PER_UPDATE:.0f} updates/s on {on}, measured"
        steps, limit = predict(figures, count, free)
        rows.append(
            {
                "machine": name, "learner": learner, "workers that fill the learner": full,
                "cores for workers": free, "env steps/s": steps, "limit": limit,
            }
        )  # fmt: skip
    return rows


def points(rows: Sequence[dict[str, Any]], parts: Parts, cores: int) -> list[dict[str, Any]]:
    """Returns the measured whole trainings beside what the model says of them."""
    found = []
    for row in rows:
        if row["name"].startswith(POINT):
            workers = int(row["name"].removeprefix(POINT).split()[0])
            predicted, limit = predict(parts, cores, workers)
            measured = row["figure"]
            found.append(
                {
                    "workers": workers, "measured env steps/s": show(measured),
                    "predicted": predicted, "measured / predicted": measured["median"] / predicted,
                    "limit": limit,
                }
            )  # fmt: skip
    return found


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns one sentence: how far the measured trainings lie from the model's."""
    if not rows:
        return "No whole training was measured."
    ratios = [row["measured / predicted"] for row in rows]
    text = f"Measured trainings have {min(ratios):.2f} to {max(ratios):.2f} of the prediction."
    if max(ratios) > CREDIBLE:
        text += (
            " More than 1 cannot be if every part had its full speed when it was measured alone: "
            "other work on the machine, or threads that wait for each other, slowed the parts. "
            "Take the model's figures as low by as much."
        )
    return text


class Gpu(NamedTuple):
    """TD updates/s that a GPU makes at batch 32, and where that was measured."""

    updates_per_s: float
    source: str


def read_gpu(path: Path) -> Gpu:
    """Returns the figure of a file of `update_cost.py --gpu`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if its updates are not of 32 transitions, as those of the parts.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. Measure it on a GPU: python benchmarks/update_cost.py --gpu "
            f"--json {path}"
        )
    td = next(row for row in json.loads(path.read_text()) if row["name"] == "td")
    run = td["run"]
    if not run.get("gpu"):
        raise ValueError(f"{path} was not measured on a GPU: make it with update_cost.py --gpu.")
    size = run["settings"]["batch_size"]
    if size != BATCH_SIZE:
        raise ValueError(f"{path} has batches of {size}, expected {BATCH_SIZE}, as the parts have.")
    source = f"`{path.as_posix()}` ({run['gpu']}, commit {run['commit']})"
    return Gpu(float(td["updates_per_s"]["median"]), source)


def page(rows: Sequence[dict[str, Any]], gpu: Gpu | None, source: str) -> str:
    """Returns the page, markdown."""
    parts, run = read_parts(rows), rows[0]["run"]
    cores = run["machine"]["usable_cores"]
    measured = [
        {"part": row["name"], "figure": show(row["figure"]), "unit": row["unit"]}
        for row in rows
        if not row["name"].startswith(POINT)
    ]
    told = " No GPU was at hand: its rows say what would follow."
    if gpu:
        told = (
            f" The GPU's updates/s: {gpu.source}. Its batch lies ready: drawing and moving batches "
            "is not in that figure, nor what the learner's process costs the cores, so that these "
            "rows say at most; such a machine as a whole was not measured."
        )
    return f"""# How far it scales

Written by `python benchmarks/scaling.py` from `{source}` ({run["machine"]["cpu"]}, {cores} cores,
torch {run["versions"]["torch"]}, commit {run["commit"]}, load at the start
{run["machine"]["load_average_1min_at_start"]}). Breakout, Nature trunk, batch 32, one TD update per
{STEPS_PER_UPDATE} env steps, no pretext task; an env step is {FRAMES_PER_STEP} frames.

## The parts, each alone

{markdown_table(measured)}

## Together

A step costs core time in the runner, the learner and the intake. A machine has so many cores, and
no part is faster than it is alone. The learner has the threads that workers leave it, as far as
they were measured:

    steps/s = min(cores / (1 / runner + threads / learner + intake's CPU), workers * runner,
                  learner, intake)

Whole trainings on this machine beside that prediction:

{markdown_table(points(rows, parts, cores))}

{verdict(points(rows, parts, cores))}

From how many workers on the learner is the limit: `learner / runner`.{told}

{markdown_table(machines(parts, cores, gpu and gpu.updates_per_s))}

More workers than fill the learner only wait: requests are held back, so the replay ratio holds.
"""


def main(argv: Sequence[str] | None = None) -> str:
    """Writes the page and returns it."""
    settings = tyro.cli(Settings, args=argv)
    try:
        if not settings.parts.is_file():
            raise FileNotFoundError(
                f"{settings.parts} is missing. Measure it first: python benchmarks/parts.py --json "
                f"{settings.parts}"
            )
        rows = json.loads(settings.parts.read_text())
        beside = settings.parts.with_name("update_cost_gpu.json")
        gpu = settings.gpu or (beside if beside.is_file() else None)
        text = page(rows, read_gpu(gpu) if gpu else None, settings.parts.as_posix())
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(text)
    except (OSError, ValueError, StopIteration) as error:
        refuse(error)
    print(f"{text}\nsaved: {settings.out}")
    return text


if __name__ == "__main__":
    main()
