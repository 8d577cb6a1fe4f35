"""The scripts from end to end: a run through Tune, killed and resumed, evaluated, reported."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayssl.rllib.checkpoint import MODEL_SETTINGS, newest_whole_checkpoint

ROOT = Path(__file__).parent.parent
TINY = [
    "--frame-size",
    "42",
    "--no-compile",
    "--compute-dtype",
    "float32",
    "--batch-size",
    "8",
    "--learning-starts",
    "64",
    "--replay-capacity",
    "4000",
    "--envs-per-worker",
    "2",
    "--steps-per-report",
    "200",
    "--checkpoint-every",
    "200",
    "--learner-cpus",
    "1",
    "--seed",
    "5",
    "--name",
    "tiny",
]


def start(log: Path, script: str, *words: str) -> "subprocess.Popen[bytes]":
    """Starts a script in a session of its own; what it prints goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "experiments" / script), *words]
    with log.open("w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of the script and of what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_checkpoint(
    folder: Path, process: "subprocess.Popen[bytes]", log: Path, seconds: float
) -> None:
    """Returns when the folder holds a whole checkpoint; fails if the run ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if folder.exists() and newest_whole_checkpoint(folder):
            return
        time.sleep(0.3)
    kill(process)
    pytest.fail(f"no checkpoint within {seconds} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that kill -9 ended after its first checkpoint."""
    results = tmp_path_factory.mktemp("results")
    log = results / "log"
    process = start(log, "atari.py", *TINY, "--steps", "10000000", "--results-dir", str(results))
    wait_for_checkpoint(results / "tiny", process, log, 240)
    kill(process)
    return results / "tiny"


@pytest.fixture(scope="module")
def resumed_run(killed_run: Path) -> tuple[Path, int, str]:
    """(folder, steps of the checkpoint, output) of the same run, resumed and finished."""
    checkpoint = newest_whole_checkpoint(killed_run)
    assert checkpoint is not None
    steps = json.loads((checkpoint / MODEL_SETTINGS).read_text())["env_steps"]
    log = killed_run / "log"
    process = start(log, "atari.py", "--resume", str(killed_run), "--steps", str(steps + 500))
    try:
        code = process.wait(timeout=240)
    finally:
        if process.poll() is None:
            kill(process)
    assert code == 0, log.read_text()
    return killed_run, steps, log.read_text()


@pytest.mark.slow
def test_killed_run_goes_on_from_its_newest_whole_checkpoint(
    resumed_run: tuple[Path, int, str],
) -> None:
    folder, steps, output = resumed_run
    assert f"at {steps:,} steps from checkpoint_" in output
    with (folder / "progress.csv").open() as handle:
        logged = [int(row["env_steps"]) for row in csv.DictReader(handle)]
    assert logged == sorted(set(logged)), "every step is logged once, in order"
    assert steps in logged
    assert logged[-1] >= steps + 500
    assert len(json.loads((folder / "settings.json").read_text())["starts"]) == 2


@pytest.mark.slow
def test_run_ends_with_table_curve_and_checkpoint(resumed_run: tuple[Path, int, str]) -> None:
    folder, _, output = resumed_run
    assert "| game | task        | seed |" in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("checkpoint: ")
    assert Path(last.removeprefix("checkpoint: ")).is_dir()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tb").glob("events.*"))
    assert json.loads((folder / "result.json").read_text().splitlines()[-1])["env_steps"]


@pytest.mark.slow
def test_trained_checkpoint_is_evaluated_and_reported(
    resumed_run: tuple[Path, int, str], tmp_path: Path
) -> None:
    from experiments import evaluate, report

    folder = resumed_run[0]
    evaluate.main([str(folder), "--smoke", "--json", str(tmp_path / "e.json")])
    saved = json.loads((tmp_path / "e.json").read_text())
    assert saved["settings"]["checkpoint"]
    (row,) = report.main([str(folder), "--out", str(tmp_path / "report")])
    assert row["task"] == "permutation"
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_sigterm_to_a_runs_whole_group_ends_it_with_a_checkpoint_of_its_last_report(
    resumed_run: tuple[Path, int, str],
) -> None:
    folder = resumed_run[0]
    before = len((folder / "progress.csv").read_text().splitlines())
    process = start(folder / "log", "atari.py", "--resume", str(folder), "--steps", "10000000")
    deadline = time.monotonic() + 240
    while len((folder / "progress.csv").read_text().splitlines()) <= before:
        if time.monotonic() > deadline or process.poll() is not None:
            kill(process)
            pytest.fail(f"no report after the resume:\n{(folder / 'log').read_text()}")
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and job managers do
    try:
        code = process.wait(timeout=90)
    finally:
        if process.poll() is None:
            kill(process)
    assert code == 75, (folder / "log").read_text()
    checkpoint = newest_whole_checkpoint(folder)
    assert checkpoint is not None
    steps = json.loads((checkpoint / MODEL_SETTINGS).read_text())["env_steps"]
    with (folder / "progress.csv").open() as handle:
        assert steps == max(int(row["env_steps"]) for row in csv.DictReader(handle))
