"""A run's own logs: whole after a kill, without gaps or repeats after a resume."""

import csv
import json
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayssl.report import read_run
from rayssl.rllib.run_log import COLUMNS, LiveLine, RunLog, live_line


def result(env_steps: int, **values: Any) -> dict[str, Any]:
    """Returns a result as AuxDQN reports it, with a column more than the logs have."""
    return {
        "env_steps": env_steps, "games": 3, "score_mean_100": -20.5, "td_loss": env_steps / 1e4,
        "env_steps_per_s": 300.0, "time_other": 0.125, "training_iteration": 99,
    } | values  # fmt: skip


def report(log: RunLog, *results: dict[str, Any]) -> None:
    """Hands results to a log as Tune does."""
    for i, values in enumerate(results):
        log.on_trial_result(iteration=i, trials=[], trial=None, result=values)


def csv_steps(folder: Path) -> list[str]:
    """Returns the column env_steps of progress.csv as its text."""
    with (folder / "progress.csv").open(newline="") as handle:
        return [row["env_steps"] for row in csv.DictReader(handle)]


def json_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of result.json; NaN, which is no JSON, is an error."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"Expected JSON, got {constant}.")

    lines = (folder / "result.json").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def tensorboard_steps(folder: Path, name: str = "td_loss") -> list[int]:
    """Returns the steps of a scalar as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    if name not in events.Tags()["scalars"]:
        return []
    return [event.step for event in events.Scalars(name)]


def close(*logs: RunLog) -> None:
    """Ends the experiment, as Tune does."""
    for log in logs:
        log.on_experiment_end(trials=[])


def test_each_result_is_a_row_of_csv_json_and_tensorboard(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    report(log, result(1000), result(2000))
    rows = read_run(tmp_path / "run")
    assert rows["env_steps"].tolist() == [1000, 2000]
    assert rows["td_loss"].tolist() == [0.1, 0.2]
    assert rows.columns.tolist() == list(COLUMNS)
    assert [row["td_loss"] for row in json_rows(tmp_path / "run")] == [0.1, 0.2]
    assert [list(row) for row in json_rows(tmp_path / "run")] == [list(COLUMNS)] * 2
    deadline = time.monotonic() + 20  # on the disk within a second or two, not only at the end
    while tensorboard_steps(tmp_path / "run") != [1000, 2000] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert tensorboard_steps(tmp_path / "run") == [1000, 2000]
    close(log)


def test_columns_of_single_tasks_join_the_log_when_they_come_and_stay_after_a_resume(
    tmp_path: Path,
) -> None:
    log = RunLog(tmp_path)
    report(log, result(1000), result(2000, **{"aux_accuracy/inverse": 0.25}))
    report(log, result(3000, **{"aux_accuracy/inverse": 0.5, "aux_loss/curl": 3.0}))
    close(log)
    again = RunLog(tmp_path, resumed_at=2000)
    report(again, result(3000, **{"aux_loss/curl": 2.0}))
    close(again)
    rows = read_run(tmp_path)
    new = ["aux_accuracy/inverse", "aux_loss/curl"]
    assert rows.columns.tolist() == [*COLUMNS, *new]
    assert rows["env_steps"].tolist() == [1000, 2000, 3000]
    assert rows[new].fillna(-1).to_numpy().tolist() == [[-1, -1], [0.25, -1], [-1, 2]]


def test_result_learns_the_seconds_of_the_run(tmp_path: Path) -> None:
    log, values = RunLog(tmp_path), result(1000)
    report(log, values)
    close(log)
    assert 0 <= values["wall_s"] < 60
    assert json_rows(tmp_path)[0]["wall_s"] == values["wall_s"]


def test_missing_and_not_finite_numbers_are_null_in_json_and_no_point_in_tensorboard(
    tmp_path: Path,
) -> None:
    log = RunLog(tmp_path)
    nothing = {"score_mean_100": math.nan, "td_loss": np.float32("nan"), "q_mean": math.inf}
    report(log, result(1000, **nothing), result(2000))
    close(log)
    first = json_rows(tmp_path)[0]
    assert [first[name] for name in (*nothing, "aux_loss")] == [None] * 4
    assert read_run(tmp_path)["score_mean_100"].isna().tolist() == [True, False]
    assert tensorboard_steps(tmp_path) == [2000]


def test_log_from_before_a_column_was_added_goes_on_with_it(tmp_path: Path) -> None:
    columns = [name for name in COLUMNS if name != "bfloat16"]
    values = {"env_steps": "500", "wall_s": "2.0"}
    row = ",".join(values.get(name, "") for name in columns)
    (tmp_path / "progress.csv").write_text(f"{','.join(columns)}\n{row}\n")
    log = RunLog(tmp_path, resumed_at=500)
    report(log, result(1000, bfloat16=1))
    close(log)
    rows = read_run(tmp_path)
    assert rows.columns.tolist() == list(COLUMNS)
    assert rows["env_steps"].tolist() == [500, 1000]
    assert rows["wall_s"][0] == 2.0
    assert rows["bfloat16"].isna().tolist() == [True, False]


def test_numpy_numbers_and_booleans_are_logged_as_plain_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    report(log, result(1000, q_mean=np.float32(0.5), games=np.int64(7), compiled=True))
    close(log)
    row = json_rows(tmp_path)[0]
    assert (row["q_mean"], row["games"], row["compiled"]) == (0.5, 7, 1)
    close(RunLog(tmp_path, resumed_at=1000))  # what was written can be read back
    assert json_rows(tmp_path) == [row]


def test_resume_drops_rows_past_the_checkpoint_and_repeats_no_step(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    report(first, *(result(steps) for steps in (1000, 2000, 3000, 4000)))
    close(first)
    kept = json_rows(tmp_path)[:2]
    second = RunLog(tmp_path, resumed_at=2000)
    report(second, *(result(steps, td_loss=0.5) for steps in (3000, 4000, 5000)))
    close(second)
    assert csv_steps(tmp_path) == ["1000", "2000", "3000", "4000", "5000"]
    assert [row["env_steps"] for row in json_rows(tmp_path)] == [1000, 2000, 3000, 4000, 5000]
    assert json_rows(tmp_path)[:2] == kept
    assert read_run(tmp_path)["td_loss"].tolist() == [0.1, 0.2, 0.5, 0.5, 0.5]
    assert tensorboard_steps(tmp_path) == [1000, 2000, 3000, 4000, 5000]


def test_seconds_of_a_resumed_run_go_on_from_the_checkpoints(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    report(first, result(1000), result(2000))
    close(first)
    text = (tmp_path / "progress.csv").read_text()
    old = [str(row["wall_s"]) for row in json_rows(tmp_path)]
    (tmp_path / "progress.csv").write_text(text.replace(old[0], "500.0").replace(old[1], "999.0"))
    second, values = RunLog(tmp_path, resumed_at=1000), result(2000)
    report(second, values)
    close(second)
    assert 500 <= values["wall_s"] < 560


def test_new_run_in_the_same_folder_starts_empty_logs(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    report(first, result(1000), result(2000), result(3000))
    close(first)
    for events in (tmp_path / "tb").iterdir():  # named by the second: make it an older one
        events.rename(events.with_name(events.name.replace(".tfevents.", ".tfevents.0")))
    second = RunLog(tmp_path)
    assert (csv_steps(tmp_path), json_rows(tmp_path)) == ([], [])
    report(second, result(1000))
    close(second)
    assert csv_steps(tmp_path) == ["1000"]
    assert tensorboard_steps(tmp_path) == [1000]


def test_trial_that_tune_restarts_from_a_checkpoint_repeats_no_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    report(log, *(result(steps) for steps in (1000, 2000, 3000, 4000)))
    report(log, result(2500, td_loss=0.5), result(3500, td_loss=0.6))  # checkpoint at 1500
    close(log)
    assert csv_steps(tmp_path) == ["1000", "2000", "2500", "3500"]
    assert [row["env_steps"] for row in json_rows(tmp_path)] == [1000, 2000, 2500, 3500]
    assert tensorboard_steps(tmp_path) == [1000, 2000, 2500, 3500]


@pytest.mark.parametrize("cut", [1, 5, 40], ids=["line end", "last column", "half a row"])
def test_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    first = RunLog(tmp_path)
    report(first, result(1000), result(2000))
    close(first)
    text = (tmp_path / "progress.csv").read_text()
    (tmp_path / "progress.csv").write_text(text[:-cut])
    close(RunLog(tmp_path, resumed_at=5000))
    assert csv_steps(tmp_path) == ["1000"]
    assert [row["env_steps"] for row in json_rows(tmp_path)] == [1000]


@pytest.mark.parametrize("text", ["", "env_st", "env_steps,td_loss\nabc,1\n"])
def test_log_without_a_readable_row_is_started_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.csv").write_text(text)
    log = RunLog(tmp_path, resumed_at=5000)
    report(log, result(6000))
    close(log)
    assert csv_steps(tmp_path) == ["6000"]


def test_rows_of_a_version_with_other_columns_are_kept_in_todays(tmp_path: Path) -> None:
    text = "td_loss,a_column_of_yesterday,env_steps\n0.5,99,1000\n0.6,99,1000\n0.7,99,2000\n"
    (tmp_path / "progress.csv").write_text(text)
    close(RunLog(tmp_path, resumed_at=2000))
    rows = read_run(tmp_path)
    assert rows.columns.tolist() == list(COLUMNS)
    assert csv_steps(tmp_path) == ["1000", "2000"]
    assert rows["td_loss"].tolist() == [0.6, 0.7]


def test_kill_while_the_logs_are_rewritten_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunLog(tmp_path)
    report(first, result(1000), result(2000))
    close(first)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            RunLog(tmp_path, resumed_at=1000)
    assert csv_steps(tmp_path) == ["1000", "2000"]


def test_log_survives_pickling_with_its_event_file_open(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    report(log, result(1000))
    copy = pickle.loads(pickle.dumps(log))
    report(log, result(2000))  # the original goes on as before
    close(log)
    again = pickle.loads(pickle.dumps(log))
    report(again, result(3000))
    close(again, copy)
    assert csv_steps(tmp_path) == ["1000", "2000", "3000"]
    assert tensorboard_steps(tmp_path) == [1000, 2000, 3000]
    assert isinstance(pickle.loads(pickle.dumps(LiveLine(10))), LiveLine)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            result(24_000, games=31, aux_accuracy=0.614, healthy_runners=16),
            "   24,000/400,000 steps | score -20.5 (31 games) | aux 61% | 16 runners | 300 steps/s"
            " | 21 min left",
        ),
        (
            result(399_000, games=1, score_mean_100=np.float64(21)),
            "  399,000/400,000 steps | score 21.0 (1 game) | 300 steps/s | 3 s left",
        ),
        (
            result(2_000, score_mean_100=math.nan, aux_accuracy=math.nan, env_steps_per_s=0.0),
            "    2,000/400,000 steps | no game yet",
        ),
        (
            result(401_000, env_steps_per_s=12_345.6),
            "  401,000/400,000 steps | score -20.5 (3 games) | 12,346 steps/s | 0 s left",
        ),
    ],
    ids=["aux and runners", "plain", "nothing known", "past the end"],
)
def test_live_line_says_steps_score_speed_and_time_left(values: dict[str, Any], line: str) -> None:
    assert live_line(values, 400_000) == line


def lines_of(live: LiveLine, *results: dict[str, Any]) -> None:
    """Hands results to the live line as Tune does, then ends the experiment."""
    for i, values in enumerate(results):
        live.on_trial_result(iteration=i, trials=[], trial=None, result=values)
    live.on_experiment_end(trials=[])


def test_live_line_in_a_file_is_printed_first_last_and_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = [result(steps) for steps in (1000, 2000, 3000)]
    lines_of(LiveLine(3000, every_s=1000), *results)
    out = capsys.readouterr().out
    assert [line.split("/")[0].strip() for line in out.splitlines()] == ["1,000", "3,000"]
    assert "\033" not in out
    lines_of(LiveLine(3000, every_s=0), *results)
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("steps", [2000, 3000], ids=["done", "stopped before its end"])
def test_live_line_on_a_terminal_is_overwritten_and_ended_once(
    steps: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines_of(LiveLine(steps), result(1000), result(2000))
    out = capsys.readouterr().out
    assert out.count("\r\033[K") == 2
    assert out.count("\n") == 1
    assert out.endswith("\n")
