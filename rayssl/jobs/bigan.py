"""The job `bigan`: BiGAN or BigBiGAN on a set of images, judged by what its encoder knows."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from ray import tune

from rayssl.bigan import (
    AdversarialSettings,
    BiganSettings,
    BigbiganSettings,
    check_data,
    make_settings,
)
from rayssl.data import ImageSplits, available_datasets, fit_size, load_dataset, load_folder
from rayssl.jobs import EpochJob, Row, Write
from rayssl.trainables import (
    ADVERSARIAL_METRICS,
    EpochWriter,
    FeatureLearner,
    adversarial_line,
)

TRIAL_BYTES = 1_500e6  # with MNIST's 60,000 images and their features


@dataclass(frozen=True)
class BiganTrial:
    """One training: model, images, and settings of the model; None is the model's own value.

    Attributes:
      model: bigan or bigbigan.
      dataset: mnist, fashion-mnist, digits, or a folder of images.
      data_dir: folder of the data set's files; None: the environment's RAYSSL_DATA, else data.
      verify: refuse files of mnist that are not the published ones.
      seed: of initial weights, order of images and draws.
      others: see `rayssl.bigan.BiganSettings` and `BigbiganSettings`.
    """

    model: Literal["bigan", "bigbigan"] = "bigan"
    dataset: str = "mnist"
    data_dir: Path | None = None
    verify: bool = True
    size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    encoder_lr: float | None = None
    beta1: float | None = None
    decay_share: float | None = None
    weight_decay: float | None = None
    z_dim: int | None = None
    width: int | None = None
    channels: int | None = None
    d_steps: int | None = None
    ema: float | None = None
    eval_every: int | None = None
    statistics_batches: int | None = None
    seed: int = 0

    def settings(self) -> AdversarialSettings:
        """Returns the model's settings, checked.

        Raises:
          ValueError: for a value that no training can have.
        """
        apart = ("model", "dataset", "data_dir", "verify")
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in apart}
        return make_settings(self.model, **values)

    def config(self) -> dict[str, Any]:
        """Returns what FeatureLearner takes: the model and all its settings."""
        return {"model": self.model, **dataclasses.asdict(self.settings())}

    def data(self) -> ImageSplits:
        """Returns the images at the model's size; a set is read once in a process.

        Raises:
          ValueError: for an unknown data set, damaged files, or images that do not fit.
          OSError: if files are missing.
        """
        settings = self.settings()
        data = _load(self.dataset, self.data_dir, self.verify, settings.size)
        check_data(data, settings)
        return data


@lru_cache(maxsize=4)
def _load(dataset: str, data_dir: Path | None, verify: bool, size: int) -> ImageSplits:
    if dataset in available_datasets():
        return fit_size(load_dataset(dataset, data_dir, verify=verify), size)
    if not Path(dataset).is_dir():
        raise ValueError(
            f"Expected as --dataset {', '.join(available_datasets())} or a folder of images, got "
            f"{dataset!r}."
        )
    return load_folder(Path(dataset), size)


class TrialOfFeatureLearner(FeatureLearner):
    """FeatureLearner with `BiganJob`'s Tune config: settings of a BiganTrial and the sweep's."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Returns what the config says that this trial gets."""
        return tune.PlacementGroupFactory(config["bundles"])

    def setup(self, config: dict[str, Any], data: Any) -> None:
        """Builds networks and data; goes on from a checkpoint that the config names.

        Args:
          config: settings and what the sweep adds.
          data: the source of the images (`_source`) -> images.
        """
        trial: BiganTrial = JOB.from_json(config)
        own = {key: config.get(key) for key in ("restore_from", "adapts")}
        images = data.get(_source(trial)) or trial.data()  # a searcher may mix sources
        super().setup(trial.config() | own | {"num_cpus": config["cpus"]}, images)


def _source(trial: BiganTrial) -> tuple[str, str, bool, int]:
    return trial.dataset, str(trial.data_dir), trial.verify, trial.settings().size


class BiganJob(EpochJob):
    """Feature learning by BiGANs; a step of progress is an epoch."""

    name: ClassVar = "bigan"
    settings: ClassVar = BiganTrial
    trial_bytes: ClassVar = TRIAL_BYTES
    metric: ClassVar = "nn_features"
    judged_by: ClassVar = (
        "the 1-nearest-neighbour accuracy of the encoder's features in the last evaluated epoch, "
        "so the test set chooses"
    )
    adaptable: ClassVar = ("lr",)

    def check(self, settings: BiganTrial) -> None:
        """Raises ValueError or OSError for settings or files that do not fit."""
        settings.data()

    def trainable(self, trials: Sequence[BiganTrial]) -> Any:
        """Returns the trainable; its images travel through Ray's object store."""
        data = {_source(trial): trial.data() for trial in trials}
        return tune.with_parameters(TrialOfFeatureLearner, data=data)

    def planned(self, settings: BiganTrial) -> int:
        """Returns the epochs of a training."""
        return settings.settings().epochs

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the writer of epochs.jsonl, images/ and tb/."""
        writer = EpochWriter(folder, ADVERSARIAL_METRICS)

        def write(result: dict[str, Any], settings: BiganTrial) -> None:
            row = {"trial": name, **settings.config()}
            row |= {k: v for k, v in result.items() if k in ADVERSARIAL_METRICS}
            writer.write(row, folder / "tb", result.get("images"))

        return write

    def line(self, row: Row, settings: BiganTrial) -> str:
        """Returns epoch, losses and what was measured."""
        return adversarial_line({**settings.config(), **row}).partition(": ")[2]

    def typical_seconds(self, settings: BiganTrial) -> tuple[float, str]:
        """Returns what an epoch of MNIST took on one core, for as many images and such networks."""
        own, images = settings.settings(), len(settings.data().train_x)
        source = "RESULTS.md, one core of an AMD EPYC (Zen 3)"
        if isinstance(own, BigbiganSettings):
            # A run with 8 channels was ended after 6 minutes, within its first epoch.
            seconds = 360.0 * (own.channels / 8) ** 2 * (own.size / 32) ** 2
            source = f"at least: a run that was ended in its first epoch; {source}"
        else:
            assert isinstance(own, BiganSettings)
            seconds = 57.0 * (own.width / 1024) ** 2
        return seconds * images / 60_000, source

    def alike(self, saved: Mapping[str, Any], settings: BiganTrial) -> bool:
        """Returns whether data set and networks are the same."""
        own = dataclasses.asdict(settings)
        names = ("model", "dataset", "size", "width", "channels", "d_steps", "batch_size")
        return all(saved.get(k) in (own[k], [own[k]]) for k in names)


JOB = BiganJob()
