"""The client of a Qdrant server: TLS with a private CA, client certificate, API key, and errors, by REST and gRPC."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from qdrant_client import models

from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.read_model.qdrant.connection import (
    ANSWERED_ERRORS,
    connect,
    require_version,
    status_of,
    translate_qdrant_errors,
)
from streams.settings import QdrantSettings
from tests.support.fake_qdrant import VERSION, Authority, Call, grpc_server, healthy, rest_server, version_body

KEY = SecretStr("a-secret")
Secured = tuple[QdrantSettings, list[Call]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA."""
    return Authority(tmp_path_factory.mktemp("ca"))


@contextmanager
def secured(protocol: str, authority: Authority, version: str = VERSION) -> Iterator[Secured]:
    """Run a server that requires a certificate; yield the settings that reach it, and its calls."""
    settings = QdrantSettings(api_key=KEY, timeout_s=5, **authority.client_files())
    if protocol == "rest":
        with rest_server(lambda _: (200, version_body(version)), authority.rest_context()) as (url, calls):
            yield settings.model_copy(update={"url": url}), calls
    else:
        with grpc_server({"HealthCheck": healthy(version)}, authority.grpc_credentials()) as (port, calls):
            # The port of REST is not used: a server behind a firewall may offer gRPC alone.
            where = {"url": "https://127.0.0.1:9", "grpc": True, "grpc_port": port}
            yield settings.model_copy(update=where), calls


def check(settings: QdrantSettings) -> None:
    """Make one call, as the read model does."""
    client = connect(settings)
    try:
        with translate_qdrant_errors():
            require_version(client)
    finally:
        client.close()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_with_a_private_ca_gets_certificate_and_key(protocol: str, authority: Authority) -> None:
    """The server verifies the client's certificate and receives the API key with each call."""
    with secured(protocol, authority) as (settings, calls):
        check(settings)
    (call,) = calls
    assert (call.client, call.headers["api-key"]) == ("darkroom", "a-secret")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("without", ["certificate", "ca"])
def test_a_server_or_client_that_is_not_trusted_gets_no_call(
    protocol: str, without: str, authority: Authority, tmp_path: Path
) -> None:
    """A server of another CA, or one that misses the client's certificate, is unavailable and receives no key."""
    with secured(protocol, authority) as (settings, calls):
        if without == "ca":
            lacking = settings.model_copy(update={"ca_file": Authority(tmp_path).client_files()["ca_file"]})
        else:
            lacking = settings.model_copy(update={"client_cert_file": None, "client_key_file": None})
        with pytest.raises(DependencyUnavailable):
            check(lacking)
    assert calls == []


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize(("version", "enough"), [("1.17.9", False), ("1.18.0-dev", True), ("2.0.0", True), ("", False)])
def test_an_older_server_is_refused(protocol: str, version: str, enough: bool, authority: Authority) -> None:
    """Before 1.18 the process does not start; the sentence has both versions."""
    with secured(protocol, authority, version) as (settings, _):
        if enough:
            check(settings)
        else:
            with pytest.raises(NotReady, match=rf"{version or 'unknown'}; Darkroom needs 1\.18 or later"):
                check(settings)


def test_a_key_for_this_machine_needs_no_tls() -> None:
    """By http on loopback the key is sent, without a warning."""
    with rest_server(lambda _: (200, version_body())) as (url, calls):
        check(QdrantSettings(url=url, api_key=KEY))
    assert [call.headers["api-key"] for call in calls] == ["a-secret"]


def test_connections_and_times_are_those_of_the_settings() -> None:
    """The client has as many connections as configured, and whole seconds of at least one."""
    client = connect(QdrantSettings(url="http://127.0.0.1:9", pool_size=3, timeout_s=0.2))
    assert (client.init_options["pool_size"], client.init_options["timeout"]) == (3, 1)
    client.close()


@pytest.mark.parametrize("file", ["ca_file", "client_cert_file", "client_key_file"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_an_unusable_file_is_named(file: str, content: bytes | None, authority: Authority, tmp_path: Path) -> None:
    """A file that is missing, empty or of another kind stops the start with its variable and path."""
    if content is not None:
        (tmp_path / file).write_bytes(content)
    settings = QdrantSettings(url="https://127.0.0.1:9", **(authority.client_files() | {file: tmp_path / file}))
    with pytest.raises(NotReady, match=f"DARKROOM_QDRANT__{file.upper()}.*{tmp_path / file}"):
        connect(settings)


def test_an_encrypted_key_is_refused_without_asking(authority: Authority, tmp_path: Path) -> None:
    """A private key with a password is not read, since gRPC takes none; nothing asks on the terminal."""
    files = authority.client_files()
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", files["client_key_file"], "-out", locked, "-passout", "pass:secret"],
        check=True,
        capture_output=True,
    )
    settings = QdrantSettings(url="https://127.0.0.1:9", **(files | {"client_key_file": locked}))
    with pytest.raises(NotReady, match="unencrypted private key"):
        connect(settings)


@contextmanager
def refusing(protocol: str, status: int) -> Iterator[QdrantSettings]:
    """Run a server that answers a new collection with an error; yield the settings that reach it."""
    codes = {
        400: grpc.StatusCode.INVALID_ARGUMENT,
        401: grpc.StatusCode.UNAUTHENTICATED,
        403: grpc.StatusCode.PERMISSION_DENIED,
        404: grpc.StatusCode.NOT_FOUND,
        409: grpc.StatusCode.ALREADY_EXISTS,
        500: grpc.StatusCode.INTERNAL,
        503: grpc.StatusCode.UNAVAILABLE,
    }
    if protocol == "rest":
        with rest_server(lambda _: (status, {"status": {"error": "refused"}})) as (url, _):
            yield QdrantSettings(url=url)
    else:
        with grpc_server({"Create": lambda _, context: context.abort(codes[status], "refused")}) as (port, _):
            yield QdrantSettings(url="http://127.0.0.1:9", grpc=True, grpc_port=port)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, ANSWERED_ERRORS),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, DependencyUnavailable),
        (409, ANSWERED_ERRORS),
        (500, DependencyUnavailable),
        (503, DependencyUnavailable),
    ],
)
def test_errors_are_the_same_by_both_protocols(protocol: str, status: int, raised: Any) -> None:
    """Refused access, an unavailable server and an invalid request differ as by REST; the status is that of REST."""
    with refusing(protocol, status) as settings:
        client = connect(settings)
        vectors = models.VectorParams(size=3, distance=models.Distance.COSINE)
        with pytest.raises(ANSWERED_ERRORS) as answered:
            client.create_collection("images", vectors_config=vectors)
        with pytest.raises(raised) as translated, translate_qdrant_errors():
            client.create_collection("images", vectors_config=vectors)
        client.close()
    assert status_of(answered.value) == status
    if raised is AccessDenied:
        assert "DARKROOM_QDRANT__API_KEY" in str(translated.value)
