"""Settings of a Qdrant server that contradict each other are refused at start, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streams.errors import NotReady
from streams.process.settings_checks import check_safe
from streams.read_model.security import security_problems, server_url
from streams.settings import QdrantSettings, Settings

HTTPS = {"url": "https://qdrant.example:6333"}
CERTIFICATE, KEY = {"client_cert_file": Path("c.pem")}, {"client_key_file": Path("k.pem")}


def settings(fields: dict[str, Any]) -> QdrantSettings:
    """Return settings with these fields, as from the environment."""
    return QdrantSettings.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        HTTPS,
        {**HTTPS, "api_key": "a-secret", "ca_file": "ca.pem", "grpc": True},
        {**HTTPS, **CERTIFICATE, **KEY},
        {"url": "http://qdrant:6333"},
        {"url": "http://127.0.0.1:6333", "api_key": "a-secret"},
        {"url": "http://[::1]:6333", "api_key": "a-secret"},
        {"url": "localhost:6333"},
        {"url": "qdrant.example", "api_key": "a-secret"},
        {"url": "http://qdrant:6333", "api_key": "a-secret", "api_key_without_tls": True},
        {**HTTPS, "replicas": 3, "write_consistency": 3},
        {**HTTPS, "write_consistency": 2},
    ],
)
def test_usable_settings_pass(fields: dict[str, Any]) -> None:
    """In process, with TLS, without a key, on this machine, and with what an operator allows expressly."""
    check_safe(Settings(qdrant=settings(fields)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": "http://qdrant:6333", "api_key": "a-secret"}, "API_KEY_WITHOUT_TLS"),
        ({"url": "http://127.0.0.1.example:6333", "api_key": "a-secret"}, "API_KEY_WITHOUT_TLS"),
        ({"url": "http://qdrant:6333", "ca_file": "ca.pem"}, "CA_FILE would not be used"),
        ({"url": "http://qdrant:6333", **CERTIFICATE, **KEY}, "CLIENT_KEY_FILE would not be used"),
        ({**HTTPS, **CERTIFICATE}, "CLIENT_CERT_FILE needs DARKROOM_QDRANT__CLIENT_KEY_FILE"),
        ({**HTTPS, **KEY}, "CLIENT_KEY_FILE needs DARKROOM_QDRANT__CLIENT_CERT_FILE"),
        ({"url": "ftp://qdrant"}, "URL starts with ftp://"),
        ({"url": "http://qdrant:port"}, "URL is not a URL"),
        ({"url": "http://[::1"}, "URL is not a URL"),
        ({"api_key": "a-secret"}, "API_KEY would not be used"),
        ({"grpc": True, "ca_file": "ca.pem"}, "GRPC would not be used: DARKROOM_QDRANT__URL is empty"),
        ({**HTTPS, "replicas": 2, "write_consistency": 3}, r"WRITE_CONSISTENCY \(3\) is more than"),
    ],
)
def test_contradictions_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    """The sentence names the variable, and has no secret."""
    with pytest.raises(NotReady, match=f"DARKROOM_QDRANT__{named}") as error:
        check_safe(Settings(qdrant=settings(fields)))
    assert "a-secret" not in str(error.value)


def test_all_contradictions_are_named_at_once() -> None:
    """An operator corrects them in one pass."""
    fields = {"url": "http://qdrant:6333", "api_key": "a-secret", **CERTIFICATE}
    assert len(list(security_problems(settings(fields)))) == 3


def test_a_url_without_a_scheme_is_read_as_by_the_client() -> None:
    """With an API key it is https, so that the key is not sent in the clear; else http."""
    assert server_url(settings({"url": "qdrant:6333"})) == "http://qdrant:6333"
    assert server_url(settings({"url": "qdrant:6333", "api_key": "k"})) == "https://qdrant:6333"
