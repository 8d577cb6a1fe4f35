"""Pretraining as a Ray Train job: pretraining.py in N workers, with checkpoints in a run's folder.

folder/progress.jsonl   one row after each epoch and each checkpoint
folder/tb/              the same for TensorBoard
folder/checkpoint.pt    the newest state, replaced in one step
folder/<arch>-<hash>.pth   the weights, at the end; `rayssl.backbones` reads them
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from tensorboardX import SummaryWriter

from rayssl.backbones.weights import file_sha256
from rayssl.data.class_folders import ClassFolders
from rayssl.pretraining import Pretraining, PretrainSettings
from rayssl.rllib.resources import free_resources

CHECKPOINT, PROGRESS, STOP, ERROR = "checkpoint.pt", "progress.jsonl", "stop", "error.txt"
MAX_RESTARTS = 3  # of the workers after one was lost
POLL_S = 0.5


@dataclasses.dataclass(frozen=True)
class PretrainJob:
    """What workers need to know.

    Attributes:
      settings: of the pretraining.
      data, validation: folders that all nodes see.
      folder: of the run; all nodes see it, too.
      workers: processes that share each batch.
      cpus_per_worker: one computes, the others read images.
      gpus_per_worker: 0 or 1; a part of one for a single worker.
    """

    settings: PretrainSettings
    data: Path
    validation: Path | None
    folder: Path
    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    def resources(self) -> dict[str, float]:
        """Returns what each worker asks Ray for."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


def check_room(job: PretrainJob) -> None:
    """Raises ValueError if Ray has no room for all workers: it would wait for ever."""
    asked = job.resources()
    nodes = free_resources()
    room = sum(
        int(min(node.get(kind, 0.0) / amount for kind, amount in asked.items())) for node in nodes
    )
    if room < job.workers:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in asked.items())
        free = "; ".join(
            ", ".join(f"{node.get(kind, 0.0):g} {kind}" for kind in asked) for node in nodes
        )
        raise ValueError(
            f"{job.workers} workers with {each} each asked, but there is room for {room} (free on "
            f"each node: {free or 'no node'}). Lower --workers, --cpus-per-worker or "
            "--gpus-per-worker."
        )


def run_job(job: PretrainJob, *, stop: Callable[[], bool], show: Callable[[str], None]) -> str:
    """Trains until the last epoch, or until `stop` says so; returns what went wrong, or "".

    Lost workers are started again from the newest checkpoint.

    Args:
      job: what to train.
      stop: asked twice a second; True ends the run after the update under way, with a checkpoint.
      show: takes one line for each new row of the log.
    """
    for name in (STOP, ERROR):
        (job.folder / name).unlink(missing_ok=True)
    mend_last_line(job.folder / PROGRESS)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=job.gpus_per_worker > 0,
            resources_per_worker=job.resources(),
        ),
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray's own classes, and what workers raised
            failed.append(error)

    # In a thread: Ray Train would set a handler of its own for Ctrl-C, which ends without a
    # checkpoint.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    seen = len(read_progress(job.folder))
    while thread.is_alive():
        thread.join(POLL_S)
        if stop():
            (job.folder / STOP).touch()
        seen = _show_new(job, seen, show)
    _show_new(job, seen, show)
    error = job.folder / ERROR
    if error.is_file():
        return error.read_text().strip()
    return str(failed[0]).strip().splitlines()[-1] if failed else ""


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's log; of an update that was run twice the last one counts.

    Sorted by epoch and update. Lines that a kill cut short are left out.
    """
    path = folder / PROGRESS
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["epoch"], row["update"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [found[key] for key in sorted(found)]


def final_weights(folder: Path, settings: PretrainSettings) -> Path | None:
    """Returns the weights that a finished run left; None if there are none yet."""
    return next(iter(sorted(folder.glob(f"{settings.arch}-????????.pth"))), None)


def progress_line(row: dict[str, Any], epochs: int) -> str:
    """Returns one line for people about one row of the log."""
    parts = [f"epoch {row['epoch']}/{epochs}"]
    if not row.get("epoch_done"):
        parts[0] += f", update {row['update']}/{row['updates']}"
    parts.append(f"loss {row['loss']:.4f}")
    for key, label in (
        ("accuracy", "accuracy"), ("aux_accuracy", "aux"), ("validation_accuracy", "validation"),
        ("validation_aux_accuracy", "validation aux"),
    ):  # fmt: skip
        if key in row:
            parts.append(f"{label} {row[key]:.2%}")
    return " | ".join([*parts, f"{row['images_per_s']:.0f} images/s"])


def mend_last_line(path: Path) -> None:
    """Ends a line that a kill cut short, so that the next one stands by itself."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as handle:
            handle.write("\n")


def _show_new(job: PretrainJob, seen: int, show: Callable[[str], None]) -> int:
    rows = read_progress(job.folder)
    for row in rows[seen:]:
        show(progress_line(row, job.settings.epochs))
    return len(rows)


def _work(config: dict[str, Any]) -> None:
    """One worker; Ray Train has set up torch.distributed."""
    job: PretrainJob = config["job"]
    error = job.folder / ERROR
    if error.is_file():  # what a restart cannot mend
        raise RuntimeError(error.read_text())
    try:
        _train(job)
    except (ValueError, FloatingPointError) as wrong:
        # A DataLoader's process puts its whole traceback into the text; the message ends it.
        last_line = str(wrong).strip().splitlines()[-1]
        text = last_line.removeprefix(f"{type(wrong).__name__}: ")
        error.write_text(text, errors="backslashreplace")  # names need not be UTF-8
        raise


# Freed with the process alone: DDP's end holds the GIL and joins gloo's thread, which may wait for
# the GIL to free a last all-reduce (seen with torch 2.13: both wait for ever).
_KEPT: list[Pretraining] = []


def _train(job: PretrainJob) -> None:
    torch.set_num_threads(1 if job.workers > 1 else job.cpus_per_worker)
    settings = job.settings
    first = ray.train.get_context().get_world_rank() == 0
    folders = partial(ClassFolders, side=settings.image_size, labelled=settings.labels)
    training = Pretraining(
        settings,
        folders(job.data, seed=settings.seed),
        folders(job.validation) if job.validation else None,
        device=str(get_device()),
        loader_processes=job.cpus_per_worker - 1,
        stop=(job.folder / STOP).exists,
    )
    _KEPT.append(training)
    if (job.folder / CHECKPOINT).is_file():
        training.load_state_dict(load_checkpoint(job.folder))
    for row in training.progress():
        state = training.state_dict()  # a sum over all workers is in it
        if first:
            _log(job.folder, row)  # first: a row that is run again counts once, a lost one is lost
            _write(job.folder / CHECKPOINT, state)
    if first and training.done:
        part = job.folder / f"{settings.arch}.part"
        _write(part, {"network": training.weights(), "settings": dataclasses.asdict(settings)})
        # Torch's and our own loaders check the beginning of the hash in a file's name.
        os.replace(part, job.folder / f"{settings.arch}-{file_sha256(part)[:8]}.pth")


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Returns the newest state of a run; reads no code (`weights_only`)."""
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    return state


def _write(path: Path, state: dict[str, Any]) -> None:
    """In one step: a kill leaves the old file whole."""
    part = path.with_name(f"{path.name}.writing")
    torch.save(state, part)
    os.replace(part, path)


def _log(folder: Path, row: dict[str, Any]) -> None:
    with (folder / PROGRESS).open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    step = (row["epoch"] - 1) * row["updates"] + row["update"]
    suffix = f".update-{step}"  # files are named by the second
    with SummaryWriter(str(folder / "tb"), filename_suffix=suffix) as writer:
        for name, value in row.items():
            if name not in ("epoch", "update", "updates", "epoch_done"):
                writer.add_scalar(name, value, step)
