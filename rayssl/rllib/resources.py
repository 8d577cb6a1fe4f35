"""Does the request fit what is free, before Ray is asked for it?

Ray does not say no: more env runners than CPUs wait for ever, with no message. So the request is
packed here first, node by node, because what fits the sum of all CPUs need not fit the single nodes
(2 nodes with 2 CPUs each have no room for 16 runners of 0.1875 CPU beside the algorithm's own CPU).

Only `check_cluster`, `free_resources`, `total_cpus` and what calls them talk to Ray; only the
latter two import it.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

Resources = Mapping[str, float]  # name -> amount, as in {"CPU": 2.0, "GPU": 1.0}

TICKS_PER_UNIT = (
    10_000  # Ray counts resources in steps of 1e-4: src/ray/common/scheduling/fixed_point.h
)
HEAD_NODE = "node:__internal_head__"  # a resource that Ray gives to the head, one unit of it
MIN_RUNNER_CPUS = 0.01  # a runner with less would wait longer than it works

# Measured on an Atari env runner of Ray 2.60: 414 MB of proportional set size (608 MB resident, of
# which it shares a part with the other runners). 450 MB leaves some room.
RUNNER_BYTES = 450e6


class RunnerFit(NamedTuple):
    """How env runners fit: CPUs for each, CPUs of all nodes, a line for people if they share."""

    cpus_per_runner: float
    total_cpus: float
    message: str | None


def fit_runner_cpus(
    num_runners: int,
    *,
    main_bundle: Resources,
    learner_bundles: Sequence[Resources] = (),
    nodes: Sequence[Resources],
    total_cpus: float | None = None,
    strategy: Literal["PACK", "SPREAD"] = "PACK",
) -> RunnerFit:
    """Returns the largest CPU share, at most 1, at which the nodes have room for all env runners.

    The main process and the learners are placed first, by Ray's own rule (`_place`), as another
    placement could leave room that Ray does not find. The share is then the largest c <= 1 with
    sum_i floor(free_i / c) >= num_runners, rounded down to Ray's resolution of 1e-4. Whole CPUs
    give no message.

    Args:
      num_runners: env runner processes, 0 or more.
      main_bundle: what the algorithm's own process asks for, as in `{"CPU": 1}`.
      learner_bundles: what each learner process asks for; empty if the algorithm's process learns.
      nodes: what is free on each node, as `free_resources` returns it.
      total_cpus: CPUs of all nodes, free or not, if other jobs may hold some; default: none do.
      strategy: the config's placement_strategy; how many runners fit is the same for both, as long
        as the others lie where it puts them.
    Raises:
      ValueError: if `num_runners` is negative, if the main process or a learner fits on no node, or
        if the share would be below 0.01 CPU. The text says what is needed and what there is.
    Source: PACK and SPREAD, ray src/ray/raylet/scheduling/policy/bundle_scheduling_policy.cc.
    """
    if num_runners < 0:
        raise ValueError(f"num_runners must be 0 or more, got {num_runners}.")
    free_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    total_cpus = free_cpus if total_cpus is None else max(total_cpus, free_cpus)
    there = _cpus_there(free_cpus, total_cpus)

    free = [_ticks(node) for node in nodes]
    fixed = [("the algorithm's own process", main_bundle)]
    fixed += [(f"learner {i}", bundle) for i, bundle in enumerate(learner_bundles)]
    fixed.sort(key=lambda item: _size(item[1]), reverse=True)
    unplaced = _place([_ticks(bundle) for _, bundle in fixed], free, strategy)
    if unplaced is not None:
        raise ValueError(_cannot_place(*fixed[unplaced], nodes, there))

    free_ticks = [node.get("CPU", 0) for node in free]
    share = _largest_share(num_runners, free_ticks)
    if share == TICKS_PER_UNIT:
        return RunnerFit(1.0, total_cpus, None)
    rest = sum(free_ticks) / TICKS_PER_UNIT
    if share < MIN_RUNNER_CPUS * TICKS_PER_UNIT:
        raise ValueError(
            f"{_count(num_runners, 'env runner')} asked, each needs at least {MIN_RUNNER_CPUS} CPU,"
            f" but {_number(rest)} CPU is left of {there} beside the algorithm and its learners."
            " Use --num-workers 0 to sample in the algorithm's own process, or more CPUs"
            " (--address HOST:PORT)."
        )
    as_fast = max(1, int(rest))
    message = (
        f"{_count(num_runners, 'env runner')} asked, {there}: each gets"
        f" {share / TICKS_PER_UNIT:.2f} CPU and they share the cores; --num-workers {as_fast} would"
        " be as fast here, more CPUs (--address HOST:PORT) faster"
    )
    return RunnerFit(share / TICKS_PER_UNIT, total_cpus, message)


def count_fitting(bundles: Sequence[Resources], nodes: Sequence[Resources], most: int) -> int:
    """Returns how many times these bundles fit into the free nodes side by side, at most `most`.

    Args:
      bundles: what the processes of one trial ask for.
      nodes: what is free on each node, as `free_resources` returns it.
    """
    free = [_ticks(node) for node in nodes]
    asked = sorted(bundles, key=_size, reverse=True)
    count = 0
    while count < most and _place([_ticks(bundle) for bundle in asked], free, "PACK") is None:
        count += 1
    return count


def _largest_share(num_runners: int, free_ticks: Sequence[int]) -> int:
    """Returns the most ticks, at most one CPU, at which the runners fit; 0 if they never do."""
    fits, too_much = 0, TICKS_PER_UNIT + 1
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        if sum(node // middle for node in free_ticks) >= num_runners:
            fits = middle
        else:
            too_much = middle
    return fits


def _ticks(resources: Resources) -> dict[str, int]:
    """Returns the amounts in Ray's steps of 1e-4, so that sums are exact."""
    return {name: round(amount * TICKS_PER_UNIT) for name, amount in resources.items()}


def _size(resources: Resources) -> tuple[float, float, float]:
    """Returns the sort key of a bundle: GPUs first, then the rare, then CPUs, as in Ray."""
    rest = sum(amount for name, amount in resources.items() if name not in ("CPU", "GPU"))
    return resources.get("GPU", 0.0), rest, resources.get("CPU", 0.0)


def _place(
    bundles: Sequence[Mapping[str, int]], free: Sequence[dict[str, int]], strategy: str
) -> int | None:
    """Takes the bundles from the free nodes by Ray's rule; returns the first without room, or None.

    The largest bundle goes to the node that keeps the largest part free. PACK: that node then takes
    whatever else it has room for before the next node is asked. SPREAD: it is asked again only when
    no other node has room.
    """
    waiting = dict(enumerate(bundles))
    candidates = list(free)
    used: list[dict[str, int]] = []
    while waiting:
        first = next(iter(waiting))
        fitting = [node for node in candidates if _has_room(node, waiting[first])]
        fitting = fitting or [node for node in used if _has_room(node, waiting[first])]
        if not fitting:
            return first
        best = max(fitting, key=lambda node: _part_kept(node, waiting[first]))
        asked = waiting.items() if strategy == "PACK" else [(first, waiting[first])]
        for i, bundle in list(asked):
            if _has_room(best, bundle):
                for name, amount in bundle.items():
                    best[name] = best.get(name, 0) - amount
                del waiting[i]
        candidates = [node for node in candidates if node is not best]
        used.append(best)
    return None


def _has_room(node: Mapping[str, int], bundle: Mapping[str, int]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in bundle.items())


def _part_kept(node: Mapping[str, int], bundle: Mapping[str, int]) -> float:
    """Returns the part that the node keeps free, summed over what the bundle asks for."""
    return sum(1 - amount / node[name] for name, amount in bundle.items() if amount)


def _cannot_place(name: str, bundle: Resources, nodes: Sequence[Resources], there: str) -> str:
    """Returns the text of the error: what is needed, what is there, what to do."""
    asked = ", ".join(_of(kind, amount) for kind, amount in bundle.items() if amount)
    text = f"{asked} asked for by {name} in one place, "
    if not nodes:
        return text + "but no node is alive. Start the cluster, or leave out --address."
    gpus = bundle.get("GPU", 0.0)
    if max(node.get("GPU", 0.0) for node in nodes) < gpus:
        return (
            text + f"but none of the {_count(len(nodes), 'node')} has {_count(gpus, 'GPU')} free;"
            f" {there}. Ask for no GPU, or use a cluster with more (--address HOST:PORT)."
        )
    per_node = "; ".join(
        f"node {i}: " + ", ".join(_of(kind, node.get(kind, 0.0)) for kind in bundle)
        for i, node in enumerate(nodes)
    )
    return (
        text + f"but no node has the room; {there}. Free on each ({per_node})."
        " Ask for less, wait for other jobs to end, or use a larger cluster (--address HOST:PORT)."
    )


def _cpus_there(free_cpus: float, total_cpus: float) -> str:
    """Returns "2 CPUs here", or how many of them other jobs left free."""
    if total_cpus - free_cpus < 1 / TICKS_PER_UNIT:
        return f"{_count(total_cpus, 'CPU')} here"
    held = _number(total_cpus - free_cpus)
    return f"{_number(free_cpus)} of {_count(total_cpus, 'CPU')} free here (other jobs hold {held})"


def _count(amount: float, noun: str) -> str:
    return f"{_number(amount)} {noun}" + ("" if amount == 1 else "s")


def _of(kind: str, amount: float) -> str:
    """Returns "2 CPU"; memory, which Ray counts in bytes, in GB."""
    return f"{amount / 1e9:.1f} GB" if kind == "memory" else f"{_number(amount)} {kind}"


def _number(amount: float) -> str:
    return f"{round(amount, 4):g}"


def free_resources() -> list[dict[str, float]]:
    """Returns what is free now on each live node of the connected Ray cluster.

    What is free, not what is there: if another job holds CPUs, a request for them waits until that
    job ends, maybe for ever. The view can be a moment old.

    Raises:
      RuntimeError: if Ray is not connected.
    """
    import ray
    from ray._private import state

    _require_ray(ray.is_initialized())
    free = state.available_resources_per_node()
    # A used-up resource is left out of a node's view: missing means none. A node without a view has
    # only just joined: all of it is free.
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [dict(free.get(node["NodeID"], node["Resources"])) for node in alive]


def total_cpus() -> float:
    """Returns the CPUs of all live nodes of the connected Ray cluster, free or not.

    Raises:
      RuntimeError: if Ray is not connected.
    """
    import ray

    _require_ray(ray.is_initialized())
    return float(sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]))


def free_after_ended(patience_s: float = 30.0) -> list[dict[str, float]]:
    """Returns `free_resources`; where all CPUs are held, waits for one that is given back.

    A driver that was killed a moment ago, or an experiment that was stopped in this process, leaves
    actors that Ray is still ending.

    Args:
      patience_s: seconds after which the CPUs are taken to be another job's.
    """
    deadline = time.monotonic() + patience_s
    while True:
        nodes = free_resources()
        free = sum(node.get("CPU", 0.0) for node in nodes)
        if free >= 1 or free == total_cpus() or time.monotonic() > deadline:
            return nodes
        time.sleep(0.5)


def check_cluster(address: str, timeout_s: float = 20.0) -> None:
    """Raises unless a Ray cluster answers at the address and takes this process's token.

    `ray.init` would wait for more than two minutes at a dead port, and write a warning a second
    while a token is wrong.

    Args:
      address: HOST:PORT of the cluster's head.
      timeout_s: seconds after which no answer of Ray is taken for none; it takes about one.
    Raises:
      ConnectionError: with the reason and what to do.
    """
    wrong = _not_reached(address) or _not_healthy(address, timeout_s)
    if wrong:
        raise ConnectionError(
            f"Expected a Ray cluster at '{address}', got: {wrong.rstrip('.')}. Check the address "
            "(HOST:PORT), that the cluster is up, and that both sides have the same token "
            "(RAY_AUTH_TOKEN_PATH)."
        )


def _not_reached(address: str) -> str | None:
    """Returns why nothing listens at HOST:PORT, or None if something does."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return "no port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:  # OverflowError: port 99999
        return str(error)
    return None


def _not_healthy(address: str, timeout_s: float) -> str | None:
    """Returns what Ray's own health check says against the cluster, or None if it is well.

    In a process of its own: nothing but its end stops one that waits.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"no answer of Ray within {timeout_s:g} s"
    if answer.returncode == 0:
        return None
    lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    return lines[-1].partition(". Ensure")[0]  # the rest names our own advice, at length


def _require_ray(connected: bool) -> None:
    if not connected:
        raise RuntimeError("Expected a connected Ray, got none. Call ray.init(address=...) first.")


def check_runner_memory(
    num_runners: int, *, bytes_each: float = RUNNER_BYTES, available_bytes: float | None = None
) -> None:
    """Raises if the env runners would not fit in this computer's free memory.

    For a local Ray only: it knows nothing of the memory of other nodes.

    Args:
      num_runners: env runner processes on this computer.
      bytes_each: memory of one, in bytes.
      available_bytes: free memory; default: as measured now, within a container its limit.
    Raises:
      MemoryError: if num_runners * bytes_each > available_bytes; the text says how many would fit.
    """
    if available_bytes is None:
        available_bytes = _available_bytes()
    if num_runners * bytes_each <= available_bytes:
        return
    fit = int(available_bytes // bytes_each)
    raise MemoryError(
        f"{_count(num_runners, 'env runner')} need about {num_runners * bytes_each / 1e9:.1f} GB"
        f" ({bytes_each / 1e9:.2f} GB each), got {available_bytes / 1e9:.1f} GB of free memory"
        f" here. Use --num-workers {fit}, with more environments in each, or a cluster"
        " (--address HOST:PORT)."
    )


def _available_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns free memory in bytes: the computer's, or its container's if less (cgroup v2)."""
    available = float(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = float((cgroup / "memory.current").read_text())
        stat = (cgroup / "memory.stat").read_text().split()
        cache = float(stat[stat.index("inactive_file") + 1])  # given back when memory is short
        return available if limit == "max" else min(available, float(limit) - used + cache)
    except (OSError, ValueError):  # no cgroup v2, or none that may be read
        return available


def ensure_auth_token() -> None:
    """Creates `~/.ray/auth_token` for the owner's eyes only, unless Ray has a token already.

    A local Ray asks for a token since 2.59 and would write the file itself, readable by everybody
    (mode 0644). Does nothing if the environment names a token or turns the check off, if the file
    exists, or if the home directory cannot be written.

    Source: ray/_private/authentication/authentication_token_setup.py, `generate_and_save_token`.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written aside and linked, so that another start at the same time never reads half a token.
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix="auth_token.")  # mode 0600
    except OSError:  # a read-only home: Ray then says what to set
        return
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))  # as long as Ray's own
        os.link(draft, path)
    except OSError:  # somebody else was first, or the file system has no links: Ray copes
        pass
    finally:
        os.unlink(draft)


def check_trial_fits(num_cpus: float, num_gpus: float) -> None:
    """Raises ValueError if no node has room for one trial: Tune would wait for ever."""
    nodes = free_after_ended()
    if any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
        return
    most = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    raise ValueError(
        f"A trial needs {num_cpus} CPUs and {num_gpus:g} GPUs on one node, the largest has "
        f"{most.get('CPU', 0):g} and {most.get('GPU', 0):g} free. Lower --num-cpus or --num-gpus."
    )
