"""Pretraining of a backbone on labelled images and a pretext task at once (eq. 3). No Ray.

    for row in Pretraining(settings, ClassFolders(root, 224)).progress(): ...

Data parallel where torch.distributed is set up: W processes with batches of B / W make the updates
that one process makes with batches of B. The order of images and their random parts are functions
of seed, epoch and image; sums over a batch are divided by the counts of the joint batch; BatchNorm
takes the statistics of the joint batch. Dropout alone (AlexNet without BatchNorm) draws in each
process for itself.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rayssl.backbones.images import IMAGENET_MEAN, IMAGENET_STD, image_backbone_spec
from rayssl.data.class_folders import ClassFolders, Key
from rayssl.losses import combined_loss, pretext_loss
from rayssl.networks import ClassHead, MultiHeadNetwork
from rayssl.tasks import PretextTask, make_task

Arch = Literal["alexnet", "alexnet-rotnet", "resnet50"]
# Architecture -> the backbone that its weights are for, and the last layer's name in such a file.
BACKBONES: Final[dict[str, tuple[str, str]]] = {
    "alexnet": ("alexnet-imagenet", "classifier.6."),
    "alexnet-rotnet": ("alexnet-rotnet", "_feature_blocks.9.0."),
    "resnet50": ("resnet50-imagenet", "fc."),
}
FIGURES = ("loss", "class_loss", "aux_loss", "accuracy", "aux_accuracy")


@dataclass(frozen=True)
class PretrainSettings:
    """One pretraining; the defaults are RotNet's for AlexNet on ImageNet.

    Attributes:
      arch: of the backbone.
      task: the pretext task; each image is seen under every one of its labels, all of one crop.
      aux_weight: lambda of eq. (3); 0: plain supervised training, without copies.
      labels: train on the folders' labels (eq. 1), too; False: the pretext task alone, as RotNet.
      epochs: passes over the images. The last images that fill no batch are left out of a pass.
      batch_size: images an update, in all processes together; rotated copies come on top.
      lr: of SGD with Nesterov momentum.
      lr_steps: epochs after which lr is divided by ten.
      momentum, weight_decay: of SGD.
      image_size: side of the images that the network sees, pixels.
      sync_batch_norm: statistics of the joint batch, so that the number of processes does not
        matter; False: each process its own, and the first one's running averages are kept.
      checkpoint_every: updates between two checkpoints within an epoch.
      seed: of weights, order of images, random parts and dropout.
    """

    arch: Arch = "alexnet-rotnet"
    task: str = "rotation"
    aux_weight: float = 1.0
    labels: bool = True
    epochs: int = 50
    batch_size: int = 192
    lr: float = 0.01
    lr_steps: tuple[int, ...] = (15, 30, 45)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    image_size: int = 224
    sync_batch_norm: bool = True
    checkpoint_every: int = 1_000
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for a value that no pretraining can have."""
        if self.arch not in get_args(Arch):
            raise ValueError(f"Unknown arch {self.arch!r}. Available: {', '.join(get_args(Arch))}.")
        task = make_task(self.task)
        image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8)
        if not torch.equal(task.every_class(image)[0][:1], image):
            raise ValueError(
                f"The task {self.task} changes images under its first label, too, got no upright "
                "ones for the labels. Use the rotation task."
            )
        for name in ("epochs", "batch_size", "image_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        for name, least in (("lr", "above 0"), ("aux_weight", "0 or more"),
                            ("weight_decay", "0 or more")):  # fmt: skip
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "lr"):
                raise ValueError(f"{name} must be a finite number {least}, got {value}.")
        if not 0 < self.momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {self.momentum}.")
        if any(step < 1 for step in self.lr_steps):
            raise ValueError(f"lr_steps must be 1 or more each, got {self.lr_steps}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")
        if not self.labels and self.aux_weight == 0:
            raise ValueError(
                "Nothing is left to train on without labels and with aux_weight 0. Give one."
            )
        if self.arch == "alexnet-rotnet" and self.image_size != 224:
            raise ValueError(f"alexnet-rotnet needs image_size 224, got {self.image_size}.")
        if self.batch_size < 2 and self.aux_weight == 0 and self.arch != "alexnet":
            raise ValueError(
                f"{self.arch} normalizes over a batch: without a pretext task, which shows copies "
                f"of each image, batch_size must be 2 or more, got {self.batch_size}."
            )
        if self.image_size < 63 and self.arch == "alexnet":
            raise ValueError(f"alexnet needs image_size 63 or more, got {self.image_size}.")


class Pretraining:
    """One pretraining, or this process's part of it; its whole state can be saved at each row.

    Global random state is left alone.

    Args:
      settings: checked here.
      train: the images.
      validation: images whose accuracies are measured after each epoch; None: none.
      device: of this process.
      loader_processes: that read images beside this one.
      stop: asked before each update; where it says yes in any process, all yield a last row after
        the update and end.
    Raises:
      ValueError: for settings that cannot work, a batch that the processes cannot share equally,
        or more images in a batch than there are.
    """

    def __init__(
        self, settings: PretrainSettings, train: ClassFolders,
        validation: ClassFolders | None = None, *, device: str = "cpu", loader_processes: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        settings.check()
        check_data(settings, train, validation)
        self.settings, self.train, self.validation = settings, train, validation
        self._images = train.fingerprint()
        self.device, self._loader_processes = torch.device(device), loader_processes
        self._stop, self.stopped = stop, False
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if _joint() else (0, 1)
        check_share(settings.batch_size, self.world)
        self.task: PretextTask | None = make_task(settings.task) if settings.aux_weight else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = _network(settings, len(train.classes))
        self.network = self.network.to(
            self.device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        model: nn.Module = _Logits(self.network)
        if self.world > 1:
            if settings.sync_batch_norm:
                model = _with_joint_batch_norm(model, self.device)
            model = nn.parallel.DistributedDataParallel(model)
        self.model = model
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), settings.lr, settings.momentum,
            weight_decay=settings.weight_decay, nesterov=True,
        )  # fmt: skip
        self.epoch = self.update = 0  # finished epochs; updates in the current one
        self._sums = torch.zeros(len(FIGURES) + 2, dtype=torch.float64, device=self.device)

    @property
    def updates_per_epoch(self) -> int:
        """Updates in a pass over the images."""
        return len(self.train) // self.settings.batch_size

    @property
    def done(self) -> bool:
        """Whether the last epoch has run."""
        return self.epoch >= self.settings.epochs

    def progress(self) -> Iterator[dict[str, Any]]:
        """Trains, and yields a row after every `checkpoint_every` updates and after each epoch.

        Yields:
          epoch (from 1), update (in it), updates (of an epoch), lr, images_per_s since the last
          row, and means over the epoch so far: loss; class_loss and accuracy (labels); aux_loss and
          aux_accuracy (task). After an epoch also epoch_done True and, with validation images,
          validation_accuracy and validation_aux_accuracy. Accuracies in [0, 1].
        Raises:
          FloatingPointError: if the loss is not finite.
        """
        while not self.done and not self.stopped:
            yield from self._epoch()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on as if nothing had happened.

        All processes must call it together.
        """
        return {
            "settings": dataclasses.asdict(self.settings),
            "images": self._images,
            "epoch": self.epoch,
            "update": self.update,
            "sums": _summed(self._sums).cpu(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, in a run with any number of processes.

        Raises:
          ValueError: if the state is of other settings or images.
        """
        own = dataclasses.asdict(self.settings)
        for name, value in own.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"Expected the state of a pretraining with {name} {value}, got "
                    f"{state['settings'].get(name)}. Resume with the settings it was made with."
                )
        if state["images"] != self._images:
            raise ValueError(
                f"The images in {self.train.root} are not those that the run began with. Restore "
                "them, or start a new run."
            )
        self.epoch, self.update = state["epoch"], state["update"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.zero_()
        if self.rank == 0:  # the sums of all processes
            self._sums.copy_(state["sums"])

    def weights(self) -> dict[str, Tensor]:
        """Returns the backbone's weights and the last layer's under the names of its files.

        The last layer is that of the labels, or of the pretext task where there are no labels.
        """
        state = dict(self.network.backbone.state_dict())
        head = self.network.heads["class" if self.settings.labels else "aux"].state_dict()
        last = BACKBONES[self.settings.arch][1]
        for name, value in head.items():
            state[last + name.rpartition(".")[2]] = value
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def _epoch(self) -> Iterator[dict[str, Any]]:
        """The rest of the current epoch."""
        s = self.settings
        lr = s.lr * 0.1 ** sum(self.epoch >= step for step in s.lr_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        start, first = time.perf_counter(), self.update
        self.model.train()
        for images, labels in self._loader(self._batches()):
            self._update(images, labels)
            self.update += 1
            last = self.update == self.updates_per_epoch
            if not last and not self.stopped and self.update % s.checkpoint_every:
                continue
            row = {"epoch": self.epoch + 1, "update": self.update,
                   "updates": self.updates_per_epoch, "lr": lr}  # fmt: skip
            row |= self._means()
            seconds = time.perf_counter() - start
            row["images_per_s"] = (self.update - first) * s.batch_size / seconds
            if last:
                row["epoch_done"] = True
                if self.validation is not None:
                    row |= self._validate(self.validation)
                self.epoch, self.update = self.epoch + 1, 0
                self._sums.zero_()
            yield row
            if self.stopped:
                return
            start, first = time.perf_counter(), self.update

    def _batches(self) -> list[list[Key]]:
        """This process's part of each batch that is left of the epoch."""
        s = self.settings
        seed = s.seed * 1_000_003 + self.epoch  # a prime above any number of epochs
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        batches = order[: self.updates_per_epoch * s.batch_size].view(-1, s.batch_size)
        share = s.batch_size // self.world
        own = batches[self.update :, self.rank * share : (self.rank + 1) * share]
        return [[(self.epoch, index) for index in batch] for batch in own.tolist()]

    def _loader(self, batches: list[list[Key]], images: ClassFolders | None = None) -> Any:
        return DataLoader(
            self.train if images is None else images,
            batch_sampler=batches,
            num_workers=self._loader_processes,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws a seed from the global random state
        )

    def _update(self, images: Tensor, labels: Tensor) -> None:
        """One update of all processes together."""
        images, labels = images.to(self.device), labels.to(self.device)
        share = len(images)
        x, y_hat, usable = images, labels, torch.zeros(0, dtype=torch.bool, device=self.device)
        if self.task:
            x, y_hat = self.task.every_class(images)
            usable = self.task.usable(images).repeat(self.task.num_classes)
        counts = torch.stack([torch.tensor(share, device=self.device), usable.sum()]).double()
        asked = counts.new_tensor([float(self._stop())])
        joint = _summed(torch.cat([counts, asked]))
        self.stopped = bool(joint[2] > 0)
        # Times W, as the mean over processes is taken of their gradients.
        weight = (self.world * counts / joint[:2].clamp(min=1)).float()
        logits = self._logits(x, share)
        zero = torch.zeros((), device=self.device)
        class_loss = aux_loss = class_hits = aux_hits = zero
        if self.settings.labels:
            class_loss = F.cross_entropy(logits["class"], labels) * weight[0]
            class_hits = (logits["class"].argmax(1) == labels).sum()
        if self.task:
            aux_loss = pretext_loss(logits["aux"], y_hat, usable) * weight[1]
            aux_hits = ((logits["aux"].argmax(1) == y_hat) & usable).sum()
        loss = combined_loss(class_loss, aux_loss, self.settings.aux_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        losses = torch.stack([loss, class_loss, aux_loss]).detach().double() / self.world
        hits = torch.stack([class_hits, aux_hits]).double()
        self._sums += torch.cat([losses, hits, counts])

    def _logits(self, x: Tensor, upright: int) -> dict[str, Tensor]:
        """Each head's logits; dropout's draws follow from seed, epoch, update and process."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            place = (self.epoch * self.updates_per_epoch + self.update) * self.world + self.rank
            torch.manual_seed(self.settings.seed * 1_000_003 + place)
            logits: dict[str, Tensor] = self.model(normalized(x), upright)
        return logits

    def _means(self) -> dict[str, float]:
        """Means over the epoch so far, of all processes."""
        sums = _summed(self._sums)
        images, usable = sums[-2:].tolist()
        divisors = (self.update, self.update, self.update, max(images, 1), max(usable, 1))
        values = dict(zip(FIGURES, (sums[:-2] / sums.new_tensor(divisors)).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"The loss was {values['loss']} in epoch {self.epoch + 1}. Lower lr or aux_weight."
            )
        left_out = set() if self.settings.labels else {"class_loss", "accuracy"}
        left_out |= set() if self.task else {"aux_loss", "aux_accuracy"}
        return {name: value for name, value in values.items() if name not in left_out}

    @torch.no_grad()
    def _validate(self, images: ClassFolders) -> dict[str, float]:
        """Accuracies on the centres of the validation images, shared among the processes."""
        share = max(1, self.settings.batch_size // self.world)
        own = list(range(self.rank, len(images), self.world))
        batches = [[(-1, i) for i in own[j : j + share]] for j in range(0, len(own), share)]
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        # Not the wrapped network: processes may have different numbers of batches.
        model = _Logits(self.network).eval()
        for x, labels in self._loader(batches, images):
            x, labels = x.to(self.device), labels.to(self.device)
            upright, y_hat, usable = len(x), labels, labels[:0].bool()
            if self.task:
                usable = self.task.usable(x).repeat(self.task.num_classes)
                x, y_hat = self.task.every_class(x)
            logits = model(normalized(x), upright)
            if self.settings.labels:
                sums[0] += (logits["class"].argmax(1) == labels).sum()
            if self.task:
                sums[1] += ((logits["aux"].argmax(1) == y_hat) & usable).sum()
            sums[2:] += torch.stack([torch.tensor(upright, device=self.device), usable.sum()])
        model.train()
        hits, aux_hits, count, usable_count = _summed(sums).tolist()
        found = {"validation_accuracy": hits / count} if self.settings.labels else {}
        if self.task:
            found["validation_aux_accuracy"] = aux_hits / max(usable_count, 1)
        return found


def check_data(
    settings: PretrainSettings, train: ClassFolders, validation: ClassFolders | None
) -> None:
    """Raises ValueError if the images cannot fill a batch or the two folders' classes differ."""
    if len(train) < settings.batch_size:
        raise ValueError(
            f"{train.root} holds {len(train)} images, fewer than batch_size "
            f"{settings.batch_size}. Lower it."
        )
    if validation is not None and validation.classes != train.classes:
        different = sorted(set(validation.classes) ^ set(train.classes))
        raise ValueError(
            f"{validation.root} must have the classes of {train.root}, got a difference in "
            f"{', '.join(different[:5])}."
        )


def check_share(batch_size: int, processes: int) -> None:
    """Raises ValueError if a batch cannot be shared out in equal parts."""
    if batch_size % processes:
        raise ValueError(
            f"batch_size must be a multiple of the {processes} workers, got {batch_size}. Use "
            f"{max(1, batch_size // processes) * processes}."
        )


def normalized(x: Tensor) -> Tensor:
    """Returns images as the backbones take them: uint8 `[B, 3, H, W]` -> (x / 255 - mean) / std."""
    mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=x.device).view(3, 1, 1)
    return (x.to(torch.float32, memory_format=torch.channels_last) / 255 - mean) / std


class _Logits(nn.Module):
    """One pass through the backbone; "class" logits of the first images, "aux" logits of all."""

    def __init__(self, network: MultiHeadNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, upright: int) -> dict[str, Tensor]:
        features = self.network.backbone(x)
        parts = {"class": features[:upright], "aux": features}
        return {name: head(parts[name]) for name, head in self.network.heads.items()}


def _network(settings: PretrainSettings, num_classes: int) -> MultiHeadNetwork:
    """The backbone draws its initial weights first: arms of one seed start from the same one."""
    spec = image_backbone_spec(BACKBONES[settings.arch][0])
    backbone = spec.build()
    features = spec.layers[spec.layer]
    heads: dict[str, nn.Module] = {}
    if settings.labels:
        heads["class"] = ClassHead(features, num_classes)
    if settings.aux_weight:
        heads["aux"] = ClassHead(features, make_task(settings.task).num_classes)
    return MultiHeadNetwork(backbone, heads)


def _joint() -> bool:
    return dist.is_available() and dist.is_initialized()


def _summed(x: Tensor) -> Tensor:
    """The sum over all processes; in one process a copy."""
    x = x.clone()
    if _joint():
        dist.all_reduce(x)
    return x


class _AllReduce(torch.autograd.Function):
    """Sum over all processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


class _JointBatchNorm(nn.Module):
    """BatchNorm over the batches of all processes, which are of one size; also on the CPU.

    PyTorch's own SyncBatchNorm runs on GPUs only. Holds the tensors of the layer it replaces.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, cast(float, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        batch_mean = _AllReduce.apply(x.sum(dims)) / count
        centred = x - batch_mean.view(shape)
        batch_var = _AllReduce.apply(centred.pow(2).sum(dims)) / count
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum)
            var.lerp_(batch_var * count / (count - 1), self.momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        scale = self.weight * (batch_var + self.eps).rsqrt()
        return centred * scale.view(shape) + self.bias.view(shape)


def _with_joint_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with BatchNorms of the joint batch; parameters and names stay."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, _JointBatchNorm(child))
    return model
