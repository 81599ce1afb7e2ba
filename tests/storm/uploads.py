"""The steady stream of uploads, and its diary: every request and its answer."""

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

NUMBER = "storm"  # the field of an upload's metadata that holds its number in the diary
ACCEPTED = 202
_DELETE_TRIES = 90
_GATEWAYS = ("core", "ingest")
_WAYS = {"upload": 53, "bulk": 7, "same bytes": 8, "twins": 5, "fetch": 9, "event": 9, "fresh": 9}  # of a hundred


@dataclass(slots=True)
class Sent:
    """One request and what became of it, as its sender knows."""

    number: int
    how: Literal["upload", "fetch", "event"]
    content: str
    good: bool
    sha256: str
    at: float  # unix seconds
    status: int | None = None  # the HTTP status of the answer; None: the connection broke without one
    image_id: str | None = None
    deleted: Literal["no", "asked", "yes", "unknown"] = "no"
    seen_after: str = ""  # what was still to be seen of it after its deletion was accepted

    @property
    def accepted(self) -> bool:
        """Whether the sender was promised that the image will be carried to its end."""
        return self.status == ACCEPTED


@dataclass(slots=True)
class Stream:
    """Sends images in every way there is."""

    world: World
    pool: Pool
    files: FileStore
    http: httpx.AsyncClient
    seed: int
    owner: str = "default"
    diary: list[Sent] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _fresh: Iterator[str] = field(init=False)
    _lures: Iterator[str] = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        half = len(self.pool.fresh) // 2
        self._fresh, self._lures = iter(self.pool.fresh[:half]), iter(self.pool.fresh[half:])

    async def run(self, images: int, per_second: float, storm_over: asyncio.Event) -> None:
        """Send so many images evenly, and go on at that pace until the storm is over."""
        choose = random.Random(self.seed)
        contents = self.pool.steady()
        begun, ticks = time.monotonic(), 0
        room = asyncio.Semaphore(40)
        while len(self.diary) < images or not storm_over.is_set():
            await room.acquire()
            way = choose.choices(list(_WAYS), list(_WAYS.values()))[0]
            content, gateway = choose.choice(contents), choose.choice(_GATEWAYS)
            delete_after = choose.uniform(0, 8) if choose.random() < 0.08 else None
            self._spawn(self._one(way, content, gateway, delete_after), room)
            ticks += 1
            await asyncio.sleep(max(0.0, begun + ticks / per_second - time.monotonic()))
        await self.finish()

    async def finish(self) -> None:
        """Wait until every request and every deletion that was begun has its answer."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def next_fresh(self, *, lure: bool = False) -> Content:
        """Return a content whose pixels nobody has sent yet; when all were sent, one of them. Lures are kept apart."""
        name = next(self._lures if lure else self._fresh, self.pool.fresh[0])
        return self.pool.contents[name]

    def some(self, number: int) -> Content:
        """Return a good content of which there can be many originals."""
        good = [content for content in self.pool.steady() if content.good and content.extends]
        return good[number % len(good)]

    async def _one(self, way: str, content: Content, gateway: str, delete_after: float | None) -> None:
        match way:
            case "fetch":
                sent = [await self.fetch(content, gateway)]
            case "event":
                sent = [await self.tell(content)]
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
        """Send the very same bytes, that nobody sent before, to both gateways at the same time."""
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
        """Upload an image, by default of bytes nobody sent before."""
        number = next(self._numbers)
        data = content.unique(number) if data is None else data
        sent = self._note(number, "upload", content, data)
        form = {"metadata": f'{{"{NUMBER}": {number}}}', "lane": lane}
        await self._post(sent, gateway, "/upload", files={"file": ("image", data)}, data=form)
        return sent

    async def fetch(self, content: Content, gateway: str) -> Sent:
        """Have an image fetched from our own web server."""
        number = next(self._numbers)
        data, path = content.unique(number), f"/{number}"
        source.put(path, data)
        sent = self._note(number, "fetch", content, data)
        await self._post(
            sent, gateway, "/fetch", json={"url": self.world.source_url + path, "metadata": {NUMBER: number}}
        )
        return sent

    async def tell(self, content: Content) -> Sent:
        """Be another service: store the bytes and produce the event ourselves, until Kafka has it."""
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
                # As the gateway makes sure, beside a deletion of the same bytes.
                await self.files.put(key, data, content_type="image/jpeg")
                sent.status = ACCEPTED
            except (RuntimeError, DependencyUnavailable):  # brokers or store are away; all of it again is harmless
                await asyncio.sleep(1)
        return sent

    async def delete(self, sent: Sent) -> None:
        """Delete an image, and look that nothing of it is to be seen from the moment that is accepted."""
        if sent.image_id is None or not sent.accepted:
            return
        sent.deleted = "asked"
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
            await self._peek(sent, path)

    async def _peek(self, sent: Sent, path: str) -> None:
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
    """Produce messages with a client of our own, and wait until Kafka has them. Blocking. Raises RuntimeError."""
    failed: list[object] = []
    producer = Producer(
        {
            "bootstrap.servers": world.kafka.bootstrap,
            "partitioner": "murmur2_random",
            "message.max.bytes": 1_000_000,
            "batch.size": 100_000,  # a topic's limit is on batches
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
        raise RuntimeError(f"Kafka did not take the events: {failed[:1]}")
