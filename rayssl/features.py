"""Features of frozen networks: proof that nothing moved, and a cache that is paid for once.

with frozen(network):
    features = FeatureCache(folder, key).get(num_rows, compute)
"""

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

FORMAT = 1  # of the cache; part of every key
ROWS_A_PART = 256  # what a killed extraction loses at most, and a step of its progress bar

Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """Returns name -> SHA-256 of every parameter and buffer: dtype, shape and bytes.

    Buffers are what `requires_grad = False` does not protect: BatchNorm's running statistics.
    """
    return {
        name: hashlib.sha256(
            f"{tensor.dtype} {tuple(tensor.shape)}".encode()
            + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers())
    }


def changed_tensors(before: Mapping[str, str], module: nn.Module) -> list[str]:
    """Returns the names of parameters and buffers that are not what they were, sorted.

    Args:
      before: an earlier `tensor_hashes(module)`.
    """
    now = tensor_hashes(module)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the module in evaluation mode without gradients, and proves that nothing in it moved.

    Modes of its parts are put back afterwards.

    Raises:
      RuntimeError: at the end, naming the parameters and buffers that changed meanwhile.
    """
    before = tensor_hashes(module)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, mode in modes.items():
            part.training = mode
    changed = changed_tensors(before, module)
    if changed:
        raise RuntimeError(
            f"Expected a frozen network, but {len(changed)} of its tensors changed: "
            f"{', '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}. Its features are no "
            "features of one network."
        )


class FeatureCache:
    """Features on disk, in parts, under the hash of all that they depend on.

        <folder>/<hash>/key.json              what was hashed, for people
        <folder>/<hash>/00000-<sha256>.npy    float32 rows 0 to 255, named by its content

    A part is written beside and then renamed, so that a kill loses one part at most; two processes
    that extract the same write the same.

    Args:
      folder: of all caches.
      key: all that the features depend on, as JSON knows it: network, weights, layer,
        preprocessing, data.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.key = {"format": FORMAT, "rows_a_part": ROWS_A_PART, **key}
        text = json.dumps(self.key, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def missing(self, num_rows: int) -> list[int]:
        """Returns the numbers of the parts that are not there yet."""
        there = self._parts()
        return [part for part in range(-(-num_rows // ROWS_A_PART)) if part not in there]

    def extract_part(self, part: int, num_rows: int, compute: Compute) -> None:
        """Computes and writes one part.

        Args:
          part: one of `missing(num_rows)`.
          num_rows: N of the whole data set.
          compute: rows int64 `[n]` -> their features, float32 `[n, D]`.
        Raises:
          ValueError: if the features are not `[n, D]` or not finite.
          OSError: if they cannot be written.
        """
        rows = _rows_of(part, num_rows)
        found = np.ascontiguousarray(compute(rows), np.float32)
        if found.ndim != 2 or len(found) != len(rows):
            raise ValueError(f"Expected features [{len(rows)}, D], got shape {found.shape}.")
        if not np.isfinite(found).all():
            raise ValueError(
                f"Features of rows {rows[0]} to {rows[-1]} are not all finite. The weights do not "
                "fit the network, or the data are damaged."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        own = uuid.uuid4().hex  # another process may write the same part
        path = self.folder / f"{own}.part"
        with path.open("wb") as handle:
            np.save(handle, found)
        path.rename(self.folder / f"{part:05d}-{_sha256(path)}.npy")
        text = self.folder / f"{own}.json.part"
        text.write_text(json.dumps(self.key, indent=1, sort_keys=True))
        os.replace(text, self.folder / "key.json")

    def load(self, num_rows: int) -> npt.NDArray[np.float32]:
        """Returns the features of all rows, `[num_rows, D]`, every part checked.

        Raises:
          FileNotFoundError: if parts are missing.
          ValueError: if a part is not what was written.
        """
        missing = self.missing(num_rows)
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks {len(missing)} of its parts, first {missing[0]:05d}. Extract "
                "the features first."
            )
        there = self._parts()
        parts = [_read(there[part]) for part in range(-(-num_rows // ROWS_A_PART))]
        features = np.concatenate(parts)
        if len(features) != num_rows:
            raise ValueError(
                f"{self.folder} holds {len(features):,} rows, expected {num_rows:,}. Delete it: it "
                "is made again."
            )
        return features

    def get(
        self,
        num_rows: int,
        compute: Compute,
        on_part: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Returns the features of all rows; computes what is not there.

        Looks again before each part, and begins at a part of its own: processes that start together
        share the work.

        Args:
          on_part: called with rows done and rows in all, for a progress bar.
        Raises:
          ValueError, OSError: see `extract_part` and `load`.
        """
        todo = self.missing(num_rows)
        first = secrets.randbelow(len(todo)) if todo else 0  # no random state of the caller's
        for part in todo[first:] + todo[:first]:
            if part in self._parts():
                continue
            self.extract_part(part, num_rows, compute)
            if on_part:
                left = sum(len(_rows_of(each, num_rows)) for each in self.missing(num_rows))
                on_part(num_rows - left, num_rows)
        return self.load(num_rows)

    def _parts(self) -> dict[int, Path]:
        return {int(path.name[:5]): path for path in sorted(self.folder.glob("[0-9]*-*.npy"))}


def _rows_of(part: int, num_rows: int) -> npt.NDArray[np.int64]:
    return np.arange(part * ROWS_A_PART, min(num_rows, (part + 1) * ROWS_A_PART))


def _read(path: Path) -> npt.NDArray[np.float32]:
    if _sha256(path) != path.stem[6:]:
        raise ValueError(
            f"{path} is damaged: its content is not what its name says. Delete it: it is made "
            "again."
        )
    features: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
    return features


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        digest = hashlib.sha256()  # not hashlib.file_digest: Python 3.10 has none
        while block := handle.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
