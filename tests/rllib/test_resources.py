"""What fits is found before Ray is asked, with a text a person can act on."""

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.rllib import resources
from rayssl.rllib.resources import (
    check_cluster,
    check_runner_memory,
    ensure_auth_token,
    fit_runner_cpus,
    free_resources,
    total_cpus,
)

ONE_CPU = {"CPU": 1.0}
LAPTOP = [{"CPU": 2.0, "memory": 8e9}]
TWO_NODES = [{"CPU": 2.0}, {"CPU": 2.0}]


def test_whole_cpus_fit_without_a_message() -> None:
    assert fit_runner_cpus(3, main_bundle=ONE_CPU, nodes=TWO_NODES) == (1.0, 4.0, None)
    assert fit_runner_cpus(0, main_bundle=ONE_CPU, nodes=LAPTOP) == (1.0, 2.0, None)


def test_sixteen_runners_on_two_cpus_share_the_one_that_is_left() -> None:
    fit = fit_runner_cpus(16, main_bundle=ONE_CPU, nodes=LAPTOP)
    assert fit.cpus_per_runner == 0.0625
    assert fit.total_cpus == 2.0
    assert fit.message == (
        "16 env runners asked, 2 CPUs here: each gets 0.06 CPU and they share the cores;"
        " --num-workers 1 would be as fast here, more CPUs (--address HOST:PORT) faster"
    )


def test_share_that_only_fits_the_sum_of_all_nodes_is_not_chosen() -> None:
    # 1 + 16 * 0.1875 = 4 CPUs, but node 0 has room for 5 such runners, node 1 for 10: one is left.
    fit = fit_runner_cpus(16, main_bundle=ONE_CPU, nodes=TWO_NODES)
    assert fit.cpus_per_runner == 0.1818  # 2 / 11: five on node 0, eleven on node 1


def test_main_process_is_placed_where_ray_places_it() -> None:
    # On the node of 2, it would leave 1 and 3: five runners of 0.75. Ray takes the emptier node and
    # leaves 2 and 2, where 0.75 has room for four runners only: the fifth would wait for ever.
    fit = fit_runner_cpus(5, main_bundle=ONE_CPU, nodes=[{"CPU": 2.0}, {"CPU": 3.0}])
    assert fit.cpus_per_runner == 0.6666


def test_share_is_rounded_down_to_rays_resolution() -> None:
    fit = fit_runner_cpus(3, main_bundle=ONE_CPU, nodes=LAPTOP)
    assert fit.cpus_per_runner == 0.3333


def test_learner_bundles_are_placed_before_the_runners() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}]
    learner = {"CPU": 1.0, "GPU": 1.0}
    fit = fit_runner_cpus(2, main_bundle=ONE_CPU, learner_bundles=[learner], nodes=nodes)
    assert fit.cpus_per_runner == 1.0
    # Main would take the only CPU of the GPU node if it went first.
    narrow = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}]
    fit = fit_runner_cpus(0, main_bundle=ONE_CPU, learner_bundles=[learner], nodes=narrow)
    assert fit.cpus_per_runner == 1.0


def test_fractional_free_cpus_are_counted_exactly() -> None:
    # 0.1 + 0.2 is not 0.3 in floating point, and 1.9999999 is Ray's 2.
    nodes = [{"CPU": 0.1 + 0.2}, {"CPU": 1.9999999}]
    fit = fit_runner_cpus(3, main_bundle={"CPU": 2.0}, nodes=nodes)
    assert fit.cpus_per_runner == 0.1


def test_message_says_when_other_jobs_hold_cpus() -> None:
    fit = fit_runner_cpus(4, main_bundle=ONE_CPU, nodes=LAPTOP, total_cpus=8.0)
    assert fit.message is not None
    assert fit.message.startswith(
        "4 env runners asked, 2 of 8 CPUs free here (other jobs hold 6): each gets 0.25 CPU"
    )
    assert fit.total_cpus == 8.0


def test_gpu_that_no_node_has_is_refused_with_need_and_have() -> None:
    with pytest.raises(ValueError) as error:
        fit_runner_cpus(2, main_bundle={"CPU": 1, "GPU": 1}, nodes=TWO_NODES)
    assert str(error.value) == (
        "1 CPU, 1 GPU asked for by the algorithm's own process in one place, but none of the 2"
        " nodes has 1 GPU free; 4 CPUs here. Ask for no GPU, or use a cluster with more"
        " (--address HOST:PORT)."
    )


def test_gpus_that_are_too_few_are_told_from_none() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}]
    with pytest.raises(ValueError, match=r"none of the 1 node has 2 GPUs free; 4 CPUs here"):
        fit_runner_cpus(0, main_bundle={"CPU": 1, "GPU": 2}, nodes=nodes)


def test_main_process_without_room_lists_what_each_node_has() -> None:
    with pytest.raises(ValueError, match=r"3 CPU asked .* no node has the room; 4 CPUs here") as e:
        fit_runner_cpus(1, main_bundle={"CPU": 3}, nodes=TWO_NODES)
    assert "(node 0: 2 CPU; node 1: 2 CPU)" in str(e.value)


def test_no_cpu_left_for_runners_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 CPU is left of 1 CPU here .* --num-workers 0") as e:
        fit_runner_cpus(1, main_bundle=ONE_CPU, nodes=[ONE_CPU])
    assert str(e.value).startswith("1 env runner asked, each needs at least 0.01 CPU")


def test_share_below_a_hundredth_is_refused_and_a_hundredth_is_not() -> None:
    assert fit_runner_cpus(100, main_bundle=ONE_CPU, nodes=LAPTOP).cpus_per_runner == 0.01
    with pytest.raises(ValueError, match="101 env runners asked"):
        fit_runner_cpus(101, main_bundle=ONE_CPU, nodes=LAPTOP)


def test_no_nodes_and_negative_runners_are_refused() -> None:
    with pytest.raises(ValueError, match="no node is alive"):
        fit_runner_cpus(1, main_bundle=ONE_CPU, nodes=[])
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        fit_runner_cpus(-1, main_bundle=ONE_CPU, nodes=LAPTOP)


@given(
    num_runners=st.integers(1, 40),
    cpus=st.lists(st.integers(0, 8), min_size=1, max_size=5),
)
def test_chosen_share_packs_and_one_tick_more_does_not(num_runners: int, cpus: list[int]) -> None:
    main = {"CPU": 1.0, "head": 1.0}  # fills a node of its own, so that the others stay whole
    nodes = [main, *({"CPU": float(n)} for n in cpus)]
    try:
        share = fit_runner_cpus(num_runners, main_bundle=main, nodes=nodes).cpus_per_runner
    except ValueError:
        share = 0.0

    def packs(ticks: int) -> bool:  # one runner at a time, on the first node with room
        room = [n * 10_000 for n in cpus]
        for _ in range(num_runners):
            where = next((i for i, left in enumerate(room) if left >= ticks), None)
            if where is None:
                return False
            room[where] -= ticks
        return True

    ticks = round(share * 10_000)
    if share == 0.0:
        assert not packs(100)
    else:
        assert packs(ticks)
        assert ticks == 10_000 or not packs(ticks + 1)


def test_runners_that_fit_in_memory_pass_and_one_more_does_not() -> None:
    check_runner_memory(4, bytes_each=450e6, available_bytes=1.8e9)
    with pytest.raises(MemoryError) as error:
        check_runner_memory(16, bytes_each=450e6, available_bytes=2e9)
    assert str(error.value) == (
        "16 env runners need about 7.2 GB (0.45 GB each), got 2.0 GB of free memory here. Use"
        " --num-workers 4, with more environments in each, or a cluster (--address HOST:PORT)."
    )


def test_memory_is_measured_when_not_given() -> None:
    check_runner_memory(0)
    with pytest.raises(MemoryError):
        check_runner_memory(10**9)


@pytest.mark.parametrize(("limit", "expected"), [("1000000", 300_000.0), ("max", None)])
def test_container_limit_counts_and_its_file_cache_does_not(
    tmp_path: Path, limit: str, expected: float | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    without_limit = resources._available_bytes(tmp_path / "absent")
    available = resources._available_bytes(tmp_path)
    if expected is None:
        assert available == pytest.approx(without_limit, rel=0.5)
    else:
        assert available == expected


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_auth_token_is_created_for_its_owner_only_and_kept(home: Path) -> None:
    ensure_auth_token()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ensure_auth_token()
    assert path.read_text() == token
    assert [p.name for p in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "/t"), ("RAY_AUTH_MODE", "disabled")],
)
def test_no_auth_token_where_the_environment_decides(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ensure_auth_token()
    assert not (home / ".ray").exists()


def test_home_that_cannot_be_written_is_passed_over(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))  # a file is no directory, even for root
    ensure_auth_token()


def test_auth_token_of_a_concurrent_start_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_process_is_first(draft: str, path: Path) -> None:
        path.write_text("theirs")
        raise FileExistsError

    monkeypatch.setattr(os, "link", other_process_is_first)
    ensure_auth_token()
    assert [p.name for p in (home / ".ray").iterdir()] == ["auth_token"]
    assert (home / ".ray" / "auth_token").read_text() == "theirs"


@pytest.fixture
def listener() -> Iterator[str]:
    """HOST:PORT of a socket that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nonsense", "no port"),
        ("127.0.0.1:x", "no port"),
        ("", "no port"),
    ],
)
def test_address_where_nothing_listens_is_refused_at_once(address: str, reason: str) -> None:
    with pytest.raises(ConnectionError) as error:
        check_cluster(address)
    assert str(error.value).startswith(f"Expected a Ray cluster at '{address}', got: ")
    assert f"{reason}. Check the address (HOST:PORT), that the cluster is up" in str(error.value)


def test_listener_that_is_no_ray_is_refused_after_the_timeout(listener: str) -> None:
    with pytest.raises(ConnectionError, match=r"got: no answer of Ray within 0\.5 s\. Check"):
        check_cluster(listener, timeout_s=0.5)


def test_refusal_of_the_token_is_said_in_rays_own_words(
    listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Traceback\nAuthenticationError: token is incorrect. Ensure that the token is at length"
    answer = subprocess.CompletedProcess([], 1, "", text)
    monkeypatch.setattr(resources.subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(ConnectionError, match=r"got: AuthenticationError: token is incorrect\. Ch"):
        check_cluster(listener)


def test_cluster_that_is_well_is_taken(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, "", "a warning")
    monkeypatch.setattr(resources.subprocess, "run", lambda *args, **kwargs: answer)
    check_cluster(listener)


def test_resources_without_ray_say_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for ask in (free_resources, total_cpus):
        with pytest.raises(RuntimeError, match=r"Call ray\.init"):
            ask()


def test_ray_places_sixteen_runners_at_the_chosen_share(ray_local: None) -> None:
    import ray

    nodes = [{"CPU": total_cpus()}]  # one node, and nothing else runs on it
    share = fit_runner_cpus(16, main_bundle=ONE_CPU, nodes=nodes).cpus_per_runner
    assert share == 0.1875  # 4 CPUs less the main process's one, by 16
    group = ray.util.placement_group([ONE_CPU, *[{"CPU": share}] * 16])
    try:
        assert group.wait(timeout_seconds=30)
    finally:
        ray.util.remove_placement_group(group)


def test_start_waits_for_cores_of_actors_that_are_still_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views = iter([0.0, 0.0, 4.0])
    monkeypatch.setattr(resources, "free_resources", lambda: [{"CPU": next(views)}])
    monkeypatch.setattr(resources, "total_cpus", lambda: 4.0)
    monkeypatch.setattr(resources.time, "sleep", lambda seconds: None)
    assert resources.free_after_ended() == [{"CPU": 4.0}]
    assert next(views, None) is None


def test_start_gives_up_waiting_for_cores_of_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_resources", lambda: [{"memory": 1e9}])
    monkeypatch.setattr(resources, "total_cpus", lambda: 4.0)
    assert resources.free_after_ended(patience_s=-1.0) == [{"memory": 1e9}]


def test_free_resources_leave_out_what_an_actor_holds(ray_local: None) -> None:
    import time

    import ray

    class Holder:
        def ready(self) -> bool:
            return True

    def free() -> float:
        return sum(node.get("CPU", 0.0) for node in free_resources())

    def wait_for(cpus: float) -> None:
        deadline = time.monotonic() + 20  # the view is renewed about once a second
        while free() != cpus:
            assert time.monotonic() < deadline, f"expected {cpus} free CPUs, got {free()}"
            time.sleep(0.1)

    wait_for(4.0)
    holder = ray.remote(num_cpus=3)(Holder).remote()
    assert ray.get(holder.ready.remote(), timeout=60)
    wait_for(1.0)
    assert total_cpus() == 4.0
    ray.kill(holder)
    wait_for(4.0)
