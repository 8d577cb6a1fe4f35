"""experiments/bigan.py from end to end: digits, kills and a resume, tables, and mistakes."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from PIL import Image

from experiments import bigan
from rayssl import epoch_experiment
from rayssl.bigan import make_training
from rayssl.bigan_report import DONAHUE_LOG, bigan_report, plot_bigan
from rayssl.cli import git_commit
from rayssl.data import load_dataset
from rayssl.jobs import find_job
from rayssl.report import read_epochs
from rayssl.trainables import adversarial_line

ROOT = Path(__file__).parent.parent
Refuse = Callable[..., str]


# Mistakes


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected the mistake to be found before Ray starts.")

    for owner, name in (
        (ray, "init"),
        (epoch_experiment, "start_ray"),
        (epoch_experiment, "run_trials"),
    ):
        monkeypatch.setattr(owner, name, started)
    monkeypatch.chdir(tmp_path)  # where the default results/local would be made

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            bigan.main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--dataset", "cifar"], "Expected as --dataset digits, fashion-mnist, mnist or a folder"),
        (
            ["--dataset", "."],
            "Expected images (.bmp, .jpeg, .jpg, .png, .webp) below ., found none.",
        ),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0."),
        (["--num-cpus", "0"], "--num-cpus must be 1 or more, got 0."),
        (["--num-gpus", "nan"], "--num-gpus must be 0 or more, got nan."),
        (["--epochs", "0"], "epochs must be 1 or more, got 0."),
        (["--batch-size", "1"], "batch_size must be 2 or more, got 1."),
        (["--batch-size", "1438"], "at most the number of training images, 1,437, got 1438."),
        (["--lr", "inf"], "lr must be a finite number above 0, got inf."),
        (["--decay-share", "-0.1"], "decay_share must be in [0, 1], got -0.1."),
        (["--eval-every", "0"], "eval_every must be 1 or more, got 0."),
        (["--statistics-batches", "0"], "statistics_batches must be 1 or more, got 0."),
        (["--d-steps", "2"], "bigan has no setting d_steps. It has "),
        (["--encoder-lr", "1"], "bigan has no setting encoder_lr. It has "),
        (["--model", "bigbigan", "--size", "28"], "size of bigbigan must be 32, 64, 128, got 28."),
        (["--model", "bigbigan", "--ema", "1"], "ema must be in [0, 1), got 1.0."),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'. See --results-dir."),
        (["--resume", "gone"], "gone is not the folder of an experiment: no settings.json."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_one_line_that_says_what_to_do(
    words: list[str], text: str, refused: Refuse
) -> None:
    given = [] if "--dataset" in words else ["--dataset", "digits"]
    err = refused(*given, *words)
    assert err.startswith("error: ")
    assert text in err
    assert (err.count("\n"), err[-1]) == (1, "\n")


@pytest.mark.parametrize("words", [["--model", "gan"], ["--epoch", "x"], ["--widht", "3"]])
def test_words_that_are_no_option_or_value_of_it_end_with_code_2(
    words: list[str], refused: Refuse
) -> None:
    assert words[0] in refused("--dataset", "digits", *words)


def test_resumed_experiment_keeps_its_settings(refused: Refuse, tmp_path: Path) -> None:
    settings = {"dataset": "digits", "epochs": 3, "width": 16}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": settings}))
    err = refused("--resume", str(tmp_path), "--width", "32")
    assert "was started with width 16, got 32. A resumed experiment keeps its" in err


def test_settings_left_out_are_the_models_own() -> None:
    run = bigan.BiganRun(model="bigbigan", width=16, seeds=2)
    first, second = (trial.config() for trial in bigan.trials(run))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert (first["width"], first["d_steps"], first["size"]) == (16, 2, 32)
    donahue = bigan.trials(bigan.BiganRun())[0].config()
    assert (donahue["epochs"], donahue["width"], donahue["size"]) == (400, 1024, 28)


# Tables


def rows_of(trial: str, **extra: Any) -> list[dict[str, Any]]:
    config = {"trial": trial, "model": trial.split("-")[0], "seed": 0, "epochs": 3}
    rows = [
        {**config, "epoch": epoch, "d_loss": 0.5, "ge_loss": 1.0, "seconds": 30.0, **extra}
        for epoch in (1, 2, 3)
    ]
    figures = {"nn_features": 0.9, "nn_code": 0.8, "probe_features": 0.85, "probe_code": 0.7,
               "recon_l2": 7.0, "recon_l2_baseline": 9.0, "eval_seconds": 15.0}  # fmt: skip
    rows[0] |= figures
    rows[2] |= figures | {"nn_features": 0.95}
    return rows


def test_table_shows_the_last_evaluation_and_donahues_log_beside_mnist_only(tmp_path: Path) -> None:
    rows = rows_of("bigan-s0")
    report = bigan_report(rows, dataset="mnist")
    line = next(line for line in report.splitlines() if line.startswith("| bigan "))
    assert [cell.strip() for cell in line.split("|")[4:7]] == ["3", "95.00", "80.00"]
    assert line.rstrip("| ").endswith("2.0")  # 3 x 30 s and 2 x 15 s
    assert "| 400   | 97.35 " in report
    assert "97.35" not in bigan_report(rows, dataset="digits")
    assert "97.35" not in bigan_report(rows_of("bigbigan-s0"), dataset="mnist")
    assert bigan_report([], dataset="mnist") == "No epoch has been evaluated yet."
    assert plot_bigan(rows, tmp_path / "a.png", title="t").read_bytes().startswith(b"\x89PNG")
    plot_bigan([], tmp_path / "b.png", title="t")  # nothing to draw is no error


def test_donahues_log_is_the_published_one() -> None:
    last = DONAHUE_LOG[-1]
    assert (last["epoch"], last["nn_features"], last["nn_code"]) == (400, 0.9735, 0.9210)
    assert (last["recon_l2"], last["recon_l2_baseline"]) == (5.95, 9.60)


def test_line_of_an_epoch_says_what_was_measured() -> None:
    first, second, _ = rows_of("bigan-s0")
    assert adversarial_line(second) == "bigan-s0: epoch 2/3 | D 0.500 | G, E 1.000 | 30 s"
    assert "| 1-NN 90.00% | probe 85.00% | reconstruction 7.00 of 9.00 |" in adversarial_line(first)


# Runs


def start(log: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Starts the script in a session of its own; what it prints goes to the log."""
    command = [sys.executable, str(ROOT / "experiments" / "bigan.py"), *words]
    with log.open("a") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def kill(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of the script and of what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Killed:
    """An experiment whose worker was killed by kill -9, then all of it, and that was resumed.

    Attributes:
      folder: of the experiment.
      log: what all starts printed.
      before: lines of epochs.jsonl at the second kill.
    """

    settings: dict[str, Any] = {"epochs": 60, "width": 16, "z_dim": 4, "statistics_batches": 5}

    def __init__(self, base: Path) -> None:
        self.folder, self.log = base / "bigan-digits", base / "log"
        options = [w for k, v in self.settings.items() for w in (f"--{k}".replace("_", "-"), v)]
        words = ["--dataset", "digits", "--results-dir", str(base), *map(str, options)]
        process = start(self.log, *words)
        self._wait(process, epochs=3)
        while not self._kill_worker(process):  # between two epochs it has another name
            time.sleep(0.01)
        reached = len(read_epochs(self.folder))
        self._wait(process, epochs=reached + 3)
        kill(process)
        self.before = (self.folder / "epochs.jsonl").read_text().splitlines()
        process = start(self.log, "--resume", str(self.folder))
        try:
            code = process.wait(timeout=480)
        finally:
            if process.poll() is None:
                kill(process)
        assert code == 0, self.log.read_text()

    def _kill_worker(self, process: "subprocess.Popen[bytes]") -> bool:
        """Kills the trial's process if it can be told; returns whether it was."""
        assert process.poll() is None, f"it ended too early:\n{self.log.read_text()}"
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "Trainable" in " ".join(child.cmdline()):
                    child.kill()
                    return True
        return False

    def _wait(self, process: "subprocess.Popen[bytes]", epochs: int) -> None:
        deadline = time.monotonic() + 480
        while len(read_epochs(self.folder)) < epochs:
            if time.monotonic() > deadline or process.poll() is not None:
                kill(process)
                pytest.fail(f"no {epochs} epochs to kill after:\n{self.log.read_text()}")
            time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


@pytest.mark.long
def test_killed_and_resumed_rows_are_those_of_a_training_without_ray_or_kill(
    killed: Killed,
) -> None:
    assert len(killed.before) < killed.settings["epochs"]
    assert (killed.folder / "epochs.jsonl").read_text().startswith("\n".join(killed.before))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as --num-cpus 1 gives a trial
    whole = list(make_training("bigan", load_dataset("digits"), **killed.settings).epochs())
    torch.set_num_threads(threads)
    rows = read_epochs(killed.folder)
    keys = [k for k in whole[-1] if k not in ("seconds", "images_per_s", "eval_seconds", "images")]
    assert {"nn_features", "recon_l2", "d_loss"} <= set(keys)
    assert [[r.get(k) for k in keys] for r in rows] == [[w.get(k) for k in keys] for w in whole]


@pytest.mark.long
def test_experiment_ends_with_table_curves_pictures_and_what_made_them(killed: Killed) -> None:
    folder, printed = killed.folder, killed.log.read_text()
    report = (folder / "report.md").read_text()
    assert report.strip() in printed
    assert "### Last evaluation of each trial, digits" in report
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == [
        f"bigan-s0-{kind}-epoch-{epoch:04d}.png"
        for kind in ("reconstructions", "samples")
        for epoch in (1, 25, 50, 60)
    ]
    with Image.open(folder / "images" / names[-1]) as grid:
        assert (grid.size, grid.mode) == ((289, 289), "L")
    events = list((folder / "tb" / "bigan-s0").glob("events.*"))
    assert any(b"samples" in path.read_bytes() for path in events)
    saved = json.loads((folder / "settings.json").read_text())
    assert saved["commit"] == git_commit()
    assert len(saved["starts"]) == 2


@pytest.mark.long
def test_finished_experiment_writes_its_tables_again(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        epoch_experiment, "start_ray", lambda address: pytest.fail("nothing is left to run")
    )
    report = bigan.main(["--resume", str(killed.folder)])
    assert report in capsys.readouterr().out


# As a job of sweeps


def test_job_takes_models_own_values_and_names_what_does_not_fit(tmp_path: Path) -> None:
    job = find_job("bigan")
    trial = job.settings(dataset="digits", epochs=2, width=16, statistics_batches=2)
    job.check(trial)
    assert job.planned(trial) == 2
    assert job.planned(job.settings(model="bigbigan")) == 50
    assert job.from_json({**dataclasses.asdict(trial), "cpus": 1}) == trial
    with pytest.raises(ValueError, match="bigan has no setting d_steps"):
        job.check(dataclasses.replace(trial, d_steps=2))
    with pytest.raises(ValueError, match="the number of training images, 1,437"):
        job.check(dataclasses.replace(trial, batch_size=2_000))
    seconds, source = job.typical_seconds(trial)
    assert 0 < seconds < 0.1
    assert "RESULTS.md" in source
    assert job.alike({**dataclasses.asdict(trial), "lr": 0.1}, trial)
    assert not job.alike({**dataclasses.asdict(trial), "width": 1024}, trial)


def test_jobs_log_is_read_back_and_judged_by_its_evaluated_epochs(tmp_path: Path) -> None:
    job = find_job("bigan")
    trial = job.settings(dataset="digits", epochs=3, width=16, eval_every=2, statistics_batches=2)
    training = make_training(data=trial.data(), **trial.config())
    write = job.open_log(tmp_path, "w16-s0", 0)
    for metrics in training.epochs():
        write(metrics, trial)
    rows = job.rows(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["trial"] == "w16-s0" and row["width"] == 16 for row in rows)
    assert job.reported(rows, trial) == rows[-1]["nn_features"] == metrics["nn_features"]
    assert job.objective({"epoch": 5}, trial) is None
    assert job.line(rows[1], trial).startswith("epoch 2/3 | D 0.")
    assert (tmp_path / "images" / "w16-s0-samples-epoch-0003.png").is_file()
    assert job.seconds_per_unit(rows[0]) == rows[0]["seconds"]


@pytest.mark.long
def test_sweep_of_bigans_runs_through_its_own_script(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["bigan", "--dataset", "digits", "--epochs", "2", "--width", "8", "16"]
    words += ["--statistics-batches", "2", "--results-dir", str(tmp_path), "--cpus-per-trial", "1"]
    command = [sys.executable, str(ROOT / "experiments" / "sweep.py"), *words]
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, timeout=480,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()
    table = (tmp_path / "bigan-sweep" / "trials.csv").read_text().splitlines()
    assert len(table) == 3
    assert all("finished" in line for line in table[1:])
