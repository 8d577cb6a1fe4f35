"""experiments/report.py: runs side by side, and folders that are none."""

import json
from pathlib import Path

import pytest

from experiments import report

LOG = (
    "env_steps,score_mean_100,td_updates,aux_updates,wall_s\n1000,-21,250,0,60\n2000,-4,500,0,120\n"
)
SETTINGS = {"settings": {"game": "pong", "aux_task": "none", "seed": 0}, "commit": "abc"}


def run_folder(folder: Path, log: str = LOG, settings: object = SETTINGS) -> Path:
    """Writes what a run leaves behind and returns its folder."""
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text(log)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "settings.json").write_text(text)
    return folder


def test_row_tells_the_first_crossing_and_the_commits(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    row = report.main([str(folder), "--out", str(tmp_path / "out")])[0]
    assert row["first above -5"] == 2000
    assert (row["last score"], row["minutes"], row["commit"]) == (-4, 2.0, "abc")
    assert "| pong | none" in (tmp_path / "out" / "report.md").read_text()


def test_two_runs_of_one_name_in_two_folders_are_both_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def plot(runs: dict[str, object], path: Path) -> Path:
        drawn.extend(runs)
        return path

    monkeypatch.setattr(report, "plot_learning_curves", plot)
    folders = [run_folder(tmp_path / part / "pong") for part in ("a", "b")]
    report.main([*map(str, folders), "--out", str(tmp_path / "out")])
    assert drawn == [str(folder) for folder in folders]


@pytest.mark.parametrize(
    ("log", "settings", "text"),
    [
        (LOG, {}, "got KeyError: 'settings'"),
        (LOG, "{", "got JSONDecodeError"),
        ("a,b\n1,2\n", SETTINGS, "with a column env_steps, got a, b."),
        ("env_steps\n1\n", SETTINGS, "got KeyError: 'score_mean_100'"),
    ],
)
def test_folder_that_is_no_run_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    log: str,
    settings: object,
    text: str,
) -> None:
    folder = run_folder(tmp_path / "a", log, settings)
    with pytest.raises(SystemExit) as stop:
        report.main([str(folder), "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert text in err
    assert not (tmp_path / "out").exists()


def test_experiment_of_mnist_becomes_its_tables_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = {
        "trial": "paper-none-s0", "protocol": "paper", "aux_task": "none", "aux_weight": 1.0,
        "seed": 0, "epoch": 1, "epochs": 1, "selected_epoch": 1, "loss": 0.5, "test_accuracy": 0.75,
        "test_confusion": [[3 * (i == j) + (i == j + 1) for j in range(10)] for i in range(10)],
    }  # fmt: skip
    folder = run_folder(tmp_path / "a", settings={"settings": {"dataset": "digits"}})
    (folder / "epochs.jsonl").write_text(json.dumps(epoch) + "\n")
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == []
    assert "| paper    | none         | 1     |" in capsys.readouterr().out
    assert "75.00" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        report.main([str(folder), str(folder), "--out", str(tmp_path / "out")])
    assert "pass one at a time" in capsys.readouterr().err
