"""BiGAN and BigBiGAN: a generator, an encoder that inverts it, and a judge of their pairs."""

import dataclasses
from typing import Any

import torch

from rayssl.bigan.bigbigan import Bigbigan, BigbiganSettings
from rayssl.bigan.donahue import Bigan, BiganSettings
from rayssl.bigan.settings import AdversarialSettings
from rayssl.bigan.training import AdversarialTraining, Players
from rayssl.data import ImageSplits

__all__ = [
    "MODELS",
    "AdversarialTraining",
    "BigbiganSettings",
    "BiganSettings",
    "make_settings",
    "make_training",
]

MODELS: dict[str, type[AdversarialSettings]] = {
    "bigan": BiganSettings,
    "bigbigan": BigbiganSettings,
}


def make_settings(model: str, **values: Any) -> AdversarialSettings:
    """Returns a model's settings: its own defaults where no value, or None, is given; checked.

    Raises:
      ValueError: for an unknown model, a setting that it does not have, or a wrong value.
    """
    if model not in MODELS:
        raise ValueError(f"Unknown model {model!r}. Available: {', '.join(MODELS)}.")
    given = {name: value for name, value in values.items() if value is not None}
    known = [field.name for field in dataclasses.fields(MODELS[model])]
    for name in given:
        if name not in known:
            raise ValueError(
                f"{model} has no setting {name}. It has {', '.join(known)}. Leave {name} out."
            )
    settings = MODELS[model](**given)
    settings.check()
    return settings


def make_training(
    model: str, data: ImageSplits, *, device: str = "cpu", **values: Any
) -> AdversarialTraining:
    """Returns a training at its start; initial weights come from the settings' seed alone.

    Args:
      model: a name of MODELS.
      data: uint8 images of the settings' size: see `rayssl.data.fit_size`.
      device: where networks and images live.
      values: the model's settings.
    Raises:
      ValueError: for settings that cannot work with one another or with the data.
    """
    settings = make_settings(model, **values)
    check_data(data, settings)
    _, channels, height, width = data.train_x.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        players: Players
        if isinstance(settings, BigbiganSettings):
            players = Bigbigan(settings, (channels, height, width))
        else:
            assert isinstance(settings, BiganSettings)
            players = Bigan(settings, (channels, height, width))
    return AdversarialTraining(data, settings, players, device)


def check_data(data: ImageSplits, settings: AdversarialSettings) -> None:
    """Raises ValueError for images that a training with these settings cannot take."""
    size = tuple(data.train_x.shape[2:])
    if size != (settings.size, settings.size):
        raise ValueError(
            f"Expected images of {settings.size}x{settings.size}, got {size[0]}x{size[1]}. "
            "Bring them to that size with rayssl.data.fit_size."
        )
    if len(data.train_x) < settings.batch_size:
        raise ValueError(
            f"batch_size must be at most the number of training images, {len(data.train_x):,}, "
            f"got {settings.batch_size}."
        )
