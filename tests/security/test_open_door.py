"""Authentication: what counts as credentials, and when a gateway is open or refuses to start."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError
from structlog.testing import capture_logs

from darkroom.processes.gateway_runtime import GatewayEnvironment
from darkroom.processes.launch import explain
from gateway.access.api_keys import ApiKeys
from gateway.client import AsyncDarkroom, Darkroom, Refused
from streams.errors import NotReady
from streams.object_store.protocol import FileStore
from tests.security.authenticated_gateway import (
    ADMIN_TOKEN,
    HERE,
    authenticated_gateway,
    created_key,
    secret_pair,
    token,
    trusting,
)
from tests.support.gateway_components import refused

SHARED = secret_pair("hs-1")


async def test_credentials_are_sent_once(store: FileStore) -> None:
    """Two sets of credentials in one request are refused."""
    key, other = await created_key(store), await created_key(store, "bert")
    async with authenticated_gateway(store) as gateway:
        for headers in (
            [("Authorization", f"Bearer {key}"), ("X-API-Key", other)],
            [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {other}")],
            [("X-API-Key", key), ("X-API-Key", other)],
        ):
            answer = await gateway.client.post("/api/v1/images/fetch", json={}, headers=headers)
            refused(answer, 401, "unauthorized")
            assert 'error="invalid_request"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("header", ["Basic YW5uYTpzZWNyZXQ=", "Digest x", "Bearer", "Bearer ", "", "token"])
async def test_credentials_are_always_checked(store: FileStore, header: str) -> None:
    """On an open gateway, invalid credentials are refused, not treated as anonymous."""
    async with authenticated_gateway(store) as gateway:
        assert (await gateway.submit()).status_code == 202
        refused(await gateway.submit(Authorization=header), 401, "unauthorized")
        refused(await gateway.submit(X_API_Key=header), 401, "unauthorized")
        refused(await gateway.submit(X_API_Key=ADMIN_TOKEN), 401, "unauthorized")


async def test_missing_credentials_get_a_challenge(store: FileStore) -> None:
    """Without credentials the 401 has the scheme, and no error code (RFC 6750)."""
    await created_key(store)
    async with authenticated_gateway(store) as gateway:
        answer = await gateway.submit()
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="darkroom"'


async def test_the_admin_token_is_for_the_admin_api(store: FileStore) -> None:
    """The admin token gives access to the admin API, and to no images."""
    async with authenticated_gateway(store, admin_token=ADMIN_TOKEN, host="0.0.0.0") as gateway:
        answer = await gateway.bearer(ADMIN_TOKEN)
        refused(answer, 403, "forbidden")
        assert 'scope="images:write"' in answer.headers["www-authenticate"]
        await gateway.assert_rejected(f"{ADMIN_TOKEN}x")


HOSTS = ("0.0.0.0", "::", "192.0.2.7", "darkroom.example")


@pytest.mark.parametrize("host", HOSTS)
async def test_an_unprotected_gateway_does_not_start_beyond_loopback(store: FileStore, host: str) -> None:
    """On an address other than loopback, without configured credentials, a gateway refuses to start."""
    with pytest.raises(NotReady, match=re.escape(host)) as refusal:
        async with authenticated_gateway(store, host=host):
            pass
    for remedy in ("darkroom keys create", "DARKROOM_AUTH__KEYS", "DARKROOM_GATEWAY__ADMIN_TOKEN", "127.0.0.1"):
        assert remedy in str(refusal.value)


@pytest.mark.parametrize("way", ["token key", "JWK set", "admin token", "API key"])
async def test_any_credentials_let_a_gateway_start_closed(store: FileStore, way: str) -> None:
    """With any kind of credentials it starts on any address, and refuses requests without them."""
    auth: dict[str, Any] = {}
    own: dict[str, Any] = {"host": "0.0.0.0"}
    if way == "token key":
        auth = trusting(SHARED)
    elif way == "JWK set":
        auth = {**trusting(), "jwks_url": "https://login.example.org/keys"}
    elif way == "admin token":
        own["admin_token"] = ADMIN_TOKEN
    else:
        await created_key(store)
    async with authenticated_gateway(store, auth, **own) as gateway:
        refused(await gateway.submit(), 401, "unauthorized")


@pytest.mark.parametrize("way", ["token key", "API key", "revoked key"])
async def test_keys_close_a_gateway_on_loopback_too(store: FileStore, way: str) -> None:
    """With API keys, a loopback address requires credentials too, also when the last key was revoked."""
    auth = trusting(SHARED) if way == "token key" else {}
    if way != "token key":
        key = await created_key(store)
        if way == "revoked key":
            await ApiKeys(store).revoke(key.split("_")[1])
    async with authenticated_gateway(store, auth) as gateway:
        refused(await gateway.submit(), 401, "unauthorized")


async def test_credentials_can_be_required_on_loopback(store: FileStore) -> None:
    """DARKROOM_AUTH__REQUIRED requires credentials on a loopback address too, and some configured."""
    with pytest.raises(NotReady, match="DARKROOM_AUTH__REQUIRED"):
        async with authenticated_gateway(store, {"required": True}):
            pass
    async with authenticated_gateway(store, {"required": True}, admin_token=ADMIN_TOKEN) as gateway:
        refused(await gateway.submit(), 401, "unauthorized")


async def test_the_start_logs_what_is_accepted(store: FileStore) -> None:
    """An open gateway logs that it is open, a closed one what it accepts; neither logs a secret."""
    with capture_logs() as logs:
        async with (
            authenticated_gateway(store),
            authenticated_gateway(store, trusting(SHARED), admin_token=ADMIN_TOKEN),
        ):
            pass
    assert [(entry["log_level"], "open" in entry["event"]) for entry in logs] == [("warning", True), ("info", False)]
    assert logs[1]["taken"] == ["JWT", "admin token"]
    assert ADMIN_TOKEN not in str(logs)
    assert SHARED.public not in str(logs)


PAGES = {
    "a rebound name": ("http://rebound.example:8080", {}),
    "another site": (HERE, {"Origin": "https://evil.example"}),
    "a sandboxed frame or a file": (HERE, {"Origin": "null"}),
    "another port here": (HERE, {"Origin": "http://127.0.0.1:9999"}),
    "this host under another name": (HERE, {"Origin": "http://localhost:8080"}),
    "a form without an origin": (HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
    "a picture in a page": (HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
    "a page of another port": (HERE, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}),
}


@pytest.mark.parametrize(("base", "headers"), PAGES.values(), ids=PAGES)
async def test_a_web_page_cannot_use_an_open_gateway(store: FileStore, base: str, headers: dict[str, str]) -> None:
    """A page of another site, in a browser of this machine, is refused."""
    async with authenticated_gateway(store) as gateway:
        gateway.client.base_url = httpx.URL(base)
        refused(
            await gateway.submit(**{name.replace("-", "_"): value for name, value in headers.items()}), 403, "forbidden"
        )
        assert not gateway.sink.sent


PUBLIC = ("/metrics", "/docs", "/openapi.json", "/api/v1/health", "/health/live", "/health/ready")


@pytest.mark.parametrize("path", PUBLIC)
async def test_a_web_page_cannot_read_what_is_public_on_an_open_gateway(store: FileStore, path: str) -> None:
    """Metrics, documentation and health of an open gateway are for this machine only, of a closed one for anyone."""
    async with authenticated_gateway(store) as gateway:
        for base, headers in PAGES.values():
            answer = await gateway.client.get(base + path, headers={**headers, "Sec-Fetch-Mode": "cors"})
            refused(answer, 403, "forbidden")
        for base in (HERE, "http://localhost:8080"):
            assert (await gateway.client.get(base + path)).status_code == 200
        linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await gateway.client.get(HERE + path, headers=linked)).status_code == 200
    async with authenticated_gateway(store, trusting(SHARED), host="0.0.0.0") as gateway:
        assert (await gateway.client.get(f"http://images.example{path}")).status_code == 200


@pytest.mark.parametrize("base", [HERE, "http://localhost:8080", "http://[::1]:8080"])
async def test_programs_and_pages_of_this_machine_use_an_open_gateway(store: FileStore, base: str) -> None:
    """A program of this machine, and the gateway's own page, need no credentials."""
    async with authenticated_gateway(store) as gateway:
        gateway.client.base_url = httpx.URL(base)
        for headers in ({}, {"Origin": base, "Sec_Fetch_Site": "same-origin"}):
            assert (await gateway.submit(**headers)).status_code == 202


async def test_the_client_sends_credentials(store: FileStore) -> None:
    """The client sends a token or a key, and is refused without them."""
    key = await created_key(store)
    async with authenticated_gateway(store, trusting(SHARED)) as gateway:
        transport = gateway.client._transport
        credentials: tuple[dict[str, Any], ...] = ({"token": token(SHARED)}, {"token": key}, {"api_key": key})
        for who in credentials:
            async with AsyncDarkroom(HERE, transport=transport, **who) as client:
                assert (await client.submit("https://example.org/cat.jpg")).job_id
        async with AsyncDarkroom(HERE, transport=transport) as client:
            with pytest.raises(Refused, match="401"):
                await client.submit("https://example.org/cat.jpg")
    with pytest.raises(ValueError, match="not both"):
        Darkroom(HERE, token="a", api_key="b")


def test_a_wrong_secret_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid secret setting is named, and its value is not logged."""
    secret = "hunter2"
    key = {"kid": "a", "algorithm": "HS256", "key": secret}
    for name, value in (
        ("DARKROOM_GATEWAY__ADMIN_TOKEN", secret),
        ("DARKROOM_AUTH__KEYS", json.dumps([{**key, "file": "x"}])),
        ("DARKROOM_AUTH__KEYS", json.dumps([key])),
        ("DARKROOM_AUTH__KEYS", json.dumps(key)[:-1]),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises((ValidationError, SettingsError)) as wrong:
                GatewayEnvironment()
        assert isinstance(wrong.value, ValidationError | SettingsError)
        assert explain(wrong.value) == 2
        said = capsys.readouterr().err
        assert secret not in said
        assert "AUTH" in said.upper() or name in said
