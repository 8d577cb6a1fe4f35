"""The table and figure of aux-only runs, made from their logs alone."""

import json
from pathlib import Path

import pytest

from experiments import task_curves
from rayssl.rllib.run_log import RunLog


def write_run(folder: Path, task: str, accuracies: list[float]) -> None:
    log = RunLog(folder)
    for i, accuracy in enumerate(accuracies):
        result = {"env_steps": 1000 * (i + 1), "aux_updates": 250 * (i + 1), "aux_left_out": 0.25,
                  "aux_loss": 1.0 - i / 8, "aux_accuracy": accuracy}  # fmt: skip
        log.on_trial_result(i, [], None, result)
    log.on_experiment_end([])
    saved = {"game": "pong", "aux_task": task, "schedule": "aux-only"}
    (folder / "settings.json").write_text(json.dumps({"settings": saved}))


def test_table_has_a_row_for_each_task_with_its_chance_and_its_own_figures(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "inverse", [0.2, 0.5, 0.4])
    write_run(tmp_path / "b", "curl", [0.03, 0.9])
    lines = task_curves.main([str(tmp_path)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "aux updates", "chance", "first accuracy", "last accuracy", "best",
                        "first loss", "last loss", "left out", "minutes"]  # fmt: skip
    assert cells[2][:9] == ["inverse", "750", "0.167", "0.2", "0.4", "0.5", "1", "0.75", "0.25"]
    assert cells[3][:6] == ["curl", "500", "0.0312", "0.03", "0.9", "0.9"]
    assert (tmp_path / "task-curves.png").stat().st_size > 10_000
    assert (tmp_path / "task-curves.md").read_text().splitlines() == lines


def test_folder_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "curl", [0.03])
    (tmp_path / "task-curves.md").mkdir()
    with pytest.raises(SystemExit) as end:
        task_curves.main([str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_folder_without_runs_or_without_updates_or_with_a_task_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        task_curves.main([str(tmp_path)])
    assert end.value.code == 2
    for name in "ab":
        write_run(tmp_path / name, "spr", [0.5])
    with pytest.raises(SystemExit) as end:
        task_curves.main([str(tmp_path)])
    assert end.value.code == 2
    write_run(tmp_path / "young" / "a", "spr", [float("nan")])
    with pytest.raises(SystemExit) as end:
        task_curves.main([str(tmp_path / "young")])
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[2].endswith("young/a has no aux update yet. Go on with it, or move it elsewhere.")
    assert errors[0].endswith("holds no runs (*/progress.csv).")
    assert "Expected one run for each task" in errors[1]
    assert "got b with task spr" in errors[1]
