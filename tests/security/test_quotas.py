"""How much an owner may keep: counted where it is kept, refused when there is no room, free again when deleted."""

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
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as found:
        yield FaultyFiles(found)


async def keep(files: FileStore, owner: Owner, data: bytes) -> tuple[str, str]:
    """Do what accepting does: claim the original, store it. Return image id and hash."""
    digest, image_id = hashlib.sha256(data).hexdigest(), new_image_id()
    await add_reference(files, owner, digest, image_id)
    await files.put(original_key(owner, digest), data, content_type="image/jpeg", sha256=digest)
    return image_id, digest


async def let_in(quotas: Quotas, owner: Owner = ANNA, size: int = 10) -> bool:
    """Say whether there is room."""
    try:
        async with quotas.room(owner, size=size):
            return True
    except Problem as problem:
        assert (problem.code, problem.status) == ("quota-exceeded", 403)
        return False


async def test_what_an_owner_has_is_counted_in_the_store(files: FaultyFiles) -> None:
    """Images are claims on originals, bytes are counted once however many images share them, and masters not at all."""
    assert await count(files, ANNA) == Usage(0, 0)
    for data in (b"a" * 10, b"a" * 10, b"b" * 7):
        await keep(files, ANNA, data)
    await keep(files, BERT, b"c" * 1000)
    await keep(files, Owner("anna2"), b"d" * 1000)
    for number in range(20):
        master = hashlib.sha256(bytes([number])).hexdigest()
        await add_reference(files, ANNA, master, new_image_id())
    assert await count(files, ANNA) == Usage(3, 17)
    assert await count(files, BERT) == Usage(1, 1000)


async def test_without_a_quota_nothing_is_counted(files: FaultyFiles) -> None:
    """With no quota set the store is not asked."""
    files.unavailable = True
    assert await let_in(Quotas(QuotaSettings(), files))


async def test_there_is_room_for_so_much_and_no_more(files: FaultyFiles) -> None:
    """Own uploads are counted at once, without looking again, and an upload that failed is not."""
    clock = Clock()
    quotas = Quotas(QuotaSettings(images=3, bytes=25), files, clock=clock)
    assert await let_in(quotas)
    with pytest.raises(ZeroDivisionError):
        async with quotas.room(ANNA, size=10):
            raise ZeroDivisionError
    assert await let_in(quotas)
    assert not await let_in(quotas)
    assert await let_in(quotas, size=5)
    assert not await let_in(quotas, size=0)
    assert await let_in(quotas, BERT)


async def test_what_is_under_way_takes_room(files: FaultyFiles) -> None:
    """Uploads at the same time do not all fit into the room for one."""
    quotas = Quotas(QuotaSettings(images=1), files)
    async with quotas.room(ANNA):
        assert not await let_in(quotas)
    assert not await let_in(quotas)


async def test_what_was_deleted_makes_room(files: FaultyFiles) -> None:
    """Who would be refused is counted anew first: with something deleted meanwhile, there is room."""
    clock = Clock()
    quotas = Quotas(QuotaSettings(images=2, recount_s=3600), files, clock=clock)
    image_id, digest = await keep(files, ANNA, b"a")
    await keep(files, ANNA, b"b")
    assert not await let_in(quotas)
    await withdraw(files, ANNA, digest, image_id)
    clock.now += RECOUNT_INTERVAL_S
    assert await let_in(quotas)
    assert not await let_in(quotas)


async def test_what_other_gateways_accept_is_seen_with_the_next_count(files: FaultyFiles) -> None:
    """Another gateway's images are not known until the count is made anew, and then they are."""
    clock = Clock()
    one, other = (Quotas(QuotaSettings(images=3, recount_s=60), files, clock=clock) for _ in range(2))
    for quotas in (one, other):
        assert await quotas.usage(ANNA) == Usage(0, 0)
    for number in range(2):
        async with one.room(ANNA, size=1):
            await keep(files, ANNA, bytes([number]))
    assert await one.usage(ANNA) == Usage(2, 2)
    assert await other.usage(ANNA) == Usage(0, 0)
    clock.now += 61
    for quotas in (one, other):
        async with asyncio.timeout(60):  # the count goes on beside the answers
            while await quotas.usage(ANNA) != Usage(2, 2):
                await asyncio.sleep(0.01)


async def test_a_store_that_is_away_is_503_and_no_full_house(files: FaultyFiles) -> None:
    """When what an owner has cannot be counted, that is no refusal for want of room; it is counted when it can be."""
    quotas = Quotas(QuotaSettings(images=1), files)
    files.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await let_in(quotas)
    files.unavailable = False
    assert await let_in(quotas)


async def test_over_http(files: FaultyFiles) -> None:
    """Beyond a quota an upload is 403 and leaves nothing behind; usage tells what is left, of quotas and limits."""
    quotas = Quotas(QuotaSettings(images=2, bytes=10_000), files)
    async with open_limits(RateLimitSettings(uploads="9/hour")) as limits:
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
    """Without quotas usage tells of limits alone, and asks the store for nothing."""
    parts = IngestComponents(files=files, events=Sink(), readiness=StubReadiness())
    async with client_of(ingest_app(settings(), parts)) as client:
        files.unavailable = True
        usage = (await client.get("/api/v1/usage")).json()
    assert usage == {"images": {"used": None, "allowed": None}, "bytes": {"used": None, "allowed": None}, "limits": []}
