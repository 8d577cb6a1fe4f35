"""What makes a checkpoint whole: a manifest of every file, written last."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MODEL, MODEL_SETTINGS, REPLAY = "model.pt", "model.json", "replay.lz4"


def write_manifest(folder: str | Path) -> None:
    """Lists every file of a checkpoint with size and SHA-256, as the last thing that is written."""
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(folder)
    }
    part = folder / (MANIFEST + ".part")
    with part.open("w") as handle:
        json.dump({"version": 1, "files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    part.rename(folder / MANIFEST)


def damage(folder: str | Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is whole."""
    folder = Path(folder)
    try:
        files: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
        expected_files = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}, which is written last: it was cut short"
    for name, size, sha256 in expected_files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
        if _sha256(path) != sha256:
            return f"{name} has changed since it was written (SHA-256 differs)"
    return None


def newest_whole_checkpoint(results: str | Path) -> Path | None:
    """Returns the newest undamaged checkpoint below a results folder, or None.

    Newest by the agent steps in its `model.json`, then by name; folders are searched in depth, and
    a folder that is itself a checkpoint counts.
    """
    found = []
    for settings in Path(results).rglob(MODEL_SETTINGS):
        try:
            steps = int(json.loads(settings.read_text())["env_steps"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((steps, settings.parent.name, settings.parent))
    return next((path for _, _, path in sorted(found, reverse=True) if damage(path) is None), None)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in (folder / MANIFEST, folder / (MANIFEST + ".part")):
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        digest = hashlib.sha256()  # not hashlib.file_digest: Python 3.10 has none
        while block := handle.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
