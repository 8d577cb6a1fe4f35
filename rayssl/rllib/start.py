"""Starts or joins Ray for a script, and records every start of a run in its folder."""

import contextlib
import functools
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._private import services
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl.rllib.resources import check_cluster, ensure_auth_token

FOLDERS = ("RAYSSL_WEIGHTS", "TORCH_HOME")  # of the environment that trials read, too


def ray_address(address: str | None) -> str:
    """Returns the cluster's address: the one given, else RAY_ADDRESS, else `local`."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def start_ray(address: str) -> None:
    """Joins the cluster at this address, or starts a Ray of this machine's own for `local`.

    Makes FOLDERS absolute first: Tune's trials run in another working directory.

    Raises:
      ConnectionError: with what to do, if it does not come up or does not answer.
    """
    for name in FOLDERS:
        if folder := os.environ.get(name):
            os.environ[name] = str(Path(folder).expanduser().absolute())
    if address not in ("local", "auto"):
        check_cluster(address)
    ensure_auth_token()
    local = {"include_dashboard": False} if address == "local" else {}
    for attempt in (1, 2):
        try:
            with _ray_in_sessions_of_its_own():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
            return
        # Ray raises bare Exception where a busy machine starts it slowly.
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or address != "local":
                raise ConnectionError(
                    f"Ray did not start at '{address}': {_first_line(error)} Check the "
                    "address, that the cluster is up, and its token (RAY_AUTH_TOKEN_PATH)."
                ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _ray_in_sessions_of_its_own() -> Iterator[None]:
    """Meanwhile Ray's processes start in sessions of their own, not in this process's group.

    `timeout`, job managers and shells send SIGTERM to a whole group: Ray's servers would end at
    once, and the run could save nothing. They still end with this process, whose death the kernel
    tells them.
    """
    popen = functools.partial(services.ConsolePopen, start_new_session=True)
    with mock.patch.object(services, "ConsolePopen", popen):
        yield


def check_shared(folder: Path, timeout_s: float = 60.0) -> None:
    """Raises unless every node sees this folder and can write to it.

    A trial saves its checkpoints from the node that it runs on: where the folder is not the same
    on all, or not writable, it would fail at its first checkpoint, hours later. Nodes that join
    later are not checked.

    Args:
      folder: of the run, as this process sees it.
      timeout_s: seconds for all nodes to answer.
    Raises:
      OSError: with each node's reason and what to do.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:  # this process has tried it already
        return
    answers = {}
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".shared-probe-") as probe:
        secret = secrets.token_hex(8)
        probe.write(secret)
        probe.flush()
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_not_shared).options(num_cpus=0, scheduling_strategy=here)
            answers[task.remote(probe.name, secret)] = node["NodeManagerHostname"]
        ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
        wrong = [(answers[ref], f"no answer within {timeout_s:g} s") for ref in late]
        for ref in ready:
            try:
                reason = ray.get(ref)
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
            wrong += [(answers[ref], reason)] if reason else []
    if wrong:
        raise OSError(
            f"Expected {folder} to be one folder that all {len(nodes)} nodes can write, got: "
            + "; ".join(f"node {name}: {reason}" for name, reason in wrong)
            + ". Mount the same volume or NFS folder there on every node, or pass --results-dir."
        )


def _not_shared(probe: str, secret: str) -> str | None:
    """Returns what is wrong with the probe's folder on this node, or None."""
    try:
        if Path(probe).read_text() != secret:
            return "another folder of that name"
        with tempfile.TemporaryFile(dir=Path(probe).parent) as own:
            own.write(b"rayssl")
    except FileNotFoundError:
        return "it does not have the folder, or another one of that name"
    except OSError as error:
        return f"it cannot write there ({error.strerror})"
    return None


def record_start(folder: Path, new: dict[str, Any]) -> None:
    """Writes settings, command, commit and versions to settings.json; keeps every earlier start.

    Args:
      folder: of the run.
      new: `rayssl.cli.provenance` of its settings.
    """
    path = folder / "settings.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(with_starts(path, new), indent=1))
    part.rename(path)


def with_starts(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Returns `rayssl.cli.provenance` with the starts that the file at `path` has, and this one.

    A damaged file has none.
    """
    try:
        starts = list(json.loads(path.read_text()).get("starts", []))
    except (OSError, ValueError, AttributeError, TypeError):
        starts = []
    return new | {"starts": [*starts, {k: new[k] for k in ("command", "commit", "started")}]}
