"""The job `pretrain`: a backbone on labelled images and a pretext task at once, in one process."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from ray import tune

from rayssl.backbones.weights import file_sha256
from rayssl.data.class_folders import ClassFolders
from rayssl.jobs import EpochJob, Row, Write
from rayssl.pretraining import Arch, Pretraining, PretrainSettings, check_data
from rayssl.pretraining_job import progress_line
from rayssl.trainables import EpochTrainable, EpochWriter

TRIAL_BYTES = 3e9  # a guess, not measured: activations of a ResNet-50 over four copies of a batch
SCALARS = (
    "epoch", "lr", "loss", "class_loss", "aux_loss", "accuracy", "aux_accuracy",
    "validation_accuracy", "validation_aux_accuracy", "seconds", "images_per_s",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainTrial:
    """One pretraining, as experiments/pretrain.py makes it with one worker.

    Attributes:
      data: folder with one folder a class, of the images to train on; all nodes see it.
      validation: the like, of images whose accuracies are measured after each epoch.
      aux_task: the pretext task; none: plain supervised training.
      others: see `rayssl.pretraining.PretrainSettings`, whose `lr_steps` stay its own.
    """

    data: Path | None = None
    validation: Path | None = None
    arch: Arch = PretrainSettings.arch
    aux_task: str = PretrainSettings.task
    aux_weight: float = PretrainSettings.aux_weight
    labels: bool = PretrainSettings.labels
    epochs: int = PretrainSettings.epochs
    batch_size: int = PretrainSettings.batch_size
    lr: float = PretrainSettings.lr
    momentum: float = PretrainSettings.momentum
    weight_decay: float = PretrainSettings.weight_decay
    image_size: int = PretrainSettings.image_size
    seed: int = PretrainSettings.seed

    def __post_init__(self) -> None:
        """Makes paths absolute: Tune gives each trial a working directory of its own."""
        for name in ("data", "validation"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).resolve())

    def settings(self) -> PretrainSettings:
        """Returns the settings of the pretraining."""
        names = {field.name for field in dataclasses.fields(PretrainSettings)}
        own = {name: getattr(self, name) for name in names & set(vars(self))}
        if self.aux_task == "none":
            return PretrainSettings(**own | {"aux_weight": 0.0})
        return PretrainSettings(**own, task=self.aux_task)

    def images(self) -> tuple[ClassFolders, ClassFolders | None]:
        """Returns the images to train on, and those to validate on.

        Raises:
          ValueError: if `data` is missing, or a folder does not hold one folder a class.
          FileNotFoundError: if a folder is not there.
        """
        if self.data is None:
            raise ValueError("--data is missing: the folder of images, with one folder a class.")
        train, validation = (
            ClassFolders(root, self.image_size, self.seed, labelled=self.labels) if root else None
            for root in (self.data, self.validation)
        )
        assert train is not None
        return train, validation


class EpochPretraining(Pretraining):
    """A Pretraining that is run by the epoch (`rayssl.trainables.EpochTraining`)."""

    def run_epoch(self) -> dict[str, Any]:
        """Trains to the end of the epoch and returns its row, with the `seconds` that it took."""
        start = time.perf_counter()
        row = next(row for row in self.progress() if row.get("epoch_done"))
        return row | {"seconds": time.perf_counter() - start}

    def load_state_dict(self, state: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
        """Restores what `state_dict` returned; nothing may differ."""
        super().load_state_dict(state)


class TrialOfPretraining(EpochTrainable):
    """One pretraining with the job's Tune config: settings of a PretrainTrial and the sweep's."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Returns what the config says that this trial gets."""
        return tune.PlacementGroupFactory(config["bundles"])

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        """Builds network and images; goes on from a checkpoint that the config names."""
        trial: PretrainTrial = JOB.from_json(config)
        torch.set_num_threads(max(1, int(config["cpus"])))
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides GPUs not asked for
        self.training = EpochPretraining(trial.settings(), *trial.images(), device=device)
        self._adapts = ()
        if config.get("restore_from"):
            self.load_checkpoint(config["restore_from"])

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the whole state; after the last epoch also the weights, as pretrain.py does."""
        super().save_checkpoint(checkpoint_dir)
        if not self.training.done:
            return
        assert isinstance(self.training, EpochPretraining)
        settings = self.training.settings
        part = Path(checkpoint_dir) / f"{settings.arch}.part"
        found = {"network": self.training.weights(), "settings": dataclasses.asdict(settings)}
        torch.save(found, part)
        part.rename(part.with_name(f"{settings.arch}-{file_sha256(part)[:8]}.pth"))


class PretrainJob(EpochJob):
    """Supervised training with a pretext task, section V-B; a step of progress is an epoch."""

    name: ClassVar = "pretrain"
    settings: ClassVar = PretrainTrial
    trial_bytes: ClassVar = TRIAL_BYTES
    metric: ClassVar = "validation_accuracy"
    judged_by: ClassVar = (
        "the last validation accuracy; without --validation the accuracy in training, with "
        "--labels False that of the pretext task"
    )

    def check(self, settings: PretrainTrial) -> None:
        """Raises ValueError or OSError for settings or images that do not fit."""
        settings.settings().check()
        check_data(settings.settings(), *settings.images())

    def trainable(self, trials: Sequence[PretrainTrial]) -> Any:
        """Returns the trainable; images are read from their folders."""
        return TrialOfPretraining

    def planned(self, settings: PretrainTrial) -> int:
        """Returns the epochs of a training."""
        return settings.epochs

    def objective(self, row: Row, settings: PretrainTrial) -> float | None:
        """Returns the first that a row has of the accuracies that `judged_by` names."""
        names = (self.metric, "accuracy") if settings.labels else ("validation_aux_accuracy",)
        return next((float(row[name]) for name in (*names, "aux_accuracy") if name in row), None)

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the writer of epochs.jsonl and tb/."""
        writer = EpochWriter(folder, SCALARS)

        def write(result: dict[str, Any], settings: PretrainTrial) -> None:
            row = {"trial": name, **{k: result[k] for k in SCALARS if k in result}}
            writer.write(row, folder / "tb")

        return write

    def line(self, row: Row, settings: PretrainTrial) -> str:
        """Returns epoch, loss and accuracies."""
        return progress_line({**row, "epoch_done": True}, settings.epochs)

    def typical_seconds(self, settings: PretrainTrial) -> tuple[float, str]:
        """Returns what an epoch of these images takes at a guess."""
        copies = 1 if settings.settings().aux_weight == 0 else 4
        seconds = 0.1 * copies * (settings.image_size / 224) ** 2 * len(settings.images()[0])
        return seconds, "a guess of 0.1 s for an image of 224 pixels and each copy, on one core"

    def alike(self, saved: Mapping[str, Any], settings: PretrainTrial) -> bool:
        """Returns whether images and architecture are the same; the head decides by itself."""
        names = ("data", "arch", "image_size")
        plain = (saved.get("aux_task") == "none") == (settings.aux_task == "none")
        own = {name: getattr(settings, name) for name in names}
        return plain and all(saved.get(k) in (v, str(v), [v]) for k, v in own.items())


JOB = PretrainJob()
