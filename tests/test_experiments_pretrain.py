"""experiments/pretrain.py from end to end: a kill and a resume over Ray Train, and mistakes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import pretrain
from rayssl.backbones.images import make_image_backbone
from rayssl.files import hold
from rayssl.pretraining import PretrainSettings
from rayssl.pretraining_job import (
    CHECKPOINT,
    PROGRESS,
    PretrainJob,
    check_room,
    mend_last_line,
    progress_line,
    read_progress,
)

ROOT = Path(__file__).parent.parent
Refuse = Callable[..., str]
draw_images: Callable[..., Path] = runpy.run_path(str(ROOT / "tests/test_pretraining.py"))[
    "draw_images"
]
SMALL = (
    "--arch", "resnet50", "--image-size", "32", "--epochs", "2", "--batch-size", "4", "--lr",
    "0.001",
)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", 4)


# Mistakes


@pytest.fixture
def refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:  # fmt: skip
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected the mistake to be found before Ray starts.")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    for name in ("start_ray", "run_job"):
        monkeypatch.setattr(pretrain, name, started)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*")), files()
        with pytest.raises(SystemExit) as stop:
            pretrain.main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert (sorted(tmp_path.rglob("*")), files()) == before
        assert (err.startswith("error: "), err.count("\n")) == (True, 1)
        return err

    return run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--data", "gone"], "Expected a folder with one folder a class, got gone."),
        (["--data", "."], "must hold two classes or more, got ['images']."),
        (["--validation", "gone"], "Expected a folder with one folder a class, got gone."),
        (["--task", "rotate"], "Unknown task 'rotate'."),
        (["--task", "permutation"], "For single images use the rotation task."),
        (["--aux-weight", "nan"], "aux_weight must be a finite number 0 or more, got nan."),
        (["--aux-weight", "0", "--no-labels"], "Nothing is left to train on without labels"),
        (["--batch-size", "9"], "images holds 8 images, fewer than batch_size 9. Lower it."),
        (["--workers", "3"], "batch_size must be a multiple of the 3 workers, got 4. Use 3."),
        (["--workers", "0"], "--workers must be 1 or more, got 0."),
        (["--cpus-per-worker", "0"], "--cpus-per-worker must be 1 or more, got 0."),
        (["--gpus-per-worker", "2"], "--gpus-per-worker must be 0 or 1, or a part of one for a"),
        (["--gpus-per-worker", "0.5", "--workers", "2"], "for a single worker, got 0.5."),
        (["--gpus-per-worker", "nan"], "for a single worker, got nan."),
        (["--lr-steps", "0"], "lr_steps must be 1 or more each, got (0,)."),
        (["--arch", "alexnet-rotnet"], "alexnet-rotnet needs image_size 224, got 32."),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'. See --results-dir."),
        (["--resume", "images"], "images is not the folder of a run: no settings.json."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_one_line_that_says_what_to_do(
    words: list[str], text: str, refused: Refuse
) -> None:
    assert text in refused(*SMALL, "--data", "images", *words)


def test_images_in_no_class_folders_are_taken_without_labels_only(
    refused: Refuse, images: Path
) -> None:
    words = (*SMALL, "--data", str(images / "house"))
    assert "must hold one folder a class" in refused(*words)
    run = pretrain.parse([*words, "--validation", str(images / "house"), "--no-labels"])
    assert pretrain.make_job(run).data == images / "house"


def test_data_must_be_given(refused: Refuse) -> None:
    assert "--data is missing: the folder of images" in refused(*SMALL)


@pytest.mark.parametrize("words", [["--arch", "vgg"], ["--aux-weigth", "1"], ["--epochs", "x"]])
def test_words_that_are_no_option_or_value_of_it_end_with_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        pretrain.main([*SMALL, *words])
    assert stop.value.code == 2


def test_run_that_is_there_is_not_overwritten_and_keeps_its_settings(
    refused: Refuse, tmp_path: Path
) -> None:
    folder = tmp_path / "results/local/pretrain"
    folder.mkdir(parents=True)
    run = pretrain.PretrainRun(data=Path("images"), arch="resnet50", image_size=32, batch_size=4)
    settings = {"settings": json.loads(json.dumps(run.__dict__, default=str))}
    (folder / "settings.json").write_text(json.dumps(settings))
    err = refused(*SMALL, "--data", "images")
    assert f"{folder} holds a run already. Go on with --resume {folder}, or choose --name." in err
    err = refused("--resume", str(folder), "--lr", "0.5")
    assert "was started with lr 0.01, got 0.5. A resumed run keeps its settings" in err
    (folder / CHECKPOINT).write_bytes(b"half a checkp")
    err = refused("--resume", str(folder))
    assert "checkpoint.pt cannot be read (" in err
    assert "Delete it to begin again." in err
    (folder / "settings.json").write_text("{")
    assert "settings.json is damaged (" in refused("--resume", str(folder))


def test_run_that_is_under_way_is_left_alone(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    words = (*SMALL, "--data", "images", "--results-dir", str(tmp_path))
    with hold(tmp_path / "pretrain"):
        assert f"Another process is at work in {tmp_path / 'pretrain'}." in refused(*words)


def job(folder: Path, **changes: object) -> PretrainJob:
    return PretrainJob(PretrainSettings(), folder, None, folder, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"workers": 3}, "3 workers with 1 CPU each asked, but there is room for 2 (free on each"),
        ({"workers": 2, "cpus_per_worker": 2}, "room for 1 (free on each node: 2 CPU; 1 CPU)"),
        ({"gpus_per_worker": 1.0}, "1 workers with 1 CPU and 1 GPU each asked, but there is room"),
    ],
)
def test_what_ray_has_no_room_for_is_said_before_it_waits(
    changes: dict[str, object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [{"CPU": 2.0, "memory": 1.0}, {"CPU": 1.0}]
    if changes.get("workers") == 3:
        free = [{"CPU": 1.5}, {"CPU": 1.9}]  # 3.4 CPUs in all, but a worker runs on one node
    monkeypatch.setattr("rayssl.pretraining_job.free_resources", lambda: free)
    check_room(job(tmp_path, workers=2))
    with pytest.raises(ValueError, match=".*") as wrong:
        check_room(job(tmp_path, **changes))
    assert text in str(wrong.value)


# The log


def test_log_takes_the_last_row_of_an_update_and_leaves_cut_lines_out(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1, "update": 2, "loss": 3.0}, {"epoch": 1, "update": 1, "loss": 4.0},
        {"epoch": 1, "update": 2, "loss": 2.0},
    ]  # fmt: skip
    path = tmp_path / PROGRESS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 1, "upd')
    expected = [rows[1], rows[2]]
    assert read_progress(tmp_path) == expected
    mend_last_line(path)
    with path.open("a") as handle:
        handle.write(json.dumps({"epoch": 2, "update": 1}) + "\n")
    assert read_progress(tmp_path) == [*expected, {"epoch": 2, "update": 1}]
    assert read_progress(tmp_path / "gone") == []


def test_line_for_people_names_what_there_is() -> None:
    row = {"epoch": 2, "update": 5, "updates": 9, "loss": 1.5, "aux_accuracy": 0.5,
           "images_per_s": 12.3}  # fmt: skip
    assert progress_line(row, 4) == (
        "epoch 2/4, update 5/9 | loss 1.5000 | aux 50.00% | 12 images/s"
    )
    done = row | {"epoch_done": True, "accuracy": 0.25, "validation_accuracy": 1.0}
    assert progress_line(done, 4) == (
        "epoch 2/4 | loss 1.5000 | accuracy 25.00% | aux 50.00% | validation 100.00% | 12 images/s"
    )


# End to end


@pytest.mark.long
def test_killed_run_goes_on_with_another_number_of_workers_and_leaves_weights(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--data", str(images), "--checkpoint-every", "1"]
    script = [sys.executable, str(ROOT / "experiments/pretrain.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    run = tmp_path / "results/pretrain"
    two = [*script, *words, "--results-dir", str(run.parent), "--workers", "2"]
    process = subprocess.Popen(two, env=environment, start_new_session=True)
    deadline = time.monotonic() + 900
    try:
        while not read_progress(run):
            assert process.poll() is None, "the run ended before its first row"
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Ray's processes end with their driver
        process.wait()
    before = read_progress(run)
    resumed = subprocess.run(
        [*script, "--resume", str(run), "--workers", "1"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    found = read_progress(run)
    assert [(row["epoch"], row["update"]) for row in found] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [bool(row.get("epoch_done")) for row in found] == [False, True, False, True]
    for row, again in zip(before, found, strict=False):
        assert again["loss"] == pytest.approx(row["loss"], rel=1e-3)
    (weights,) = run.glob("resnet50-????????.pth")
    assert str(weights) in resumed.stdout
    backbone = make_image_backbone("resnet50-imagenet", weights=weights)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)
    assert len(json.loads((run / "settings.json").read_text())["starts"]) == 2
    assert any((run / "tb").iterdir())
    # A finished run only prints its table again, without Ray.
    table = pretrain.main(["--resume", str(run)])
    assert table.splitlines()[0].startswith("| epoch | lr")
    assert len(table.splitlines()) == 4


# Games


def test_pretraining_on_games_is_an_aux_only_run_of_atari(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def started(words: list[str]) -> dict[str, object]:
        asked.append(words)
        return {"TD updates": 0}

    monkeypatch.setattr("experiments.atari.main", started)
    table = pretrain.main(["atari", "--game", "pong", "--steps", "7"])
    assert asked == [["--schedule", "aux-only", "--game", "pong", "--steps", "7"]]
    assert "| TD updates |" in table
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["atari", "--schedule", "joint"])
    assert stop.value.code == 2
    assert "with the aux loss alone" in capsys.readouterr().err
