"""The steady stream of uploads, and the record of every request and response."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import httpx
from confluent_kafka import Producer

from schemas.events.envelope import Outgoing
from schemas.events.intake import ImageUploaded
from schemas.values import ObjectRef, Profile, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.keys import original_key
from streams.object_store.original_references import add_reference
from streams.object_store.protocol import FileStore
from streams.topics import UPLOADED
from tests.storm import source
from tests.storm.pool import Content, Pool
from tests.storm.world import World

NUMBER = "storm"  # metadata field with the number of the upload
ACCEPTED = 202
_DELETE_TRIES = 90
_GATEWAYS = ("core", "ingest")
_WAYS = {"upload": 53, "bulk": 7, "same bytes": 8, "twins": 5, "fetch": 9, "event": 9, "fresh": 9}  # percent


@dataclass(slots=True)
class Sent:
    """An upload and its response, as known to the client."""

    number: int
    how: Literal["upload", "fetch", "event"]
    content: str
    good: bool
    sha256: str
    at: float  # unix seconds
    status: int | None = None  # HTTP status; None: no response
    image_id: str | None = None
    deleted: Literal["no", "requested", "yes", "unknown"] = "no"
    seen_after: str = ""  # what was still visible after the accepted deletion

    @property
    def accepted(self) -> bool:
        """Whether the upload was answered 202."""
        return self.status == ACCEPTED


@dataclass(slots=True)
class Stream:
    """Sends images in all supported ways."""

    world: World
    pool: Pool
    files: FileStore
    http: httpx.AsyncClient
    seed: int
    owner: str = "default"
    diary: list[Sent] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _fresh: Iterator[str] = field(init=False)
    _for_faults: Iterator[str] = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        half = len(self.pool.fresh) // 2
        self._fresh, self._for_faults = iter(self.pool.fresh[:half]), iter(self.pool.fresh[half:])

    async def run(self, images: int, per_second: float, finished: asyncio.Event) -> None:
        """Send at least `images` uploads at a constant rate, until `finished` is set."""
        choose = random.Random(self.seed)
        contents = self.pool.steady()
        begun, ticks = time.monotonic(), 0
        room = asyncio.Semaphore(40)
        while len(self.diary) < images or not finished.is_set():
            await room.acquire()
            way = choose.choices(list(_WAYS), list(_WAYS.values()))[0]
            content, gateway = choose.choice(contents), choose.choice(_GATEWAYS)
            delete_after = choose.uniform(0, 8) if choose.random() < 0.08 else None
            self._spawn(self._one(way, content, gateway, delete_after), room)
            ticks += 1
            await asyncio.sleep(max(0.0, begun + ticks / per_second - time.monotonic()))
        await self.finish()

    async def finish(self) -> None:
        """Wait for the responses of all uploads and deletions."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Cancel open requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def next_fresh(self, *, for_faults: bool = False) -> Content:
        """Return a content with new pixels, or the first one if all were sent. Half of them are reserved for faults."""
        name = next(self._for_faults if for_faults else self._fresh, self.pool.fresh[0])
        return self.pool.contents[name]

    def some(self, number: int) -> Content:
        """Return a good content that can be made unique."""
        good = [content for content in self.pool.steady() if content.good and content.extends]
        return good[number % len(good)]

    async def _one(self, way: str, content: Content, gateway: str, delete_after: float | None) -> None:
        match way:
            case "fetch":
                sent = [await self.fetch(content, gateway)]
            case "event":
                sent = [await self.publish(content)]
            case "twins":
                sent = await self.twins(content)
            case "fresh":
                sent = [await self.upload(self.next_fresh(), gateway)]
            case "bulk":
                sent = [await self.upload(content, gateway, lane="bulk")]
            case "same bytes":
                sent = [await self.upload(content, gateway, data=content.data)]
            case _:
                sent = [await self.upload(content, gateway)]
        if delete_after is not None:
            await asyncio.sleep(delete_after)
            await self.delete(sent[0])

    async def twins(self, content: Content) -> list[Sent]:
        """Send the same unique bytes to both gateways concurrently."""
        data = content.unique(next(self._numbers))
        return list(await asyncio.gather(*(self.upload(content, gateway, data=data) for gateway in _GATEWAYS)))

    async def upload(
        self,
        content: Content,
        gateway: str = "core",
        *,
        data: bytes | None = None,
        lane: str = "interactive",
    ) -> Sent:
        """Upload an image, by default with unique bytes."""
        number = next(self._numbers)
        data = content.unique(number) if data is None else data
        sent = self._note(number, "upload", content, data)
        form = {"metadata": f'{{"{NUMBER}": {number}}}', "lane": lane}
        await self._post(sent, gateway, "/upload", files={"file": ("image", data)}, data=form)
        return sent

    async def fetch(self, content: Content, gateway: str) -> Sent:
        """Submit an image by URL, from the local web server."""
        number = next(self._numbers)
        data, path = content.unique(number), f"/{number}"
        source.put(path, data)
        sent = self._note(number, "fetch", content, data)
        await self._post(
            sent, gateway, "/fetch", json={"url": self.world.source_url + path, "metadata": {NUMBER: number}}
        )
        return sent

    async def publish(self, content: Content) -> Sent:
        """Store the bytes and produce the event as another service does, until Kafka confirms it."""
        number = next(self._numbers)
        data = content.unique(number)
        sent = self._note(number, "event", content, data)
        key = original_key(self.owner, sent.sha256)
        sent.image_id = new_image_id()
        original = ObjectRef(bucket=self.files.bucket, key=key, sha256=sent.sha256, size=len(data))
        event = ImageUploaded(
            image_id=sent.image_id, owner=self.owner, profile=Profile(), context={NUMBER: number}, original=original
        )
        message = Outgoing(UPLOADED.name, event.key(), event.body(), event.headers(source="another-service"))
        while sent.status is None:
            try:
                await add_reference(self.files, self.owner, sent.sha256, sent.image_id)
                await self.files.put(key, data, content_type="image/jpeg")
                await asyncio.to_thread(produce, self.world, [message])
                # Again, as the gateway does: a concurrent deletion of the same bytes may have removed it.
                await self.files.put(key, data, content_type="image/jpeg")
                sent.status = ACCEPTED
            except (RuntimeError, DependencyUnavailable):  # brokers or store unavailable; every step is idempotent
                await asyncio.sleep(1)
        return sent

    async def delete(self, sent: Sent) -> None:
        """Delete an image, and check that it is not visible after the accepted deletion."""
        if sent.image_id is None or not sent.accepted:
            return
        sent.deleted = "requested"
        path = f"{self.world.url('core')}/api/v1/images/{sent.image_id}"
        for _ in range(_DELETE_TRIES):
            try:
                status = (await self.http.delete(path)).status_code
            except httpx.TransportError:
                sent.deleted = "unknown"  # it may have been accepted
                await asyncio.sleep(1)
                continue
            if status in {ACCEPTED, httpx.codes.GONE}:
                sent.deleted = "yes"
                break
            await asyncio.sleep(1)
        if sent.deleted == "yes":
            await self._check_hidden(sent, path)

    async def _check_hidden(self, sent: Sent, path: str) -> None:
        try:
            answer = await self.http.get(path, params={"size": "thumbnail"})
        except httpx.TransportError:
            return
        if answer.status_code in {httpx.codes.OK, httpx.codes.CONFLICT}:
            sent.seen_after = f"{answer.status_code} after its deletion was accepted"

    async def _post(self, sent: Sent, gateway: str, path: str, **body: Any) -> None:
        try:
            answer = await self.http.post(f"{self.world.url(gateway)}/api/v1/images{path}", **body)
        except httpx.TransportError:
            return
        sent.status = answer.status_code
        if sent.accepted:
            sent.image_id = answer.json()["image_id"]

    def _note(
        self,
        number: int,
        how: Literal["upload", "fetch", "event"],
        content: Content,
        data: bytes,
    ) -> Sent:
        digest = hashlib.sha256(data).hexdigest()
        sent = Sent(number, how, content.name, content.good, digest, time.time())
        self.diary.append(sent)
        return sent

    def _spawn(self, work: Coroutine[Any, Any, None], room: asyncio.Semaphore) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                room.release()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def produce(world: World, messages: list[Outgoing], **settings: str) -> None:
    """Produce messages and wait until Kafka confirms them. Blocking. Raises RuntimeError."""
    failed: list[object] = []
    producer = Producer(
        {
            "bootstrap.servers": world.kafka.bootstrap,
            "partitioner": "murmur2_random",
            "message.max.bytes": 1_000_000,
            "batch.size": 100_000,  # max.message.bytes limits batches
            "enable.idempotence": True,
            "message.timeout.ms": 30_000,
            "log_level": 0,
            **settings,
        }
    )
    for message in messages:
        producer.produce(
            world.kafka.topic(message.topic),
            key=message.key,
            value=message.value,
            headers=list(message.headers),
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        producer.poll(0)
    if producer.flush(60) or failed:
        raise RuntimeError(f"Kafka did not confirm the events: {failed[:1]}")
