"""BiGAN as Donahue et al. trained it on MNIST: three networks of dense layers, one joint update.

    G:  z -> 1024, BN, ReLU -> 1024 of (h, z), BN, ReLU -> pixels, sigmoid
    E:  x -> 1024, LReLU    -> 1024, BN, LReLU          -> z, into (-1, 1)
    D:  x -> 1024, LReLU    -> 1024 of (h, z), BN, LReLU -> 1

No layer has a bias, BN neither gain nor bias. In G, too, z enters twice: the text does not say so,
the authors' code (jeffdonahue/bigan, net.py) does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.bigan.settings import AdversarialSettings
from rayssl.losses import bigan_losses

LEAK = 0.2  # of the leaky ReLUs
KINDS = ("d_loss", "ge_loss", "score_encoded", "score_generated")  # of an update's figures


@dataclass(frozen=True)
class BiganSettings(AdversarialSettings):
    """Donahue et al.'s training on MNIST: their code's train_mnist.sh and defaults.

    Attributes:
      width: units of each hidden layer.
      weight_decay: L2, added to the gradient of every weight.
    """

    epochs: int = 400
    batch_size: int = 128
    lr: float = 2e-4
    beta1: float = 0.5
    decay_share: float = 0.5
    z_dim: int = 50
    size: int = 28
    width: int = 1024
    weight_decay: float = 2.5e-5


def _dense(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def _batch_norm(units: int) -> nn.BatchNorm1d:
    # momentum=None: running statistics are plain means over batches (see AdversarialTraining).
    return nn.BatchNorm1d(units, eps=1e-8, momentum=None, affine=False)


class BiganGenerator(nn.Module):
    """Returns images G(z).

    Args of the forward pass:
      z: float32 `[B, z_dim]` in (-1, 1).
    Returns:
      float32 `[B, pixels]` in (0, 1).
    Source: Donahue et al. 2016, arXiv:1605.09782, section 4.1; jeffdonahue/bigan, net.py.
    """

    def __init__(self, pixels: int, z_dim: int, width: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = _dense(z_dim, width), _batch_norm(width)
        self.fc2, self.bn2 = _dense(width + z_dim, width), _batch_norm(width)
        self.fc3 = _dense(width, pixels)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.fc1(z)))
        h = F.relu(self.bn2(self.fc2(torch.cat([h, z], 1))))
        return torch.sigmoid(self.fc3(h))


class BiganEncoder(nn.Module):
    """Returns the layer before the output, and the code E(x) before and after it is squashed.

    Args of the forward pass:
      x: float32 `[B, pixels]` in [0, 1].
    Returns:
      features `[B, width]`; code `[B, z_dim]`, any real number; z = tanh(code / 2), which is the
      sigmoid of the code spread over (-1, 1).
    Source: as BiganGenerator; dist.py for the squashing. Nearest neighbours are those of the code.
    """

    def __init__(self, pixels: int, z_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = _dense(pixels, width)
        self.fc2, self.bn2 = _dense(width, width), _batch_norm(width)
        self.fc3 = _dense(width, z_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.leaky_relu(self.fc1(x), LEAK)
        features = F.leaky_relu(self.bn2(self.fc2(h)), LEAK)
        code = self.fc3(features)
        return features, code, torch.tanh(code / 2)


class BiganDiscriminator(nn.Module):
    """Returns the logit that x was given and z encoded, not z drawn and x generated.

    Args of the forward pass:
      x: float32 `[B, pixels]`.
      z: float32 `[B, z_dim]`.
      parts: equal parts of the batch, each of which has batch statistics of its own.
    Returns:
      float32 `[B]`; 0 at the start, as the last layer starts at zero.
    Source: as BiganGenerator.
    """

    def __init__(self, pixels: int, z_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = _dense(pixels, width)
        self.fc2, self.bn2 = _dense(width + z_dim, width), _batch_norm(width)
        self.fc3 = _dense(width, 1, std=0.0)

    def forward(self, x: Tensor, z: Tensor, parts: int = 1) -> Tensor:
        h = F.leaky_relu(self.fc1(x), LEAK)
        h = self.fc2(torch.cat([h, z], 1))
        h = torch.cat([self.bn2(part) for part in h.chunk(parts)])
        return self.fc3(F.leaky_relu(h, LEAK)).squeeze(1)


class Bigan:
    """The three players of BiGAN and their joint update.

    Args:
      settings: of the training.
      shape: of an image, (C, H, W).
    """

    def __init__(self, settings: BiganSettings, shape: tuple[int, int, int]) -> None:
        self.settings, self.shape = settings, shape
        sizes = (torch.Size(shape).numel(), settings.z_dim, settings.width)
        self.generator = BiganGenerator(*sizes)
        self.encoder = BiganEncoder(*sizes)
        self.discriminator = BiganDiscriminator(*sizes)
        self.networks = nn.ModuleDict(
            {"g": self.generator, "e": self.encoder, "d": self.discriminator}
        )

    def start(self) -> None:
        """Makes the optimizer; called once, when the networks are where they stay."""
        s = self.settings
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "all": torch.optim.Adam(
                self.networks.parameters(), lr=s.lr, betas=(s.beta1, 0.999), eps=1e-8,
                weight_decay=s.weight_decay, fused=True,
            )
        }  # fmt: skip

    def draw_z(self, count: int, draws: torch.Generator) -> Tensor:
        """Returns z ~ U(-1, 1), float32 `[count, z_dim]`."""
        shape = (count, self.settings.z_dim)
        return torch.rand(shape, generator=draws, device=draws.device) * 2 - 1

    def update(self, x: Tensor, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """One step of all three players, whose gradients are those at the same weights.

        Encoder, generator and discriminator run forward once; the discriminator on both kinds of
        pairs in one pass. Then one backward pass for the discriminator's weights, and one through
        it for those of encoder and generator.

        Args:
          x: float32 `[B, C, H, W]` in [0, 1].
          step: not used; all steps are alike.
          draws: source of z.
        Returns:
          the two losses, and the mean of D over pairs of either kind, in (0, 1).
        """
        x, z = x.flatten(1), self.draw_z(len(x), draws)
        z_hat, x_hat = self.encoder(x)[2], self.generator(z)
        logits = self.discriminator(torch.cat([x, x_hat]), torch.cat([z_hat, z]), parts=2)
        encoded, generated = logits.chunk(2)
        losses = bigan_losses(encoded, generated)
        own = list(self.discriminator.parameters())
        others = [*self.encoder.parameters(), *self.generator.parameters()]
        # Not backward(): it would compute, and add up, gradients that nobody steps along.
        set_gradients(own, torch.autograd.grad(losses.discriminator, own, retain_graph=True))
        set_gradients(others, torch.autograd.grad(losses.encoder, others))
        self.optimizers["all"].step()
        with torch.no_grad():
            scores = torch.sigmoid(encoded).mean(), torch.sigmoid(generated).mean()
        values = (losses.discriminator.detach(), losses.encoder.detach(), *scores)
        return dict(zip(KINDS, values, strict=True))

    def batch_statistics(self, x: Tensor, draws: torch.Generator) -> None:
        """Runs encoder and generator on a batch, for the statistics that BN keeps."""
        self.encoder(x.flatten(1))
        self.generator(self.draw_z(len(x), draws))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features, code and z of images `[B, C, H, W]` in [0, 1]."""
        return self.encoder(x.flatten(1))

    def generate(self, z: Tensor) -> Tensor:
        """Returns images, float32 `[B, C, H, W]` in [0, 1]."""
        return self.generator(z).view(-1, *self.shape)

    def evaluated(self) -> list[nn.Module]:
        """Returns the networks that evaluation runs."""
        return [self.encoder, self.generator]


def set_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Puts these gradients where an optimizer looks for them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
