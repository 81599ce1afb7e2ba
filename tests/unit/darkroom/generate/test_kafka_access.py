"""TLS and authentication of Kafka in the deployment files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import SecretStr

from darkroom.generate import deployment, kafka_access
from infra import validate
from streams.settings import KafkaSettings, Settings

CONNECTION = {"bootstrap", "prefix", "partitions", "replication", "min_insync", "request_timeout_s"}
SECRETS = {name for name, field in KafkaSettings.model_fields.items() if SecretStr in get_args(field.annotation)}
SERVICES = yaml.safe_load(validate.COMPOSE.read_text())["services"]
WORKLOADS: dict[str, Any] = {
    resource["metadata"]["name"]: resource["spec"]["template"]["spec"]  # type: ignore[index,call-overload,misc]
    for _, resource in validate.manifests()
    if resource["kind"] in {"Deployment", "Job"}
}


def variable(field: str) -> str:
    return f"DARKROOM_KAFKA__{field.upper()}"


def interpolated(environment: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Return the Kafka variables of a service as Compose sets them, with the variables of its caller."""
    return {
        name: re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], value)
        for name, value in environment.items()
        if name.startswith("DARKROOM_KAFKA__")
    }


def test_the_table_has_every_security_setting() -> None:
    """A new setting must be given a place; what is a secret in the code is one in the table."""
    assert set(kafka_access.SETTINGS) == set(KafkaSettings.model_fields) - CONNECTION
    assert {field for field, key in kafka_access.SETTINGS.items() if key is not None} >= SECRETS


def test_compose_passes_the_variables_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, every process connects in plain text to the broker of the file; with them, as they say."""
    own = [service for service in SERVICES.values() if service["image"].startswith("darkroom:")]
    assert len(own) > 10
    given = {
        "DARKROOM_KAFKA__BOOTSTRAP": "broker.example.org:9094",
        "DARKROOM_KAFKA__SECURITY_PROTOCOL": "sasl_ssl",
        "DARKROOM_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "DARKROOM_KAFKA__USERNAME": "darkroom",
        "DARKROOM_KAFKA__PASSWORD": "a-password",
        "DARKROOM_KAFKA__CA_FILE": f"{kafka_access.FOLDER}/ca.crt",
    }
    for service in own:
        for name, value in interpolated(service["environment"], {}).items():
            monkeypatch.setenv(name, value)
        assert Settings().kafka == KafkaSettings(bootstrap="kafka:9092", partitions=24)
        for name, value in interpolated(service["environment"], given).items():
            monkeypatch.setenv(name, value)
        kafka = Settings().kafka
        assert (kafka.bootstrap, kafka.username, str(kafka.ca_file)) == tuple(
            given[variable(field)] for field in ("bootstrap", "username", "ca_file")
        )
        assert kafka.password is not None and kafka.password.get_secret_value() == "a-password"
        assert [mount for mount in service["volumes"] if mount.endswith(f":{kafka_access.FOLDER}:ro")]


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_pod_has_an_optional_secret_of_its_own(name: str) -> None:
    """Its keys are the secret settings, and the certificates, which are mounted without the passwords."""
    (container,) = WORKLOADS[name]["containers"]
    keys = {item["name"]: item["valueFrom"]["secretKeyRef"] for item in container["env"]}
    assert set(keys) >= {variable(field) for field in SECRETS | {"username"}}
    assert {(key["name"], key["optional"]) for key in keys.values()} == {(f"darkroom-kafka-{name}", True)}
    (volume,) = [volume for volume in WORKLOADS[name]["volumes"] if "secret" in volume]
    assert (volume["secret"]["secretName"], volume["secret"]["optional"]) == (f"darkroom-kafka-{name}", True)
    files = {item["key"] for item in volume["secret"]["items"]}
    assert files == set(kafka_access.CERTIFICATES)
    assert not files & {key["key"] for key in keys.values()}
    assert volume["secret"]["defaultMode"] == 0o440  # of the pod's group
    assert {"name": volume["name"], "mountPath": kafka_access.FOLDER, "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("k8s/base/query.yaml", "key: password, optional: true", "key: password, optional: false"),
        ("k8s/base/ocr.yaml", "key: password, optional: true", "key: password, optional: false"),
        ("infra/compose.yaml", "${DARKROOM_KAFKA__USERNAME:-}", "${DARKROOM_KAFKA__USERNAME:-admin}"),
    ],
)
def test_a_change_by_hand_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, old: str, new: str
) -> None:
    """--check exits 1 and names the file; writing the files again repairs it."""
    for folder in ("infra", "k8s"):
        shutil.copytree(deployment.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / path
    whole = file.read_text()
    file.write_text(whole.replace(old, new))
    assert file.read_text() != whole
    assert deployment.main(["--check", "--root", str(tmp_path)]) == 1
    assert f"{path} is outdated" in capsys.readouterr().err
    assert deployment.main(["--root", str(tmp_path)]) == 0
    assert file.read_text() == whole


@pytest.mark.parametrize("parts", [1, 3])
def test_marks_and_parts_must_agree(parts: int) -> None:
    """A file with fewer or more pairs of marks than parts is an error, not half a file."""
    text = f"a:\n  {deployment.BEGIN}\n  {deployment.END}\nb:\n  {deployment.BEGIN}\n  old: 1\n  {deployment.END}\n"
    assert deployment.with_regions(text, [["x: 1"], ["y: 2"]]) == text.replace(
        f"{deployment.BEGIN}\n  {deployment.END}", f"{deployment.BEGIN}\n  x: 1\n  {deployment.END}"
    ).replace("old: 1", "y: 2")
    with pytest.raises(ValueError, match="marks"):
        deployment.with_regions(text, [["z: 0"]] * parts)
