"""Mistakes on the command line of experiments/atari.py end it before anything is started."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import atari
from rayssl.cli import provenance
from rayssl.files import hold
from rayssl.jobs.atari import JOB
from rayssl.presets import AtariRun
from rayssl.rllib.checkpoint import MODEL_SETTINGS, write_manifest
from rayssl.rllib.start import ray_address
from tests.toy_agents import save_agent

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

    for owner, name in ((atari.ray, "init"), (atari, "train"), (atari, "start_ray")):
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
        (["--aux-task", "rotate"], "Unknown task 'rotate'. Available: atc, curl, "),
        (["--aux-task", "curl+invers"], "Unknown task 'invers'. Available: atc, curl, "),
        (["--aux-task", "curl+spr+curl"], "each task once in 'curl+spr+curl', got 'curl' again."),
        (["--aux-task", "curl+spr", "--aux-weight", "1,2,3"], "or 2 (one for each task), got 3: 1"),
        (["--aux-weight", "0.5,0.1"], "or 1 (one for each task), got 2: 0.5,0.1."),
        (["--aux-weight", "1,x"], "or one for each task, got '1,x'. Write e.g. 1 or 0.5,0.1."),
        (["--aux-weight", "-1"], "aux_weight must be a number of 0 or more, got -1.0."),
        (["--preset", "fast"], "Unknown preset 'fast'. Available: atari-100k, breakout, "),
        (["--steps", "0"], "or more, got 0."),
        (["--steps-per-report", "0"], "or more, got 0."),
        (["--checkpoint-every", "0"], "--checkpoint-every must be 1 or more, got 0."),
        (["--lr", "-1"], "above 0, got -1.0."),
        (["--lr", "nan"], "above 0, got nan."),
        (["--gamma", "1.5"], "gamma must lie in [0, 1], got 1.5."),
        (["--num-workers", "-1"], "must be 0 or more, got -"),
        (["--num-gpus", "-1"], "must be 0 or more, got -"),
        (["--envs-per-worker", "0"], "--envs-per-worker must be 1 or more, got 0."),
        (["--seed", "4294967296"], "seed must be a whole number in [0, 2**31), got 4294967296."),
        (["--frame-size", "2000"], "frame_size must be 210 or less"),
        (["--aux-task", ""], "Unknown task ''. Available: atc, "),
        (["--name", ".."], "--name must be a plain folder name, got '..'. See --results-dir."),
        (["--game", "combat"], "Unknown Atari game 'combat'."),  # for two players
        (["--replay-capacity", "100"], "Raise it, or lower the others."),
        (["--replay-device", "learner"], "in a GPU's memory: pass --num-gpus 1, or leave it out."),
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
        (["--aux-combine", "mean"], "'cycle', 'sum'"),
        (["--aux-samples", "some"], "'usable', 'all'"),
        (["--augment", "crop"], "'none', 'shift'"),
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


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--init-from", "gone"], "No checkpoint folder at "),
        (["--init-from", "."], "No checkpoint in or below "),
        (
            ["--init-from", "text"],
            "has network paper-text, this run nature. Use a checkpoint of th",
        ),
        (
            ["--init-from", "small"],
            "has frame_size 42, this run 84. Use a checkpoint of that frame",
        ),
        (["--init-from", "damaged"], "holds more than tensors, or is damaged."),
        (["--policy", "small"], "A policy plays for schedule 'aux-only' alone, got 'alternate'"),
    ],
    ids=" ".join,
)
def test_trunk_that_cannot_be_taken_is_one_line_before_anything_starts(
    words: list[str], text: str, tmp_path: Path, refused: Refuse
) -> None:
    save_agent(tmp_path / "agents" / "text", network="paper-text", size=84)
    save_agent(tmp_path / "agents" / "small", game="pong")
    (save_agent(tmp_path / "agents" / "damaged", size=84) / "model.pt").write_bytes(b"no weights")
    (tmp_path / "empty").mkdir()
    place = {"text": "agents/text", "small": "agents/small", "damaged": "agents/damaged",
             ".": "empty"}  # fmt: skip
    err = refused(*(place.get(word, word) for word in words))
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1


def test_trunk_that_is_taken_is_printed_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save_agent(tmp_path / "saved", size=84)
    run = AtariRun(init_from=saved)
    atari.check_run(run)
    found = atari.trunk_taken(run)["taken"]
    assert found["checkpoint"] == str(saved)
    assert found["parameters"][0] == "backbone.convs.0.weight"
    assert all(name.startswith("backbone.") for name in found["parameters"])
    assert "backbone.fc.0.bias; heads start anew" in capsys.readouterr().out
    # A run that goes on needs the folder no more, and keeps the record.
    (tmp_path / "settings.json").write_text(json.dumps({"taken": found}))
    resumed = AtariRun(init_from=tmp_path / "gone", resume=tmp_path)
    atari.check_run(resumed)
    assert atari.trunk_taken(resumed) == {"taken": found}
    assert atari.trunk_taken(AtariRun()) == {}


def test_results_folder_below_a_file_is_one_line_and_the_file_stays(
    tmp_path: Path, refused: Refuse
) -> None:
    (tmp_path / "file").write_text("mine")
    err = refused("--results-dir", "file")
    assert err.startswith("error: Results cannot be written to file/pong-permutation-s0: ")
    assert err.endswith("Choose another folder.\n")
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


def test_run_that_is_under_way_is_not_resumed_beside_itself(
    tmp_path: Path, refused: Refuse
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(provenance(AtariRun())))
    with hold(tmp_path):
        err = refused("--resume", str(tmp_path))
    assert err.startswith(f"error: Another process is at work in {tmp_path}.")


def test_resume_of_a_run_keeps_its_settings_and_judges_the_words_beside_it(
    tmp_path: Path, refused: Refuse
) -> None:
    saved = AtariRun(replay_capacity=12_345)
    (tmp_path / "settings.json").write_text(json.dumps(provenance(saved)))
    err = refused("--resume", str(tmp_path), "--learning-starts", "20000")
    assert "replay_capacity_steps is 12345" in err
    assert "learning starts at 20000" in err


def test_resume_from_damaged_checkpoints_alone_is_refused_and_keeps_the_logs(
    tmp_path: Path, refused: Refuse
) -> None:
    checkpoint = tmp_path / "run" / "from-0" / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text(json.dumps(provenance(AtariRun())))
    (tmp_path / "run" / "progress.csv").write_text("hours of rows")
    (checkpoint / MODEL_SETTINGS).write_text('{"env_steps": 99}')
    (checkpoint / "model.pt").write_bytes(b"whole")
    write_manifest(checkpoint)
    (checkpoint / "model.pt").write_bytes(b"cut")
    err = refused("--resume", "run")
    assert "checkpoint_000000 cannot be used: model.pt has 3 bytes, expected 5." in err
    assert err.endswith("has no other checkpoint to go on from: start a new run with --name.\n")


def test_run_without_a_checkpoint_yet_still_needs_the_trunk_that_it_starts_from(
    tmp_path: Path, refused: Refuse
) -> None:
    (tmp_path / "run").mkdir()
    saved = provenance(AtariRun(init_from=tmp_path / "gone"))
    (tmp_path / "run" / "settings.json").write_text(json.dumps(saved))
    err = refused("--resume", "run")
    assert err.startswith(f"error: No checkpoint folder at {tmp_path}/gone. Pass a folder")


def test_cluster_that_does_not_answer_is_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rayssl.rllib.start.ensure_auth_token", lambda: None)
    monkeypatch.setattr(atari.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SystemExit) as stop:
        atari.main([])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("error: Expected a Ray cluster at '127.0.0.1:1', got: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_replay_that_this_computer_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = AtariRun(replay_capacity=10**12)
    monkeypatch.setattr(atari, "free_resources", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(atari, "total_cpus", lambda: 2.0)
    with pytest.raises(MemoryError, match="Lower --replay-capacity to"):
        atari.place(atari.build_config(run), run, local=True)
    atari.place(atari.build_config(run), run, local=False)  # another computer's memory


def test_run_that_is_shorter_than_a_report_ends_with_its_steps() -> None:
    assert atari.build_config(AtariRun(steps=500)).steps_per_iteration == 500
    assert atari.build_config(AtariRun()).steps_per_iteration == AtariRun().steps_per_report


def test_beta_of_prioritized_replay_goes_to_1_over_the_run_or_as_many_steps_as_asked() -> None:
    run = AtariRun(steps=500, prioritized=True)
    betas = [
        [atari.build_config(each).beta_at(steps) for steps in (0, 250, 500)]
        for each in (run, replace(run, priority_beta_steps=1_000))
    ]
    assert betas == [pytest.approx([0.4, 0.7, 1.0]), pytest.approx([0.4, 0.55, 0.7])]


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (AtariRun(prioritized=True, priority_beta_steps=0), "--priority-beta-steps must be 1 or"),
        (AtariRun(priority_beta_steps=1_000), "this run's replay is uniform. Pass --prioritized"),
    ],
)
def test_beta_steps_that_no_replay_can_have_are_refused(run: AtariRun, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        atari.check_run(run)


@pytest.mark.parametrize(("every", "steps"), [(0, 2_000), (500, 500), (3_000, 2_000)])
def test_evaluations_between_two_reports_have_reports_of_their_own(every: int, steps: int) -> None:
    run = AtariRun(evaluate_every=every, steps=6_000, checkpoint_every=4_000)
    assert atari.build_config(run).steps_per_iteration == steps
    assert JOB.checkpoint_every(run) == 4_000 / steps


def test_address_on_the_line_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert ray_address(None) == "head:6379"
    assert ray_address("local") == "local"
    monkeypatch.delenv("RAY_ADDRESS")
    assert ray_address(None) == "local"
