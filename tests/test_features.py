"""Frozen means frozen, and the cache is paid for once and refused when damaged."""

import json
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from rayssl import features
from rayssl.features import FeatureCache, changed_tensors, frozen, tensor_hashes

KEY = {"backbone": "b", "weights": "w", "layer": "l", "preprocessing": "p", "faces": "f"}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


class Counter:
    """Features whose rows are known, and how many were asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.rows += len(rows)
        return np.stack([rows, rows * 2], 1).astype(np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four rows, begun at the first that is missing."""
    monkeypatch.setattr(features, "ROWS_A_PART", 4)
    monkeypatch.setattr(secrets, "randbelow", lambda count: 0)


def test_frozen_network_drops_nothing_and_keeps_statistics_and_modes() -> None:
    f = network()
    before = tensor_hashes(f)
    with frozen(f):
        first, second = f(torch.ones(8, 3)), f(torch.ones(8, 3))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert f.training
    assert changed_tensors(before, f) == []


def test_network_in_training_mode_moves_its_statistics_and_they_are_named() -> None:
    f = network()
    before = tensor_hashes(f)
    with torch.no_grad():
        f(torch.randn(8, 3))
    assert changed_tensors(before, f) == [
        "1.num_batches_tracked", "1.running_mean", "1.running_var",
    ]  # fmt: skip


def test_frozen_network_that_moves_is_an_error_that_names_the_tensor() -> None:
    f = network()

    def move() -> None:
        with frozen(f):
            f.train()
            f(torch.randn(8, 3))

    with pytest.raises(RuntimeError, match="1.running_mean"):
        move()


def test_hash_sees_one_weight_and_the_shape() -> None:
    f = nn.Linear(2, 2, bias=False)
    before = tensor_hashes(f)
    with torch.no_grad():
        f.weight[1, 1] += 1e-6
    assert changed_tensors(before, f) == ["weight"]
    assert changed_tensors(before, nn.Linear(4, 1)) == ["bias", "weight"]


def test_cache_computes_each_row_once(tmp_path: Path) -> None:
    compute = Counter()
    first = FeatureCache(tmp_path, KEY).get(10, compute)
    second = FeatureCache(tmp_path, KEY).get(10, compute)
    assert compute.rows == 10
    assert first.tolist() == second.tolist() == [[i, 2 * i] for i in range(10)]
    assert json.loads(next(tmp_path.glob("*/key.json")).read_text())["layer"] == "l"


@pytest.mark.parametrize("name", list(KEY))
def test_cache_of_another_key_is_another_cache(tmp_path: Path, name: str) -> None:
    compute = Counter()
    FeatureCache(tmp_path, KEY).get(5, compute)
    FeatureCache(tmp_path, KEY | {name: "other"}).get(5, compute)
    assert compute.rows == 10


def test_cut_off_extraction_goes_on_where_it_was(tmp_path: Path) -> None:
    cache, compute = FeatureCache(tmp_path, KEY), Counter()
    cache.extract_part(1, 10, compute)
    (cache.folder / "abc.part").write_bytes(b"cut")  # what a kill leaves
    assert cache.missing(10) == [0, 2]
    with pytest.raises(FileNotFoundError, match="00000"):
        cache.load(10)
    told: list[tuple[int, int]] = []
    assert cache.get(10, compute, lambda *done: told.append(done))[4].tolist() == [4, 8]
    assert compute.rows == 10
    assert told == [(8, 10), (10, 10)]


def test_part_that_another_process_wrote_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    cache, own, others = FeatureCache(tmp_path, KEY), Counter(), Counter()

    def compute(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        cache.extract_part(2, 10, others)
        return own(rows)

    assert cache.get(10, compute)[9].tolist() == [9, 18]
    assert own.rows == 8  # parts 0 and 1, each once


def test_each_process_begins_at_a_part_of_its_own_and_goes_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else trials that start together would compute every part at the same time.
    monkeypatch.setattr(secrets, "randbelow", lambda count: count - 1)
    began: list[int] = []

    def compute(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        began.append(int(rows[0]))
        return Counter()(rows)

    assert FeatureCache(tmp_path, KEY).get(10, compute)[:, 0].tolist() == list(range(10))
    assert began == [8, 0, 4]


def test_damaged_part_is_refused_and_made_again_once_deleted(tmp_path: Path) -> None:
    cache, compute = FeatureCache(tmp_path, KEY), Counter()
    cache.get(10, compute)
    part = sorted(cache.folder.glob("*.npy"))[1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1  # one bit
    part.write_bytes(content)
    with pytest.raises(ValueError, match="damaged") as error:
        cache.load(10)
    assert part.name in str(error.value)
    part.unlink()
    assert cache.get(10, compute)[5].tolist() == [5, 10]
    assert compute.rows == 14


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    with pytest.raises(ValueError, match="finite"):
        cache.get(4, lambda rows: np.full((len(rows), 2), np.nan, np.float32))
    assert cache.missing(4) == [0]
