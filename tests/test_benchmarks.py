"""Each benchmark's main, with tiny numbers: the shape of what it saves, never how fast it was."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    bare_limit,
    hot_loop,
    maps,
    measure,
    parts,
    replay,
    scaling,
    throughput,
    update_cost,
)
from benchmarks.measure import Meter, Turn
from rayssl import cli
from rayssl.tasks import available_pretext_tasks, available_tasks


@pytest.fixture(autouse=True)
def keep_torch_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def saved_rows(path: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(path.read_text())
    assert isinstance(rows, list)
    for row in rows:
        assert {"command", "commit", "started", "versions", "machine"} <= row["run"].keys()
        assert {"cpu", "cores"} <= row["run"]["machine"].keys()
    return {row["name"]: row for row in rows}


def assert_spread(figure: dict[str, float]) -> None:
    assert list(figure) == ["min", "median", "max"]
    assert figure["min"] <= figure["median"] <= figure["max"]


def test_spread_is_smallest_median_largest() -> None:
    assert measure.spread([3.0, 1.0, 8.0, 2.0]) == {"min": 1.0, "median": 2.5, "max": 8.0}


def test_meter_counts_from_the_warm_up_to_the_first_look_after_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 100.0, 105.0, 112.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    meter = Meter(Turn(seconds=10.0, warm_updates=2))
    assert meter.goes_on(500, 1)  # compiling, for 100 s
    assert meter.goes_on(1_000, 2, 2)
    assert meter.goes_on(1_005, 3, 3)
    assert not meter.goes_on(1_024, 8, 5)
    figures = meter.figures(7.5, 10)
    assert figures == (24 / 12, 6 / 12, 3 / 12, 12.0, 7.5, 10)


def test_turn_about_gives_every_part_its_turn_before_any_gets_a_second() -> None:
    tape: list[str] = []

    def part(name: str) -> float:
        tape.append(name)
        return float(len(tape))

    figures = measure.turn_about({n: partial(part, n) for n in "abc"}, repeats=2)
    assert "".join(tape) == "abcabc"
    assert figures == {"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, 6.0]}


@pytest.mark.slow
@pytest.mark.long
def test_throughput_saves_spreads_ratios_and_settings_of_each_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "throughput.json"
    words = "--only bare-limit,plain-loop --seconds 0.5 --repeats 1 --threads 1 --no-compile"
    throughput.main(
        [*words.split(), "--fill-steps", "64", "--warm-updates", "1", "--json", str(path)]
    )
    rows = saved_rows(path)
    assert list(rows) == ["bare-limit", "plain-loop"]
    for name, row in rows.items():
        for key in ("env_steps_per_s", "updates_per_s", "peak_rss_mib"):
            assert_spread(row[key])
            assert row[key]["min"] > 0
        assert row["settings"] == throughput.ROWS[name].settings
        assert {"torch", "ray", "stable-baselines3", "ale-py"} <= row["run"]["versions"].keys()
    assert rows["bare-limit"]["parameters"] == rows["plain-loop"]["parameters"]
    assert rows["bare-limit"]["bytes_per_transition"] is None
    assert rows["plain-loop"]["bytes_per_transition"]["median"] == 4 * 84 * 84 + 8 + 4 + 4 + 1
    ratio = rows["bare-limit"]["ratio_to"]["plain-loop"]
    assert ratio == pytest.approx(1 / rows["plain-loop"]["ratio_to"]["bare-limit"])


def test_arithmetic_of_a_td_update_is_three_passes_forward_and_one_back() -> None:
    convolutions = 20**2 * 32 * 8 * 8 * 4, 9**2 * 64 * 4 * 4 * 32, 7**2 * 64 * 3 * 3 * 64
    dense = 7 * 7 * 64 * 512 + 512 * (4 + 1)
    forward = sum(convolutions) + dense  # multiply-adds of one state
    backward = 2 * forward - convolutions[0]  # nothing is learned about pixels
    limit = bare_limit.arithmetic(threads=1)
    assert limit["gflop_per_update"] == pytest.approx(2 * 32 * (3 * forward + backward) / 1e9)
    assert limit["env_steps_per_s"] == pytest.approx(
        4 * limit["gflop_per_s"] / limit["gflop_per_update"]
    )
    assert limit["dtype"] in ("float32", "bfloat16")


@pytest.mark.slow
def test_bare_limit_is_compiled_and_learns_as_it_does_uncompiled() -> None:
    rng = np.random.default_rng(0)
    draw = bare_limit.batches(rng.integers(0, 256, (64, 84, 84, 4), np.uint8), 4, rng)
    batches = [draw() for _ in range(3)]
    agents = []
    for compile_it in (True, False):
        torch.manual_seed(0)
        agent = bare_limit.Agent(num_actions=4, compile_it=compile_it)
        for batch in batches:
            agent.update(batch)
        agents.append(agent)
    fast, plain = agents
    assert fast.compiled
    assert not plain.compiled
    for name, weights in plain.net.named_parameters():
        torch.testing.assert_close(
            dict(fast.net.named_parameters())[name], weights, rtol=0, atol=2 * 3 * 2e-4
        )


@pytest.mark.parametrize(
    "measure_it",
    [
        lambda: bare_limit.measure(Turn(0.1, fill_steps=64, warm_updates=1, compile=True)),
        lambda: update_cost.main(
            ["--updates=1", "--repeats=1", "--batch-size=2", "--tasks", "rotation"]
        ),
    ],
    ids=["bare_limit", "update_cost"],
)
def test_a_benchmark_refuses_to_measure_updates_that_did_not_compile(
    measure_it: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_compiler(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", no_compiler)
    with pytest.raises(SystemExit, match="2"):
        measure_it()
    assert "Expected updates that are compiled, and they are not" in capsys.readouterr().err


def test_throughput_names_the_line_that_installs_a_missing_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "find_spec", lambda name: None)
    path = tmp_path / "throughput.json"
    throughput.main(["--only", "sb3", "--json", str(path)])
    row = saved_rows(path)["sb3"]
    text = "stable_baselines3, cv2 is not installed: pip install -e '.[bench]'"
    assert row["skipped"] == text
    assert "env_steps_per_s" not in row
    assert text in capsys.readouterr().err


def test_throughput_goes_on_after_a_row_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = dict.fromkeys(throughput.MEASURED, 2.0)

    def measured(name: str, turn: Turn) -> dict[str, Any]:
        if name == "rllib-dqn":
            raise RuntimeError("KeyError: 'obs'")
        return figures

    monkeypatch.setattr(throughput, "measure_in_child", measured)
    path = tmp_path / "throughput.json"
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--only", "rllib-dqn,rayssl-none", "--json", str(path)])
    assert stop.value.code == 1
    rows = saved_rows(path)
    assert rows["rllib-dqn"]["failed"] == "KeyError: 'obs'"
    assert rows["rayssl-none"]["env_steps_per_s"]["median"] == 2.0


def test_throughput_prints_the_ratio_of_every_row_to_each_other_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"sb3": 60.0, "rllib-dqn": 24.0}

    def measured(name: str, turn: Turn) -> dict[str, Any]:
        return dict.fromkeys(throughput.MEASURED, 6.0) | {"env_steps_per_s": speeds[name]}

    monkeypatch.setattr(throughput, "measure_in_child", measured)
    monkeypatch.setattr(throughput, "missing", lambda row: None)
    rows = throughput.main(["--only", "sb3,rllib-dqn", "--repeats", "1"])
    out = capsys.readouterr().out
    assert rows[0]["steps_per_update"] == {"min": 10.0, "median": 10.0, "max": 10.0}
    table = [line.split() for line in out.splitlines() if line.startswith("| sb3")]
    assert table[1] == ["|", "sb3", "|", "1", "|", "2.5", "|"]
    assert cli.cpu_name() in out
    assert f"torch {torch.__version__}" in out


def test_throughput_refuses_an_unknown_row(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--only", "sb4"])
    assert stop.value.code == 2
    assert "Unknown row 'sb4'. Available: rayssl-none, " in capsys.readouterr().err


def test_error_line_is_the_last_that_names_an_error() -> None:
    text = "Traceback:\n  File x\nray.exceptions.RayError: gone\n\n(raylet) bye\n"
    assert throughput.error_line(text) == "ray.exceptions.RayError: gone"
    assert throughput.error_line("Killed\n") == "Killed"
    assert throughput.error_line("") == ""


def test_update_cost_saves_times_and_ratios_to_a_td_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_cost, "UPDATES_A_CALL", 2)
    path = tmp_path / "update_cost.json"
    words = "--updates 2 --repeats 2 --threads 1 --batch-size 4 --no-compile --json"
    update_cost.main([*words.split(), str(path)])
    rows = saved_rows(path)
    parts = [part for task in available_tasks() for part in (f"td+{task} 1:1", f"aux {task}")]
    assert list(rows) == ["td", *parts]
    assert {name for name, row in rows.items() if row["claim"] == "<= 0.65"} == {
        f"aux {task}" for task in available_pretext_tasks()
    }
    for row in rows.values():
        assert_spread(row["ms"])
        assert_spread(row["ratio_to_td"])
    assert rows["td"]["ratio_to_td"] == {"min": 1.0, "median": 1.0, "max": 1.0}


def test_replay_saves_times_and_bytes_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "replay.json"
    replay.main(["--samples", "20", "--repeats", "2", "--capacity", "1200", "--json", str(path)])
    rows = saved_rows(path)
    assert list(rows) == ["uniform", "prioritized"]
    for row in rows.values():
        for key in ("sample_ms", "add_us_per_step", "bytes_per_transition"):
            assert_spread(row[key])
    assert "update_priorities_ms" in rows["prioritized"]
    assert rows["uniform"]["bytes_per_transition"]["median"] == 84 * 84 + 6


def test_parts_derive_the_number_of_workers_that_the_learner_can_serve() -> None:
    figures: dict[str, list[Any]] = {
        "runner": [400.0, 500.0],  # steps/s
        "updates none": [50.0, 250.0],
        "updates none, 1 thread": [40.0, 40.0],
        "intake": [(4000.0, 30.0), (4000.0, 30.0)],
    }
    rows = {row["name"]: row["figure"] for row in parts.table_rows(figures)}
    assert rows["runner"]["max"] == 2_000.0  # frames
    assert rows["learner's limit, task none"] == {"min": 0.5, "median": 1.25, "max": 2.0}
    assert rows["updates, task none, 1 thread"]["median"] == 40.0
    assert rows["intake's limit"] == {"min": 8.0, "median": 9.0, "max": 10.0}
    assert rows["intake, CPU"]["median"] == 30.0


@pytest.mark.long
def test_parts_saves_every_part(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_UPDATES_A_CALL", 2)
    monkeypatch.setattr(parts, "ROWS_BEFORE_UPDATES", 256)
    path = tmp_path / "parts.json"
    words = "--seconds 0.2 --repeats 1 --runners 1 --workers 0 1 --threads 1 --no-compile --json"
    parts.main([*words.split(), str(path)])
    rows = saved_rows(path)
    assert {"runner", "intake", "weights, push", "weights, set"} <= rows.keys()
    assert {"whole training, 0 workers", "whole training, 1 workers"} <= rows.keys()
    for row in rows.values():
        assert_spread(row["figure"])
        assert row["unit"]


# 500 steps/s a runner, 200 steps/s of updates on 2 cores, 0.001 s of intake a step:
# a step costs 0.002 + 0.01 + 0.001 = 0.013 core seconds.
PARTS = scaling.Parts(runner=500, learners={2: 200}, intake=4_000, intake_cost=0.001)


@pytest.mark.parametrize(
    ("cores", "workers", "steps_per_s", "limit"),
    [
        (1, 1, 1 / 0.013, "cores"),
        (1, 0, 1 / 0.013, "cores"),  # the games cost the same in the learner's process
        (16, 16, 200, "learner"),
    ],
)
def test_prediction_is_the_least_that_cores_and_parts_allow(
    cores: int, workers: int, steps_per_s: float, limit: str
) -> None:
    predicted, part = scaling.predict(PARTS, cores, workers)
    assert predicted == pytest.approx(steps_per_s)
    assert part == limit


def test_a_faster_learner_makes_runners_and_then_the_intake_the_limit() -> None:
    fast = PARTS._replace(learners={0: 10_000})
    assert scaling.predict(fast, 64, 3) == (1_500, "runners")
    assert scaling.predict(fast, 64, 60) == (4_000, "intake")


def test_learner_has_the_threads_that_workers_leave_it() -> None:
    both = PARTS._replace(learners={2: 200, 1: 160})
    # With a worker on one of two cores a step costs 0.002 + 1 / 160 + 0.001 core seconds.
    for cores, workers, steps_per_s, limit in (
        (2, 1, 160, "learner"), (1, 1, 1 / 0.00925, "cores"), (2, 0, 2 / 0.013, "cores"),
        (16, 14, 200, "learner"),
    ):  # fmt: skip
        predicted, part = scaling.predict(both, cores, workers)
        assert predicted == pytest.approx(steps_per_s)
        assert part == limit


def test_page_says_so_if_trainings_are_faster_than_the_parts_allow() -> None:
    fair, fast = ({"measured / predicted": ratio} for ratio in (0.9, 1.37))
    assert scaling.verdict([fair]) == "Measured trainings have 0.90 to 0.90 of the prediction."
    assert "slowed the parts" in scaling.verdict([fair, fast])


def test_scaling_writes_measured_points_beside_predictions(tmp_path: Path) -> None:
    figures: dict[str, list[Any]] = {
        "runner": [500.0], "intake": [(4_000.0, 1_000.0)], "updates none": [50.0],
        "point 1": [60.0],
    }  # fmt: skip
    run = measure.run_facts(parts.Settings()) | {"threads": 2}
    run["machine"]["usable_cores"] = 1
    rows = [row | {"run": run} for row in parts.table_rows(figures)]
    names = ("parts.json", "update_cost_gpu.json", "page.md")
    path, gpu, out = (tmp_path / name for name in names)
    path.write_text(json.dumps(rows))
    words = ["--parts", str(path), "--out", str(out)]
    text = scaling.main(words)
    assert out.read_text() == text
    assert "| 1       | 60                   | 76.9      | 0.78 " in text  # 60 * 0.013
    assert "if a GPU made 1,000 updates/s: not measured" in text
    made = run | {"gpu": "A GPU", "settings": {"batch_size": 32}}
    td = {"name": "td", "updates_per_s": {"median": 250.0}, "run": made}
    gpu.write_text(json.dumps([td]))
    text = scaling.main(words)
    assert "250 updates/s of batches at hand, measured: a ceiling" in text
    assert "(A GPU, commit" in text
    path.write_text(json.dumps(rows[:1]))
    with pytest.raises(SystemExit):
        scaling.main(words)
    assert out.read_text() == text, "a bad file must not replace the page"


@pytest.mark.parametrize(
    ("gpu", "text"),
    [
        (None, "is missing. Measure it on a GPU"),
        (256, "has batches of 256, expected 32, as the parts have."),
    ],
)
def test_scaling_refuses_a_file_of_a_gpu_that_does_not_fit(
    gpu: int | None, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.json"
    run = {"settings": {"batch_size": gpu}, "gpu": "A GPU", "commit": "abc"}
    td = {"name": "td", "updates_per_s": {"median": 250.0}, "run": run}
    if gpu:
        path.write_text(json.dumps([td]))
    with pytest.raises((FileNotFoundError, ValueError), match=text):
        scaling.read_gpu(path)


def test_maps_saves_maps_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        maps,
        "subjects",
        lambda device: {"a sum": (lambda x: x.flatten(1).sum(1), torch.ones(1, 3))},
    )
    path = tmp_path / "maps.json"
    maps.main(["--maps", "1", "--samples", "2", "--repeats", "2", "--json", str(path)])
    rows = saved_rows(path)
    assert_spread(rows["a sum"]["maps_per_s"])
    assert rows["a sum"]["claim"] is None


@pytest.mark.parametrize(
    ("main", "words", "text"),
    [
        (maps.main, "--samples 0", "--samples must be more than 0, got 0."),
        (maps.main, "--maps -1", "--maps must be more than 0, got -1."),
        (maps.main, "--json /proc/nope/x.json", "Cannot write /proc/nope/x.json: No such file"),
        (throughput.main, "--repeats 0", "--repeats must be more than 0, got 0."),
        (throughput.main, "--warm-updates -1", "--warm-updates must be 0 or more, got -1."),
        (parts.main, "--workers 0 -1", "--workers must be 0 or more, got -1."),
        (replay.main, "--samples 0", "--samples must be more than 0, got 0."),
        (replay.main, "--capacity 8", "capacity"),
        (update_cost.main, "--tasks nope", "Unknown task 'nope'. Available: atc"),
        (update_cost.main, "--game nope", "Unknown Atari game 'nope'."),
    ],
)
def test_wrong_value_of_a_benchmark_is_one_line(
    main: Callable[[list[str]], Any], words: str, text: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(update_cost, "UPDATES_A_CALL", 2)
    monkeypatch.setattr(
        maps,
        "subjects",
        lambda device: {"a sum": (lambda x: x.flatten(1).sum(1), torch.ones(1, 3))},
    )
    with pytest.raises(SystemExit) as stopped:
        main(["--repeats", "1", *words.split()])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert text in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_maps_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        maps.main(["--device", "cuda"])
    assert "--device cuda needs a GPU" in capsys.readouterr().err


def test_hot_loop_counts_a_function_once_a_stack_and_leaves_compiling_out() -> None:
    lines = [
        "main (a.py:1);training_step (b.py:7);draw (r.py:3);draw (r.py:9) 6",
        "main (a.py:1);training_step (b.py:8);draw (r.py:3) 2",
        "main (a.py:1);training_step (b.py:8);convert (torch/_dynamo/convert_frame.py:3) 50",
        "main (a.py:1);sleep (a.py:5) 100",
    ]
    total, own, kept = hot_loop.shares(lines)
    assert kept == 8
    assert total == {"training_step (b.py)": 8, "draw (r.py)": 8}
    assert own == {"draw (r.py)": 8}


def test_scaling_without_parts_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        scaling.main(["--parts", str(tmp_path / "parts.json")])
    assert stop.value.code == 2
    assert "Measure it first: python benchmarks/parts.py --json" in capsys.readouterr().err


def test_hot_loop_of_a_folder_that_is_no_checkout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        hot_loop.main(["--checkout", str(tmp_path)])
    assert stop.value.code == 2
    assert f"expected a checkout of rayssl, got {tmp_path}" in capsys.readouterr().err
