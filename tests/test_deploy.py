"""What an operator applies: manifests, image, Makefile and the script of continuous integration."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proxy import admin, app, config
from proxy.admin import Admin
from tests.test_admin import Proxy

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))

# Kinds that Kubernetes itself knows; the others are checked by their structure below.
FOREIGN = {"Kustomization", "PodMonitor"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def manifest(name: str) -> dict[str, Any]:
    (only,) = documents(KUBERNETES / name)
    return only


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    template: dict[str, Any] = manifest("deployment.yaml")["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def sidecar(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["initContainers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("version", ["1.29", "1.33"])
@pytest.mark.parametrize("path", MANIFESTS, ids=[path.name for path in MANIFESTS])
def test_manifests_are_valid(path: Path, version: str) -> None:
    """Every field of every manifest exists in the oldest and in a newer supported Kubernetes."""
    for document in documents(path):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    """The validation is able to fail."""
    deployment = manifest("deployment.yaml")
    deployment["spec"]["template"]["spec"]["initContainers"][0]["resourcez"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.29", strict=True)


def test_kustomization_names_every_manifest() -> None:
    """Kustomize applies all manifests but the example of a secret."""
    kustomization = manifest("kustomization.yaml")
    assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    expected = {path.name for path in MANIFESTS} - {"kustomization.yaml", "secret.example.yaml"}
    assert set(kustomization["resources"]) == expected


def test_the_scrape_finds_the_pod(pod: dict[str, Any], sidecar: dict[str, Any]) -> None:
    """The PodMonitor selects the pods by a label they have and a port that the sidecar names."""
    monitor = manifest("podmonitor.yaml")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) <= {"selector", "podMetricsEndpoints", "namespaceSelector"}
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= pod["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) <= {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] in {port["name"] for port in sidecar["ports"]}
    assert endpoint["path"] == "/metrics"


def test_it_is_a_native_sidecar_with_three_probes(sidecar: dict[str, Any]) -> None:
    """The sidecar is an init container that stays, probed by HTTP on paths that exist."""
    assert sidecar["restartPolicy"] == "Always"
    assert "lifecycle" not in sidecar
    kinds = ("startup", "liveness", "readiness")
    probes = {kind: sidecar[f"{kind}Probe"]["httpGet"] for kind in kinds}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/startupz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    # A loop that hangs is reported before the third failure restarts the container.
    liveness = sidecar["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > admin.STALLED_SECONDS


def test_nothing_runs_with_more_rights_than_it_needs(pod: dict[str, Any]) -> None:
    """No container is root, writes to its root, or holds a capability or an account's token."""
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 65532
    for container in [*spec["initContainers"], *spec["containers"]]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert "cpu" not in container["resources"]["limits"]


def test_volumes_and_mounts_belong_together(pod: dict[str, Any]) -> None:
    """Each mount has a volume, each volume a mount, and each map and secret a manifest."""
    spec = pod["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    containers = [*spec["initContainers"], *spec["containers"]]
    assert {mount["name"] for c in containers for mount in c["volumeMounts"]} == set(volumes)
    named = {document["metadata"]["name"] for path in MANIFESTS for document in documents(path)
             if document["kind"] in ("ConfigMap", "Secret")}  # fmt: skip
    used = {v["configMap"]["name"] for v in volumes.values() if "configMap" in v}
    used |= {v["secret"]["secretName"] for v in volumes.values() if "secret" in v}
    assert used == named


@pytest.fixture
def mounted(tmp_path: Path, pod: dict[str, Any], sidecar: dict[str, Any]) -> Path:
    """Return the root of what the sidecar sees: maps and secrets as files, paths moved into it."""
    sources = {
        document["metadata"]["name"]: document.get("data") or document["stringData"]
        for path in MANIFESTS
        for document in documents(path)
        if document["kind"] in ("ConfigMap", "Secret")
    }
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    for mount in sidecar["volumeMounts"]:
        folder = tmp_path / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True)
        volume = volumes[mount["name"]]
        name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
        for key, text in sources.get(name, {}).items():
            moved = re.sub(r"(?<=: )/(?=etc/|run/)", f"{tmp_path}/", text)
            (folder / key).write_text(moved, "utf-8")
    return tmp_path


def test_the_sidecar_understands_its_files(mounted: Path, sidecar: dict[str, Any]) -> None:
    """The configuration of the config map loads, and so do the policies."""
    arguments = sidecar["args"]
    assert arguments[:2] == ["serve", "--config"]
    loaded = config.load(mounted / arguments[2].lstrip("/"), {}, {})
    ports = {port["name"]: port["containerPort"] for port in sidecar["ports"]}
    assert loaded.listen.tcp == ("127.0.0.1", ports["redis"])
    assert (loaded.admin.host, loaded.admin.port) == ("0.0.0.0", ports["admin"])
    assert set(loaded.clusters) == {"locks", "cache"}
    ruleset = app.load_rules(loaded)
    assert {keyspace.name for keyspace in ruleset.keyspaces} == {"seat_lock", "event_availability"}


def test_the_grace_period_holds_the_drain(mounted: Path, pod: dict[str, Any]) -> None:
    """Kubernetes waits longer than the proxy drains."""
    loaded = config.load(mounted / "etc/sidecache/config/sidecache.yaml", {}, {})
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 2 * loaded.drain_timeout


def test_the_application_reaches_the_sidecar(mounted: Path, pod: dict[str, Any]) -> None:
    """The application mounts the folder of the socket, and its user and URL are the sidecar's."""
    loaded = config.load(mounted / "etc/sidecache/config/sidecache.yaml", {}, {})
    assert loaded.listen.unix is not None
    (application,) = pod["spec"]["containers"]
    socket = next(e["value"] for e in application["env"] if e["name"] == "REDIS_SOCKET")
    assert str(loaded.listen.unix) == f"{mounted}{socket}"
    assert str(Path(socket).parent) in {mount["mountPath"] for mount in application["volumeMounts"]}
    (user,) = loaded.users
    assert f"--user {user.name}" in application["command"][-1]
    url = next(e["value"] for e in application["env"] if e["name"] == "REDIS_URL")
    assert url == f"redis://{user.name}:$(REDISCLI_AUTH)@127.0.0.1:6379/0"


Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def stages() -> list[list[Instruction]]:
    """Return the instructions of the Dockerfile, stage by stage, without what precedes them."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest.strip()))
    return found


def only(stage: list[Instruction], word: str) -> str:
    (found,) = (rest for name, rest in stage if name == word)
    return found


def test_the_image_has_no_compiler_and_no_root(stages: list[list[Instruction]]) -> None:
    """The wheel is made in the first stage; the second installs nothing and is not root."""
    build, final = stages
    assert "pip wheel" in only(build, "RUN")
    assert only(final, "USER") == "65532:65532"
    assert "slim" in only(final, "FROM")
    assert not re.search(r"apt|gcc|pip install|pip wheel", only(final, "RUN"))
    assert only(final, "COPY").startswith("--from=build ")
    assert "PYTHONDONTWRITEBYTECODE=1" in only(final, "ENV")
    assert only(final, "LABEL").count("org.opencontainers.image.") >= 4


def test_the_image_takes_no_registry_for_granted(stages: list[list[Instruction]]) -> None:
    """Base images are plain names, so that a mirror can stand in."""
    for stage in stages:
        assert re.fullmatch(r"python:\$\{PYTHON\}-[a-z-]+( AS \w+)?", only(stage, "FROM"))


def test_the_process_gets_the_signals(stages: list[list[Instruction]]) -> None:
    """SIGTERM reaches the proxy: exec form, no shell between."""
    final = stages[-1]
    assert json.loads(only(final, "ENTRYPOINT")) == ["sidecache"]
    assert json.loads(only(final, "CMD"))[0] == "serve"
    assert only(final, "STOPSIGNAL") == "SIGTERM"


def test_the_context_of_the_build_is_what_it_copies(stages: list[list[Instruction]]) -> None:
    """.dockerignore lets through exactly what the first stage copies, and no local build."""
    copied = {name for word, rest in stages[0] if word == "COPY" for name in rest.split()[:-1]}
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert {"**/*.so", "**/*.c"} <= set(rules)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.integration
async def test_the_health_check_tells_the_truth(stages: list[list[Instruction]]) -> None:
    """The health check of the image passes when ready, fails when draining and when gone."""
    options, _, command = only(stages[-1], "HEALTHCHECK").partition("CMD ")
    assert "--timeout=" in options
    program, *arguments = json.loads(command)
    assert program == only(stages[-1], "ENTRYPOINT").strip('[]"') == "sidecache"
    proxy = Proxy()
    server = Admin("127.0.0.1", 0, proxy)
    server.start()
    environment = {"SIDECACHE_ADMIN": f"0.0.0.0:{server.address[1]}"}

    async def check() -> int:
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *arguments,
            env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await asyncio.wait_for(done.wait(), 10)

    assert await check() == 0
    proxy.draining = True
    assert await check() != 0
    server.stop()
    assert await check() != 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree with what the Makefile looks at, its environment up to date."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    wire = tmp_path / "proxy" / "wire"
    wire.mkdir(parents=True)
    for name in ("a.pyx", "a.pxd"):
        (wire / name).touch()
    environment = tmp_path / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / ".installed").touch()
    old = 1_000_000_000
    for path in [tmp_path / "pyproject.toml", *wire.iterdir()]:
        os.utime(path, (old, old))
    return tmp_path


def make(checkout: Path, *arguments: str, **environment: str) -> str:
    """Return what make would do."""
    done = subprocess.run(
        ["make", "-n", *arguments],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


GOALS: Mapping[str, str] = {
    "demo": "sidecache demo --port 7",
    "test": 'pytest -n 3 --dist loadgroup -m "not long"',
    "fast": '-m "not integration and not long"',
    "bench": "benchmarks/wire.py",
    "long": "pytest -m long",
    "fuzz": "tests/wire/fuzz.py",
}


@pytest.mark.parametrize("goal", GOALS)
def test_goals_of_make(checkout: Path, goal: str) -> None:
    """Each goal runs its program, and installs nothing when everything is up to date."""
    commands = make(checkout, goal, "ARGS=--port 7")
    assert GOALS[goal] in commands
    assert "install" not in commands


@pytest.mark.parametrize("newer", ["pyproject.toml", "proxy/wire/a.pyx", "proxy/wire/a.pxd"])
def test_make_builds_again_when_a_source_is_newer(checkout: Path, newer: str) -> None:
    """A changed source of the extension, or changed dependencies, are installed before the goal."""
    later = (checkout / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout / newer, (later, later))
    commands = make(checkout, "test")
    assert commands.index("-e '.[dev]'") < commands.index("-m pytest")


def test_make_makes_the_environment(checkout: Path) -> None:
    """A clean checkout gets its environment first, with pip alone or with uv where it is there."""
    shutil.rmtree(checkout / ".venv")
    commands = make(checkout, "test", "UV=")
    assert commands.index("-m venv .venv") < commands.index(".venv/bin/python -m pip install")
    assert "/opt/uv pip install" in make(checkout, "test", "UV=/opt/uv")


def test_an_old_python_is_explained(checkout: Path) -> None:
    """A Python that is too old is named before anything is made."""
    shutil.rmtree(checkout / ".venv")
    old = checkout / "python3"
    old.write_text("#!/bin/sh\necho 'Python 3.11 or newer is needed' >&2; exit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "test", f"PYTHON={old}"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_the_script_of_continuous_integration_is_sound() -> None:
    """.ci/run can be executed, parses, stops at the first failure and has a deadline."""
    script = ROOT / ".ci" / "run"
    text = script.read_text("utf-8")
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "set -eu" in text
    (deadline,) = re.findall(r"^DEADLINE=(\d+)", text, flags=re.MULTILINE)
    assert int(deadline) < 15 * 60
