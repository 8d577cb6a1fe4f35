"""A command line becomes settings, and a mistake on it one clear line and exit code 2."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayssl import cli
from rayssl.cli import (
    check_writable,
    git_commit,
    gpu_name,
    parse_atari_run,
    provenance,
    refuse,
    remove_empty,
)
from rayssl.presets import AtariRun


def saved_run(folder: Path, run: AtariRun) -> Path:
    """Writes what a run leaves in its folder when it starts."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(provenance(run)))
    return folder


def test_empty_command_line_gives_the_defaults() -> None:
    assert parse_atari_run([]) == AtariRun()


def test_words_on_the_line_override_the_presets_values_wherever_they_stand() -> None:
    before = parse_atari_run(["--steps", "99", "--preset", "quick"])
    after = parse_atari_run(["--preset", "quick", "--steps", "99"])
    assert before == after
    assert (after.preset, after.steps) == ("quick", 99)
    assert after.learning_starts == 2_000  # the preset's, where AtariRun's own is 3_000
    assert after.lr == AtariRun().lr  # not named by the preset


def test_word_that_repeats_a_default_overrides_the_preset_too() -> None:
    line = ["--preset", "paper-code", "--n-step", str(AtariRun().n_step), "--no-prioritized"]
    run = parse_atari_run(line)
    assert (run.n_step, run.prioritized, run.lr) == (AtariRun().n_step, False, 1e-4)


def test_preset_is_found_in_both_spellings() -> None:
    assert parse_atari_run(["--preset=quick"]) == parse_atari_run(["--preset", "quick"])
    assert parse_atari_run(["--preset=quick"]).steps == 20_000


def test_last_of_two_presets_counts_for_name_and_values() -> None:
    run = parse_atari_run(["--preset", "quick", "--preset=breakout"])
    assert (run.preset, run.game, run.steps) == ("breakout", "breakout", 1_000_000)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^Unknown preset 'fast'\. Available: .*pong, quick\.$"):
        parse_atari_run(["--preset", "fast"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--steps", "abc"], "'abc'"),
        (["--schedule", "both"], "alternate"),
        (["--stepps", "10"], "--stepps"),
        (["--preset"], "--preset"),
    ],
)
def test_wrong_word_gives_one_message_and_exit_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_atari_run(words)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err
    assert err.count("--help") == 1  # one message, which ends by naming where to read more


def test_help_shows_the_presets_values_as_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_atari_run(["--preset", "quick", "--help"])
    assert stop.value.code in (0, None)
    assert "(default: 20000)" in " ".join(capsys.readouterr().out.split())


def test_resume_takes_saved_settings_and_keeps_overrides(tmp_path: Path) -> None:
    saved = AtariRun(game="breakout", lr=5e-4, steps=123, results_dir=Path("elsewhere"))
    folder = saved_run(tmp_path / "run", saved)
    for words in (["--resume", str(folder)], [f"--resume={folder}"]):
        assert parse_atari_run(words) == replace(saved, resume=folder)
    run = parse_atari_run(["--steps", "456", "--resume", str(folder)])
    assert run == replace(saved, steps=456, resume=folder)


def test_run_from_before_a_setting_resumes_with_what_was_done_then(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run", AtariRun(preset="paper-code", network="paper-code"))
    saved = json.loads((folder / "settings.json").read_text())
    del saved["settings"]["aux_samples"]  # unlabelled samples were left out, in every preset
    (folder / "settings.json").write_text(json.dumps(saved))
    assert parse_atari_run(["--resume", str(folder)]).aux_samples == "usable"


def test_line_of_a_start_can_be_repeated_with_resume(tmp_path: Path) -> None:
    line = ["--preset", "quick", "--lr", "5e-4"]
    started = parse_atari_run(line)
    folder = saved_run(tmp_path / "run", started)
    assert parse_atari_run([*line, "--resume", str(folder)]) == replace(started, resume=folder)


def test_resume_with_another_preset_is_refused(tmp_path: Path) -> None:
    # The values would stay the saved ones, under the name of a preset that they are not.
    folder = saved_run(tmp_path / "run", AtariRun(preset="quick"))
    with pytest.raises(ValueError, match=r"started with --preset quick, got --preset pong\. Leave"):
        parse_atari_run(["--preset", "pong", "--resume", str(folder)])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--game", "breakout"], "--game pong, got --game breakout. Leave it out: "),
        (["--aux-task", "none"], "--aux-task permutation, got --aux-task none. Leave"),
        (["--network", "paper-code"], "--network nature, got --network paper-code. Leave"),
        (["--frame-size", "42"], "--frame-size 84, got --frame-size 42. Leave"),
        (["--optimizers", "separate"], "--optimizers shared, got --optimizers separate. Leave"),
        (["--envs-per-worker", "4"], "--envs-per-worker 8, got --envs-per-worker 4. Leave"),
    ],
)
def test_resume_with_what_the_checkpoints_do_not_fit_is_refused(
    words: list[str], text: str, tmp_path: Path
) -> None:
    folder = saved_run(tmp_path / "run", AtariRun())
    with pytest.raises(ValueError) as error:
        parse_atari_run(["--resume", str(folder), *words])
    assert f"{folder} was started with {text}" in str(error.value)
    assert str(error.value).endswith("start a new run with --name.")


def test_run_with_td_updates_does_not_go_on_as_aux_only(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run", AtariRun(schedule="joint"))
    words = ["--schedule", "aux-only", "--resume", str(folder)]  # as pretrain.py atari has it
    with pytest.raises(ValueError, match="was started with --schedule joint; as aux-only it would"):
        parse_atari_run(words)
    only = saved_run(tmp_path / "only", AtariRun(schedule="aux-only"))
    assert parse_atari_run([*words[:3], str(only)]).schedule == "aux-only"


def test_resume_takes_another_spelling_of_the_game_and_other_workers(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run", AtariRun())
    words = ["--game", "ALE/Pong-v5", "--num-workers", "2", "--envs-per-worker", "4"]
    run = parse_atari_run(["--resume", str(folder), *words])
    assert (run.game, run.num_workers, run.envs_per_worker) == ("ALE/Pong-v5", 2, 4)


def test_folders_that_a_run_names_are_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = parse_atari_run(["--init-from", "pretrained", "--policy", "elsewhere/../player"])
    assert (run.init_from, run.policy) == (tmp_path / "pretrained", tmp_path / "player")
    folder = saved_run(tmp_path / "run", run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert parse_atari_run(["--resume", str(folder)]) == replace(run, resume=folder)


def test_resume_of_a_run_with_other_fields_takes_those_that_are_known(tmp_path: Path) -> None:
    settings = {"steps": 7, "a_field_of_yesterday": 1}  # results_dir and resume are missing
    (tmp_path / "settings.json").write_text(json.dumps({"settings": settings}))
    run = parse_atari_run(["--resume", str(tmp_path)])
    assert run == AtariRun(steps=7, resume=tmp_path)


def test_resume_of_a_folder_without_settings_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not the folder of a run: it holds no settings"):
        parse_atari_run(["--resume", str(tmp_path)])


@pytest.mark.parametrize("text", ["", '{"settings": {"ste', "{}", "[1]", '{"settings": 3}'])
def test_resume_of_damaged_settings_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json is damaged .* Start a new run"):
        parse_atari_run(["--resume", str(tmp_path)])


def test_provenance_makes_a_result_traceable_and_goes_through_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    import torch

    words = ["experiments/atari.py", "--name", "two words"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(cli, "git_commit", lambda: "0123456789ab-dirty")
    found = provenance(AtariRun(name="two words"))
    assert (found["cpu"], found["gpu"]) == (cli.cpu_name(), gpu_name())
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found
    assert shlex.split(found["command"]) == ["python", *words]
    assert found["commit"] == "0123456789ab-dirty"
    assert found["settings"]["name"] == "two words"
    assert found["settings"]["results_dir"] == "results/local"
    assert set(found["settings"]) == set(AtariRun.__dataclass_fields__)
    versions = found["versions"]
    assert versions["ray"] == ray.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["started"].endswith("+00:00")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (subprocess.CompletedProcess([], 0, "0123456789ab-dirty\n"), "0123456789ab-dirty"),
        (subprocess.CompletedProcess([], 128, "", "fatal: not a git repository"), None),
        (subprocess.CompletedProcess([], 0, ""), None),
        (FileNotFoundError("git"), None),
        (subprocess.TimeoutExpired("git", 10), None),
    ],
)
def test_commit_is_none_wherever_git_has_no_answer(
    answer: subprocess.CompletedProcess | Exception,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*args: object, **kwargs: object) -> subprocess.CompletedProcess:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert git_commit() == expected


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    assert check_writable(inner) == [inner, inner.parent]
    assert check_writable(inner) == []  # both were there
    assert list(inner.iterdir()) == []


def test_folders_of_a_run_that_did_not_start_go_unless_they_hold_files(tmp_path: Path) -> None:
    made = check_writable(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "theirs").write_text("")
    remove_empty(made)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "theirs"]


def test_folder_below_a_file_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("mine")
    for folder in (file, file / "run"):
        with pytest.raises(OSError, match=r"^Results cannot be written to .*another folder\.$"):
            check_writable(folder)
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_full_disk_is_refused_and_the_probe_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cli.tempfile.NamedTemporaryFile

    def full(**kwargs: Any) -> Any:
        probe = real(**kwargs)
        monkeypatch.setattr(
            probe, "write", lambda _: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        return probe

    monkeypatch.setattr(cli.tempfile, "NamedTemporaryFile", full)
    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(OSError, match="No space"):
            check_writable(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps must be 1 or more, got 0."), "error: steps must be 1 or more, got 0.\n"),
        ("Pass --steps.", "error: Pass --steps.\n"),
        (ConnectionError("no Ray\n  at 1.2.3.4:6379\n"), "error: no Ray at 1.2.3.4:6379\n"),
        (MemoryError(), "error: MemoryError\n"),
    ],
)
def test_refusal_is_one_line_on_stderr_and_exit_code_2(
    error: Exception | str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        refuse(error)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", line)


def test_disk_without_room_for_a_checkpoint_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=12_000_000))
    with pytest.raises(OSError, match="12 MB free, at least 100 MB are needed. Choose another"):
        check_writable(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
