"""Startup of real gateway processes: none without protection, and keys are required."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from gateway.access.api_keys import ApiKeys
from infra.local.kafka import LocalKafka
from schemas.http.keys import NewKey
from streams.object_store.factory import open_files
from tests.support.deployment import PATIENCE_S, Deployment, deployed, until

OTHERS = {"DARKROOM_GATEWAY__HOST": "0.0.0.0"}
FETCH = "/api/v1/images/fetch"


async def _made(deployment: Deployment, owner: str) -> str:
    async with open_files(deployment.files) as files:
        return (await ApiKeys(files).create(NewKey(owner=owner)))[1]


async def _revoke(deployment: Deployment, key: str) -> None:
    async with open_files(deployment.files) as files:
        assert await ApiKeys(files).revoke(key.split("_")[1])


def _status(deployment: Deployment, key: str | None) -> int:
    """Return the status of a fetch with this key; 0 while the gateway does not listen."""
    headers = {"X-API-Key": key} if key else {}
    asked = {"url": "https://example.org/cat.jpg"}
    try:
        return httpx.post(
            f"http://127.0.0.1:{deployment.port}{FETCH}", json=asked, headers=headers, timeout=30
        ).status_code
    except httpx.TransportError:
        return 0


def test_a_gateway_beyond_loopback_needs_keys(kafka: LocalKafka, tmp_path: Path) -> None:
    """Each gateway exits with code 2 and a message; once a key was created, it starts and requires it."""
    with deployed(kafka.bootstrap, tmp_path, agents=()) as deployment:
        for name in ("gateway", "query"):
            deployment.start(name, **OTHERS)
        for name in ("gateway", "query"):
            code = deployment.children.pop(name).wait_blocking(PATIENCE_S)
            log = deployment.log_file(name).read_text()
            assert code == 2, log
            assert "no credentials are configured" in log
            assert "darkroom keys create" in log

        key = asyncio.run(_made(deployment, "anna"))
        deployment.start("gateway#2", **OTHERS)
        until(lambda: _status(deployment, None) != 0, "the gateway answering")
        assert _status(deployment, None) == 401
        assert _status(deployment, f"{key[:-1]}!") == 401
        assert _status(deployment, key) == 202
        another = asyncio.run(_made(deployment, "bert"))
        assert _status(deployment, another) == 202
        asyncio.run(_revoke(deployment, key))
        until(lambda: _status(deployment, key) == 401, "the revoked key being refused")
        assert _status(deployment, another) == 202
        log = deployment.log_file("gateway#2").read_text()
        assert "requires credentials" in log
        assert not [secret for secret in (key, another) if secret.split("_", 2)[2] in log]
