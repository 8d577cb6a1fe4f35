"""experiments/paper.py: the arms of Table IV, a small run to its end, and mistakes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import paper
from rayssl.evaluation import load_agent
from rayssl.jobs.atari import JOB
from rayssl.presets import PRESETS, AtariRun
from rayssl.results import read_results
from rayssl.rllib.checkpoint import write_manifest
from rayssl.sweeps.folder import SweepFolder
from rayssl.sweeps.paper import arm_settings, paper_trials
from tests.toy_agents import save_agent


def settings(protocol: str, game: str, arm: str, steps: int | None = None) -> AtariRun:
    return arm_settings(
        protocol, game, arm, seed=1, steps=steps, evaluate_every=None, evaluation_games=100
    )


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_paper_code_runs_the_preset_of_the_authors_code_on_both_games(game: str) -> None:
    run = settings("paper-code", game, "permutation")
    preset = {name: setting.value for name, setting in PRESETS["paper-code"].items()}
    assert {name: getattr(run, name) for name in preset} == preset
    assert (run.game, run.aux_task, run.steps) == (game, "permutation-6", 1_000_000)


def test_strict_runs_the_games_own_preset_with_the_texts_four_classes() -> None:
    pong, breakout = (settings("strict", game, "permutation") for game in ("pong", "breakout"))
    assert (pong.preset, breakout.preset) == ("pong", "breakout")
    assert (pong.aux_task, breakout.aux_task) == ("permutation", "permutation")
    assert breakout.epsilon_steps == PRESETS["breakout"]["epsilon_steps"].value


@pytest.mark.parametrize("protocol", ["strict", "paper-code"])
def test_arms_differ_in_nothing_but_the_pretext_task(protocol: str) -> None:
    none, rotation = (settings(protocol, "pong", arm) for arm in ("none", "rotation"))
    names = AtariRun.__dataclass_fields__
    different = {n for n in names if getattr(none, n) != getattr(rotation, n)}
    assert different <= {"aux_task", "aux_weight", "optimizers"}
    assert none.aux_weight == 0
    assert rotation.aux_weight == 1


def test_training_is_evaluated_ten_times_and_at_its_end() -> None:
    run = settings("strict", "pong", "none", steps=200_000)
    assert run.evaluate_every == 20_000
    assert run.steps % run.evaluate_every == 0
    assert settings("strict", "pong", "none", steps=1_005).evaluate_every == 1_005


def test_workers_of_strict_alone_are_taken() -> None:
    paper.check(paper.PaperRun(protocols=("strict",), num_workers=4))


def test_help_says_when_a_training_is_evaluated_at_its_end_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        paper.main(["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "where ten do not divide its steps, all of it" in words


def test_all_arms_of_the_first_seed_come_before_the_second() -> None:
    trials = paper_trials(
        ["strict"], ["pong"], ["random", "none", "rotation"], 2, steps=1_000,
        evaluate_every=None, evaluation_games=10, num_workers=0, aux_weight=None,
    )  # fmt: skip
    names = [trial.name for trial in trials]
    assert names == [
        "strict-pong-none-s0", "strict-pong-rotation-s0",
        "strict-pong-none-s1", "strict-pong-rotation-s1",
    ]  # fmt: skip
    assert [trial.group for trial in trials] == [0, 1, 0, 1]


def random_evaluation(path: Path) -> None:
    """Writes what evaluate.py leaves of one game of -20 points."""
    summary = {"num": 1, "mean": -20.0, "ci_low": None, "ci_high": None, "iqm": -20.0}
    path.write_text(json.dumps({
        "settings": {"epsilon": 0.01}, "commit": "c", "model": None,
        "rows": [{"agent": "random", "game": "Pong", "summary": summary}],
    }))  # fmt: skip


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Returns the files of the random agent that paper.py asks evaluate.py for; none is played."""
    files: list[Path] = []

    def play(words: list[str]) -> None:
        files.append(Path(words[words.index("--json") + 1]))
        random_evaluation(files[-1])

    monkeypatch.setattr(paper.evaluate, "main", play)
    return files


RANDOM_ONLY = ("--arms", "random", "--games", "pong")


def test_random_alone_ends_with_table_iv_and_can_be_published(
    tmp_path: Path, played: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper.main([*RANDOM_ONLY, "--results-dir", str(tmp_path)]) == []
    assert "|  |" not in capsys.readouterr().out
    published = tmp_path / "published"
    paper.main(["--resume", str(tmp_path / "paper"), "--publish", str(published)])
    assert [file.name for file in played] == ["random-pong-evaluation.json"]
    for folder in (tmp_path / "paper", published):
        assert "Table IV" in (folder / "report" / "report.md").read_text()
        assert [e.mean for e in read_results([folder]).evaluations] == [-20]


@pytest.mark.parametrize("left", ["", '{"rows": [', "[]", "{}"])
def test_damaged_evaluation_of_random_is_played_again_and_a_whole_one_is_kept(
    tmp_path: Path, played: list[Path], left: str
) -> None:
    run = paper.PaperRun(games=("pong", "breakout"))
    (tmp_path / "random-breakout-evaluation.json").write_text(left)
    random_evaluation(tmp_path / "random-pong-evaluation.json")
    paper.play_random(run, tmp_path)
    paper.play_random(run, tmp_path)
    assert [file.name for file in played] == ["random-breakout-evaluation.json"]


def test_folder_stopped_while_random_played_can_be_published(
    tmp_path: Path, played: list[Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    checked: list[Path] = []
    monkeypatch.setattr(paper, "check_shared", checked.append)
    monkeypatch.setattr(paper, "play_random", killed)
    monkeypatch.setattr(paper.sweep, "place", lambda *_: (SimpleNamespace(at_once=1), ""))
    monkeypatch.setattr(paper.ray, "is_initialized", lambda: True)
    with pytest.raises(SystemExit, match="75"):
        paper.main(["--results-dir", str(tmp_path)])
    assert checked == [tmp_path / "paper"]  # that all nodes see it
    assert f"go on with --resume {tmp_path / 'paper'}" in capsys.readouterr().err
    paper.main(["--resume", str(tmp_path / "paper"), "--publish", str(tmp_path / "published")])
    assert [path.name for path in (tmp_path / "published").iterdir()] == ["settings.json"]


def test_publishing_never_replaces_another_sweep(
    tmp_path: Path, played: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = trained(tmp_path / "paper", {"strict-pong-none-s0": "finished"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "sweep.json").write_text("of another sweep")  # no settings.json, as sweep.py's
    with pytest.raises(SystemExit, match="2"):
        paper.main(["--resume", str(own), "--publish", str(other)])
    assert "holds another run" in capsys.readouterr().err
    assert (other / "sweep.json").read_text() == "of another sweep"


def test_agents_that_cannot_be_written_are_told_before_anything_is_copied(
    tmp_path: Path, played: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = trained(tmp_path / "paper", {"strict-pong-none-s0": "finished"})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "checkpoints").write_text("a file")
    published = tmp_path / "there" / "published"
    with pytest.raises(SystemExit, match="2"):
        paper.main(["--resume", str(own), "--publish", str(published)])
    assert "cannot be written" in capsys.readouterr().err
    assert not published.exists()


def test_agents_lie_beside_the_published_folder_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path, Path(), Path("../" + tmp_path.name)):
        agents = paper.agents_folder(name)
        assert agents.resolve() == tmp_path.parent / "checkpoints" / tmp_path.name
    assert not paper.agents_folder(Path()).is_absolute()


def trained(root: Path, statuses: dict[str, str], started: str = "") -> Path:
    """Returns a folder of trainings of 400 steps: an agent of 200, or of 400 where it finished."""
    trials = paper_trials(
        ["strict"], ["pong"], ["none", "rotation"], 2, steps=400, evaluate_every=None,
        evaluation_games=1, num_workers=0, aux_weight=None,
    )  # fmt: skip
    folder = SweepFolder(root, JOB)
    folder.add(trials, {})
    folder.write_sweep({"settings": {}}, {})
    for name, status in statuses.items():
        steps = 400 if status == "finished" else 200
        checkpoint = save_agent(root / name / "checkpoint_000001", None, "pong")
        model = json.loads((checkpoint / "model.json").read_text()) | {"env_steps": steps}
        (checkpoint / "model.json").write_text(json.dumps(model))
        write_manifest(checkpoint)
        if status == "finished":
            (root / name / "status.json").write_text(json.dumps({"status": status}))
    options = {"settings": {"seeds": 2, "name": root.name}, "starts": [{"started": started}]}
    (root / "settings.json").write_text(json.dumps(options))
    return root


def test_agents_of_two_published_runs_never_meet_and_unfinished_ones_tell_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated: list[str] = []
    monkeypatch.setattr(paper.evaluate, "main", lambda words: evaluated.append(words[0]))
    none_s0, none_s1 = "strict-pong-none-s0", "strict-pong-none-s1"
    first = trained(tmp_path / "a", {none_s0: "waiting", none_s1: "finished"}, "Monday")
    second = trained(tmp_path / "b", {none_s0: "waiting"}, "Tuesday")
    for folder in (first, second):
        paper.main(["--resume", str(folder), "--publish", str(tmp_path / f"of-{folder.name}")])
    out = capsys.readouterr().out
    agents = tmp_path / "checkpoints"
    assert [p.name for p in (agents / "of-a").iterdir()] == [none_s1]  # the seed that finished
    assert [p.name for p in (agents / "of-b").iterdir()] == [none_s0]
    assert load_agent(agents / "of-a" / none_s1).settings["env_steps"] == 400
    assert load_agent(agents / "of-b" / none_s0).settings["env_steps"] == 200
    assert evaluated == [str(agents / "of-a" / none_s1), str(agents / "of-b" / none_s0)]
    assert f"agent of 400 of 400 steps: {agents / 'of-a' / none_s1}\n" in out
    assert f"agent of 200 of 400 steps (waiting): {agents / 'of-b' / none_s0}\n" in out
    assert "not exported: strict-pong-rotation-s1, waiting: it has no whole checkpoint" in out
    with pytest.raises(SystemExit):
        paper.main(["--resume", str(second), "--publish", str(tmp_path / "of-a")])
    assert f"of-a holds another run than {second}" in capsys.readouterr().err


def test_seed_that_finished_since_takes_the_place_of_an_unfinished_ones_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper.evaluate, "main", lambda _: None)
    words = ["--resume", str(tmp_path / "a"), "--publish", str(tmp_path / "published")]
    trained(tmp_path / "a", {"strict-pong-none-s0": "waiting"})
    paper.main(words)
    trained(tmp_path / "a", {"strict-pong-none-s1": "finished"})
    paper.main(words)
    agents = tmp_path / "checkpoints" / "published"
    assert [path.name for path in agents.iterdir()] == ["strict-pong-none-s1"]


def test_lost_training_that_goes_on_is_not_published_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper.evaluate, "main", lambda _: None)
    words = ["--resume", str(tmp_path / "a"), "--publish", str(tmp_path / "published")]
    name = "strict-pong-none-s0"
    status = trained(tmp_path / "a", {name: "waiting"}) / name / "status.json"
    published = tmp_path / "published" / name / "status.json"
    status.write_text(json.dumps({"status": "lost", "error": "a node died"}))
    paper.main(words)
    assert published.read_text() == status.read_text()
    status.unlink()
    paper.main(words)
    assert not published.exists()


def test_dry_run_for_a_gpu_prints_its_estimate_and_source_on_a_machine_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object) -> None:
        raise ValueError("no node has 0.05 GPUs free.")

    monkeypatch.setattr(paper.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(paper, "check_shared", lambda folder: None)
    monkeypatch.setattr(paper.sweep, "place", no_room)
    words = ["--results-dir", str(tmp_path), "--gpus-per-trial", "0.05", "--protocols", "strict",
             "--steps", "200000", "--evaluation-games", "1"]  # fmt: skip
    rows = paper.main([*words, "--dry-run"])
    out = capsys.readouterr().out
    assert len(rows) == 18
    assert "cannot run here: no node has 0.05 GPUs free.\nestimated as if 18 ran at once" in out
    assert "about 7.3 minutes, give or take a factor of two:" in out  # of Pong: 380 s, 10 games
    assert "s for 1 env_steps, with it: results/paper-gpu-first, 18 trainings of strict" in out
    with pytest.raises(SystemExit):
        paper.main(words)
    assert "error: no node has 0.05 GPUs free." in capsys.readouterr().err


@pytest.mark.slow
def test_small_run_goes_to_its_end_and_can_be_published_and_read(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quick = {"network": "paper-text", "learning_starts": 64, "batch_size": 4, "compile": False,
             "replay_capacity": 2_000, "steps_per_report": 200, "frame_size": 42}  # fmt: skip
    original = paper.paper_trials
    monkeypatch.setattr(
        paper, "paper_trials",
        lambda *args, **kwargs: [
            trial._replace(settings=AtariRun(**(trial.settings.__dict__ | quick)))
            for trial in original(*args, **kwargs)
        ],
    )  # fmt: skip
    words = ["--protocols", "strict", "--games", "pong", "--arms", "random", "none",
             "--seeds", "1", "--steps", "400", "--evaluate-every", "200",
             "--evaluation-games", "1", "--results-dir", str(tmp_path)]  # fmt: skip
    rows = paper.main(words)
    assert [(row["trial"], row["status"]) for row in rows] == [("strict-pong-none-s0", "finished")]
    folder = tmp_path / "paper"
    run = read_results([folder]).runs[0]
    assert len(run.curve("evaluation_score_mean")) == 2
    paper.main(["--resume", str(folder), "--publish", str(tmp_path / "published")])
    published = read_results([tmp_path / "published"])
    assert [each.source for each in published.runs] == [
        str(tmp_path / "published" / rows[0]["trial"])
    ]
    assert {e.agent for e in published.evaluations} == {"random"}
    agent = load_agent(tmp_path / "checkpoints" / "published" / "strict-pong-none-s0")
    assert agent.settings["env_steps"] >= 400
    scores = json.loads(
        (tmp_path / "checkpoints/published/strict-pong-none-s0-evaluation.json").read_text()
    )
    assert scores["checkpoint"].endswith("strict-pong-none-s0")
    assert "Table IV" in (tmp_path / "published" / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--games", "seaquest"], "pong, breakout: the paper's"),
        (["--games", "pong", "pong"], "different names"),
        (["--seeds", "0"], "--seeds must be 1 or more"),
        (["--steps", "1000", "--evaluate-every", "300"], "no multiple of --evaluate-every 300"),
        (["--publish", "there"], "name its folder with --resume"),
        (["--resume", "nowhere"], "no settings.json"),
        (["--num-workers", "1"], "protocol paper-code is one environment that takes turns with it"),
        (["--name", "a/b"], "--name must be a plain folder name"),
        (["--evaluate-every", "0"], "--evaluate-every must be 1 or more"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        paper.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--seeds", "5"], "was started with seeds 3, got 5"),
        (["--results-dir", "there"], "was started with results_dir here, got there"),
    ],
)
def test_resumed_folder_keeps_its_settings(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {"settings": {"seeds": 3, "name": tmp_path.name, "results_dir": "here"}}
    (tmp_path / "settings.json").write_text(json.dumps(saved))
    with pytest.raises(SystemExit):
        paper.main(["--resume", str(tmp_path), *words])
    assert text in capsys.readouterr().err
