"""Statistics: per owner, for operators of all owners, cached, and complete even if a dependency fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from gateway.access.identity import Identity, Scope
from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from gateway.operations.inventory_counts import CachedValue, ScanPace, count_objects, count_records
from gateway.operations.settings import StatisticsSettings
from gateway.operations.statistics_cache import open_statistics_cache
from schemas.http.operations import Statistics
from schemas.values import ImageState, ObjectRef, Owner, StageState, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.recent_rates import ACCEPTED, RateEvent, Tally
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

STATS = "/api/v1/health/stats"
OPERATOR = "root images:read admin"
QUIET = ScanPace(most=1000, rest=0, timeout_s=10)


class Named:
    """An authenticator that trusts the Authorization header: `owner scope scope`."""

    async def identify(self, request: Request) -> Identity:
        owner, *scopes = request.headers["authorization"].split()
        return Identity(Owner(owner), frozenset(map(Scope, scopes)), owner)


@dataclass
class StubEvents:
    """Recent events without Kafka; with `unavailable` every call fails."""

    tally: Tally = field(default_factory=Tally)
    behind: bool = False
    unavailable: bool = False

    async def look(self) -> None:
        if self.unavailable:
            raise DependencyUnavailable("Kafka at 10.0.0.7")

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        return self.tally.counts(time.time(), owner)

    async def waiting(self, agent: str) -> int:
        if self.unavailable:
            raise DependencyUnavailable("Kafka at 10.0.0.7")
        return 7 if agent == "ocr" else 0


@dataclass
class Server:
    """A query gateway with statistics."""

    client: httpx.AsyncClient
    files: FileStore
    read_model: ReadModel
    log: StubEvents

    async def image(self, owner: str, state: ImageState, *, submitted_at: str | None = None) -> str:
        """Record an image: its resizer done, its OCR unfinished unless the image is."""
        image_id = new_image_id()
        original = ObjectRef(bucket="b", key=f"originals/{owner}/x", sha256="a" * 64, size=1000)
        await self.read_model.begin(
            ImageRecord(
                image_id=image_id,
                owner=owner,
                generation=1,
                required=("resizer", "ocr"),
                submitted_at=submitted_at,
                original=original,
            )
        )
        stages = {"resizer": StageRecord(state=StageState.DONE)}
        if state is not ImageState.PROCESSING:
            stages["ocr"] = StageRecord(state=StageState.FAILED if state is ImageState.FAILED else StageState.DONE)
        await merge(self.read_model, image_id, 1, {"state": state.value}, stages=stages)
        return image_id

    async def numbers(self, who: str, **parameters: bool) -> Statistics:
        """Get the statistics as `owner scope scope`."""
        answer = await self.client.get(STATS, params=parameters, headers={"authorization": who})
        assert answer.status_code == 200, answer.text
        assert "10.0.0.7" not in answer.text
        return Statistics.model_validate_json(answer.content)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A gateway that refreshes its statistics for each request."""
    log = StubEvents()
    own = StatisticsSettings(refresh_s=0, walk_every_s=0, rest=0, wait_s=30)
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
        open_statistics_cache(own, files, read_model, log, log) as numbers,
    ):
        components = QueryComponents(
            files=files, events=Sink(), readiness=StubReadiness(), read_model=read_model, numbers=numbers
        )
        async with client_of(query_app(settings(), replace(components, authenticator=Named()))) as client:
            yield Server(client, files, read_model, log)


async def test_an_owner_gets_their_own_statistics_only(server: Server) -> None:
    """Images by state, stages, rates, storage and the oldest unfinished image are the caller's; queues are omitted."""
    await server.image("anna", ImageState.COMPLETED)
    await server.image("anna", ImageState.FAILED)
    oldest = await server.image("anna", ImageState.PROCESSING, submitted_at="2020-01-01T00:00:00.000Z")
    for _ in range(3):
        await server.image("berta", ImageState.PROCESSING)
    at = time.time()
    server.log.tally.add(RateEvent(at, "anna", ACCEPTED, "1.1"))
    server.log.tally.add(RateEvent(at, "berta", ACCEPTED, "2.1"))
    found = await server.numbers("anna images:read")
    assert found.of == "owner"
    assert found.images == {"completed": 1, "failed": 1, "processing": 1}
    assert found.stages is not None
    assert found.stages.counts == {"resizer": {"done": 3}, "ocr": {"done": 1, "failed": 1, "pending": 1}}
    assert (found.stages.images, found.stages.complete) == (3, True)
    assert found.oldest_unfinished is not None
    assert found.oldest_unfinished.image_id == oldest
    assert found.oldest_unfinished.age_s > 86_400
    assert found.rates is not None
    assert found.rates.accepted == {"1": 1.0, "5": 0.2, "15": 0.07}
    assert found.storage is not None
    assert found.storage.kinds["originals"].bytes == 3000
    assert found.queues is None


async def test_an_operator_gets_statistics_of_all_owners(server: Server) -> None:
    """With the scope `admin` all images count, with stored objects by kind and the backlog of each agent."""
    await server.image("anna", ImageState.COMPLETED)
    await server.image("berta", ImageState.PROCESSING)
    await server.files.put("originals/anna/aa/x", b"12345", content_type="image/png")
    await server.files.put("images/aa/y/z.webp", b"123", content_type="image/webp")
    found = await server.numbers(OPERATOR)
    assert (found.of, found.images) == ("everybody", {"completed": 1, "processing": 1})
    assert found.storage is not None
    assert (found.storage.kinds["originals"].objects, found.storage.kinds["originals"].bytes) == (1, 5)
    assert (found.storage.kinds["images"].objects, found.storage.kinds["images"].bytes) == (1, 3)
    assert found.queues is not None
    assert found.queues["ocr"].waiting == 7
    assert (await server.numbers(OPERATOR, everybody=False)).images == {}
    answer = await server.client.get(STATS, params={"everybody": True}, headers={"authorization": "anna images:read"})
    refused(answer, 403, "forbidden")


async def test_unavailable_counts_are_omitted(server: Server) -> None:
    """While Kafka is unavailable rates and queues are omitted, and the rest is returned."""
    server.log.unavailable = True
    await server.image("anna", ImageState.COMPLETED)
    found = await server.numbers(OPERATOR)
    assert (found.rates, found.queues) == (None, None)
    assert found.images == {"completed": 1}
    server.log.unavailable = False
    assert (await server.numbers(OPERATOR)).rates is not None


async def test_scans_are_bounded(server: Server) -> None:
    """A scan that reaches its limit stops and reports that it is incomplete."""
    for number in range(450):
        await server.read_model.begin(ImageRecord(image_id=new_image_id(), owner=f"o{number % 3}", generation=1))
    whole = await count_records(server.read_model, QUIET)
    assert (whole.all_owners.images, whole.complete) == (450, True)
    assert whole.of("o1").images == 150
    part = await count_records(server.read_model, replace(QUIET, most=200))
    assert (part.all_owners.images, part.complete) == (200, False)
    for number in range(3):
        await server.files.put(f"jobs/{number}", b"12", content_type="application/json")
    assert (await count_objects(server.files, QUIET)).kinds["receipts"] == (3, 6)
    few = await count_objects(server.files, replace(QUIET, most=2))
    assert (few.kinds["receipts"], few.complete) == ((2, 4), False)


async def test_a_value_is_refreshed_once_for_all_callers() -> None:
    """Concurrent callers share a refresh; a failed refresh keeps the last value."""
    made = 0
    gate = asyncio.Event()

    async def make() -> int:
        nonlocal made
        made += 1
        await gate.wait()
        if made == 2:
            raise DependencyUnavailable("away")
        return made

    value = CachedValue(make, every_s=0, stale_s=1e9)
    assert await value.get(0) is None
    asking = [asyncio.create_task(value.get(60)) for _ in range(5)]
    gate.set()
    assert await asyncio.gather(*asking) == [1] * 5
    assert made == 1
    assert await value.get(60) == 1  # the second is begun, and not waited for
    while made < 2:
        await asyncio.sleep(0)
    assert await value.get(60) == 1
    while await value.get(60) == 1:
        await asyncio.sleep(0)
    assert made >= 3
    await value.close()
    fresh = CachedValue(make, every_s=0, stale_s=0)
    assert await fresh.get(60) == made  # one that grows stale is waited for
    assert await fresh.get(60) == made
    await fresh.close()


def test_repeated_events_count_once_and_old_counts_expire() -> None:
    """A repeated event counts once; each of the windows of 1, 5 and 15 minutes has its own events."""
    tally = Tally()
    for ago, job in ((5, "a.1"), (5, "a.1"), (200, "b.1"), (800, "c.1"), (2000, "d.1")):
        tally.add(RateEvent(100_000 - ago, "anna", ACCEPTED, job))
    tally.add(RateEvent(100_000, "berta", "completed", "a.1"))
    assert tally.counts(100_000) == {ACCEPTED: {1: 1, 5: 2, 15: 3}, "completed": {1: 1, 5: 1, 15: 1}}
    assert tally.counts(100_000, "berta") == {"completed": {1: 1, 5: 1, 15: 1}}
    assert tally.counts(200_000) == {}
