"""Weight files: where they are looked for, what is refused, and that no code in them runs."""

import hashlib
import io
import json
import os
import pickle
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rayssl.backbones.weights import (
    MissingWeights,
    WeightsFile,
    file_sha256,
    find_weights,
    load_strictly,
    load_weights,
)

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.tensor([1.0, 2.0])}
FILE = WeightsFile("net.pth", None, "Ask its publisher.")


class Poison:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def save_npz(path: Path, state: dict[str, Tensor]) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
    np.savez(path, **arrays)


def assert_state(found: dict[str, Tensor]) -> None:
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """RAYSSL_WEIGHTS and torch's own folder, both empty."""
    own, torchs = tmp_path / "own", tmp_path / "torch" / "hub" / "checkpoints"
    for folder in (own, torchs):
        folder.mkdir(parents=True)
    monkeypatch.setenv("RAYSSL_WEIGHTS", str(own))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return own, torchs


def test_file_is_taken_from_the_path_then_own_folder_then_torchs(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    own, torchs = places
    given = tmp_path / "given.pth"
    for path in (torchs / FILE.name, own / FILE.name, given):
        path.touch()
    assert find_weights(FILE, given) == given
    assert find_weights(FILE) == own / FILE.name
    (own / FILE.name).unlink()
    assert find_weights(FILE) == torchs / FILE.name


def test_missing_file_is_one_line_with_the_places_and_where_to_get_it(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    own, torchs = places
    with pytest.raises(MissingWeights) as missing:
        find_weights(FILE)
    text = f"Weight file missing: net.pth in {own} or {torchs}. Ask its publisher."
    assert str(missing.value) == text
    (own / FILE.name).touch()
    gone = tmp_path / "gone.pth"
    with pytest.raises(MissingWeights, match=f"^Weight file missing: {gone}. Ask its publisher.$"):
        find_weights(FILE, gone)  # a path that is given is not replaced by another file
    with pytest.raises(MissingWeights, match="Weight file missing: "):
        load_weights(gone)


def served(monkeypatch: pytest.MonkeyPatch, body: bytes | Exception) -> None:
    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert (url, timeout > 0) == ("https://example.org/net", True)
        if isinstance(body, Exception):
            raise body
        return io.BytesIO(body)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_file_with_an_address_is_downloaded_into_torchs_folder_once(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"weights"
    name = f"net-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    file = WeightsFile(name, "https://example.org/net", "Ask.")
    served(monkeypatch, body)
    path = find_weights(file)
    assert path == places[1] / name
    assert path.read_bytes() == body
    served(monkeypatch, AssertionError("downloaded twice"))
    assert find_weights(file) == path


def test_download_of_other_bytes_or_without_a_network_leaves_nothing(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = WeightsFile("net-00000000.pth", "https://example.org/net", "Ask.")
    served(monkeypatch, b"weights")
    with pytest.raises(ValueError, match="expected a SHA-256 that starts with 00000000, got "):
        find_weights(file)
    served(monkeypatch, urllib.error.URLError("no network"))
    text = r"net-00000000.pth in .* Downloading https://example.org/net failed \(no network\). Ask."
    with pytest.raises(MissingWeights, match=text):
        find_weights(file)
    assert list(places[1].iterdir()) == []


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pytorch_files_of_both_formats_are_read(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    assert_state(load_weights(path))


def test_npz_and_safetensors_are_read(tmp_path: Path) -> None:
    save_npz(tmp_path / "net.npz", STATE)
    assert_state(load_weights(tmp_path / "net.npz"))
    save_file(STATE, tmp_path / "net.safetensors")
    found = load_weights(tmp_path / "net.safetensors")
    assert_state({name: found[name] for name in STATE})  # its order is another one


@pytest.mark.parametrize("wrapper", ["network", "state_dict", "model"])
def test_state_dict_inside_a_checkpoint_is_taken_out(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 50, wrapper: STATE}, tmp_path / "net.pth")
    assert_state(load_weights(tmp_path / "net.pth"))


def test_prefixes_that_all_names_share_are_taken_off(tmp_path: Path) -> None:
    torch.save({f"module.backbone.{k}": v for k, v in STATE.items()}, tmp_path / "net.pth")
    assert_state(load_weights(tmp_path / "net.pth"))
    mixed = {"module.weight": torch.zeros(1), "bias": torch.zeros(1)}
    torch.save(mixed, tmp_path / "mixed.pth")
    assert list(load_weights(tmp_path / "mixed.pth")) == ["module.weight", "bias"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "net.pth", tmp_path / "trace"
    torch.save(STATE | {"x": Poison(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"net.pth is refused: it asks to run code \(posix.mkdir"):
        load_weights(path)
    assert not trace.exists()


def test_plain_pickle_and_npz_with_pickled_code_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "net.pth").write_bytes(pickle.dumps({"x": Poison(trace)}))
    with pytest.raises(ValueError, match="net.pth (is refused|cannot be read)"):
        load_weights(tmp_path / "net.pth")
    np.savez(tmp_path / "net.npz", x=np.array([Poison(trace)], dtype=object))
    with pytest.raises(ValueError, match="net.npz is refused: it holds pickled objects"):
        load_weights(tmp_path / "net.npz")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["net.pth", "net.npz", "net.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_truncated_file_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name == "net.pth":
        torch.save(STATE, path)
    elif name == "net.npz":
        save_npz(path, STATE)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"{path} cannot be read as weights .* Get the file again"):
        load_weights(path)


def test_file_that_is_no_weights_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth cannot be read as weights"):
        load_weights(tmp_path / "page.pth")
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"net\.npz (cannot be read|holds no state dict)"):
        load_weights(tmp_path / "net.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds no state dict: expected name -> tensor"):
        load_weights(tmp_path / "list.pth")


def test_hash_in_the_name_and_hash_that_is_given_are_checked(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pth")
    sha256 = file_sha256(tmp_path / "net.pth")
    right = tmp_path / f"net-{sha256[:8]}.pth"
    (tmp_path / "net.pth").rename(right)
    assert_state(load_weights(right))
    assert_state(load_weights(right, sha256))
    with pytest.raises(ValueError, match=f"starts with {'0' * 16}, got {sha256[:16]}. Delete it"):
        load_weights(right, "0" * 64)
    wrong = right.rename(tmp_path / "net-00000000.pth")
    with pytest.raises(ValueError, match="starts with 00000000, got "):
        load_weights(wrong)


@pytest.mark.parametrize("date", ["20240115", "202401151230", "20240115123059"])
def test_date_in_the_name_is_no_hash(date: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / f"net-{date}.pth")
    assert_state(load_weights(tmp_path / f"net-{date}.pth"))


@pytest.mark.parametrize("digits", ["20241301", "20240132", "18991231", "202401155"])
def test_digits_that_are_no_date_are_a_hash(digits: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / f"net-{digits}.pth")
    with pytest.raises(
        ValueError, match=f"a SHA-256 that starts with {digits}, got .*, or rename it if"
    ):
        load_weights(tmp_path / f"net-{digits}.pth")


@pytest.mark.parametrize("name", ["net.pth", "net-0676ba61.pth", "net.npz", "net.safetensors"])
@pytest.mark.parametrize("page", ["\n<!DOCTYPE html><p>", "\ufeff<HTML>", '<?xml version="1.0"?>'])
def test_web_page_saved_as_weights_is_called_one(name: str, page: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(page, encoding="utf-8")
    text = rf"{name} cannot be read as weights \(it is a web page\)\. Get the file itself"
    with pytest.raises(ValueError, match=text):
        load_weights(tmp_path / name)


def test_safetensors_whose_length_begins_as_a_tag_does_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    length = 0x3C20  # written as b" <"
    data = length.to_bytes(8, "little") + header.ljust(length).encode() + b"\7"
    (tmp_path / "net.safetensors").write_bytes(data)
    assert load_weights(tmp_path / "net.safetensors")["a"].tolist() == [7]


def test_text_saved_as_weights_is_not_called_pickled_and_pytorchs_advice_is_not_passed_on(
    tmp_path: Path,
) -> None:
    for name in ("net.pth", "net.npz"):
        for text in ("hello", "version https://git-lfs.github.com/spec/v1"):
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} cannot be read as weights") as wrong:
                load_weights(tmp_path / name)
            assert "PyTorch 2.6" not in str(wrong.value)
            assert "pickle" not in str(wrong.value)


def test_missing_unexpected_and_misshapen_tensors_are_named_and_nothing_changes() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {
        "0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2),
        "1.weight": torch.zeros(1, 2), "fc.weight": torch.zeros(9), "extra": torch.zeros(1),
    }  # fmt: skip
    with pytest.raises(ValueError) as wrong:
        load_strictly(module, state, source="net.pth", head=("fc.",))
    assert str(wrong.value).startswith(
        "net.pth does not fit this network (missing: 1.bias; unexpected: extra; of another shape: "
        "0.weight (2, 4) instead of (2, 3))."
    )
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_head_may_be_there_and_batch_counters_of_old_files_may_lack() -> None:
    module = nn.BatchNorm1d(2)
    state = {
        "weight": torch.full((2,), 3.0), "bias": torch.zeros(2), "running_mean": torch.ones(2),
        "running_var": torch.ones(2), "fc.weight": torch.zeros(1),
    }  # fmt: skip
    load_strictly(module, state, source="net.pth", head=("fc.",))
    assert module.weight.tolist() == [3.0, 3.0]
    load_strictly(module, {k: v for k, v in state.items() if "fc" not in k}, source="net.pth")
