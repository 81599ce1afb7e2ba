"""The deployment files agree with the code and with each other."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from darkroom.processes.gateway_runtime import GatewayEnvironment
from infra import validate
from infra.grafana import dashboard
from streams.settings import Settings
from streams.telemetry import metrics
from streams.topics import AGENTS

ROOT = validate.ROOT
COMPONENTS = {**{name: ["agent", name] for name in AGENTS},
              **{name: [name] for name in ("router", "reconciler", "query")}, "ingest": ["gateway"]}  # fmt: skip
RESOURCES = [resource for _, resource in validate.manifests()]
METRIC = re.compile(r"\bdarkroom_\w+")


def of(kind: str) -> dict[str, Any]:
    """Return the manifests of a kind by name."""
    return {item["metadata"]["name"]: item for item in RESOURCES if item["kind"] == kind}  # type: ignore[index,call-overload,misc]


def compose() -> dict[str, Any]:
    """Return the compose file."""
    loaded: dict[str, Any] = yaml.safe_load(validate.COMPOSE.read_text())
    return loaded


def setting_exists(variable: str) -> bool:
    """Return whether an environment variable is a setting."""
    names = variable.removeprefix("DARKROOM_").lower().split("__")
    group: type[BaseModel] = Settings if names[0] in Settings.model_fields else GatewayEnvironment
    for name in names:
        field = group.model_fields.get(name)
        if field is None:
            return False
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            group = field.annotation
    return True


def test_setup_installs_the_uv_of_the_images() -> None:
    """The script that installs uv pins its version, the one of both images."""
    script = (ROOT / "infra" / "setup.sh").read_text()
    (version,) = re.findall(r"^uv_version=(\d+\.\d+\.\d+)\b", script, re.M)
    assert [
        line.split()[-1] for line in script.splitlines() if "pip" in line and " install " in line and "uv" in line
    ] == ['"uv==$uv_version"']
    for name in ("slim", "ml"):
        assert f"ghcr.io/astral-sh/uv:{version} AS uv" in (ROOT / f"infra/docker/{name}.Dockerfile").read_text()


@pytest.mark.parametrize("check", [check for _, check, _ in validate.CHECKS], ids=lambda check: check.__name__)
def test_every_file_is_valid(check: Any) -> None:
    """The compose file, the manifests, Prometheus' files and the dashboard are valid."""
    assert list(check()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mem_limit: 512m", "mem_limt: 512m", "mem_limt"),
        ("condition: service_healthy", "condition: healthy", "condition"),
        ("depends_on: [prometheus]", "depends_on: [prometheos]", "prometheos"),
        ("./nginx/front.conf", "./nginx/back.conf", "back.conf"),
        ("infra/docker/ml.Dockerfile", "infra/docker/mi.Dockerfile", "mi.Dockerfile"),
        ("grafana/grafana:12.2.0", "grafana/grafana:latest", "image"),
        ('"127.0.0.1:${DARKROOM_GRAFANA_PORT:-3000}:3000"', '"3000:3000"', "ports"),
        ("kafka:/var/lib", "kafca:/var/lib", "kafca"),
        ("${DARKROOM_FILES__SECRET_KEY:?", "${DARKROOM_FILES__SECRET_KEY:-", "MINIO_ROOT_PASSWORD must come from"),
        ("${DARKROOM_GATEWAY__ADMIN_TOKEN:?", "${DARKROOM_GATEWAY__ADMIN_TOKEN:-", "ADMIN_TOKEN must come from"),
    ],
)
def test_mistakes_in_the_compose_file_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A misspelt key, a dangling name, a floating version, an open port or a default secret is a named problem."""
    infra = tmp_path / "infra"
    shutil.copytree(ROOT / "infra", infra, ignore=shutil.ignore_patterns("__pycache__"))
    text = (infra / "compose.yaml").read_text()
    assert old in text
    (infra / "compose.yaml").write_text(text.replace(old, new))
    problems = list(validate.compose_problems(infra / "compose.yaml"))
    assert any(message in problem for problem in problems)


def test_mistakes_in_a_manifest_are_named(tmp_path: Path) -> None:
    """A misspelt field and an unlisted file are problems."""
    folder = tmp_path / "base"
    shutil.copytree(validate.MANIFESTS, folder)
    ocr = folder / "ocr.yaml"
    ocr.write_text(ocr.read_text().replace("readinessProbe", "readynessProbe"))
    shutil.copy(ocr, folder / "forgotten.yaml")
    problems = "\n".join(validate.manifest_problems(folder))
    assert "readynessProbe" in problems
    assert "forgotten.yaml: not listed" in problems


def test_a_query_that_does_not_parse_is_named() -> None:
    """Broken PromQL is a problem where promtool is installed; elsewhere the check reports that it was skipped."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    assert "parse error" in "\n".join(validate.query_problems(["rate(darkroom_images_total[5m]"], promtool))


def test_every_component_is_deployed() -> None:
    """Compose and Kubernetes run every agent, the router and both gateways, each with its own command."""
    services, deployments = compose()["services"], of("Deployment")
    assert set(deployments) == set(COMPONENTS)
    for name, command in COMPONENTS.items():
        assert services[name]["command"] == command
        assert deployments[name]["spec"]["template"]["spec"]["containers"][0]["args"] == command
        image = deployments[name]["spec"]["template"]["spec"]["containers"][0]["image"]
        assert services[name]["image"] == image
    assert services["topics"]["command"] == of("Job")["topics"]["spec"]["template"]["spec"]["containers"][0]["args"]


def test_every_deployment_has_a_service_probes_and_a_budget() -> None:
    """Each deployment has its service, probes on its health port and a disruption budget."""
    services, budgets = of("Service"), of("PodDisruptionBudget")
    for name, deployment in of("Deployment").items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        (port,) = container["ports"]
        assert services[name]["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
        assert services[name]["spec"]["ports"][0]["targetPort"] == port["name"]
        assert budgets[name]["spec"]["selector"]["matchLabels"] == labels
        paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
        assert paths == {
            "startupProbe": "/health/live", "livenessProbe": "/health/live", "readinessProbe": "/health/ready",
        }  # fmt: skip
        assert container["readinessProbe"]["httpGet"]["port"] == port["name"]
        assert port["containerPort"] == (8080 if name in {"ingest", "query"} else 9100)


def test_a_pod_outlives_its_drain() -> None:
    """Kubernetes and Compose wait longer than a worker's drain before they kill it."""
    drain_s = Settings.model_fields["worker"].default.drain_s
    for deployment in of("Deployment").values():
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 10
    for name in COMPONENTS:
        assert int(compose()["services"][name]["stop_grace_period"].removesuffix("s")) >= drain_s + 10


def test_uploads_in_progress_fit_into_tmp() -> None:
    """The default limit of spooled uploads is less than a gateway's /tmp, with room for others in memory."""
    limit = GatewayEnvironment().gateway.max_spool_bytes
    for name in ("ingest", "query"):
        service = compose()["services"][name]
        (size,) = [re.findall(r"size=(\d+)g", mount)[0] for mount in service["tmpfs"] if mount.startswith("/tmp:")]
        assert limit < int(size) << 30
        assert limit + (256 << 20) < int(service["mem_limit"].removesuffix("g")) << 30
        volumes = of("Deployment")[name]["spec"]["template"]["spec"]["volumes"]
        (space,) = [volume["emptyDir"]["sizeLimit"] for volume in volumes if volume["name"] == "tmp"]
        assert limit < int(space.removesuffix("Gi")) << 30


def test_pods_meet_the_restricted_standard() -> None:
    """Every pod meets Kubernetes' `restricted` pod security standard, with a read-only root file system."""
    assert of("Namespace")["darkroom"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in (*of("Deployment").values(), *of("Job").values()):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
        assert all(set(volume) <= {"name", "emptyDir", "configMap", "secret"} for volume in pod["volumes"])


def test_every_agent_scales_by_its_lag() -> None:
    """Each agent has an autoscaler on its lag, up to the number of partitions."""
    lines = (validate.MANIFESTS / "settings.env").read_text().split()
    partitions = int(dict(line.split("=", 1) for line in lines)["DARKROOM_KAFKA__PARTITIONS"])
    scalers = of("HorizontalPodAutoscaler")
    for agent in AGENTS:
        (metric,) = scalers[agent]["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == "darkroom_consumer_lag_events"
        assert metric["pods"]["metric"]["name"] in metrics.names()
        assert scalers[agent]["spec"]["maxReplicas"] <= partitions
    assert all(scaler["spec"]["scaleTargetRef"]["name"] == name for name, scaler in scalers.items())
    assert set(scalers) <= set(of("Deployment"))


def test_every_variable_is_a_setting() -> None:
    """Every DARKROOM_ variable in a deployment file is a setting of the code."""
    files = [validate.COMPOSE, validate.MANIFESTS / "settings.env", *(ROOT / "infra" / "docker").glob("*.Dockerfile")]
    given = {found for file in files for found in re.findall(r"\bDARKROOM_\w+__\w+", file.read_text())}
    assert len(given) > 10
    assert {variable for variable in given if not setting_exists(variable)} == set()


def test_dashboard_and_alerts_name_metrics_that_exist() -> None:
    """Every metric of the dashboard, the alerts and the autoscaler's rule exists in the code."""
    alerts = yaml.safe_load((validate.PROMETHEUS / "alerts.yml").read_text())
    expressions = [*dashboard.expressions(), *(rule["expr"] for group in alerts["groups"] for rule in group["rules"])]
    adapter = (ROOT / "k8s" / "prometheus-adapter.yaml").read_text()
    named = {name for text in (*expressions, adapter) for name in METRIC.findall(text)}
    assert len(named) > 15
    assert named - metrics.names() == set()


def test_the_dashboard_shows_every_metric() -> None:
    """Each metric of the code is on the dashboard."""
    shown = " ".join(dashboard.expressions())
    assert [advice.name for advice in metrics.ADVICE if advice.name not in shown] == []


def test_the_dashboard_fits_its_grid() -> None:
    """No two panels of the dashboard overlap, none is wider than the grid, and each has its own number."""
    panels = json.loads(dashboard.render())["panels"]
    cells = [
        (x, y)
        for box in (panel["gridPos"] for panel in panels)
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_scrapes_every_component() -> None:
    """Every component of the compose file is scraped at its port."""
    jobs = yaml.safe_load((validate.PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {
        name: target["port"] for job in jobs for target in job.get("dns_sd_configs", []) for name in target["names"]
    }
    assert scraped == {name: 8080 if name in {"ingest", "query"} else 9100 for name in COMPONENTS}


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the port of a process whose readiness status the test sets."""
    response = {"status": 200}

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(response["status"] if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield str(server.server_port), response
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_check_follows_readiness(answering: tuple[str, dict[str, int]]) -> None:
    """A container is healthy while its process is ready, on either port, and else unhealthy."""
    port, response = answering
    answers = runpy.run_path(str(ROOT / "infra" / "docker" / "healthy.py"))["answers"]
    assert answers((port,))
    assert answers(("1", port))  # nothing listens on port 1
    response["status"] = 503
    assert not answers((port,))
    assert not answers(("1",))


@pytest.mark.parametrize("name", ["slim", "ml"])
def test_images_run_as_a_numbered_user(name: str) -> None:
    """The images run as a numbered non-root user, from pinned bases, with a health check."""
    lines = (ROOT / "infra" / "docker" / f"{name}.Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert [line[1] for line in words if line[0] == "USER"] == ["10001:10001"]
    assert all(re.search(r":[\d.]+", line[1]) for line in words if line[0] == "FROM")
    assert any(line[0] == "HEALTHCHECK" for line in words)
    assert all("--frozen" in line for line in lines if "uv sync" in line)


def test_dockerignore_admits_installed_packages() -> None:
    """.dockerignore admits every package that is installed into an image."""
    let_in = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    project = (ROOT / "pyproject.toml").read_text()
    packages = set(re.findall(r'"(\w+)"', re.search(r"^packages = \[(.*)\]$", project, re.M)[1]))  # type: ignore[index]
    assert packages - {"infra"} <= let_in
    assert {"infra/__init__.py", "infra/local", "infra/docker/healthy.py", "pyproject.toml", "uv.lock"} <= let_in


def test_make_lists_its_targets() -> None:
    """Bare `make` lists every target with its purpose."""
    # This may run within a make; the nested one must not see its variables.
    apart = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    output = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, env=apart).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert [line.split()[1] for line in output.splitlines()] != []
    assert set(phony[1].split()) == {line.split()[1] for line in output.splitlines()}
    assert all(len(line.split()) > 3 for line in output.splitlines())
