"""Fixtures of every test: own randomness, a home of its own, one small Ray for the session."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rayssl.rllib.resources import ensure_auth_token


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves tests out that take minutes each, unless they are asked for: `make test-long`."""
    if "RAYSSL_LONG_TESTS" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: RAYSSL_LONG_TESTS=1"))


def pytest_configure(config: pytest.Config) -> None:
    """Lets pytest-xdist take files in their own order, not those with the most tests first.

    The slowest files have few tests: started last, one of them ran for a minute on one core alone.
    """
    config.option.loadscopereorder = False


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A random generator whose seed is the test's name: no test shares randomness by accident."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture(autouse=True)
def own_global_randomness(request: pytest.FixtureRequest) -> None:
    """Fresh layers draw from torch's global generator: a test finds it the same on every run."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests and their subprocesses see an empty home, no cluster and no token of the user's."""
    home = tmp_path_factory.mktemp("home")
    # Ray's sockets live below RAY_TMPDIR and Linux allows their paths 107 bytes: keep it short.
    ray_tmp = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(home))
        environment.setenv("MPLBACKEND", "Agg")
        environment.setenv("RAY_TMPDIR", ray_tmp)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray lowers its workers' priority by 15: beside other tests they would get next to nothing.
        environment.setenv("RAY_worker_niceness", "0")
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        yield home
    shutil.rmtree(ray_tmp, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_local(own_home: Path) -> Iterator[None]:
    """A Ray of this session's own with 4 CPUs, whatever there are; shared, as it starts slowly."""
    import ray

    ensure_auth_token()
    # address="local": without it, ray.init joins any Ray that already runs on this computer.
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=True,
    )
    yield
    ray.shutdown()


@pytest.fixture
def killed_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function from whose call on a kill comes after the first ten bytes of any file."""
    write = Path.write_bytes

    def killed(path: Path, data: bytes) -> int:
        write(path, data[:10])
        raise KeyboardInterrupt

    return lambda: monkeypatch.setattr(Path, "write_bytes", killed)
