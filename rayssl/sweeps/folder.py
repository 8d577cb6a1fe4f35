"""The folder of a sweep: sweep.json, trials.csv and one folder per trial (docs/results.md).

What has happened to a trial is read from its own folder, so that a killed driver loses nothing.
"""

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rayssl.files import write_whole
from rayssl.jobs import Job
from rayssl.sweeps.axes import Axes, Trial, axes_to_json, settings_to_json, varied

VERSION = 1  # of the layout
SWEEP, TABLE, STATUS, ERROR = "sweep.json", "trials.csv", "status.json", "error.txt"
WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
STOPPED, FAILED, LOST = "stopped", "failed", "lost"
STATUSES: Final = (WAITING, RUNNING, FINISHED, STOPPED, FAILED, LOST)
OVER: Final = (FINISHED, STOPPED, FAILED)  # never run again
COUNTS: Final = ("done", "wall_s", "attempts")  # numbers in status.json
WRITE_EVERY_S = 3.0


class SweepFolder:
    """The files of one sweep.

    Args:
      path: of the folder; need not exist yet.
      job: whose trainings it holds.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self.trials: list[Trial] = []
        self._rows: dict[str, dict[str, Any]] = {}  # of trials.csv
        self._extra: list[str] = []
        self._written = 0.0
        self._reported: set[str] = set()  # trials with a result that the table does not show yet

    def of(self, name: str) -> Path:
        """Returns the folder of a trial."""
        return self.path / name

    def status(self, name: str) -> dict[str, Any]:
        """Returns how a trial ended, as status.json has it; empty if it has not."""
        try:
            found: dict[str, Any] = json.loads((self.of(name) / STATUS).read_text())
            known = found["status"] in OVER + (LOST,)
            return found | {key: _count(found.get(key)) for key in COUNTS} if known else {}
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
            return {}

    def is_over(self, trial: Trial) -> bool:
        """Returns whether a trial must never run again."""
        return self._rows[trial.name]["status"] in OVER

    def result_of(self, trial: Trial) -> float | None:
        """Returns the last objective of a trial."""
        for row in reversed(self.job.rows(self.of(trial.name))):
            value = self.job.objective(row, trial.settings)
            if value is not None:
                return value
        return None

    def add(self, trials: Sequence[Trial], axes: Axes) -> None:
        """Adds trials, each with what its folder tells about it.

        Raises:
          ValueError: if two trials have one name.
        """
        self._extra = varied(axes)
        before = self._read_table()
        for trial in trials:
            if trial.name in self._rows:
                raise ValueError(
                    f"Two trials have the name {trial.name}: their values differ too little."
                )
            self.trials.append(trial)
            self._rows[trial.name] = self._row(trial, before.get(trial.name, {}))

    def start(self, name: str) -> None:
        """Notes that a trial is started."""
        row = self._rows[name]
        row["status"], row["error"], row["attempts"] = RUNNING, "", row["attempts"] + 1
        (self.of(name) / STATUS).unlink(missing_ok=True)  # of a trial that was lost
        self.write_table()

    def retry(self, name: str) -> None:
        """Notes, at once, that a trial whose process died is started again."""
        self._rows[name]["attempts"] += 1
        self.write_table()

    def report(self, name: str, seconds: float) -> None:
        """Notes a new result of a trial, which is in its log already, and the seconds it took."""
        self._rows[name]["wall_s"] = self._rows[name]["wall_s"] + seconds
        self._reported.add(name)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            for each in self._reported:
                self._measure(self._trial(each))
            self._reported.clear()
            self.write_table()

    def end(self, name: str, status: str, error: str = "") -> None:
        """Notes the end of a trial, in its folder first."""
        trial, row = self._trial(name), self._rows[name]
        self._measure(trial)
        row["status"], row["error"] = status, " ".join(error.strip().splitlines()[-1:])
        if status != WAITING:
            kept = {key: row[key] for key in ("status", "error", "done", "wall_s", "attempts")}
            write_whole(self.of(name) / STATUS, json.dumps(kept, indent=1))
        if error:
            (self.of(name) / ERROR).write_text(error)
        self.write_table()

    def row(self, name: str) -> dict[str, Any]:
        """Returns a trial's row of trials.csv."""
        return self._rows[name]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of trials.csv."""
        return list(self._rows.values())

    def write_table(self) -> None:
        """Replaces trials.csv."""
        out = io.StringIO()
        if self._rows:
            columns = list(next(iter(self._rows.values())))
            writer = csv.DictWriter(out, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows.values())
        write_whole(self.path / TABLE, out.getvalue())
        self._written = time.monotonic()

    def write_sweep(self, saved: dict[str, Any], axes: Axes) -> None:
        """Replaces sweep.json.

        Args:
          saved: what is not about the trials: `rayssl.rllib.start.with_starts`.
          axes: of the command line.
        """
        job = self.job
        whole = {
            "version": VERSION, "job": job.name, "unit": job.unit, "metric": job.metric,
            "mode": job.mode, **saved, "axes": axes_to_json(axes),
            "trials": [
                {"trial": t.name, "group": t.group, "settings": settings_to_json(t.settings)}
                for t in self.trials
            ],
        }  # fmt: skip
        write_whole(self.path / SWEEP, json.dumps(whole, indent=1))

    def _trial(self, name: str) -> Trial:
        return next(trial for trial in self.trials if trial.name == name)

    def _row(self, trial: Trial, before: dict[str, str]) -> dict[str, Any]:
        """A trial's row, from its folder; what only a running sweep knows from the last table."""
        job, settings = self.job, trial.settings
        own = self.status(trial.name)
        seen = before.get("status")
        row: dict[str, Any] = {
            "trial": trial.name,
            "status": own.get("status", RUNNING if seen == RUNNING else WAITING),
            "error": own.get("error", ""),
            "job": job.name,
            "seed": settings.seed,
            "aux_task": getattr(settings, "aux_task", ""),
            "aux_weight": getattr(settings, "aux_weight", ""),
        }
        row |= {name: getattr(settings, name) for name in self._extra}
        row |= {
            "unit": job.unit,
            "done": 0,
            "planned": job.planned(settings),
            "metric": job.metric,
            "final": None,
            "best": None,
            "reported": None,
            "wall_s": own.get("wall_s", _count(before.get("wall_s"))),
            "attempts": int(own.get("attempts", _count(before.get("attempts")))),
            "folder": trial.name,
        }
        self._rows[trial.name] = row
        self._measure(trial)
        return row

    def _measure(self, trial: Trial) -> None:
        """Fills in progress and figures from the trial's log."""
        row, job = self._rows[trial.name], self.job
        rows = job.rows(self.of(trial.name))
        values = [v for r in rows if (v := _number(r.get(job.metric))) is not None]
        better = max if job.mode == "max" else min
        row["done"] = int(rows[-1][job.unit]) if rows else 0
        row["final"] = values[-1] if values else None
        row["best"] = better(values) if values else None
        row["reported"] = job.reported(rows, trial.settings)

    def _read_table(self) -> dict[str, dict[str, str]]:
        """The rows of the last table; none of one that something else has written since."""
        try:
            lines = (self.path / TABLE).read_text(encoding="utf-8-sig").splitlines()
            return {line["trial"]: line for line in csv.DictReader(lines)}
        except (OSError, ValueError, KeyError, csv.Error):
            return {}


def read_trials(job: Job, saved: dict[str, Any]) -> list[Trial]:
    """Returns the trials of a sweep.json."""
    return [
        Trial(each["trial"], job.from_json(each["settings"]), each["group"])
        for each in saved["trials"]
    ]


def _count(value: Any) -> float:
    """A number of 0 or more, as JSON or a table has it; 0 for anything else."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return 0.0


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
