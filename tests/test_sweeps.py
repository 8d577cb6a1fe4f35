"""What a sweep varies, what it writes, and what it knows again after a kill. Nothing is trained."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from experiments import sweep
from rayssl.jobs import available_jobs, find_job
from rayssl.jobs.atari import GPU_SECONDS, GPU_TRAININGS
from rayssl.jobs.mnist import MnistTrial
from rayssl.presets import AtariRun
from rayssl.report import read_run
from rayssl.rllib.resources import count_fitting
from rayssl.rllib.stopping import StopAtSteps
from rayssl.sweeps.axes import (
    LogRange,
    Trial,
    baselines,
    draw_points,
    end_points,
    grid_points,
    parse_axis,
    trials_of_points,
)
from rayssl.sweeps.estimate import duration, estimate
from rayssl.sweeps.folder import FAILED, FINISHED, RUNNING, WAITING, SweepFolder, read_trials
from rayssl.sweeps.hparams import write_hparams
from rayssl.sweeps.tuning import (
    PENDING,
    AshaFromLogs,
    OptunaDraws,
    Place,
    SweepLog,
    TrialQueue,
    adapted,
    starting_together,
    trial_config,
)

DOCS = Path(__file__).parent.parent / "docs" / "results.md"
MNIST, ATARI = find_job("mnist"), find_job("atari")


def axes_of(job: Any, **words: str) -> dict[str, Any]:
    return dict(parse_axis(job, name, text.split()) for name, text in words.items())


def names(trials: list[Trial]) -> list[str]:
    return [trial.name for trial in trials]


# Jobs


@pytest.mark.parametrize("name", available_jobs())
def test_every_job_describes_itself_and_its_defaults_can_run(name: str) -> None:
    job = find_job(name)
    assert job.name == name
    assert job.judged_by
    base = job.settings()
    assert base.seed == 0
    assert job.planned(base) > 0
    assert job.bundles(base, 2, 0.5)[0] | {"memory": 0} == {"CPU": 2, "GPU": 0.5, "memory": 0}
    assert job.from_json(json.loads(json.dumps(vars(base), default=str))) == base
    assert set(job.aux_only) | set(job.adaptable) <= set(vars(base))
    needs = {"deepfake": "holds no prepared faces", "pretrain": "--data is missing"}
    if name in needs:  # they count crops and images
        with pytest.raises((FileNotFoundError, ValueError), match=needs[name]):
            job.typical_seconds(base)
        return
    here = {"dataset": "digits"} if "dataset" in vars(base) else {}
    assert job.typical_seconds(replace(base, **here))[0] > 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizers": "shared"}, "pass --optimizers separate, or lower --aux-weight"),
        ({"optimizers": "shared", "schedule": "joint"}, ": lower --aux-weight"),
        ({"optimizers": "separate"}, ""),
        ({"optimizers": "shared", "prioritized": False}, ""),
        ({"optimizers": "shared", "aux_weight": 0.0}, ""),
        ({"optimizers": "shared", "aux_task": "none"}, ""),
    ],
    ids=str,
)
def test_one_adam_over_a_loss_that_importance_weights_shrink_is_warned_of(
    changes: dict[str, Any], expected: str
) -> None:
    run = replace(AtariRun(aux_task="permutation", aux_weight=1.0, prioritized=True), **changes)
    found = find_job("atari").note(run)
    assert found.endswith(expected)
    assert found.startswith("note: prioritized replay" if expected else "")
    assert bool(found) == bool(expected)


def test_unknown_job_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown job 'minst'. Available: .*atari.*mnist"):
        find_job("minst")


# Axes


def test_grid_is_every_combination_for_every_seed_and_seeds_come_last() -> None:
    axes = axes_of(MNIST, aux_weight="0.1 1", lr="1 0.5")
    trials = trials_of_points(MNIST, MnistTrial(), axes, grid_points(axes), range(2))
    first = ["w0.1-lr1", "w0.1-lr0.5", "w1-lr1", "w1-lr0.5"]
    assert names(trials) == [f"{name}-s{seed}" for seed in (0, 1) for name in first]
    assert [trial.group for trial in trials] == [0, 1, 2, 3] * 2
    assert trials[1].settings == MnistTrial(aux_weight=0.1, lr=0.5, seed=0)


def test_weight_0_and_task_none_are_one_baseline_a_seed() -> None:
    axes = axes_of(MNIST, aux_weight="0 1", aux_task="none rotation", aux_copies="one all")
    points = [*baselines(MNIST, MnistTrial(), axes), *grid_points(axes)]
    assert len(points) == 1 + 8
    trials = trials_of_points(MNIST, MnistTrial(), axes, points, range(2))
    assert names(trials[:3]) == ["w0-aux_copiesNone-s0", "w1-rotation-aux_copiesone-s0",
                                 "w1-rotation-aux_copiesall-s0"]  # fmt: skip
    assert len(trials) == 6
    assert trials[0].settings == MnistTrial(aux_task="none", aux_weight=0.0, aux_copies=None)


def test_baseline_of_atari_drops_what_only_the_head_uses() -> None:
    axes = axes_of(ATARI, aux_every="1 4", schedule="joint pretrain", n_step="1 3")
    base = ATARI.settings(optimizers="separate", pretrain_updates=7)
    plain = trials_of_points(ATARI, base, axes, baselines(ATARI, base, axes), [0])
    assert names(plain) == ["none-n_step1-s0", "none-n_step3-s0"]
    settings = plain[0].settings
    assert (settings.aux_task, settings.aux_weight) == ("none", 0.0)
    assert (settings.optimizers, settings.pretrain_updates, settings.aux_every) == ("shared", 0, 1)
    ATARI.check(settings)


def test_no_baseline_where_the_head_is_not_varied() -> None:
    assert baselines(MNIST, MnistTrial(), axes_of(MNIST, lr="1 2")) == []
    assert baselines(MNIST, MnistTrial(), axes_of(MNIST, aux_weight="1")) == [{"aux_weight": 0.0}]


def test_setting_of_the_head_alone_asks_for_a_baseline_where_it_is_varied() -> None:
    both, one = axes_of(ATARI, aux_samples="usable all"), axes_of(ATARI, aux_samples="all")
    assert baselines(ATARI, AtariRun(), both) == [{"aux_weight": 0.0}]
    assert baselines(ATARI, AtariRun(), one) == []


def test_draws_are_repeated_by_their_seed_stay_in_range_and_differ() -> None:
    axes = axes_of(MNIST, aux_weight="log:0.01:3", batch_size="log:8:64", protocol="paper strict")
    drawn = draw_points(axes, 50, seed=1)
    assert drawn == draw_points(axes, 50, seed=1)
    assert drawn != draw_points(axes, 50, seed=2)
    assert len({str(point) for point in drawn}) == 50
    assert all(0.01 <= p["aux_weight"] <= 3 and 8 <= p["batch_size"] <= 64 for p in drawn)
    assert {type(p["batch_size"]) for p in drawn} == {int}
    below = sum(p["aux_weight"] < (0.01 * 3) ** 0.5 for p in drawn)
    assert 10 < below < 40  # the geometric mean halves it


def test_draws_end_where_lists_have_no_more_combinations() -> None:
    axes = axes_of(MNIST, aux_task="none rotation", protocol="paper strict")
    assert len(draw_points(axes, 9, seed=0)) == 4


def test_log_range_is_uniform_in_the_logarithm() -> None:
    assert [LogRange(0.01, 100).at(share) for share in (0, 0.25, 0.5, 1)] == [0.01, 0.1, 1, 100]
    assert LogRange(1, 16, whole=True).at(0.5) == 4
    (whole,) = axes_of(ATARI, batch_size="log:1.2:4.8").values()
    assert whole == LogRange(2, 4, whole=True)


def test_end_points_have_both_ends_and_every_listed_value() -> None:
    axes = axes_of(MNIST, aux_weight="log:0.1:3", protocol="paper strict")
    assert end_points(axes) == [
        {"aux_weight": 0.1, "protocol": "paper"},
        {"aux_weight": 3.0, "protocol": "paper"},
        {"aux_weight": 0.1, "protocol": "paper"},
        {"aux_weight": 0.1, "protocol": "strict"},
    ]


@pytest.mark.parametrize(
    ("name", "words", "text"),
    [
        ("aux-wieght", "1", "atari has no setting 'aux_wieght'. Near: aux_weight."),
        ("seed", "1", "seed is not a setting to vary: see --seeds."),
        ("learner_cpus", "1", "learner_cpus is not a setting to vary: see an option of the sweep."),
        ("lr", "fast", "--lr expected a number, got 'fast'."),
        ("aux_every", "1.5", "--aux-every expected a whole number, got '1.5'."),
        ("schedule", "never", "expected alternate or joint or pretrain or aux-only, got 'never'."),
        ("compile", "yes", "--compile expected true or false, got 'yes'."),
        ("lr", "", "--lr needs at least one value, got none."),
        ("lr", "log:1:2 3", "--lr takes a list or one range, got log:1:2 3."),
        ("lr", "log:3:1", "--lr expected 0 < FROM < TO in log:FROM:TO, got log:3:1."),
        ("lr", "log:0:1", "--lr expected 0 < FROM < TO in log:FROM:TO, got log:0:1."),
        ("lr", "log:1", "--lr expected log:FROM:TO, got log:1."),
        ("game", "log:1:2", "--game takes no range: its values are not numbers."),
        ("batch_size", "log:1.2:1.8", "draws whole numbers: log:1.2:1.8 holds no two of them."),
    ],
)
def test_axis_that_cannot_be_is_one_clear_line(name: str, words: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_axis(ATARI, name, words.split())


def test_grid_refuses_a_range() -> None:
    with pytest.raises(ValueError, match="draw from the range with --search random or optuna"):
        grid_points(axes_of(ATARI, lr="log:1e-5:1e-3"))


def test_values_have_the_type_of_their_setting() -> None:
    axes = axes_of(MNIST, epochs="2", lr="1", data_dir="none x", verify="false", aux_copies="none")
    assert axes == {
        "epochs": (2,), "lr": (1.0,), "data_dir": (None, Path("x")), "verify": (False,),
        "aux_copies": (None,),
    }  # fmt: skip


# Resources and time


def test_trials_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 3, "memory": 4e9}, {"CPU": 3, "memory": 4e9}]
    assert count_fitting([{"CPU": 2}], nodes, 9) == 2  # 6 CPUs, but no node has room for a second
    assert count_fitting([{"CPU": 1}], nodes, 9) == 6
    assert count_fitting([{"CPU": 1}], nodes, 4) == 4
    assert count_fitting([{"CPU": 1, "memory": 3e9}], nodes, 9) == 2
    assert count_fitting([{"CPU": 1}, {"CPU": 1.0}], nodes, 9) == 3
    assert count_fitting([{"CPU": 1, "GPU": 1}], nodes, 9) == 0


def test_estimate_takes_earlier_runs_that_are_alike_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "mnist"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"settings": {"dataset": "digits"}}))
    row = {"trial": "x", "protocol": "paper", "aux_task": "rotation", "seconds": 30.0}
    lines = [row | {"epoch": i, "seconds": s} for i, s in ((1, 20.0), (2, 30.0), (3, 900.0))]
    lines.append({**row, "trial": "y", "epoch": 1, "aux_task": "none", "seconds": 7.0})
    (run / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trial = Trial("a", MnistTrial(dataset="digits", epochs=10), 0)
    found = estimate(MNIST, [trial, trial], [0, 6], 1, tmp_path)
    assert found.seconds == 30 * 10 + 30 * 4
    assert found.sources == [
        f"30 s for 1 epoch, with it: median of 3 rows of earlier runs in {tmp_path}"
    ]
    assert estimate(MNIST, [trial, trial], [0, 6], 2, tmp_path).seconds == 300  # the longest
    (elsewhere,) = estimate(MNIST, [trial], [0], 1, tmp_path / "none").sources
    assert elsewhere.endswith("MNIST in RESULTS.md, one core of an AMD EPYC (Zen 4)")


def test_estimate_counts_the_games_of_evaluations() -> None:
    plain = AtariRun(aux_task="none", steps=60_000)
    evaluated = replace(plain, evaluate_every=30_000, evaluation_games=100)
    (train, _), (both, source) = ATARI.typical_seconds(plain), ATARI.typical_seconds(evaluated)
    assert (both - train) * 60_000 == pytest.approx(2 * 100 * 5.6)
    assert "evaluations at 5.6 s a game" in source
    saved = {"game": "pong", "aux_task": "none"}  # as of a log before there were evaluations
    assert ATARI.alike(saved, plain)
    assert not ATARI.alike(saved, evaluated)


def test_estimate_with_a_gpu_is_of_the_recorded_runs_and_takes_turns_beyond_them(
    tmp_path: Path,
) -> None:
    plain = AtariRun(aux_task="none", steps=200_000)
    trials = [Trial(f"s{i}", replace(plain, seed=i), 0) for i in range(36)]
    found = estimate(ATARI, trials[:18], [0] * 18, 18, tmp_path, gpus=0.02)
    assert found.seconds == pytest.approx(200_000 * 0.00145)  # all of them at once
    assert "results/paper-gpu-first, 18 trainings" in found.sources[0]
    for gpus, seconds in ((0.02, 2 * 290), (1 / 18, 290)):  # 36 on one GPU, on two
        found = estimate(ATARI, trials, [0] * 36, 36, tmp_path, gpus=gpus)
        assert found.seconds == pytest.approx(seconds)
    head = replace(plain, aux_task="rotation")
    assert ATARI.typical_gpu_seconds(head, 18)[0] == pytest.approx(0.0019)


def test_gpu_seconds_are_the_medians_of_the_recorded_runs() -> None:
    each: dict[str, list[float]] = {"none": [], "head": []}
    for folder in (DOCS.parent.parent / "results" / "paper-gpu-first").glob("strict-*"):
        last = read_run(folder).iloc[-1]
        kind = "none" if "-none-" in folder.name else "head"
        each[kind].append(last["wall_s"] / last["env_steps"])
    assert sum(map(len, each.values())) == GPU_TRAININGS
    for kind, seconds in each.items():
        assert np.median(seconds) == pytest.approx(GPU_SECONDS[kind], rel=0.02)


def test_estimate_for_a_gpu_passes_over_earlier_runs_of_machines_without_one(
    tmp_path: Path,
) -> None:
    for name, gpu in (("cpu", None), ("gpu", "NVIDIA H100")):
        (tmp_path / name).mkdir()
        saved = {"settings": {"game": "pong", "aux_task": "none"}, "gpu": gpu}
        (tmp_path / name / "settings.json").write_text(json.dumps(saved))
        wall = 100 if gpu else 900
        (tmp_path / name / "progress.csv").write_text(f"env_steps,wall_s\n1000,{wall}\n")
    trial = Trial("a", AtariRun(aux_task="none", steps=1_000), 0)
    assert estimate(ATARI, [trial], [0], 1, tmp_path, gpus=0.5).seconds == 100
    assert estimate(ATARI, [trial], [0], 1, tmp_path).seconds == 500  # the median of both


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8, "8 seconds"), (89, "89 seconds"), (91, "1.5 minutes"), (1000, "17 minutes"),
     (7200, "2 hours"), (200_000, "2.3 days")],
)  # fmt: skip
def test_durations_have_two_figures_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# The end


def test_sweep_says_where_the_time_of_each_trial_went(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, ATARI)
    trials = [Trial(name, AtariRun(seed=i), i) for i, name in enumerate(("a", "b"))]
    folder.add(trials, {})
    folder.of("a").mkdir()
    (folder.of("a") / "progress.csv").write_text(
        "env_steps,env_steps_per_s,time_learning,time_sampling\n1000,10,0.5,0.5\n2000,100,1,0\n"
    )
    assert sweep.time_table(folder) == [
        {"trial": "a", "learning": "54.5%", "sampling": "45.5%"}  # 60 and 50 of 110 seconds
    ]
    assert sweep.time_table(SweepFolder(tmp_path / "images", MNIST)) == []


# The folder


def epoch(trial: Trial, number: int, accuracy: float) -> str:
    row = {"trial": trial.name, "epoch": number, "test_accuracy": accuracy, "selected_epoch": 1}
    return json.dumps(row) + "\n"


def make_folder(path: Path, weights: str = "1 3", epochs: int = 2) -> SweepFolder:
    axes = axes_of(MNIST, aux_weight=weights)
    base = MnistTrial(dataset="digits", epochs=epochs)
    points = [*baselines(MNIST, base, axes), *grid_points(axes)]
    folder = SweepFolder(path, MNIST)
    folder.add(trials_of_points(MNIST, base, axes, points, range(1)), axes)
    return folder


def test_table_tells_what_the_trials_folders_tell(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    plain, one, three = folder.trials
    for trial in folder.trials[:2]:
        folder.of(trial.name).mkdir()
        folder.start(trial.name)
        log = epoch(trial, 1, 0.75) + epoch(trial, 2, 0.5)
        (folder.of(trial.name) / "epochs.jsonl").write_text(log)
    folder.report(plain.name, 3.0)
    folder.end(plain.name, FINISHED)
    folder.report(one.name, 4.0)
    folder.end(three.name, FAILED, "Traceback\n  line\nFloatingPointError: nan\n")

    folder.retry(one.name)

    again = SweepFolder(tmp_path, MNIST)  # as after a kill
    again.add(folder.trials, axes_of(MNIST, aux_weight="1 3"))
    assert [row["status"] for row in again.rows()] == [FINISHED, RUNNING, FAILED]
    assert [again.is_over(trial) for trial in again.trials] == [True, False, True]
    first, second, third = again.rows()
    figures = ("done", "planned", "final", "best", "reported", "attempts")
    assert [first[k] for k in figures] == [2, 2, 0.5, 0.75, 0.75, 1]
    assert [second[k] for k in figures] == [2, 2, 0.5, 0.75, 0.75, 2]
    assert (first["wall_s"], third["error"]) == (3.0, "FloatingPointError: nan")
    assert (again.of(three.name) / "error.txt").read_text().startswith("Traceback")
    assert again.result_of(one) == 0.5


def test_trials_that_report_in_turn_all_show_in_the_table_and_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path, weights="1", epochs=20)
    made = {"command": "sweep.py", "commit": "abc", "started": "2026"}
    log = SweepLog(folder, made, {}, None, ())
    place = Place(cpus=1, gpus=0.0, nodes=[{"CPU": 2.0}], at_once=2, limited=True)
    trials = [
        SimpleNamespace(config=trial_config(folder, trial, place, ())[0]) for trial in folder.trials
    ]
    for trial in trials:
        log.on_trial_start(0, [], trial)
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    for number in range(1, 9):
        for trial in trials:  # one right after the other, every 12 seconds
            result = {"epoch": number, "selected_epoch": number, "loss": 1.0, "seconds": 12.0}
            log.on_trial_result(number, [], trial, result | {"test_accuracy": 0.5})
            clock += 0.5
        clock += 11
    first, second = pd.read_csv(tmp_path / "trials.csv")["done"]
    assert first == 8
    assert second >= 7  # its last one came too soon after a table
    lines = capsys.readouterr().out
    plain, rotation = names(folder.trials)
    assert lines.count(f"[0/2] {plain}: ") == lines.count(f"[0/2] {rotation}: ") == 2


def test_table_reads_back_with_the_documented_columns_and_types(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.write_table()
    table = pd.read_csv(tmp_path / "trials.csv")
    documented = re.findall(r"^\| (`[a-z_`, ]+`) \|", DOCS.read_text(), re.M)
    columns = [c for cell in documented for c in re.findall("`([a-z_]+)`", cell)]
    assert list(table.columns) == columns[: len(table.columns)]
    assert table["aux_weight"].tolist() == [0.0, 1.0, 3.0]
    assert table["aux_task"].tolist() == ["none", "rotation", "rotation"]
    assert set(table["status"]) == {WAITING}
    assert table["error"].isna().all()


def test_three_lines_of_the_documentation_read_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "results" / "local" / "mnist-sweep")
    plain = folder.trials[0]
    folder.start(plain.name)
    (folder.of(plain.name)).mkdir(exist_ok=True)
    (folder.of(plain.name) / "epochs.jsonl").write_text(epoch(plain, 1, 0.25) + epoch(plain, 2, 1))
    folder.end(plain.name, FINISHED)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"<!-- pandas -->\n```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len([line for line in code.splitlines() if line]) == 3
    exec(code, {})
    assert re.search(r"none +0\.0 +0\.25 +NaN +1", capsys.readouterr().out)


def test_sweep_json_gives_the_trials_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.write_sweep({"settings": {}}, axes_of(MNIST, aux_weight="1 3", lr="log:0.1:1"))
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert read_trials(MNIST, saved) == folder.trials
    assert saved["axes"] == {"aux_weight": [1.0, 3.0], "lr": {"log": [0.1, 1.0]}}
    assert (saved["version"], saved["job"], saved["unit"]) == (1, "mnist", "epoch")


@pytest.mark.parametrize("table", ["a;b\n1;2\n", "a,b\n1,2\n", "\ufefftrial,wall_s\na,soon\n"])
@pytest.mark.parametrize("status", ["[]", '{"status": "finished", "wall_s": null}', "{"])
def test_damaged_table_or_status_costs_only_what_stood_in_it(
    table: str, status: str, tmp_path: Path
) -> None:
    trial = Trial("a", MnistTrial(epochs=2), 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "epochs.jsonl").write_text(epoch(trial, 1, 0.75))
    (tmp_path / "a" / "status.json").write_text(status)
    (tmp_path / "trials.csv").write_text(table, encoding="utf-8")
    folder = SweepFolder(tmp_path, MNIST)
    folder.add([trial], {})
    row = folder.row("a")
    assert (row["done"], row["final"], row["wall_s"], row["attempts"]) == (1, 0.75, 0, 0)
    assert row["status"] == (FINISHED if "finished" in status else WAITING)


def test_optuna_ends_where_it_proposes_nothing_new(tmp_path: Path) -> None:
    axes = axes_of(MNIST, aux_weight="0.5 1")
    base = MnistTrial(dataset="digits", epochs=1)
    folder = SweepFolder(tmp_path, MNIST)
    draws = OptunaDraws(folder, base, axes, [0], samples=9, seed=0, first_group=0)
    for _ in range(2):
        folder.add(draws.draw(), axes)
    assert not draws.exhausted
    assert draws.draw() == []
    assert draws.exhausted


def test_two_trials_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with pytest.raises(ValueError, match="Two trials have the name w0-s0"):
        folder.add(folder.trials[:1], {})


def test_hparams_are_found_by_tensorboards_own_reader(tmp_path: Path) -> None:
    row = {"trial": "w1-s0", "status": "finished", "seed": 3, "aux_task": "rotation",
           "aux_weight": 0.5, "lr": None, "done": 7, "final": 0.5, "best": 0.75,
           "reported": None}  # fmt: skip
    write_hparams(tmp_path, row)
    events = EventAccumulator(str(tmp_path)).Reload()
    data = events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    found = parse_session_start_info_plugin_data(data).hparams
    assert {k: v.number_value or v.string_value for k, v in found.items()} == {
        "seed": 3, "aux_task": "rotation", "aux_weight": 0.5,
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("trial/best")] == [(7, 0.75)]


# Searching and stopping


def test_queue_hands_out_what_waits_then_what_is_drawn_then_ends() -> None:
    drawn = [[{"trial": "c"}], []]
    queue = TrialQueue([{"trial": "a"}, {"trial": "b"}], lambda: drawn.pop(0), 2, "max")
    assert [queue.suggest(i) for i in "12"] == [{"trial": "a"}, {"trial": "b"}]
    assert queue.suggest("3") is None  # two are under way
    queue.on_trial_complete("1")
    assert queue.suggest("3") == {"trial": "c"}
    queue.on_trial_complete("2")
    assert queue.suggest("4") == TrialQueue.FINISHED


def test_queue_ends_when_a_stop_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopAtSteps, "asked", True)
    assert TrialQueue([{"trial": "a"}], None, None, "max").suggest("1") == TrialQueue.FINISHED


def test_one_trial_waits_beyond_the_room_and_only_when_all_have_reported() -> None:
    queue = TrialQueue([{"trial": str(i)} for i in range(5)], None, None, "max", room=2)
    assert [queue.suggest(str(i)) for i in range(3)] == [{"trial": "0"}, {"trial": "1"}, None]
    queue.on_trial_result("0", {})
    assert queue.suggest("2") is None, "trial 1 has not started"
    queue.on_trial_result("1", {})
    assert queue.suggest("2") == {"trial": "2"}, "for a node that joins"
    assert queue.suggest("3") is None
    queue.on_trial_complete("0")
    queue.on_trial_result("2", {})
    assert queue.suggest("3") == {"trial": "3"}


def test_as_many_trials_start_side_by_side_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PENDING, raising=False)
    with starting_together(12):
        assert os.environ[PENDING] == "12"
    assert PENDING not in os.environ
    monkeypatch.setenv(PENDING, "3")
    with starting_together(12):
        assert os.environ[PENDING] == "3", "what the user says holds"
    assert os.environ[PENDING] == "3"


def test_asha_knows_the_results_of_earlier_starts_and_spares_the_baseline(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "1 2 3 4", epochs=9)
    plain, *others = folder.trials
    for trial, accuracy in zip(others[:3], (0.9, 0.8, 0.7), strict=True):
        folder.of(trial.name).mkdir()
        (folder.of(trial.name) / "epochs.jsonl").write_text(epoch(trial, 1, accuracy))

    def result_of(scheduler: AshaFromLogs, trial: Trial, accuracy: float) -> str:
        config = {"trial": trial.name, "aux_task": trial.settings.aux_task}
        known: Any = SimpleNamespace(trial_id=f"new {trial.name}", config=config)
        scheduler.on_trial_add(None, known)
        return scheduler.on_trial_result(None, known, {"epoch": 1, "objective": accuracy})

    fresh = AshaFromLogs(folder, [plain, others[3]], 9)
    assert result_of(fresh, others[3], 0.85) == "CONTINUE"  # among the best third of four
    fresh = AshaFromLogs(folder, [plain, others[3]], 9)
    assert result_of(fresh, others[3], 0.75) == "STOP"
    fresh = AshaFromLogs(folder, [plain, others[3]], 9)
    assert result_of(fresh, plain, 0.1) == "CONTINUE"
    resumed = AshaFromLogs(folder, [others[0], others[3]], 9)  # the best one was under way
    assert result_of(resumed, others[3], 0.85) == "CONTINUE"
    assert result_of(resumed, others[0], 0.9) == "CONTINUE"


def test_adapted_settings_are_the_last_ones_noted(tmp_path: Path) -> None:
    assert adapted(tmp_path) == {}
    noted = [{"done": 1, "lr": 0.5}, {"done": 2, "lr": 0.25}]
    (tmp_path / "settings.json").write_text(json.dumps({"adapted": noted}))
    assert adapted(tmp_path) == {"lr": 0.25}


def test_optuna_goes_on_with_the_draws_and_answers_of_earlier_starts(tmp_path: Path) -> None:
    axes = axes_of(MNIST, aux_weight="log:0.1:10")
    base = MnistTrial(dataset="digits", epochs=1)

    def start(folder: SweepFolder) -> OptunaDraws:
        return OptunaDraws(folder, base, axes, range(2), samples=3, seed=0, first_group=0)

    def run(folder: SweepFolder, trials: list[Trial], accuracy: float) -> None:
        folder.add(trials, axes)
        for trial in trials:
            folder.of(trial.name).mkdir()
            (folder.of(trial.name) / "epochs.jsonl").write_text(epoch(trial, 1, accuracy))
            folder.end(trial.name, FINISHED)

    folder = SweepFolder(tmp_path, MNIST)
    draws = start(folder)
    first = draws.draw()
    assert [(t.group, t.settings.seed) for t in first] == [(0, 0), (0, 1)]
    run(folder, first, 0.5)
    draws.tell(0)
    second = draws.draw()
    folder.add(second, axes)  # killed before its trials end

    again = SweepFolder(tmp_path, MNIST)
    again.add([*first, *second], axes)
    draws = start(again)
    (told,) = draws.finished()
    assert told.value == 0.5
    assert told.params == {"aux_weight": pytest.approx(first[0].settings.aux_weight, rel=1e-3)}
    third = draws.draw()
    assert {t.group for t in third} == {2}
    weights = {t.settings.aux_weight for t in [*first, *second, *third]}
    assert len(weights) == 3
    again.add(third, axes)
    for trial in second:
        again.of(trial.name).mkdir()
        (again.of(trial.name) / "epochs.jsonl").write_text(epoch(trial, 1, 0.75))
        again.end(trial.name, FINISHED)
    draws.tell(1)
    assert [trial.value for trial in draws.finished()] == [0.5, 0.75]
    assert draws.draw() == []  # three samples, no more
