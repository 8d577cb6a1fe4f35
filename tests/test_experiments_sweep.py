"""experiments/sweep.py from end to end: kills and resumes, failures, searches, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import sweep
from rayssl.evaluation import load_agent
from rayssl.files import hold
from rayssl.report import read_epochs, read_run
from rayssl.rllib.stopping import StopAtSteps
from rayssl.sweeps import tuning

ROOT = Path(__file__).parent.parent
# One update an epoch: the seconds of these trials are those of their processes' start.
DIGITS = ("mnist", "--dataset", "digits", "--train-images", "200", "--batch-size", "200")
Refuse = Callable[..., str]


# Mistakes


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer of two cores, on which no Ray starts and no trial runs."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected nothing to be trained.")

    monkeypatch.setattr(sweep.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sweep.ray, "shutdown", lambda: None)
    monkeypatch.setattr(sweep, "start_ray", lambda address: None)
    monkeypatch.setattr(sweep, "check_shared", lambda folder: None)
    monkeypatch.setattr(sweep, "free_after_ended", lambda: [{"CPU": 2.0, "memory": 8e9}])
    monkeypatch.setattr(sweep, "total_cpus", lambda: 2.0)
    monkeypatch.setattr("rayssl.jobs.atari.total_cpus", lambda: 2.0)
    monkeypatch.setattr(sweep, "run_trials", started)


@pytest.fixture
def refused(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:  # fmt: skip
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""
    monkeypatch.chdir(tmp_path)  # where the default results/local would be made

    def run(*words: str) -> str:
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        with pytest.raises(SystemExit) as stop:
            sweep.main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Name the job first: atari, "),
        (["minst"], "Unknown job 'minst'. Available: atari, "),
        (["--aux-weight", "1"], "Name the job before --aux-weight: atari, "),
        ([*DIGITS, "--aux-wieght", "1"], "mnist has no setting 'aux_wieght'. Near: aux_weight"),
        ([*DIGITS, "--set", "lr"], "--set expected NAME=VALUE,VALUE, got 'lr'."),
        ([*DIGITS, "--set", "rl=1"], "mnist has no setting 'rl'. Near: "),
        ([*DIGITS, "--set", "lr=1,fast"], "--lr expected a number, got 'fast'."),
        ([*DIGITS, "--set", "seed=1"], "seed is not a setting to vary: see --seeds."),
        ([*DIGITS, "--aux-weight"], "--aux-weight needs at least one value, got none."),
        ([*DIGITS, "--aux-weight", "log:1:3"], "draw from the range with --search random or"),
        ([*DIGITS, "--preset", "quick"], "Unknown preset 'quick' of mnist. Available: none"),
        (["atari", "--preset", "quik"], "Unknown preset 'quik' of atari. Available: atari-100k, "),
        ([*DIGITS, "--seeds", "0"], "--seeds must be 1 or more, got 0."),
        ([*DIGITS, "--at-once", "0"], "--at-once must be 1 or more, got 0."),
        ([*DIGITS, "--gpus-per-trial", "nan"], "--gpus-per-trial must be 0 or more, got nan."),
        ([*DIGITS, "--samples", "3"], "--samples counts what --search random or optuna draws"),
        ([*DIGITS, "--search", "optuna"], "--search optuna needs a setting with several values"),
        ([*DIGITS, "--scheduler", "asha", "--epochs", "1"], "cannot stop a training of 1 epoch"),
        ([*DIGITS, "--scheduler", "pbt"], "vary only aux_weight, lr, got nothing."),
        ([*DIGITS, "--scheduler", "pbt", "--epochs", "2", "3"], "lr, got epochs."),
        ([*DIGITS, "--scheduler", "pbt", "--aux-weight", "0", "1"], "leave aux weight 0 out."),
        ([*DIGITS, "--scheduler", "pbt", "--lr", "1", "2", "--seeds", "2"], "--seeds 1."),
        ([*DIGITS, "--name", "a/b"], "--name must be a plain folder name, got 'a/b'."),
        ([*DIGITS, "--resume", "."], ". is not the folder of a sweep: it holds no sweep.json."),
        # What single trials find wrong, before the first one starts:
        ([*DIGITS, "--aux-weight", "1", "-1"], "Trial w-1-s0 cannot work: aux_weight must be a"),
        ([*DIGITS, "--aux-task", "permutation"], "cannot work: Permutation needs 4 stacked"),
        ([*DIGITS, "--search", "optuna", "--set", "aux_task=rotation,rotat"],
         "Trial rotat-s0 cannot work: Unknown task 'rotat'."),
        (["atari", "--aux-every", "0", "1"], "every0-s0 cannot work: aux_every must be a whole"),
        (["atari", "--optimizers", "separate", "--schedule", "alternate", "joint"],
         "Trial joint-s0 cannot work: optimizers='separate' needs two losses"),
        (["atari", "--cpus-per-trial", "3"], "3 CPU, 1.4 GB asked for by the algorithm's own"),
        ([*DIGITS, "--cpus-per-trial", "3"], "A trial needs 3 CPU, 1.0 GB, and no node has the"),
        ([*DIGITS, "--gpus-per-trial", "1.5"], "above 1 must be a whole number, got 1.5."),
        (["bigan", "--scheduler", "pbt", "--lr", "none", "1e-4"], "numbers: leave none out"),
        (["atari", "--aux-task", "permutation+inverse", "--aux-weight", "0.5,0.1,1"],
         "Trial w0.5_0.1_1-s0 cannot work: "),
        (["atari", "--replay-capacity", "10000", "9000000"], "1 CPU, 64.3 GB asked for by the alg"),
        ([*DIGITS, "--gpus-per-trial", "1"], "Free on each: 2 CPU, 8.0 GB, 0 GPU."),
    ],
)  # fmt: skip
def test_mistake_is_one_line_and_starts_nothing(
    words: list[str], text: str, refused: Refuse
) -> None:
    err = refused(*words)
    assert err.startswith("error: ")
    assert text in err
    assert (err.count("\n"), err[-1]) == (1, "\n")


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_tracker_that_is_not_installed_is_one_line(
    package: str, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rayssl.sweeps.trackers.find_spec",
        lambda name: None if name == package else find_spec(name),
    )
    err = refused(*DIGITS, "--log", package)
    expected = f"--log {package} needs the package {package}: pip install 'rayssl[{package}]'."
    assert err == f"error: {expected}\n"


def test_optuna_that_is_not_installed_is_one_line(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    err = refused(*DIGITS, "--search", "optuna", "--aux-weight", "log:0.1:1")
    assert err == (
        "error: --search optuna needs the package optuna: pip install 'rayssl[sweep]'.\n"
    )


def test_option_that_nobody_knows_is_refused_with_code_2(
    refused: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Near: lr" in refused(*DIGITS, "--lrr", "1")


def test_folder_that_not_all_nodes_see_is_one_line_before_the_start(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(folder: Path) -> None:
        raise OSError(f"Expected {folder.name} to be one folder that all 2 nodes can write")

    monkeypatch.setattr(sweep, "check_shared", missing)
    err = refused(*DIGITS, "--aux-weight", "0", "1")
    assert err == "error: Expected mnist-sweep to be one folder that all 2 nodes can write\n"


def test_folder_of_a_sweep_that_is_under_way_is_left_alone(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "results" / "local" / "mnist-sweep").mkdir(parents=True)
    with hold(tmp_path / "results" / "local" / "mnist-sweep"):
        err = refused(*DIGITS, "--aux-weight", "0", "1")
    expected = "Another process is at work in results/local/mnist-sweep."
    assert err == f"error: {expected} Wait for its end, or stop it.\n"


def test_second_ctrl_c_ends_with_the_code_to_go_on(
    no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_trials", stopped)
    monkeypatch.setattr(sweep, "stop_on_signals", lambda message: None)
    with pytest.raises(SystemExit) as stop:
        sweep.main([*DIGITS, "--results-dir", str(tmp_path)])
    assert stop.value.code == sweep.UNFINISHED
    expected = f"\nstopped; go on with --resume {tmp_path / 'mnist-sweep'}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "damage",
    [{"trials": None}, {"trials": [{"trial": "a"}]}, {"settings": []}, {"version": None}],
)
def test_damaged_sweep_json_is_one_line(
    damage: dict[str, Any], tmp_path: Path, refused: Refuse
) -> None:
    trial = {"trial": "a", "group": 0, "settings": {"seed": 0}}
    saved = {"version": 1, "job": "mnist", "settings": {}, "trials": [trial]} | damage
    (tmp_path / "sweep.json").write_text(json.dumps(saved))
    assert "sweep.json" in refused("--resume", str(tmp_path))


# Dry run


def test_weights_of_a_combination_stay_together_and_several_are_swept(
    no_ray: None, tmp_path: Path
) -> None:
    words = ("--aux-task", "permutation+inverse", "--aux-weight", "0.5,0.1", "1")
    rows = sweep.main(["atari", *words, "--results-dir", str(tmp_path), "--dry-run"])
    assert [row["aux_weight"] for row in rows] == [0.0, "0.5,0.1", 1.0]
    alone = ("--set", "aux_task=permutation+inverse", "--set", "aux_weight=0.5,0.1;")
    rows = sweep.main(["atari", *alone, "--results-dir", str(tmp_path), "--dry-run"])
    assert [row["aux_weight"] for row in rows] == [0.0, "0.5,0.1"]


def test_names_of_one_game_are_one_game(no_ray: None, tmp_path: Path) -> None:
    words = ("--aux-task", "none", "--game", "pong", "Pong", "ALE/Pong-v5")
    rows = sweep.main(["atari", *words, "--results-dir", str(tmp_path), "--dry-run"])
    assert [row["trial"] for row in rows] == ["none-gamepong-s0"]


def test_optuna_is_asked_for_no_more_than_its_lists_have(
    no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*DIGITS, "--search", "optuna", "--aux-weight", "0", "0.3", "1", "--seeds", "2")
    sweep.main([*words, "--results-dir", str(tmp_path), "--dry-run"])
    assert "up to 4 more trials, as Optuna proposes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("node", "words", "text"),
    [
        ({"CPU": 16.0, "memory": 3e9}, (), "each trial gets 8 CPU, 1.4 GB; 2 run at once\n"),
        ({"CPU": 16.0, "memory": 64e9, "GPU": 1.0}, ("--gpus-per-trial", "1"),
         "each trial gets 8 CPU, 1.4 GB, 1 GPU; one runs after another\n"),
        ({"CPU": 16.0, "memory": 64e9}, (), "each trial gets 1 CPU, 1.4 GB; 16 run at once (fa"),
    ],
)  # fmt: skip
def test_cores_that_memory_or_gpus_leave_over_are_shared_out(
    node: dict[str, float], words: tuple[str, ...], text: str, no_ray: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for owner in ("experiments.sweep", "rayssl.jobs.atari"):
        monkeypatch.setattr(f"{owner}.total_cpus", lambda: node["CPU"])
    monkeypatch.setattr(sweep, "free_after_ended", lambda: [node])
    options = ["--seeds", "20", *words, "--results-dir", str(tmp_path), "--dry-run"]
    sweep.main(["atari", "--aux-task", "none", *options])
    assert text in capsys.readouterr().out


def test_dry_run_tells_trials_resources_and_time_and_writes_nothing(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [*DIGITS, "--aux-weight", "0", "0.5", "--set", "lr=1,0.5", "--seeds", "2"]
    rows = sweep.main([*words, "--dry-run"])
    out = capsys.readouterr().out
    assert len(rows) == 8
    assert [row["trial"] for row in rows[:3]] == ["w0-lr1-s0", "w0-lr0.5-s0", "w0.5-lr1-s0"]
    assert "| w0.5-lr0.5-s1 | waiting | 1    | rotation | 0.5        | 0.5 |" in out
    assert "each trial gets 1 CPU, 1.0 GB; 2 run at once (faster than" in out
    assert "about 14 seconds, give or take a factor of two:" in out
    assert "for 1 epoch, with it: MNIST in RESULTS.md" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "each trial gets 2 CPU, 1.4 GB; one runs after another\n"),
        (("--num-workers", "1"), "1 CPU, 1.4 GB; 1 CPU, 0.5 GB; one runs after another\n"),
        (("--num-workers", "4"), "4 env runners asked, 2 CPUs here: each gets 0.25 CPU"),
        (("--seeds", "2"), "each trial gets 1 CPU, 1.4 GB; 2 run at once (faster than"),
        (("--seeds", "2", "--at-once", "1"), "2 CPU, 1.4 GB; one runs after another\n"),
        (("--seeds", "3", "--scheduler", "asha"), "best third from 44,444 env_steps on, never"),
        (("--seeds", "3", "--scheduler", "asha"), "at most about "),
        (("--search", "optuna", "--lr", "log:1e-5:1e-3"), "up to 20 more trials, as Optuna"),
    ],
)
def test_dry_run_works_out_what_a_trial_of_atari_gets(
    words: tuple[str, ...], text: str, no_ray: None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sweep.main(["atari", "--no-compile", *words, "--results-dir", str(tmp_path), "--dry-run"])
    assert text in capsys.readouterr().out


# Kills


def start(log: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Starts the script in a session of its own; what it prints goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    command = [sys.executable, str(ROOT / "experiments" / "sweep.py"), *words]
    with log.open("w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of the script and of what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Killed:
    """A sweep of three trials, of which one loses its process, the driver dies, and one fails.

    Attributes:
      folder: of the sweep.
      log: what the last start of it printed.
      first: what the first start printed until it was killed.
      finished: files of the first trial, which had ended, when the driver was killed.
    """

    words = (*DIGITS, "--epochs", "12", "--aux-weight", "0", "1", "1e39", "--at-once", "1")

    def __init__(self, base: Path) -> None:
        self.folder, self.log = base / "small", base / "log"
        options = ["--cpus-per-trial", "1", "--results-dir", str(base), "--name", "small"]
        self.process = start(self.log, *self.words, *options)
        try:
            self.wait_for(lambda: self.epochs("w1-s0") >= 2)
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if "SweepTrial" in " ".join(child.cmdline()):
                    child.kill()
            before = self.epochs("w1-s0")
            self.wait_for(lambda: self.lines("w1-s0") >= before + 2)
        finally:
            kill(self.process)
        self.first = self.log.read_text()
        self.finished = self.files("w0-s0")
        self.process = start(self.log, "--resume", str(self.folder))
        try:
            self.code = self.process.wait(timeout=300)
        finally:
            if self.process.poll() is None:
                kill(self.process)

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not what():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def epochs(self, trial: str) -> int:
        return max((row["epoch"] for row in read_epochs(self.folder / trial)), default=0)

    def lines(self, trial: str) -> int:
        return len((self.folder / trial / "epochs.jsonl").read_text().splitlines())

    def files(self, trial: str) -> dict[Path, tuple[bytes, int]]:
        found = (self.folder / trial).rglob("*")
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in found if p.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


@pytest.mark.long
def test_trial_whose_process_was_killed_goes_on_from_its_checkpoint(killed: Killed) -> None:
    assert "w1-s0: its process died; goes on from its checkpoint (2 retries left)" in killed.first
    rows = read_epochs(killed.folder / "w1-s0")
    assert [row["epoch"] for row in rows] == list(range(1, 13))


@pytest.mark.long
def test_killed_sweep_runs_no_finished_trial_again(killed: Killed) -> None:
    assert "w0-s0: finished at 12 of 12 epoch" in killed.first
    assert killed.files("w0-s0") == killed.finished
    assert "2 trials to run" in killed.log.read_text()
    assert [p.name for p in (killed.folder / "w0-s0").glob("checkpoint_*")] == ["checkpoint_000011"]


@pytest.mark.long
def test_killed_and_resumed_trial_repeats_no_more_than_it_must(killed: Killed) -> None:
    # An epoch more for each of the two deaths at the most: its checkpoint was not written yet.
    assert 12 <= killed.lines("w1-s0") <= 14
    (last,) = (killed.folder / "w1-s0").glob("checkpoint_*")
    assert int(last.name.rpartition("_")[2]) >= 11  # numbered on, the old one gone
    saved = json.loads((killed.folder / "w1-s0" / "settings.json").read_text())
    assert len(saved["starts"]) == 2
    assert saved["settings"]["dataset"] == "digits"


@pytest.mark.long
def test_failed_trial_is_named_with_its_error_and_is_not_tried_again(killed: Killed) -> None:
    printed = killed.log.read_text()
    assert killed.code == 1, printed
    reason = "FloatingPointError: The loss was inf in epoch 1. Lower lr or aux_weight."
    assert f"error: w1e+39-s0 failed: {reason}" in printed
    assert f"| {reason} |" in printed
    assert "2 finished, 1 failed" in printed
    status = json.loads((killed.folder / "w1e+39-s0" / "status.json").read_text())
    assert (status["status"], status["attempts"]) == ("failed", 1)
    assert (killed.folder / "w1e+39-s0" / "error.txt").read_text().startswith("Traceback")
    assert not list((killed.folder / "w1e+39-s0").rglob("state.pt"))


@pytest.mark.long
def test_sweep_leaves_the_documented_table_and_hyper_parameters(killed: Killed) -> None:
    table = pd.read_csv(killed.folder / "trials.csv", index_col="trial")
    assert table["status"].tolist() == ["finished", "finished", "failed"]
    assert table["attempts"].tolist() == [1, 3, 1]
    assert table["done"].tolist() == [12, 12, 0]
    assert table.loc["w0-s0", "reported"] == table.loc["w0-s0", "best"] > 0.2  # chance is 0.1
    for trial in ("w0-s0", "w1-s0"):
        events = EventAccumulator(str(killed.folder / trial / "tb")).Reload()
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
        (reported,) = events.Scalars("trial/reported")
        assert reported.value == pytest.approx(table.loc[trial, "reported"])
        assert {e.step for e in events.Scalars("loss")} == set(range(1, 13))
    saved = json.loads((killed.folder / "sweep.json").read_text())
    assert [len(s["command"]) > 0 for s in saved["starts"]] == [True, True]
    assert [each["trial"] for each in saved["trials"]] == table.index.tolist()


@pytest.mark.long
def test_finished_sweep_only_prints_its_table_again(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "start_ray", lambda address: pytest.fail("nothing is left to run"))
    before = {p: p.stat().st_mtime_ns for p in killed.folder.rglob("*") if p.name != "trials.csv"}
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--resume", str(killed.folder)])
    assert stop.value.code == 1
    assert "2 finished, 1 failed" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.long
def test_resumed_sweep_keeps_its_settings(
    killed: Killed, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--seeds", "2"], ["--aux-weight", "5"]):
        with pytest.raises(SystemExit) as stop:
            sweep.main(["--resume", str(killed.folder), *words])
        assert stop.value.code == 2
        assert "A resumed sweep keeps its settings" in capsys.readouterr().err


# Searches, in a Ray that is there already


@pytest.fixture
def quiet_signals(monkeypatch: pytest.MonkeyPatch, ray_local: None) -> None:
    """Leaves pytest's own answer to Ctrl-C in place, and no stop asked for behind."""
    monkeypatch.setattr(sweep, "stop_on_signals", lambda message: None)
    monkeypatch.setattr(StopAtSteps, "asked", False)
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")


@pytest.mark.long
def test_optuna_goes_on_after_a_stop_with_what_it_has_learned(
    tmp_path: Path, quiet_signals: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended: list[str] = []
    end = tuning.SweepLog._end

    def end_and_ask(self: Any, name: str, status: str, error: str = "") -> None:
        end(self, name, status, error)
        ended.append(name)
        if len(ended) == 2:
            monkeypatch.setattr(StopAtSteps, "asked", True)

    monkeypatch.setattr(tuning.SweepLog, "_end", end_and_ask)
    words = [*DIGITS, "--epochs", "2", "--aux-weight", "log:0.1:1", "--search", "optuna"]
    words += ["--samples", "3", "--scheduler", "asha", "--at-once", "1", "--name", "found"]
    with pytest.raises(SystemExit) as stop:
        sweep.main([*words, "--results-dir", str(tmp_path)])
    assert stop.value.code == 75
    assert "go on with --resume" in capsys.readouterr().out
    before = json.loads((tmp_path / "found" / "sweep.json").read_text())["trials"]
    monkeypatch.setattr(StopAtSteps, "asked", False)
    monkeypatch.setattr(tuning.SweepLog, "_end", end)
    rows = sweep.main(["--resume", str(tmp_path / "found")])
    trials = json.loads((tmp_path / "found" / "sweep.json").read_text())["trials"]
    assert trials[: len(before)] == before
    assert len(trials) == 4  # the baseline and three proposals
    weights = [each["settings"]["aux_weight"] for each in trials]
    assert weights[0] == 0
    assert len(set(weights)) == 4
    assert all(0.1 <= weight <= 1 for weight in weights[1:])
    assert rows[0]["status"] == "finished"
    assert {row["status"] for row in rows} <= {"finished", "stopped"}


def test_dry_run_of_a_population_names_what_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DIGITS, "--aux-task", "rotation", "--aux-weight", "log:0.1:2", "--epochs", "2"]
    words += ["--search", "random", "--samples", "2", "--scheduler", "pbt", "--dry-run"]
    sweep.main([*words, "--results-dir", str(tmp_path)])
    assert "PBT changes aux_weight every" in capsys.readouterr().out


@pytest.mark.long
def test_population_copies_and_changes_what_goes_on(tmp_path: Path, quiet_signals: None) -> None:
    words = [*DIGITS, "--epochs", "5", "--aux-weight", "log:0.1:2", "--lr", "log:0.001:1"]
    words += ["--search", "random", "--samples", "3", "--scheduler", "pbt", "--name", "people"]
    rows = sweep.main([*words, "--results-dir", str(tmp_path)])
    assert [(row["status"], row["done"]) for row in rows] == [("finished", 5)] * 3
    notes = [tuning.adapted(tmp_path / "people" / row["trial"]) for row in rows]
    changed = [note for note in notes if note]
    assert changed
    assert all(0.1 <= n["aux_weight"] <= 2 and 0.001 <= n["lr"] <= 1 for n in changed)


@pytest.mark.slow
def test_trial_of_atari_has_the_folder_of_a_run(tmp_path: Path, quiet_signals: None) -> None:
    tiny = "frame_size=42 compute_dtype=float32 batch_size=8 learning_starts=64 steps=400"
    tiny += " replay_capacity=4000 envs_per_worker=2 steps_per_report=200 checkpoint_every=200"
    words = ["atari", "--no-compile", "--set", *tiny.split(), "--name", "games"]
    rows = sweep.main([*words, "--aux-task", "none", "--results-dir", str(tmp_path)])
    assert [row["trial"] for row in rows] == ["none-s0"]
    folder = tmp_path / "games" / rows[0]["folder"]
    assert (rows[0]["status"], rows[0]["done"], rows[0]["planned"]) == ("finished", 416, 400)
    assert read_run(folder)["env_steps"].tolist() == [208, 416]
    assert load_agent(str(folder)).atari_settings().game == "pong"
    saved = json.loads((folder / "settings.json").read_text())["settings"]
    assert (saved["aux_task"], saved["steps"], saved["frame_size"]) == ("none", 400, 42)
