"""Trains a dueling double DQN on an Atari game, with or without a self-supervised task.

    python experiments/atari.py --preset quick
    python experiments/atari.py --num-workers 16 --game breakout --aux-task rotation
    python experiments/atari.py --init-from results/local/pong-permutation-aux-only-s0
    python experiments/atari.py --resume results/local/pong-permutation-s0

Section IV-B of the paper. Ends with a table, a learning curve (PNG) and the path of a checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # RunLog writes the logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray leaves the token out; read on import

import ray
from ray import tune

from rayssl.cli import check_writable, parse_atari_run, provenance, refuse, remove_empty
from rayssl.envs.atari import AtariSettings, action_set, game_title, rom_id
from rayssl.evaluation import load_trunk
from rayssl.files import hold
from rayssl.jobs.atari import JOB, build_config, check_run
from rayssl.metrics import TABLE_IV
from rayssl.networks import as_sequence_task
from rayssl.presets import AtariRun
from rayssl.replay import check_memory
from rayssl.report import markdown_table, plot_learning_curves, read_run, time_shares
from rayssl.rllib.algorithm import AuxDQN
from rayssl.rllib.checkpoint import (
    MANIFEST,
    MODEL_SETTINGS,
    damage,
    hidden_code,
    newest_whole_checkpoint,
)
from rayssl.rllib.config import AuxDQNConfig
from rayssl.rllib.resources import (
    HEAD_NODE,
    check_runner_memory,
    fit_runner_cpus,
    free_resources,
    total_cpus,
)
from rayssl.rllib.run_log import LiveLine, RunLog
from rayssl.rllib.start import check_shared, ray_address, record_start, start_ray
from rayssl.rllib.stopping import StopAtSteps, stop_on_signals
from rayssl.tasks import make_tasks

logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # a page about API stacks at every start
UNFINISHED = 75  # exit code: run the same command with --resume to go on


def check_gpu(run: AtariRun) -> None:
    """Raises ValueError for options that need a GPU where none is asked for."""
    if run.replay_device == "learner" and not run.num_gpus:
        raise ValueError(
            "--replay-device learner keeps frames in a GPU's memory: pass --num-gpus 1, or leave "
            "it out."
        )


def go_on(run: AtariRun, folder: Path, config: AuxDQNConfig) -> int:
    """Lets the config start from the newest whole checkpoint; returns its agent steps, or 0."""
    checkpoint = newest_whole_checkpoint(folder)
    if checkpoint is None:
        # One without a manifest was never whole: the run was killed while it wrote its first.
        for manifest in sorted(folder.rglob(MANIFEST)):
            raise ValueError(
                f"{manifest.parent} cannot be used: {damage(manifest.parent)}. {folder} has no "
                "other checkpoint to go on from: start a new run with --name."
            )
        config.validate()  # `check_run` took the trunk of --init-from for the checkpoint's
        print(f"{folder} has no whole checkpoint: starting over", flush=True)
        return 0
    if code := hidden_code(checkpoint):
        raise ValueError(f"{checkpoint} is refused, as reading it would run code: {code}.")
    steps = int(json.loads((checkpoint / MODEL_SETTINGS).read_text())["env_steps"])
    if steps >= run.steps:
        raise ValueError(f"{folder} has {steps} steps already. Pass --steps above that to go on.")
    config.training(restore_from=str(checkpoint.resolve()))
    config.auxiliary(init_from=None)  # the checkpoint's trunk is further
    print(f"resuming {folder} at {steps:,} steps from {checkpoint.name}", flush=True)
    return steps


def trunk_taken(run: AtariRun) -> dict[str, Any]:
    """Returns what settings.json says of the trunk that a run starts from; {} if it is random."""
    if not run.init_from:
        return {}
    if run.resume:  # as it was recorded at the first start
        saved = json.loads((run.resume / "settings.json").read_text())
        return {"taken": saved["taken"]} if "taken" in saved else {}
    trunk = load_trunk(run.init_from, run.network, AtariSettings().stack, run.frame_size)
    names = [f"backbone.{name}" for name in trunk.weights]
    print(f"taken from {trunk.checkpoint}: {', '.join(names)}; heads start anew", flush=True)
    return {"taken": {"checkpoint": str(trunk.checkpoint), "parameters": names}}


def place(config: AuxDQNConfig, run: AtariRun, local: bool) -> str | None:
    """Sets CPUs, threads and nodes to what the cluster has; returns a line if workers share cores.

    On a cluster the runners spread over the nodes. The learner goes to the head if that has the
    CPUs and GPUs for it, so that a lost node takes runners along and never the run; else to where
    there is room.
    """
    nodes = free_resources()
    gpus = {"GPU": config.num_gpus_per_learner}
    learners = [{"CPU": 1, **gpus}] * run.num_learners
    main_gpus = {} if learners else gpus
    home = max(nodes, key=lambda node: node.get("CPU", 0), default={})
    head = next((node for node in nodes if HEAD_NODE in node), {})
    on_head = head.get("CPU", 0) >= max(1, run.learner_cpus or 1) and all(
        head.get(name, 0) >= amount for name, amount in main_gpus.items()
    )
    home = head if on_head else home
    rest = sum(node.get("CPU", 0) for node in nodes) - run.num_workers
    cpus = run.learner_cpus or int(max(1, min(8, home.get("CPU", 0), rest)))
    config.num_cpus_for_main_process = cpus
    # Two threads that share a core with runners wait for each other at every barrier.
    config.learner_threads = cpus
    if not local:
        config.placement_strategy = "SPREAD"
        config.custom_resources_for_main_process = {HEAD_NODE: 0.001} if on_head else {}
    fit = fit_runner_cpus(
        run.num_workers,
        main_bundle={"CPU": cpus} | main_gpus | config.custom_resources_for_main_process,
        learner_bundles=learners, nodes=nodes, total_cpus=total_cpus(),
        strategy=config.placement_strategy,
    )  # fmt: skip
    config.num_cpus_per_env_runner = fit.cpus_per_runner
    if local:
        check_runner_memory(run.num_workers)
        on_gpu = run.replay_device == "auto" and run.num_gpus and not run.num_learners
        if run.replay_device != "learner" and not on_gpu:
            check_memory(run.replay_capacity, (run.frame_size, run.frame_size), run.prioritized)
    return fit.message


def train(run: AtariRun, folder: Path, config: AuxDQNConfig, resumed_at: int) -> Any:
    """Runs the training as one Tune trial and returns Tune's result."""
    every = max(1, round(run.checkpoint_every / config.steps_per_iteration))
    stop_on_signals()
    tuner = tune.Tuner(
        AuxDQN,
        param_space=config,
        tune_config=tune.TuneConfig(
            trial_dirname_creator=lambda t: f"from-{resumed_at}-{t.trial_id}"
        ),
        run_config=tune.RunConfig(
            name=folder.resolve().name,
            storage_path=str(folder.resolve().parent),
            stop=StopAtSteps(run.steps),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=every, checkpoint_at_end=True, num_to_keep=2
            ),
            failure_config=tune.FailureConfig(
                max_failures=0 if ray_address(run.address) == "local" else 3
            ),
            callbacks=[RunLog(folder, resumed_at), LiveLine(run.steps)],
            verbose=0,
        ),
    )
    return tuner.fit()[0]


def summarise(run: AtariRun, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Prints the closing table, draws the curve, and returns the table's row."""
    rows = read_run(folder)
    last = rows.iloc[-1].to_dict()
    game = game_title(run.game)
    tasks = [as_sequence_task(task) for task in make_tasks(run.aux_task)]
    actions = len(action_set(run.game))
    chances = {task.chance(num_actions=actions, batch_size=run.batch_size) for task in tasks}
    reference = TABLE_IV["Random"].get(game)
    curve = plot_learning_curves(
        {run.aux_task: rows}, folder / "curve.png",
        chance=chances.pop() if len(chances) == 1 else None,
        random_score=reference if game == "Pong" else None,  # Breakout's counts lives
        title=f"{game}, {run.aux_task}, seed {run.seed}",
    )  # fmt: skip
    accuracies = {"aux accuracy": last.get("aux_accuracy")}
    if len(tasks) > 1:
        accuracies = {f"{t.name} accuracy": last.get(f"aux_accuracy/{t.name}") for t in tasks}
    row = {
        "game": game, "task": run.aux_task, "seed": run.seed, "steps": int(last["env_steps"]),
        "games": int(last["games"]), "score (mean of last 100 games)": last["score_mean_100"],
        **accuracies, "TD updates": int(last["td_updates"]),
        "aux updates": int(last["aux_updates"]), "steps/s": last["env_steps_per_s"],
        "minutes": last["wall_s"] / 60,
    }  # fmt: skip
    print("\n" + markdown_table([row]))
    parts = time_shares(rows).items()
    print("time: " + ", ".join(f"{part} {share:.1%}" for part, share in parts))
    print(f"curve: {curve}\nlogs: {folder} (tensorboard --logdir {folder / 'tb'})")
    print(f"checkpoint: {checkpoint or 'none'}", flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs one training from a command line and returns the closing table's row."""
    with contextlib.ExitStack() as held:
        return run_training(argv, held)


def run_training(argv: Sequence[str] | None, held: contextlib.ExitStack) -> dict[str, Any]:
    """Is `main`, which gives back what is `held` at the end."""
    made: list[Path] = []
    try:
        run = parse_atari_run(argv)
        only = "-aux-only" if run.schedule == "aux-only" else ""
        name = run.name or f"{rom_id(run.game)}-{run.aux_task}{only}-s{run.seed}"
        folder = run.resume.resolve() if run.resume else run.results_dir / name
        check_run(run)
        check_gpu(run)
        config = build_config(run)
        resumed_at = 0
        if run.resume:
            held.enter_context(hold(folder))
            resumed_at = go_on(run, folder, config)
        elif (folder / "settings.json").exists():
            raise FileExistsError(
                f"{folder} holds a run already. Go on with --resume {folder}, or choose --name."
            )
        made = check_writable(folder)
        if not run.resume:
            held.enter_context(hold(folder))
        address = ray_address(run.address)
        local = address == "local"
        started_here = not ray.is_initialized()
        if started_here:
            start_ray(address)
        check_shared(folder)
        message = place(config, run, local)
    except (ValueError, OSError, MemoryError) as error:
        remove_empty(made)
        refuse(error)
    for line in filter(None, (message, JOB.note(run))):
        print(line, flush=True)
    record_start(folder, provenance(dataclasses.replace(run, resume=None)) | trunk_taken(run))
    print(
        f"{game_title(run.game)}, task {run.aux_task}, {run.steps:,} steps -> {folder}", flush=True
    )
    result = train(run, folder, config, resumed_at)
    if started_here:
        ray.shutdown()
    return finish(run, folder, result)


def finish(run: AtariRun, folder: Path, result: Any) -> dict[str, Any]:
    """Prints the closing table, or the error and how to go on; returns the table's row."""
    if result.error is not None:
        print(f"error: {str(result.error).strip().splitlines()[-1]}", file=sys.stderr)
        print(f"full text: {result.path}/error.txt; go on with --resume {folder}", file=sys.stderr)
        raise SystemExit(1)
    try:
        row = summarise(run, folder, newest_whole_checkpoint(folder))
    except ValueError:  # a log without rows
        print(f"stopped before the first report; start again with --resume {folder}")
        raise SystemExit(UNFINISHED) from None
    if row["steps"] < run.steps:
        print(f"stopped at {row['steps']:,} of {run.steps:,} steps; go on with --resume {folder}")
        raise SystemExit(UNFINISHED)
    return row


if __name__ == "__main__":
    main()
