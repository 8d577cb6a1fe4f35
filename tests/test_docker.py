"""docker/: pinned as pyproject.toml asks, closed by default, manifests that KubeRay's types allow.

What needs an engine is in docker/test.py (`make docker-test`), which is not part of this suite.
"""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.cost import Settings, cost_table

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def locked() -> dict[str, Requirement]:
    """Returns the image's packages by canonical name."""
    lines = (DOCKER / "requirements.lock").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def version(requirement: Requirement) -> str:
    return next(iter(requirement.specifier)).version


def test_image_has_every_dependency_in_a_version_that_pyproject_allows() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = locked()
    for line in project["dependencies"]:
        wanted = Requirement(line)
        pin = pins[canonicalize_name(wanted.name)]
        assert Version(version(pin)) in wanted.specifier, line
        assert wanted.extras <= pin.extras, line


def test_every_line_of_the_lock_is_one_exact_version() -> None:
    for requirement in locked().values():
        assert [each.operator for each in requirement.specifier] == ["=="], str(requirement)


def test_image_brings_dashboard_and_job_submission_and_nobody_is_root() -> None:
    assert "default" in locked()["ray"].extras
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "USER 1000:1000" in dockerfile
    assert "RAY_AUTH_MODE=token" in dockerfile
    assert re.search(r"^HEALTHCHECK .*rayssl-node", dockerfile, re.MULTILINE)


def test_context_of_the_image_leaves_out_results_data_and_secrets() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert lines[0] == "*"  # what is not named below is not sent
    named = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert named == {
        "rayssl", "experiments", "benchmarks", "docker/node.sh", "docker/requirements.lock",
    }  # fmt: skip


def test_compose_publishes_ports_on_this_machine_only_and_drops_all_rights() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port
    assert "ports" not in COMPOSE["services"]["worker"]


def test_compose_keeps_results_and_token_in_volumes_and_waits_for_a_healthy_head() -> None:
    for name in ("head", "worker"):
        volumes = COMPOSE["services"][name]["volumes"]
        assert "results:/app/results" in volumes
        assert "token:/run/rayssl" in volumes
        assert COMPOSE["services"][name]["shm_size"]
    assert {"results", "token"} <= COMPOSE["volumes"].keys()
    assert COMPOSE["services"]["worker"]["depends_on"]["head"]["condition"] == "service_healthy"
    assert COMPOSE["services"]["tensorboard"]["profiles"] == ["tensorboard"]


def test_all_services_run_the_image_of_the_gpu_file_where_it_is_used() -> None:
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert gpu.keys() == COMPOSE["services"].keys()
    assert len({service["image"] for service in gpu.values()}) == 1


# docker/node.sh, with a `ray` that only prints its arguments.


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """A function that runs docker/node.sh and returns the finished process."""
    fake = tmp_path / "bin" / "ray"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "ray $*"\n')
    fake.chmod(0o755)

    def run(*words: str, token: Path, **env: str) -> subprocess.CompletedProcess[str]:
        path = f"{fake.parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(DOCKER / "node.sh"), *words],
            env={**os.environ, "PATH": path, "RAY_AUTH_TOKEN_PATH": str(token), **env},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def test_head_makes_the_token_once_for_its_owner_alone_and_never_prints_it(
    node: Any, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    first = node("head", token=token)
    value = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", value)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    again = node("head", token=token)
    assert token.read_text() == value
    for done in (first, again):
        assert done.returncode == 0
        assert value.strip() not in done.stdout + done.stderr
        assert "ray start --head --port=6379" in done.stdout
    assert "made the cluster's token" not in again.stdout


def test_node_offers_what_it_is_told_and_its_object_store_fits_shared_memory(
    node: Any, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    done = node("worker", "head:6379", token=tmp_path / "token", RAYSSL_CPUS="3", RAYSSL_GPUS="1")
    assert "--address=head:6379" in done.stdout
    assert "--num-cpus=3 --num-gpus=1" in done.stdout
    store = int(re.search(r"--object-store-memory=(\d+)", done.stdout).group(1))  # type: ignore[union-attr]
    shm = os.statvfs("/dev/shm")
    assert 0 < store < shm.f_blocks * shm.f_frsize


def test_shared_memory_too_small_for_ray_is_one_line(node: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    df = tmp_path / "bin" / "df"
    df.write_text("#!/bin/sh\necho Avail\necho 67108864\n")  # 64 MiB, Docker's default
    df.chmod(0o755)
    done = node("worker", "head:6379", token=tmp_path / "token")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rayssl-node: expected 84 MiB or more in /dev/shm, got 64. Pass")


def test_token_of_the_environment_needs_no_file(node: Any, tmp_path: Path) -> None:
    for words in (("head",), ("worker", "head:6379")):
        done = node(*words, token=tmp_path / "none", RAY_AUTH_TOKEN="secret")
        assert done.returncode == 0
        assert "ray start" in done.stdout
    assert not (tmp_path / "none").exists()


def test_token_that_cannot_be_written_or_an_unknown_part_is_one_line(
    node: Any, tmp_path: Path
) -> None:
    done = node("head", token=tmp_path / "gone" / "token")
    assert done.returncode == 2
    assert "expected to write the cluster's token to" in done.stderr
    assert "ray start" not in done.stdout
    done = node("boss", token=tmp_path / "token")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "rayssl-node: expected head, worker HEAD:6379 or health, got 'boss'.\n"
    )  # fmt: skip


# KubeRay. The schemas below are closed: a field that is not in them fails, misspelt or not. They
# name the fields that our manifests use, with the types of KubeRay's v1 API as of 1.5.1 to 1.7
# (ray-operator/apis/ray/v1) and of Kubernetes' core API. They do not check what an operator adds.

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}


def closed(required: tuple[str, ...] = (), /, **fields: Any) -> dict[str, Any]:
    """Returns the schema of an object that has these fields and no others."""
    return {
        "type": "object", "properties": fields, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


AMOUNTS = closed(cpu=QUANTITY, memory=QUANTITY, storage=QUANTITY, **{"nvidia.com/gpu": QUANTITY})
CONTAINER = closed(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    env=listed(closed(("name",), name=TEXT, value=TEXT)),
    resources=closed(requests=AMOUNTS, limits=AMOUNTS),
    securityContext=closed(
        allowPrivilegeEscalation=FLAG, capabilities=closed(add=TEXTS, drop=TEXTS)
    ),
    volumeMounts=listed(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
POD = closed(
    ("spec",),
    spec=closed(
        ("containers",),
        automountServiceAccountToken=FLAG,
        terminationGracePeriodSeconds=NUMBER,
        securityContext=closed(
            runAsNonRoot=FLAG, runAsUser=NUMBER, runAsGroup=NUMBER, fsGroup=NUMBER,
            seccompProfile=closed(("type",), type={"enum": ["RuntimeDefault", "Unconfined"]}),
        ),
        containers=listed(CONTAINER),
        volumes=listed(
            closed(
                ("name",), name=TEXT,
                persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG),
            )
        ),
    ),
)  # fmt: skip
START_PARAMS = {"type": "object", "additionalProperties": TEXT}  # map[string]string: no numbers
CLUSTER_SPEC = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    headGroupSpec=closed(
        ("template",),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=START_PARAMS,
        template=POD,
    ),
    workerGroupSpecs=listed(
        closed(
            ("groupName", "template"),
            groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER,
            rayStartParams=START_PARAMS, template=POD,
        )
    ),
)  # fmt: skip
JOB_SPEC = closed(
    (),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    rayClusterSpec=CLUSTER_SPEC,
)
PODS = closed(
    matchLabels=START_PARAMS,
    matchExpressions=listed(
        closed(
            ("key", "operator"), key=TEXT, values=TEXTS,
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
        )
    ),
)  # fmt: skip
KINDS = {
    "RayCluster": ("ray.io/v1", CLUSTER_SPEC),
    "RayJob": ("ray.io/v1", JOB_SPEC),
    "PersistentVolumeClaim": (
        "v1",
        closed(("accessModes", "resources"), accessModes=TEXTS, resources=closed(requests=AMOUNTS)),
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        closed(
            ("podSelector",),
            podSelector=PODS, policyTypes=TEXTS,
            ingress=listed(
                closed(**{"from": listed(closed(podSelector=PODS, namespaceSelector=PODS))},
                       ports=listed(closed(port=NUMBER)))
            ),
        ),
    ),
}  # fmt: skip


def manifests() -> list[dict[str, Any]]:
    paths = sorted((DOCKER / "kuberay").glob("*.yaml"))
    return [each for path in paths for each in yaml.safe_load_all(path.read_text())]


def errors_of(manifest: dict[str, Any]) -> list[str]:
    """Returns what the types do not allow."""
    version, spec = KINDS[manifest["kind"]]
    schema = closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version}, kind=TEXT, metadata=closed(("name",), name=TEXT), spec=spec,
    )  # fmt: skip
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_manifest_has_only_fields_of_the_types_that_it_is_read_into(
    manifest: dict[str, Any],
) -> None:
    assert errors_of(manifest) == []


def test_planted_mistakes_are_found() -> None:
    cluster = next(each for each in manifests() if each["kind"] == "RayCluster")
    head = cluster["spec"]["headGroupSpec"]
    head["rayStartParams"]["num-cpus"] = 2  # a number where the type is map[string]string
    head["template"]["spec"]["container"] = []
    cluster["spec"]["authOptions"]["mode"] = "tokens"
    paths = sorted(error.split(":")[0] for error in errors_of(cluster))
    assert paths == [
        "$.spec.authOptions.mode",
        "$.spec.headGroupSpec.rayStartParams['num-cpus']",
        "$.spec.headGroupSpec.template.spec",
    ]


def test_pods_ask_for_what_they_may_use_and_are_closed() -> None:
    for manifest in manifests():
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        if "headGroupSpec" not in spec:
            continue
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == version(locked()["ray"])
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            (container,) = pod["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["image"] == "rayssl:0.1.0"
            environment = {entry["name"]: entry["value"] for entry in container["env"]}
            assert environment == COMPOSE["x-environment"]


def test_costs_in_the_documentation_are_those_of_the_script() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    shown = text.split("<!-- cost -->")[1].split("<!-- /cost -->")[0].strip()
    assert shown == cost_table(Settings(results=ROOT / "results" / "pong-first")).strip()
