"""Live progress over a real socket: what streams say, when they end, and who may not listen."""

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
class House:
    """The gateway on a real socket, a feed that the test tells what happens, and the indexer's own code."""

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

    async def index(self, fact: Fact, *, told: bool = True) -> None:
        """Do what the indexer does with a fact, and let the feed hear it and what follows."""
        if told:
            self.feed.append(fact)
        known = await record(fact, self.read_model, Tombstones(self.files))
        outcome = await conclude(fact, known, self.read_model) if known is not None else None
        if outcome is not None and told:
            self.feed.append(outcome)


@asynccontextmanager
async def built(folder: Path, live: MemoryFeed | None) -> AsyncIterator[House]:
    """Open a gateway."""
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(FilesSettings(directory=folder / "objects")))
        read_model = await stack.enter_async_context(open_read_model(QdrantSettings(path=folder / "qdrant")))
        parts = QueryComponents(
            files=files,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            live=live,
            authenticator=HeaderAuthenticator(),
        )
        port = await stack.enter_async_context(serving(embedded_app(settings(), parts), "127.0.0.1", 0))
        base = f"http://127.0.0.1:{port}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=20, trust_env=False))
        yield House(files, read_model, live or MemoryFeed(), client)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Return a gateway that tells of what happens."""
    async with built(tmp_path, MemoryFeed()) as house:
        yield house


async def joined(feed: MemoryFeed) -> None:
    """Wait until somebody listens."""
    async with asyncio.timeout(20):
        while not feed.feed.listeners:
            await asyncio.sleep(0.01)


async def test_a_job_is_followed_from_its_receipt_to_its_end(house: House) -> None:
    """A snapshot, then every stage as it comes, then the outcome; then the stream ends."""
    image_id, path = await house.accepted()
    async with listening(house.client, path) as source:
        first = await source.next()
        assert first is not None and (first.name, first.data["status"]) == ("snapshot", "processing")
        assert source.retry == QUICK.retry_ms
        assert source.answer.headers["x-accel-buffering"] == "no"
        assert source.answer.headers["cache-control"] == "no-store"
        for fact in Facts(image_id, owner=DEFAULT_OWNER).all():
            await house.index(fact)
        events = await source.rest()
    assert [event.data.get("stage") for event in events[:-1]] == ["sanitizer", "resizer", "ocr", "detector", "embedder"]
    assert {(event.name, event.data["state"], event.data["job_id"]) for event in events[:-1]} == {
        ("stage", "done", f"{image_id}.1")
    }
    assert (events[-1].name, events[-1].data["status"], events[-1].id) == ("completed", "completed", "end")


async def test_a_finished_job_answers_at_once_and_ends(house: House) -> None:
    """Whoever comes after the end hears the snapshot and the outcome, also while Kafka is away."""
    image_id, path = await house.accepted()
    for fact in Facts(image_id, owner=DEFAULT_OWNER).all():
        await house.index(fact)
    house.feed.unavailable = True
    async with listening(house.client, path) as source:
        assert [(event.name, event.data["status"]) for event in await source.rest()] == [
            ("snapshot", "completed"),
            ("completed", "completed"),
        ]


async def test_who_has_seen_the_end_is_told_not_to_ask_again(house: House) -> None:
    """An EventSource that reconnects after the end is answered 204, on which it stops."""
    image_id, path = await house.accepted()
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).refused())
    async with listening(house.client, path) as source:
        assert [event.name for event in await source.rest()] == ["snapshot", "rejected"]
    again = await house.client.get(path, headers={"Last-Event-ID": source.last_id})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_late_listener_hears_what_the_snapshot_does_not_know(house: House) -> None:
    """What the indexer has not written yet is told from memory; what it has written is not told again."""
    image_id, path = await house.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER)
    await house.index(facts.sanitized())
    house.feed.append(facts.resized())  # the indexer is behind
    async with listening(house.client, path) as source:
        snapshot, stage = await source.next(), await source.next()
    assert snapshot is not None and snapshot.data["stages"]["sanitizer"]["state"] == "done"
    assert stage is not None and (stage.name, stage.data["stage"]) == ("stage", "resizer")


async def test_a_job_goes_on_behind_the_last_event(house: House) -> None:
    """With Last-Event-ID there is no snapshot, nothing twice, and the same end; the query parameter does as well."""
    image_id, path = await house.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER).all()
    async with listening(house.client, path) as source:
        await source.next()
        for fact in facts[:2]:
            await house.index(fact)
        seen = [await source.next() for _ in range(2)]
    for fact in facts[2:]:
        await house.index(fact)
    assert [event and event.data["stage"] for event in seen] == ["sanitizer", "resizer"]
    async with listening(house.client, path, source.last_id) as resumed:
        rest = await resumed.rest()
    assert [event.data.get("stage", event.name) for event in rest] == ["ocr", "detector", "embedder", "completed"]
    async with listening(house.client, f"{path}?last_event_id={source.last_id}") as resumed:
        assert await resumed.rest() == rest


async def test_an_owner_hears_all_their_images_and_no_others(house: House) -> None:
    """Events of every image of the caller's come, of another owner's none; a quiet stream says that it lives."""
    mine, foreign = new_image_id(), new_image_id()
    async with listening(house.client, "/api/v1/events") as source:
        house.feed.append(Facts(foreign, owner="ben").resized())
        waiting = asyncio.create_task(source.next())
        while source.comments < 3:
            await asyncio.sleep(0.01)
        quiet_at = source.last_id
        house.feed.append(Facts(mine, owner=DEFAULT_OWNER).resized())
        event = await waiting
    assert event is not None and event.data["image_id"] == mine
    async with listening(house.client, "/api/v1/events", quiet_at) as source:
        assert await source.next() == event


async def test_another_owners_job_is_not_there(house: House) -> None:
    """The stream of another owner's job is answered as that of no job, with and without a position."""
    _image_id, path = await house.accepted("ben")
    nobody = f"/api/v1/images/jobs/{new_image_id()}.1/events"
    for headers in ({}, {"Last-Event-ID": "AQIBAQAA"}, {"Last-Event-ID": "end"}):
        mine, none = await house.client.get(path, headers=headers), await house.client.get(nobody, headers=headers)
        refused(mine, 404, "not-found")
        assert mine.json()["detail"] == none.json()["detail"]


async def test_what_is_no_position_is_refused(house: House) -> None:
    """A Last-Event-ID we never gave is named as what is wrong."""
    for given in ("nonsense!", "AQIB"):
        answer = await house.client.get("/api/v1/events", headers={"Last-Event-ID": given})
        assert refused(answer, 422, "invalid-field").errors[0].field == "last_event_id"


async def test_a_position_of_another_log_is_answered_with_a_reset(house: House) -> None:
    """Where a position means nothing here, the stream says so and goes on: a job's with a new snapshot."""
    image_id, path = await house.accepted()
    other = MemoryFeed(partitions=5)
    elsewhere = other.feed.listener("anna")
    other.feed.join(elsewhere, other.feed.positions)
    position = elsewhere.cursor()
    async with listening(house.client, path, position) as source:
        assert [(await source.next() or pytest.fail()).name for _ in range(2)] == ["reset", "snapshot"]
        await house.index(Facts(image_id, owner=DEFAULT_OWNER).refused())
        assert (await source.rest())[-1].name == "rejected"
    async with listening(house.client, "/api/v1/events", position) as source:
        assert (await source.next() or pytest.fail()).name == "reset"
        await joined(house.feed)
        house.feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        assert (await source.next() or pytest.fail()).name == "stage"


async def test_a_deletion_ends_the_stream_of_the_job_before(house: House) -> None:
    """Who follows an image that is deleted hears so; the deletion's own stream ends when it is done."""
    image_id, path = await house.accepted()
    async with listening(house.client, path) as source:
        await source.next()
        await house.promise(image_id, 2, ReceiptKind.DELETE)
        house.feed.append(DeletionRequested(image_id=image_id, owner=DEFAULT_OWNER, generation=2))
        assert [event.name for event in await source.rest()] == ["deleting"]
    async with listening(house.client, f"/api/v1/images/jobs/{image_id}.2/events") as source:
        assert (await source.next() or pytest.fail()).name == "snapshot"
        house.feed.append(ImageDeleted(image_id=image_id, owner=DEFAULT_OWNER, generation=2))
        assert [event.name for event in await source.rest()] == ["deleting", "deleted"]
    refused(await house.client.get(path), 410, "gone")


async def test_a_newer_run_takes_over_the_stream(house: House) -> None:
    """Who follows a run that another has overtaken is told which."""
    image_id, path = await house.accepted()
    async with listening(house.client, path) as source:
        await source.next()
        house.feed.append(Facts(image_id, owner=DEFAULT_OWNER, generation=2).sanitized())
        last = (await source.rest())[-1]
    assert (last.name, last.data["by"], last.id) == ("superseded", f"{image_id}.2", "end")


async def test_an_end_that_the_log_did_not_tell_is_told_all_the_same(house: House) -> None:
    """A quiet stream looks now and then how its job stands."""
    image_id, path = await house.accepted()
    async with listening(house.client, path) as source:
        await source.next()
        await house.index(Facts(image_id, owner=DEFAULT_OWNER).refused(), told=False)
        assert [(event.name, event.id) for event in await source.rest()] == [("rejected", "end")]


async def test_streams_need_kafka_to_begin_and_outlive_its_absence(house: House) -> None:
    """While Kafka is away new streams are refused, open ones stay and go on when it is back."""
    _image_id, path = await house.accepted()
    async with listening(house.client, "/api/v1/events") as source:
        house.feed.unavailable = True
        for refusing in (path, "/api/v1/events"):
            refused(await house.client.get(refusing), 503, "dependency-unavailable")
        waiting, heard = asyncio.create_task(source.next()), source.comments
        while source.comments < heard + 2:
            await asyncio.sleep(0.01)
        house.feed.unavailable = False
        house.feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        assert (await waiting or pytest.fail()).name == "stage"


async def test_a_gateway_without_a_feed_says_so(tmp_path: Path) -> None:
    """Where nobody reads the log both streams are refused with a code of their own."""
    async with built(tmp_path, None) as house:
        _image_id, path = await house.accepted()
        for asked in (path, "/api/v1/events"):
            refused(await house.client.get(asked), 503, "live-unavailable")


async def test_too_many_listeners_are_refused_and_those_who_leave_make_room(tmp_path: Path) -> None:
    """The bound is answered 503 with a time; a client that goes away frees its place and its memory."""
    feed = MemoryFeed(LiveSettings(max_listeners=1, heartbeat_s=0.1))
    async with built(tmp_path, feed) as house:
        async with listening(house.client, "/api/v1/events"):
            await joined(feed)
            answer = await house.client.get("/api/v1/events")
            assert refused(answer, 503, "too-many-listeners") and "retry-after" in answer.headers
        async with asyncio.timeout(20):
            while feed.feed.listeners:
                await asyncio.sleep(0.01)
        gc.collect()
        assert not any(feed.feed._by_owner.values())


async def test_a_client_that_takes_nothing_is_let_go(tmp_path: Path) -> None:
    """A reader that stops reading costs a bounded queue, and its stream ends by itself."""
    feed = MemoryFeed(LiveSettings(queue=8, send_timeout_s=0.5, heartbeat_s=0.1))
    async with built(tmp_path, feed) as house, listening(house.client, "/api/v1/events") as source:
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


async def test_stopping_ends_the_streams_soon(tmp_path: Path) -> None:
    """When the process goes, streams end whole, so that the server closes at once and clients resume elsewhere."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=60))
    async with built(tmp_path, feed) as house, listening(house.client, "/api/v1/events") as source:
        await joined(feed)
        feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        feed.close()
        assert [event.name for event in await source.rest()] == ["stage"]


async def test_a_stream_ends_after_a_while_to_be_asked_for_again(tmp_path: Path) -> None:
    """Credentials are looked at again at least so often as a stream may last; resuming loses nothing."""
    feed = MemoryFeed(LiveSettings(heartbeat_s=60, max_stream_s=0.2))
    async with built(tmp_path, feed) as house:
        async with listening(house.client, "/api/v1/events") as source:
            assert await source.rest() == []
        assert source.last_id
        feed.append(ImageCompleted(image_id=new_image_id(), owner=DEFAULT_OWNER))
        async with listening(house.client, "/api/v1/events", source.last_id) as source:
            assert [event.name for event in await source.rest()] == ["completed"]


async def test_very_many_listeners_are_all_told(tmp_path: Path) -> None:
    """Five hundred connections to one process hear the same event, each once."""
    raise_file_limit(2 * MANY)
    feed = MemoryFeed(LiveSettings(max_listeners=MANY))
    async with built(tmp_path, feed) as house, AsyncExitStack() as stack:
        port = house.client.base_url.port
        assert port is not None
        readers = [await opened(stack, port) for _ in range(MANY)]
        refused(await house.client.get("/api/v1/events"), 503, "too-many-listeners")
        feed.append(Facts(new_image_id(), owner=DEFAULT_OWNER).resized())
        feed.close()
        async with asyncio.timeout(60):
            streams = await asyncio.gather(*(reader.read() for reader in readers))
    assert [stream.count(b"event: stage") for stream in streams] == [1] * MANY


async def opened(stack: AsyncExitStack, port: int) -> asyncio.StreamReader:
    """Open a stream on a connection of its own; return when it says where it stands."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(60):
        await reader.readuntil(b"\nid: ")
    return reader
