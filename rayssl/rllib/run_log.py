"""Logs of a run: CSV, JSON and TensorBoard in its folder at once, and one live line.

Tune's own loggers write 483 columns a row into a staging folder and copy it now and then
(cluster-notes.md, fact 9); a killed run would lose its last rows.
"""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray import tune
from tensorboardX import SummaryWriter

from rayssl.files import write_whole

# Columns of the logs, in order. docs/results.md explains each.
COLUMNS = (
    "env_steps", "games", "score_mean_100", "score_last", "game_length_mean_100",
    "paper_code_score_mean_100", "paper_code_score_best", "evaluation_score_mean",
    "evaluation_score_std", "evaluation_score_low", "evaluation_score_high",
    "evaluation_score_iqm", "evaluation_games", "epsilon", "td_updates", "aux_updates",
    "td_loss", "td_error_abs", "q_mean", "aux_loss", "aux_accuracy", "aux_left_out",
    "gradient_cosine", "env_steps_per_s", "updates_per_s", "replay_rows", "replay_fill",
    "replay_bytes", "healthy_runners", "runner_restarts", "compiled", "cuda_graphs", "bfloat16",
    "wall_s", "time_sampling", "time_replay", "time_learning", "time_weights", "time_waiting",
    "time_evaluation", "time_logging", "time_other",
)  # fmt: skip
PER_TASK = ("aux_loss/", "aux_accuracy/", "aux_left_out/")  # of runs with several tasks
Row = dict[str, int | float | None]


def task_columns(names: Iterable[str]) -> list[str]:
    """Returns those of the names that are columns of one task among several."""
    return [name for name in names if name.startswith(PER_TASK)]


class RunLog(tune.Callback):
    """Writes every result to progress.csv, result.json and tb/ in the run's folder.

    Columns are COLUMNS, and `aux_loss/<task>` and the like as results bring them.

    Steps only grow within a log: rows that a run is about to repeat, because it goes on from a
    checkpoint that is older than they are, are dropped.

    Args:
      folder: of the run. Rows that are there already and not past `resumed_at` are kept.
      resumed_at: agent steps of the checkpoint that the run goes on from; 0: a new run.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._csv, self._json = folder / "progress.csv", folder / "result.json"
        self._tb_dir = str(folder / "tb")
        self._tb: SummaryWriter | None = None
        self._start, self._last_steps = time.monotonic(), resumed_at
        self._columns = [*COLUMNS, *task_columns(_header(self._csv))]
        self._wall_before = self._keep_rows(resumed_at)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the open event file: Tune pickles its callbacks."""
        return self.__dict__ | {"_tb": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Appends one row to each log, and the seconds of the whole run so far to the result."""
        result["wall_s"] = self._wall_before + time.monotonic() - self._start
        steps = int(result["env_steps"])
        new = sorted(set(task_columns(result)) - set(self._columns))
        if new or steps <= self._last_steps:  # Tune has restarted a failed trial from a checkpoint
            self._columns += new
            self._keep_rows(steps - 1)
        row: Row = {name: _plain(result.get(name)) for name in self._columns}
        with self._csv.open("a", newline="") as handle:
            handle.write(_csv_text([row], self._columns))
        with self._json.open("a") as handle:
            handle.write(_json_text([row]))
        if self._tb is None:
            # TensorBoard hides what older event files hold from this step on. The suffix: files
            # are named by the second, and one of the same second would be overwritten.
            # flush() leaves out what still waits for the writer's thread, flush_secs does not.
            self._tb = SummaryWriter(
                self._tb_dir,
                purge_step=self._last_steps + 1,
                filename_suffix=f".after-{self._last_steps}",
                flush_secs=1,
            )
        for name, value in row.items():
            if value is not None and math.isfinite(value):
                self._tb.add_scalar(name, value, steps)
        self._last_steps = steps

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Closes the event file."""
        self._close_tb()

    def _close_tb(self) -> None:
        if self._tb is not None:
            self._tb.close()
            self._tb = None

    def _keep_rows(self, last_steps: int) -> float:
        """Rewrites the logs without rows past these steps; returns the last kept row's seconds."""
        self._close_tb()
        self._last_steps = last_steps
        rows = _whole_rows(self._csv, self._columns)
        rows = [row for row in rows if (row["env_steps"] or 0) <= last_steps]
        rows = list({row["env_steps"]: row for row in rows}.values())
        write_whole(self._csv, ",".join(self._columns) + "\n" + _csv_text(rows, self._columns))
        write_whole(self._json, _json_text(rows))
        return float(rows[-1]["wall_s"] or 0.0) if rows else 0.0


class LiveLine(tune.Callback):
    """One line with steps, score, speed and time left: in place on a terminal, else now and then.

    Args:
      steps: of the whole run.
      every_s: seconds between two lines where the output is not a terminal.
    """

    def __init__(self, steps: int, every_s: float = 20.0) -> None:
        self._steps, self._every_s, self._last = steps, every_s, -math.inf
        self._terminal = sys.stdout.isatty()
        self._line_is_open = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints the line."""
        now = time.monotonic()
        done = result["env_steps"] >= self._steps
        if not (self._terminal or done or now - self._last >= self._every_s):
            return
        self._last = now
        line = live_line(result, self._steps)
        self._line_is_open = self._terminal and not done
        text = f"\r\033[K{line}" if self._terminal else line
        print(text, end="" if self._line_is_open else "\n", flush=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ends the line of a run that was stopped, so that the next text has one of its own."""
        if self._line_is_open:
            print(flush=True)
            self._line_is_open = False


def live_line(result: dict[str, Any], steps: int) -> str:
    """Returns the line of a result; parts that it has no number for are left out.

        24,000/400,000 steps | score -20.3 (31 games) | aux 61% | 310 steps/s | 20 min left

    After an evaluation its mean score stands beside that of training.

    Args:
      result: with `env_steps` and what else of COLUMNS there is.
      steps: of the whole run.
    """
    parts = [f"{result['env_steps']:>9,}/{steps:,} steps"]
    score, games = result.get("score_mean_100"), result.get("games", 0)
    known = f"score {score:.1f} ({games} game{'' if games == 1 else 's'})" if _known(score) else ""
    parts.append(known or "no game yet")
    if _known(result.get("evaluation_score_mean")):
        parts.append(f"evaluated {result['evaluation_score_mean']:.1f}")
    if _known(result.get("aux_accuracy")):
        parts.append(f"aux {result['aux_accuracy']:.0%}")
    if _known(result.get("healthy_runners")):
        parts.append(f"{result['healthy_runners']} runners")
    speed: Any = result.get("env_steps_per_s")
    if _known(speed) and speed > 0:
        left = max(0, steps - result["env_steps"]) / speed
        parts.append(f"{speed:,.0f} steps/s")
        parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return " | ".join(parts)


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A Python number from a NumPy one; booleans as 0 and 1, so that they can be read back."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, bool) else value


def _csv_text(rows: list[Row], columns: list[str]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, columns, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _json_text(rows: list[Row]) -> str:
    """One JSON object a line; null for what is missing, NaN or infinite, which JSON has not."""
    finite = [{n: v if _known(v) else None for n, v in row.items()} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in finite)


def _header(path: Path) -> list[str]:
    """The columns of a CSV; [] without one."""
    text = path.read_text() if path.is_file() else ""
    return text.partition("\n")[0].split(",")


def _whole_rows(path: Path, columns: list[str]) -> list[Row]:
    """Rows of a CSV, in these columns; a last line that a kill cut short is left out."""
    text = path.read_text() if path.is_file() else ""
    lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = [{name: _number(line.get(name)) for name in columns} for line in lines]
    return [row for row in rows if row["env_steps"] is not None]


def _number(text: str | None) -> int | float | None:
    """The number that a CSV cell holds, None if it holds none."""
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return None
