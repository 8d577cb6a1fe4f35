"""What makes a checkpoint whole: a manifest of every file, written last. And what makes it safe."""

import hashlib
import json
import os
import pickle
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


# All that the pickles of an AuxDQN checkpoint name: arrays and plain containers. numpy._core is
# NumPy 2's; _reconstruct and scalar are how arrays of other layouts and single numbers are pickled.
_PLAIN_DATA = {
    ("collections", "OrderedDict"),
    ("collections", "deque"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
_NEVER_READ = "class_and_ctor_args.pkl"  # RLlib's from_checkpoint reads it, restoring does not


class _CallError(Exception):
    """A pickle names something to be called that plain data does not need."""


class _PlainData(pickle.Unpickler):
    """Unpickles arrays and plain containers; refuses before anything else is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN_DATA:
            raise _CallError(f"{module}.{name}")
        return super().find_class(module, name)


def hidden_code(folder: str | Path) -> str | None:
    """Returns what a checkpoint would run when it is restored, or None if it holds data only.

    RLlib's files are pickles, and a pickle may call anything while it is read. Those that restoring
    reads are read here first, with nothing allowed but what our own checkpoints hold; so a
    checkpoint of a stranger can be tried. What stays unsafe is RLlib's own
    `Algorithm.from_checkpoint`, which reads pickles of classes unseen: restore with
    `restore_from_path`, `--resume` or, for the weights alone, `rayssl.evaluation.load_agent`.
    """
    folder = Path(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".msgpack":  # RLlib prefers it to the pickle; its arrays may be pickles
            return f"{name} may hold code, and no checkpoint of rayssl has such a file"
        if path.suffix != ".pkl" or path.name == _NEVER_READ:
            continue
        try:
            with path.open("rb") as handle:
                _PlainData(handle).load()
        except _CallError as error:
            return f"{name} would call {error}"
        except Exception as error:  # bytes that are no pickle raise nearly anything
            return f"{name} is no pickle of plain data ({type(error).__name__}: {error})"
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
