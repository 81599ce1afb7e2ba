"""Open event streams end with the credentials they were opened with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.access.api_keys import ApiKeys
from gateway.access.authenticator import open_authenticator
from gateway.access.settings import AuthSettings
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.http.keys import NewKey
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import job_id_of, new_image_id
from streams.live.log_follower import LiveSettings
from streams.object_store.keys import receipt_key
from streams.object_store.protocol import FileStore
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.settings import QdrantSettings
from tests.security.authenticated_gateway import rsa_pair, token, trusting
from tests.support.facts import WHEN, Facts
from tests.support.gateway_components import Sink, StubReadiness, settings
from tests.support.server_sent_events import MemoryFeed, listening

EVENTS = "/api/v1/events"
STRICT = {"key_fresh_s": 0.001}  # keys are read again at each check


@asynccontextmanager
async def streaming(
    store: FileStore, folder: Path, feed: MemoryFeed, auth: Mapping[str, Any], given: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client, with these credentials, of a gateway on a real socket."""
    async with AsyncExitStack() as stack:
        read_model = await stack.enter_async_context(open_read_model(QdrantSettings(path=folder / "qdrant")))
        components = QueryComponents(
            files=store,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            live=feed,
            authenticator=await open_authenticator(settings(), AuthSettings.model_validate(auth), store),
        )
        port = await stack.enter_async_context(serving(embedded_app(settings(), components), "127.0.0.1", 0))
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=60,
            trust_env=False,
            headers={"Authorization": f"Bearer {given}"},
        )
        yield await stack.enter_async_context(client)


async def accepted(store: FileStore) -> str:
    """Write the receipt of an image of anna's; return the path of its stream."""
    image_id = new_image_id()
    job_id = job_id_of(image_id, 1)
    receipt = Receipt(
        job_id=job_id, image_id=image_id, owner="anna", generation=1, kind=ReceiptKind.UPLOAD, submitted_at=WHEN
    )
    await store.put(receipt_key(job_id), receipt.model_dump_json().encode(), content_type="application/json")
    return f"/api/v1/images/jobs/{job_id}/events"


@pytest.mark.parametrize("of_job", [False, True])
async def test_an_idle_stream_ends_when_its_key_is_revoked(store: FileStore, tmp_path: Path, of_job: bool) -> None:
    """The next heartbeat checks the key; nothing is delivered afterwards, and a new stream is refused."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=0.1))
    key, secret = await ApiKeys(store).create(NewKey(owner="anna"))
    path = await accepted(store) if of_job else EVENTS
    async with streaming(store, tmp_path, feed, STRICT, secret) as client, asyncio.timeout(60):
        async with listening(client, path) as source:
            await source.until_positioned()
            await ApiKeys(store).revoke(key.id)
            assert await source.rest() == []  # a job's snapshot came before the position
        while feed.feed.listeners:
            await asyncio.sleep(0.01)
        assert (await client.get(path)).status_code == 401


async def test_a_busy_stream_ends_when_its_key_is_revoked(store: FileStore, tmp_path: Path) -> None:
    """A stream that is never idle checks the key as often: it ends while events keep coming."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=0.2))
    key, secret = await ApiKeys(store).create(NewKey(owner="anna"))
    async with (
        asyncio.timeout(60),
        streaming(store, tmp_path, feed, STRICT, secret) as client,
        listening(client, EVENTS) as source,
    ):
        await source.until_positioned()
        await ApiKeys(store).revoke(key.id)
        rest = asyncio.create_task(source.rest())
        while not rest.done():
            feed.append(Facts(new_image_id(), owner="anna").resized())
            await asyncio.sleep(0.01)
        assert {event.name for event in await rest} <= {"stage"}


async def test_a_stream_of_a_valid_key_goes_on(store: FileStore, tmp_path: Path) -> None:
    """Checks of a valid key do not disturb the stream."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=0.05))
    _, secret = await ApiKeys(store).create(NewKey(owner="anna"))
    async with (
        asyncio.timeout(60),
        streaming(store, tmp_path, feed, STRICT, secret) as client,
        listening(client, EVENTS) as source,
    ):
        waiting = asyncio.create_task(source.next())
        while source.comments < 5:
            await asyncio.sleep(0.01)
        feed.append(Facts(new_image_id(), owner="anna").resized())
        event = await waiting
    assert event is not None
    assert event.name == "stage"


async def test_a_stream_ends_when_its_token_expires(store: FileStore, tmp_path: Path) -> None:
    """A stream ends at the token's `exp`, without waiting for a heartbeat and without the leeway of new requests."""
    feed, pair = MemoryFeed(LiveSettings(heartbeat_s=3600)), rsa_pair("one")
    expires_at = int(time.time()) + 1
    given = token(pair, exp=expires_at)
    async with streaming(store, tmp_path, feed, trusting(pair, leeway_s=300), given) as client, asyncio.timeout(60):
        async with listening(client, EVENTS) as source:
            assert await source.rest() == []
        assert time.time() >= expires_at
        assert feed.feed.listeners == 0


async def test_a_stream_ends_when_its_key_expires(store: FileStore, tmp_path: Path) -> None:
    """A stream opened with a key that expires ends at that time."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=3600))
    _, first = await ApiKeys(store).create(NewKey(owner="anna"))
    async with streaming(store, tmp_path, feed, {}, first) as client, asyncio.timeout(60):
        expires_at = datetime.now(UTC) + timedelta(seconds=2)
        _, secret = await ApiKeys(store).create(NewKey(owner="anna", expires_at=expires_at))
        client.headers["Authorization"] = f"Bearer {secret}"
        async with listening(client, EVENTS) as source:
            assert await source.rest() == []
        assert datetime.now(UTC) >= expires_at
