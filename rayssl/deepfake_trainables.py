"""Probes of deepfake.py over Ray: features as tasks, one for each part; probes as Tune trials."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from rayssl.backbones.images import ImageBackbone
from rayssl.data.faces import FaceSet, load_face_set
from rayssl.deepfake import (
    CropScores,
    ProbeSettings,
    check_faces,
    feature_sources,
    make_probe_run,
)
from rayssl.features import ROWS_A_PART
from rayssl.rllib.stopping import FAILURE, StopAtSteps, StopWhenAsked, ends_with_own_errors
from rayssl.trainables import STATE, EpochWriter

SCORES, HEADS = "scores", "heads"  # folders: what each finished trial leaves behind
TASKS_AHEAD = 4  # extraction tasks handed to Ray for each CPU; more would only wait there


@dataclasses.dataclass(frozen=True)
class Place:
    """Where trials read and write; on a cluster, folders that all nodes see.

    Attributes:
      faces: folder of a face set; features: of the caches.
      folder: of the experiment, where finished trials leave scores and heads; None: nowhere.
      fingerprint: of the face set that trials were planned for; None: unknown, any will do.
    """

    faces: str
    features: str
    folder: str | None = None
    fingerprint: str | None = None


class DeepfakeProbe(tune.Trainable):
    """One probe; a Tune iteration is an epoch of paper-code, or a whole strict probe.

    The config holds a dict of ProbeSettings under `probe`, a Place under `place`, `num_cpus`
    (threads) and `restore_from`: a checkpoint to go on from, or None; or all of them under `trial`,
    which takes a list of whole configs into one `tune.grid_search`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the probe on the GPU if Tune gave the trial one, else on the CPU."""
        config = config.get("trial", config)
        torch.set_num_threads(max(1, int(config["num_cpus"])))
        self.settings, self.place = ProbeSettings(**config["probe"]), Place(**config["place"])
        faces = _face_set(self.place.faces)
        check_faces(self.place.fingerprint, faces, "that the trial was planned for")
        self.probe_run = make_probe_run(self.settings, faces, Path(self.place.features), _device())
        if config.get("restore_from"):
            self.load_checkpoint(config["restore_from"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes on the next trial in this process, which saves its start."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Returns the metrics of one more epoch; `done` with the last, when the files are there."""
        metrics = self.probe_run.run_epoch()
        if self.probe_run.done and self.place.folder is not None:
            save_scores(Path(self.place.folder), self.settings.name, self.probe_run.test)
            if self.probe_run.head is not None:
                save_head(Path(self.place.folder), self.settings.name, self.probe_run.head)
        return metrics | {"done": self.probe_run.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the whole state; it can be read without running code (`weights_only`)."""
        torch.save(self.probe_run.state_dict(), Path(checkpoint_dir) / STATE)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restores what `save_checkpoint` wrote."""
        state = torch.load(Path(checkpoint) / STATE, map_location="cpu", weights_only=True)
        self.probe_run.load_state_dict(state)


# Keys of a row that TensorBoard gets: intervals are triples, and stand in the report.
SCALARS = ("loss", "test_accuracy", "validation_log_loss", "seconds")


class ProbeLog(tune.Callback):
    """Writes each trial's epochs (`EpochWriter`) as they come, and prints one line.

    Args:
      folder: of the experiment.
      num_trials: for the line.
    """

    def __init__(self, folder: Path, num_trials: int) -> None:
        self._writer = EpochWriter(folder, SCALARS)
        self._tb, self._num_trials = folder / "tb", num_trials
        self.failures: dict[str, str] = {}  # name of a trial -> last line of its own error

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes one epoch of one trial."""
        settings = ProbeSettings(**trial.config["trial"]["probe"])
        if FAILURE in result:
            self.failures[settings.name] = result[FAILURE].strip().splitlines()[-1]
            return
        row = {"trial": settings.name, **epoch_row(settings, result)}
        self._writer.write(row, self._tb / settings.name)
        done = sum(t.is_finished() for t in trials) + bool(result.get("done"))
        print(f"{row['trial']}: {epoch_text(row)} | {done}/{self._num_trials} trials done",
              flush=True)  # fmt: skip


def epoch_row(settings: ProbeSettings, result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of a log: a probe's settings, and its metrics without Tune's."""
    prefixes = ("epoch", "selected_epoch", "loss", "seconds", "test_", "frame_", "video_", "chosen",
                "tried", "validation_", "changed_", "sizes", "leakage", "weights_id",
                "done")  # fmt: skip
    metrics = {k: v for k, v in result.items() if k.startswith(prefixes)}
    return {**dataclasses.asdict(settings), "layer": settings.taken_layer, **metrics}


def epoch_text(row: Mapping[str, Any]) -> str:
    """Returns what there is to tell people about one epoch of one trial."""
    if row.get("done"):
        value, low, high = (100 * v for v in row["frame_accuracy"])
        return f"accuracy {value:.1f}% ({low:.1f} to {high:.1f}), AUC {row['frame_auc'][0]:.3f}"
    return f"epoch {row['epoch']}, loss {row['loss']:.4f}, test {row['test_accuracy']:.1%}"


def extract_features(
    probes: Sequence[ProbeSettings],
    place: Place,
    *,
    num_cpus: float,
    num_gpus: float,
    on_rows: Callable[[int, int], None] | None = None,
) -> None:
    """Fills the caches of all these strict probes; each part of each cache is one Ray task.

    Ends early where a stop was asked for; what is written stays.

    Args:
      probes: several of one backbone share its features.
      place: faces and caches.
      num_cpus, num_gpus: of a task.
      on_rows: called with crops done and crops in all.
    Raises:
      Exception: of the first task that failed; Ray's own where a worker was lost too often.
    """
    faces = load_face_set(Path(place.faces))
    jobs: dict[Path, list[tuple[dict[str, Any], str, int, int]]] = {}
    all_rows = 0
    # One probe for each backbone: making one reads and hashes its weight file.
    alike = {(p.backbone, p.layer, p.weights, p.training_fakes, p.seed): p for p in probes}
    for probe in alike.values():
        backbone = probe.make_backbone()
        sources = feature_sources(probe, backbone, faces, Path(place.features))
        for name, (cache, num_rows, _) in sources.items():
            if cache.folder not in jobs:
                all_rows += num_rows
                jobs[cache.folder] = [
                    (dataclasses.asdict(probe), name, part, _part_rows(part, num_rows))
                    for part in cache.missing(num_rows)
                ]
    todo = [job for each in jobs.values() for job in each]
    if not todo:
        return
    done = all_rows - sum(rows for *_, rows in todo)
    task = ray.remote(_extract_part).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=2)
    ahead = TASKS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) / max(num_cpus, 0.1)))
    waiting: list[Any] = []
    while (todo or waiting) and not StopAtSteps.asked:
        while todo and len(waiting) < ahead:
            settings, name, part, _ = todo.pop(0)
            waiting.append(task.remote(settings, name, part, dataclasses.asdict(place), num_cpus))
        if on_rows:
            on_rows(done, all_rows)
        finished, waiting = ray.wait(waiting, timeout=5.0)
        try:
            done += sum(ray.get(finished))
        except ray.exceptions.RayError as error:
            for each in waiting:
                ray.cancel(each)
            raise getattr(error, "cause", None) or error from error
    if on_rows:
        on_rows(done, all_rows)


def _extract_part(
    settings: dict[str, Any], name: str, part: int, place: dict[str, Any], num_cpus: float
) -> int:
    """The Ray task: writes one part of one cache and returns its rows."""
    torch.set_num_threads(max(1, int(num_cpus)))
    where, device = Place(**place), _device()
    faces = _face_set(where.faces)
    backbone = _backbone(json.dumps(settings, sort_keys=True), device)
    probe = ProbeSettings(**settings)
    source = feature_sources(probe, backbone, faces, Path(where.features), device)[name]
    if part in source.cache.missing(source.num_rows):  # another experiment may have written it
        source.cache.extract_part(part, source.num_rows, source.compute)
    return _part_rows(part, source.num_rows)


def _part_rows(part: int, num_rows: int) -> int:
    return min(num_rows, (part + 1) * ROWS_A_PART) - part * ROWS_A_PART


@lru_cache(maxsize=1)
def _backbone(settings: str, device: str) -> ImageBackbone:
    """A worker keeps the backbone of its last task."""
    return ProbeSettings(**json.loads(settings)).make_backbone().to(device)


@lru_cache(maxsize=1)
def _face_set(folder: str) -> FaceSet:
    return load_face_set(Path(folder))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides GPUs not asked for


def run_probes(
    configs: Sequence[dict[str, Any]], folder: Path, *, num_cpus: float, num_gpus: float
) -> list[str]:
    """Runs trials through Tune, as many at once as there is room for; returns a line per failure.

    A trial whose process was lost is started again, one with an error of its own is not.

    Args:
      configs: of DeepfakeProbe, one per trial.
      folder: of the experiment.
      num_cpus, num_gpus: of a trial; 0.25 GPUs for four trials on one.
    """
    resources = {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}
    log = ProbeLog(folder, len(configs))
    found = tune.Tuner(
        tune.with_resources(ends_with_own_errors(DeepfakeProbe), resources),
        param_space={"trial": tune.grid_search(list(configs))},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_dirname_creator=lambda t: f"{_name(t.config)}_{t.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=folder.resolve().name,
            storage_path=str(folder.resolve().parent),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=2),
            stop=StopWhenAsked(),
            callbacks=[log],
            verbose=0,
        ),
    ).fit()
    failures = dict(log.failures)
    for result in found:
        if result.error is not None:
            failures[_name(result.config)] = str(result.error).strip().splitlines()[-1]
    return [f"{name} failed: {text}" for name, text in failures.items()]


def _name(config: dict[str, Any]) -> str:
    return ProbeSettings(**config["trial"]["probe"]).name


def save_scores(folder: Path, name: str, scores: CropScores) -> None:
    """Writes a trial's test scores; the file is there under its name only when it is whole."""
    path = folder / SCORES / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as handle:
        np.savez_compressed(handle, **scores._asdict())
    os.replace(part, path)


def save_head(folder: Path, name: str, head: dict[str, Any]) -> None:
    """Writes what `rayssl.deepfake.load_probe` reads, likewise."""
    path = folder / HEADS / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(head, part)
    os.replace(part, path)


def finished_trials(folder: Path, rows: Iterable[dict[str, Any]]) -> set[str]:
    """Returns the names of trials whose last row and whose scores are there.

    Args:
      rows: `rayssl.report.read_epochs` of the folder.
    """
    names = {row["trial"] for row in rows if row.get("done")}
    return {name for name in names if (folder / SCORES / f"{name}.npz").is_file()}
