"""Imports point only downward, and Ray, plotting and torchvision stay behind their doors.

A *unit* is what stands directly in rayssl/: a module, or a package with all that is in it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "rayssl"

LAYERS = [
    {
        "losses",
        "schedules",
        "metrics",
        "detection_metrics",
        "replay",
        "device_frames",
        "gpu_sharing",
        "tasks",
        "envs",
        "data",
    },
    {"backbones", "networks"},
    {
        "bigan",
        "attribution",
        "deepfake",
        "evaluation",
        "explaining",
        "features",
        "pretraining",
        "probing",
        "training",
    },
    {"face_jobs", "deepfake_trainables", "pretraining_job", "rllib", "trainables"},
]
# Above the layers, and beside them all: they may import every unit, and experiments/ them.
TOP = [{"jobs", "epoch_experiment"}, {"sweeps"}]
RAY_UNITS = {
    "face_jobs", "deepfake_trainables", "pretraining_job", "rllib", "trainables", "jobs", "sweeps",
    "epoch_experiment",
}  # fmt: skip

# Leaves: they import nothing of rayssl. None: every unit may import them.
LEAVES: dict[str, set[str] | None] = {
    "_torchvision": {"data", "backbones"}, "augmentation": {"tasks", "rllib"}, "video": None,
    "cuda_graphs": {"rllib"}, "compiled_graphs": {"rllib"}, "optimizers": {"rllib"},
    "memory": {"rllib"}, "files": None,
}  # fmt: skip
# Beside the layers: only experiments/, and one another, may import them.
SIDE = {
    "report", "bigan_report", "classification_report", "deepfake_report", "cli", "presets",
    "results", "intervals", "claims", "marked_blocks", "comparison", "tables", "figures", "page",
    "plays", "sections",
}  # fmt: skip

# The doors of third-party packages.
DOORS = {
    "ray": RAY_UNITS,
    "matplotlib": {
        "report",
        "bigan_report",
        "classification_report",
        "deepfake_report",
        "attribution",
        "figures",
        "page",
    },  # fmt: skip
    "jinja2": {"page"},
    "torchvision": {"_torchvision"},
}

KNOWN = set().union(*LAYERS, *TOP) | set(LEAVES) | SIDE


def may_import(unit: str) -> set[str]:
    """Returns the units that `unit` may import, besides itself."""
    if unit in LEAVES:
        return set()
    leaves = {leaf for leaf, users in LEAVES.items() if users is None or unit in users}
    ray_free = set().union(*LAYERS) - RAY_UNITS
    if unit == "rayssl":  # rayssl/__init__.py runs before every other module
        return ray_free
    if unit in SIDE:
        return ray_free | SIDE | leaves
    for i, units in enumerate(TOP):
        if unit in units:
            return set().union(*LAYERS, *TOP[:i]) | SIDE | leaves
    for i, layer in enumerate(LAYERS):
        if unit in layer:
            lower = set().union(*LAYERS[:i])
            # Nothing sideways in the lowest layer; above it, but in no circle (tested below).
            return lower | leaves | (layer if i else set())
    raise AssertionError(f"{unit!r} is not in the layer map.")


class Import(NamedTuple):
    """One import statement: where it stands and the full name of what it imports."""

    unit: str
    target: str
    place: str


def imports_in(source: str, module: str, is_package: bool, place: str) -> Iterator[Import]:
    """Yields every import of a module's source, also those in functions; relative ones resolved."""
    parts = module.split(".")
    unit = parts[1] if len(parts) > 1 else "rayssl"
    for node in ast.walk(ast.parse(source)):
        where = f"{place}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(unit, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                base = ".".join([*parts[: len(parts) - up], *([base] if base else [])])
            yield from (Import(unit, f"{base}.{alias.name}", where) for alias in node.names)


def module_name(path: Path) -> str:
    """Returns the dotted name of a file below rayssl/."""
    parts = ["rayssl", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def all_imports() -> list[Import]:
    """Returns every import below rayssl/."""
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE.parent))
        source = path.read_text(encoding="utf-8")
        found += imports_in(source, module_name(path), path.name == "__init__.py", place)
    return found


def target_unit(target: str) -> str | None:
    """Returns the unit that an import of rayssl reaches; None for the package itself and others.

    `from rayssl import __version__` reaches no unit, so only names of known units count there.
    """
    parts = target.split(".")
    if parts[0] != "rayssl" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in KNOWN or (PACKAGE / parts[1]).exists() else None


def violations(imports: list[Import]) -> list[str]:
    """Returns one line for every import that the map does not allow."""
    lines = []
    for unit, target, place in imports:
        reached = target_unit(target)
        top = target.split(".")[0]
        if reached and reached != unit and reached not in may_import(unit):
            lines.append(f"{place}: {unit} imports {reached}")
        if top in DOORS and unit not in DOORS[top]:
            lines.append(f"{place}: {unit} imports {top}, only {sorted(DOORS[top])} may")
    return lines


def test_every_module_is_in_the_layer_map() -> None:
    units = {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__")
        or (path.is_dir() and any(path.rglob("*.py")))
    }
    assert units <= KNOWN, (
        f"Expected every module of rayssl in the layer map, got {sorted(units - KNOWN)} besides."
        " Add them to LAYERS, LEAVES or SIDE in tests/test_layers.py."
    )


def test_imports_point_only_downward_and_third_parties_keep_to_their_doors() -> None:
    known = [found for found in all_imports() if found.unit in KNOWN | {"rayssl"}]
    found = violations(known)
    assert not found, (
        "Expected imports that the map in tests/test_layers.py allows, got:\n  "
        + "\n  ".join(found)
        + "\nMove the shared part down a layer, or pass it in as an argument."
    )


def test_units_do_not_import_in_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for unit, target, _ in all_imports():
        reached = target_unit(target)
        if reached and reached != unit:
            arrows.setdefault(unit, set()).add(reached)
    while arrows:
        leaves = {unit for unit in arrows if not arrows[unit] & arrows.keys()}
        assert leaves, f"Expected no circle of imports, got one among {sorted(arrows)}."
        for unit in leaves:
            del arrows[unit]


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from rayssl.losses import x", "rayssl.networks", []),
        ("from rayssl import losses", "rayssl.training", []),
        ("from rayssl import __version__", "rayssl.losses", []),
        ("from rayssl.tasks.rotation import x", "rayssl.tasks.permutation", []),
        ("from .rotation import x", "rayssl.tasks.permutation", []),
        ("from rayssl.backbones import x", "rayssl.networks", []),
        ("from rayssl._torchvision import v2", "rayssl.data.faces", []),
        ("import ray.tune", "rayssl.trainables", []),
        ("import rayline", "rayssl.losses", []),
        ("from rayssl.networks import x", "rayssl.losses", ["losses imports networks"]),
        ("import rayssl.metrics", "rayssl.losses", ["losses imports metrics"]),
        ("from ..losses import x", "rayssl.tasks.rotation", ["tasks imports losses"]),
        ("from .. import losses", "rayssl.tasks.rotation", ["tasks imports losses"]),
        ("from rayssl.report import x", "rayssl.training", ["training imports report"]),
        ("from rayssl._torchvision import v2", "rayssl.probing", ["probing imports _torchvision"]),
        ("from rayssl.rllib import x", "rayssl.cli", ["cli imports rllib"]),
        ("from rayssl.report import x", "rayssl.jobs.atari", []),
        ("from rayssl.jobs import x", "rayssl.sweeps.axes", []),
        ("from rayssl.sweeps import x", "rayssl.jobs", ["jobs imports sweeps"]),
        ("from rayssl.jobs import x", "rayssl.rllib.config", ["rllib imports jobs"]),
        ("def f():\n  import ray", "rayssl.cli", ["cli imports ray, only"]),
        ("from torchvision import models", "rayssl.backbones", ["backbones imports torchvision"]),
        ("import matplotlib.pyplot as plt", "rayssl.metrics", ["metrics imports matplotlib"]),
    ],
)
def test_map_judges_single_imports_as_the_design_does(
    source: str, module: str, expected: list[str]
) -> None:
    found = violations(list(imports_in(source, module, is_package=False, place="file.py")))
    assert len(found) == len(expected)
    assert all(text in line for text, line in zip(expected, found, strict=True))


def test_relative_import_in_a_packages_init_starts_at_the_package() -> None:
    found = list(imports_in("from .rotation import x", "rayssl.tasks", True, "file.py"))
    assert found == [Import("tasks", "rayssl.tasks.rotation.x", "file.py:1")]


def test_everything_outside_the_ray_layer_imports_without_ray() -> None:
    names = [module_name(path) for path in sorted(PACKAGE.rglob("*.py"))]
    free = [name for name in names if name.split(".")[1:2] not in [[unit] for unit in RAY_UNITS]]
    script = """
import importlib, sys, traceback
sys.modules["ray"] = None
failed = 0
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:
        failed += 1
        print(name, traceback.format_exc(), file=sys.stderr)
sys.exit(failed)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *free],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
