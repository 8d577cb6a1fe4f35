"""experiments/deepfake.py demo and prepare: from end to end, killed and gone on with, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import deepfake
from rayssl.data.face_splits import split_faces
from rayssl.data.faces import load_face_set
from rayssl.data.stand_in import StandIn, write_stand_in
from rayssl.files import hold

ROOT = Path(__file__).parent.parent
TINY = StandIn(actors=4, takes=1, frames=2)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn videos of TINY."""
    root = tmp_path_factory.mktemp("stand-in") / "videos"
    assert len(list(write_stand_in(root, TINY))) == 8
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# The stand-in


def test_stand_in_is_the_same_in_every_run_to_the_byte(stand_in: Path, tmp_path: Path) -> None:
    list(write_stand_in(tmp_path / "again", TINY))
    assert files(tmp_path / "again") == files(stand_in)


def test_stand_in_has_the_lists_of_dfdc_and_a_mask_video_of_each_fake(stand_in: Path) -> None:
    labels = []
    for path in sorted(stand_in.glob("*/metadata.json")):
        for name, about in json.loads(path.read_text()).items():
            assert (path.parent / name).is_file()
            assert len(name) == len("abcdefghij.mp4")
            assert about["split"] == "train"
            assert ("original" in about) == (about["label"] == "FAKE")
            mask = stand_in / "masks" / path.parent.name / name
            assert mask.is_file() == (about["label"] == "FAKE")
            labels.append(about["label"])
    assert sorted(labels) == ["FAKE"] * 4 + ["REAL"] * 4


def test_stand_in_is_called_by_no_data_sets_name(stand_in: Path) -> None:
    names = " ".join(files(stand_in)).lower()
    texts = b" ".join(v for k, v in files(stand_in).items() if not k.endswith(".mp4")).lower()
    assert "dfdc" not in names
    assert b"dfdc" not in texts
    assert b"drawn" in texts


def test_stand_in_of_an_earlier_drawing_is_refused(tmp_path: Path) -> None:
    earlier = {"actors": 2, "takes": 2, "frames": 3, "seed": 0}  # as before drawings had a number
    (tmp_path / "stand-in.json").write_text(f"{json.dumps(earlier)}\ndone\n")
    with pytest.raises(FileExistsError, match="delete it and the faces made of it"):
        next(write_stand_in(tmp_path, StandIn(**earlier)))


def test_finished_stand_in_is_left_as_it_is_and_other_settings_are_refused(stand_in: Path) -> None:
    assert list(write_stand_in(stand_in, TINY)) == []
    with pytest.raises(FileExistsError, match="holds something else than the drawn faces"):
        list(write_stand_in(stand_in, StandIn(actors=6, takes=1, frames=2)))


# Mistakes


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("prepare {nowhere}", "No folder"),
        ("prepare {empty}", "holds no usable video. Expected DFDC"),
        ("prepare {videos} --compression c23", "or leave --compression out"),
        ("prepare {videos} --real 9", "Expected --real of 0 to 4"),
        ("prepare {videos} --real 0 --fake 0", "No video to prepare"),
        ("prepare {videos} --frames 0", "--frames must be 1 or more"),
        ("prepare {videos} --size 1", "--size must be 8 or more"),
        ("prepare {videos} --margin 0", "--margin must be 0.1 or more"),
        ("prepare {videos} --min-face 2", "--min-face must be over 0"),
        ("prepare {videos} --seed -1", "--seed must be 0 or more"),
        ("prepare {videos} --detector yunet", "YuNet's weights are missing"),
        ("prepare {videos} --weights {empty}", "--weights are for --detector yunet"),
        ("prepare {videos} --out {videos}", "is not empty, and holds no preparation"),
        ("demo --actors 3", "Expected an even number of actors"),
        ("demo --takes 0", "Expected 1 or more takes"),
        ("demo --frames 0", "Expected 1 or more frames"),
        ("demo --size 2", "--size must be 8 or more"),
        ("demo --seed -1", "Expected a seed of 0 or more"),
        ("demo --out {file}", "Results cannot be written to"),
    ],
)
def test_mistake_is_one_line_with_code_2_and_leaves_nothing_behind(
    words: str,
    text: str,
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deepfake, "start_ray", lambda address: pytest.fail("Ray was started"))
    before = files(tmp_path), files(stand_in), sorted(tmp_path.rglob("*"))
    places = {
        "videos": stand_in, "nowhere": tmp_path / "no", "empty": tmp_path / "empty",
        "file": tmp_path / "file",
    }  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        deepfake.main([word.format(**places) for word in words.split()])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1
    assert (files(tmp_path), files(stand_in), sorted(tmp_path.rglob("*"))) == before


def test_preparation_that_is_under_way_is_left_alone(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(deepfake, "start_ray", lambda address: pytest.fail("Ray was started"))
    with hold(tmp_path), pytest.raises(SystemExit) as stop:
        deepfake.main(["prepare", str(stand_in), "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert f"Another process is at work in {tmp_path}." in err


def test_interrupt_while_the_stand_in_is_drawn_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(deepfake, "write_stand_in", interrupted)
    with pytest.raises(SystemExit) as stop:
        deepfake.main(["demo", "--out", str(tmp_path / "drawn")])
    assert stop.value.code == deepfake.UNFINISHED
    assert capsys.readouterr().err.startswith("\nstopped; the same command draws anew in ")


# From end to end, through Ray


@pytest.mark.slow
def test_demo_draws_prepares_and_reports_what_each_split_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments/deepfake.py", "demo"])
    words = f"demo --out {tmp_path / 'demo'} --actors 8 --takes 1 --frames 2 --size 32"
    faces = deepfake.main(words.split())
    out = capsys.readouterr().out
    assert len(faces.frames) >= 24  # 8 persons, real and fake, 2 frames, most of them found
    assert "LEAKS" in out
    assert "dfdc" not in out.lower()
    assert (tmp_path / "demo/faces/contact.png").is_file()
    for kind in ("video", "family", "actor", "part"):
        assert len(split_faces(faces, kind, seed=0, test_share=0.3).test)
    fake = np.flatnonzero(faces.labels == 1)
    share = (faces.masks(fake) > 0).mean((1, 2))
    assert share.min() > 0.05  # every fake crop shows a part of what was manipulated
    assert share.max() < 0.9


def start(log: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "experiments/deepfake.py", "prepare", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, env=environment, start_new_session=True
        )


def wait_for(done: Callable[[], Any], process: "subprocess.Popen[bytes]", seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert done()


@pytest.mark.slow
@pytest.mark.long
def test_killed_preparation_goes_on_and_leaves_finished_videos_untouched(
    stand_in: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "faces", tmp_path / "log"
    words = [str(stand_in), "--out", str(out), "--size", "32", "--frames", "2"]
    first = start(log, *words)
    wait_for(lambda: list(out.rglob("*.zip")), first, 240)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.zip")}
    second = start(log, *words)
    assert second.wait(240) == 0, log.read_text()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(load_face_set(out).videos) == 8
    assert "| videos prepared | 4 | 4 |" in log.read_text()
