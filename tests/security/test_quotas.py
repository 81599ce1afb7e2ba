"""Quotas: counted in the store, refused when full, free again after deletions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.http.problems import Problem
from gateway.limits.quotas import RECOUNT_INTERVAL_S, Quotas, Usage, count
from gateway.limits.rate_limits import open_limits
from gateway.limits.settings import QuotaSettings, RateLimitSettings
from schemas.values import Owner, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key
from streams.object_store.original_references import add_reference, withdraw
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.support.gateway_components import (
    JPEG,
    UPLOAD,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)

ANNA, BERT = Owner("anna"), Owner("bert")


class Clock:
    """A clock that moves only by calls."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as found:
        yield FaultyFiles(found)


async def store_original(files: FileStore, owner: Owner, data: bytes) -> tuple[str, str]:
    """Store an original with its reference, as an upload does. Return image id and hash."""
    digest, image_id = hashlib.sha256(data).hexdigest(), new_image_id()
    await add_reference(files, owner, digest, image_id)
    await files.put(original_key(owner, digest), data, content_type="image/jpeg", sha256=digest)
    return image_id, digest


async def has_room(quotas: Quotas, owner: Owner = ANNA, size: int = 10) -> bool:
    """Return whether there is room."""
    try:
        async with quotas.room(owner, size=size):
            return True
    except Problem as problem:
        assert (problem.code, problem.status) == ("quota-exceeded", 403)
        return False


async def test_usage_is_counted_in_the_store(files: FaultyFiles) -> None:
    """Images are counted by references to originals; shared bytes count once, and masters do not count."""
    assert await count(files, ANNA) == Usage(0, 0)
    for data in (b"a" * 10, b"a" * 10, b"b" * 7):
        await store_original(files, ANNA, data)
    await store_original(files, BERT, b"c" * 1000)
    await store_original(files, Owner("anna2"), b"d" * 1000)
    for number in range(20):
        master = hashlib.sha256(bytes([number])).hexdigest()
        await add_reference(files, ANNA, master, new_image_id())
    assert await count(files, ANNA) == Usage(3, 17)
    assert await count(files, BERT) == Usage(1, 1000)


async def test_without_a_quota_nothing_is_counted(files: FaultyFiles) -> None:
    """Without a quota the store is not listed."""
    files.unavailable = True
    assert await has_room(Quotas(QuotaSettings(), files))


async def test_uploads_beyond_the_quota_are_refused(files: FaultyFiles) -> None:
    """Own uploads count at once, without another listing; failed uploads do not count."""
    clock = Clock()
    quotas = Quotas(QuotaSettings(images=3, bytes=25), files, clock=clock)
    assert await has_room(quotas)
    with pytest.raises(ZeroDivisionError):
        async with quotas.room(ANNA, size=10):
            raise ZeroDivisionError
    assert await has_room(quotas)
    assert not await has_room(quotas)
    assert await has_room(quotas, size=5)
    assert not await has_room(quotas, size=0)
    assert await has_room(quotas, BERT)


async def test_uploads_in_progress_count(files: FaultyFiles) -> None:
    """Concurrent uploads do not all fit into the room for one."""
    quotas = Quotas(QuotaSettings(images=1), files)
    async with quotas.room(ANNA):
        assert not await has_room(quotas)
    assert not await has_room(quotas)


async def test_deletions_make_room(files: FaultyFiles) -> None:
    """Before a refusal the store is counted again: after a deletion there is room."""
    clock = Clock()
    quotas = Quotas(QuotaSettings(images=2, recount_s=3600), files, clock=clock)
    image_id, digest = await store_original(files, ANNA, b"a")
    await store_original(files, ANNA, b"b")
    assert not await has_room(quotas)
    await withdraw(files, ANNA, digest, image_id)
    clock.now += RECOUNT_INTERVAL_S
    assert await has_room(quotas)
    assert not await has_room(quotas)


async def test_images_of_other_gateways_count_after_the_next_listing(files: FaultyFiles) -> None:
    """Images of another gateway count after the next listing."""
    clock = Clock()
    one, other = (Quotas(QuotaSettings(images=3, recount_s=60), files, clock=clock) for _ in range(2))
    for quotas in (one, other):
        assert await quotas.usage(ANNA) == Usage(0, 0)
    for number in range(2):
        async with one.room(ANNA, size=1):
            await store_original(files, ANNA, bytes([number]))
    assert await one.usage(ANNA) == Usage(2, 2)
    assert await other.usage(ANNA) == Usage(0, 0)
    clock.now += 61
    for quotas in (one, other):
        async with asyncio.timeout(60):  # the count goes on beside the answers
            while await quotas.usage(ANNA) != Usage(2, 2):
                await asyncio.sleep(0.01)


async def test_an_unavailable_store_is_a_503_and_not_a_full_quota(files: FaultyFiles) -> None:
    """A store that cannot be listed is a 503, not a full quota; it is counted when it is available again."""
    quotas = Quotas(QuotaSettings(images=1), files)
    files.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await has_room(quotas)
    files.unavailable = False
    assert await has_room(quotas)


async def test_over_http(files: FaultyFiles) -> None:
    """Beyond a quota an upload gets 403 and stores nothing; usage reports quotas and limits."""
    quotas = Quotas(QuotaSettings(images=2, bytes=10_000), files)
    async with open_limits(RateLimitSettings(uploads="9/hour", changes="none")) as limits:
        parts = IngestComponents(files=files, events=Sink(), readiness=StubReadiness(), limits=limits, quotas=quotas)
        async with client_of(ingest_app(settings(), parts)) as client:
            for number in range(2):
                answer = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG + bytes([number]))})
                assert answer.status_code == 202, answer.text
            before = await files.objects()
            problem = refused(await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}), 403, "quota-exceeded")
            assert "2 of 2 images" in problem.detail
            fetch = await client.post("/api/v1/images/fetch", json={"url": "https://example.org/cat.jpg"})
            refused(fetch, 403, "quota-exceeded")
            assert await files.objects() == before
            usage = (await client.get("/api/v1/usage")).json()
    assert usage["images"] == {"used": 2, "allowed": 2}
    assert usage["bytes"] == {"used": 2 * len(JPEG) + 2, "allowed": 10_000}
    (limit,) = usage["limits"]
    assert (limit["name"], limit["limit"], limit["window_s"], limit["remaining"]) == ("uploads", 9, 3600, 5)


async def test_usage_without_quotas_counts_nothing(files: FaultyFiles) -> None:
    """Without quotas usage reports limits only, and does not list the store."""
    parts = IngestComponents(files=files, events=Sink(), readiness=StubReadiness())
    async with client_of(ingest_app(settings(), parts)) as client:
        files.unavailable = True
        usage = (await client.get("/api/v1/usage")).json()
    assert usage == {"images": {"used": None, "allowed": None}, "bytes": {"used": None, "allowed": None}, "limits": []}
