"""Real gateway processes at their start: unprotected they do not start, and with a key they ask for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from gateway.access.api_keys import ApiKeys
from infra.local.kafka import LocalKafka
from schemas.http.keys import NewKey
from streams.object_store.factory import open_files
from tests.support.plant import PATIENCE_S, Plant, planted, until

OTHERS = {"DARKROOM_GATEWAY__HOST": "0.0.0.0"}
FETCH = "/api/v1/images/fetch"


async def _made(plant: Plant, owner: str) -> str:
    async with open_files(plant.files) as files:
        return (await ApiKeys(files).create(NewKey(owner=owner)))[1]


async def _revoke(plant: Plant, key: str) -> None:
    async with open_files(plant.files) as files:
        assert await ApiKeys(files).revoke(key.split("_")[1])


def _status(plant: Plant, key: str | None) -> int:
    """Return how the gateway answers a fetch with this key; 0 while it does not listen."""
    headers = {"X-API-Key": key} if key else {}
    asked = {"url": "https://example.org/cat.jpg"}
    try:
        return httpx.post(f"http://127.0.0.1:{plant.port}{FETCH}", json=asked, headers=headers, timeout=30).status_code
    except httpx.TransportError:
        return 0


def test_a_gateway_others_can_reach_needs_keys(kafka: LocalKafka, tmp_path: Path) -> None:
    """Each gateway ends with exit code 2 and a sentence; once a key was made it starts, asks for it, and obeys."""
    with planted(kafka.bootstrap, tmp_path, agents=()) as plant:
        for name in ("gateway", "query"):
            plant.start(name, **OTHERS)
        for name in ("gateway", "query"):
            code = plant.children.pop(name).wait_blocking(PATIENCE_S)
            log = plant.log_file(name).read_text()
            assert code == 2, log
            assert "nothing to tell callers by" in log
            assert "darkroom keys create" in log

        key = asyncio.run(_made(plant, "anna"))
        plant.start("gateway#2", **OTHERS)
        until(lambda: _status(plant, None) != 0, "the gateway answering")
        assert _status(plant, None) == 401
        assert _status(plant, f"{key[:-1]}!") == 401
        assert _status(plant, key) == 202
        another = asyncio.run(_made(plant, "bert"))
        assert _status(plant, another) == 202
        asyncio.run(_revoke(plant, key))
        until(lambda: _status(plant, key) == 401, "the revoked key being refused")
        assert _status(plant, another) == 202
        log = plant.log_file("gateway#2").read_text()
        assert "asks for credentials" in log
        assert not [secret for secret in (key, another) if secret.split("_", 2)[2] in log]
