"""BigBiGAN: residual networks, a discriminator of three scores, a stochastic encoder.

    F: x -> residual blocks -> features        s_x(F)
    H: z -> residual dense layers              s_z(H)
    J: (F, H) -> residual dense layers         s_xz(J)

BigGAN's blocks at sizes that the settings choose; 32, 64 and 128 pixels.
"""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from rayssl.bigan.donahue import set_gradients
from rayssl.bigan.settings import AdversarialSettings
from rayssl.losses import bigbigan_losses

SIZES = (32, 64, 128)
WIDEST = 8  # times `channels`, at the smallest map


@dataclass(frozen=True)
class BigbiganSettings(AdversarialSettings):
    """BigBiGAN at a size that one device trains; what the paper has stands beside each default.

    Attributes:
      encoder_lr: Adam's learning rate of the encoder.
      channels: of the largest map; they double as maps shrink, up to 8 times this.
      width: units of the dense layers of H, J and the encoder's head.
      d_steps: updates of the discriminator for one of encoder and generator.
      ema: decay, per update, of the generator's averaged weights, which evaluation uses; in update
        n, from 0, at most (1 + n) / (10 + n), so that a short run averages no initial weights.
    """

    epochs: int = 50  # the paper: 500,000 updates of 2,048 images
    batch_size: int = 128
    lr: float = 2e-4  # as the paper
    beta1: float = 0.5  # the paper: 0; 0.5 is that of small ports
    decay_share: float = 0.0  # as the paper
    z_dim: int = 120  # as the paper
    size: int = 32  # the paper: 128
    encoder_lr: float = 2e-3  # the paper: ten times lr
    channels: int = 64  # the paper: 96
    width: int = 512  # the paper: 2,048
    d_steps: int = 2  # as the paper
    ema: float = 0.999  # the paper: 0.9999

    def check(self) -> None:
        """Raises ValueError for a value that no training can have."""
        super().check()
        if self.size not in SIZES:
            raise ValueError(
                f"size of bigbigan must be {', '.join(map(str, SIZES))}, got {self.size}."
            )


def _maps(channels: int, size: int) -> list[int]:
    """Channels of the maps from the image's size down to 4x4: 64, 128, 256, 512 at 32 pixels."""
    halvings = (size // 4).bit_length() - 1
    return [channels * min(2**i, WIDEST) for i in range(halvings + 1)]


def _orthogonal(layer: nn.Module, normed: bool) -> nn.Module:
    nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return spectral_norm(layer) if normed else layer


def _conv(inputs: int, outputs: int, kernel: int, normed: bool) -> nn.Module:
    return _orthogonal(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), normed)


def _dense(inputs: int, outputs: int, normed: bool, bias: bool = True) -> nn.Module:
    return _orthogonal(nn.Linear(inputs, outputs, bias=bias), normed)


class ConditionalBatchNorm(nn.Module):
    """Batch normalization whose gain and bias are linear in z: (1 + A z) * BN(h) + B z.

    Args of the forward pass:
      h: `[B, C, H, W]`.
      z: `[B, z_dim]`.
    Source: BigGAN (Brock et al. 2019, arXiv:1809.11096), appendix B.
    """

    def __init__(self, channels: int, z_dim: int, normed: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, momentum=None, affine=False)
        self.affine = _dense(z_dim, 2 * channels, normed, bias=False)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        gain, bias = self.affine(z)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(bias, 1 + gain, self.bn(h))


class UpBlock(nn.Module):
    """A residual block of the generator that doubles the map's sides."""

    def __init__(self, inputs: int, outputs: int, z_dim: int, normed: bool) -> None:
        super().__init__()
        self.bn1 = ConditionalBatchNorm(inputs, z_dim, normed)
        self.conv1 = _conv(inputs, outputs, 3, normed)
        self.bn2 = ConditionalBatchNorm(outputs, z_dim, normed)
        self.conv2 = _conv(outputs, outputs, 3, normed)
        self.skip = _conv(inputs, outputs, 1, normed)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.bn1(x, z)), scale_factor=2)
        h = self.conv2(F.relu(self.bn2(self.conv1(h), z)))
        # A 1x1 convolution commutes with the doubling, and is four times cheaper before it.
        return h + F.interpolate(self.skip(x), scale_factor=2)


class DownBlock(nn.Module):
    """A residual block that halves the map's sides; with BN in the encoder, without it in D.

    Attributes:
      first: the block sees an image, so nothing is activated before its first convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, normed: bool, bn: bool, first: bool) -> None:
        super().__init__()
        self.first = first
        self.bn1 = nn.BatchNorm2d(inputs, momentum=None) if bn and not first else nn.Identity()
        self.bn2 = nn.BatchNorm2d(outputs, momentum=None) if bn else nn.Identity()
        self.conv1 = _conv(inputs, outputs, 3, normed)
        self.conv2 = _conv(outputs, outputs, 3, normed)
        self.skip = _conv(inputs, outputs, 1, normed)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.first else F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(h))))
        return F.avg_pool2d(h, 2) + self.skip(F.avg_pool2d(x, 2))


class ResidualDense(nn.Module):
    """Dense layers: one to `width`, then `layers - 1` of h + W relu(h).

    Args of the forward pass:
      x: `[B, inputs]`.
    Returns:
      `[B, width]`, after a last ReLU.
    """

    def __init__(self, inputs: int, width: int, layers: int, normed: bool) -> None:
        super().__init__()
        self.first = _dense(inputs, width, normed)
        self.rest = nn.ModuleList(_dense(width, width, normed) for _ in range(layers - 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.rest:
            h = h + layer(F.relu(h))
        return F.relu(h)


class BigbiganGenerator(nn.Module):
    """Returns images G(z): BigGAN's generator without classes; z enters every BN.

    Args of the constructor:
      normed: spectral normalization of every weight; off for the averaged copy, whose weights are
        averages of normalized ones.
    Args of the forward pass:
      z: float32 `[B, z_dim]`.
    Returns:
      float32 `[B, colours, size, size]` in (-1, 1).
    """

    def __init__(
        self, size: int, colours: int, z_dim: int, channels: int, normed: bool = True
    ) -> None:
        super().__init__()
        maps = _maps(channels, size)[::-1]
        self.first = _dense(z_dim, maps[0] * 16, normed)
        self.blocks = nn.ModuleList(
            UpBlock(a, b, z_dim, normed) for a, b in zip(maps[:-1], maps[1:], strict=True)
        )
        self.bn = nn.BatchNorm2d(maps[-1], momentum=None)
        self.last = _conv(maps[-1], colours, 3, normed)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).view(len(z), -1, 4, 4)
        for block in self.blocks:
            h = block(h, z)
        return torch.tanh(self.last(F.relu(self.bn(h))))


class BigbiganEncoder(nn.Module):
    """Returns the pooled features of an image, and mean and standard deviation of its z.

    Args of the forward pass:
      x: float32 `[B, colours, size, size]` in [-1, 1].
    Returns:
      features `[B, channels of the last map]`; mean, std `[B, z_dim]`, std > 0 by a softplus.
    Source: Donahue & Simonyan 2019, arXiv:1907.02544, section 2 and appendix A; its ResNet-50 is a
      small pre-activation ResNet here.
    """

    def __init__(self, size: int, colours: int, z_dim: int, channels: int, width: int) -> None:
        super().__init__()
        maps = _maps(channels, size)
        self.blocks = nn.Sequential(
            *(
                DownBlock(a, b, normed=False, bn=True, first=i == 0)
                for i, (a, b) in enumerate(zip([colours, *maps[1:-1]], maps[1:], strict=True))
            )
        )
        self.bn = nn.BatchNorm2d(maps[-1], momentum=None)
        self.head = ResidualDense(maps[-1], width, 2, normed=False)
        self.mean_std = _dense(width, 2 * z_dim, False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = F.relu(self.bn(self.blocks(x))).mean((2, 3))
        mean, std = self.mean_std(self.head(features)).chunk(2, 1)
        return features, mean, F.softplus(std)


def reparametrized(mean: Tensor, std: Tensor, draws: torch.Generator) -> Tensor:
    """Returns z = mean + std * eps, eps ~ N(0, 1), through which gradients reach mean and std.

    Args:
      mean, std: float32 `[B, z_dim]`.
      draws: source of eps.
    """
    eps = torch.randn(mean.shape, generator=draws, device=mean.device)
    return mean + std * eps


class BigbiganDiscriminator(nn.Module):
    """Returns the three scores of a pair: s_x of the image, s_z of the code, s_xz of both.

    Args of the forward pass:
      x: float32 `[B, colours, size, size]` in [-1, 1].
      z: float32 `[B, z_dim]`.
    Returns:
      float32 `[B, 3]`: s_x, s_z, s_xz.
    Source: Donahue & Simonyan 2019, arXiv:1907.02544, section 2, figure 1; 4 layers in H and J
      where the paper has 8.
    """

    def __init__(self, size: int, colours: int, z_dim: int, channels: int, width: int) -> None:
        super().__init__()
        maps = _maps(channels, size)
        self.f = nn.Sequential(
            *(
                DownBlock(a, b, normed=True, bn=False, first=i == 0)
                for i, (a, b) in enumerate(zip([colours, *maps[1:-1]], maps[1:], strict=True))
            )
        )
        self.h = ResidualDense(z_dim, width, 4, normed=True)
        self.j = ResidualDense(maps[-1] + width, width, 4, normed=True)
        self.s_x = _dense(maps[-1], 1, True)
        self.s_z = _dense(width, 1, True)
        self.s_xz = _dense(width, 1, True)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        f = F.relu(self.f(x)).sum((2, 3))
        h = self.h(z)
        j = self.j(torch.cat([f, h], 1))
        return torch.cat([self.s_x(f), self.s_z(h), self.s_xz(j)], 1)


class Bigbigan:
    """The players of BigBiGAN: D learns from every batch, E and G from every `d_steps`-th.

    Args:
      settings: of the training.
      shape: of an image, (C, H, W).
    """

    def __init__(self, settings: BigbiganSettings, shape: tuple[int, int, int]) -> None:
        self.settings = settings
        sizes = settings.size, shape[0], settings.z_dim, settings.channels
        self.generator = BigbiganGenerator(*sizes)
        self.encoder = BigbiganEncoder(*sizes, settings.width)
        self.discriminator = BigbiganDiscriminator(*sizes, settings.width)
        self.averaged = BigbiganGenerator(*sizes, normed=False).requires_grad_(False)
        self._average(decay=0.0)
        self.networks = nn.ModuleDict(
            {
                "g": self.generator, "e": self.encoder, "d": self.discriminator,
                "averaged": self.averaged,
            }
        )  # fmt: skip

    def start(self) -> None:
        """Makes the optimizers; called once, when the networks are where they stay."""
        s = self.settings

        def adam(network: nn.Module, lr: float) -> torch.optim.Optimizer:
            return torch.optim.Adam(network.parameters(), lr=lr, betas=(s.beta1, 0.999), fused=True)

        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "g": adam(self.generator, s.lr),
            "e": adam(self.encoder, s.encoder_lr),
            "d": adam(self.discriminator, s.lr),
        }

    def draw_z(self, count: int, draws: torch.Generator) -> Tensor:
        """Returns z ~ N(0, 1), float32 `[count, z_dim]`."""
        shape = (count, self.settings.z_dim)
        return torch.randn(shape, generator=draws, device=draws.device)

    def update(self, x: Tensor, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """One step of D, and on every `d_steps`-th batch of E and G, against the D just updated.

        Args:
          x: float32 `[B, C, H, W]` in [0, 1].
          step: number of the batch, from 0, over all epochs.
          draws: source of z and eps.
        Returns:
          d_loss, and each score's mean over both kinds of pairs; e_loss, g_loss, encoder_std where
          E and G took a step.
        """
        others = (step + 1) % self.settings.d_steps == 0
        x, z = x * 2 - 1, self.draw_z(len(x), draws)
        with torch.set_grad_enabled(others):
            _, mean, std = self.encoder(x)
            z_hat, x_hat = reparametrized(mean, std, draws), self.generator(z)
        encoded, generated = self._scores(x, x_hat.detach(), z_hat.detach(), z)
        losses = bigbigan_losses(encoded, generated)
        self._step("d", losses.discriminator, self.discriminator)
        metrics = {"d_loss": losses.discriminator.detach()}
        for i, name in enumerate(("x", "z", "xz")):
            metrics[f"s_{name}_encoded"] = encoded[:, i].detach().mean()
            metrics[f"s_{name}_generated"] = generated[:, i].detach().mean()
        if others:
            losses = bigbigan_losses(*self._scores(x, x_hat, z_hat, z))
            # z_hat is the encoder's alone and x_hat the generator's: the sum mixes no gradients.
            self._step("eg", losses.encoder + losses.generator, self.encoder, self.generator)
            n = step // self.settings.d_steps  # updates of the generator before this one
            self._average(min(self.settings.ema, (1 + n) / (10 + n)))
            metrics |= {"e_loss": losses.encoder.detach(), "g_loss": losses.generator.detach()}
            metrics["encoder_std"] = std.detach().mean()
        return metrics

    def _scores(self, x: Tensor, x_hat: Tensor, z_hat: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of (x, E(x)) and of (G(z), z), from one pass."""
        scores = self.discriminator(torch.cat([x, x_hat]), torch.cat([z_hat, z]))
        encoded, generated = scores.chunk(2)
        return encoded, generated

    def _step(self, names: str, loss: Tensor, *networks: nn.Module) -> None:
        """One step of these networks' optimizers, and no gradient anywhere else."""
        parameters = [p for network in networks for p in network.parameters()]
        set_gradients(parameters, torch.autograd.grad(loss, parameters))
        for name in names:
            self.optimizers[name].step()

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """averaged <- decay * averaged + (1 - decay) * the generator's normalized weights."""
        was_training = self.generator.training
        self.generator.eval()  # reading a weight in training mode moves its singular vectors
        for name, mean in self.averaged.named_parameters():
            weight = operator.attrgetter(name)(self.generator)  # computed from its raw values
            mean.lerp_(weight, 1 - decay)
        self.generator.train(was_training)

    def batch_statistics(self, x: Tensor, draws: torch.Generator) -> None:
        """Runs encoder and averaged generator on a batch, for the statistics that BN keeps."""
        self.encoder(x * 2 - 1)
        self.averaged(self.draw_z(len(x), draws))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features, mean of z, and again that mean, of images in [0, 1]."""
        features, mean, _ = self.encoder(x * 2 - 1)
        return features, mean, mean

    def generate(self, z: Tensor) -> Tensor:
        """Returns the averaged generator's images, float32 `[B, C, H, W]` in [0, 1]."""
        return (self.averaged(z) + 1) / 2

    def evaluated(self) -> list[nn.Module]:
        """Returns the networks that evaluation runs."""
        return [self.encoder, self.averaged]
