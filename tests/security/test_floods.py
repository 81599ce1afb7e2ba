"""Floods of requests with unknown API keys: an owner's requests are answered as if there were none."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import Counter
from pathlib import Path

import httpx

from gateway.access.unknown_keys import PLACES
from infra.local.kafka import LocalKafka
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from tests.security.authenticated_gateway import authenticated_gateway, created_key
from tests.support.deployment import deployed
from tests.support.gateway_processes import start_gateways

CONNECTIONS = 200
POLLS = 100
USAGE = "/api/v1/usage"


def made_up() -> dict[str, str]:
    """Return the header of a well-formed key that does not exist."""
    return {"X-API-Key": f"dk_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"}


async def test_unknown_keys_take_no_place_of_the_reads(store: FileStore) -> None:
    """With room for two reads, an owner's read is answered while a hundred unknown keys are looked up and refused."""
    key = await created_key(store)
    async with authenticated_gateway(store, most_questions=2) as gateway:
        owner = {"X-API-Key": key}
        assert (await gateway.client.get(USAGE, headers=owner)).status_code == 200
        unknown = [asyncio.create_task(gateway.client.get(USAGE, headers=made_up())) for _ in range(10 * PLACES)]
        polls = [await gateway.client.get(USAGE, headers=owner) for _ in range(20)]
        assert {answer.status_code for answer in polls} == {200}
        assert {answer.status_code for answer in await asyncio.gather(*unknown)} == {401}


def test_an_owner_is_served_among_connections_with_unknown_keys(kafka: LocalKafka, tmp_path: Path) -> None:
    """While 200 connections send unknown keys to a real gateway, an owner's polls succeed, 99 % of them at least."""
    settings = {"DARKROOM_GATEWAY__MOST_LATE_S": "600"}  # a slow test machine sheds nothing
    with deployed(kafka.bootstrap, tmp_path, agents=(), settings=settings) as deployment:

        async def flood() -> tuple[Counter[int], Counter[int]]:
            async with open_files(deployment.files) as files:
                key = await created_key(files)
            (url,) = await asyncio.to_thread(start_gateways, deployment, 1)
            return await flooded(url, key)

        owner, others = asyncio.run(flood())
    assert owner.total() == POLLS
    assert owner[200] >= 0.99 * POLLS, owner
    assert set(others) == {401}, others
    assert others.total() >= CONNECTIONS


async def flooded(url: str, key: str) -> tuple[Counter[int], Counter[int]]:
    """Poll as an owner while CONNECTIONS send unknown keys, each at least once; return the statuses of both."""
    owner, others, done = Counter[int](), Counter[int](), asyncio.Event()
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with (
        httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as attacker,
        httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client,
    ):

        async def attack() -> None:
            for count in itertools.count():
                if count and done.is_set():
                    return
                others[(await attacker.get(USAGE, headers=made_up())).status_code] += 1

        attacks = [asyncio.create_task(attack()) for _ in range(CONNECTIONS)]
        for _ in range(POLLS):
            owner[(await client.get(USAGE, headers={"X-API-Key": key})).status_code] += 1
        done.set()
        await asyncio.gather(*attacks)
    return owner, others
