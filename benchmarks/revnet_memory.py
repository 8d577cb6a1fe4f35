"""Memory and time of a training step of RevNet-50, with activations rebuilt or kept.

    python benchmarks/revnet_memory.py --json benchmarks/results/revnet_memory.json

Each row is a network of one depth, once with `reversible=True` (a stage keeps its output alone, and
its backward pass rebuilds what it needs) and once as plain autograd; each turn is a fresh process.
`step_mib` is what a forward and backward pass take on top of weights and gradients: peak resident
memory on the CPU, peak allocated memory on a GPU. `kept_mib` is what autograd keeps between the two
passes. The deeper network has twice the blocks in each stage: rebuilt, it should keep no more.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import peak_rss_mib, report, run_facts, spread, turn_about, usable_cores
from rayssl.backbones.resnet50v2 import UNITS
from rayssl.backbones.revnet import RevNet50

COLUMNS = ("name", "kept_mib", "step_mib", "seconds", "step_mib_to_plain", "seconds_to_plain")
DEPTHS = {"RevNet-50": 1, "twice as deep": 2}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures the memory of reversible blocks."""

    factor: int = 4
    """Width: 4 is RevNet-50, 16 is RevNet-50x4 of BigBiGAN."""
    batch_size: int = 8
    """Images of a step."""
    side: int = 128
    """Of the images, pixels; BigBiGAN's are 256."""
    repeats: int = 3
    """Turns that each row gets."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    threads: int | None = None
    """CPU threads of torch; by default all cores that this process may use."""
    one_turn: str | None = None
    """Used by the script itself: measure one row in this process and print its figures."""


def one_turn(settings: Settings, depth: int, reversible: bool) -> dict[str, float]:
    """Returns the figures of one training step in this process."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    units = tuple(depth * count for count in UNITS)
    network = RevNet50(settings.factor, units, reversible=reversible).to(device).train()
    network(torch.randn(2, 3, 32, 32, device=device)).sum().backward()  # gradients are there now
    x = torch.randn(settings.batch_size, 3, settings.side, settings.side, device=device)
    kept = kept_bytes(network, x)
    before = _reset_peak(device)
    start = time.perf_counter()
    network(x).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"kept_mib": kept / MIB, "step_mib": _peak(device) - before, "seconds": seconds}


def kept_bytes(network: RevNet50, x: Tensor) -> int:
    """Returns the bytes, besides weights, that autograd keeps from forward to backward pass."""
    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # else an address may be given out twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(seen.values())


def _reset_peak(device: str) -> float:
    """Starts a new peak; returns the memory that is in use, MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again at what is in use
    return peak_rss_mib()


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / MIB if device == "cuda" else peak_rss_mib()


def fresh_process(settings: Settings, name: str) -> dict[str, float]:
    """Returns the figures of one row, measured in a process of its own."""
    words = [sys.executable, __file__, "--one-turn", name]
    for field in ("factor", "batch_size", "side", "threads"):
        if getattr(settings, field) is not None:
            words += [f"--{field.replace('_', '-')}", str(getattr(settings, field))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def row_names() -> dict[str, tuple[int, bool]]:
    """Returns row -> (how many times the blocks of RevNet-50, reversible)."""
    return {
        f"{name}, {'rebuilt' if reversible else 'kept'}": (depth, reversible)
        for name, depth in DEPTHS.items()
        for reversible in (True, False)
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    torch.set_num_threads(settings.threads or usable_cores())
    names = row_names()
    if settings.one_turn is not None:
        print(json.dumps(one_turn(settings, *names[settings.one_turn])))
        return []
    facts = run_facts(settings) | {"threads": settings.threads or usable_cores()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}

    def turn(name: str) -> float:
        turns[name].append(fresh_process(settings, name))
        return turns[name][-1]["seconds"]

    turn_about({name: lambda name=name: turn(name) for name in names}, settings.repeats)  # type: ignore[misc]
    rows = []
    for name in names:
        plain = turns[name.replace("rebuilt", "kept")]
        row: dict[str, Any] = {"name": name}
        for key in ("kept_mib", "step_mib", "seconds"):
            row[key] = spread([figures[key] for figures in turns[name]])
        for key in ("step_mib", "seconds"):
            pairs = zip(turns[name], plain, strict=True)
            row[f"{key}_to_plain"] = spread([own[key] / other[key] for own, other in pairs])
        rows.append(row | {"run": facts})
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
