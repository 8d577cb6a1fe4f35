"""Table III: real or manipulated, told from frozen features; under the authors' protocol and ours.

`strict`: the backbone is frozen, statistics included; features are computed once; a validation part
chooses; the test part is read once. `paper-code`: what the authors' code does. Only the head is
optimized, yet the network runs in training mode: BatchNorm normalizes with each batch and moves its
statistics, dropout drops. For tests it is in evaluation mode with the statistics it then has, and
the best test epoch is reported.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayssl.backbones.images import (
    ImageBackbone,
    MissingWeights,
    image_backbone_spec,
    make_image_backbone,
)
from rayssl.data.face_splits import (
    SPLIT_KINDS,
    FaceSplit,
    SplitKind,
    split_faces,
    with_as_many_fakes,
)
from rayssl.data.faces import FaceSet
from rayssl.data.self_blending import self_blend
from rayssl.detection_metrics import METRICS, THRESHOLD, Scored, metric_intervals, per_cluster
from rayssl.features import Compute, FeatureCache, changed_tensors, frozen, tensor_hashes
from rayssl.probing import (
    Fitted,
    HeadSettings,
    HeadTraining,
    LabelledFeatures,
    LinearProbe,
    fit_head,
    fit_logistic_regression,
    fit_nearest_neighbours,
)

ProtocolName = Literal["strict", "paper-code"]
Classifier = Literal["logistic", "sgd", "knn", "adam"]
TrainingFakes = Literal["data", "self-blended"]
PROTOCOLS: Final = get_args(ProtocolName)
IMAGES_A_BATCH = 32  # through a frozen backbone; of no effect on features
RANDOM = "random-"  # begins the id of weights that no file holds; the seed follows
TRAINING_BATCH = 32  # of paper-code; a last crop that would be alone makes it 33


@dataclass(frozen=True)
class Row:
    """A row of Table III and how the authors' code trains it.

    Attributes:
      name: the paper's words.
      random_split, hard_split: the paper's accuracies in percent.
      lr: of Adam; epochs; both of the authors' code.
      training_mode: BatchNorm uses and moves batch statistics and dropout is on while the head is
        trained. Not for BigBiGAN, whose TensorFlow module is called for inference.
      relu_logits: the head keeps a ReLU on its logits.
    """

    name: str
    random_split: float
    hard_split: float
    lr: float = 1e-4
    epochs: int = 10
    training_mode: bool = True
    relu_logits: bool = False


# Table III; settings: the authors' code, classification/transfer_learning
# (github prabhat1081/self-supervision-cs221).
TABLE_III: Final[dict[str, Row]] = {
    "resnet50-random": Row("ResNet-50 (Random Initialization)", 56.7, 56.2),
    "resnet50-imagenet": Row("ResNet-50 (ImageNet pre-trained)", 96.1, 91.1),
    "alexnet-imagenet": Row("AlexNet (ImageNet pre-trained)", 81.5, 73.5, lr=5e-4, epochs=5),
    # The text says "trained with ImageNet & Rotation"; their weights are RotNet's, which saw no
    # label.
    "alexnet-rotnet": Row("AlexNet (Backbone trained with ImageNet & Rotation)", 75.8, 71.1),
    "bigbigan-resnet50": Row(
        "Classifier over BigBiGAN (ResNet-50 Enc.)", 92.3, 70.8,
        training_mode=False, relu_logits=True,
    ),
    "bigbigan-revnet50x4": Row(
        "Classifier over BigBiGAN (RevNet-50X4 Enc.)", 96.5, 92.7,
        training_mode=False, relu_logits=True,
    ),
}  # fmt: skip
OTHER = Row("", math.nan, math.nan)  # how paper-code treats a backbone that Table III lacks


@dataclass(frozen=True)
class ProbeSettings:
    """One classifier over one backbone, tested on one split.

    Attributes:
      protocol: strict or paper-code.
      backbone: a name of `available_image_backbones`.
      layer: whose features; None: the one of the authors' code.
      weights: file of the backbone's weights; None: where `make_image_backbone` looks.
      split: a kind of `split_faces`.
      classifier: under strict logistic (regression), sgd (the field's linear evaluation) or knn;
        under paper-code adam, the authors' head.
      c: of logistic regression: inverse strength of the penalty; None: chosen on validation.
      epochs: of sgd and adam; None: 90, and the authors' for this backbone.
      test_share: of crops, videos or groups.
      validation_share: of what is not test; strict only.
      training_fakes: data, or self-blended: fakes are made of real faces, for training and
        validation; the test part keeps the data's. strict only.
      seed: of split, random weights, initial head, order of images, crops, flips, dropout, blends.
    """

    protocol: ProtocolName = "strict"
    backbone: str = "resnet50-random"
    layer: str | None = None
    weights: str | None = None
    split: SplitKind = "family"
    classifier: Classifier = "logistic"
    c: float | None = None
    epochs: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.2
    training_fakes: TrainingFakes = "data"
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for a value that no probe can have."""
        spec = image_backbone_spec(self.backbone)
        closed: dict[str, tuple[Any, ...]] = {
            "protocol": PROTOCOLS,  # first: the others depend on it
            "layer": (None, *spec.layers),
            "split": SPLIT_KINDS,
            "classifier": ("adam",)
            if self.protocol == "paper-code"
            else ("logistic", "sgd", "knn"),
            # paper-code computes features anew in each epoch, from the crops as they are.
            "training_fakes": ("data",)
            if self.protocol == "paper-code"
            else get_args(TrainingFakes),
        }
        for name, choices in closed.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} of {self.backbone} under {self.protocol} must be one of "
                    f"{', '.join(map(str, choices))}, got {getattr(self, name)!r}."
                )
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}.")
        if self.c is not None and (self.classifier != "logistic" or not 0 < self.c < math.inf):
            raise ValueError(f"c is logistic regression's and above 0, got {self.c}.")
        if self.epochs is not None and (self.classifier not in ("sgd", "adam") or self.epochs < 1):
            raise ValueError(f"epochs are those of sgd and adam, 1 or more, got {self.epochs}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")

    @property
    def taken_layer(self) -> str:
        """The layer whose features are read."""
        return self.layer or image_backbone_spec(self.backbone).layer

    @property
    def name(self) -> str:
        """For people and files: `strict-resnet50-random-avgpool-family-logistic-s0`."""
        parts = [self.protocol, self.backbone, self.taken_layer, self.split, self.classifier]
        if self.training_fakes != "data":
            parts.append(self.training_fakes)
        if self.c is not None:
            parts.append(f"C{self.c:g}")
        return "-".join([*parts, f"s{self.seed}"])

    def make_backbone(self) -> ImageBackbone:
        """Returns the backbone, see `make_image_backbone`; its preprocessing is the protocol's."""
        return make_image_backbone(
            self.backbone,
            layer=self.layer,
            weights=Path(self.weights) if self.weights else None,
            seed=self.seed,
            preprocessing="paper-code" if self.protocol == "paper-code" else "standard",
        )


class CropScores(NamedTuple):
    """What a probe said of the test crops: one entry each.

    Attributes:
      rows: of `FaceSet.frames`, int64 `[N]`.
      labels: 1 fake, 0 real.
      videos: row of `FaceSet.videos`.
      scores: probability of fake.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    videos: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def scored(self) -> Scored:
        """Returns them for `rayssl.detection_metrics`; clusters are videos."""
        return Scored(self.scores, self.labels, self.videos)


class ProbeRun(Protocol):
    """One probe under way. After the last epoch `test` and `head` hold what it leaves behind."""

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""

    def run_epoch(self) -> dict[str, Any]:
        """Runs one epoch (strict: everything) and returns its metrics."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on as if nothing had happened."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    @property
    def test(self) -> CropScores:
        """The test crops' scores that the protocol reports."""

    @property
    def head(self) -> dict[str, Any] | None:
        """What `load_probe` rebuilds the classifier from; None where it is not differentiable."""


def make_probe_run(
    settings: ProbeSettings, faces: FaceSet, features_dir: Path, device: str = "cpu"
) -> ProbeRun:
    """Returns a probe that has not begun; strict reads and fills the features' cache.

    Raises:
      ValueError: for settings that cannot work, or data that cannot be split so.
      MissingWeights: if the backbone's weights are nowhere.
    """
    settings.check()
    if settings.protocol == "strict":
        return StrictProbe(settings, faces, features_dir, device)
    return PaperCodeProbe(settings, faces, device)


class StrictProbe:
    """Frozen backbone, cached features, selection on validation, test read once. See ProbeRun."""

    def __init__(
        self, settings: ProbeSettings, faces: FaceSet, features_dir: Path, device: str = "cpu"
    ) -> None:
        self.settings, self._faces = settings, faces
        self._features_dir, self._device = features_dir, device
        self._split = split_of(settings, faces)
        self._result: tuple[CropScores, dict[str, Any] | None] | None = None

    @property
    def done(self) -> bool:
        """Whether the probe has been fitted and tested."""
        return self._result is not None

    def run_epoch(self) -> dict[str, Any]:
        """Extracts what the cache lacks, fits, chooses on validation, then reads the test part."""
        start = time.perf_counter()
        backbone = self.settings.make_backbone().to(self._device)
        sources = feature_sources(
            self.settings, backbone, self._faces, self._features_dir, self._device
        )
        extracted = {name: source.get() for name, source in sources.items()}
        features = extracted["crops"]
        train, validation = (
            training_part(self._faces, rows, features, extracted.get("blends"))
            for rows in (self._split.train, self._split.validation)
        )
        found = fit_classifier(self.settings, train, validation)
        log_p = found.probe.log_probabilities(features[self._split.test])  # the one reading
        test = crop_scores(self._faces, self._split.test, np.exp(log_p[:, 1]))
        head = None
        if isinstance(found.probe, LinearProbe):
            head = _head(self.settings, self._faces, backbone, found.probe, moved={})
        self._result = test, head
        return (
            {"epoch": 1, "selected_epoch": 1, "chosen": found.chosen, "tried": found.tried}
            | {"weights_id": backbone.weights_id}
            | {"validation_log_loss": found.validation_log_loss, "test_accuracy": accuracy(test)}
            | {"seconds": time.perf_counter() - start}
            | {"changed_parameters": [], "changed_statistics": []}  # else `frozen` had raised
            | final_metrics(test)
            | split_metrics(self._split)
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: a fit that was cut short is made again from the cache."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores nothing."""

    @property
    def test(self) -> CropScores:
        """The test crops' scores."""
        assert self._result is not None
        return self._result[0]

    @property
    def head(self) -> dict[str, Any] | None:
        """For `load_probe`; None for nearest neighbours."""
        assert self._result is not None
        return self._result[1]


class PaperCodeProbe:
    """The authors' protocol; see the module's docstring and ProbeRun.

    Global random state is left alone: dropout draws from a state of this object's own.
    """

    def __init__(self, settings: ProbeSettings, faces: FaceSet, device: str = "cpu") -> None:
        self.settings, self._faces, self._device = settings, faces, torch.device(device)
        self.row = TABLE_III.get(settings.backbone, OTHER)
        self._split = split_of(settings, faces)
        self._backbone = settings.make_backbone().to(device)
        self._hashes = tensor_hashes(self._backbone)
        head = HeadSettings(
            "adam", lr=self.row.lr, epochs=settings.epochs or self.row.epochs,
            batch_size=TRAINING_BATCH, schedule="constant", relu_logits=self.row.relu_logits,
        )  # fmt: skip
        self._head = HeadTraining(
            self._backbone.out_features, 2, head, seed=settings.seed, device=device
        )
        self._order = torch.Generator().manual_seed(settings.seed)
        # Not the order's seed: both would draw the same numbers.
        self._crops = torch.Generator().manual_seed(settings.seed + 2**31)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 2**32)
            self._dropout_state = torch.get_rng_state()
        self._best: dict[str, Any] = {}
        self._loss: float | None = None  # of the last epoch

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""
        return self._head.epoch >= self._head.settings.epochs

    def run_epoch(self) -> dict[str, Any]:
        """Trains the head for one epoch and tests it; keeps the best test epoch.

        Trains no further after the last epoch, whose metrics it returns again: a trial whose scores
        were lost goes on from there.
        """
        start, trains = time.perf_counter(), not self.done
        if trains:
            self._loss = self._train()
        test = crop_scores(self._faces, self._split.test, self._test())
        found, epoch = accuracy(test), self._head.epoch
        if trains and (not self._best or found > self._best["accuracy"]):
            self._best = {
                "accuracy": found, "epoch": epoch, "scores": torch.from_numpy(test.scores),
                "linear": copy.deepcopy(self._head.linear.state_dict()),
                "moved": self._moved(),
            }  # fmt: skip
        metrics: dict[str, Any] = {
            "epoch": epoch, "loss": self._loss, "test_accuracy": found,
            "selected_epoch": self._best["epoch"], "seconds": time.perf_counter() - start,
            "weights_id": self._backbone.weights_id,
        }  # fmt: skip
        if self.done:
            parameters = dict(self._backbone.named_parameters())
            changed = changed_tensors(self._hashes, self._backbone)
            metrics |= {
                "chosen": {"epoch": float(self._best["epoch"])},
                "changed_parameters": [name for name in changed if name in parameters],
                "changed_statistics": [name for name in changed if name not in parameters],
            }
            metrics |= final_metrics(self.test) | split_metrics(self._split)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Returns the head, the statistics that moved, the best epoch and all random states."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "faces": self._faces.fingerprint,
            "weights_id": self._backbone.weights_id,
            "epoch": self._head.epoch,
            "head": self._head.state_dict(),
            "moved": self._moved(),
            "order": self._order.get_state(),
            "crops": self._crops.get_state(),
            "dropout": self._dropout_state,
            "best": self._best,
            "loss": self._loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
          ValueError: if the state is of a probe with other settings, weights, faces or test crops.
        """
        own, theirs = dataclasses.asdict(self.settings), dict(state["settings"])
        weights_id = state.get("weights_id")
        if weights_id is not None:  # else an older state, which knows the file by its path only
            own["weights"] = theirs["weights"] = None  # the file may have moved
        if theirs != own:
            raise ValueError(f"Expected the state of a probe {own}, got {theirs}.")
        if weights_id not in (None, self._backbone.weights_id):
            path = f" of {self.settings.weights}" if self.settings.weights else ""
            raise ValueError(
                f"Expected {self.settings.backbone} over weights {weights_id}, got "
                f"{self._backbone.weights_id}{path}. Pass the weights that the probe began with."
            )
        check_faces(state.get("faces"), self._faces, "that the state is of")
        scores = state["best"].get("scores", ())  # of before any epoch: none
        if len(scores) not in (0, len(self._split.test)):  # older states had all fakes in the test
            raise ValueError(
                f"Expected the state of a probe of {len(self._split.test)} test crops, got "
                f"{len(scores)}: its split is another. Start another experiment with --name."
            )
        self._head.load_state_dict(state["head"])
        self._backbone.load_state_dict(state["moved"], strict=False)
        self._order.set_state(state["order"].cpu())
        self._crops.set_state(state["crops"].cpu())
        self._dropout_state, self._best = state["dropout"].cpu(), state["best"]
        self._loss = state.get("loss")  # older states have none

    @property
    def test(self) -> CropScores:
        """The test crops' scores in the best test epoch."""
        return crop_scores(self._faces, self._split.test, self._best["scores"].numpy())

    @property
    def head(self) -> dict[str, Any] | None:
        """For `load_probe`: the head of the best test epoch, with the statistics it was read by."""
        weight, bias = (
            self._best["linear"][key].cpu().numpy().astype(np.float64) for key in ("weight", "bias")
        )
        zero = np.zeros(weight.shape[1])
        probe = LinearProbe(weight, bias, zero, zero + 1, self.row.relu_logits)
        return _head(self.settings, self._faces, self._backbone, probe, self._best["moved"])

    def _train(self) -> float:
        self._backbone.train(self.row.training_mode)
        order = torch.randperm(len(self._split.train), generator=self._order).numpy()
        rows = self._split.train[order]
        labels = self._faces.labels
        devices = [self._device] if self._device.type == "cuda" else []
        # Not up to the last row: BatchNorm1d in training mode has no variance of one crop alone.
        starts = range(TRAINING_BATCH, len(rows) - 1, TRAINING_BATCH)

        def batches() -> Any:
            for part in np.split(rows, starts):
                x = self._images(part, train=True)
                with torch.no_grad():  # their optimizer knows the head only
                    features = self._backbone(x)
                yield features, torch.from_numpy(labels[part]).to(self._device)

        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._dropout_state)
            if devices:
                torch.cuda.manual_seed(self.settings.seed + self._head.epoch)
            loss = self._head.run_epoch(batches())
            self._dropout_state = torch.get_rng_state()
        return loss

    @torch.no_grad()
    def _test(self) -> npt.NDArray[np.float64]:
        self._backbone.eval()
        rows = self._split.test
        parts = []
        for part in np.split(rows, range(IMAGES_A_BATCH, len(rows), IMAGES_A_BATCH)):
            logits = self._head.logits(self._backbone(self._images(part, train=False)))
            parts.append(torch.softmax(logits.double(), 1)[:, 1].cpu().numpy())
        return np.concatenate(parts)

    def _images(self, rows: npt.NDArray[np.int64], *, train: bool) -> Tensor:
        crops = as_batch(self._faces.crops(rows)).to(self._device)
        return self._backbone.preprocess(crops, train=train, generator=self._crops)

    def _moved(self) -> dict[str, Tensor]:
        """Parameters and buffers that are no longer what they were, by name."""
        state = self._backbone.state_dict()
        return {n: state[n].clone() for n in changed_tensors(self._hashes, self._backbone)}


def check_faces(expected: str | None, faces: FaceSet, whose: str, advice: str = "") -> None:
    """Raises ValueError if a face set is not the one that something was made of.

    Args:
      expected: the fingerprint of then; None: nobody knows, it is older than this check.
      whose: which faces are expected, in words.
      advice: what to do; default: to start anew.
    """
    if expected not in (None, faces.fingerprint):
        raise ValueError(
            f"Expected the faces {expected} {whose}, got {faces.fingerprint} in {faces.folder}. "
            + (advice or "Results of two face sets do not mix: start another experiment.")
        )


def check_weights(rows: Iterable[Mapping[str, Any]], backbone: str, weights_id: str) -> None:
    """Raises ValueError if a backbone's weights are not those of the rows of a log.

    Rows from before they named their weights tell nothing; a random network has as many weights as
    there are seeds.

    Args:
      rows: of any backbones.
      backbone, weights_id: as the backbone is found now.
    """
    for row in rows:
        found = row.get("weights_id")
        if row.get("backbone") != backbone or found in (None, weights_id):
            continue
        if found.startswith(RANDOM) and weights_id.startswith(RANDOM):
            continue
        raise ValueError(
            f"Expected {backbone} over weights {found}, as in the rows of {row['trial']}, got "
            f"{weights_id}. Pass the weights of then, or start another experiment with --name."
        )


def split_of(settings: ProbeSettings, faces: FaceSet) -> FaceSplit:
    """Returns the split of a probe.

    Under paper-code it has no validation side, and of the fake crops of training and of test as
    many as there are real ones there: else, over DFD, a constant answer is right for nine of ten.

    Source: classification/transfer_learning of the authors' code, which draws as many fakes.
    """
    split = split_faces(
        faces,
        settings.split,
        seed=settings.seed,
        test_share=settings.test_share,
        validation_share=settings.validation_share if settings.protocol == "strict" else 0.0,
    )
    if settings.protocol == "strict":
        return split
    return with_as_many_fakes(split, faces, seed=settings.seed)


def fit_classifier(
    settings: ProbeSettings, train: LabelledFeatures, validation: LabelledFeatures
) -> Fitted:
    """Returns the classifier of a strict probe; it is shown no test set."""
    if settings.classifier == "knn":
        return fit_nearest_neighbours(train, validation)
    if settings.classifier == "sgd":
        head = HeadSettings(epochs=settings.epochs or HeadSettings.epochs)
        return fit_head(train, validation, settings=head, seed=settings.seed)
    if settings.c is not None:
        return fit_logistic_regression(train, validation, c_values=[settings.c])
    return fit_logistic_regression(train, validation)


class FeatureSource(NamedTuple):
    """Features that a strict probe needs: their cache, how many rows, and how to compute them."""

    cache: FeatureCache
    num_rows: int
    compute: Compute

    def get(self) -> npt.NDArray[np.float32]:
        """Returns all rows; computes what the cache lacks."""
        return self.cache.get(self.num_rows, self.compute)


def feature_sources(
    settings: ProbeSettings,
    backbone: ImageBackbone,
    faces: FaceSet,
    features_dir: Path,
    device: str = "cpu",
) -> dict[str, FeatureSource]:
    """Returns `crops`, and for self-blended training `blends`: one of each real crop, in order.

    The backbone is frozen while it computes. The blend of a crop depends on the seed and its row
    alone.
    """
    key = {
        "backbone": backbone.name,
        "weights": backbone.weights_id,
        "layer": backbone.layer,
        "preprocessing": backbone.preprocessing,
        "faces": faces.fingerprint,
    }

    def features_of(crops_of: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]) -> Compute:
        def compute(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            parts = []
            with frozen(backbone):  # here: nothing of a network that moved reaches the cache
                for part in np.split(rows, range(IMAGES_A_BATCH, len(rows), IMAGES_A_BATCH)):
                    x = backbone.preprocess(as_batch(crops_of(part)).to(device))
                    parts.append(backbone(x).float().cpu().numpy())
            return np.concatenate(parts)

        return compute

    real = np.flatnonzero(faces.labels == 0)

    def blends(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.concatenate([
            self_blend(faces.crops([row]), np.random.default_rng([settings.seed, row]))[0]
            for row in real[numbers]
        ])  # fmt: skip

    sources = {"crops": FeatureSource(
        FeatureCache(features_dir, key), len(faces.frames), features_of(faces.crops)
    )}  # fmt: skip
    if settings.training_fakes == "self-blended":
        cache = FeatureCache(features_dir, key | {"self_blended": settings.seed})
        sources["blends"] = FeatureSource(cache, len(real), features_of(blends))
    return sources


def training_part(
    faces: FaceSet,
    rows: npt.NDArray[np.int64],
    features: npt.NDArray[np.float32],
    blends: npt.NDArray[np.float32] | None,
) -> LabelledFeatures:
    """Returns features and labels of these crops; with blends, of the real ones and their blends.

    Args:
      features: of all crops.
      blends: of all real crops' blends, or None.
    """
    labels = faces.labels
    if blends is None:
        return LabelledFeatures(features[rows], labels[rows])
    real = rows[labels[rows] == 0]
    numbers = np.searchsorted(np.flatnonzero(labels == 0), real)
    x = np.concatenate([features[real], blends[numbers]])
    return LabelledFeatures(x, np.repeat(np.array([0, 1], np.int64), len(real)))


def dataset_of(faces: FaceSet) -> str:
    """Returns what the faces are, for headings: drawn ones are never called anything else."""
    if faces.videos["part"].str.startswith("drawn_faces").any():
        return "stand-in of drawn faces"
    return faces.folder.resolve().name


def as_batch(crops: npt.NDArray[np.uint8]) -> Tensor:
    """Returns crops `[N, S, S, 3]` as a tensor uint8 `[N, 3, S, S]`."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def crop_scores(
    faces: FaceSet, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> CropScores:
    """Returns scores with what the metrics need to know of their crops."""
    numbers = {name: i for i, name in enumerate(faces.videos["video"])}
    videos = np.array([numbers[name] for name in faces.frames["video"].to_numpy()[rows]], np.int64)
    return CropScores(rows, faces.labels[rows], videos, scores)


def accuracy(test: CropScores) -> float:
    """Returns the share of crops on the right side of the threshold."""
    return float(((test.scores > THRESHOLD) == test.labels).mean())


def final_metrics(test: CropScores) -> dict[str, Any]:
    """Returns every metric with its 95% interval over videos: of frames, and of videos' means."""
    found: dict[str, Any] = {"test_frames": len(test.rows)}
    for level, scored in (("frame", test.scored()), ("video", per_cluster(test.scored()))):
        intervals = metric_intervals([scored])
        for name in METRICS:
            found[f"{level}_{name}"] = list(intervals[name])
    return found | {"test_videos": len(np.unique(test.videos))}


def split_metrics(split: FaceSplit) -> dict[str, Any]:
    """Returns sizes of the parts and what the test part shares with the others."""
    sizes = {"train": len(split.train), "validation": len(split.validation),
             "test": len(split.test)}  # fmt: skip
    return {"sizes": sizes, "leakage": split.leakage._asdict()}


def load_probe(
    head: Mapping[str, Any], weights: Path | None = None
) -> tuple[ImageBackbone, nn.Module]:
    """Returns the backbone and the head over its features, as a probe was tested with them.

    Args:
      head: what a probe's `head` returned.
      weights: the backbone's file, where it has moved since; None: as the probe's settings say.
    Raises:
      ValueError: if the backbone that is found now is not the one of then.
      MissingWeights: if its weights are nowhere.
    """
    settings = ProbeSettings(**head["settings"])
    if weights is not None:
        settings = dataclasses.replace(settings, weights=str(weights))
    try:
        backbone = settings.make_backbone()
    except MissingWeights as error:
        raise MissingWeights(f"{error} If it has moved, pass its path with --weights.") from error
    if backbone.weights_id != head["weights_id"]:
        raise ValueError(
            f"Expected {settings.backbone} with weights {head['weights_id']}, got "
            f"{backbone.weights_id}. Pass the file that the probe was fitted over with --weights."
        )
    backbone.load_state_dict(head["moved"], strict=False)
    arrays = {k: head[k].numpy() for k in ("weight", "bias", "mean", "scale")}
    return backbone, LinearProbe(**arrays, relu_logits=head["relu_logits"]).module().eval()


def _head(
    settings: ProbeSettings,
    faces: FaceSet,
    backbone: ImageBackbone,
    probe: LinearProbe,
    moved: dict[str, Tensor],
) -> dict[str, Any]:
    arrays = {k: torch.from_numpy(getattr(probe, k)) for k in ("weight", "bias", "mean", "scale")}
    return {
        "kind": "deepfake-probe",
        "settings": dataclasses.asdict(settings),
        "faces": faces.fingerprint,
        "weights_id": backbone.weights_id,
        "relu_logits": probe.relu_logits,
        "moved": {name: tensor.cpu() for name, tensor in moved.items()},
        **arrays,
    }
