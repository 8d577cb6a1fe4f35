"""A checkpoint is whole or it is not used, and the text names the file that is wrong."""

import collections
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.rllib.checkpoint import (
    MANIFEST,
    damage,
    hidden_code,
    newest_whole_checkpoint,
    write_manifest,
)


def make_checkpoint(folder: Path, env_steps: int = 0) -> Path:
    (folder / "learner_group").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"env_steps": env_steps}))
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "learner_group" / "state.pkl").write_bytes(bytes(range(256)) * 9000)  # > one block
    write_manifest(folder)
    return folder


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_whole_checkpoint_has_no_damage_and_no_part_files(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    assert damage(folder) is None
    assert damage(str(folder)) is None
    assert not list(folder.rglob("*.part"))


def test_manifest_lists_every_file_below_the_folder_but_itself(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / "learner_group" / MANIFEST).write_text("a file of another's that has our name")
    write_manifest(folder)  # over the first one
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(listed) == {
        "learner_group/manifest.json",
        "learner_group/state.pkl",
        "model.json",
        "model.pt",
    }
    assert listed["model.pt"] == {
        "bytes": 7,
        # printf weights | sha256sum
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }


def test_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    cut_short(make_checkpoint(tmp_path) / "model.pt")
    assert damage(tmp_path) == "model.pt has 6 bytes, expected 7"


def test_missing_file_is_named(tmp_path: Path) -> None:
    (make_checkpoint(tmp_path) / "learner_group" / "state.pkl").unlink()
    assert damage(tmp_path) == "learner_group/state.pkl is missing"


def test_changed_byte_is_found_although_the_size_is_right(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path) / "learner_group" / "state.pkl"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert damage(tmp_path) == (
        "learner_group/state.pkl has changed since it was written (SHA-256 differs)"
    )


@pytest.mark.parametrize(
    "manifest",
    [None, "", '{"version": 1, "files"', "[]", "{}", '{"files": []}', '{"files": {"a": 3}}'],
)
def test_checkpoint_without_a_readable_manifest_was_cut_short(
    manifest: str | None, tmp_path: Path
) -> None:
    (make_checkpoint(tmp_path) / MANIFEST).unlink()
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    assert damage(tmp_path) == (
        "it has no readable manifest.json, which is written last: it was cut short"
    )


def test_folder_that_does_not_exist_is_no_checkpoint(tmp_path: Path) -> None:
    assert "no readable manifest.json" in str(damage(tmp_path / "nowhere"))
    assert newest_whole_checkpoint(tmp_path / "nowhere") is None


def test_newest_is_the_one_with_most_steps_and_not_the_last_name(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "run" / "checkpoint_z", 900)
    newest = make_checkpoint(tmp_path / "run" / "deeper" / "checkpoint_a", 1_000)
    assert newest_whole_checkpoint(tmp_path) == newest
    assert newest_whole_checkpoint(newest) == newest  # a folder that is itself a checkpoint


@pytest.mark.parametrize("file", ["model.pt", "model.json", "learner_group/state.pkl", MANIFEST])
def test_newest_whole_one_is_taken_when_the_newest_was_cut_short(file: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", 1)
    whole = make_checkpoint(tmp_path / "b", 2)
    cut_short(make_checkpoint(tmp_path / "c", 3) / file)
    assert newest_whole_checkpoint(tmp_path) == whole


def test_newest_whole_checkpoint_is_none_where_there_is_none(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path) is None
    cut_short(make_checkpoint(tmp_path / "a", 1) / "model.pt")
    assert newest_whole_checkpoint(tmp_path) is None


class Trap:
    """Makes a file while it is unpickled, as an attacker's checkpoint would start a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickle_that_calls_anything_is_named_and_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    state = tmp_path / "checkpoint" / "learner_group" / "state.pkl"
    state.parent.mkdir(parents=True)
    state.write_bytes(pickle.dumps({"weights": np.ones(3), "more": Trap(sprung)}))
    found = hidden_code(tmp_path / "checkpoint")
    assert found == f"learner_group/state.pkl would call {os.mkdir.__module__}.mkdir"
    assert not sprung.exists()
    pickle.loads(state.read_bytes())
    assert sprung.exists(), "the trap works where nobody looks first"


def test_arrays_and_plain_containers_are_data(tmp_path: Path) -> None:
    state = {
        "array": np.arange(6.0).reshape(2, 3).T,
        "number": np.float32(1.5),
        "scores": collections.deque([1.0], maxlen=3),
        "named": collections.OrderedDict(a=b"bytes"),
    }
    for protocol in (4, 5):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(state, protocol=protocol))
    assert hidden_code(tmp_path) is None


def test_files_that_rllib_would_read_first_or_that_are_no_pickle_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.pkl").write_bytes(b"\x80\x05weights")
    assert (hidden_code(tmp_path) or "").startswith("state.pkl is no pickle of plain data")
    (tmp_path / "state.pkl").unlink()
    (tmp_path / "state.msgpack").write_bytes(b"")
    assert (hidden_code(tmp_path) or "").startswith("state.msgpack may hold code")
