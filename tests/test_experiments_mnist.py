"""experiments/mnist.py from end to end: tables, a kill and a resume, failures, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from experiments import mnist
from rayssl import epoch_experiment
from rayssl.cli import git_commit
from rayssl.data import ImageSplits, load_dataset
from rayssl.data.mnist import FILES
from rayssl.files import hold
from rayssl.report import read_epochs
from rayssl.trainables import CLASSIFICATION, newest_checkpoint, pending
from rayssl.training import ClassifierSettings, ClassifierTraining

ROOT = Path(__file__).parent.parent
Refuse = Callable[..., str]


def write_idx_set(folder: Path, train: int = 96, test: int = 40) -> ImageSplits:
    """Writes a few of scikit-learn's digits as four IDX files, and returns what they hold."""
    d = load_dataset("digits")
    small = ImageSplits(
        "mnist", d.train_x[:train], d.train_y[:train], d.test_x[:test], d.test_y[:test], 10
    )
    folder.mkdir()
    for name, values in zip(FILES, small[1:5], strict=True):
        squeezed = values[:, 0] if values.dim() == 4 else values
        sizes = b"".join(size.to_bytes(4, "big") for size in squeezed.shape)
        body = squeezed.to(torch.uint8).numpy().tobytes()
        (folder / name).write_bytes(bytes((0, 0, 8, squeezed.dim())) + sizes + body)
    return small


# Mistakes


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected the mistake to be found before Ray starts.")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    for owner, name in (
        (ray, "init"),
        (epoch_experiment, "start_ray"),
        (epoch_experiment, "run_trials"),
    ):
        monkeypatch.setattr(owner, name, started)
    monkeypatch.chdir(tmp_path)  # where the default results/local would be made

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*")), files()
        with pytest.raises(SystemExit) as stop:
            mnist.main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert (sorted(tmp_path.rglob("*")), files()) == before
        return err

    return run


def assert_one_line(err: str, text: str) -> None:
    assert err.startswith("error: ")
    assert text in err
    assert (err.count("\n"), err[-1]) == (1, "\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--dataset", "cifar"], "Unknown data set 'cifar'. Available: digits, fashion-mnist, mn"),
        (["--protocol", "papr"], "Unknown protocol 'papr'. Available: paper, paper-code, strict."),
        (["--protocol", "paper", "x"], "Unknown protocol 'x'."),
        (["--protocol"], "--protocol needs at least one value, got none."),
        (["--aux-task"], "--aux-task needs at least one value, got none."),
        (["--aux-weight"], "--aux-weight needs at least one value, got none."),
        (["--aux-task", "rotate"], "Unknown task 'rotate'. Available: atc, curl, "),
        (["--aux-task", "none", "permutation"], "For single images use the rotation task."),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0."),
        (["--epochs", "0"], "epochs must be 1 or more, got 0."),
        (["--batch-size", "0"], "batch_size must be 1 or more, got 0."),
        (["--lr", "-1"], "lr must be a finite number above 0, got -1.0."),
        (["--lr", "nan"], "lr must be a finite number above 0, got nan."),
        (["--aux-weight", "1", "-1"], "aux_weight must be a finite number 0 or more, got -1.0."),
        (
            ["--protocol", "strict", "--train-images", "15"],
            "Protocol strict keeps 8.3% of the training images, some of each class, for validation",
        ),
        (["--num-cpus", "0"], "--num-cpus must be 1 or more, got 0."),
        (["--num-gpus", "-1"], "--num-gpus must be 0 or more, got -1.0."),
        (["--num-gpus", "nan"], "--num-gpus must be 0 or more, got nan."),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'. See --results-dir."),
        (["--name", ".."], "--name must be a plain folder name, got '..'. See --results-dir."),
        (["--name", "."], "--name must be a plain folder name, got '.'. See --results-dir."),
        (["--resume", "."], ". is not the folder of an experiment: no settings.json."),
        (["--resume", "gone"], "gone is not the folder of an experiment: no settings.json."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_one_line_that_says_what_to_do(
    words: list[str], text: str, refused: Refuse
) -> None:
    given = [] if "--dataset" in words else ["--dataset", "digits"]
    assert_one_line(refused(*given, *words), text)


@pytest.mark.parametrize(
    "words", [["--epoch", "x"], ["--aux-copies", "two"], ["--compute-dtype", "half"], ["--sedes"]]
)
def test_words_that_are_no_option_or_value_of_it_end_with_code_2(
    words: list[str], refused: Refuse
) -> None:
    assert words[0] in refused("--dataset", "digits", *words)


def test_folder_that_cannot_be_written_is_refused(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    err = refused("--dataset", "digits", "--results-dir", str(tmp_path / "file"))
    assert_one_line(err, f"Results cannot be written to {tmp_path / 'file' / 'digits'}: Not a dir")


def test_experiment_that_is_under_way_is_left_alone(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    with hold(tmp_path / "digits"):
        err = refused("--dataset", "digits", "--results-dir", str(tmp_path))
    assert_one_line(err, f"Another process is at work in {tmp_path / 'digits'}.")


def test_folder_of_another_experiment_is_refused(refused: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "local" / "digits"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    err = refused("--dataset", "digits")
    assert_one_line(err, "results/local/digits holds an experiment already. Go on with --resume ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--epochs", "9"], "was started with epochs 3, got 9. A resumed experiment keeps its"),
        (["--seeds", "2"], "was started with seeds 1, got 2."),
        (["--lr", "0.5"], "was started with lr 1.0, got 0.5."),
        (["--aux-task", "none"], "was started with aux_task ('none', 'rotation'), got ('none',)."),
    ],
)
def test_resumed_experiment_keeps_its_settings(
    words: list[str], text: str, refused: Refuse, tmp_path: Path
) -> None:
    settings = {"dataset": "digits", "epochs": 3, "aux_task": ["none", "rotation"]}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": settings}))
    assert_one_line(refused("--resume", str(tmp_path), *words), text)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 7}', "{}"])
def test_damaged_settings_are_refused(text: str, refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    assert_one_line(refused("--resume", str(tmp_path)), "settings.json is damaged (")


def test_file_that_was_cut_short_is_refused_before_anything_starts(
    refused: Refuse, tmp_path: Path
) -> None:
    write_idx_set(tmp_path / "data")
    cut = tmp_path / "data" / FILES[0]
    cut.write_bytes(cut.read_bytes()[:-100])
    for words in ([], ["--no-verify"]):
        err = refused("--data-dir", str(tmp_path / "data"), *words)
        assert_one_line(err, f"{cut} is damaged: its header promises 75,280 bytes, it has 75,180.")


def test_own_files_are_refused_until_asked_for(refused: Refuse, tmp_path: Path) -> None:
    write_idx_set(tmp_path / "data")
    err = refused("--data-dir", str(tmp_path / "data"))
    assert_one_line(err, "For a data set of your own in this format pass --no-verify.")


def test_experiment_that_ray_cannot_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(address: str) -> None:
        raise ConnectionError(f"no cluster at {address}")

    monkeypatch.setattr(epoch_experiment, "start_ray", fail)
    with pytest.raises(SystemExit, match="2"):
        mnist.main(
            ["--dataset", "digits", "--results-dir", str(tmp_path / "new"), "--address", "x"]
        )
    assert_one_line(capsys.readouterr().err, "no cluster at x")
    assert list(tmp_path.iterdir()) == []


# Which trials there are


def trial_names(*words: str) -> list[str]:
    return sorted(mnist.trial_name(config) for config in mnist.trials(mnist.parse(words)))


def test_there_is_a_trial_for_each_protocol_task_weight_and_seed() -> None:
    tasks = ("--aux-task", "none", "rotation", "--aux-weight", "1", "0.1")
    assert trial_names("--protocol", "paper", "strict", *tasks, "--seeds", "2") == sorted(
        f"{protocol}-{task}-s{seed}"
        for protocol in ("paper", "strict")
        for task in ("none", "rotation-w1", "rotation-w0.1")
        for seed in (0, 1)
    )


def test_same_words_twice_are_one_trial() -> None:
    words = ("--aux-task", "none", "none", "rotation", "--aux-weight", "1", "1")
    assert trial_names(*words) == ["paper-none-s0", "paper-rotation-w1-s0"]


# Runs


def start(log: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Starts the script in a session of its own; what it prints goes to the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / "mnist.py"), *words]
    with log.open("w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of the script and of what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: "subprocess.Popen[bytes]", seconds: float = 240) -> int:
    try:
        return process.wait(timeout=seconds)
    finally:
        if process.poll() is None:
            kill(process)


class Killed:
    """An experiment that kill -9 ended between its first and its last trial's end.

    Attributes:
      folder: of the experiment.
      log: what the last start of it printed.
      data: the images.
      lines: of epochs.jsonl when it was killed.
    """

    words = ("--epochs", "4", "--batch-size", "32", "--aux-copies", "all", "--name", "small")
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 32}

    def __init__(self, base: Path) -> None:
        self.folder, self.log = base / "small", base / "log"
        self.data = write_idx_set(base / "data")
        options = ["--no-verify", "--data-dir", str(base / "data"), "--results-dir", str(base)]
        process = start(self.log, *self.words, *options)
        deadline = time.monotonic() + 240
        # A plain trial takes a fifth of the time of one with all rotations: the kill is between.
        while not self._plain_is_over_and_rotation_under_way():
            if time.monotonic() > deadline or process.poll() is not None:
                kill(process)
                pytest.fail(f"no epoch to kill after:\n{self.log.read_text()}")
            time.sleep(0.05)
        kill(process)
        self.lines = (self.folder / "epochs.jsonl").read_text().splitlines()

    def _plain_is_over_and_rotation_under_way(self) -> bool:
        rows = read_epochs(self.folder)
        epochs = {task: [r["epoch"] for r in rows if r["aux_task"] == task] for task in TASKS}
        return 4 in epochs["none"] and 1 in epochs["rotation"]


TASKS = ("none", "rotation")


@pytest.mark.parametrize(
    ("logged", "expected"),
    [([1, 2, 3], None), ([1, 2], "b"), ([1], "a"), ([], None), ([1, 3], "a"), ([2, 3], None)],
)
def test_trial_goes_on_from_no_epoch_that_the_log_lacks(
    logged: list[int], expected: str | None, tmp_path: Path
) -> None:
    for start_id, epoch in {"a": 1, "b": 2, "c": 3}.items():
        checkpoint = tmp_path / f"paper-none-s0_{start_id}" / "checkpoint_000000"
        checkpoint.mkdir(parents=True)
        torch.save({"epoch": epoch}, checkpoint / "state.pt")
    rows = [{"trial": "paper-none-s0", "epoch": epoch} for epoch in logged]
    config = {"protocol": "paper", "aux_task": "none", "seed": 0, "epochs": 3}
    left = pending(rows, tmp_path, [config], CLASSIFICATION)
    assert bool(left) == (logged != [1, 2, 3])
    found = left and left[0]["restore_from"]
    assert (Path(found).parent.name[-1] if found else None) == expected


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def resumed(killed: Killed) -> Killed:
    """The same experiment after --resume, finished."""
    # What a kill leaves in the middle of a write:
    with (killed.folder / "epochs.jsonl").open("a") as handle:
        handle.write('{"trial": "paper-rotation-w1-s0", "epoch": 4, "epo')
    code = finish(start(killed.log, "--resume", str(killed.folder)))
    assert code == 0, killed.log.read_text()
    return killed


@pytest.mark.slow
@pytest.mark.long
def test_killed_experiment_runs_only_its_unfinished_trial_again(resumed: Killed) -> None:
    lines = (resumed.folder / "epochs.jsonl").read_text().splitlines()
    assert lines[: len(resumed.lines)] == resumed.lines  # byte by byte
    rotation = "paper-rotation-w1-s0"
    later = [json.loads(line) for line in lines[len(resumed.lines) + 1 :]]
    assert {row["trial"] for row in later} == {rotation}
    assert "mnist: 1 of 2 trials to run" in resumed.log.read_text()
    assert len(list(resumed.folder.glob("paper-none-s0_*"))) == 1
    assert len(list(resumed.folder.glob(f"{rotation}_*"))) == 2
    assert newest_checkpoint(resumed.folder, rotation) is not None


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_resumed_rows_are_those_of_a_training_without_ray_or_kill(
    resumed: Killed,
) -> None:
    rows = read_epochs(resumed.folder)
    keys = ("epoch", "loss", "test_accuracy", "test_confusion", "selected_epoch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as --num-cpus 1 gives a trial
    for task in TASKS:
        settings = ClassifierSettings(
            aux_task=task, aux_copies="all" if task == "rotation" else None, **resumed.settings
        )
        whole = list(ClassifierTraining(resumed.data, settings).epochs())
        own = [row for row in rows if row["aux_task"] == task]
        assert [[r[k] for k in keys] for r in own] == [[r[k] for k in keys] for r in whole]
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.long
def test_experiment_ends_with_tables_curves_and_what_made_them(resumed: Killed) -> None:
    folder, printed = resumed.folder, resumed.log.read_text()
    report = (folder / "report.md").read_text()
    assert report.strip() in printed
    assert "### Test accuracy in percent (Table I), mnist" in report
    assert "| printed: none |" in report
    assert printed.strip().splitlines()[-2].startswith(f"curves: {folder / 'curves.png'}")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for trial in ("paper-none-s0", "paper-rotation-w1-s0"):
        assert list((folder / "tb" / trial).glob("events.*"))
    saved = json.loads((folder / "settings.json").read_text())
    assert saved["settings"]["epochs"] == 4
    assert saved["settings"]["data_dir"] == str(folder.parent / "data")
    assert saved["commit"] == git_commit()
    first, second = saved["starts"]
    assert "experiments/mnist.py --epochs 4" in first["command"]
    assert f"--resume {folder}" in second["command"]


@pytest.mark.slow
@pytest.mark.long
def test_resume_of_a_finished_experiment_only_writes_its_tables_again(
    resumed: Killed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        epoch_experiment, "start_ray", lambda address: pytest.fail("nothing is left to run")
    )
    settings = (resumed.folder / "settings.json").read_bytes()
    (resumed.folder / "report.md").unlink()
    report = mnist.main(["--resume", str(resumed.folder)])
    assert (resumed.folder / "report.md").read_text() == report + "\n"
    assert report in capsys.readouterr().out
    assert (resumed.folder / "settings.json").read_bytes() == settings


@pytest.mark.slow
def test_trial_that_fails_is_named_with_its_error_and_the_others_finish(tmp_path: Path) -> None:
    # A weight of 1e39 is more than a float32 can hold: the first loss is infinite, the next NaN.
    log = tmp_path / "log"
    words = ["--dataset", "digits", "--epochs", "1", "--aux-task", "rotation"]
    words += ["--aux-weight", "1", "1e39"]
    code = finish(start(log, *words, "--results-dir", str(tmp_path)))
    printed = log.read_text()
    assert code == 1, printed
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: paper-rotation-w1e+39-s0 failed: FloatingPointError: ")
    assert error.endswith("The loss was nan in epoch 1. Lower lr or aux_weight.")
    assert "1 of 2 trials have not finished; go on with --resume" in printed
    rows = read_epochs(tmp_path / "digits")
    assert [row["trial"] for row in rows] == ["paper-rotation-w1-s0"]
    assert rows[0]["test_accuracy"] > 0.5  # chance is 0.1
    assert "| paper    | rotation, weight 1 | 1     |" in printed
    assert (tmp_path / "digits" / "curves.png").is_file()
