"""Live progress over a real socket: events, ends and limits of streams."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agents.indexing.record_facts import conclude, record
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.events.facts import DeletionRequested, Fact
from schemas.events.outcomes import ImageCompleted, ImageDeleted
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import DEFAULT_OWNER, job_id_of, new_image_id
from streams.live.log_follower import LiveSettings
from streams.object_store.factory import open_files
from streams.object_store.keys import receipt_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.process.http_server import raise_file_limit, serving
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from tests.support.archive import HeaderAuthenticator
from tests.support.facts import WHEN, Facts
from tests.support.gateway_components import Sink, StubReadiness, refused, settings
from tests.support.server_sent_events import QUICK, MemoryFeed, listening

MANY = 500  # listeners


@dataclass
class Server:
    """The gateway on a real socket, an in-memory feed, and the indexer's own code."""

    files: FileStore
    read_model: ReadModel
    feed: MemoryFeed
    client: httpx.AsyncClient

    async def accepted(self, owner: str = DEFAULT_OWNER) -> tuple[str, str]:
        """Accept an image as the ingest gateway does; return its id and the path of its stream."""
        image_id = new_image_id()
        await self.promise(image_id, 1, ReceiptKind.UPLOAD, owner)
        return image_id, f"/api/v1/images/jobs/{job_id_of(image_id, 1)}/events"

    async def promise(self, image_id: str, generation: int, kind: ReceiptKind, owner: str = DEFAULT_OWNER) -> None:
        """Write a receipt."""
        job_id = job_id_of(image_id, generation)
        receipt = Receipt(
            job_id=job_id, image_id=image_id, owner=owner, generation=generation, kind=kind, submitted_at=WHEN
        )
        await self.files.put(receipt_key(job_id), receipt.model_dump_json().encode(), content_type="application/json")

    async def index(self, fact: Fact, *, published: bool = True) -> None:
        """Index a fact, and append it and its outcome to the feed."""
        if published:
            self.feed.append(fact)
        known = await record(fact, self.read_model, Tombstones(self.files))
        outcome = await conclude(fact, known, self.read_model) if known is not None else None
        if outcome is not None and published:
            self.feed.append(outcome)


@asynccontextmanager
async def built(folder: Path, live: MemoryFeed | None) -> AsyncIterator[Server]:
    """Open a gateway."""
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(FilesSettings(directory=folder / "objects")))
        read_model = await stack.enter_async_context(open_read_model(QdrantSettings(path=folder / "qdrant")))
        components = QueryComponents(
            files=files,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            live=live,
            authenticator=HeaderAuthenticator(),
        )
        port = await stack.enter_async_context(serving(embedded_app(settings(), components), "127.0.0.1", 0))
        base = f"http://127.0.0.1:{port}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=20, trust_env=False))
        yield Server(files, read_model, live or MemoryFeed(), client)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A gateway with a live feed."""
    async with built(tmp_path, MemoryFeed()) as server:
        yield server


async def joined(feed: MemoryFeed) -> None:
    """Wait until a client is connected."""
    async with asyncio.timeout(20):
        while not feed.feed.listeners:
            await asyncio.sleep(0.01)


async def test_a_stream_covers_a_job_from_receipt_to_end(server: Server) -> None:
    """A snapshot, then every stage, then the outcome; then the stream ends."""
    image_id, path = await server.accepted()
    async with listening(server.client, path) as source:
        first = await source.next()
        assert first is not None and (first.name, first.data["status"]) == ("snapshot", "processing")
        assert source.retry == QUICK.retry_ms
        assert source.answer.headers["x-accel-buffering"] == "no"
        assert source.answer.headers["cache-control"] == "no-store"
        for fact in Facts(image_id, owner=DEFAULT_OWNER).all():
            await server.index(fact)
        events = await source.rest()
    assert [event.data.get("stage") for event in events[:-1]] == ["sanitizer", "resizer", "ocr", "detector", "embedder"]
    assert {(event.name, event.data["state"], event.data["job_id"]) for event in events[:-1]} == {
        ("stage", "done", f"{image_id}.1")
    }
    assert (events[-1].name, events[-1].data["status"], events[-1].id) == ("completed", "completed", "end")


async def test_the_stream_of_an_ended_job_ends_immediately(server: Server) -> None:
    """After the job's end a stream has the snapshot and the outcome, even while Kafka is unavailable."""
    image_id, path = await server.accepted()
    for fact in Facts(image_id, owner=DEFAULT_OWNER).all():
        await server.index(fact)
    server.feed.unavailable = True
    async with listening(server.client, path) as source:
        assert [(event.name, event.data["status"]) for event in await source.rest()] == [
            ("snapshot", "completed"),
            ("completed", "completed"),
        ]


async def test_a_reconnect_after_the_end_is_204(server: Server) -> None:
    """An EventSource that reconnects after the end gets 204, which stops it."""
    image_id, path = await server.accepted()
    await server.index(Facts(image_id, owner=DEFAULT_OWNER).refused())
    async with listening(server.client, path) as source:
        assert [event.name for event in await source.rest()] == ["snapshot", "rejected"]
    again = await server.client.get(path, headers={"Last-Event-ID": source.last_id})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_late_client_gets_events_the_snapshot_lacks(server: Server) -> None:
    """Events not indexed yet follow the snapshot; indexed ones are not repeated."""
    image_id, path = await server.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER)
    await server.index(facts.sanitized())
    server.feed.append(facts.resized())  # the indexer is behind
    async with listening(server.client, path) as source:
        snapshot, stage = await source.next(), await source.next()
    assert snapshot is not None and snapshot.data["stages"]["sanitizer"]["state"] == "done"
    assert stage is not None and (stage.name, stage.data["stage"]) == ("stage", "resizer")


async def test_a_stream_resumes_after_the_last_event(server: Server) -> None:
    """With Last-Event-ID, also as a query parameter, there is no snapshot, no repetition, and the same end."""
    image_id, path = await server.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER).all()
    async with listening(server.client, path) as source:
        await source.next()
        for fact in facts[:2]:
            await server.index(fact)
        seen = [await source.next() for _ in range(2)]
    for fact in facts[2:]:
        await server.index(fact)
    assert [event and event.data["stage"] for event in seen] == ["sanitizer", "resizer"]
    async with listening(server.client, path, source.last_id) as resumed:
        rest = await resumed.rest()
    assert [event.data.get("stage", event.name) for event in rest] == ["ocr", "detector", "embedder", "completed"]
    async with listening(server.client, f"{path}?last_event_id={source.last_id}") as resumed:
        assert await resumed.rest() == rest


async def test_an_owners_stream_has_all_their_images_only(server: Server) -> None:
    """A stream has the events of all images of its owner only; an idle stream sends heartbeats."""
    mine, foreign = new_image_id(), new_image_id()
    async with listening(server.client, "/api/v1/events") as source:
        server.feed.append(Facts(foreign, owner="ben").resized())
        waiting = asyncio.create_task(source.next())
        while source.comments < 3:
            await asyncio.sleep(0.01)
        quiet_at = source.last_id
        server.feed.append(Facts(mine, owner=DEFAULT_OWNER).resized())
        event = await waiting
    assert event is not None and event.data["image_id"] == mine
    async with listening(server.client, "/api/v1/events", quiet_at) as source:
        assert await source.next() == event


async def test_another_owners_job_is_not_found(server: Server) -> None:
    """The stream of another owner's job is answered like that of an unknown job, with and without a position."""
    _image_id, path = await server.accepted("ben")
    nobody = f"/api/v1/images/jobs/{new_image_id()}.1/events"
    for headers in ({}, {"Last-Event-ID": "AQIBAQAA"}, {"Last-Event-ID": "end"}):
        mine, none = await server.client.get(path, headers=headers), await server.client.get(nobody, headers=headers)
        refused(mine, 404, "not-found")
        assert mine.json()["detail"] == none.json()["detail"]


async def test_an_invalid_position_is_rejected(server: Server) -> None:
    """A malformed Last-Event-ID is rejected by name."""
    for given in ("nonsense!", "AQIB"):
        answer = await server.client.get("/api/v1/events", headers={"Last-Event-ID": given})
        assert refused(answer, 422, "invalid-field").errors[0].field == "last_event_id"


async def test_a_position_of_another_log_causes_a_reset(server: Server) -> None:
    """For an unknown position the stream sends `reset` and continues: a job's with a new snapshot."""
    image_id, path = await server.accepted()
    other = MemoryFeed(partitions=5)
    elsewhere = other.feed.listener("anna")
    other.feed.join(elsewhere, other.feed.positions)
    position = elsewhere.cursor()
    async with listening(server.client, path, position) as source:
        assert [(await source.next() or pytest.fail()).name for _ in range(2)] == ["reset", "snapshot"]
        await server.index(Facts(image_id, owner=DEFAULT_OWNER).refused())
        assert (await source.rest())[-1].name == "rejected"
    async with listening(server.client, "/api/v1/events", position) as source:
        assert (await source.next() or pytest.fail()).name == "reset"
        await joined(server.feed)
        server.feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        assert (await source.next() or pytest.fail()).name == "stage"


async def test_a_deletion_ends_the_stream_of_the_job(server: Server) -> None:
    """The stream of a deleted image's job ends with `deleting`; the deletion's own stream with `deleted`."""
    image_id, path = await server.accepted()
    async with listening(server.client, path) as source:
        await source.next()
        await server.promise(image_id, 2, ReceiptKind.DELETE)
        server.feed.append(DeletionRequested(image_id=image_id, owner=DEFAULT_OWNER, generation=2))
        assert [event.name for event in await source.rest()] == ["deleting"]
    async with listening(server.client, f"/api/v1/images/jobs/{image_id}.2/events") as source:
        assert (await source.next() or pytest.fail()).name == "snapshot"
        server.feed.append(ImageDeleted(image_id=image_id, owner=DEFAULT_OWNER, generation=2))
        assert [event.name for event in await source.rest()] == ["deleting", "deleted"]
    refused(await server.client.get(path), 410, "gone")


async def test_a_newer_run_ends_the_stream(server: Server) -> None:
    """The stream of a superseded run ends with `superseded` and the newer job."""
    image_id, path = await server.accepted()
    async with listening(server.client, path) as source:
        await source.next()
        server.feed.append(Facts(image_id, owner=DEFAULT_OWNER, generation=2).sanitized())
        last = (await source.rest())[-1]
    assert (last.name, last.data["by"], last.id) == ("superseded", f"{image_id}.2", "end")


async def test_an_end_missing_from_the_log_is_detected(server: Server) -> None:
    """An idle stream polls the state of its job."""
    image_id, path = await server.accepted()
    async with listening(server.client, path) as source:
        await source.next()
        await server.index(Facts(image_id, owner=DEFAULT_OWNER).refused(), published=False)
        assert [(event.name, event.id) for event in await source.rest()] == [("rejected", "end")]


async def test_open_streams_survive_kafka_outages(server: Server) -> None:
    """While Kafka is unavailable new streams are rejected; open ones stay and continue afterwards."""
    _image_id, path = await server.accepted()
    async with listening(server.client, "/api/v1/events") as source:
        server.feed.unavailable = True
        for refusing in (path, "/api/v1/events"):
            refused(await server.client.get(refusing), 503, "dependency-unavailable")
        waiting, comments = asyncio.create_task(source.next()), source.comments
        while source.comments < comments + 2:
            await asyncio.sleep(0.01)
        server.feed.unavailable = False
        server.feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        assert (await waiting or pytest.fail()).name == "stage"


async def test_a_gateway_without_a_feed_is_503(tmp_path: Path) -> None:
    """Without a feed both streams are rejected with their own code."""
    async with built(tmp_path, None) as server:
        _image_id, path = await server.accepted()
        for asked in (path, "/api/v1/events"):
            refused(await server.client.get(asked), 503, "live-unavailable")


async def test_listeners_are_limited(tmp_path: Path) -> None:
    """Beyond the limit the response is 503 with Retry-After; a disconnect frees its place and memory."""
    feed = MemoryFeed(LiveSettings(max_listeners=1, heartbeat_s=0.1))
    async with built(tmp_path, feed) as server:
        async with listening(server.client, "/api/v1/events"):
            await joined(feed)
            answer = await server.client.get("/api/v1/events")
            assert refused(answer, 503, "too-many-listeners") and "retry-after" in answer.headers
        async with asyncio.timeout(20):
            while feed.feed.listeners:
                await asyncio.sleep(0.01)
        gc.collect()
        assert not any(feed.feed._by_owner.values())


async def test_an_owner_with_fewer_streams_takes_a_contended_place(tmp_path: Path) -> None:
    """When all places are taken by one owner, another gets one: the oldest stream of the first ends with `cut`."""
    feed = MemoryFeed(LiveSettings(max_listeners=2, max_of_owner=2, heartbeat_s=0.1))
    async with built(tmp_path, feed) as server, AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(listening(server.client, "/api/v1/events")) for _ in range(2)]
        for source in sources:
            await source.until_positioned()
        async with server.client.stream("GET", "/api/v1/events", headers={"X-Owner": "ben"}) as answer:
            assert answer.status_code == 200
            ended = await sources[0].rest()
            assert [event.name for event in ended] == ["cut"]
            assert "fewer streams" in ended[0].data["detail"]
            assert sources[0].last_id, "it can resume"
            refused(await server.client.get("/api/v1/events"), 503, "too-many-listeners")


async def test_a_stalled_client_is_disconnected(tmp_path: Path) -> None:
    """A client that stops reading uses a bounded queue, and its stream ends."""
    feed = MemoryFeed(LiveSettings(queue=8, send_timeout_s=0.5, heartbeat_s=0.1))
    async with built(tmp_path, feed) as server, listening(server.client, "/api/v1/events") as source:
        await joined(feed)
        image_id = new_image_id()
        async with asyncio.timeout(60):
            generation = 0
            while feed.feed.listeners:
                for _ in range(100):
                    generation += 1
                    feed.append(Facts(image_id, owner=DEFAULT_OWNER, run=generation).failed("x" * 5000))
                await asyncio.sleep(0.01)
        assert source.last_id == ""  # nothing was read


async def test_shutdown_ends_the_streams(tmp_path: Path) -> None:
    """At shutdown streams end cleanly, so that the server closes fast and clients resume elsewhere."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=60))
    async with built(tmp_path, feed) as server, listening(server.client, "/api/v1/events") as source:
        await joined(feed)
        feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        feed.close()
        assert [event.name for event in await source.rest()] == ["stage"]


async def test_a_stream_has_a_maximum_duration(tmp_path: Path) -> None:
    """A stream ends after the maximum duration, so that credentials are checked again; resuming loses nothing."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=60, max_stream_s=0.2))
    async with built(tmp_path, feed) as server:
        async with listening(server.client, "/api/v1/events") as source:
            assert await source.rest() == []
        assert source.last_id
        feed.append(ImageCompleted(image_id=new_image_id(), owner=DEFAULT_OWNER))
        async with listening(server.client, "/api/v1/events", source.last_id) as source:
            assert [event.name for event in await source.rest()] == ["completed"]


async def test_five_hundred_listeners_get_every_event(tmp_path: Path) -> None:
    """Five hundred connections to one process get the same event, each once."""
    raise_file_limit(2 * MANY)
    feed = MemoryFeed(LiveSettings(max_listeners=MANY))
    async with built(tmp_path, feed) as server, AsyncExitStack() as stack:
        port = server.client.base_url.port
        assert port is not None
        readers = [await opened(stack, port) for _ in range(MANY)]
        refused(await server.client.get("/api/v1/events"), 503, "too-many-listeners")
        feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        feed.close()
        async with asyncio.timeout(60):
            streams = await asyncio.gather(*(reader.read() for reader in readers))
    assert [stream.count(b"event: stage") for stream in streams] == [1] * MANY


async def opened(stack: AsyncExitStack, port: int) -> asyncio.StreamReader:
    """Open a stream on a separate connection; return after its first position."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(60):
        await reader.readuntil(b"\nid: ")
    return reader
