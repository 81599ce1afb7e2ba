"""`python -m infra.validate`: checks the compose file, the manifests, the Prometheus files and the dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import kubernetes_validate
import yaml
from pydantic import JsonValue, ValidationError

from infra.compose_model import Compose
from infra.grafana import dashboard

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "infra" / "compose.yaml"
MANIFESTS = ROOT / "k8s" / "base"
PROMETHEUS = ROOT / "infra" / "prometheus"
KUBERNETES_VERSIONS = ("1.30", "1.34")  # the oldest supported and the newest tested


def compose_problems(file: Path = COMPOSE) -> Iterator[str]:
    """Return the problems of the compose file: grammar, unknown names, missing files."""
    loaded = yaml.safe_load(file.read_text())
    try:
        compose = Compose.model_validate({key: value for key, value in loaded.items() if not key.startswith("x-")})
    except ValidationError as errors:
        for error in errors.errors():
            yield f"{file.name}: {'.'.join(map(str, error['loc']))}: {error['msg']}"
        return
    for name, service in compose.services.items():
        for other in service.depends_on:
            if other not in compose.services:
                yield f"{file.name}: {name} depends on {other}, which does not exist"
            elif isinstance(service.depends_on, dict):
                condition = service.depends_on[other].condition
                check = compose.services[other].healthcheck
                if condition == "service_healthy" and (check is None or check.disable):
                    yield f"{file.name}: {name} waits for {other} to be healthy, which has no health check"
        for volume in service.volumes:
            source = volume.partition(":")[0] if not volume.startswith("$") else ""
            if source.startswith(".") and not (file.parent / source).exists():
                yield f"{file.name}: {name} mounts {source}, which does not exist"
            elif source and not source.startswith(".") and source not in compose.volumes:
                yield f"{file.name}: {name} mounts volume {source}, which is not declared"
        if service.build and not (file.parent / service.build.context / service.build.dockerfile).is_file():
            yield f"{file.name}: {name} is built from {service.build.dockerfile}, which does not exist"


def manifests(folder: Path = MANIFESTS) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Return every resource of a kustomization with the name of its file."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        for resource in yaml.safe_load_all((folder / name).read_text()):
            yield name, resource


def manifest_problems(folder: Path = MANIFESTS) -> Iterator[str]:
    """Return the problems of the manifests, by the schemas of every supported Kubernetes version."""
    listed = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"])
    for file in sorted(folder.glob("*.yaml")):
        if file.name not in listed | {"kustomization.yaml"}:
            yield f"{file.name}: not listed in kustomization.yaml"
    for name, resource in manifests(folder):
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(map(str, error.path))
                yield f"{name}: {resource['kind']}: {where}: {error.message} (Kubernetes {version})"
    if kustomize := shutil.which("kubectl"):
        yield from _errors_of([kustomize, "kustomize", str(folder)])


def prometheus_problems(folder: Path = PROMETHEUS) -> Iterator[str]:
    """Return promtool's errors in the Prometheus files and the dashboard's queries; without promtool, YAML errors."""
    promtool = shutil.which("promtool")
    if promtool is None:
        for file in sorted(folder.glob("*.yml")):
            yaml.safe_load(file.read_text())
        return
    yield from _errors_of([promtool, "check", "config", str(folder / "prometheus.yml")])
    yield from query_problems(dashboard.expressions(), promtool)


def query_problems(expressions: Iterable[str], promtool: str) -> Iterator[str]:
    """Return the PromQL expressions that do not parse, checked by promtool as recording rules."""
    rules = [{"record": f"query_{at}", "expr": expression} for at, expression in enumerate(expressions)]
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "queries.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        yield from _errors_of([promtool, "check", "rules", str(file)])


def dashboard_problems(file: Path = dashboard.FILE) -> Iterator[str]:
    """Return a problem if the committed dashboard differs from the generated one."""
    if not file.is_file() or json.loads(file.read_text()) != json.loads(dashboard.render()):
        yield f"{file.name}: differs from the generated dashboard; run `python -m infra.grafana.dashboard`"


def _errors_of(command: list[str]) -> Iterator[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield f"{' '.join(command[1:3])}: {(done.stderr or done.stdout).strip()}"


CHECKS: tuple[tuple[str, Callable[[], Iterator[str]], str | None], ...] = (
    ("compose file", compose_problems, None),
    ("Kubernetes manifests", manifest_problems, "kubectl"),
    ("Prometheus files and queries", prometheus_problems, "promtool"),
    ("Grafana dashboard", dashboard_problems, None),
)


def main() -> int:
    """Print the problems and the skipped checks; return 1 if there are problems."""
    failed = False
    for what, check, program in CHECKS:
        problems = list(check())
        failed = failed or bool(problems)
        partial = f" ({program} is not installed: partial check)" if program and not shutil.which(program) else ""
        sys.stdout.write(f"{what}: {'failed' if problems else 'ok'}{partial}\n")
        sys.stdout.writelines(f"  {problem}\n" for problem in problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
