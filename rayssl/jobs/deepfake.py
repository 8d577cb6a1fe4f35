"""The job `deepfake`: a classifier over a frozen backbone tells fakes from real faces."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ray import tune

from rayssl.data.faces import FaceSet, load_face_set
from rayssl.deepfake import (
    OTHER,
    TABLE_III,
    ProbeSettings,
    check_faces,
    check_weights,
    split_of,
)
from rayssl.deepfake_trainables import SCALARS, DeepfakeProbe, Place, epoch_row, epoch_text
from rayssl.jobs import EpochJob, Row, Write
from rayssl.trainables import EpochWriter

# A guess, not measured: PyTorch, Ray and scikit-learn, a RevNet-50x4 and features of 77,000 crops.
TRIAL_BYTES = 2e9


@dataclass(frozen=True)
class DeepfakeTrial(ProbeSettings):
    """One probe: its settings, and the faces.

    Attributes:
      faces: folder of a face set, as `deepfake.py prepare` or `demo` wrote it.
      features_dir: folder of cached features; None: `features` in the face set's folder.
      faces_fingerprint: of the face set when the trial was planned; None: in trials of before.
    """

    faces: Path = Path("results/local/drawn-faces/faces")
    features_dir: Path | None = None
    faces_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Makes paths absolute: Tune gives each trial a working directory of its own."""
        for name in ("faces", "features_dir", "weights"):
            value = getattr(self, name)
            if value is not None and (name != "weights" or Path(value).is_file()):
                object.__setattr__(self, name, type(value)(Path(value).resolve()))

    def probe(self) -> ProbeSettings:
        """Returns the fields of ProbeSettings."""
        return ProbeSettings(**{f.name: getattr(self, f.name)
                                for f in dataclasses.fields(ProbeSettings)})  # fmt: skip

    def place(self) -> Place:
        """Returns where the trial reads."""
        return Place(
            str(self.faces), str(self.features_dir or self.faces / "features"),
            fingerprint=self.faces_fingerprint,
        )  # fmt: skip


@lru_cache(maxsize=4)
def _load(folder: Path) -> FaceSet:
    return load_face_set(folder)


@lru_cache(maxsize=16)
def _weights_id(backbone: str, weights: str | None) -> str:
    """The weights that a backbone has now; read once for all trials of a sweep."""
    return ProbeSettings(backbone=backbone, weights=weights).make_backbone().weights_id


class TrialOfProbe(DeepfakeProbe):
    """DeepfakeProbe with the job's Tune config: settings of a DeepfakeTrial and the sweep's."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Returns what the config says that this trial gets."""
        return tune.PlacementGroupFactory(config["bundles"])

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the probe; goes on from a checkpoint that the config names."""
        settings: DeepfakeTrial = JOB.from_json(config)
        super().setup({
            "probe": dataclasses.asdict(settings.probe()),
            "place": dataclasses.asdict(settings.place()),
            "num_cpus": config["cpus"], "restore_from": config.get("restore_from"),
        })  # fmt: skip


class DeepfakeJob(EpochJob):
    """Table III, section V-B; a step of progress is an epoch, or a whole strict probe."""

    name: ClassVar = "deepfake"
    settings: ClassVar = DeepfakeTrial
    trial_bytes: ClassVar = TRIAL_BYTES
    metric: ClassVar = "test_accuracy"
    judged_by: ClassVar = (
        "the validation log-loss, negated; with --protocol paper-code by the last test accuracy, "
        "so the test set chooses"
    )

    not_swept: ClassVar = frozenset({"seed", "faces_fingerprint"})

    def check(self, settings: DeepfakeTrial) -> None:
        """Raises ValueError or OSError for settings, faces or weights that do not fit."""
        settings.probe().check()
        self._check_faces(settings)
        split_of(settings.probe(), _load(settings.faces))
        settings.probe().make_backbone()

    def check_resumed(self, settings: DeepfakeTrial, folder: Path) -> None:
        """Raises ValueError or OSError if faces or weights are not those of the trial's start."""
        self._check_faces(settings)
        rows = [row for row in self.rows(folder) if "weights_id" in row]
        if rows:
            check_weights(rows, settings.backbone, _weights_id(settings.backbone, settings.weights))

    def _check_faces(self, settings: DeepfakeTrial) -> None:
        check_faces(
            settings.faces_fingerprint, _load(settings.faces), "that the sweep was started with",
            "Results of two face sets do not mix: start another sweep with --name.",
        )  # fmt: skip

    def plain(self, settings: DeepfakeTrial) -> DeepfakeTrial:
        """Returns the settings with the faces' fingerprint of now, and the usual values of options
        that do not act: of a protocol's own head, of another classifier.
        """
        usual: dict[str, Any] = {}
        if settings.protocol == "paper-code":
            usual = {"classifier": "adam", "validation_share": DeepfakeTrial.validation_share}
        classifier = usual.get("classifier", settings.classifier)
        if classifier != "logistic":
            usual["c"] = None
        if classifier not in ("sgd", "adam"):
            usual["epochs"] = None
        settings = dataclasses.replace(settings, **usual)
        try:
            fingerprint = _load(settings.faces).fingerprint
        except (ValueError, OSError):
            return settings  # check says what is wrong
        return dataclasses.replace(settings, faces_fingerprint=fingerprint)

    def trainable(self, trials: Sequence[DeepfakeTrial]) -> Any:
        """Returns the trainable; faces and features are read from their folders."""
        return TrialOfProbe

    def planned(self, settings: DeepfakeTrial) -> int:
        """Returns the epochs of paper-code; 1 for strict."""
        if settings.protocol == "strict":
            return 1
        return settings.epochs or TABLE_III.get(settings.backbone, OTHER).epochs

    def objective(self, row: Row, settings: DeepfakeTrial) -> float | None:
        """Returns the negative validation log-loss where the protocol has a validation part."""
        if settings.protocol == "strict":
            value = row.get("validation_log_loss")
            return None if value is None else -float(value)
        return super().objective(row, settings)

    def reported(self, rows: Sequence[Row], settings: DeepfakeTrial) -> float | None:
        """Returns the test accuracy of the epoch that the protocol selects so far."""
        selected = rows[-1]["selected_epoch"] if rows else None
        return next((row[self.metric] for row in rows if row["epoch"] == selected), None)

    def open_log(self, folder: Path, name: str, resumed_at: int) -> Write:
        """Returns the writer of epochs.jsonl and tb/."""
        writer = EpochWriter(folder, SCALARS)

        def write(result: dict[str, Any], settings: DeepfakeTrial) -> None:
            writer.write({"trial": name, **epoch_row(settings.probe(), result)}, folder / "tb")

        return write

    def line(self, row: Row, settings: DeepfakeTrial) -> str:
        """Returns epoch, loss and accuracy, or the final accuracy with its interval."""
        return epoch_text(row)

    def typical_seconds(self, settings: DeepfakeTrial) -> tuple[float, str]:
        """Returns what one pass of a ResNet-50 over the crops takes at a guess."""
        crops = len(_load(settings.faces).frames)
        return 0.1 * crops, "a guess of 0.1 s for a crop, a ResNet-50 on one core"

    def alike(self, saved: Mapping[str, Any], settings: DeepfakeTrial) -> bool:
        """Returns whether faces, backbone and protocol are the same."""
        names = ("protocol", "backbone")
        return saved.get("faces") == str(settings.faces) and all(
            saved.get(k) in (v, [v]) for k in names for v in (getattr(settings, k),)
        )


JOB = DeepfakeJob()
