"""The job `mnist`: Table V's classifier with a pretext head on a set of small images."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ray import tune

from rayssl.data import ImageSplits, load_dataset
from rayssl.jobs import EpochJob, Row, Write
from rayssl.trainables import (
    METRICS,
    EpochWriter,
    ImageClassifier,
    epoch_line,
)
from rayssl.training import ClassifierSettings

# Measured with 60,000 images, in one process that shares nothing, updates and an evaluation: 810 MB
# (none, rotation), 830 (jigsaw), 920 (curl). Jigsaw under paper-code, 30 copies of a batch: 1.9 GB.
TRIAL_BYTES = 1e9


@dataclass(frozen=True)
class MnistTrial(ClassifierSettings):
    """One training: the classifier's settings, and the images.

    Attributes:
      dataset: mnist, fashion-mnist, or digits (scikit-learn's small images, no files needed).
      data_dir: folder of the data set's files; None: the environment's RAYSSL_DATA, else data.
      verify: refuse files of mnist that are not the published ones.
    """

    dataset: str = "mnist"
    data_dir: Path | None = None
    verify: bool = True

    def classifier(self) -> dict[str, Any]:
        """Returns the fields of ClassifierSettings."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(ClassifierSettings)}

    def data(self) -> ImageSplits:
        """Returns the images; a set is read once in a process."""
        return _load(self.dataset, self.data_dir, self.verify)


@lru_cache(maxsize=4)
def _load(dataset: str, data_dir: Path | None, verify: bool) -> ImageSplits:
    return load_dataset(dataset, data_dir, verify=verify)


class TrialOfClassifier(ImageClassifier):
    """ImageClassifier with `MnistJob`'s Tune config: settings of a MnistTrial and the sweep's."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Returns what the config says that this trial gets."""
        return tune.PlacementGroupFactory(config["bundles"])

    def setup(self, config: dict[str, Any], data: Any) -> None:
        """Builds network and data; goes on from a checkpoint that the config names.

        Args:
          config: settings and what the sweep adds.
          data: the source of the images (`_source`) -> images.
        """
        settings: MnistTrial = JOB.from_json(config)
        own = {key: config.get(key) for key in ("restore_from", "adapts")}
        images = data.get(_source(settings)) or settings.data()  # a searcher may mix sources
        super().setup(settings.classifier() | own | {"num_cpus": config["cpus"]}, images)


def _source(settings: MnistTrial) -> tuple[str, str, bool]:
    return settings.dataset, str(settings.data_dir), settings.verify


class MnistJob(EpochJob):
    """Classification, section V-B; a step of progress is an epoch."""

    name: ClassVar = "mnist"
    settings: ClassVar = MnistTrial
    trial_bytes: ClassVar = TRIAL_BYTES
    metric: ClassVar = "test_accuracy"
    judged_by: ClassVar = (
        "the last test accuracy, so the test set chooses; with --protocol strict by the last "
        "validation accuracy"
    )
    aux_only: ClassVar = ("aux_copies",)
    adaptable: ClassVar = ("aux_weight", "lr")

    def check(self, settings: MnistTrial) -> None:
        """Raises ValueError or OSError for settings, files or a task that do not fit."""
        settings.check()
        settings.check_data(settings.data())

    def trainable(self, trials: Sequence[MnistTrial]) -> Any:
        """Returns the trainable; its images travel through Ray's object store."""
        data = {_source(settings): settings.data() for settings in trials}
        return tune.with_parameters(TrialOfClassifier, data=data)

    def planned(self, settings: MnistTrial) -> int:
        """Returns the epochs of a training."""
        return settings.epochs

    def objective(self, row: Row, settings: MnistTrial) -> float | None:
        """Returns the validation accuracy where the protocol has one, else the test accuracy."""
        value = row.get("validation_accuracy", row.get(self.metric))
        return None if value is None else float(value)

    def reported(self, rows: Sequence[Row], settings: MnistTrial) -> float | None:
        """Returns the test accuracy of the epoch that the protocol selects so far."""
        if not rows:
            return None
        if settings.resolved_protocol().selection == "best-validation":
            return rows[-1].get(self.metric)  # known in the last epoch only
        selected = rows[-1]["selected_epoch"]
        return next((row[self.metric] for row in rows if row["epoch"] == selected), None)

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the writer of epochs.jsonl and tb/."""
        writer = EpochWriter(folder, METRICS)

        def write(result: dict[str, Any], settings: MnistTrial) -> None:
            row = {"trial": name, **settings.classifier()}
            row |= {k: v for k, v in result.items() if k in METRICS}
            writer.write(row, folder / "tb")

        return write

    def line(self, row: Row, settings: MnistTrial) -> str:
        """Returns epoch, loss and accuracies."""
        return epoch_line({**settings.classifier(), **row}).partition(": ")[2]

    def typical_seconds(self, settings: MnistTrial) -> tuple[float, str]:
        """Returns what an epoch took in RESULTS.md's first run of MNIST, for as many images."""
        images = len(settings.data().first(settings.train_images).train_x)
        seconds = 45.0 if settings.aux_task == "none" else 105.0
        return seconds * images / 60_000, "MNIST in RESULTS.md, one core of an AMD EPYC (Zen 4)"

    def alike(self, saved: Mapping[str, Any], settings: MnistTrial) -> bool:
        """Returns whether images, batches and protocol are the same; the head decides by itself."""
        names = ("dataset", "train_images", "batch_size", "protocol")
        own = {name: getattr(settings, name) for name in names}
        usual = dataclasses.asdict(MnistTrial())  # of what a log does not name
        plain = (saved.get("aux_task") == "none") == (settings.aux_task == "none")
        return plain and all(saved.get(k, usual[k]) in (v, [v]) for k, v in own.items())


JOB = MnistJob()
