"""The paper's f, g and h: one backbone f, a head for the main job and a pretext head over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rayssl.backbones.atari import make_trunk, xavier_
from rayssl.backbones.mnist import MnistBackbone
from rayssl.tasks import (
    AnyTask,
    Encoder,
    PretextTask,
    Sequences,
    SequenceTask,
    TaskLoss,
    TrunkShape,
    make_tasks,
)


class OutputLinear(nn.Linear):
    """A last layer that computes in float32 whatever the dtype of its input.

    Two actions may differ by less than bfloat16's 1/256 relative step: Q-values are never rounded.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight, self.bias)


def _branch(in_features: int, hidden: int | None, out_features: int) -> nn.Sequential:
    """One linear layer, after a ReLU layer of its own where `hidden` says so."""
    if hidden is None:
        return nn.Sequential(OutputLinear(in_features, out_features))
    branch = nn.Sequential(
        nn.Linear(in_features, hidden), nn.ReLU(), OutputLinear(hidden, out_features)
    )
    xavier_(branch)
    return branch


class DuelingHead(nn.Module):
    """Returns Q-values from features: Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a').

    Args of the forward pass:
      features: `[B, in_features]`.
    Returns:
      float32 `[B, num_actions]`.
    Source: Wang et al. 2016, arXiv:1511.06581, eq. (9).
    """

    def __init__(self, in_features: int, num_actions: int, hidden: int | None = None) -> None:
        super().__init__()
        self.advantage = _branch(in_features, hidden, num_actions)
        self.value = _branch(in_features, hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        advantage = self.advantage(features)  # [B, A]
        value = self.value(features)  # [B, 1]
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class ClassHead(nn.Module):
    """Returns class logits from features; the paper's g for labels and h for pretext labels.

    Args of the forward pass:
      features: `[B, in_features]`.
    Returns:
      float32 `[B, num_classes]`.
    Source: section IV-A (g and h); section V-B (their layers).
    """

    def __init__(self, in_features: int, num_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        self.logits = _branch(in_features, hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features)


class MultiHeadNetwork(nn.Module):
    """A shared backbone f under named heads; a call runs f and the one head that is asked for.

    Args of the forward pass:
      x: what the backbone takes, e.g. uint8 `[B, 4, 84, 84]`.
      head: a name among the heads, e.g. "q" or "aux"; "aux/rotation" for one of several.
    Returns:
      that head's output, float32 `[B, ...]`. The other heads are not computed (Fig. 6).
    Source: Figs. 1 and 6.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor, head: str) -> Tensor:
        return self.head_at(head)(self.backbone(x))

    def head_at(self, path: str) -> nn.Module:
        """Returns the head of this name; of heads within heads, with their names joined by "/"."""
        found: nn.Module = self.heads
        for name in path.split("/"):
            found = found[name]  # type: ignore[index]
        return found

    def encoder(self, parameters: dict[str, Tensor], head: str) -> Encoder:
        """Returns the backbone, computed with these parameters, under one of the heads.

        A ClassHead computes with these parameters, too; heads of a task's own with theirs, which
        are float32.
        """
        trunk = _below("backbone", parameters)
        own_head = self.head_at(head)
        if isinstance(own_head, ClassHead):
            own = _below(f"heads.{head.replace('/', '.')}", parameters)
            own_head = partial(functional_call, own_head, own)  # type: ignore[assignment]
        return Encoder(
            features=lambda x: functional_call(self.backbone, trunk, (x,)),
            feature_map=lambda x: functional_call(self.backbone, trunk, (x, True)),
            features_of_map=lambda x: functional_call(self.backbone, trunk, (x, False, True)),
            head=own_head,
        )

    def cast_parameters(
        self, dtype: torch.dtype, parameters: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Returns name -> parameter in `dtype`, for `call_with`; last layers stay in float32.

        Cast once per update and used by several forward passes; gradients flow to the originals.

        Args:
          dtype: of all but the last layers.
          parameters: name -> tensor, in place of the module's own parameters, float32.
        """
        keep = {
            f"{name}.{leaf}"
            for name, module in self.named_modules()
            if isinstance(module, OutputLinear)
            for leaf in ("weight", "bias")
        }
        own = dict(self.named_parameters()) if parameters is None else parameters
        return {n: p if n in keep else p.to(dtype) for n, p in own.items()}

    def cast_into(
        self, kept: dict[str, Tensor], dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        """Writes what `cast_parameters` returns into `kept`, without gradients.

        Tensors that are there already stay at their address: a CUDA graph knows them by it.

        Args:
          kept: name -> tensor, empty at first.
          dtype: as for `cast_parameters`.
          device: where tensors are made that are not there yet; None: the parameters' own.
        """
        with torch.no_grad():
            for name, parameter in self.cast_parameters(dtype).items():
                if name in kept:
                    kept[name].copy_(parameter)
                else:
                    kept[name] = parameter.detach().clone().to(device or parameter.device)

    def call_with(self, parameters: dict[str, Tensor], x: Tensor, head: str) -> Tensor:
        """Returns the head's output computed with these parameters in place of the module's own."""
        return functional_call(self, parameters, (x, head))


@dataclass(frozen=True)
class Classification:
    """A PretextTask as a SequenceTask without steps: cross-entropy of a ClassHead (eq. 2)."""

    task: PretextTask
    num_steps: int = 0
    target_rate: float | None = None
    rewarding_share: float | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def chance(self, *, num_actions: int, batch_size: int) -> float:
        """Returns 1 / K."""
        return 1 / self.task.num_classes

    def make_head(self, trunk: TrunkShape, num_actions: int) -> nn.Module:
        """Returns a ClassHead."""
        return ClassHead(trunk.features, self.task.num_classes, trunk.hidden)

    def usable(self, data: Sequences) -> Tensor:
        """Returns which observations carry a label: bool `[B]`."""
        return self.task.usable(data.obs[:, 0])

    def draw(self, data: Sequences, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Returns x_hat and y_hat."""
        return self.task(data.obs[:, 0], generator=generator)

    def loss(self, online: Encoder, target: Encoder | None, drawn: tuple[Tensor, ...]) -> TaskLoss:
        """Returns the cross-entropy of each label, and whether its logit is the largest."""
        x_hat, y_hat = drawn
        logits = online.head(online.features(x_hat))
        losses = F.cross_entropy(logits.float(), y_hat, reduction="none")
        return TaskLoss(losses, (logits.argmax(dim=1) == y_hat).float())


def as_sequence_task(task: AnyTask) -> SequenceTask:
    """Returns the task itself, or a PretextTask behind the wider protocol."""
    return Classification(task) if isinstance(task, PretextTask) else task


def _below(prefix: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one part of a network, under its own names."""
    start = prefix + "."
    return {n.removeprefix(start): p for n, p in parameters.items() if n.startswith(start)}


def head_paths(aux_task: str | None) -> dict[str, str]:
    """Returns task -> path of its head in a network (`MultiHeadNetwork.head_at`).

    Args:
      aux_task: a task, a combination such as `permutation+inverse`, or none.
    """
    names = [task.name for task in make_tasks(aux_task)]
    return {name: "aux" if len(names) == 1 else f"aux/{name}" for name in names}


def make_atari_network(
    name: str,
    *,
    num_actions: int,
    aux_classes: int = 0,
    aux_task: str | None = None,
    stack: int = 4,
    size: int = 84,
) -> MultiHeadNetwork:
    """Returns the network of an arm: a trunk by name, a dueling head, and a pretext head if any.

    Args:
      name: `paper-code`, `paper-text` or `nature` (rayssl.backbones.atari.TRUNKS).
      num_actions: A, at least 1.
      aux_classes: K of a pretext task; 0 for no such head.
      aux_task: instead of aux_classes, the task or combination whose heads are wanted.
      stack: frames in a state.
      size: side of a frame in pixels.
    Returns:
      a MultiHeadNetwork with heads "q" and, where there is a task, "aux"; with several tasks "aux"
      holds a head for each (`head_paths`). Trunk and Q-head draw their initial weights before the
      aux head, so that arms of one seed start from the same agent.
    Raises:
      ValueError: for an unknown name or frames too small.
    """
    trunk, spec = make_trunk(name, stack=stack, size=size)
    heads: dict[str, nn.Module] = {
        "q": DuelingHead(trunk.out_features, num_actions, spec.branch_hidden)
    }
    if aux_classes:
        heads["aux"] = ClassHead(trunk.out_features, aux_classes, spec.branch_hidden)
    shape = TrunkShape(trunk.out_features, trunk.map_shape, spec.branch_hidden)
    made = {
        task.name: as_sequence_task(task).make_head(shape, num_actions)
        for task in make_tasks(None if aux_classes else aux_task)
    }
    if made:
        heads["aux"] = nn.ModuleDict(made) if len(made) > 1 else next(iter(made.values()))
    return MultiHeadNetwork(trunk, heads)


def make_mnist_network(
    *,
    num_classes: int,
    mean: float,
    std: float,
    aux_classes: int = 0,
    aux_task: SequenceTask | None = None,
    relu_after_conv2: bool = True,
) -> MultiHeadNetwork:
    """Returns Table V's network for 28x28 images: heads "class" and, if asked for, "aux".

    Args:
      num_classes: labels of the data set.
      mean, std: of the training pixels in [0, 1].
      aux_classes: K of the pretext task; 0 for no such head.
      aux_task: instead of aux_classes, a task with a head of its own.
      relu_after_conv2: as Table V has it; False: as the authors' code.
    Returns:
      a MultiHeadNetwork; backbone and class head draw their initial weights before the aux head,
      so that arms of one seed start from the same classifier.
    Source: Table V; Fig. 2.
    """
    backbone = MnistBackbone(mean, std, relu_after_conv2=relu_after_conv2)
    heads: dict[str, nn.Module] = {"class": ClassHead(backbone.out_features, num_classes)}
    if aux_classes:
        heads["aux"] = ClassHead(backbone.out_features, aux_classes)
    if aux_task is not None:
        shape = TrunkShape(backbone.out_features, backbone.map_shape)
        heads["aux"] = aux_task.make_head(shape, num_classes)
    return MultiHeadNetwork(backbone, heads)
