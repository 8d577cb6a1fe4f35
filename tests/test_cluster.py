"""A cluster of several nodes: who may join, where things run, and what a lost node costs.

Several raylets on this machine stand in for several machines; docker/test.py has real containers.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import atari
from rayssl.presets import AtariRun
from rayssl.rllib import start
from rayssl.rllib.resources import HEAD_NODE
from rayssl.rllib.start import _not_shared, start_ray

ROOT = Path(__file__).parent.parent


class Raylets:
    """tests/raylets.py and its cluster."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "raylets.py")],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._answer()
        if not self.address:
            self.close()
            raise RuntimeError("Expected a cluster, got none: see tests/raylets.py.")

    def add(self, cpus: int) -> int:
        return int(self._ask(f"add {cpus}"))

    def kill(self, node: int) -> None:
        assert self._ask(f"kill {node}") == "killed"

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def script(self, name: str, *words: str, token: Path | None = None) -> subprocess.Popen[str]:
        """Starts a script of experiments/ as a driver of this cluster."""
        environment = dict(self.environment)
        if token is not None:
            environment["RAY_AUTH_TOKEN_PATH"] = str(token)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "experiments" / name), *words, "--address", self.address],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def raylets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    """A head without CPUs and one node with one, with token authentication."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # docker/compose.yaml's: a lost node is given up after seconds
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }
    cluster = Raylets(environment)
    cluster.add(1)
    yield cluster
    cluster.close()


def until(holds: Any, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "Expected it to come true in time."
        time.sleep(0.2)


def test_folders_of_weights_are_absolute_before_ray_starts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tune's trials inherit the environment and run in another working directory.
    found: list[dict[str, str]] = []
    monkeypatch.setattr(start.ray, "init", lambda **_: found.append(dict(os.environ)))
    monkeypatch.setattr(start, "ensure_auth_token", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSSL_WEIGHTS", "weights")
    monkeypatch.setenv("TORCH_HOME", "../torch")
    start_ray("local")
    assert found[0]["RAYSSL_WEIGHTS"] == str(tmp_path / "weights")
    assert Path(found[0]["TORCH_HOME"]) == tmp_path / "../torch"


def test_client_without_the_clusters_token_is_refused_with_one_line(
    raylets: Raylets, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    words = ["--results-dir", str(tmp_path / "results")]
    process = raylets.script("mnist.py", "--dataset", "digits", *words, token=tmp_path / "token")
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"error: Expected a Ray cluster at '{raylets.address}', got: ")
    assert "same token (RAY_AUTH_TOKEN_PATH)" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_sweep_uses_a_node_that_joins_and_goes_on_from_checkpoints_when_one_is_lost(
    raylets: Raylets, tmp_path: Path
) -> None:
    def epochs(trial: str) -> list[int]:
        log = tmp_path / "sweep" / trial / "epochs.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]

    process = raylets.script(
        "sweep.py", "mnist", "--dataset", "digits", "--epochs", "24", "--train-images", "400",
        "--aux-weight", "0", "1", "--results-dir", str(tmp_path), "--name", "sweep",
    )  # fmt: skip
    first, second = "w0-s0", "w1-s0"
    until(lambda: len(epochs(first)) >= 2, process)
    assert epochs(second) == [], "There is room for one trial."
    raylets.add(1)
    until(lambda: len(epochs(second)) >= 1, process)
    assert max(epochs(first)) < 24, "The second trial did not wait for the first one's end."
    raylets.kill(0)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert f"{first}: its process died; goes on from its checkpoint" in out
    for trial in (first, second):
        assert set(epochs(trial)) == set(range(1, 25))
        assert epochs(trial).count(1) == 1, "It went on from a checkpoint, not from the start."


def place(nodes: list[dict[str, float]], **settings: Any) -> tuple[Any, str | None]:
    """Returns what `experiments.atari.place` makes of these free nodes: the config and its line."""
    run = AtariRun(**settings)
    config = atari.build_config(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "free_resources", lambda: nodes)
        patch.setattr(atari, "total_cpus", lambda: sum(node["CPU"] for node in nodes))
        message = atari.place(config, run, local=False)
    return config, message


HEAD = {"CPU": 2.0, HEAD_NODE: 1.0}
WORKER = {"CPU": 4.0}


def test_learner_is_on_the_head_and_runners_spread_over_the_nodes() -> None:
    config, message = place([WORKER, HEAD, WORKER], num_workers=8)
    assert config.custom_resources_for_main_process == {HEAD_NODE: 0.001}
    assert config.placement_strategy == "SPREAD"
    assert (config.num_cpus_for_main_process, config.learner_threads) == (2, 2)
    assert (config.num_cpus_per_env_runner, message) == (1.0, None)


def test_learner_goes_where_the_gpu_is_if_the_head_has_none_or_no_cpus() -> None:
    gpu = {"CPU": 8.0, "GPU": 1.0}
    config, _ = place([HEAD, gpu], num_workers=2, num_gpus=1)
    assert config.custom_resources_for_main_process == {}
    assert config.num_gpus_per_learner == 1
    config, _ = place([{"CPU": 2.0, "GPU": 1.0, HEAD_NODE: 1.0}, gpu], num_workers=2, num_gpus=1)
    assert config.custom_resources_for_main_process == {HEAD_NODE: 0.001}
    config, _ = place([{"CPU": 0.0, HEAD_NODE: 1.0}, WORKER], num_workers=2)
    assert config.custom_resources_for_main_process == {}
    assert config.num_cpus_for_main_process == 2


def test_fewer_cpus_than_workers_is_said_with_what_will_happen() -> None:
    config, message = place([HEAD, WORKER], num_workers=16)
    assert config.num_cpus_for_main_process == 1
    assert config.num_cpus_per_env_runner == 0.3076  # 13 on the worker's 4, 3 beside the learner
    assert message is not None
    assert message.startswith("16 env runners asked, 6 CPUs here: each gets 0.31 CPU and they")


def test_folder_that_another_node_does_not_share_is_told_from_one_that_it_cannot_write(
    tmp_path: Path,
) -> None:
    probe = tmp_path / "probe"
    assert "does not have the folder" in str(_not_shared(str(probe), "secret"))
    probe.write_text("somebody else's")
    assert _not_shared(str(probe), "secret") == "another folder of that name"
    probe.write_text("secret")
    assert _not_shared(str(probe), "secret") is None
    assert list(tmp_path.iterdir()) == [probe]
