"""What an epoch of rayssl.training costs beside a bare PyTorch loop on the same images.

    python benchmarks/mnist_epoch.py --json benchmarks/results/mnist_epoch.json

Both train Table V's network in float32 with batches of 64 and Adadelta, without a pretext task; in
one process, taking turns. The bare loop cuts batches by index from normalized float images in
memory, and keeps no metrics. To check: rayssl <= 1.05 of the bare loop. Ratios are taken within a
turn, where both sides met the same machine. MNIST is read where RAYSSL_DATA or data/ holds it, else
scikit-learn's digits are repeated to as many images: the time does not depend on what they show.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import report, run_facts, spread, turn_about, usable_cores
from rayssl.data import ImageSplits, load_dataset
from rayssl.data.mnist import FILES
from rayssl.training import ClassifierSettings, ClassifierTraining

COLUMNS = ("name", "images", "seconds", "images_per_s", "ratio_to_bare", "claim")
CLAIM = "<= 1.05"
EPOCHS = 1_000_000  # more than the turns need


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures the time of a training epoch."""

    images: int = 10_000
    """Training images of an epoch."""
    repeats: int = 5
    """Epochs that each side is timed for; one more before them is not."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    threads: int | None = None
    """CPU threads of torch; by default all cores that this process may use."""
    data_dir: Path | None = None
    """Folder of MNIST's files; default: the environment's RAYSSL_DATA, else data."""
    seed: int = 0
    """Seeds weights and order."""


def images(settings: Settings) -> ImageSplits:
    """Returns as many training images as asked for, and 100 test images."""
    root = settings.data_dir or Path(os.environ.get("RAYSSL_DATA", "data"))
    there = any(any(root.glob(f"{folder}{FILES[0]}*")) for folder in ("MNIST/raw/", ""))
    data = load_dataset("mnist", root) if there else load_dataset("digits")  # without a download
    rows = torch.arange(settings.images) % len(data.train_x)
    return data._replace(
        train_x=data.train_x[rows], train_y=data.train_y[rows],
        test_x=data.test_x[:100], test_y=data.test_y[:100],
    )  # fmt: skip


def rayssl_epoch(data: ImageSplits, given: ClassifierSettings) -> Callable[[], float]:
    """Returns a function that trains for one epoch and gives its seconds, testing not counted."""
    training = ClassifierTraining(data, given)
    return lambda: float(training.run_epoch()["seconds"])


class PlainNetwork(nn.Module):
    """Table V's classifier as anybody would type it; takes normalized float images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout2d(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2))
        return self.fc2(self.dropout2(F.relu(self.fc1(x.flatten(1)))))


def bare_epoch(data: ImageSplits, given: ClassifierSettings) -> Callable[[], float]:
    """Returns a function that trains the plain network for one epoch and gives its seconds."""
    mean, std = data.normalization()
    x, y = (data.train_x.float() / 255 - mean) / std, data.train_y
    torch.manual_seed(given.seed)
    # rayssl's memory format: what is compared is the loop, not the convolutions.
    network = PlainNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adadelta(network.parameters(), lr=given.lr)

    def epoch() -> float:
        start = time.perf_counter()
        network.train()
        for rows in torch.randperm(len(x)).split(given.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        return time.perf_counter() - start

    return epoch


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    threads = settings.threads or usable_cores()
    torch.set_num_threads(threads)
    data = images(settings)
    facts = run_facts(settings) | {"threads": threads, "dataset": data.name}
    given = ClassifierSettings(
        protocol="paper", aux_task="none", epochs=EPOCHS, lr_decay=1.0, seed=settings.seed
    )
    sides = {"bare": bare_epoch(data, given), "rayssl": rayssl_epoch(data, given)}
    for epoch in sides.values():
        epoch()  # not timed: first calls choose kernels and touch memory
    seconds = turn_about(sides, settings.repeats)
    rows = []
    for name, values in seconds.items():
        ratios = [own / bare for own, bare in zip(values, seconds["bare"], strict=True)]
        rows.append(
            {
                "name": name, "images": settings.images, "seconds": spread(values),
                "images_per_s": spread([settings.images / value for value in values]),
                "ratio_to_bare": spread(ratios), "claim": CLAIM if name == "rayssl" else None,
                "run": facts,
            }
        )  # fmt: skip
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
