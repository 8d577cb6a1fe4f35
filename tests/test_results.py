"""Result folders are read again as their writers wrote them: runs, experiments, sweeps, games."""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import report
from rayssl.claims import CLAIMS
from rayssl.comparison import judge, make_contrasts, make_studies, paper_code_score, seed_list
from rayssl.figures import Line, Panel, arm_colours, draw_panels
from rayssl.jobs import find_job
from rayssl.page import Picture, Table
from rayssl.results import ArmKey, Evaluation, Results, arm_key, read_results, short_paths
from rayssl.rllib.run_log import RunLog
from rayssl.rllib.start import record_start
from rayssl.sections import make_page, shown_arms, weight_curves
from rayssl.sweeps.axes import Trial
from rayssl.sweeps.folder import FAILED, FINISHED, STOPPED, SweepFolder
from rayssl.tables import (
    arm_rows,
    claim_findings,
    claim_rows,
    classification_arms,
    contrast_rows,
    game_rows,
    make_suites,
    table_3,
    table_4,
)

START = {"command": "python ...", "commit": "abc", "started": "2026-01-01T00:00:00+00:00"}


def write_game(
    folder: Path, scores: Mapping[int, float | None],
    evaluations: Mapping[int, float] | None = None, lives: Mapping[int, float] | None = None,
    **settings: Any,
) -> Path:  # fmt: skip
    """Writes a run of experiments/atari.py with its own writers.

    Args:
      scores, evaluations: steps -> score.
      lives: steps -> mean of the last 100 lives, from the first row on that has as many.
    """
    log, best = RunLog(folder), -math.inf
    for steps, score in scores.items():
        row: dict[str, Any] = {"env_steps": steps, "score_mean_100": score}
        if evaluations and steps in evaluations:
            row["evaluation_score_mean"] = evaluations[steps]
        if lives and steps in lives:
            best = max(best, lives[steps])
            row |= {"paper_code_score_mean_100": lives[steps], "paper_code_score_best": best}
        log.on_trial_result(1, [], None, row)
    log.on_experiment_end([])
    own = {"game": "pong", "aux_task": "none", "aux_weight": 1.0, "seed": 0, "steps": max(scores)}
    if settings.get("preset") == "paper-code":
        own["envs_per_worker"] = 1
    record_start(folder, START | {"settings": own | settings})
    return folder


def epoch_row(task: str, weight: float, accuracy: float, **values: Any) -> dict[str, Any]:
    """Metrics of an epoch, whose mistakes are all the next class."""
    right = round(1000 * accuracy)
    counts = np.diag([right] * 10) + np.roll(np.diag([1000 - right] * 10), 1, axis=1)
    return {
        "epoch": 1, "selected_epoch": 1, "loss": 0.5, "test_accuracy": accuracy,
        "test_confusion": counts.tolist(), "aux_task": task, "aux_weight": weight,
    } | values  # fmt: skip


def write_classifiers(folder: Path, task: str, accuracies: Mapping[int, float], epochs: int,
                      ran: int | None = None) -> Path:  # fmt: skip
    """Writes experiments of mnist.py, one a seed: seed -> test accuracy of every epoch that ran."""
    job = find_job("mnist")
    for seed, accuracy in accuracies.items():
        own = folder / f"{task}-{epochs}-{seed}"
        own.mkdir(parents=True)
        settings = dataclasses.replace(job.settings(), aux_task=task, seed=seed, epochs=epochs)
        for epoch in range(1, (ran or epochs) + 1):
            row = epoch_row(task, 1.0, accuracy, epoch=epoch, selected_epoch=epoch)
            job.open_log(own, "a", 0)(row, settings)
        record_start(own, START | {"settings": json.loads(
            json.dumps(dataclasses.asdict(settings), default=str))})  # fmt: skip
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of MNIST's aux weight: 3 seeds of 0, 0.1 and 1; one trial failed, one never began."""
    job = find_job("mnist")
    folder = SweepFolder(tmp_path / "sweep", job)
    folder.path.mkdir()
    axes: Any = {"aux_weight": (0.0, 0.1, 1.0), "epochs": (1,)}
    trials = []
    for seed in range(3):
        for group, weight in enumerate(axes["aux_weight"]):
            settings = dataclasses.replace(
                job.settings(), aux_task="rotation" if weight else "none", aux_weight=weight,
                seed=seed, epochs=1,
            )  # fmt: skip
            trials.append(Trial(f"w{weight:g}-s{seed}", settings, group))
    folder.add(trials, axes)
    folder.write_sweep(START | {"settings": {}, "starts": [START]}, axes)
    for trial in trials:
        if trial.name == "w1-s2":
            continue
        own = folder.of(trial.name)
        own.mkdir()
        record_start(own, START | {"settings": json.loads(
            json.dumps(dataclasses.asdict(trial.settings), default=str))})  # fmt: skip
        folder.start(trial.name)
        if trial.name == "w0.1-s2":
            folder.end(trial.name, FAILED, "Traceback\nValueError: loss is nan")
            continue
        accuracy = 0.99 - 0.01 * trial.settings.aux_weight - 0.001 * trial.settings.seed
        row = epoch_row(trial.settings.aux_task, trial.settings.aux_weight, accuracy)
        job.open_log(own, trial.name, 0)(row, trial.settings)
        folder.end(trial.name, FINISHED)
    return folder.path


def test_sweep_is_read_with_its_missing_and_failed_trials(sweep: Path) -> None:
    found = read_results([sweep])
    assert found.left_out == []
    assert [(note.source, note.why) for note in found.notes] == [
        (str(sweep / "w0.1-s2"), "failed: ValueError: loss is nan")
    ]
    (study,) = make_studies(found)
    assert study.name == "mnist, protocol paper", "one epoch, given alone, is not varied"
    assert [(arm.key.name, sorted(arm.scores), arm.missing) for arm in study.arms] == [
        ("none", [0, 1, 2], ()),
        ("rotation, weight 0.1", [0, 1], (2,)),
        ("rotation, weight 1", [0, 1], (2,)),
    ]
    assert study.arms[2].scores == pytest.approx({0: 98.0, 1: 97.9})


def test_weights_are_compared_with_weight_0_seed_by_seed(sweep: Path) -> None:
    (study,) = make_studies(read_results([sweep]))
    (curve,) = weight_curves(study)
    assert (curve.name, list(curve.weights)) == ("rotation", [0, 0.1, 1])
    assert curve.gains[0] is None
    gains = [gain for gain in curve.gains if gain is not None]
    assert [gain.value for gain in gains] == pytest.approx([-0.1, -1.0])
    # Means over all seeds differ by -0.05 and -0.95: weight 0 has a third, lower one.


def test_population_whose_weights_changed_tells_nothing_of_a_weight(sweep: Path) -> None:
    told = json.loads((sweep / "sweep.json").read_text())
    told["settings"]["scheduler"] = "pbt"
    (sweep / "sweep.json").write_text(json.dumps(told))
    (study,) = studies = make_studies(read_results([sweep]))
    assert study.name == "mnist, protocol paper, scheduler pbt"
    assert [len(arm.scores) for arm in study.arms] == [3, 2, 2]
    assert weight_curves(study) == []
    assert classification_arms(studies) == {}
    assert all(found.study is None for claim in CLAIMS for found in judge(claim, studies))


def test_page_of_a_sweep_shows_score_against_weight(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayssl.page.save", lambda figure, stem: "<svg></svg>")
    report.main([str(sweep), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "](weights.png)" in text
    assert "failed: ValueError: loss is nan" in text
    assert "Left out" in text


def test_sweep_of_a_job_without_a_reader_is_read_from_its_table(sweep: Path) -> None:
    saved = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(saved | {"job": "bigan"}))
    (study,) = make_studies(read_results([sweep]))
    assert (study.job, study.budget, study.unit) == ("bigan", 1, "epochs")
    assert study.arms[0].scores == pytest.approx({0: 0.99, 1: 0.989, 2: 0.988})
    assert {row["aux accuracy"] for row in arm_rows(study)} == {None}  # no log to read it from


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_trial_whose_table_reports_no_number_hides_no_other(sweep: Path, value: str) -> None:
    saved = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(saved | {"job": "bigan"}))
    table = (sweep / "trials.csv").read_text()
    (sweep / "trials.csv").write_text(table.replace("0.979", value))
    found = read_results([sweep])
    why = f"expected a finite value as reported, got {value}"
    assert found.left_out == [(str(sweep / "w1-s1"), why)]
    assert make_studies(found)[0].arms[2].scores == pytest.approx({0: 0.98})


def test_sweep_of_another_layout_is_left_out(sweep: Path) -> None:
    saved = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(saved | {"version": 2}))
    found = read_results([sweep])
    assert found.is_empty
    assert [line.why for line in found.left_out] == ["sweep.json has layout 2, this reads 1"]


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_runs_of_a_sweep_whose_own_file_is_gone_or_damaged_are_read_from_their_folders(
    sweep: Path, damage: str
) -> None:
    scores = {run.reported for run in read_results([sweep]).runs}
    if damage == "missing":
        (sweep / "sweep.json").unlink()
        record_start(sweep, START | {"settings": {"seeds": 3}})  # as paper.py has one
    else:
        (sweep / "sweep.json").write_text('{"version": 1, "job"')
    found = read_results([sweep])
    assert {run.reported for run in found.runs} == scores
    assert len(found.runs) == 7
    damaged = [each.why for each in found.left_out if "sweep.json is damaged" in each.why]
    assert len(damaged) == (damage != "missing")


@pytest.mark.parametrize("text", ["", "trial\n\xff\xfe", None])
def test_runs_of_a_sweep_are_read_without_its_table(sweep: Path, text: str | None) -> None:
    (sweep / "trials.csv").unlink()
    if text is not None:
        (sweep / "trials.csv").write_text(text, encoding="latin-1")
    found = read_results([sweep])
    assert len(found.runs) == 7
    assert any("no statuses" in note.why for note in found.notes) == (text is not None)


def test_folder_that_may_not_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_game(tmp_path / "good", {1_000: 1.0})
    (tmp_path / "locked").mkdir()
    iterdir = Path.iterdir

    def as_for_another_user(folder: Path) -> Any:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", as_for_another_user)  # root may read all
    found = read_results([tmp_path])
    assert len(found.runs) == 1
    assert [each.why for each in found.left_out] == ["it cannot be read: Permission denied"]


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "0.5,-0.1"])
def test_run_of_a_weight_that_no_training_can_have_is_left_out(
    weight: float | str, tmp_path: Path
) -> None:
    for seed in (0, 1):
        write_game(tmp_path / str(seed), {1_000: 1.0}, aux_task="rotation", aux_weight=weight,
                   seed=seed)  # fmt: skip
    found = read_results([tmp_path])
    why = f"expected an aux_weight of 0 or more, got {weight!r}"
    assert [each.why for each in found.left_out] == [why, why]


def test_log_with_infinite_counters_is_left_out(tmp_path: Path) -> None:
    log = write_game(tmp_path / "run", {1_000: 1.0, 2_000: 2.0}) / "progress.csv"
    log.write_text(log.read_text().replace("2000", "inf"))
    (left,) = read_results([tmp_path]).left_out
    assert "column env_steps holds infinity" in left.why


@pytest.mark.parametrize(("frames", "counts"), [(400, False), (108_000, True)])
def test_games_that_were_cut_short_are_no_evaluation(
    frames: int, counts: bool, tmp_path: Path
) -> None:
    summary = {"num": 2, "mean": -2.0, "ci_low": None, "ci_high": None, "iqm": -2.0}
    (tmp_path / "evaluation.json").write_text(json.dumps({
        "settings": {"epsilon": 0.01}, "commit": "c", "model": None,
        "games": {"max_game_frames": frames},
        "rows": [{"agent": "random", "game": "Pong", "summary": summary, "cut_games": 2}],
    }))  # fmt: skip
    found = read_results([tmp_path])
    assert len(found.evaluations) == counts
    assert [each.why[:43] for each in found.left_out] == (
        [] if counts else ["2 of 2 games were cut at 400 frames: a scor"]
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"summary": {"mean": math.inf}}, "expected a finite mean, got inf"),
        ({"summary": {"mean": math.nan}}, "expected a finite mean, got nan"),
        ({"summary": {"iqm": "-2"}}, "expected a finite iqm, got '-2'"),
        ({"summary": {"ci_low": "x"}}, "expected a finite ci_low, got 'x'"),
        ({"lives": {"clipped_mean": -math.inf}}, "expected a finite clipped_mean, got -inf"),
        ({"model": {"env_steps": "1000"}}, "expected a whole number as env_steps, got '1000'"),
        ({"model": {"seed": [0]}}, "expected a whole number as seed, got [0]"),
        ({"model": {"network": ["nature"]}}, "expected a name as network, got ['nature']"),
    ],
)  # fmt: skip
def test_evaluation_with_odd_numbers_is_left_out_by_name(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    summary = {"num": 2, "mean": -2.0, "ci_low": None, "ci_high": None, "iqm": -2.0}
    good: dict[str, Any] = {"agent": "nature", "game": "Pong", "summary": summary, "lives": {}}
    odd = good | {key: good[key] | changes[key] for key in good.keys() & changes.keys()}
    model = {"network": "nature", "seed": 0, "env_steps": 1_000, "td_updates": 250}
    saved = {"settings": {"epsilon": 0.01}, "games": {"sticky": 0}, "commit": "c"}
    for name, rows, agent in (("good", [good], {}), ("odd", [good, odd], changes.get("model", {}))):
        (tmp_path / f"{name}-evaluation.json").write_text(
            json.dumps(saved | {"model": model | agent, "rows": rows})
        )
    found = read_results([tmp_path])
    assert [each.source for each in found.evaluations] == [str(tmp_path / "good-evaluation.json")]
    assert found.left_out == [(str(tmp_path / "odd-evaluation.json"), why)]
    make_page(found, command="", above=0.0)


def test_log_of_another_job_is_left_out_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "bigan"
    folder.mkdir()
    record_start(folder, START | {"settings": {"dataset": "digits"}})
    (folder / "epochs.jsonl").write_text('{"trial": "a", "epoch": 1, "generator_loss": 1}\n')
    assert "of a job that this page has no table for" in read_results([folder]).left_out[0].why


def test_probes_of_frozen_features_fill_table_iii_under_their_own_faces(tmp_path: Path) -> None:
    folder = tmp_path / "deepfake"
    folder.mkdir()
    about = {"faces": {"dataset": "stand-in of drawn faces"}, "missing": {"alexnet-rotnet": "no"}}
    record_start(folder, START | {"settings": {"faces": "faces"}} | about)
    rows = [
        {"trial": f"{split}{seed}", "epoch": 1, "protocol": "strict", "backbone": "resnet50-random",
         "layer": "avgpool", "classifier": "knn", "split": split, "seed": seed, "done": True,
         "frame_accuracy": [share, share - 0.1, share + 0.1]}
        for split, seed, share in (("random", 0, 0.7), ("random", 1, 0.9), ("family", 0, 0.5))
    ]  # fmt: skip
    rows.append(rows[0] | {"trial": "early", "done": False})
    rows.append(rows[0] | {"trial": "odd", "frame_accuracy": [math.nan, 0.1, 0.2]})
    (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_results([folder])
    assert found.left_out == [(f"{folder}: odd", "expected a finite frame_accuracy, got nan")]
    assert [line.why for line in found.notes] == ["not finished", "not run: no"]
    ((title, table),) = table_3(found.probes).items()
    assert title == "stand-in of drawn faces, protocol strict"
    # t(0.975, 1) = 12.7062 times 10 / 1: the mean of two seeds is hardly known
    assert table[0] == {
        "model": "ResNet-50 (Random Initialization)",
        "random split, paper": "56.7",
        "random split": "80.00 (-47.06 to 207.06 over seeds, 2 seeds; knn on avgpool)",
        "hard split, paper": "56.2",
        "hard split": "not run",
        "family split": "50.00 (40.00 to 60.00 over videos, 1 seed; knn on avgpool)",
    }
    assert {row["random split"] for row in table[1:]} == {"not run"}


def test_trial_that_the_scheduler_stopped_is_noted(sweep: Path) -> None:
    folder = sweep / "trials.csv"
    folder.write_text(folder.read_text().replace("w0-s0,finished", f"w0-s0,{STOPPED}"))
    notes = read_results([sweep]).notes
    assert [note.why for note in notes][0] == "stopped: ended early by the scheduler"


def test_games_are_compared_at_the_steps_of_the_shortest_finished_run(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: -21, 2000: -20, 3000: -5})
    write_game(tmp_path / "b", {1000: -19, 2000: -18}, aux_task="rotation")
    write_game(tmp_path / "c", {1000: -17}, aux_task="rotation", seed=1, steps=9000)
    (study,) = make_studies(read_results([tmp_path]))
    assert (study.budget, study.name) == (2000, "Pong, network nature")
    plain, rotation = study.arms
    assert plain.scores == {0: -20.0}
    assert rotation.scores == {0: -18.0}
    assert rotation.flags == ("seed 1 unfinished: 1,000 of 9,000 steps",
                              "seeds differ in steps: 2000 / 9000")  # fmt: skip
    assert study.flags == ("steps: 3000 / 2000 / 9000",)


def test_commits_and_settings_that_differ_within_an_arm_are_flagged(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: 1})
    other = write_game(tmp_path / "b", {1000: 1}, seed=1, lr=1e-4)
    record_start(other, START | {"settings": {"game": "pong", "aux_task": "none", "seed": 1,
                                 "steps": 1000, "lr": 1e-4}, "commit": "def-dirty"})  # fmt: skip
    (study,) = make_studies(read_results([tmp_path]))
    assert study.arms[0].flags == (
        "2 commits: abc, def-dirty",
        "uncommitted changes: def-dirty",
        "seeds differ in lr: 0.0002 / 0.0001",
    )


def test_networks_are_never_compared_with_each_other(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: 1})
    write_game(tmp_path / "b", {1000: 1}, aux_task="permutation", network="paper-code")
    studies = make_studies(read_results([tmp_path]))
    assert [study.name for study in studies] == ["Pong, network nature", "Pong, network paper-code"]
    assert studies[1].plain_of(studies[1].arms[0]) is None
    assert studies[1].gain(studies[1].arms[0]) is None


def test_runs_of_several_settings_say_theirs(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: 1})
    assert "setting" not in game_rows(read_results([tmp_path]).runs, -5.0)[0]
    write_game(tmp_path / "b", {1000: 1}, preset="paper-code", network="paper-code")
    rows = game_rows(read_results([tmp_path]).runs, -5.0)
    assert [(row["task"], row["setting"]) for row in rows] == [
        ("none", "network nature"),
        ("none", "network paper-code, protocol paper-code"),
    ]


@pytest.mark.parametrize(
    ("games", "shown"),
    [
        ({}, ""),
        ({"envs_per_worker": 1, "num_workers": 0}, ""),
        ({"envs_per_worker": 8}, ", environments 8"),
        ({"envs_per_worker": 4, "num_workers": 3}, ", environments 12"),
    ],
)
def test_authors_protocol_says_how_many_environments_play_in_place_of_one(
    tmp_path: Path, games: dict[str, Any], shown: str
) -> None:
    write_game(tmp_path / "a", {1000: 1}, preset="paper-code", network="paper-code", **games)
    write_game(tmp_path / "b", {1000: 1}, **games)
    rows = game_rows(read_results([tmp_path]).runs, -5.0)
    assert [row["setting"] for row in rows] == [
        f"network paper-code, protocol paper-code{shown}", "network nature",
    ]  # fmt: skip


def test_run_that_was_not_resumed_has_no_score_before_a_game_ended(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: None, 2000: None})
    (study,) = make_studies(read_results([tmp_path]))
    assert study.arms[0].scores == {}
    assert study.arms[0].flags == ("seed 0 has no score: no whole game yet",)


def test_games_share_a_scale_by_human_and_random_scores(tmp_path: Path) -> None:
    # Pong: random -20.7, human 14.6; Breakout: 1.7 and 30.5. Seaquest has none on file here.
    for game, scores in (("pong", (-20.7, 14.6)), ("breakout", (1.7, 30.5)), ("seaquest", (5, 9))):
        for task, score in zip(("none", "rotation"), scores, strict=True):
            write_game(tmp_path / game / task, {1000: score}, game=game, aux_task=task)
    write_game(tmp_path / "more", {1000: 3}, aux_task="permutation")
    shared, alone = make_suites(make_studies(read_results([tmp_path])))
    assert (shared.name, shared.tasks) == ("atari, network nature", ["Pong", "Breakout"])
    assert shared.measure == "human-normalised score"
    assert [float(scores[0]) for scores in shared.arms["none"]] == pytest.approx([0, 0], abs=1e-12)
    assert [float(scores[0]) for scores in shared.arms["rotation, weight 1"]] == [1, 1]
    assert shared.left_out == ["permutation, weight 1 has scores on Pong only"]
    assert alone.tasks == ["Seaquest"]
    assert alone.measure == "training score (last 100 whole games, exploration on)"


def test_games_whose_pretext_arms_differ_are_measured_one_by_one(tmp_path: Path) -> None:
    for game, weight in (("pong", 1.0), ("breakout", 0.5)):
        for task in ("none", "rotation"):
            write_game(tmp_path / game / task, {1000: 3}, game=game, aux_task=task,
                       aux_weight=weight)  # fmt: skip
    suites = make_suites(make_studies(read_results([tmp_path])))
    assert [(suite.tasks, list(suite.arms)) for suite in suites] == [
        (["Pong"], ["none", "rotation, weight 1"]),
        (["Breakout"], ["none", "rotation, weight 0.5"]),
    ]


def test_interval_past_what_a_quantity_can_be_does_not_widen_its_axis() -> None:
    x = np.array([0.0, 1.0])
    lines = [Line("a", [(x, np.array([y, 0.9])) for y in (0.25, 0.3, 0.95)])]
    panel = Panel("", "", "", lines)
    looks = arm_colours(["a"], [])
    for limits, bounds in ((None, (-0.6, 1.5)), ((0, 1), (-0.03, 1.03))):
        figure = draw_panels([dataclasses.replace(panel, range=limits)], looks)
        low, high = figure.axes[0].get_ylim()
        assert (low, high) == pytest.approx(bounds, abs=0.1 if limits is None else 1e-9)


def test_data_set_cut_short_is_called_small(tmp_path: Path) -> None:
    job = find_job("mnist")
    settings = dataclasses.replace(job.settings(), aux_task="none", aux_weight=0.0, epochs=14)
    for epoch in range(1, 15):
        row = epoch_row("none", 0.0, 0.9, epoch=epoch)
        job.open_log(tmp_path, "a", 0)(row, settings)
    own = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    record_start(tmp_path, START | {"settings": own})
    (study,) = make_studies(read_results([tmp_path]))
    assert not study.is_small
    cut = dataclasses.replace(settings, train_images=12_000)
    (tmp_path / "cut").mkdir()
    for epoch in range(1, 15):
        row = epoch_row("none", 0.0, 0.9, epoch=epoch)
        job.open_log(tmp_path / "cut", "a", 0)(row, cut)
    own = json.loads(json.dumps(dataclasses.asdict(cut), default=str))
    record_start(tmp_path / "cut", START | {"settings": own})
    (study,) = make_studies(read_results([tmp_path / "cut"]))
    assert study.is_small
    assert study.size == "14 of the paper's 14 epochs, 12,000 training images"


def test_classifiers_of_unequal_length_are_never_compared(tmp_path: Path) -> None:
    # Three times as long, plain is two points better: of the pretext task that says nothing.
    write_classifiers(tmp_path, "none", {0: 0.99, 1: 0.991, 2: 0.992}, epochs=3)
    write_classifiers(tmp_path, "rotation", {0: 0.97, 1: 0.9705, 2: 0.971}, epochs=1)
    write_classifiers(tmp_path, "rotation", {3: 0.98}, epochs=3)
    studies = make_studies(read_results([tmp_path]))
    rotation = "rotation, weight 1"
    assert [
        (study.name, study.budget, {arm.key.name: dict(arm.scores) for arm in study.arms})
        for study in studies
    ] == [
        ("mnist, protocol paper, epochs 1", 1, {rotation: {0: 97, 1: 97.05, 2: 97.1}}),
        ("mnist, protocol paper, epochs 3", 3,
         {"none": {0: 99, 1: 99.1, 2: 99.2}, rotation: {3: 98}}),
    ]  # fmt: skip
    claim = next(claim for claim in CLAIMS if claim.text == "Rotation hurts on MNIST")
    assert [found.difference for found in judge(claim, studies)] == [None, None]
    assert make_contrasts(studies) == []


def test_classifier_that_was_stopped_is_no_run_of_another_length(tmp_path: Path) -> None:
    write_classifiers(tmp_path, "none", {0: 0.99}, epochs=3)
    write_classifiers(tmp_path, "none", {1: 0.98}, epochs=3, ran=1)
    (study,) = make_studies(read_results([tmp_path]))
    assert (study.name, study.arms[0].scores) == ("mnist, protocol paper", {0: 99.0})
    assert study.arms[0].flags == ("seed 1 unfinished: 1 of 3 epochs",)


def test_job_without_epochs_among_its_settings_is_compared_at_one_length_too(sweep: Path) -> None:
    saved = json.loads((sweep / "sweep.json").read_text())
    for trial in saved["trials"]:
        del trial["settings"]["epochs"]
    (sweep / "sweep.json").write_text(json.dumps(saved | {"job": "bigan"}))
    table = (sweep / "trials.csv").read_text().splitlines()
    place = table[0].split(",").index("planned")
    cells = table[1].split(",")
    table[1] = ",".join([*cells[:place], "2", *cells[place + 1 :]])
    (sweep / "trials.csv").write_text("\n".join(table) + "\n")
    (study,) = make_studies(read_results([sweep]))
    assert (study.budget, sorted(study.arms[0].scores)) == (1, [1, 2])
    assert study.arms[0].flags == (
        "seed 0 has no score: it is of 2 epochs, compared are those of 1",
    )


def test_claim_about_almost_doubling_is_judged_against_one_and_a_half(tmp_path: Path) -> None:
    for seed, (plain, treated) in enumerate([(10, 15.4), (10, 15.2), (10, 15.3)]):
        for task, score in (("none", plain), ("permutation-6", treated)):
            write_game(tmp_path / f"{task}{seed}", {1000: score}, aux_task=task, seed=seed,
                       game="breakout")  # fmt: skip
    studies = make_studies(read_results([tmp_path]))
    claim = next(claim for claim in CLAIMS if "doubles" in claim.text)
    (finding,) = judge(claim, studies)
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx(0.3)
    assert finding.verdict == "supported"
    assert judge(CLAIMS[0], studies)[0].verdict == "undecided"


def test_claims_are_judged_under_both_protocols_each_by_its_own_measure(tmp_path: Path) -> None:
    # By whole games sequence prediction loses a point, by lives with clipped rewards it gains one.
    for protocol, sequence in (("strict", "permutation"), ("paper-code", "permutation-6")):
        own: dict[str, Any] = {"game": "breakout", "preset": "breakout"}
        if protocol == "paper-code":
            own |= {"preset": "paper-code", "network": "paper-code", "learning_starts": 10_000}
        for seed, (lives, more) in enumerate([(1.0, 2.0), (1.1, 2.2), (1.2, 2.3)]):
            for task, games, best in (("none", 9.0, lives), (sequence, 8.0 - seed / 10, more)):
                scores = {20_000: games, 30_000: games}
                write_game(tmp_path / f"{protocol}-{task}{seed}", scores,
                           lives={20_000: best, 30_000: 99}, aux_task=task, seed=seed,
                           **own)  # fmt: skip
    studies = make_studies(read_results([tmp_path]))
    rows = [row for row in claim_rows(claim_findings(studies)) if "helps on" in row["claim"]]
    seen = [
        tuple(row[k] for k in ("protocol: measure", "seeds", "difference", "verdict"))
        for row in rows
    ]
    assert seen == [
        ("paper-code: best mean of 100 lives, rewards clipped", 3, "+1.07", "supported"),
        ("strict: training score (last 100 whole games, exploration on)", 3, "-1.10", "refuted"),
    ]
    assert [row["tested on"].split(";")[0] for row in rows] == [
        "Breakout, network paper-code, protocol paper-code: permutation-6, weight 1",
        "Breakout, network nature: permutation, weight 1",
    ]


def test_measure_of_an_axis_stands_within_the_height_of_the_axis(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1000: 1, 2000: 2})
    (study,) = make_studies(read_results([tmp_path]))
    figure = draw_panels([Panel("Pong", "agent steps", study.measure, [])] * 2, {})
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert " ".join(axis.get_ylabel().split()) == study.measure
        assert axis.yaxis.label.get_window_extent().height < axis.get_window_extent().height


def test_long_names_and_titles_leave_a_plot_its_room(tmp_path: Path) -> None:
    own: dict[str, Any] = {"preset": "paper-code", "network": "paper-code", "game": "breakout",
                           "optimizers": "separate", "aux_samples": "all"}  # fmt: skip
    for task in ("none", "rotation", "permutation-6"):
        scores = {1000: 1, 2000: 2}
        write_game(tmp_path / task, scores, lives=scores, aux_task=task, **own)
    page = make_page(read_results([tmp_path]), command="", above=0.0)
    pictures = {b.name: b for s in page.sections for b in s.blocks if isinstance(b, Picture)}
    figure = pictures["curves"].figure
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_title().splitlines() == [
        "Breakout, network paper-code, protocol paper-code",
        "pretext arms: weight 1, optimizers separate, samples all",
    ]
    assert {text.get_text() for text in axis.texts} >= {"none", "rotation", "permutation-6"}
    assert axis.title.get_window_extent().x0 > 0
    assert axis.get_window_extent().width > 0.6 * figure.bbox.width


def test_curves_of_runs_that_are_judged_by_lives_show_lives(tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "code": {"preset": "paper-code", "network": "paper-code"}, "strict": {},
    }  # fmt: skip
    for name, own in settings.items():
        write_game(tmp_path / name, {1000: 50, 2000: 60}, lives={1000: 1, 2000: 2},
                   game="breakout", **own)  # fmt: skip
    page = make_page(read_results([tmp_path]), command="", above=0.0)
    (picture,) = [b for s in page.sections for b in s.blocks
                  if isinstance(b, Picture) and b.name == "curves"]  # fmt: skip
    seen = [
        (" ".join(axis.get_ylabel().split()), list(np.asarray(axis.lines[0].get_ydata())))
        for axis in picture.figure.axes
    ]
    assert seen == [
        ("training score (last 100 lives, rewards clipped)", [1, 2]),
        ("training score (last 100 whole games, exploration on)", [50, 60]),
    ]
    levels = [{text.get_text() for text in axis.texts} for axis in picture.figure.axes]
    assert levels == [{"none"}, {"none", "random play"}], "random play's score is of whole games"
    assert "rewards clipped, as in the paper's Figure 10" in picture.caption


def test_names_of_several_lines_do_not_touch() -> None:
    x = np.array([0.0, 1.0])
    names = [f"{'a long name of an arm ' * 2}{i}" for i in range(4)]
    looks = arm_colours(names, [])
    for values in ((0, 0, 0, 0), (0, 1, 1, 1)):
        lines = [Line(n, [(x, np.full(2, float(v)))]) for n, v in zip(names, values, strict=True)]
        figure = draw_panels([Panel("", "", "", lines)] * 2, looks)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        boxes.sort(key=lambda box: float(box.y0))
        assert len(boxes) == 4
        assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_runs_that_never_made_a_td_update_are_compared_with_no_agent(tmp_path: Path) -> None:
    for seed in range(3):
        write_game(tmp_path / f"aux{seed}", {1_000: -21.0 + seed / 10}, seed=seed,
                   aux_task="rotation", schedule="aux-only")  # fmt: skip
        write_game(tmp_path / f"none{seed}", {1_000: -21.0, 2_000: 5.0 + seed}, seed=seed)
    results = read_results([tmp_path])
    studies = make_studies(results)
    assert [(s.name, s.budget, s.arms[0].key.name) for s in studies] == [
        ("Pong, network nature", 2_000, "none"),
        ("Pong, network nature, schedule aux-only", 1_000, "rotation, weight 1"),
    ]
    assert studies[1].gain(studies[1].arms[0]) is None
    assert make_contrasts(studies) == []
    (finding,) = judge(CLAIMS[0], studies)
    assert (finding.study, finding.verdict) == (None, "undecided")
    rows = {row["agent"]: row for row in table_4(studies, [])}
    assert list(rows) == ["Random", "DQN", "Human", "World Record", "Rotation", "Sequence"]
    assert rows["Rotation"]["Pong, whole games"] == "not run"
    of_task: dict[str, Any] = {"agent": "nature, rotation", "aux_task": "rotation"}
    found = [evaluated(-21.0, aux_weight=1.0, td_updates=0, **of_task)]
    rows = {row["agent"]: row for row in table_4([], found)}
    assert rows["Rotation"]["Pong, whole games"] == "not run"
    listed = game_rows(results.runs, -5.0)
    assert {row["setting"] for row in listed if row["task"] == "rotation"} == {
        "network nature, schedule aux-only"
    }


def test_preset_of_the_authors_code_is_never_compared_with_another(tmp_path: Path) -> None:
    own: dict[str, Any] = {"network": "paper-code"}
    write_game(tmp_path / "a", {1000: 1}, **own)
    write_game(tmp_path / "b", {1000: 1}, aux_task="rotation", preset="paper-code", **own)
    studies = make_studies(read_results([tmp_path]))
    assert [study.protocol for study in studies] == ["paper-code", "strict"]
    assert studies[0].gain(studies[0].arms[0]) is None


@pytest.mark.parametrize(
    ("settings", "name", "setting"),
    [
        ({"aux_task": "none"}, "none", "network nature"),
        ({"aux_weight": 0.0, "aux_every": 4}, "permutation, weight 0", "network nature"),
        ({}, "permutation, weight 1", "network nature"),
        ({"aux_every": 4, "schedule": "joint", "aux_weight": 0.5},
         "permutation, weight 0.5, every 4, joint", "network nature"),
        ({"optimizers": "separate", "network": "paper-code", "pretrain_updates": 9},
         "permutation, weight 1, pretrained for 9, optimizers separate", "network paper-code"),
        ({"aux_task": "curl+spr", "aux_weight": "0.5,0.1", "aux_combine": "sum"},
         "curl+spr, weight 0.5,0.1, combined by sum", "network nature"),
        ({"aux_samples": "all", "network": "paper-code"},
         "permutation, weight 1, samples all", "network paper-code"),
    ],
)  # fmt: skip
def test_arm_is_named_by_what_is_unusual(settings: dict[str, Any], name: str, setting: str) -> None:
    usual = {"game": "pong", "aux_task": "permutation", "aux_weight": 1, "network": "nature"}
    key = arm_key("atari", usual | settings)
    assert (key.name, key.setting) == (name, setting)


def test_setting_that_a_sweep_varied_parts_what_is_compared() -> None:
    usual = {"dataset": "mnist", "aux_task": "none", "protocol": "strict", "lr": 0.5, "seed": 3}
    key = arm_key("mnist", usual, ["aux_weight", "lr", "seed"])
    assert key == ArmKey("mnist", "mnist", (("protocol", "strict"), ("lr", 0.5)),
                         (("aux_task", "none"),))  # fmt: skip


def test_trunk_that_a_sweep_varied_stays_comparable_with_random_weights() -> None:
    usual = {"game": "pong", "aux_task": "none", "network": "nature"}
    varied = ["init_from", "freeze_trunk"]
    plain = arm_key("atari", usual | {"init_from": None, "freeze_trunk": False}, varied)
    tuned = arm_key("atari", usual | {"init_from": "a/run", "freeze_trunk": True}, varied)
    assert plain == ArmKey("atari", "Pong", (("network", "nature"),), (("aux_task", "none"),))
    assert tuned.context == plain.context
    assert tuned.name == "none, frozen trunk from a/run"


def test_runs_of_one_seed_that_differ_in_a_setting_stand_beside_one_another(tmp_path: Path) -> None:
    for seed, (slow, fast) in enumerate([(1.0, 4.0), (2.0, 5.0), (3.0, 7.0)]):
        for lr, score in ((1e-4, slow), (1e-3, fast)):
            folder = tmp_path / f"{lr}-{seed}"
            write_game(folder, {1_000: -21.0, 2_000: score}, lr=lr, seed=seed)
    # As a sweep over lr does it: arms of one value are compared with the plain one of that value.
    write_game(tmp_path / "r", {1_000: -21.0, 2_000: 0.5}, lr=1e-4, seed=0, aux_task="rotation")
    found = read_results([tmp_path])
    assert found.notes == []
    studies = make_studies(found)
    names = [(study.name, [arm.key.name for arm in study.arms]) for study in studies]
    assert names == [
        ("Pong, network nature, lr 0.0001", ["none", "rotation, weight 1"]),
        ("Pong, network nature, lr 0.001", ["none"]),
    ]
    gain = studies[0].gain(studies[0].arms[1])
    assert gain is not None
    assert (gain.mean, gain.num_seeds) == (-0.5, 1)
    (contrast,) = make_contrasts(studies)
    assert contrast.names == ("lr",)
    rows = [list(row.values()) for row in contrast_rows(contrast)]
    # 3, 3, 4: mean 10/3, deviation 0.577, t(2) 4.3027: +- 1.434
    assert [(row[0], row[4:]) for row in rows] == [
        ("none, lr 0.0001", [None, None, None, None]),
        ("none, lr 0.001", ["none, lr 0.0001", "+3.33", "+1.90 to +4.77", "3 pairs"]),
        ("rotation, weight 1, lr 0.0001", [None, None, None, None]),
    ]


def test_run_beside_a_sweep_stands_in_its_comparison_by_its_own_value(tmp_path: Path) -> None:
    job = find_job("atari")
    folder = SweepFolder(tmp_path / "sweep", job)
    folder.path.mkdir()
    axes: Any = {"prioritized": (False,), "n_step": (1, 3)}
    trials = [
        Trial(f"n{n}", job.settings(aux_task="none", aux_weight=0.0, n_step=n, steps=1_000), n)
        for n in axes["n_step"]
    ]
    folder.add(trials, axes)
    folder.write_sweep(START | {"settings": {}, "starts": [START]}, axes)
    for trial in trials:
        known = json.loads(json.dumps(dataclasses.asdict(trial.settings), default=str))
        write_game(folder.of(trial.name), {1_000: float(trial.settings.n_step)}, **known)
        folder.start(trial.name)
        folder.end(trial.name, FINISHED)
    write_game(tmp_path / "alone", {1_000: 10.0}, n_step=10)
    (contrast,) = make_contrasts(make_studies(read_results([tmp_path])))
    assert [(row["arm"], row["mean"]) for row in contrast_rows(contrast)] == [
        ("none, n-step 1", "1.00"), ("none, n-step 3", "3.00"), ("none, n-step 10", "10.00"),
    ]  # fmt: skip


def test_values_of_a_setting_are_compared_at_equal_steps(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1_000: -20.0, 2_000: 9.0}, lr=1e-4, steps=9_000)
    write_game(tmp_path / "b", {1_000: -15.0}, lr=1e-3, steps=9_000)
    (contrast,) = make_contrasts(make_studies(read_results([tmp_path])))
    assert contrast.study.budget == 1_000
    assert [row["mean"] for row in contrast_rows(contrast)] == ["-20.00", "-15.00"]


def test_longer_run_of_a_seed_is_no_arm_of_its_own(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1_000: -20.0})
    write_game(tmp_path / "b", {2_000: -15.0}, num_workers=4, compile=False)
    found = read_results([tmp_path])
    (study,) = make_studies(found)
    assert study.arms[0].scores == {0: -20.0}
    assert [note.why for note in found.notes] == [
        f"a second run of seed 0; {tmp_path / 'a'} counts"
    ]
    assert make_contrasts([study]) == []


def test_setting_that_an_older_log_does_not_name_is_its_default(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1_000: -20.0})
    write_game(tmp_path / "b", {1_000: -15.0}, augment="none")
    (study,) = make_studies(read_results([tmp_path]))
    assert study.name == "Pong, network nature"


def test_protocols_are_not_set_beside_one_another(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {1_000: -20.0})
    write_game(tmp_path / "b", {1_000: -15.0}, preset="paper-code", network="paper-code")
    studies = make_studies(read_results([tmp_path]))
    assert len(studies) == 2
    assert make_contrasts(studies) == []


def test_seed_that_a_sweep_is_missing_stays_with_its_own_value(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(sweep, other)
    for path in [other / "sweep.json", *other.glob("*/settings.json")]:
        path.write_text(path.read_text().replace('"lr": 1.0', '"lr": 0.5'))
    shutil.rmtree(other / "w1-s0")  # before anything was written
    studies = make_studies(read_results([sweep, other]))
    assert [(study.name, [arm.missing for arm in study.arms]) for study in studies] == [
        ("mnist, protocol paper, lr 0.5", [(), (2,), (0, 2)]),
        ("mnist, protocol paper, lr 1.0", [(), (2,), (2,)]),
    ]


def test_page_shows_the_curves_of_several_values_in_one_panel(tmp_path: Path) -> None:
    for dtype in ("float32", "auto"):
        write_game(tmp_path / dtype, {1_000: -20.0, 2_000: 9.0}, compute_dtype=dtype)
    page = make_page(read_results([tmp_path]), command="report", above=-5)
    (section,) = [each for each in page.sections if each.title.startswith("Other settings")]
    picture, table = section.blocks
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    (axis,) = picture.figure.axes
    assert {text.get_text().replace("\n", " ") for text in axis.texts} == {
        "none, compute-dtype auto", "none, compute-dtype float32",
    }  # fmt: skip
    assert table.title == "Pong, network nature: compute-dtype"


def test_figures_show_the_plain_arm_weight_1_and_the_best_of_many(tmp_path: Path) -> None:
    for i in range(12):
        task = "rotation" if i else "none"
        write_game(tmp_path / str(i), {1000: i}, aux_task=task, aux_weight=float(i))
    (study,) = make_studies(read_results([tmp_path]))
    assert [arm.key.weight for arm in shown_arms(study)] == [0, 1, 6, 7, 8, 9, 10, 11]


def test_page_of_arms_that_figures_have_no_room_for_is_made(tmp_path: Path) -> None:
    names = ["atc", "curl", "inverse", "jigsaw", "order-verification", "permutation",
             "permutation-6", "reward", "rotation", "spr"]  # fmt: skip
    for i, task in enumerate(names):
        # Figures show eight: of weight 1, none of which has a score; of weight 0, the best.
        write_game(tmp_path / "pong" / task, {1_000: None}, aux_task=task)
        write_game(tmp_path / "breakout" / task, {1_000: i}, aux_task=task, aux_weight=0.0,
                   game="breakout")  # fmt: skip
    write_game(tmp_path / "pong" / "less", {1_000: 4.0}, aux_task="rotation", aux_weight=0.5)
    for game, number in (("pong", 0), ("breakout", 1)):
        page = make_page(read_results([tmp_path / game]), command="", above=0.0)
        blocks = [block for section in page.sections for block in section.blocks]
        pictures = [block for block in blocks if isinstance(block, Picture)]
        assert len([picture for picture in pictures if "IQM" in picture.title]) == number


@pytest.mark.parametrize(
    ("seeds", "text"),
    [([0, 1, 2, 3], "0-3"), ([4, 0, 1], "0, 1, 4"), ([7], "7"), ([], ""), ([1, 3, 4, 5], "1, 3-5")],
)
def test_seeds_are_listed_as_people_do(seeds: list[int], text: str) -> None:
    assert seed_list(seeds) == text


def test_folder_given_twice_counts_once(tmp_path: Path) -> None:
    folder = write_game(tmp_path / "a", {1000: 1})
    found: Results = read_results([folder, tmp_path, folder])
    assert (len(found.runs), found.left_out) == (1, [])


def test_games_are_compared_by_their_evaluations_where_every_run_has_one(tmp_path: Path) -> None:
    training = {1_000: -20.0, 2_000: -20.0}
    for name, score in (("none", -11.5), ("rotation", -12.5)):
        write_game(tmp_path / name, training, dict.fromkeys(training, score), aux_task=name)
    study = make_studies(read_results([tmp_path]))[0]
    assert [dict(arm.scores) for arm in study.arms] == [{0: -11.5}, {0: -12.5}]
    assert (study.budget, study.read_at) == (2_000, (2_000, 2_000))
    assert "evaluation" in study.measure
    rows = {row["agent"]: row for row in table_4([study], [])}
    assert rows["DQN"]["Pong, whole games"] == "-11.50 (1 seed of 2,000 steps)"
    write_game(tmp_path / "permutation", training, aux_task="permutation")
    study = make_studies(read_results([tmp_path]))[0]
    assert all(dict(arm.scores) == {0: -20.0} for arm in study.arms), "what all runs have"
    assert study.was_evaluated_apart


@pytest.mark.parametrize(("points", "column"), [(2, "score_mean_100"),
                                               (3, "evaluation_score_mean")])  # fmt: skip
def test_learning_curves_are_of_evaluations_where_those_make_a_curve(
    points: int, column: str, tmp_path: Path
) -> None:
    training = dict.fromkeys(range(1_000, 5_000, 1_000), -20.0)
    for seed, evaluated in enumerate((list(training)[-points:], training)):
        write_game(tmp_path / str(seed), training, dict.fromkeys(evaluated, -11.5), seed=seed)
    (study,) = make_studies(read_results([tmp_path]))
    assert dict(study.arms[0].scores) == {0: -11.5, 1: -11.5}, "compared by evaluations anyway"
    assert study.drawn[0] == column


def test_evaluations_at_unequal_steps_are_never_compared(tmp_path: Path) -> None:
    # All runs are on one curve, a point for 10,000 steps: whatever differs is read elsewhere.
    for task, steps, every in (("none", 100_000, 50_000), ("rotation", 120_000, 40_000)):
        for seed in range(3):
            curve = {x: x / 10_000 + seed / 100 for x in range(10_000, steps + 1, 10_000)}
            evaluated = {x: curve[x] for x in curve if x % every == 0}
            write_game(tmp_path / f"{task}{seed}", curve, evaluated, aux_task=task, seed=seed,
                       evaluate_every=every)  # fmt: skip
    results = read_results([tmp_path])
    (study,) = make_studies(results)
    assert (study.column, study.budget) == ("score_mean_100", 100_000)
    assert [arm.scores[2] for arm in study.arms] == pytest.approx([10.02, 10.02])
    assert judge(CLAIMS[0], [study])[0].verdict == "undecided"
    cells = {row["agent"]: row.get("Pong, whole games") for row in table_4([study], [])}
    assert (cells["DQN"], cells["Sequence"]) == ("at no common step", "not run")
    page = make_page(results, command="", above=-5.0)
    tables = [block for section in page.sections for block in section.blocks]
    (note,) = [t.note for t in tables if isinstance(t, Table) and t.title.endswith(": arms")]
    assert note.startswith("Compared at 100,000 of the paper's 1,000,000 steps: small. ")
    assert "Runs were evaluated, but not all of them at one step." in note


def test_evaluations_are_compared_at_the_last_step_that_all_runs_have(tmp_path: Path) -> None:
    for task, reached in (("none", 150_000), ("rotation", 290_000)):
        curve = {x: x / 10_000 for x in range(10_000, reached + 1, 10_000)}
        evaluated = {x: -curve[x] for x in curve if x % 100_000 == 0}
        write_game(tmp_path / task, curve, evaluated, aux_task=task, steps=400_000,
                   evaluate_every=100_000)  # fmt: skip
    (study,) = make_studies(read_results([tmp_path]))
    assert study.budget == 100_000
    assert [arm.scores for arm in study.arms] == [{0: -10}, {0: -10}]


def test_evaluations_of_one_step_may_stand_in_different_reports(tmp_path: Path) -> None:
    # Each is made at the first report from 30,000 and 60,000 on; reports differ with the envs.
    for task, first, last in (("none", 30_720, 61_440), ("rotation", 30_208, 60_160)):
        write_game(tmp_path / task, {first: -20, last: -19}, {first: -18, last: first / 1_000},
                   aux_task=task, steps=60_000, evaluate_every=30_000)  # fmt: skip
    # Stopped before the others' end, but evaluated where they are.
    write_game(tmp_path / "more", {30_720: -20, 60_032: -19}, {30_720: -18, 60_032: 5}, seed=1,
               steps=90_000, evaluate_every=30_000)  # fmt: skip
    (study,) = make_studies(read_results([tmp_path]))
    assert (study.budget, study.read_at) == (61_440, (60_032, 61_440))
    assert [arm.scores for arm in study.arms] == [{0: 30.72, 1: 5}, {0: 30.208}]


@pytest.mark.parametrize(("late", "column"), [(1_090, "evaluation_score_mean"),
                                              (1_110, "score_mean_100")])  # fmt: skip
def test_logs_that_do_not_tell_how_often_are_matched_by_their_rows(
    tmp_path: Path, late: int, column: str
) -> None:
    for task, steps in (("none", 1_000), ("rotation", late)):
        write_game(tmp_path / task, {steps: 1.0}, {steps: 2.0}, aux_task=task)
    (study,) = make_studies(read_results([tmp_path]))
    assert study.column == column


def test_papers_score_is_the_best_look_of_the_authors_code(tmp_path: Path) -> None:
    means = {
        10_000: 99.0,  # a look has to be past learning_starts
        15_000: 98.0,  # between two looks
        20_000: 1.26,
        25_000: 97.0,
        30_000: 1.24,
        38_000: 2.04,  # the last row before the look at 40,000
        45_000: 96.0,
        50_000: 1.0,
        60_000: 95.0,  # the code counts its steps from 0 and never comes to the last
    }
    write_game(tmp_path / "a", means, lives=means, learning_starts=10_000)
    write_game(tmp_path / "b", means, seed=1)
    run, without = read_results([tmp_path]).runs
    assert paper_code_score(run, 60_000) == 2.0
    assert paper_code_score(run, 39_999) == 1.3
    assert paper_code_score(run, 19_999) is None
    assert paper_code_score(without, 60_000) is None, "never 100 lives"


def test_seed_that_ended_early_counts_in_no_cell_of_its_arm(tmp_path: Path) -> None:
    for seed, best in ((0, 4.0), (1, 6.0)):
        write_game(tmp_path / str(seed), {90_000: best, 100_000: best}, lives={90_000: best},
                   seed=seed)  # fmt: skip
    write_game(tmp_path / "2", {10_000: 99}, lives={10_000: 99}, seed=2, steps=100_000)
    write_game(tmp_path / "3", {100_000: 3}, seed=3)  # not yet 100 lives
    (study,) = make_studies(read_results([tmp_path]))
    assert sorted(study.arms[0].scores) == [0, 1, 3]
    for seed, run in study.arms[0].runs.items():
        run.rows["aux_accuracy"] = seed / 10
    assert arm_rows(study)[0]["aux accuracy"] == "0.133"
    rows = {row["agent"]: row for row in table_4([study], [])}
    # t(0.975, 1) = 12.7062 times 1, the deviation of 4 and 6 over the root of 2
    assert (
        rows["DQN"]["Pong, same measure"] == "5.00 (-7.71 to 17.71, 2 of 3 seeds of 100,000 steps)"
    )


def evaluated(mean: float = 99.0, **changes: Any) -> Evaluation:
    """An evaluation of plain DQN on Pong over 100 games, after 100,000 steps."""
    usual: dict[str, Any] = {
        "game": "Pong", "agent": "nature, no aux task", "aux_task": "none", "aux_weight": 0.0,
        "network": "nature", "seed": 0, "env_steps": 100_000, "td_updates": 24_000,
        "epsilon": 0.01, "sticky": 0.0, "num": 100, "mean": mean,
        "low": None, "high": None, "iqm": mean, "life_mean": mean, "commit": "abc", "source": "a",
    }  # fmt: skip
    return Evaluation(**(usual | changes))


OTHERS = "; others: see Trained agents"


def test_note_of_table_iv_says_that_the_papers_random_row_is_of_whole_games() -> None:
    page = make_page(Results(evaluations=[evaluated(agent="random")]), command="", above=0.0)
    tables = [b for s in page.sections for b in s.blocks if isinstance(b, Table)]
    (note,) = [table.note for table in tables if table.title.startswith("Table IV")]
    assert "By our numbers so is the paper's Random row" in note
    assert note.endswith(
        'it compares with that row\'s "whole games" cell, not with "same measure".'
    )


@pytest.mark.parametrize(
    ("more", "cell"),
    [
        ([], "-8.00 (1 agent of 100,000 steps, 100 games)"),
        ([{"epsilon": 0.05}], f"-8.00 (1 agent of 100,000 steps, 100 games{OTHERS})"),
        ([{"sticky": 0.25}], f"-8.00 (1 agent of 100,000 steps, 100 games{OTHERS})"),
        ([{"env_steps": 200_000}], f"99.00 (1 agent of 200,000 steps, 100 games{OTHERS})"),
        ([{"network": "paper-code"}], f"-8.00 (1 agent of 100,000 steps, 100 games{OTHERS})"),
        ([{"num": 50}], "-8.00 (1 agent of 100,000 steps, 100 games)"),
        ([{"num": 200}], "99.00 (1 agent of 100,000 steps, 200 games)"),
        # t(0.975, 1) = 12.7062 times 1, of -8 and -6
        ([{"seed": 1, "mean": -6.0}, {"env_steps": 200_000}],
         f"-7.00 (-19.71 to 5.71, 2 agents of 100,000 steps, 200 games{OTHERS})"),
        ([{"seed": 1, "epsilon": 0.05}, {"seed": 2, "epsilon": 0.05}],
         f"99.00 (99.00 to 99.00, 2 agents of 100,000 steps, 200 games, epsilon 0.05{OTHERS})"),
    ],
)  # fmt: skip
def test_agents_are_averaged_once_each_and_only_if_they_were_played_alike(
    more: list[dict[str, Any]], cell: str
) -> None:
    found = [evaluated(-8.0), *(evaluated(**changes) for changes in more)]
    rows = {row["agent"]: row for row in table_4([], found)}
    assert rows["DQN"]["Pong, whole games"] == cell
    assert rows["DQN"]["Pong, same measure"] == cell.split(" ")[0]


def test_agent_of_another_aux_weight_stands_in_no_row_of_the_papers_table(tmp_path: Path) -> None:
    of_task = {"agent": "nature, permutation", "aux_task": "permutation"}
    found = [evaluated(12.0, aux_weight=0.1, **of_task), evaluated(3.0, aux_weight=1.0, **of_task)]
    rows = {row["agent"]: row for row in table_4([], found)}
    assert rows["Sequence"]["Pong, whole games"] == "3.00 (1 agent of 100,000 steps, 100 games)"
    assert table_4([], found[:1])[-1]["Pong, whole games"] == "not run"
    write_game(tmp_path / "a", {100_000: -9}, aux_task="permutation", aux_weight=1.0)
    rows = {row["agent"]: row for row in table_4(make_studies(read_results([tmp_path])), found)}
    name = "Sequence: permutation, weight 1"
    assert rows[name]["Pong, whole games"] == "3.00 (1 agent of 100,000 steps, 100 games)"
    old = evaluated(5.0, aux_weight=None, **of_task)  # its file does not say
    assert {r["agent"]: r for r in table_4([], [old])}["Sequence"]["Pong, whole games"] == (
        "5.00 (1 agent of 100,000 steps, 100 games)"
    )


def test_random_agent_is_one_whatever_the_file_says_of_epsilon() -> None:
    random: dict[str, Any] = {"agent": "random", "network": None, "seed": None, "env_steps": None}
    found = [evaluated(-20.0, **random), evaluated(-20.5, epsilon=0.05, num=30, **random)]
    row = table_4([], found)[0]
    assert (row["agent"], row["Pong, whole games"]) == ("Random", "-20.00 (1 agent, 100 games)")


def test_evaluations_stand_beside_runs_of_their_own_network_only(tmp_path: Path) -> None:
    write_game(tmp_path / "a", {100_000: -9})
    studies = make_studies(read_results([tmp_path]))
    for network, cell in (("nature", "1.00 (1 agent of 100,000 steps, 100 games)"),
                          (None, "1.00 (1 agent of 100,000 steps, 100 games)"),
                          ("paper-code", "not run")):  # fmt: skip
        rows = {r["agent"]: r for r in table_4(studies, [evaluated(1.0, network=network)])}
        assert rows["DQN"]["Pong, whole games"] == cell


def test_agents_that_learned_with_other_options_are_neither_averaged_nor_taken_for_an_arms_own(
    tmp_path: Path,
) -> None:
    three, ten = (("lr", 2e-4), ("n_step", 3)), (("lr", 2e-4), ("n_step", 10))
    found = [
        evaluated(-8.0, training=three), evaluated(-6.0, training=three, seed=1),
        evaluated(9.0, training=ten, seed=2),
    ]  # fmt: skip
    # t(0.975, 1) = 12.7062 times 1, of -8 and -6
    pair = "-7.00 (-19.71 to 5.71, 2 agents of 100,000 steps, 200 games"
    rows = {r["agent"]: r for r in table_4([], found)}
    assert rows["DQN"]["Pong, whole games"] == f"{pair}{OTHERS})"
    write_game(tmp_path / "a", {100_000: -9}, n_step=3, lr=2e-4)
    studies = make_studies(read_results([tmp_path]))
    rows = {r["agent"]: r for r in table_4(studies, found)}
    assert rows["DQN"]["Pong, whole games"] == f"{pair})"
    rows = {r["agent"]: r for r in table_4(studies, found[2:])}
    assert rows["DQN"]["Pong, whole games"] == "not run"


def test_agent_of_another_network_gives_a_row_no_score_of_a_game_that_it_did_not_run(
    tmp_path: Path,
) -> None:
    write_game(tmp_path / "a", {100_000: 2}, game="breakout", network="paper-code")
    studies = make_studies(read_results([tmp_path]))
    rows = {r["agent"]: r for r in table_4(studies, [evaluated(9.0, network="nature")])}
    assert rows["DQN"]["Pong, same measure"] == rows["DQN"]["Pong, whole games"] == "not run"


def test_run_from_another_runs_trunk_is_an_arm_of_its_own_beside_the_plain_one(
    tmp_path: Path,
) -> None:
    for name, score, more in (
        ("scratch", -20.0, {}),
        ("tuned", -18.5, {"init_from": "results/local/pretrained"}),
        ("kept", -19.0, {"init_from": "results/local/pretrained", "freeze_trunk": True}),
        ("random", -20.5, {"freeze_trunk": True}),
    ):
        write_game(tmp_path / name, {1_000: score}, **more)
    (study,) = make_studies(read_results([tmp_path]))
    names = ["none", "none, frozen trunk", "none, frozen trunk from pretrained",
             "none, trunk from pretrained"]  # fmt: skip
    assert [arm.key.name for arm in study.arms] == names
    gains = [study.gain(arm) for arm in study.arms]
    assert [gain and gain.mean for gain in gains] == [None, -0.5, 1.0, 1.5]
    rows = [row["agent"] for row in table_4([study], [])]
    assert not any("trunk" in agent for agent in rows)  # the paper's arms train all, from random


def test_trunks_of_two_runs_are_two_arms_though_their_checkpoints_bear_one_name(
    tmp_path: Path,
) -> None:
    for number, (run, score) in enumerate([("rotation", -19.0), ("inverse", -12.0)]):
        trunk = f"results/{run}/from-0-a{number}_00000/checkpoint_000003"
        for seed in (0, 1):
            write_game(tmp_path / f"{run}{seed}", {1_000: score + seed}, seed=seed, init_from=trunk)
    (study,) = make_studies(read_results([tmp_path]))
    assert {arm.key.name: dict(arm.scores) for arm in study.arms} == {
        "none, trunk from inverse/checkpoint_000003": {0: -12.0, 1: -11.0},
        "none, trunk from rotation/checkpoint_000003": {0: -19.0, 1: -18.0},
    }


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["results/local/pretrained"], ["pretrained"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "y"]),
        (["x", "b/x"], ["x", "b/x"]),
        (["/home/a/x", "/data/a/x"], ["home/a/x", "data/a/x"]),
        (["r/from-0-t_0/checkpoint_000003"], ["r/checkpoint_000003"]),
        (["r/from-0-t_0/checkpoint_000003", "r/from-9-u_0/checkpoint_000003"],
         ["r/from-0-t_0/checkpoint_000003", "r/from-9-u_0/checkpoint_000003"]),
        (["checkpoint_000003"], ["checkpoint_000003"]),
        (["from-home"], ["from-home"]),
        (["/"], ["/"]),
    ],
)  # fmt: skip
def test_path_is_as_short_as_keeps_it_apart(paths: list[str], names: list[str]) -> None:
    assert list(short_paths(paths).values()) == names
