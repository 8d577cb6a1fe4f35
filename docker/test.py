"""Drives a real cluster of containers through its life, and says what it saw.

    make docker-test                           build, start, use, break, mend, take down
    python docker/test.py --rates rates.json   steps/s of 1 and of 2 workers instead
    python docker/test.py --no-build --keep    on the image that is there; leaves the cluster up

Works with Docker, or with podman and podman-compose. Needs nothing but Python's standard library.
The cluster has a name, volumes and ports of its own; those of a user are not touched.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "rayssl-test"
IMAGE = "rayssl:test"
TOKEN = "/run/rayssl/token"
PAUSE_S = 15.0  # the longest silence of a training that has lost a worker

# A training of the real parts that takes a minute: small frames, no compiler.
ATARI = [
    "python", "experiments/atari.py", "--num-workers", "2", "--frame-size", "42", "--no-compile",
    "--learning-starts", "500", "--replay-capacity", "20000", "--steps-per-report", "500",
]  # fmt: skip
MNIST = ["python", "experiments/mnist.py", "--dataset", "digits"]
EPOCHS = 20
TRIAL = "with_resources.<locals>.ResourceTrainable"  # what Tune calls the class of its actors


class ClusterError(Exception):
    """The cluster did not do what it must."""


def check(holds: bool, text: str) -> None:
    """Logs what was seen, or raises ClusterError with it."""
    if not holds:
        raise ClusterError(text)
    log(f"  ok: {text}")


def log(text: str) -> None:
    """Prints a line, and keeps it for the file."""
    print(text, flush=True)
    LINES.append(text)


LINES: list[str] = []


@contextmanager
def part(name: str) -> Iterator[None]:
    """Logs a part of the test with its seconds."""
    log(f"\n== {name}")
    start = time.monotonic()
    yield
    log(f"  {time.monotonic() - start:.0f} s")


def run(
    words: Sequence[str], *, timeout_s: float = 900, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command from the repository's root; stdout and stderr in one text."""
    return subprocess.run(
        words, cwd=ROOT, env=env, text=True, timeout=timeout_s,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(
    what: str, holds: Callable[[], Any], timeout_s: float = 180,
    driver: "subprocess.Popen[str] | None" = None,
) -> Any:  # fmt: skip
    """Waits until a function returns something true, and returns it; a driver must be alive."""
    end = time.monotonic() + timeout_s
    while True:
        found = holds()
        if found:
            return found
        if driver is not None and driver.poll() is not None:
            raise ClusterError(f"ended before {what}: {driver.communicate()[0][-1000:]}")
        if time.monotonic() > end:
            raise ClusterError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(1)


class Cluster:
    """The compose project under test, and the engine that runs it."""

    def __init__(self) -> None:
        compose = shutil.which("docker") and run(["docker", "compose", "version"]).returncode == 0
        if compose and run(["docker", "info"]).returncode == 0:
            self.engine, self.compose_words = "docker", ["docker", "compose"]
        elif shutil.which("podman") and shutil.which("podman-compose"):
            self.engine, self.compose_words = "podman", ["podman-compose"]
        else:
            raise ClusterError(
                "expected Docker with compose, or podman with podman-compose; got neither"
            )
        self.port, self.tensorboard_port = free_port(), free_port()
        self.env = os.environ | {
            "COMPOSE_FILE": "docker/compose.yaml", "COMPOSE_PROJECT_NAME": PROJECT,
            "RAYSSL_IMAGE": IMAGE, "DASHBOARD_PORT": str(self.port),
            "TENSORBOARD_PORT": str(self.tensorboard_port), "HEAD_CPUS": "1", "WORKER_CPUS": "2",
            "HEAD_MEMORY": "4g", "WORKER_MEMORY": "4g",
            "BUILDAH_FORMAT": "docker",  # podman's own format has no health check
        }  # fmt: skip

    def compose(self, *words: str, timeout_s: float = 900) -> str:
        """Runs a compose command and returns its text; raises ClusterError if it fails."""
        done = run([*self.compose_words, *words], timeout_s=timeout_s, env=self.env)
        if done.returncode != 0:
            raise ClusterError(
                f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-3000:]}"
            )
        return done.stdout

    def up(self, workers: int) -> None:
        """Starts what does not run, and waits for the head and this many workers."""
        self.compose("up", "-d", "--no-build", "--scale", f"worker={workers}")
        for name in self.names():  # podman-compose leaves containers that were killed as they are
            if self.engine == "podman" and not self.running(name):
                run(["podman", "start", name])
        self.wait_for_nodes(workers + 1)

    def wait_for_nodes(self, count: int) -> None:
        """Waits until Ray counts this many nodes, no more and no less."""
        until(f"{count} nodes", lambda: len(self.nodes()) == count)

    def names(self, service: str = "") -> list[str]:
        """Returns the names of this project's containers, sorted."""
        words = [self.engine, "ps", "-a", "--format", "{{.Names}}"]
        words += ["--filter", f"label=com.docker.compose.project={PROJECT}"]
        if service:
            words += ["--filter", f"label=com.docker.compose.service={service}"]
        done = subprocess.run(words, text=True, capture_output=True)
        return sorted(done.stdout.split())

    def running(self, name: str) -> bool:
        """Returns whether a container runs."""
        done = run([self.engine, "inspect", "--format", "{{.State.Running}}", name])
        return done.stdout.strip().endswith("true")

    def kill(self, name: str) -> None:
        """Kills a container at once, as a pulled plug does."""
        done = run([self.engine, "kill", name])
        if done.returncode != 0:
            raise ClusterError(f"{self.engine} kill {name}: {done.stdout}")

    def exec(self, *words: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a command in the head, as `docker compose exec head` does."""
        words = (*self.compose_words, "exec", "-T", "head", *words)
        return run(words, timeout_s=timeout_s, env=self.env)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command in the head and returns without waiting."""
        return subprocess.Popen(
            [*self.compose_words, "exec", "-T", "head", *words], cwd=ROOT, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def read(self, path: str) -> str:
        """Returns a file of the head, or nothing if it is not there."""
        done = subprocess.run(
            [self.engine, "exec", self.names("head")[0], "cat", path],
            text=True, capture_output=True,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def ask(self, path: str, token: str | None, data: bytes | None = None) -> tuple[int, Any]:
        """Returns status and JSON of a request to the dashboard's port, as the host sees it."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text.startswith(b"{") else None
        except urllib.error.HTTPError as error:
            return error.code, None
        except OSError:
            return 0, None

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """Returns what Ray's state API lists as alive: nodes or actors."""
        status, answer = self.ask(f"/api/v0/{kind}?detail=1&limit=1000", self.read(TOKEN).strip())
        rows = answer["data"]["result"]["result"] if status == 200 else []
        return [row for row in rows if row["state"] == "ALIVE"]

    def nodes(self) -> list[dict[str, Any]]:
        """Returns the nodes that Ray counts."""
        return self.listed("nodes")

    def places(self, actor_class: str) -> list[str]:
        """Returns the node of each live actor of a class."""
        return [row["node_id"] for row in self.listed("actors") if row["class_name"] == actor_class]

    def node_of(self, container: str) -> str:
        """Returns the id of the Ray node that runs in a container."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        done = run([self.engine, "inspect", "--format", form, container])
        found = [n["node_id"] for n in self.nodes() if n["node_ip"] in done.stdout.split()]
        if len(found) != 1:
            raise ClusterError(f"{container} is {len(found)} of Ray's nodes")
        return str(found[0])

    def container_of(self, node: str) -> str:
        """Returns the worker container in which a Ray node runs."""
        return next(name for name in self.names("worker") if self.node_of(name) == node)

    def rows(self, name: str) -> list[dict[str, float]]:
        """Returns the whole lines of an Atari run's log so far."""
        text = self.read(f"/app/results/local/{name}/progress.csv")
        lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [{k: float(v) for k, v in line.items() if v} for line in lines]

    def epochs(self, name: str) -> list[dict[str, Any]]:
        """Returns the lines of a sweep's log so far."""
        text = self.read(f"/app/results/local/{name}/epochs.jsonl")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def kill_driver(self, script: str) -> None:
        """Kills the driver of a script in the head with SIGKILL."""
        code = (
            "import os, pathlib\n"
            "for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
            "    words = p.read_bytes().split(b'\\0')\n"
            f"    if b'{script}' in words and words[0].endswith(b'python'):\n"
            "        os.kill(int(p.parent.name), 9)\n"
        )
        self.exec("python", "-c", code)

    def down(self) -> None:
        """Takes the containers away and keeps the volumes."""
        # podman-compose 1.6 forgets the workers of --scale; for Docker the word changes nothing.
        self.compose("--profile", "tensorboard", "down", "--remove-orphans")

    def remove(self) -> None:
        """Takes everything of this test away, whatever state it is in."""
        run([*self.compose_words, "--profile", "tensorboard", "down", "-v"], env=self.env)
        for name in self.names():
            run([self.engine, "rm", "-f", "-v", name])
        # podman-compose leaves volumes whose containers it did not stop itself.
        for volume in ("results", "token", "data"):
            run([self.engine, "volume", "rm", "-f", f"{PROJECT}_{volume}"])


def build(cluster: Cluster) -> None:
    """Builds the image as compose would."""
    commit = run(["git", "describe", "--always", "--dirty", "--abbrev=12"]).stdout.strip()
    words = [cluster.engine, "build", "-f", "docker/Dockerfile", "-t", IMAGE]
    words += ["--build-arg", f"COMMIT={commit}"]
    if os.environ.get("TORCH_INDEX"):
        words += ["--build-arg", f"TORCH_INDEX={os.environ['TORCH_INDEX']}"]
    if cluster.engine == "podman":  # where pip's configuration may name a proxy of this machine
        words += ["--network", "host"]
    done = run([*words, "."], timeout_s=3600, env=cluster.env)
    check(done.returncode == 0, f"image built{'' if done.returncode == 0 else done.stdout[-3000:]}")
    size = run([cluster.engine, "image", "inspect", "--format", "{{.Size}}", IMAGE]).stdout
    log(f"  {int(size.split()[-1]) / 1e9:.1f} GB")


def start(cluster: Cluster) -> None:
    """The head, two workers, healthy."""
    cluster.up(workers=2)
    for name in cluster.names():
        healthy = run([cluster.engine, "exec", name, "rayssl-node", "health"]).returncode == 0
        check(healthy, f"{name} is healthy")
        user = run([cluster.engine, "exec", name, "id", "-u"]).stdout.strip()
        check(user == "1000", f"{name} runs as user 1000")


def closed(cluster: Cluster) -> None:
    """Nobody without the token gets in, and the token is nowhere but in its volume."""
    token = cluster.read(TOKEN).strip()
    check(bool(re.fullmatch("[0-9a-f]{64}", token)), "the head has made a token of 64 hex digits")
    mode = cluster.exec("stat", "-c", "%a", TOKEN).stdout.split()[-1]
    check(mode == "600", "only its owner may read it")
    job = json.dumps({"entrypoint": "touch /tmp/intruder"}).encode()
    for name, wrong in (("no", None), ("a wrong", "0" * 64)):
        got = [cluster.ask("/api/jobs/", wrong)[0], cluster.ask("/api/jobs/", wrong, job)[0]]
        check(set(got) <= {401, 403}, f"{name} token: listing and submitting jobs give {got}")
    check(cluster.ask("/api/jobs/", token)[0] == 200, "the token: 200")
    check(cluster.exec("ls", "/tmp/intruder").returncode != 0, "no job of an intruder has run")
    network = f"{PROJECT}_ray"
    client = [
        cluster.engine, "run", "--rm", "--network", network, IMAGE,
        "ray", "status", "--address", "head:6379",
    ]  # fmt: skip
    refused = run(client, timeout_s=120)
    check(
        refused.returncode != 0 and "Resources" not in refused.stdout,
        "a container beside the cluster without the token is refused by Ray itself",
    )
    ports = run([cluster.engine, "port", cluster.names("head")[0]]).stdout
    check(
        re.findall(r"-> (.*)", ports) == [f"127.0.0.1:{cluster.port}"],
        "one port is published, on 127.0.0.1 only",
    )
    for name in cluster.names():
        check(token not in run([cluster.engine, "logs", name]).stdout, f"not in the log of {name}")
        inspected = run([cluster.engine, "inspect", name]).stdout
        check(token not in inspected, f"not in the settings of {name}")
    for what in (["history", "--no-trunc", IMAGE], ["image", "inspect", IMAGE]):
        check(token not in run([cluster.engine, *what]).stdout, f"not in the image's {what[0]}")


def training(cluster: Cluster) -> None:
    """A job with a runner on each worker goes on when one of the workers is killed."""
    job = ["ray", "job", "submit", "--submission-id", "atari", "--no-wait", "--"]
    steps = ["--steps", "100000", "--checkpoint-every", "1000", "--name", "atari"]
    done = cluster.exec(*job, *ATARI, *steps)
    check(done.returncode == 0, f"ray job submit{'' if done.returncode == 0 else done.stdout}")
    follow = cluster.start("ray", "job", "logs", "--follow", "atari")
    until("four reports", lambda: len(cluster.rows("atari")) >= 4, 300)
    places = cluster.places("AtariEnvRunner")
    workers = sorted(cluster.node_of(name) for name in cluster.names("worker"))
    check(sorted(places) == workers, "one env runner on each of the two workers")
    head = cluster.node_of(cluster.names("head")[0])
    check(cluster.places("AuxDQN") == [head], "the learner is on the head")

    before = cluster.rows("atari")
    usual = max(b["wall_s"] - a["wall_s"] for a, b in zip(before[1:], before[2:], strict=False))
    victim = cluster.container_of(places[0])
    cluster.kill(victim)
    log(f"  killed {victim} at {before[-1]['env_steps']:.0f} steps")
    until(
        "two runners again", lambda: (rows := cluster.rows("atari"))
        and rows[-1]["runner_restarts"] > 0 and rows[-1]["healthy_runners"] == 2,
    )  # fmt: skip
    after = [row for row in cluster.rows("atari") if row["wall_s"] >= before[-1]["wall_s"]]
    gap = max(b["wall_s"] - a["wall_s"] for a, b in zip(after, after[1:], strict=False))
    check(
        gap <= PAUSE_S + usual,
        f"longest time between two reports {gap:.1f} s, before the kill {usual:.1f} s",
    )
    log(f"  two runners again at {after[-1]['env_steps']:.0f} steps, same learner, same run")

    done = cluster.exec("ray", "job", "stop", "atari", timeout_s=300)
    check(done.returncode == 0, "ray job stop")
    said = follow.communicate(timeout=120)[0]
    check("stopping at the next report, with a checkpoint" in said, "the run ends at its report")
    log("  " + next(line for line in said.splitlines() if line.startswith("stopped at")))
    cluster.up(workers=2)


def killed_driver(cluster: Cluster) -> None:
    """Resumed in the same cluster after SIGKILL, by `compose exec` this time."""
    saved = cluster.rows("atari")[-1]["env_steps"]
    driver = cluster.start(*ATARI, "--steps", "100000", "--resume", "results/local/atari")
    until("progress", lambda: cluster.rows("atari")[-1]["env_steps"] >= saved + 2500, 300, driver)
    cluster.kill_driver("experiments/atari.py")
    driver.communicate(timeout=60)
    reached = cluster.rows("atari")[-1]["env_steps"]
    check(reached > saved, f"driver killed at {reached:.0f} steps, resumed at {saved:.0f}")


def killed_head(cluster: Cluster) -> None:
    """`up` again and `--resume` go on after the head, and with it the driver, is gone."""
    saved = cluster.rows("atari")[-1]["env_steps"]
    driver = cluster.start(*ATARI, "--steps", "100000", "--resume", "results/local/atari")
    until("progress", lambda: cluster.rows("atari")[-1]["env_steps"] >= saved + 1500, 300, driver)
    reached = cluster.rows("atari")[-1]["env_steps"]
    token, began = cluster.read(TOKEN), time.monotonic()
    cluster.kill(cluster.names("head")[0])
    driver.communicate(timeout=60)
    cluster.up(workers=2)
    log(
        f"  head killed at {reached:.0f} steps; all nodes again {time.monotonic() - began:.0f} s on"
    )
    check(cluster.read(TOKEN) == token, "the token is the same")
    steps = str(int(reached) + 1000)
    done = cluster.exec(*ATARI, "--steps", steps, "--resume", "results/local/atari")
    check(done.returncode == 0, f"resumed to the end{'' if not done.returncode else done.stdout}")
    log("  " + next(line for line in done.stdout.splitlines() if line.startswith("resuming")))
    rows = [int(row["env_steps"]) for row in cluster.rows("atari")]
    check(rows == sorted(set(rows)), f"{len(rows)} reports, steps only grow up to {rows[-1]}")


def sweep(cluster: Cluster) -> None:
    """Six trials: a worker joins, another is killed, all trials end, none starts over."""
    # One core a trial: five run, the sixth waits for the node that will join.
    words = [*MNIST, "--seeds", "3", "--epochs", str(EPOCHS), "--name", "sweep"]
    driver = cluster.start(*words)
    until("epochs on a worker", lambda: len(cluster.epochs("sweep")) >= 8, 300, driver)
    old = {cluster.node_of(name) for name in cluster.names("worker")}
    cluster.up(workers=3)
    new = until("a trial on the new node", lambda: set(cluster.places(TRIAL)) - old, 400, driver)
    log(f"  a third worker joined and got a trial ({len(new)} node)")
    busy = [node for node in cluster.places(TRIAL) if node in old]
    victim = cluster.container_of(busy[0])
    running = len([node for node in busy if node == busy[0]])
    cluster.kill(victim)
    log(f"  killed {victim} with {running} trials at {len(cluster.epochs('sweep'))} epochs in all")
    said = driver.communicate(timeout=900)[0]
    check(driver.returncode == 0, f"the sweep ends{'' if not driver.returncode else said}")
    again = 0
    rows = cluster.epochs("sweep")
    trials = sorted({row["trial"] for row in rows})
    for trial in trials:
        epochs = [row["epoch"] for row in rows if row["trial"] == trial]
        check(
            set(epochs) == set(range(1, EPOCHS + 1)) and epochs.count(1) == 1,
            f"{trial}: {EPOCHS} epochs, never started over",
        )
        again += len(epochs) - EPOCHS
    check(len(trials) == 6, f"6 trials; {again} epochs were done twice, from checkpoints on")
    log(next(line for line in said.splitlines() if line.startswith("| rotation")
             or line.startswith("| paper ")))  # fmt: skip


def clear_errors(cluster: Cluster) -> None:
    """A volume that cannot be written, a full disk, too few CPUs, a folder of one node alone."""
    run_it = [cluster.engine, "run", "--rm", "-e", "RAY_ADDRESS=local"]
    for what, mount, prepare, where, why in (
        ("a read-only results volume", ["--read-only"], "", "", "Read-only file system"),
        ("a full disk", ["--tmpfs", "/full:rw,size=64k,mode=1777"],
         "head -c 1000000 /dev/zero >/full/file 2>/dev/null; ", " --results-dir /full/results",
         "space"),
    ):  # fmt: skip
        words = [*run_it, *mount, IMAGE, "sh", "-c"]
        done = run([*words, f"{prepare}python experiments/atari.py{where}"], timeout_s=300)
        expect_error(done, what, why)
    many = ["--num-workers", "1000", "--envs-per-worker", "1", "--name", "many"]
    expect_error(cluster.exec(*ATARI[:2], *many), "1000 workers", "CPU")
    alone = ["python", "experiments/sweep.py", "mnist", "--dataset", "digits"]
    done = cluster.exec(*alone, "--results-dir", "/tmp/alone")
    expect_error(done, "a sweep's folder on the head alone", "one folder that all 3 nodes")


def expect_error(done: "subprocess.CompletedProcess[str]", what: str, why: str) -> None:
    """Exit code 2 and one line that says why."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    check(done.returncode == 2 and len(lines) == 1, f"{what}: exit code {done.returncode}")
    log(f"    {lines[0]}")
    check(why in lines[0], f"it names {why!r}")


def tensorboard(cluster: Cluster) -> None:
    """The optional profile shows the runs."""
    cluster.compose("--profile", "tensorboard", "up", "-d", "--no-build", "tensorboard")
    url = f"http://127.0.0.1:{cluster.tensorboard_port}/data/runs"

    def runs() -> list[str]:
        try:
            return list(json.loads(urllib.request.urlopen(url, timeout=10).read()))
        except OSError:
            return []

    found = until("TensorBoard's runs", runs)
    check(any("atari" in name for name in found), f"TensorBoard shows {len(found)} runs")


def gone(cluster: Cluster) -> None:
    """`down` takes the containers and leaves the results."""
    cluster.down()
    check(cluster.names() == [], "no container is left")
    volume = ["-v", f"{PROJECT}_results:/app/results:ro"]
    done = run([cluster.engine, "run", "--rm", *volume, IMAGE, "ls", "results/local"])
    check(set(done.stdout.split()) >= {"atari", "sweep"}, "the results are still in their volume")


PARTS: list[tuple[str, Callable[[Cluster], None]]] = [
    ("up: a head and two workers", start),
    ("closed: the token", closed),
    ("submit, follow, stop; a worker killed in a training", training),
    ("resume; the driver killed", killed_driver),
    ("resume; the head killed", killed_head),
    ("a sweep; a worker joins, another is killed", sweep),
    ("clear errors at the start", clear_errors),
    ("TensorBoard", tensorboard),
    ("down", gone),
]


def rates(cluster: Cluster, path: Path, seconds: float = 60.0) -> None:
    """Measures steps/s with 1 and with 2 worker containers, an env runner on each, and saves them.

    Real settings (84x84, compiled), 1 CPU a worker and 1 for the learner. `shares` of the
    algorithm's wall time say what limits: learning, or waiting for runners.
    """
    results = []
    for workers in (1, 2):
        cluster.up(workers=workers)
        name = f"rate-{workers}"
        words = [*ATARI[:2], "--num-workers", str(workers), "--learning-starts", "1000"]
        words += ["--steps", "1000000", "--steps-per-report", "500", "--name", name]
        driver = cluster.start(*words)
        while len(rows := cluster.rows(name)) < 6:  # it learns, and has compiled
            time.sleep(2)
        first = rows[-1]
        time.sleep(seconds)
        last = cluster.rows(name)[-1]
        places = cluster.places("AtariEnvRunner")
        cluster.kill_driver("experiments/atari.py")
        driver.communicate(timeout=60)
        wall = last["wall_s"] - first["wall_s"]
        shares = {k.removeprefix("time_"): v for k, v in last.items() if k.startswith("time_")}
        results.append({
            "workers": workers, "runners_on_nodes": len(set(places)),
            "env_steps_per_s": (last["env_steps"] - first["env_steps"]) / wall,
            "td_updates_per_s": (last["td_updates"] - first["td_updates"]) / wall,
            "seconds": wall, "shares": shares, "host_cores": os.cpu_count(),
            "load_average_1min": os.getloadavg()[0],
        })  # fmt: skip
        log(f"  {json.dumps(results[-1])}")
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> int:
    """Runs all parts and returns 0 if they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-build", action="store_true", help="use the image that is there")
    parser.add_argument("--keep", action="store_true", help="leave the cluster as it is at the end")
    parser.add_argument("--only", help="only parts whose name has this in it, besides the first")
    parser.add_argument("--rates", type=Path, help="measure steps/s into this file instead")
    parser.add_argument("--log", type=Path, help="file for what is printed")
    settings = parser.parse_args()
    began, code = time.monotonic(), 0
    try:
        cluster = Cluster()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    commit = run(["git", "describe", "--always", "--dirty", "--abbrev=12"]).stdout.strip()
    now = time.strftime("%Y-%m-%d %H:%M")
    log(f"{now} commit {commit}, {cluster.engine}, {os.cpu_count()} cores")
    try:
        cluster.remove()
        if not settings.no_build:
            with part("build"):
                build(cluster)
        if settings.rates:
            rates(cluster, settings.rates)
        for i, (name, function) in enumerate([] if settings.rates else PARTS):
            if i == 0 or not settings.only or settings.only in name:
                with part(name):
                    function(cluster)
    except (ClusterError, subprocess.TimeoutExpired) as error:
        log(f"\nFAILED: {error}")
        code = 1
    if not settings.keep:
        cluster.remove()
    outcome = "failed" if code else "all held"
    log(f"\n{outcome} after {(time.monotonic() - began) / 60:.0f} minutes")
    if settings.log:
        settings.log.write_text("\n".join(LINES) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
