"""How many SmoothGrad maps a second: of an Atari network's Q-value and of a ResNet-50's logit.

    python benchmarks/maps.py --device cuda --json benchmarks/results/maps.json

Maps of 50 noise samples each, one input after the other as experiments/attribution.py makes them,
copied back to the CPU. To check, on a GPU: at least 20 maps/s.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import milliseconds, report, run_facts, spread, turn_about
from rayssl.attribution import smoothgrad
from rayssl.backbones.resnet50 import ResNet50
from rayssl.cli import refuse
from rayssl.networks import make_atari_network

COLUMNS = ("name", "maps_per_s", "claim")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures maps a second."""

    maps: int = 20
    """Maps in a turn."""
    samples: int = 50
    """Noisy copies of an input."""
    batch_size: int = 50
    """Noisy copies at once."""
    repeats: int = 5
    """Turns that each network gets."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the maps are computed: cpu or cuda."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    seed: int = 0
    """Seeds weights, inputs and noise."""


def subjects(device: str) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Returns name -> (score, inputs): networks with random weights, inputs of noise."""
    atari = make_atari_network("nature", num_actions=6).to(device).eval().requires_grad_(False)
    faces = nn.Sequential(ResNet50(), nn.Linear(2048, 1)).to(device).eval().requires_grad_(False)
    return {
        "Atari, nature trunk, 4x84x84": (
            lambda x: atari(x, "q")[:, 0], 255 * torch.rand(1, 4, 84, 84, device=device)
        ),
        "ResNet-50, 3x224x224": (
            lambda x: faces(x)[:, 0], torch.rand(1, 3, 224, 224, device=device)
        ),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    if settings.device == "cuda" and not torch.cuda.is_available():
        refuse("--device cuda needs a GPU that PyTorch can use, and there is none. Leave it out.")
    torch.manual_seed(settings.seed)
    facts = run_facts(settings)

    def measure(score: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], float]:
        def one() -> Tensor:
            return smoothgrad(
                score, x, samples=settings.samples, batch_size=settings.batch_size,
                seed=settings.seed,
            ).cpu()  # fmt: skip

        one()
        return lambda: 1e3 / milliseconds(one, settings.maps)

    try:
        functions = {name: measure(*subject) for name, subject in subjects(settings.device).items()}
    except ValueError as error:  # no samples
        refuse(error)
    figures = turn_about(functions, settings.repeats)
    rows = [
        {"name": name, "maps_per_s": spread(values), "run": facts,
         "claim": ">= 20" if settings.device != "cpu" else None}
        for name, values in figures.items()
    ]  # fmt: skip
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
