"""The paper's f, g and h: one backbone f, a head for the main job and a pretext head over it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rayssl.backbones.atari import make_trunk, xavier_
from rayssl.backbones.mnist import MnistBackbone


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
      head: a name among the heads, e.g. "q" or "aux".
    Returns:
      that head's output, float32 `[B, ...]`. The other heads are not computed (Fig. 6).
    Source: Figs. 1 and 6.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor, head: str) -> Tensor:
        return self.heads[head](self.backbone(x))

    def cast_parameters(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Returns name -> parameter in `dtype`, for `call_with`; last layers stay in float32.

        Cast once per update and used by several forward passes; gradients flow to the originals.
        """
        keep = {
            f"{name}.{leaf}"
            for name, module in self.named_modules()
            if isinstance(module, OutputLinear)
            for leaf in ("weight", "bias")
        }
        return {n: p if n in keep else p.to(dtype) for n, p in self.named_parameters()}

    def call_with(self, parameters: dict[str, Tensor], x: Tensor, head: str) -> Tensor:
        """Returns the head's output computed with these parameters in place of the module's own."""
        return functional_call(self, parameters, (x, head))


def make_atari_network(
    name: str, *, num_actions: int, aux_classes: int, stack: int = 4, size: int = 84
) -> MultiHeadNetwork:
    """Returns the network of an arm: a trunk by name, a dueling head, and a pretext head if any.

    Args:
      name: `paper-code`, `paper-text` or `nature` (rayssl.backbones.atari.TRUNKS).
      num_actions: A, at least 1.
      aux_classes: K of the pretext task; 0 for no aux head (task `none`).
      stack: frames in a state.
      size: side of a frame in pixels.
    Returns:
      a MultiHeadNetwork with heads "q" and, where aux_classes > 0, "aux". Trunk and Q-head draw
      their initial weights before the aux head, so that arms of one seed start from the same agent.
    Raises:
      ValueError: for an unknown name or frames too small.
    """
    trunk, spec = make_trunk(name, stack=stack, size=size)
    heads: dict[str, nn.Module] = {
        "q": DuelingHead(trunk.out_features, num_actions, spec.branch_hidden)
    }
    if aux_classes:
        heads["aux"] = ClassHead(trunk.out_features, aux_classes, spec.branch_hidden)
    return MultiHeadNetwork(trunk, heads)


def make_mnist_network(
    *, num_classes: int, aux_classes: int, mean: float, std: float, relu_after_conv2: bool = True
) -> MultiHeadNetwork:
    """Returns Table V's network for 28x28 images: heads "class" and, if asked for, "aux".

    Args:
      num_classes: labels of the data set.
      aux_classes: K of the pretext task; 0 for no aux head (task `none`).
      mean, std: of the training pixels in [0, 1].
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
    return MultiHeadNetwork(backbone, heads)
