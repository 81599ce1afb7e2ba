"""How the deployment files pass TLS and authentication of Kafka to the containers: one table of settings.

Compose: each setting is the variable of the same name, empty by default. Kubernetes: secrets are optional keys of the
optional Secret of each process; what is no secret belongs in settings.env.
"""

from __future__ import annotations

from collections.abc import Iterator

FOLDER = "/etc/darkroom/kafka"  # of the certificates, in every container
CERTIFICATES = ("ca.crt", "tls.crt", "tls.key", "oauth-ca.crt")

SETTINGS: dict[str, str | None] = {
    "security_protocol": None,
    "ca_file": None,
    "client_cert_file": None,
    "client_key_file": None,
    "client_key_password": "client-key-password",
    "sasl_mechanism": None,
    "username": "username",
    "password": "password",
    "password_without_tls": None,
    "oauth_token_url": None,
    "oauth_client_id": "oauth-client-id",
    "oauth_client_secret": "oauth-client-secret",
    "oauth_scope": None,
    "oauth_ca_file": None,
}
"""Field of KafkaSettings -> its key in the Secret of a process; None: it is no secret, and equal for all processes."""


def compose_environment() -> Iterator[str]:
    """Yield the variables that every service of the compose file gets from the shell or the .env file."""
    for field in SETTINGS:
        yield f"{_variable(field)}: ${{{_variable(field)}:-}}"


def compose_volumes() -> Iterator[str]:
    """Yield the mount of the folder of certificates."""
    yield f"- ${{DARKROOM_KAFKA_CERTIFICATES:-./kafka-certificates}}:{FOLDER}:ro"


def secret_of(process: str) -> str:
    """Return the name of a process's Secret."""
    return f"darkroom-kafka-{process}"


def pod_environment(process: str) -> Iterator[str]:
    """Yield the `env` of a container."""
    yield "env:"
    for field, key in SETTINGS.items():
        if key is not None:
            yield f"  - name: {_variable(field)}"
            yield f"    valueFrom: {{secretKeyRef: {{name: {secret_of(process)}, key: {key}, optional: true}}}}"


def pod_mounts() -> Iterator[str]:
    """Yield the item of a container's `volumeMounts`."""
    yield f"- {{name: kafka-certificates, mountPath: {FOLDER}, readOnly: true}}"


def pod_volumes(process: str) -> Iterator[str]:
    """Yield the item of a pod's `volumes`: the certificates that its Secret has, without its passwords."""
    yield "- name: kafka-certificates"
    yield "  secret:"
    yield f"    secretName: {secret_of(process)}"
    yield "    optional: true"
    yield "    defaultMode: 0440"
    yield "    items:"
    for file in CERTIFICATES:
        yield f"      - {{key: {file}, path: {file}}}"


def _variable(field: str) -> str:
    return f"DARKROOM_KAFKA__{field.upper()}"
