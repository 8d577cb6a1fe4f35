"""Mistakes on the command line of experiments/atari.py end it before anything is started."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import atari
from rayssl.cli import provenance
from rayssl.presets import AtariRun

Refuse = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected the mistake to be found before Ray starts.")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    for owner, name in ((atari.ray, "init"), (atari, "train"), (atari, "ensure_auth_token")):
        monkeypatch.setattr(owner, name, started)
    monkeypatch.chdir(tmp_path)  # where the default results/local would be made

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*")), files()
        with pytest.raises(SystemExit) as stop:
            atari.main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert (sorted(tmp_path.rglob("*")), files()) == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--game", "pongg"], "Unknown Atari game 'pongg'. Did you mean pong or "),
        (["--aux-task", "rotate"], "Unknown task 'rotate'. Available: permutation, "),
        (["--preset", "fast"], "Unknown preset 'fast'. Available: breakout, paper-code, pong, "),
        (["--steps", "0"], "or more, got 0."),
        (["--steps-per-report", "0"], "or more, got 0."),
        (["--checkpoint-every", "0"], "--checkpoint-every must be 1 or more, got 0."),
        (["--lr", "-1"], "above 0, got -1.0."),
        (["--lr", "nan"], "above 0, got nan."),
        (["--gamma", "1.5"], "gamma must lie in [0, 1], got 1.5."),
        (["--num-workers", "-1"], "must be 0 or more, got -"),
        (["--num-gpus", "-1"], "must be 0 or more, got -"),
        (["--replay-capacity", "100"], "Raise it, or lower the others."),
        (["--resume", "."], "Pass the folder that the run printed, e.g. --resume results/local/"),
        (["--resume", "gone"], "gone is not the folder of a run"),
    ],
)
def test_wrong_value_is_one_line_that_says_what_to_do(
    words: list[str], text: str, refused: Refuse
) -> None:
    err = refused(*words)
    assert err.startswith("error: ")
    assert text in err
    assert (err.count("\n"), err[-1]) == (1, "\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--steps", "abc"], "--steps"),
        (["--schedule", "both"], "'alternate', 'joint', 'pretrain'"),
        (["--gamee", "pong"], "--game STR"),
    ],
)
def test_word_that_does_not_parse_is_one_message_that_says_what_is_expected(
    words: list[str], text: str, refused: Refuse
) -> None:
    err = refused(*words)
    assert text in " ".join(err.split())
    assert words[1] in err or words[0] in err
    assert "Traceback" not in err
    assert err.count("--help") == 1


def test_results_folder_below_a_file_is_one_line_and_the_file_stays(
    tmp_path: Path, refused: Refuse
) -> None:
    (tmp_path / "file").write_text("mine")
    err = refused("--results-dir", "file")
    assert err.startswith("error: Results cannot be written to file/pong-permutation-s0: ")
    assert err.endswith("Choose another --results-dir.\n")
    assert err.count("\n") == 1


def test_folder_that_holds_a_run_is_left_alone_without_resume(
    tmp_path: Path, refused: Refuse
) -> None:
    folder = tmp_path / "results" / "local" / "pong-rotation-s7"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    err = refused("--aux-task", "rotation", "--seed", "7")
    place = "results/local/pong-rotation-s7"
    assert err == (
        f"error: {place} holds a run already. Go on with --resume {place}, or choose --name.\n"
    )


def test_resume_of_a_run_keeps_its_settings_and_judges_the_words_beside_it(
    tmp_path: Path, refused: Refuse
) -> None:
    saved = AtariRun(replay_capacity=12_345)
    (tmp_path / "settings.json").write_text(json.dumps(provenance(saved)))
    err = refused("--resume", str(tmp_path), "--learning-starts", "20000")
    assert "replay_capacity_steps is 12345" in err
    assert "learning starts at 20000" in err
